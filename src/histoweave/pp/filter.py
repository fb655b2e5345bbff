"""Filters as masks. What to do with a mask is the caller's: rows are dropped in training sections only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse

from histoweave.data.section import Cohort
from histoweave.pp.genes import candidate_counts


def spot_mask(counts: Any, *, min_counts: float = 0, max_counts: float = np.inf, min_genes: int = 0) -> np.ndarray:
    """Which spots pass, (n,) bool.

    Parameters
    ----------
    counts
        Raw counts (n, G), dense or sparse.
    min_counts, max_counts
        Bounds on a spot's total, both included.
    min_genes
        Genes with a count above 0 that a spot needs.

    Raises
    ------
    ValueError
        Counts that are not (n, G), or bounds that no spot can meet.
    """
    if min_counts > max_counts:
        raise ValueError(f"min_counts={min_counts:g} is above max_counts={max_counts:g}; no spot can pass")
    table = sparse.csr_matrix(counts)
    if np.ndim(counts) != 2 and not sparse.issparse(counts):
        raise ValueError(f"counts have {np.ndim(counts)} dimensions; expected (n, G)")
    total = np.asarray(table.sum(axis=1)).ravel()
    seen = np.asarray((table > 0).sum(axis=1)).ravel()
    return (total >= min_counts) & (total <= max_counts) & (seen >= min_genes)


def gene_mask(
    train: Cohort,
    candidates: Sequence[str],
    *,
    min_counts: float = 0,
    min_fraction: float = 0.0,
    min_fraction_each: float = 0.0,
) -> np.ndarray:
    """Which genes pass in the training sections, (len(candidates),) bool.

    Parameters
    ----------
    train
        Training sections; each must have all candidates.
    candidates
        Gene names.
    min_counts
        Total count over all spots, included.
    min_fraction
        Fraction of all spots with a count above 0, included.
    min_fraction_each
        The same within every single section.

    Raises
    ------
    ValueError
        A fraction outside 0 to 1, or a section that lacks candidates.
    """
    for name, value in (("min_fraction", min_fraction), ("min_fraction_each", min_fraction_each)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value!r}; expected a fraction between 0 and 1")
    total = np.zeros(len(candidates))
    seen = np.zeros(len(candidates))
    least = np.ones(len(candidates))
    for section in train:
        table = candidate_counts(section, candidates)
        detected = np.asarray((table > 0).sum(axis=0)).ravel()
        total += np.asarray(table.sum(axis=0, dtype=np.float64)).ravel()
        seen += detected
        least = np.minimum(least, detected / section.n)
    return (total >= min_counts) & (seen >= min_fraction * train.n) & (least >= min_fraction_each)
