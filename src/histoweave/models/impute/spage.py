"""SpaGE (Abdelaal et al. 2020): neighbours along directions in which reference and target vary alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy import sparse

from histoweave.batch import Card
from histoweave.models._checks import at_least
from histoweave.models.impute._imputed import Imputed, Pair, log_normalised, moments
from histoweave.models.impute._nearest import as_weights, nearest, weighted_mean
from histoweave.models.impute._scaled import Scaled

CPM = 1e6
ALIKE = 0.3  # cosine of two principal vectors above which they are kept (authors' code)


@dataclass(frozen=True, slots=True)
class SpaGE:
    """Genes of a target as means over the reference cells that are nearest along principal vectors.

    Both sides are log-normalised and each gene is brought to mean 0 and deviation 1. The principal components of the
    shared genes on each side span two spaces; their principal vectors are paired by cosine, and those above 0.3 are
    kept. Both sides are projected on the vectors of the reference. A gene of a target cell is then the mean over its
    nearest reference cells of cosine distance d below 1, with weights (1 - d / Σd) / (k - 1).

    Parameters
    ----------
    n_pv
        Principal components and vectors; at most the number of shared genes.
    k
        Neighbours. A reference with fewer cells gives all of them.

    Notes
    -----
    The reference is ln(1 + counts per million over all its genes), the target ln(1 + counts scaled to the median total of
    its cells over the shared genes).

    **Differences from the authors' code.** A gene without spread has a z-score of 0 (theirs is NaN). A single neighbour
    gives its own values (theirs divides by 0), and neighbours that all lie at distance 0 weigh alike. A cell without a
    neighbour below distance 1 gets the mean of the reference, and the notes count these cells (theirs stay 0).
    Cells without counts take no part; in the target they too get the mean of the reference. Directions that a side's
    cells do not determine are left out, so that fewer than `n_pv` vectors may be there. Genes that are rare in the
    reference are not dropped: that is left to whoever chooses the genes.

    References
    ----------
    Abdelaal T, Mourragui S, Mahfouz A, Reinders MJT. SpaGE: Spatial Gene Enhancement using scRNA-seq. Nucleic Acids
    Research 48:e107 (2020).
    """

    scale: ClassVar[str] = "ln(1 + counts per million), of the total over all genes of the reference"
    logarithmic: ClassVar[bool] = True
    card: ClassVar[Card] = Card(
        title="SpaGE",
        citation="Abdelaal et al., Nucleic Acids Research 2020",
        task="impute",
        learns="retrieval",
        retrieves=True,
        wrong="Genes without spread and cells with a single neighbour give NaN.",
    )

    n_pv: int = 30
    k: int = 50

    def __post_init__(self) -> None:
        at_least("n_pv", self.n_pv, 1)
        at_least("k", self.k, 1)

    def check(self, m: int, *, grouped: bool) -> None:
        """`ValueError` if `n_pv` is above the number m of shared genes."""
        if self.n_pv > m:
            raise ValueError(f"n_pv={self.n_pv} principal vectors, but {m} genes are shared; give n_pv of at most {m}")

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
            Counts that do not fit, or `n_pv` above the number of shared genes.
        """
        pair = Pair.of(reference, seen)
        self.check(pair.m, grouped=groups is not None)
        values = log_normalised(pair.reference, CPM)
        total = np.asarray(pair.seen.sum(axis=1)).ravel()
        source = Scaled(values[:, : pair.m])
        target = Scaled(log_normalised(pair.seen, float(np.median(total))))
        vectors, alike = principal_vectors(source.components(self.n_pv), target.components(self.n_pv))
        kept = vectors[:, alike > ALIKE]  # (m, p)
        distance, index = nearest(target.project(kept), source.project(kept), self.k, metric="cosine")
        weight = spage_weights(distance)
        expression = values[:, pair.m :]
        made, spread = weighted_mean(as_weights(index, weight, len(source)), expression)
        mean, sd = moments(expression)
        alone = ~(distance < 1).any(axis=1)
        made[alone], spread[alone] = mean, sd
        return pair.finish(
            made,
            spread,
            mean,
            sd,
            target_cells_without_neighbour=alone.sum(),
            principal_vectors_kept=kept.shape[1],
            shared_genes_without_spread=max(source.constant, target.constant),
        )


def principal_vectors(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Principal vectors (m, p) of the source's space, most alike first, and their cosines (p,) with the target's.

    `source` and `target` are orthonormal bases (m, ·) of the two spaces.
    """
    turn, alike, _ = np.linalg.svd(source.T @ target, full_matrices=False)
    return source @ turn, alike


def spage_weights(distance: np.ndarray) -> np.ndarray:
    """Weights (c, k) of neighbours at cosine distances (c, k); rows sum to 1, or are 0 without a distance below 1."""
    near = distance < 1
    count, total = near.sum(axis=1, keepdims=True), np.where(near, distance, 0.0).clip(min=0).sum(axis=1, keepdims=True)
    share = distance.clip(min=0) / np.where(total > 0, total, 1.0)
    weight = np.where(total > 0, (1 - share) / np.maximum(count - 1, 1), 1 / np.maximum(count, 1))
    return np.where(near, np.where(count == 1, 1.0, weight), 0.0)
