"""What is hidden from a model: the one idea behind prediction, completion and imputation.

`Holdout.given` returns cohorts in which the hidden values are absent; `Holdout.garble` returns the cohort with garbage
in every hidden value. A method is leak-free if both lead to the same predictions, bit for bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
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
_GIVEN = (*_PLACE, K.LIBRARY, K.SIZE_FACTOR)  # where entries are hidden: what counts are divided by is no secret


@dataclass(frozen=True, slots=True)
class Everything:
    """All expression of the test patients is hidden (prediction from the image)."""


@dataclass(frozen=True, slots=True)
class Entries:
    """Some measured entries (spot, gene) of the test sections are hidden (completion). Counts of 0 never are.

    Attributes
    ----------
    rate
        Fraction to hide, in (0, 1).
    of
        ``measured``: of the measured entries of every gene. ``all``: of all entries of every gene, measured or not, as
        the SpaRED code has it: with f the gene's measured fraction, an entry is hidden with probability
        min(1, rate / f). A gene with f ≤ rate keeps no visible value, so it is not scored.
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
class Thin:
    """A share of the transcripts of the test sections is hidden: every count is thinned binomially.

    What is shown and what is hidden of a spot are independent counts of the same expression, and zeros stay zeros that
    were seen. So this asks for the expected count of every entry, not for the value of a missing one.
    """

    rate: float
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ValueError(f"rate={self.rate} of hidden transcripts; expected a number between 0 and 1")


@dataclass(frozen=True, slots=True)
class Genes:
    """Whole genes of the test sections are hidden (imputation); library sizes are over the others."""

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError("no genes to hide were named; give at least one")


Hide = Everything | Entries | Thin | Genes


def parse_hide(text: str, genes: Sequence[str] = ()) -> Hide:
    """What is hidden, as it is written on a command line.

    Parameters
    ----------
    text
        ``everything``; ``entries:0.3``, or ``entries:0.3:all``; ``thin:0.5``; ``genes:first:200``: all genes but the
        first 200; ``genes:random:200:0``: all but 200 that are drawn with seed 0; or ``genes:list:A,B``: these.
    genes
        Of the cohort, in the order of its panel.
    """
    name, *rest = text.split(":")
    try:
        if name == "everything" and not rest:
            return Everything()
        if name == "entries" and len(rest) in (1, 2):
            return Entries(float(rest[0]), of="measured" if len(rest) == 1 else rest[1])  # type: ignore[arg-type]
        if name == "thin" and len(rest) == 1:
            return Thin(float(rest[0]))
        if name == "genes" and len(rest) >= 2:
            return Genes(_hidden_genes(rest, tuple(genes)))
    except ValueError as error:
        raise ValueError(f"hide {text!r}: {error}") from None
    raise ValueError(
        f"hide {text!r}; expected 'everything', 'entries:0.3', 'entries:0.3:all', 'thin:0.5', 'genes:first:200', "
        "'genes:random:200:0' or 'genes:list:A,B'"
    )


def _hidden_genes(parts: Sequence[str], genes: tuple[str, ...]) -> tuple[str, ...]:
    """The genes that are not kept, in the order of the panel."""
    how, *numbers = parts
    if how == "list":
        asked = {gene.strip() for gene in ":".join(numbers).split(",") if gene.strip()}
        if unknown := sorted(asked - set(genes)):
            raise ValueError(f"{len(unknown)} genes are not in the panel of {len(genes)}, first {unknown[0]!r}")
        return tuple(gene for gene in genes if gene in asked)
    kept = int(numbers[0])
    if len(genes) < 2:
        raise ValueError(
            f"the sections have {len(genes)} genes in common; expected 2 or more, to keep some and hide others. Names "
            "are matched as they are written: are all symbols, or all Ensembl ids?"
        )
    if not 0 < kept < len(genes):
        raise ValueError(f"{kept} genes are to be kept of {len(genes)}; expected 1 to {len(genes) - 1}")
    if how == "first" and len(numbers) == 1:
        return genes[kept:]
    if how == "random" and len(numbers) == 2:
        drawn = set(np.random.default_rng(int(numbers[1])).permutation(len(genes))[:kept].tolist())
        return tuple(gene for i, gene in enumerate(genes) if i not in drawn)
    raise ValueError(f"{':'.join(parts)!r} is not understood")


def _counts(section: Section) -> sparse.csr_matrix:
    """Counts of a section in order and without stored zeros (n, G), so that the same is drawn of equal counts."""
    counts = sparse.csr_matrix(section.spots.X, copy=True)
    counts.sum_duplicates()  # sorts too
    counts.eliminate_zeros()
    return counts


