"""Spots with neighbours as a batch, small SpaCKLE models for it, and torch's own encoder in their place."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from histoweave.batch import Batch, Dims
from histoweave.models.complete.spackle import Spackle

DIMS = Dims(genes=6, emb=5)
SLOTS = 7
SMALL: dict[str, Any] = {"width": 32, "hidden": 64}
STILL = SMALL | {"dropout": 0.0}


def make_batch(b: int = 12, *, whole: bool = False) -> Batch:
    """b spots with 6 neighbours: some slots empty, a spot alone, one that shows nothing, a gene never seen."""
    g = torch.Generator().manual_seed(1)
    shape = (b, SLOTS, DIMS.genes)
    full, seen = torch.rand(shape, generator=g) * 4 + 1, torch.rand(shape, generator=g) < 0.6
    if not whole:
        seen[:, 5:] &= (torch.rand(b, SLOTS - 5, generator=g) < 0.5)[..., None]
        seen[1, 1:], seen[2, 0], seen[..., 3] = False, False, False
    there = seen.any(-1, keepdim=True)
    there[:, 0] = True
    full = full * there
    return Batch(
        spot=torch.arange(b), section=torch.zeros(b, dtype=torch.long), y=full[:, 0] * seen[:, 0], y_mask=seen[:, 0],
        ctx_expr=full * seen, ctx_seen=seen, ctx_fill=full, emb=torch.randn(b, DIMS.emb, generator=g),
    )  # fmt: skip


def made(**arguments: Any) -> Spackle:
    return Spackle(DIMS, **(STILL | arguments)).eval()


def dense(model: Spackle, x: Tensor, absent: Tensor | None, *, batch_first: bool = True) -> Tensor:
    """Every token (b, t, g) by torch's own encoder with the weights of the model, padding and all."""
    first: Any = model.layers[0]
    width, hidden = first.widen.in_features, first.widen.out_features
    layer = nn.TransformerEncoderLayer(width, first.heads, hidden, 0.0, batch_first=batch_first)
    encoder = nn.TransformerEncoder(layer, len(model.layers), enable_nested_tensor=False)
    for theirs, ours in zip(encoder.layers, model.layers, strict=True):
        names = {"qkv.": "self_attn.in_proj_", "out.": "self_attn.out_proj.", "widen": "linear1", "narrow": "linear2"}
        state = {}
        for key, value in ours.state_dict().items():
            for old, new in names.items():
                key = key.replace(old, new) if key.startswith(old) else key
            state[key] = value
        theirs.load_state_dict(state)
    with torch.no_grad():
        return model.drop(encoder(model.lift(x), src_key_padding_mask=absent))


def absent(batch: Batch) -> Tensor:
    assert batch.ctx_seen is not None
    gone = ~batch.ctx_seen.any(-1)
    gone[:, 0] = False
    return gone


def moved(batch: Batch, where: tuple[Any, ...]) -> Batch:
    """The batch with other values in a part of what is seen."""
    assert batch.ctx_expr is not None and batch.ctx_seen is not None
    values = batch.ctx_expr.clone()
    values[where] += 1.5
    return replace(batch, ctx_expr=values * batch.ctx_seen)
