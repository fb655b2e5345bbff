"""Counts per million within the genes that are kept, per length of a gene (TPM) or not (CPM), and their logarithm."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse


def per_million(counts: Any, lengths: np.ndarray | None = None) -> sparse.csr_matrix:
    """Counts of the kept genes, scaled to a million per spot.

    Parameters
    ----------
    counts
        Raw counts (n, g), dense or sparse.
    lengths
        Base pairs of each gene (g,), above 0: counts are divided by them first, which makes transcripts per million
        (TPM). Without, it is counts per million (CPM).

    Returns
    -------
    CSR float64 (n, g); rows sum to 1e6, and to 0 where a spot has no counts.

    Raises
    ------
    ValueError
        Counts that are negative, not finite or not (n, g); lengths of another shape or not above 0.
    """
    if np.ndim(counts) != 2 and not sparse.issparse(counts):
        raise ValueError(f"counts have {np.ndim(counts)} dimensions; expected (n, g)")
    table = sparse.csr_matrix(counts, dtype=np.float64, copy=True)
    if table.nnz and not (np.isfinite(table.data).all() and table.data.min() >= 0):
        raise ValueError("counts are negative, NaN or infinite; expected raw counts of 0 or more")
    if lengths is not None:
        lengths = np.asarray(lengths, dtype=np.float64)
        if lengths.shape != (table.shape[1],) or not (np.isfinite(lengths) & (lengths > 0)).all():
            raise ValueError(
                f"lengths have shape {lengths.shape} for {table.shape[1]} genes, and must be above 0; leave out the "
                "genes without a length"
            )
        table.data /= lengths[table.indices]
    total = np.asarray(table.sum(axis=1)).ravel()
    factor = np.divide(1e6, total, out=np.zeros_like(total), where=total > 0)
    table.data *= np.repeat(factor, np.diff(table.indptr))
    return table


def log2p1(table: sparse.csr_matrix) -> sparse.csr_matrix:
    """log2(x + 1) of a sparse table; zeros stay zeros."""
    logs = table.copy()
    logs.data = np.log1p(logs.data) / np.log(2)
    return logs
