"""Relative expression by a linear rule from the shared genes, to be averaged with that of a network."""

from __future__ import annotations

import torch
from scipy import sparse
from torch import Tensor, nn

from histoweave.batch import FeedLike, Needs
from histoweave.models._checks import given
from histoweave.models.impute._imputed import PER_CELL
from histoweave.models.impute.controls import ridge_gcv

_CHUNK = 4096  # cells that are read at a time
_LITTLE = 1e-5  # is added to both sides of a geometric mean, so that neither alone makes it 0


def log_shares(shared: Tensor) -> Tensor:
    """log1p of 10,000 times the shares (b, m) of the measured genes."""
    return torch.log1p(PER_CELL * shared)


class LinearRule(nn.Module):
    """Ridge regression from `log_shares` (b, m) to relative expression (b, g), as in the control ``ridge-shares``."""

    def __init__(self, shared: int, genes: int) -> None:
        super().__init__()
        self.coef: Tensor
        self.intercept: Tensor
        self.register_buffer("coef", torch.zeros(shared, genes))
        self.register_buffer("intercept", torch.full((genes,), 1 / genes))

    def fit(self, feed: FeedLike) -> None:
        """Solves on the training cells with a measured entry."""
        logs, shares = [], []
        for batch in feed.reading(Needs.SHARED).batches(_CHUNK):
            has = batch.y_mask.any(-1)
            logs.append(_sparse(log_shares(given(batch.shared, "shared")[has])))
            shares.append(_sparse(batch.y[has]))
        coef, intercept, _ = ridge_gcv(sparse.vstack(logs, format="csr"), sparse.vstack(shares, format="csr"))
        self.coef.copy_(torch.from_numpy(coef))
        self.intercept.copy_(torch.from_numpy(intercept))

    def blended(self, made: Tensor, logs: Tensor) -> Tensor:
        """Geometric mean (b, g) of relative expression `made` and that of the rule; a row sums to 1."""
        linear = (logs @ self.coef + self.intercept).clamp(min=0)
        both = ((made + _LITTLE) * (linear + _LITTLE)).sqrt()
        return both / both.sum(-1, keepdim=True)


def _sparse(values: Tensor) -> sparse.csr_matrix:
    return sparse.csr_matrix(values.double().cpu().numpy())
