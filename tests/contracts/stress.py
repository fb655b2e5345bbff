"""Two models that press on the types where the first papers do not: visible neighbours, repeated spots.

They are the shapes of SpaCKLE and xMINT at toy size, and exist for the leak test.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from histoweave.batch import Batch, Card, Dims, Needs
from histoweave.models._losses import masked_mse


class NeighbourCompleter(nn.Module):
    """Fills entries of a spot from what is visible of it and of its neighbours, by attention over the neighbours."""

    card: ClassVar[Card] = Card(title="stress: completion", citation="test", task="complete")

    def __init__(self, dims: Dims, *, width: int = 16, rate: float = 0.3) -> None:
        super().__init__()
        self.needs, self.rate = Needs.CTX_EXPR, rate
        self.lift = nn.Linear(2 * dims.genes, width)
        self.attend = nn.MultiheadAttention(width, 2, batch_first=True)
        self.drop = nn.Linear(width, dims.genes)

    def forward(self, batch: Batch) -> Tensor:
        assert batch.ctx_expr is not None and batch.ctx_seen is not None
        return self._complete(batch.ctx_expr, batch.ctx_seen)

    def _complete(self, values: Tensor, seen: Tensor) -> Tensor:
        tokens = self.lift(torch.cat([values * seen, seen.float()], dim=-1))  # (b, k, w)
        empty = ~seen.any(dim=-1)
        empty[:, 0] = False
        mixed, _ = self.attend(tokens[:, :1], tokens, tokens, key_padding_mask=empty, need_weights=False)
        return self.drop(mixed[:, 0])

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.ctx_expr is not None and batch.ctx_seen is not None
        hide = (torch.rand(batch.y.shape) < self.rate) & batch.y_mask
        seen = batch.ctx_seen.clone()
        seen[:, 0] &= ~hide
        value = masked_mse(self._complete(batch.ctx_expr, seen), batch.y, hide)
        return value, {"mse": value}

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        return {}


class Sequences(nn.Module):
    """Attention among the spots of a sequence; a spot may occur several times and its predictions are averaged."""

    card: ClassVar[Card] = Card(title="stress: sequences", citation="test")

    def __init__(self, dims: Dims, *, width: int = 16) -> None:
        super().__init__()
        self.needs = Needs.SEQ | Needs.EMB
        self.lift = nn.Linear(dims.emb, width)
        self.attend = nn.MultiheadAttention(width, 2, batch_first=True)
        self.drop = nn.Linear(width, dims.genes)

    def forward(self, batch: Batch) -> Tensor:
        assert batch.emb is not None and batch.seq is not None
        sequences = int(batch.seq.max()) + 1
        tokens = self.lift(batch.emb).view(sequences, len(batch) // sequences, -1)
        return self.drop(self.attend(tokens, tokens, tokens, need_weights=False)[0]).flatten(0, 1)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        value = masked_mse(self(batch), batch.y, batch.y_mask)
        return value, {"mse": value}

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        return {}
