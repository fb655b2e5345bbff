"""The arithmetic behind `metrics`: one block of genes at a time, hidden entries neutralised once, float64 throughout.

Blocks are turned to ``(g, n)`` so that the spots of a gene are contiguous in memory and a block stays in cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

_BLOCK = 2**16  # entries of one block: 512 KiB of float64 per array, so that those alive at a time fit a cache
_TOO_LARGE = 1e150  # the square of anything larger leaves float64


@dataclass(frozen=True, slots=True)
class Pair:
    """One block of genes. Hidden entries hold their gene's mean, so that centred sums need no mask."""

    truth: Floats  # (g, n)
    pred: Floats  # (g, n)
    hidden: NDArray[np.bool_] | None  # (g, n), True = not measured; None = all measured
    count: Floats  # (g,) measured entries; NaN where there are none, which makes every mean NaN
    truth_mean: Floats  # (g,)
    pred_mean: Floats  # (g,)
    truth_flat: NDArray[np.bool_]  # (g,) constant over the measured entries
    pred_flat: NDArray[np.bool_]  # (g,)


def rounding(dtype: np.dtype[np.generic]) -> float:
    """The relative spread that is arithmetic, not signal: 8 units in the last place, at most those of float32."""
    single = dtype.kind == "f" and dtype.itemsize < 8
    return 8 * float(np.finfo(np.float32 if single else np.float64).eps)


def _side(
    values: NDArray[np.generic], hidden: NDArray[np.bool_] | None, count: Floats, what: str
) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """One side of a pair from its (n, g) block: filled values (g, n), means (g,), constant (g,)."""
    x = np.array(values.T, dtype=np.float64, order="C")  # (g, n)
    if hidden is not None:
        np.copyto(x, 0.0, where=hidden)
    low, high = x.min(axis=1), x.max(axis=1)
    largest = np.maximum(np.abs(low), np.abs(high))
    bad = ~(largest <= _TOO_LARGE)  # also true for NaN
    if bad.any():
        raise ValueError(
            f"{what} has a measured entry that is NaN, infinite or beyond {_TOO_LARGE:g} "
            f"({int(bad.sum())} gene(s) of a block): mask entries without a measurement, and predict all the others"
        )
    mean = x.sum(axis=1) / count
    if hidden is not None:
        np.copyto(x, np.nan_to_num(mean)[:, None], where=hidden)
        low, high = x.min(axis=1), x.max(axis=1)
        largest = np.maximum(np.abs(low), np.abs(high))
    flat = high - low <= rounding(values.dtype) * largest
    return x, mean, flat


def check(
    truth: ArrayLike, pred: ArrayLike, mask: ArrayLike | None
) -> tuple[NDArray[np.generic], NDArray[np.generic], NDArray[np.bool_] | None]:
    t, p = np.asarray(truth), np.asarray(pred)
    if t.ndim != 2 or t.shape != p.shape or t.shape[0] == 0:
        raise ValueError(
            f"truth {t.shape} and prediction {p.shape} must both be (spots, genes) of one shape with at least one spot"
        )
    if t.dtype.kind not in "fiub" or p.dtype.kind not in "fiub":
        raise ValueError(f"truth ({t.dtype}) and prediction ({p.dtype}) must be dense arrays of real numbers")
    if mask is None:
        return t, p, None
    m = np.asarray(mask)
    if m.dtype != np.bool_ or m.shape != t.shape:
        raise ValueError(
            f"the mask must be boolean of shape {t.shape} (True = measured), got {m.dtype} of shape {m.shape}"
        )
    return t, p, m


