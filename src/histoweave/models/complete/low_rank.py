"""Low-rank completion: principal components of measured entries, and a spot's scores from its visible genes."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from histoweave.batch import Batch, Card, Dims, FeedLike, Needs
from histoweave.models._checks import given
from histoweave.models._losses import masked_mse
from histoweave.models.complete._masked import CHOOSING, Normal, Pairs, above_zero, walk, whole_numbers


class LowRank(nn.Module):
    """A truncated decomposition of the training expression; no neighbours and no image.

    The covariance of the genes is taken from measured entries only, each pair of genes over the spots that have both.
    Its leading directions, each as long as the deviation along it, are the axes. The scores z of a spot minimise
    ‖x - A z‖² + α v ‖z‖² over its visible genes, x being differences from the training mean and v the mean variance
    of a gene that the axes leave, and the prediction is the mean plus A z. At α = 1 these are the scores of
    probabilistic principal components (Tipping and Bishop 1999).

    Parameters
    ----------
    dims
        Number of genes.
    ranks
        Numbers of axes to choose from; one above the number of genes counts as that.
    alphas
        Penalties to choose from, above 0.

    Notes
    -----
    Rank and penalty are those of the smallest squared error over the inner folds, on spots of which 30 % of the entries
    are hidden; then the axes are taken from all training spots.
    """

    card: ClassVar[Card] = Card(
        title="Low rank (truncated SVD)", citation="control", task="complete", learns="closed-form", control=True
    )
    needs: Needs = Needs.EXPR
    mean: Tensor
    axes: Tensor
    ridge: Tensor

    def __init__(
        self,
        dims: Dims,
        *,
        ranks: tuple[int, ...] = (1, 2, 4, 8, 16, 32),
        alphas: tuple[float, ...] = (0.3, 1.0, 3.0, 10.0),
    ) -> None:
        super().__init__()
        self.ranks = sorted({min(rank, dims.genes) for rank in whole_numbers("ranks", ranks)})
        self.alphas = above_zero("alphas", alphas)
        self.register_buffer("mean", torch.zeros(dims.genes))
        self.register_buffer("axes", torch.zeros(dims.genes, 1))
        self.register_buffer("ridge", torch.tensor(1.0))

    @torch.no_grad()
    def index(self, feed: FeedLike) -> None:
        """Chooses rank and penalty over the inner folds, and takes mean and axes from all training spots."""
        folds = int(feed.inner_fold().max()) + 1
        walked = walk(feed, Needs.NONE)
        sums = Pairs.sum(Pairs.of(batch.y, batch.y_mask, fold, folds) for batch, fold, _ in walked)
        rank, alpha = self._choose(feed, [self._axes(sums.without(i)) for i in range(folds)])
        mean, axes, left = self._axes(sums.total())
        self.mean, self.axes = mean.float(), axes[:, :rank].float().contiguous()
        self.ridge = (alpha * left[rank]).float()

    def _axes(self, pairs: Pairs) -> tuple[Tensor, Tensor, Tensor]:
        """Mean (g,), all axes (g, p) that a rank may ask for, and mean variance left by each number of them (p + 1,)."""
        normal = Normal.of(pairs)
        values, vectors = torch.linalg.eigh(normal.correlation * normal.sd * normal.sd[:, None])
        values, vectors = values.flip(0).clamp(min=0)[: self.ranks[-1]], vectors.flip(1)[:, : self.ranks[-1]]
        vectors = vectors * vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True)).sign()
        left = ((normal.sd**2).sum() - torch.cat([values.new_zeros(1), values.cumsum(0)])) / len(normal.sd)
        return normal.mean, vectors * values.sqrt(), left.clamp(min=1e-6 * float((normal.sd**2).mean()) + 1e-12)

    def _choose(self, feed: FeedLike, fits: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[int, float]:
        """Rank and penalty of the smallest squared error on hidden entries of the folds that a fit has not seen."""
        grid = [(rank, alpha) for rank in self.ranks for alpha in self.alphas]
        error, at = torch.zeros(len(grid), dtype=torch.float64), 0
        for batch, fold, hide in walk(feed, Needs.NONE):
            rows = torch.arange(at, at + len(batch), device=fold.device)
            at, tried = at + len(batch), rows % -(-feed.n // CHOOSING) == 0
            for i, (mean, axes, left) in enumerate(fits):
                here = tried & (fold == i)
                y, mask, hidden = batch.y[here].double(), batch.y_mask[here], (batch.y_mask & hide[:, 0])[here]
                for j, (rank, alpha) in enumerate(grid):
                    made = mean + _fitted(y - mean, mask & ~hidden, axes[:, :rank], alpha * left[rank])
                    error[j] += torch.where(hidden, made - y, 0.0).square().sum().cpu()
        return grid[int(error.argmin())]

    def forward(self, batch: Batch) -> Tensor:
        """Mean plus axes times scores (b, g)."""
        expr, seen = given(batch.expr, "expr").double(), given(batch.seen, "seen")
        made = _fitted(expr - self.mean.double(), seen, self.axes.double(), self.ridge.double())
        return self.mean + made.float()

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Masked MSE, for reports."""
        value = masked_mse(self(batch), batch.y, batch.y_mask)
        return value, {"mse": value}

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """Two ranks and two penalties."""
        return {"ranks": (1, 3), "alphas": (1.0, 10.0)}


def _fitted(x: Tensor, seen: Tensor, axes: Tensor, ridge: Tensor) -> Tensor:
    """Axes (g, r) times the scores of x (b, g) by ridge on what is seen (b, g): one system (r, r) for each spot."""
    r = axes.shape[1]
    s = seen.to(axes.dtype)
    products = (axes[:, :, None] * axes[:, None]).flatten(1)  # (g, r · r)
    system = (s @ products).view(-1, r, r) + ridge * torch.eye(r, dtype=axes.dtype, device=axes.device)
    right = torch.where(seen, x, 0.0) @ axes  # (b, r)
    return torch.cholesky_solve(right[..., None], torch.linalg.cholesky(system))[..., 0] @ axes.T
