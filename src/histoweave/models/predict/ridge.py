"""PCA + ridge regression on frozen embeddings: the floor that every deep model is shown against.

In the coordinates of the principal components the Gram matrix is diagonal, so one eigendecomposition per fold gives the
coefficients for every penalty and every gene: w(α) = V diag(1 / (λ + α)) Vᵀ Xᵀy. Normal equations are summed batch by
batch in float64, one sum per inner fold, so that the training spots need not fit in memory and leaving a fold out is a
subtraction. Where entries are missing, every gene has a Gram matrix of its own (`histoweave.models._by_gene`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from histoweave.batch import Batch, Card, Dims, FeedLike, Needs
from histoweave.models._by_gene import (
    Entries,
    by_gene,
    correlation_by_gene,
    partly,
    ridge_by_gene,
    squared_error_by_gene,
)
from histoweave.models._checks import at_least
from histoweave.models._linear import Moments, Path
from histoweave.models._losses import masked_mse

WALK = 4096  # spots per step when the feed is walked


def solve(sums: Moments, alphas: Tensor, components: int, *, scale: bool = False) -> tuple[Tensor, Tensor]:
    """Coefficients for every penalty (a, d, g) and intercepts (a, g), float64.

    The penalty is scikit-learn's ``Ridge(alpha)`` on ``PCA(components)`` scores times the mean eigenvalue kept, so that
    it does not depend on the scale or the number of spots; the intercept is not penalised.
    """
    n, x, y = sums.n[0], sums.x[0] / sums.n[0], sums.y[0] / sums.n[0]
    sd, values, vectors = axes(sums, components, scale=scale)
    cross = sums.xy[0] - n * torch.outer(x, y)  # (d, g)
    projected = vectors.T @ (cross / sd[:, None])  # (p, g)
    shrink = 1 / (values + alphas[:, None] * values.mean().clamp(min=1e-12))  # (a, p)
    coef = torch.einsum("dp,ap,pg->adg", vectors, shrink, projected) / sd[:, None]
    return coef, y - x @ coef


def axes(sums: Moments, components: int, *, scale: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Deviations (d,), 1 unless inputs are to be scaled; and eigenvalues (p,) and axes (d, p) of what they leave."""
    n, x = sums.n[0], sums.x[0] / sums.n[0]
    gram = sums.xx[0] - n * torch.outer(x, x)  # (d, d)
    sd = (gram.diagonal() / n).clamp(min=0).sqrt()
    sd = torch.where(sd > 1e-9, sd, 1.0) if scale else torch.ones_like(sd)
    values, vectors = torch.linalg.eigh(gram / torch.outer(sd, sd))
    keep = min(components, len(values), max(int(n) - 1, 1))
    return sd, values[-keep:].clamp(min=0), vectors[:, -keep:]