def _generator(seed: int, section: Section) -> np.random.Generator:
    """A generator for the seed and the name of the section, so that sections can be held out in any order."""
    digest = hashlib.blake2b(f"{seed}/{section.id}".encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


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
        """Which entries of a test section are hidden, wholly or in part: boolean CSR (n, G)."""
        shape = section.spots.X.shape
        if isinstance(self.hide, Everything):
            return sparse.csr_matrix(np.ones(shape, dtype=bool))
        if isinstance(self.hide, Genes):
            return sparse.csr_matrix(np.broadcast_to(section.genes.isin(self.hide.names), shape))
        if isinstance(self.hide, Thin):
            return sparse.csr_matrix(self._thinned(section) > 0)
        counts = _counts(section)
        rate = np.full(shape[1], self.hide.rate)
        if self.hide.of == "all":
            fraction = np.asarray((counts > 0).mean(axis=0)).ravel()
            rate = np.minimum(1.0, np.divide(rate, fraction, out=np.ones_like(rate), where=fraction > 0))
        rng = _generator(self.hide.seed, section)
        drawn = rng.random(counts.nnz, dtype=np.float32) < rate[counts.indices]
        hidden = sparse.csr_matrix((drawn, counts.indices.copy(), counts.indptr.copy()), shape=shape)
        hidden.eliminate_zeros()
        return hidden

    def _thinned(self, section: Section) -> sparse.csr_matrix:
        """The transcripts of a section that are hidden by `Thin`: counts (n, G)."""
        assert isinstance(self.hide, Thin)
        counts = _counts(section)
        taken = _generator(self.hide.seed, section).binomial(counts.data.astype(np.int64), self.hide.rate)
        hidden = sparse.csr_matrix(
            (taken.astype(np.float32), counts.indices.copy(), counts.indptr.copy()), shape=counts.shape
        )
        hidden.eliminate_zeros()
        return hidden

    def held(self, section: Section) -> sparse.csr_matrix:
        """The counts of a test section that are hidden: CSR (n, G)."""
        if isinstance(self.hide, Thin):
            return self._thinned(section)
        return sparse.csr_matrix(section.spots.X.multiply(self.hidden(section)))

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
        counts = sparse.csr_matrix(spots.X - self.held(section))
        counts.eliminate_zeros()
        if isinstance(self.hide, Thin):
            place = spots.obs[[column for column in _PLACE if column in spots.obs]].copy()
            place[K.LIBRARY] = np.asarray(counts.sum(axis=1)).ravel()
            return section.with_spots(AnnData(X=counts, obs=place, var=spots.var.copy(), obsm={K.SPATIAL: section.xy}))
        hidden = self.hidden(section)
        known = spots.obs[[column for column in _GIVEN if column in spots.obs]].copy()
        shown = AnnData(X=counts, obs=known, var=spots.var.copy(), obsm={K.SPATIAL: section.xy})
        # Kept as "what was hidden": dense "what was shown" would not fit for a whole transcriptome.
        shown.layers[K.HIDDEN] = hidden
        return section.with_spots(shown)

    def garble(self, cohort: Cohort, *, seed: int = 0) -> Cohort:
        """The cohort with garbage in every hidden value and in every column of ``obs`` that could be derived from it."""
        test = set(self.split.test)
        return Cohort(self._garbled(section, seed) if section.id in test else section for section in cohort)

    def _garbled(self, section: Section, seed: int) -> Section:
        if isinstance(self.hide, Thin):
            raise ValueError("thinned counts cannot be garbled: what is hidden is part of a count that is shown")
        rng = np.random.default_rng(seed)
        spots = section.spots.copy()
        hidden = self.hidden(section).tocoo()
        noise = sparse.csr_matrix(
            (rng.integers(1, 10_000, hidden.nnz).astype(np.float32), (hidden.row, hidden.col)), shape=hidden.shape
        )
        spots.X = sparse.csr_matrix(spots.X - spots.X.multiply(hidden) + noise)
        kept: tuple[str, ...] = _GIVEN
        if not isinstance(self.hide, Entries):  # for entries the library is computed before hiding and counts as given
            spots.obs[K.LIBRARY], kept = np.asarray(spots.X.sum(axis=1)).ravel(), (*_PLACE, K.LIBRARY)
        # All else that stands beside the spots may have been computed from what is hidden.
        derived = [column for column in spots.obs if column not in kept]
        spots.obs = spots.obs.assign(**{c: pd.Series(rng.random(section.n), index=spots.obs_names) for c in derived})
        return section.with_spots(spots)
