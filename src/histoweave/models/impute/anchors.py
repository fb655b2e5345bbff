"""Transfer by anchors (Stuart et al. 2019): pairs of cells that find each other across reference and target.

Letters: n reference cells, c target cells, m shared genes, p dimensions, a anchors, k neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy import sparse

from histoweave.batch import Card
from histoweave.models._checks import at_least
from histoweave.models.impute._anchors import anchor_weights, mutual, overlap, rescaled
from histoweave.models.impute._imputed import LOG_SCALE, Imputed, Pair, log_normalised, moments
from histoweave.models.impute._nearest import nearest, weighted_mean
from histoweave.models.impute._scaled import Scaled, leading

FILTER_GENES = 200  # genes of the largest loadings that anchors are filtered by (max.features of Seurat)
_CHUNK = 8192  # anchors at a time


@dataclass(frozen=True, slots=True)
class Anchors:
    """Genes of a target as means over the reference cells of anchors, weighted by how near and how good they are.

    1. Each gene of each side is brought to mean 0 and deviation 1 after log-normalisation, then each cell likewise.
       Singular vectors of X₁X₂ᵀ (n, c) place the cells of both sides in `components` dimensions; rows get length 1.
    2. Cells that are among each other's `k_anchor` nearest of the other side are anchors.
    3. Its score is how many cells the neighbourhoods of the two have in common, `k_score` nearest on each side, brought
       from its 1 % and 90 % quantiles to 0 and 1.
    4. Each target cell looks up the `k_weight` nearest target cells that are in anchors, in the principal components of
       the target. An anchor at distance d, the farthest being at D, weighs 1 - exp(-(1 - d / D) · score · (sd / 2)²).
       The `k_weight` nearest anchors count: one of these cells can be in several.

    Parameters
    ----------
    components
        Dimensions of both spaces; fewer where the shared genes determine fewer.
    k_anchor, k_score, k_weight
        Neighbours, as above. A side with fewer cells gives all of them for the first two.
    k_filter
        Keep an anchor only if its target cell is among so many nearest of the reference cell by the expression of the at
        most 200 genes of largest loadings, at length 1. None keeps all.
    sd
        Width of the weights.

    Notes
    -----
    Totals are those over all genes of the reference, and over the shared genes of the target. X₁X₂ᵀ is never made: its
    singular vectors follow from the scatter (m, m) of either side.

    **Differences from the authors' code.** The singular vectors are exact (theirs are found by iteration). z-scores are
    not cut off at 10. A cell is its own first neighbour in `k_score` and `k_anchor` counts neighbours across only. Where
    all anchors have one score, it is 1 (theirs is NaN), and where all weights of a cell are 0 its anchors weigh alike,
    which the notes count. A gene without spread is 0 and takes part in nothing (theirs is dropped). Target cells without
    counts get the mean of the reference.

    References
    ----------
    Stuart T, Butler A, Hoffman P, et al. Comprehensive Integration of Single-Cell Data. Cell 177:1888-1902 (2019).
    """

    scale: ClassVar[str] = LOG_SCALE
    logarithmic: ClassVar[bool] = True
    card: ClassVar[Card] = Card(
        title="anchors (CCA)",
        citation="Stuart et al., Cell 2019",
        task="impute",
        learns="retrieval",
        retrieves=True,
    )

    components: int = 30
    k_anchor: int = 5
    k_score: int = 30
    k_weight: int = 50
    k_filter: int | None = None
    sd: float = 1.0

    def __post_init__(self) -> None:
        for name in ("components", "k_anchor", "k_score"):
            at_least(name, getattr(self, name), 1)
        at_least("k_weight", self.k_weight, 2)  # the farthest of them weighs 0
        if self.k_filter is not None:
            at_least("k_filter", self.k_filter, 1)
        if not (np.isfinite(self.sd) and self.sd > 0):
            raise ValueError(f"sd={self.sd!r}; expected a number above 0")

    def __call__(
        self,
        reference: sparse.csr_matrix,
        seen: sparse.csr_matrix,
        *,
        seed: int = 0,
        groups: np.ndarray | None = None,
    ) -> Imputed:
        """Imputes (c, h) from counts (n, m + h) and (c, m); nothing is drawn and `groups` is not used.

        Raises
        ------
        ValueError
            Counts that do not fit, shared genes without spread, or fewer target cells in anchors than `k_weight`.
        """
        pair = Pair.of(reference, seen)
        values = log_normalised(pair.reference)
        shared, target = values[:, : pair.m], log_normalised(pair.seen)
        left, right, loadings = canonical(Scaled(shared, cells=True), Scaled(target, cells=True), self.components)
        there = nearest(left, right, max(self.k_anchor, self.k_score), metric="euclidean")[
            1
        ]  # (n, k) rows of the target
        back = nearest(right, left, max(self.k_anchor, self.k_score), metric="euclidean")[1]  # (c, k) of the reference
        found = mutual(there[:, : self.k_anchor], back[:, : self.k_anchor])
        anchors = found if self.k_filter is None else found[_alike(shared, target, loadings, found, self.k_filter)]
        members, which = np.unique(anchors[:, 1], return_inverse=True)
        if len(members) < self.k_weight:
            raise ValueError(
                f"k_weight={self.k_weight}, but only {len(members)} of {target.shape[0]} target cells are in anchors "
                f"({len(anchors)} anchors); give k_weight of at most {len(members)}, a larger k_anchor, or no k_filter"
            )
        score = rescaled(self._common(left, right, there, back, anchors))
        scaled = Scaled(target)
        places = scaled.project(scaled.components(self.components))  # (c, p)
        distance, near = nearest(places, places[members], self.k_weight, metric="euclidean")
        weights, even = anchor_weights(distance, near, anchors[:, 0], which, score, len(left), self.sd)
        expression = values[:, pair.m :]
        made, spread = weighted_mean(weights, expression)
        return pair.finish(
            made,
            spread,
            *moments(expression),
            anchors=len(anchors),
            target_cells_in_anchors=len(members),
            anchors_filtered_out=len(found) - len(anchors),
            target_cells_with_even_weights=even,
        )

    def _common(
        self, left: np.ndarray, right: np.ndarray, there: np.ndarray, back: np.ndarray, anchors: np.ndarray
    ) -> np.ndarray:
        """How many cells (a,) the neighbourhoods of both cells of each anchor have in common."""
        one, first = np.unique(anchors[:, 0], return_inverse=True)
        two, second = np.unique(anchors[:, 1], return_inverse=True)
        in_reference = nearest(left[one], left, self.k_score, metric="euclidean")[1][first]  # (a, k)
        in_target = nearest(right[two], right, self.k_score, metric="euclidean")[1][second]
        of_one, of_two = there[anchors[:, 0], : self.k_score], back[anchors[:, 1], : self.k_score]
        return overlap(in_reference, of_two) + overlap(in_target, of_one)


def canonical(one: Scaled, two: Scaled, dims: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Singular vectors of X₁X₂ᵀ with rows of length 1 (n, p) and (c, p), and the genes' loadings on them (m, p).

    With X₁ᵀX₁ = E₁Λ₁E₁ᵀ the columns of X₁E₁Λ₁^-½ are orthonormal, and the singular vectors are these times those of
    Λ₁^½E₁ᵀE₂Λ₂^½, whose sides are at most m long.
    """
    m = one.values.shape[1]
    (size1, e1), (size2, e2) = leading(one.gram(), m), leading(two.gram(), m)
    turn1, strength, turn2 = np.linalg.svd(np.sqrt(size1)[:, None] * (e1.T @ e2) * np.sqrt(size2), full_matrices=False)
    p = min(dims, int((strength > 1e-9 * strength[:1].sum()).sum()))
    if p < 1:
        raise ValueError(
            f"the {m} shared genes do not vary together in reference and target, so their cells cannot be compared; "
            "anchors need at least 2 shared genes with spread on both sides"
        )
    basis1, basis2 = e1 / np.sqrt(size1) @ turn1[:, :p], e2 / np.sqrt(size2) @ turn2[:p].T  # (m, p)
    # X₁ᵀX₁ · basis₁ without another look at the cells.
    loadings = (e1 * np.sqrt(size1)) @ turn1[:, :p] + (e2 * np.sqrt(size2)) @ turn2[:p].T
    return _rows(one.project(basis1)), _rows(two.project(basis2)), loadings


def _alike(
    shared: sparse.csr_matrix, target: sparse.csr_matrix, loadings: np.ndarray, anchors: np.ndarray, k: int
) -> np.ndarray:
    """Which anchors (a,) have their target cell among the k nearest of the reference cell by the strongest genes."""
    rank = np.argsort(np.argsort(-np.abs(loadings), axis=0, kind="stable"), axis=0).min(axis=1)  # (m,) best in any
    reach = max([r for r in np.unique(rank) if (rank <= r).sum() <= FILTER_GENES], default=0)
    genes = np.flatnonzero(rank <= reach)
    cells, row = np.unique(anchors[:, 0], return_inverse=True)
    ours, theirs = _rows(shared[cells][:, genes].toarray()), _rows(target[:, genes].toarray())
    near = nearest(ours, theirs, k, metric="euclidean")[1]  # (cells, k)
    kept = [
        (near[row[i : i + _CHUNK]] == anchors[i : i + _CHUNK, 1:]).any(axis=1) for i in range(0, len(anchors), _CHUNK)
    ]
    return np.concatenate([np.zeros(0, dtype=bool), *kept])


def _rows(x: np.ndarray) -> np.ndarray:
    """Rows of length 1; rows of zeros stay."""
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(length > 0, length, 1.0)