def evaluate(
    truth: ArrayLike, pred: ArrayLike, mask: ArrayLike | None, *measures: Callable[[Pair], NDArray[np.generic]]
) -> list[NDArray[np.generic]]:
    """Each measure for all genes, block of genes by block of genes."""
    t, p, m = check(truth, pred, mask)
    n, g = t.shape
    step = max(1, _BLOCK // n)
    parts: list[list[NDArray[np.generic]]] = []
    for at in range(0, max(g, 1), step):
        cut = np.s_[:, at : at + step]
        width = min(step, g - at)
        hidden = None if m is None else np.array(~m[cut].T, order="C")
        count = np.full(width, float(n))
        if hidden is not None:
            count -= hidden.sum(axis=1)
        count[count == 0] = np.nan
        x, x_mean, x_flat = _side(t[cut], hidden, count, "truth")
        y, y_mean, y_flat = _side(p[cut], hidden, count, "prediction")
        pair = Pair(x, y, hidden, count, x_mean, y_mean, x_flat, y_flat)
        parts.append([measure(pair) for measure in measures])
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def _cosine(a: Floats, b: Floats, pair: Pair) -> Floats:
    """Correlation of centred rows; 0 where the prediction is constant, NaN where the truth is."""
    cross = np.einsum("gn,gn->g", a, b)
    size = np.sqrt(np.einsum("gn,gn->g", a, a)) * np.sqrt(np.einsum("gn,gn->g", b, b))
    usable = (size > 0) & ~pair.pred_flat
    r = np.clip(np.divide(cross, size, out=np.zeros_like(cross), where=usable), -1.0, 1.0)
    r[pair.truth_flat] = np.nan
    return r


def pearson(pair: Pair) -> Floats:
    return _cosine(pair.truth - pair.truth_mean[:, None], pair.pred - pair.pred_mean[:, None], pair)


def _ranks(x: Floats) -> Floats:
    """Ranks 1 … n within each row of (g, n), ties on their average; all rows in one pass over their sorted values."""
    g, n = x.shape
    order = np.argsort(x, axis=1)
    order += n * np.arange(g)[:, None]
    flat = order.ravel()
    ascending = x.ravel()[flat]
    starts = np.empty(g * n, dtype=bool)
    np.not_equal(ascending[1:], ascending[:-1], out=starts[1:])
    starts[::n] = True
    start = np.flatnonzero(starts)
    length = np.diff(start, append=g * n)
    ranks = np.empty(g * n)
    ranks[flat] = np.repeat(start + (length + 1) / 2, length)
    return ranks.reshape(g, n) - n * np.arange(g)[:, None]


def spearman(pair: Pair) -> Floats:
    middle = (pair.count[:, None] + 1) / 2  # the mean rank, with or without ties
    sides: list[Floats] = []
    for x in (pair.truth, pair.pred):
        if pair.hidden is None:
            sides.append(_ranks(x) - middle)
        else:  # hidden entries are ranked last, where they move nobody, then put on the mean
            ranks = _ranks(np.where(pair.hidden, np.inf, x))
            sides.append(np.where(pair.hidden, 0.0, ranks - middle))
    return _cosine(sides[0], sides[1], pair)


def _seen_mean(x: Floats, pair: Pair) -> Floats:
    """Mean over measured entries of (g, n) values; x is overwritten."""
    if pair.hidden is not None:
        np.copyto(x, 0.0, where=pair.hidden)
    return np.asarray(x.sum(axis=1) / pair.count)


def mse(pair: Pair) -> Floats:
    return _seen_mean(np.square(pair.truth - pair.pred), pair)


def mae(pair: Pair) -> Floats:
    return _seen_mean(np.abs(pair.truth - pair.pred), pair)


def offset(pair: Pair) -> Floats:
    return np.square(pair.truth_mean - pair.pred_mean)


def pattern(pair: Pair) -> Floats:
    residual = pair.truth - pair.pred
    residual -= (pair.truth_mean - pair.pred_mean)[:, None]
    return _seen_mean(np.square(residual, out=residual), pair)


def r2(pair: Pair) -> Floats:
    variance = _seen_mean(np.square(pair.truth - pair.truth_mean[:, None]), pair)
    usable = (variance > 0) & ~pair.truth_flat
    return 1.0 - np.divide(mse(pair), variance, out=np.full_like(variance, np.nan), where=usable)
