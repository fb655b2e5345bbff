"""Pixels to vectors: encoders with their licences, stain normalisation, and `embed`, which fills the store.

Names are loaded when they are first used, so that importing this package does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from histoweave.embed.encoders import (
        DEFAULT_ENCODER,
        Encoder,
        EncoderCard,
        as_trunk,
        create_encoder,
        encoder_card,
        list_encoders,
    )
    from histoweave.embed.extract import SectionFeatures, embed
    from histoweave.embed.stain import Macenko, Reinhard

_HOME = {
    "DEFAULT_ENCODER": "encoders",
    "Encoder": "encoders",
    "EncoderCard": "encoders",
    "as_trunk": "encoders",
    "create_encoder": "encoders",
    "encoder_card": "encoders",
    "list_encoders": "encoders",
    "SectionFeatures": "extract",
    "embed": "extract",
    "Macenko": "stain",
    "Reinhard": "stain",
}
__all__ = [
    "DEFAULT_ENCODER",
    "Encoder",
    "EncoderCard",
    "Macenko",
    "Reinhard",
    "SectionFeatures",
    "as_trunk",
    "create_encoder",
    "embed",
    "encoder_card",
    "list_encoders",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
