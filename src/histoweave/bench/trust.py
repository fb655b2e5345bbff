"""How well a gene was measured, and therefore how well it can be predicted.

A gene's counts are split at random into two halves of equal expected depth. What the halves agree on is signal; their
correlation, stepped up to full depth, is the gene's reliability, and its root the correlation that a perfect predictor
of the underlying expression would reach with the noisy measurement (Spearman 1910, Brown 1910).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray

from histoweave.bench.metrics import pearson

Floats = NDArray[np.float64]
Transform = Callable[[NDArray[np.generic]], NDArray[np.generic]]

MIN_RELIABILITY = 0.3  # genes below it are shown, but not in headlines


def _as_csr(counts: ArrayLike | sp.sparray | sp.spmatrix) -> sp.csr_array:
    table = sp.csr_array(counts, copy=True)
    table.sum_duplicates()
    data = table.data
    if table.ndim != 2 or table.shape[0] == 0:
        raise ValueError(f"counts must be (spots, genes) with at least one spot, got shape {table.shape}")
    if not np.isfinite(data).all() or (data < 0).any() or (data != np.floor(data)).any():
        raise ValueError(
            "counts must be raw counts (non-negative integers); reliability cannot be had from transformed values"
        )
    return table


def _apply(transform: Transform, table: sp.csr_array) -> Floats:
    out = np.asarray(transform(table.toarray()), dtype=np.float64)
    if out.shape != table.shape:
        raise ValueError(f"the transform made {out.shape} of counts {table.shape}: it must keep (spots, genes)")
    return out


def _correlation(a: Floats, b: Floats) -> Floats:
    """Pearson between two halves, (g,); 0 where either is constant; undefined entries are not counted."""
    mask = np.isfinite(a) & np.isfinite(b)
    return np.nan_to_num(pearson(a, b, None if mask.all() else mask), nan=0.0)


def split_half(
    counts: ArrayLike | sp.sparray | sp.spmatrix,
    transform: Transform,
    *,
    repeats: int = 10,
    seed: int | Sequence[int] = 0,
) -> Floats:
    """Reliability of each gene in one section, (g,), not clipped to be non-negative.

    Parameters
    ----------
    counts
        Raw counts (n, g), sparse or dense.
    transform
        The target: dense counts (n, g) → values (n, g). It is given halves, so whatever it divides by (a library size)
        must be that of the half. Entries it returns as NaN or infinite are left out.
    repeats
        Random halvings (every count goes to either half with probability 1/2); their correlations r are averaged.
    seed
        Of the halvings.

    Returns
    -------
    reliability
        Spearman-Brown 2r/(1 + r), at least -1 (chance values of small sections would otherwise diverge as r nears -1).
        NaN where the transformed gene is constant over the section: there is nothing to measure.
    """
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}, expected at least 1")
    table = _as_csr(counts)
    whole = _apply(transform, table)
    seen = np.isfinite(whole)
    dropped = np.isnan(pearson(whole, whole, None if seen.all() else seen))
    rng = np.random.default_rng(seed)
    full = table.data.astype(np.int64)
    total = np.zeros(table.shape[1])
    for _ in range(repeats):
        first = rng.binomial(full, 0.5)
        a, b = (
            sp.csr_array((half.astype(table.dtype), table.indices, table.indptr), shape=table.shape)
            for half in (first, full - first)
        )
        total += _correlation(_apply(transform, a), _apply(transform, b))
    r = np.maximum(total / repeats, -1 / 3)  # 2r/(1 + r) = -1
    reliability = 2 * r / (1 + r)
    reliability[dropped] = np.nan
    return reliability


def reliability(
    sections: Sequence[ArrayLike | sp.sparray | sp.spmatrix],
    transform: Transform | Sequence[Transform],
    genes: Sequence[Hashable],
    *,
    repeats: int = 10,
    seed: int = 0,
) -> pd.DataFrame:
    """Reliability of every gene over sections, with the ceiling it puts on a correlation.

    `sections` holds raw counts (n, g) of the same g genes; `transform` is one target for all, or one per section
    (smoothing needs each section's neighbours). See `split_half`.

    Returns a frame indexed by gene: `reliability` (mean over the sections where the gene varies, clipped to [0, 1]; NaN
    if it varies in none), `ceiling` (its root: the PCC of a perfect predictor), `n_sections`, and `reliable` (at least
    0.3).
    """
    index = pd.Index(genes, name="gene")
    each = [transform] * len(sections) if callable(transform) else list(transform)
    if not len(sections) or len(each) != len(sections):
        raise ValueError(f"need at least one section and one transform for each, got {len(sections)} and {len(each)}")
    values = np.empty((len(sections), len(index)))  # (s, g)
    for i, (counts, target) in enumerate(zip(sections, each, strict=True)):
        found = split_half(counts, target, repeats=repeats, seed=[seed, i])
        if len(found) != len(index):
            raise ValueError(f"section number {i} has {len(found)} genes, but {len(index)} are named")
        values[i] = found
    varies = ~np.isnan(values)
    n = varies.sum(axis=0)
    mean = np.divide(np.where(varies, values, 0.0).sum(axis=0), n, out=np.full(len(index), np.nan), where=n > 0)
    mean = np.clip(mean, 0.0, 1.0)
    return pd.DataFrame(
        {"reliability": mean, "ceiling": np.sqrt(mean), "n_sections": n, "reliable": mean >= MIN_RELIABILITY},
        index=index,
    )


def relative_accuracy(pcc: ArrayLike, reliability: ArrayLike) -> Floats:
    """PCC as a fraction of its ceiling, ``pcc / sqrt(reliability)``; NaN where the reliability is 0 or unknown.

    It may pass 1 by chance, most of all for unreliable genes. Raises ValueError for a reliability outside [0, 1].
    """
    r, rel = np.broadcast_arrays(np.asarray(pcc, dtype=np.float64), np.asarray(reliability, dtype=np.float64))
    if ((rel < 0) | (rel > 1)).any():
        raise ValueError(f"reliability must lie in [0, 1], got {rel.min():g} to {rel.max():g}")
    return np.divide(r, np.sqrt(rel), out=np.full(r.shape, np.nan), where=rel > 0)
