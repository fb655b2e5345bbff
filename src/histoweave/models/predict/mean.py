"""The training mean of every gene: what a method has to beat."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from histoweave.batch import Batch, Card, Dims, FeedLike, Needs
from histoweave.models._losses import masked_mse


class Mean(nn.Module):
    """Predicts the mean of each gene over the training spots, whatever the image shows."""

    card: ClassVar[Card] = Card(title="Training mean", citation="control", learns="none", control=True)

    def __init__(self, dims: Dims) -> None:
        super().__init__()
        self.needs = Needs.NONE
        self.register_buffer("mean", torch.zeros(dims.genes))

    def index(self, feed: FeedLike) -> None:
        """Takes the mean over the training spots."""
        self.mean = feed.y_mean()

    def forward(self, batch: Batch) -> Tensor:
        """The mean for every spot (b, g)."""
        return self.mean.expand(len(batch), -1)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Masked MSE, for reports."""
        value = masked_mse(self(batch), batch.y, batch.y_mask)
        return value, {"mse": value}

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """There is nothing to make smaller."""
        return {}
