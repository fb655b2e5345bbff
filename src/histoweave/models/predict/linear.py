"""The linear models of Anand et al. on principal components of a frozen embedding, one penalty per gene."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from histoweave.batch import Batch, Card, Dims, FeedLike, Needs
from histoweave.models._lasso import lasso_path
from histoweave.models._linear import Moments, Path, penalties, ridge_path, squared_error
from histoweave.models._losses import masked_mse
from histoweave.models._pca import WALK, Inputs

_CITATION = "Anand et al. Integrating histology imaging and spatial transcriptomics through low-dimensional embeddings."
RIDGE_GRID = (0.0, *(10.0 ** (-3 + e / 2) for e in range(11)))  # the paper's range 0 to 100
LASSO_GRID = tuple(10.0**e for e in range(-7, 2))  # the paper's range 1e-7 to 10


class _PerGene(nn.Module):
    """Closed form for every gene by itself; the penalty of each is that of the least error over the inner folds."""

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
        self._fitted: tuple[Path, Tensor, Tensor | None] | None = None  # path, its penalties (a,), solved (a, g)
        self.register_buffer("coef", torch.zeros(self.inputs.width, dims.genes))
        self.register_buffer("intercept", torch.zeros(dims.genes))
        self.register_buffer("alpha", torch.full((dims.genes,), torch.nan))
        self.register_buffer("converged", torch.ones(dims.genes, dtype=torch.bool))

    def path(self, sums: Moments, alphas: Tensor) -> tuple[Path, Tensor | None]:
        """Coefficients for every penalty and gene, and whether each is solved (a, g), if that can fail."""
        return ridge_path(sums, alphas), None

    @torch.no_grad()
    def index(self, feed: FeedLike) -> None:
        """Fits the principal components, chooses each gene's penalty over the inner folds and solves on all spots."""
        self.inputs.fit(feed)
        fold = feed.inner_fold()
        sums = Moments.stream(self._walk(feed, fold), int(fold.max()) + 1)
        if sums.n.sum() < 2:
            raise ValueError("fewer than 2 training spots have counts in the panel; nothing can be fitted")
        alphas = torch.tensor(self.alphas, dtype=torch.float64, device=sums.n.device)
        found, solved = self.path(sums.total(), alphas)
        self._fitted = found, alphas, solved
        self._take(self._error(sums, alphas).argmin(dim=0))

    @torch.no_grad()
    def choose(self, feed: FeedLike) -> None:
        """Takes each gene's penalty by its squared error on the spots of a feed, of the paths that `index` fitted."""
        if self._fitted is None:
            raise ValueError("penalties are chosen among those fitted, and nothing was; call index(feed) first")
        one_fold = torch.zeros(feed.n, dtype=torch.long, device=self.coef.device)
        self._take(squared_error(self._fitted[0], Moments.stream(self._walk(feed, one_fold))).argmin(dim=0))

    def _take(self, best: Tensor) -> None:
        """Keeps the coefficients at the penalty of each gene, by its place in the path (g,)."""
        assert self._fitted is not None
        found, alphas, solved = self._fitted
        coef, intercept = found.pick(best)
        self.coef, self.intercept, self.alpha = coef.float(), intercept.float(), alphas[best].float()
        self.converged = torch.ones_like(best, dtype=torch.bool) if solved is None else solved.gather(0, best[None])[0]

    def _walk(self, feed: FeedLike, fold: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Inputs (b, d), targets (b, g) and fold (b,) of the spots that count."""
        at = 0
        for batch in feed.batches(WALK):
            counts = batch.y_mask.all(dim=1)
            here = fold[at : at + len(batch)]
            at += len(batch)
            yield self.inputs(batch)[counts], batch.y[counts], here[counts]

    def _error(self, sums: Moments, alphas: Tensor) -> Tensor:
        """Squared error of every penalty and gene (a, g) over the folds, each predicted from the others."""
        error = sums.y.new_zeros(len(alphas), sums.y.shape[1])
        if len(alphas) == 1:
            return error
        for i in range(len(sums.n)):
            if 0 < sums.n[i] < sums.n.sum():
                error += squared_error(self.path(sums.without(i), alphas)[0], sums.only(i))
        return error

    def forward(self, batch: Batch) -> Tensor:
        """Predictions (b, g)."""
        return self.inputs(batch) @ self.coef + self.intercept

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Masked MSE, for reports."""
        value = masked_mse(self(batch), batch.y, batch.y_mask)
        return value, {"mse": value.detach()}


class OLS(_PerGene):
    """Least squares on principal components, one regression per gene.

    Parameters
    ----------
    dims
        Number of genes, and width of the frozen embeddings.
    input
        Embedding of the ``spot``, or ``pooled``: the mean over its 15 nearest, itself included.
    adjacency
        Whether the 32 vectors that tell where the spot lies in its section are joined to the image: ``none``; ``sign``,
        every vector turned one way; or ``paper``, as the solver leaves them.
    components
        Principal components of the embedding, fitted on the training spots.

    Notes
    -----
    **Differences from the paper.** The paper joins the adjacency (``adjacency=paper``); the default leaves it out,
    because its basis differs from section to section. Embeddings are those of the view's encoder, standardized as the
    view says before the principal components.
    """

    card: ClassVar[Card] = Card(title="Least squares on principal components", citation=_CITATION, learns="closed-form")

    def __init__(
        self,
        dims: Dims,
        *,
        input: Literal["spot", "pooled"] = "spot",
        adjacency: Literal["none", "sign", "paper"] = "none",
        components: int = 32,
    ) -> None:
        super().__init__(dims, input=input, adjacency=adjacency, components=components, alphas=(0.0,))

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """Few components, and the adjacency."""
        return {"components": 4, "adjacency": "sign"}


class RidgePerGene(_PerGene):
    """Ridge on principal components with a penalty of its own for every gene.

    Parameters
    ----------
    dims, input, adjacency, components
        As of `OLS`. The paper's ridge reads ``input=pooled``.
    alphas
        Penalties to choose from, as scikit-learn's ``Ridge(alpha)`` has them (not divided by the number of spots); 0 is
        least squares. Empty: 0 and 11 from 1e-3 to 100, the paper's range.

    Notes
    -----
    **Differences from the paper.** As of `OLS`; and the paper chooses on its validation patients. Here the inner folds
    of the training spots choose, by squared error, as there may be no others; `choose` lets validation spots do so, as in
    the suite ``anand``. The principal components, which see no expression, are those of all training spots in every fold.
    """

    card: ClassVar[Card] = Card(
        title="Ridge, a penalty per gene",
        citation=_CITATION,
        learns="closed-form",
        published={"Anand train PCC": 0.32554, "Anand valid PCC": 0.25974, "Anand test PCC": 0.06064}
        | {"Anand train MSE": 0.1766, "Anand valid MSE": 0.2243, "Anand test MSE": 0.3600},  # input=pooled
    )

    def __init__(
        self,
        dims: Dims,
        *,
        input: Literal["spot", "pooled"] = "spot",
        adjacency: Literal["none", "sign", "paper"] = "none",
        components: int = 32,
        alphas: tuple[float, ...] = (),
    ) -> None:
        super().__init__(
            dims, input=input, adjacency=adjacency, components=components, alphas=_grid(alphas, RIDGE_GRID)
        )

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """Few components, three penalties, and the adjacency."""
        return {"components": 4, "adjacency": "sign", "alphas": (0.0, 1.0, 100.0)}


class Lasso(_PerGene):
    """Lasso on principal components with a penalty of its own for every gene.

    Parameters
    ----------
    dims, input, adjacency, components
        As of `OLS`. The paper's lasso reads ``input=spot``.
    alphas
        Penalties to choose from, as scikit-learn's ``Lasso(alpha)`` has them (the squared error is divided by 2n); 0 is
        least squares. Empty: 9 from 1e-7 to 10, the paper's range.

    Notes
    -----
    **Differences from the paper.** As of `RidgePerGene`. ``converged`` (g,) tells the genes whose duality gap closed.
    """

    card: ClassVar[Card] = Card(
        title="Lasso, a penalty per gene",
        citation=_CITATION,
        learns="closed-form",
        published={"Anand train PCC": 0.1607, "Anand valid PCC": 0.1759, "Anand test PCC": 0.1243}
        | {"Anand train MSE": 0.2344, "Anand valid MSE": 0.2751, "Anand test MSE": 0.2881},
    )

    def __init__(
        self,
        dims: Dims,
        *,
        input: Literal["spot", "pooled"] = "spot",
        adjacency: Literal["none", "sign", "paper"] = "none",
        components: int = 32,
        alphas: tuple[float, ...] = (),
    ) -> None:
        super().__init__(
            dims, input=input, adjacency=adjacency, components=components, alphas=_grid(alphas, LASSO_GRID)
        )

    def path(self, sums: Moments, alphas: Tensor) -> tuple[Path, Tensor | None]:
        """Coefficients for every penalty and gene, and whether the gap of each closed (a, g)."""
        found = lasso_path(sums, alphas)
        return Path(found.coef, found.intercept), found.converged

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """Few components, three penalties, and the adjacency."""
        return {"components": 4, "adjacency": "sign", "alphas": (1e-4, 1e-2, 1.0)}


def _grid(alphas: tuple[float, ...] | float, usual: tuple[float, ...]) -> tuple[float, ...]:
    """The penalties to choose from: a single one may be given as a number, and none means the usual ones."""
    return tuple(alphas) or usual if isinstance(alphas, tuple | list) else (alphas,)
