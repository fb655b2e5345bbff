"""k nearest neighbours in the space of frozen embeddings."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from histoweave.batch import Batch, Card, Dims, FeedLike, Needs
from histoweave.models._bank import average, masked
from histoweave.models._checks import at_least
from histoweave.models._losses import masked_mse


class KNN(nn.Module):
    """The mean expression of the `k` training spots whose embeddings have the largest cosine similarity.

    Where entries are missing, a gene's mean is over those of the `k` that have it; over all training spots if none does.
    """

    card: ClassVar[Card] = Card(title="k nearest neighbours", citation="control", learns="retrieval", control=True)

    def __init__(self, dims: Dims, *, k: int = 50) -> None:
        super().__init__()
        self.needs, self.k = Needs.EMB, at_least("k", k, 1)
        self.register_buffer("keys", torch.zeros(1, dims.emb))  # (n, d), unit length
        self.register_buffer("values", torch.zeros(1, dims.genes))  # (n, g), NaN where not measured

    def index(self, feed: FeedLike) -> None:
        """Keeps embeddings and targets of the training spots that count."""
        keys, values = [], []
        for batch in feed.batches(4096):
            counts = batch.y_mask.any(dim=1)
            keys.append(normalize(batch.emb[counts], dim=1))  # type: ignore[index]
            values.append(masked(batch.y, batch.y_mask)[counts])
        self.keys, self.values = torch.cat(keys), torch.cat(values)

    def forward(self, batch: Batch) -> Tensor:
        """Predictions (b, g)."""
        assert batch.emb is not None
        near = (normalize(batch.emb, dim=1) @ self.keys.T).topk(min(self.k, len(self.keys)), dim=1).indices  # (b, k)
        made = self.values[near].mean(dim=1)
        return average(self.values, near) if bool(made.isnan().any()) else made

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Masked MSE, for reports."""
        value = masked_mse(self(batch), batch.y, batch.y_mask)
        return value, {"mse": value}

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """A single neighbour."""
        return {"k": 1}
