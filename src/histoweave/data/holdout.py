"""What is hidden from a model: the one idea behind prediction, completion and imputation.

`Holdout.given` returns cohorts in which the hidden values are absent; `Holdout.garble` returns the cohort with garbage
in every hidden value. A method is leak-free if both lead to the same predictions, bit for bit.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from histoweave import _keys as K
from histoweave.data.section import Cohort, Section
from histoweave.data.split import Split

_PLACE = (K.ROW, K.COL)  # the columns of obs that say where a spot is, and nothing about its expression


@dataclass(frozen=True, slots=True)
class Everything:
    """All expression of the test patients is hidden (prediction from the image)."""


@dataclass(frozen=True, slots=True)
class Entries:
    """Some entries (spot, gene) of the test sections are hidden (completion).

    Attributes
    ----------
    rate
        Fraction of entries to hide, in (0, 1).
    of
        ``measured``: of the non-zero entries; ``all``: of all entries.
    """

    rate: float
    of: Literal["measured", "all"] = "measured"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ValueError(f"rate={self.rate} of hidden entries; expected a number between 0 and 1")
        if self.of not in ("measured", "all"):
            raise ValueError(f"of={self.of!r}; expected 'measured' or 'all'")


@dataclass(frozen=True, slots=True)
class Genes:
    """Whole genes of the test sections are hidden (imputation)."""

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError("no genes to hide were named; give at least one")


Hide = Everything | Entries | Genes


@dataclass(frozen=True, slots=True)
class Holdout:
    """A split and what is hidden on its test side."""

    split: Split
    hide: Hide = Everything()

    def given(self, cohort: Cohort) -> tuple[Cohort, Cohort]:
        """The training cohort, and the test cohort without the hidden values and all that is derived from them."""
        self.split.check(cohort)
        train = cohort.subset(self.split.train + self.split.val)
        return train, self.shown(cohort.subset(self.split.test))

    def shown(self, cohort: Cohort) -> Cohort:
        """What a model may see of sections under test."""
        return Cohort(self._visible(section) for section in cohort)

    def hidden(self, section: Section) -> sparse.csr_matrix:
        """Which entries of a test section are hidden: boolean CSR (n, G)."""
        shape = section.spots.X.shape
        if isinstance(self.hide, Everything):
            return sparse.csr_matrix(np.ones(shape, dtype=bool))
        if isinstance(self.hide, Genes):
            return sparse.csr_matrix(np.broadcast_to(section.genes.isin(self.hide.names), shape))
        digest = hashlib.blake2b(f"{self.hide.seed}/{section.id}".encode(), digest_size=8).digest()
        rng = np.random.default_rng(int.from_bytes(digest, "little"))
        if self.hide.of == "all":
            return sparse.csr_matrix(rng.random(shape, dtype=np.float32) < self.hide.rate)
        counts = section.spots.X.tocsr()
        drawn = sparse.csr_matrix(
            (rng.random(counts.nnz, dtype=np.float32) < self.hide.rate, counts.indices.copy(), counts.indptr.copy()),
            shape=shape,
        )
        drawn.eliminate_zeros()
        return drawn

    def _visible(self, section: Section) -> Section:
        spots = section.spots
        if isinstance(self.hide, Everything):
            place = spots.obs[[column for column in _PLACE if column in spots.obs]].copy()
            place[K.LIBRARY] = np.nan
            bare = AnnData(
                X=sparse.csr_matrix((section.n, 0), dtype=np.float32), obs=place, obsm={K.SPATIAL: section.xy}
            )
            return section.with_spots(bare)
        if isinstance(self.hide, Genes):
            keep = ~section.genes.isin(self.hide.names)
            place = spots.obs[[column for column in _PLACE if column in spots.obs]].copy()
            shown = AnnData(X=spots.X[:, keep], obs=place, var=spots.var[keep], obsm={K.SPATIAL: section.xy})
            shown.obs[K.LIBRARY] = np.asarray(shown.X.sum(axis=1)).ravel()
            return section.with_spots(shown)
        hidden = self.hidden(section)
        counts = sparse.csr_matrix(spots.X - spots.X.multiply(hidden))
        counts.eliminate_zeros()
        shown = AnnData(X=counts, obs=spots.obs.copy(), var=spots.var.copy(), obsm={K.SPATIAL: section.xy})
        # Kept as "what was hidden": dense "what was shown" would not fit for a whole transcriptome.
        shown.layers[K.HIDDEN] = hidden
        return section.with_spots(shown)

    def garble(self, cohort: Cohort, *, seed: int = 0) -> Cohort:
        """The cohort with garbage in every hidden value and in every column of ``obs`` that could be derived from it."""
        test = set(self.split.test)
        return Cohort(self._garbled(section, seed) if section.id in test else section for section in cohort)

    def _garbled(self, section: Section, seed: int) -> Section:
        rng = np.random.default_rng(seed)
        spots = section.spots.copy()
        hidden = self.hidden(section).tocoo()
        noise = sparse.csr_matrix(
            (rng.integers(1, 10_000, hidden.nnz).astype(np.float32), (hidden.row, hidden.col)), shape=hidden.shape
        )
        spots.X = sparse.csr_matrix(spots.X - spots.X.multiply(hidden) + noise)
        if not isinstance(self.hide, Entries):  # for entries the library is computed before hiding and counts as given
            spots.obs[K.LIBRARY] = np.asarray(spots.X.sum(axis=1)).ravel()
            # All else that stands beside the spots may have been computed from what is hidden.
            derived = [column for column in spots.obs if column not in (*_PLACE, K.LIBRARY)]
            spots.obs = spots.obs.assign(
                **{c: pd.Series(rng.random(section.n), index=spots.obs_names) for c in derived}
            )
        return section.with_spots(spots)
