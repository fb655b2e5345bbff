"""What the solvers are timed on: counts and features of real spots, or made-up ones."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import sparse
from sklearn.decomposition import PCA

from benchmarks.solvers_stream import Spots
from histoweave.data.io import read_cohort
from histoweave.pp.genes import select_panel

OTHERS = 1000  # genes whose components are the features of real spots


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How large the jobs are."""

    spots: int = 5000
    features: int = 64
    genes: int = 250
    sampled: int = 10  # genes of the loops, whose time is scaled to all
    streamed: tuple[int, ...] = (10_000, 100_000, 1_000_000)


@dataclass(frozen=True, slots=True)
class Data:
    """Features (n, d), counts (n, g) and their logarithms, float64 so that all libraries get what they work in."""

    x: np.ndarray
    counts: np.ndarray
    logs: np.ndarray
    sample: np.ndarray  # columns (genes) of the loops, spread evenly over their mean counts
    origin: str  # where they are from

    @classmethod
    def of(cls, sizes: Sizes) -> Data:
        """Made-up scores and counts."""
        x, counts = Spots(sizes.features, sizes.genes).draw(sizes.spots)
        origin = "scores on principal components of made-up embeddings that were fitted on other spots"
        return cls._made(x, counts, sizes, origin)

    @classmethod
    def real(cls, sizes: Sizes) -> Data:
        """Counts of her2st's genes with the highest mean, and principal components of the logarithm of its other genes."""
        root = Path(os.environ.get("HISTOWEAVE_DATA", "../shared/data"))
        cohort = read_cohort(str(root / "her2st"))
        genes = select_panel(cohort, f"top-mean:{sizes.genes + OTHERS}", candidates=cohort.genes("common")).genes
        tables = sparse.vstack([section.counts(genes) for section in cohort], format="csr")
        rows = np.random.default_rng(0).permutation(tables.shape[0])[: sizes.spots]
        counts = tables[rows].toarray().astype(np.float64)
        rest = np.log1p(1e4 * counts[:, sizes.genes :] / np.maximum(counts.sum(axis=1, keepdims=True), 1.0))
        scores = PCA(sizes.features, svd_solver="covariance_eigh").fit_transform(rest)
        origin = f"principal components of ln(1 + counts per 10,000) of the next {OTHERS:,} genes of her2st; counts are its own"
        return cls._made(scores / scores[:, 0].std(), counts[:, : sizes.genes], sizes, origin)

    @classmethod
    def _made(cls, x: np.ndarray, counts: np.ndarray, sizes: Sizes, origin: str) -> Data:
        order = counts.mean(axis=0).argsort()
        sample = order[np.linspace(0, sizes.genes - 1, sizes.sampled).astype(int)]
        return cls(x.astype(np.float64), counts.astype(np.float64), np.log1p(counts.astype(np.float64)), sample, origin)

    def describe(self) -> str:
        """What they are, and how correlated the features are."""
        values = np.linalg.eigvalsh(np.corrcoef(self.x.T))
        variances = self.x.var(axis=0)
        return (
            f"{self.origin}; features' variances span {variances.max() / variances.min():,.0f} ×, the condition number of "
            f"their correlation matrix is {values[-1] / values[0]:.1f}"
        )