class Ridge(nn.Module):
    """PCA (at most `components`) and ridge on the spot's embedding, all genes at once.

    The penalty with the smallest squared error over the inner folds is taken for all genes, then the model is fitted on
    all training spots. ``cv_pcc`` keeps, per gene, the within-fold Pearson correlation of the out-of-fold predictions:
    the gene ranks behind ``pcc_50``.

    Where entries are missing, a gene is regressed on the spots that have it, with an intercept and a mean eigenvalue of
    its own, and all folds share the components, which are those of all training spots. Folds with fewer than 2 spots of
    a gene are left out of its ``cv_pcc``. A gene of one spot is predicted as it is there, and one of none as 0.
    """

    card: ClassVar[Card] = Card(title="PCA + ridge", citation="control", learns="closed-form", control=True)
    scale: ClassVar[bool] = False  # whether inputs are divided by their training standard deviation

    def __init__(self, dims: Dims, *, components: int = 256, alphas: tuple[float, ...] = ()) -> None:
        super().__init__()
        self.needs = Needs.EMB
        self.components = at_least("components", components, 1)
        self.alphas = tuple(alphas) or tuple(10.0 ** (e / 2) for e in range(-6, 9))
        self.register_buffer("coef", torch.zeros(dims.emb, dims.genes))
        self.register_buffer("intercept", torch.zeros(dims.genes))
        self.register_buffer("cv_pcc", torch.full((dims.genes,), torch.nan))
        self.register_buffer("alpha", torch.tensor(torch.nan))

    def inputs(self, batch: Batch) -> Tensor:
        """What is regressed on (b, d)."""
        assert batch.emb is not None
        return batch.emb

    def target(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What is learnt, and where it counts (b, g)."""
        return batch.y, batch.y_mask

    def index(self, feed: FeedLike) -> None:
        """Chooses the penalty over the inner folds and solves on all training spots."""
        fold, k = feed.inner_fold(), int(feed.inner_fold().max()) + 1
        alphas = torch.tensor(self.alphas, dtype=torch.float64)
        if partly(feed):
            self._index_by_gene(feed, fold, k, alphas)
            return
        sums = self._sums(feed, fold, k)
        models = [solve(sums.without(i), alphas, self.components, scale=self.scale) for i in range(k)]
        error, cv_pcc = self._out_of_fold(feed, fold, models)
        best = int(error.argmin())
        coef, intercept = solve(sums.total(), alphas[best : best + 1], self.components, scale=self.scale)
        self.coef, self.intercept = coef[0].float(), intercept[0].float()
        self.alpha, self.cv_pcc = alphas[best].float(), cv_pcc[best].float()

    def _index_by_gene(self, feed: FeedLike, fold: Tensor, k: int, alphas: Tensor) -> None:
        """The same where entries are missing."""
        sums = Moments.stream((x, x[:, :0]) for x, *_ in self._walk(feed, fold))
        sd, _, vectors = axes(sums, self.components, scale=self.scale)
        centre, basis = sums.x[0] / sums.n[0], vectors / sd[:, None]  # (d,), (d, p)

        def scores() -> Iterator[Entries]:
            for x, y, measured, here in self._walk(feed, fold):
                yield (x - centre) @ basis, y, measured, here

        error, found, cv_pcc = torch.zeros_like(alphas), [], []
        for _, own in by_gene(scores, k, basis.shape[1], len(self.intercept)):
            found.append(ridge_by_gene(own.total(), alphas, relative=True))
            pcc, told = torch.zeros_like(found[-1].intercept), torch.zeros_like(own.n[0])  # (a, g), (g,)
            for i in range(k):
                path, held = ridge_by_gene(own.without(i), alphas, relative=True), own.only(i)
                error += squared_error_by_gene(path, held).sum(dim=1)
                pcc += correlation_by_gene(path, held) * (held.n[0] >= 2)
                told += held.n[0] >= 2
            cv_pcc.append(pcc / told.clamp(min=1))
        best = int(error.argmin())
        path = Path.join(found)
        coef = basis @ path.coef[best]
        self.coef, self.intercept = coef.float(), (path.intercept[best] - centre @ coef).float()
        self.alpha, self.cv_pcc = alphas[best].float(), torch.cat(cv_pcc, 1)[best].float()

    def _walk(self, feed: FeedLike, fold: Tensor) -> Iterator[Entries]:
        """Inputs (b, d), targets and where they count (b, g), and fold (b,), of the spots that count somewhere."""
        at = 0
        for batch in feed.batches(WALK):
            counts = batch.y_mask.any(dim=1)
            here = fold[at : at + len(batch)]
            at += len(batch)
            y, measured = self.target(batch)
            yield self.inputs(batch)[counts].double(), y[counts].double(), measured[counts], here[counts]

    def _sums(self, feed: FeedLike, fold: Tensor, k: int) -> Moments:
        sums = Moments.stream(((x, y, here) for x, y, _, here in self._walk(feed, fold)), k)
        if sums.n.sum() < 2:
            raise ValueError("fewer than 2 training spots have counts in the panel; nothing can be fitted")
        return sums

    def _out_of_fold(self, feed: FeedLike, fold: Tensor, models: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Squared error per penalty (a,), and Pearson within folds averaged over them, per penalty and gene (a, g)."""
        shape = (len(models), *models[0][1].shape)  # (k, a, g)
        n = torch.zeros(len(models), dtype=torch.float64)
        sums = {key: torch.zeros(shape, dtype=torch.float64) for key in ("p", "y", "pp", "yy", "py")}
        for x, y, _, here in self._walk(feed, fold):
            for i, (coef, intercept) in enumerate(models):
                truth = y[here == i]
                p = torch.einsum("bd,adg->abg", x[here == i], coef) + intercept[:, None]
                n[i] += len(truth)
                for key, value in (
                    ("p", p),
                    ("y", truth[None]),
                    ("pp", p * p),
                    ("yy", truth[None] ** 2),
                    ("py", p * truth),
                ):
                    sums[key][i] += value.sum(dim=1)
        error = (sums["pp"] - 2 * sums["py"] + sums["yy"]).sum(dim=(0, 2))
        m = n[:, None, None].clamp(min=1)
        cov = sums["py"] - sums["p"] * sums["y"] / m
        var = (sums["pp"] - sums["p"] ** 2 / m).clamp(min=0) * (sums["yy"] - sums["y"] ** 2 / m).clamp(min=0)
        return error, (cov / var.sqrt().clamp(min=1e-12)).mean(dim=0)

    def forward(self, batch: Batch) -> Tensor:
        """Predictions (b, g)."""
        return self.inputs(batch) @ self.coef + self.intercept

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Masked MSE, for reports."""
        value = masked_mse(self(batch), batch.y, batch.y_mask)
        return value, {"mse": value}

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """Few components, three penalties."""
        return {"components": 8, "alphas": (1e-3, 1e-1, 10.0)}


class Shuffled(Ridge):
    """Ridge on expression shuffled over the training spots: a pipeline that scores above 0 with it leaks."""

    card: ClassVar[Card] = Card(
        title="Ridge on shuffled expression", citation="control", learns="closed-form", control=True
    )

    def target(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Those of other spots of the batch (b, g), in an order fixed by the number of spots that count somewhere."""
        rows = torch.nonzero(batch.y_mask.any(dim=1)).squeeze(1)
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(len(rows)))
        moved = rows[order.to(rows.device)]
        return batch.y.index_copy(0, rows, batch.y[moved]), batch.y_mask.index_copy(0, rows, batch.y_mask[moved])
