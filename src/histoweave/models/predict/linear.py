"""The linear models of Anand et al. on principal components of a frozen embedding, one penalty per gene."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import Tensor

from histoweave.batch import Card, Dims
from histoweave.models._by_gene import GeneMoments
from histoweave.models._lasso import lasso_path
from histoweave.models._linear import Moments, Path
from histoweave.models._per_gene import PerGene

_CITATION = "Anand et al. Integrating histology imaging and spatial transcriptomics through low-dimensional embeddings."
RIDGE_GRID = (0.0, *(10.0 ** (-3 + e / 2) for e in range(11)))  # the paper's range 0 to 100
LASSO_GRID = tuple(10.0**e for e in range(-7, 2))  # the paper's range 1e-7 to 10


class OLS(PerGene):
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
    view says before the principal components. Where entries are missing, each gene is fitted on the spots that have it.
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


class RidgePerGene(PerGene):
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


class Lasso(PerGene):
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

    def path(self, sums: Moments | GeneMoments, alphas: Tensor) -> tuple[Path, Tensor | None]:
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
