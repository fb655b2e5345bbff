"""What the linear models of Anand et al. share: a closed form for every gene on principal components of embeddings.

Letters: b spots of a batch, n all spots, k folds, d inputs, g genes, a penalties.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from histoweave.batch import Batch, Dims, FeedLike, Needs
from histoweave.models._by_gene import Entries, GeneMoments, by_gene, partly, ridge_by_gene, squared_error_by_gene
from histoweave.models._linear import Moments, Path, penalties, ridge_path, squared_error
from histoweave.models._losses import masked_mse
from histoweave.models._pca import WALK, Inputs


class PerGene(nn.Module):
    """Closed form for every gene by itself; the penalty of each is that of the least error over the inner folds.

    A gene is fitted on the spots in which it is measured. Where all spots have all genes they share one Gram matrix,
    else each gene has its own. A gene of one spot is predicted as it is there, and one of none as 0.
    """

    needs: Needs = Needs.EMB
    coef: Tensor
    intercept: Tensor
    alpha: Tensor
    converged: Tensor

    def __init__(
        self,
        dims: Dims,
        *,
        input: Literal["spot", "pooled"],
        adjacency: Literal["none", "sign", "paper"],
        components: int,
        alphas: tuple[float, ...],
    ) -> None:
        super().__init__()
        self.inputs = Inputs(dims, input=input, adjacency=adjacency, components=components)
        self.needs = self.inputs.needs
        # from the largest down: of penalties that do equally well the strongest is taken
        self.alphas = tuple(sorted(penalties(torch.tensor(alphas, dtype=torch.float64, device="cpu")).tolist()))[::-1]
        self._fitted: tuple[Path, Tensor, Tensor] | None = None  # path, its penalties (a,), solved (a, g)
        self.register_buffer("coef", torch.zeros(self.inputs.width, dims.genes))
        self.register_buffer("intercept", torch.zeros(dims.genes))
        self.register_buffer("alpha", torch.full((dims.genes,), torch.nan))
        self.register_buffer("converged", torch.ones(dims.genes, dtype=torch.bool))

    def path(self, sums: Moments | GeneMoments, alphas: Tensor) -> tuple[Path, Tensor | None]:
        """Coefficients for every penalty and gene, and whether each is solved (a, g), if that can fail."""
        found = ridge_by_gene(sums, alphas) if isinstance(sums, GeneMoments) else ridge_path(sums, alphas)
        return found, None

    @torch.no_grad()
    def index(self, feed: FeedLike) -> None:
        """Fits the principal components, chooses each gene's penalty over the inner folds and solves on all spots."""
        self.inputs.fit(feed)
        alphas = torch.tensor(self.alphas, dtype=torch.float64, device=self.coef.device)
        paths, flags, best = [], [], []
        for _, sums in self._sums(feed, feed.inner_fold()):
            if isinstance(sums, Moments) and sums.n.sum() < 2:
                raise ValueError("fewer than 2 training spots have counts in the panel; nothing can be fitted")
            found, solved = self.path(sums.total(), alphas)
            paths.append(found)
            flags.append(torch.ones_like(found.intercept, dtype=torch.bool) if solved is None else solved)
            best.append(self._error(sums, alphas).argmin(dim=0))
        self._fitted = Path.join(paths), alphas, torch.cat(flags, 1)
        self._take(torch.cat(best))

    @torch.no_grad()
    def choose(self, feed: FeedLike) -> None:
        """Takes each gene's penalty by its squared error on the spots of a feed, of the paths that `index` fitted."""
        if self._fitted is None:
            raise ValueError("penalties are chosen among those fitted, and nothing was; call index(feed) first")
        one_fold = torch.zeros(feed.n, dtype=torch.long, device=self.coef.device)
        (coef, intercept), _, _ = self._fitted
        errors = [_wrong(Path(coef[..., g], intercept[:, g]), sums) for g, sums in self._sums(feed, one_fold)]
        self._take(torch.cat(errors, 1).argmin(dim=0))

    def _take(self, best: Tensor) -> None:
        """Keeps the coefficients at the penalty of each gene, by its place in the path (g,)."""
        assert self._fitted is not None
        found, alphas, solved = self._fitted
        coef, intercept = found.pick(best)
        self.coef, self.intercept, self.alpha = coef.float(), intercept.float(), alphas[best].float()
        self.converged = solved.gather(0, best[None])[0]

    def _sums(self, feed: FeedLike, fold: Tensor) -> Iterator[tuple[slice, Moments | GeneMoments]]:
        """The sums by fold (n,) of all genes: together where all spots have all of them, else as many as memory allows."""
        k = int(fold.max()) + 1
        if partly(feed):
            yield from by_gene(lambda: self._walk(feed, fold), k, *self.coef.shape)
            return
        yield slice(None), Moments.stream(((x, y, here) for x, y, _, here in self._walk(feed, fold)), k)

    def _walk(self, feed: FeedLike, fold: Tensor) -> Iterator[Entries]:
        """Inputs (b, d), targets and where they count (b, g), and fold (b,), of the spots that count somewhere."""
        at = 0
        for batch in feed.batches(WALK):
            counts = batch.y_mask.any(dim=1)
            here = fold[at : at + len(batch)]
            at += len(batch)
            yield self.inputs(batch)[counts], batch.y[counts], batch.y_mask[counts], here[counts]

    def _error(self, sums: Moments | GeneMoments, alphas: Tensor) -> Tensor:
        """Squared error of every penalty and gene (a, g) over the folds, each predicted from the others.

        A gene that only one fold has costs the same there whatever the penalty.
        """
        error = sums.y.new_zeros(len(alphas), sums.y.shape[1])
        if len(alphas) == 1:
            return error
        for i in range(len(sums.n)):
            if 0 < sums.n[i].sum() < sums.n.sum():
                error += _wrong(self.path(sums.without(i), alphas)[0], sums.only(i))
        return error

    def forward(self, batch: Batch) -> Tensor:
        """Predictions (b, g)."""
        return self.inputs(batch) @ self.coef + self.intercept

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Masked MSE, for reports."""
        value = masked_mse(self(batch), batch.y, batch.y_mask)
        return value, {"mse": value.detach()}


def _wrong(path: Path, held: Moments | GeneMoments) -> Tensor:
    """Squared error (a, g) of a path on the spots of one fold."""
    return squared_error_by_gene(path, held) if isinstance(held, GeneMoments) else squared_error(path, held)
