"""Is a gene's correlation more than two smooth maps have by chance? The prediction is shifted over the section.

Neighbouring spots resemble each other, so a p-value that takes them for independent is far too small, and none is
offered. A shift keeps the smoothness of both maps and breaks only their alignment.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.fft import irfft2, rfft2

from histoweave.bio._part import Floats, Mask, centred, checked, fdr

MIN_OVERLAP = 0.5  # share of a gene's measured cells that a shift must bring onto tissue
_BLOCK = 2**21  # grid cells × genes of one block
_TIE = 1e-9  # correlations closer than this are the same: shifts are computed by FFT
_FLAT = 1e-6  # variance, of unit-variance maps, under which the overlap of a shift counts as constant


def toroidal_test(
    truth: ArrayLike,
    pred: ArrayLike,
    cells: NDArray[np.int64],
    mask: ArrayLike | None = None,
    *,
    doubled: bool = False,
    min_overlap: float = MIN_OVERLAP,
) -> pd.DataFrame:
    """Toroidal-shift test of each gene's PCC within one section, one-sided (is the prediction better than shifted?).

    The section's rectangle of cells is closed to a torus and the prediction moved over it by every whole number of rows
    and columns. A shifted correlation is over the cells where both maps have tissue; shifts with less than `min_overlap`
    of the gene's measured cells are left out. p is the share of shifts, the identity among them, whose correlation
    is at least the observed one: exact, and never below 1 / shifts.

    Parameters
    ----------
    cells
        (n, 2) integers of 0 or more as (row, column); spots that share a cell are averaged.
    mask
        (n, g), True = measured; None = what is not NaN.
    doubled
        Columns are doubled, as on a hexagonal lattice; the torus then has even sides, so that shifts keep the lattice.

    Returns
    -------
    g rows: pcc (of cells), p, q (Benjamini–Hochberg over genes) and shifts. NaN where the truth is constant; p = 1 where
    the prediction is.

    Notes
    -----
    The seam of the torus joins places that are no neighbours, so on maps with a trend over the whole section p is
    somewhat too small or too large: a screen within one section, not a claim about patients.
    """
    x, y, seen = checked(truth, pred, mask)
    cells = np.asarray(cells)
    if cells.shape != (len(x), 2) or cells.dtype.kind not in "iu" or (len(cells) and cells.min() < 0):
        raise ValueError(
            f"cells have shape {cells.shape} and type {cells.dtype}; expected integers ({len(x)}, 2) of 0 or more"
        )
    height, width = (int(side) + 1 for side in cells.max(axis=0))
    if doubled:
        height, width = height + height % 2, width + width % 2
    at = cells[:, 0] * width + cells[:, 1]
    into = sparse.csr_array((np.ones(len(at)), (at, np.arange(len(at)))), shape=(height * width, len(at)))
    g = x.shape[1]
    r, p, shifts = np.full(g, np.nan), np.full(g, np.nan), np.zeros(g, dtype=np.int64)
    step = max(1, _BLOCK // (height * width))
    for begin in range(0, g, step):
        cut = np.s_[begin : begin + step]
        maps = _maps(into, x[:, cut], y[:, cut], seen[:, cut])
        r[cut], p[cut], shifts[cut] = _shifted(*maps, (height, width), min_overlap)
    return pd.DataFrame({"pcc": r, "p": p, "q": fdr(p), "shifts": shifts})


def _maps(into: sparse.csr_array, x: Floats, y: Floats, seen: Mask) -> tuple[Floats, Floats, Mask, Mask]:
    """Truth and prediction per cell (cells, g), and where the truth was measured and there is tissue."""
    measured = into @ seen.astype(np.float64)
    spots = into @ np.ones(x.shape)
    truth = (into @ np.where(seen, x, 0.0)) / np.maximum(measured, 1.0)
    pred = (into @ y) / np.maximum(spots, 1.0)
    return truth, pred, measured > 0, spots > 0


def _shifted(
    truth: Floats, pred: Floats, measured: Mask, tissue: Mask, sides: tuple[int, int], min_overlap: float
) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Observed correlation, p and number of shifts of each gene of a block, from maps (cells, g)."""
    (a, varies), (b, moves) = centred(truth, measured), centred(pred, tissue)
    a = a / np.where(varies, np.sqrt(np.square(a).sum(axis=0) / np.maximum(measured.sum(axis=0), 1)), 1.0)
    b = b / np.where(moves, np.sqrt(np.square(b).sum(axis=0) / np.maximum(tissue.sum(axis=0), 1)), 1.0)

    def turned(values: NDArray[np.generic]) -> NDArray[np.complex128]:
        return rfft2(np.asarray(values, dtype=np.float64).T.reshape(-1, *sides))  # (g, rows, columns / 2 + 1)

    def sums(left: NDArray[np.complex128], right: NDArray[np.complex128]) -> Floats:
        """Σ left(cell) · right(cell + shift) for every shift: (g, rows, columns)."""
        return irfft2(left.conj() * right, s=sides)

    one_a, one_b = turned(measured), turned(tissue)
    fa, fb = turned(a), turned(b)
    count = np.rint(sums(one_a, one_b))
    safe = np.maximum(count, 1.0)
    sum_a, sum_b = sums(fa, one_b), sums(one_a, fb)
    var_a = sums(turned(np.square(a)), one_b) / safe - np.square(sum_a / safe)
    var_b = sums(one_a, turned(np.square(b))) / safe - np.square(sum_b / safe)
    both = sums(fa, fb) / safe - sum_a * sum_b / np.square(safe)
    defined = (var_a > _FLAT) & (var_b > _FLAT)
    r = np.where(defined, both / np.sqrt(np.where(defined, var_a * var_b, 1.0)), 0.0)
    needed = np.maximum(min_overlap * measured.sum(axis=0), 2.0)[:, None, None]
    counted = (count >= needed) & (var_a > _FLAT)
    counted[:, 0, 0] = True
    shifts = counted.sum(axis=(1, 2))
    observed = r[:, 0, 0]
    reached = (counted & (r >= observed[:, None, None] - _TIE)).sum(axis=(1, 2))
    p = np.where(moves, reached / shifts, 1.0)
    return np.where(varies, observed, np.nan), np.where(varies, p, np.nan), np.where(varies, shifts, 0)
