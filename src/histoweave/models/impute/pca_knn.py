"""A control with a correction between assays: principal components of both sides, Harmony's shift, nearest neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy import sparse

from histoweave.batch import Card
from histoweave.models._checks import at_least
from histoweave.models.impute._harmony import ROUNDS, corrected
from histoweave.models.impute._imputed import LOG_SCALE, Imputed, Pair, log_normalised, moments
from histoweave.models.impute._nearest import as_weights, nearest, weighted_mean
from histoweave.models.impute._scaled import Scaled


@dataclass(frozen=True, slots=True)
class PcaKnn:
    """The mean over the `k` nearest reference cells in corrected principal components of both sides together.

    Shared genes are ln(1 + counts per 10,000 of the shared genes alone) on either side, each gene at mean 0 and deviation 1
    over the cells of both. Their principal components are corrected for the side that a cell is from, and distances are
    Euclidean.

    Parameters
    ----------
    components
        Principal components; fewer where the cells determine fewer.
    k
        Neighbours. A reference with fewer cells gives all of them.
    rounds
        Of correction, at most; 0 corrects nothing.

    Notes
    -----
    **Differences from the authors' code.** The correction is written from the paper alone, with its constants. Clusters
    start from k-means on the unit sphere, and 1 is added to observed and expected numbers of cells under the logarithm of
    the diversity term, so that clusters that lack a side stay finite.

    References
    ----------
    Korsunsky I, Millard N, Fan J, et al. Fast, sensitive and accurate integration of single-cell data with Harmony. Nature
    Methods 16:1289-1296 (2019).
    """

    scale: ClassVar[str] = LOG_SCALE
    logarithmic: ClassVar[bool] = True
    card: ClassVar[Card] = Card(
        title="k nearest in corrected components",
        citation="control; correction after Korsunsky et al., Nature Methods 2019",
        task="impute",
        learns="retrieval",
        control=True,
        retrieves=True,
    )

    components: int = 30
    k: int = 50
    rounds: int = ROUNDS

    def __post_init__(self) -> None:
        at_least("components", self.components, 1)
        at_least("k", self.k, 1)
        at_least("rounds", self.rounds, 0)

    def __call__(
        self,
        reference: sparse.csr_matrix,
        seen: sparse.csr_matrix,
        *,
        seed: int = 0,
        groups: np.ndarray | None = None,
    ) -> Imputed:
        """Imputes (c, h) from counts (n, m + h) and (c, m); `seed` is that of the clusters, `groups` is not used."""
        pair = Pair.of(reference, seen)
        both = sparse.vstack([log_normalised(pair.shared()), log_normalised(pair.seen)], format="csr")
        scaled = Scaled(both)
        z = scaled.project(scaled.components(self.components))  # (n + c, p)
        n = pair.reference.shape[0]
        done = 0
        if self.rounds:
            z, done = corrected(z, (np.arange(len(z)) >= n).astype(np.int64), seed=seed, rounds=self.rounds)
        index = nearest(z[n:], z[:n], self.k, metric="euclidean")[1]
        expression = pair.expression()
        made, spread = weighted_mean(as_weights(index, np.full(index.shape, 1 / index.shape[1]), n), expression)
        return pair.finish(
            made, spread, *moments(expression), neighbours=index.shape[1], components=z.shape[1], rounds=done
        )
