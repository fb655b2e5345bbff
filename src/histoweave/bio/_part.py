"""One section of a prediction as arrays: truth, prediction, what was measured, and where the spots lie."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from histoweave import _keys as K
from histoweave.bench._genewise import check, rounding
from histoweave.pp.lattice import Lattice, pitch
from histoweave.pp.neighbors import grid_hops, hex_hops, knn

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

TRUTH = "truth"  # layer of a stored prediction
_PER_HOP = 6  # nearest spots that stand for one ring where there is no lattice, as in `pp.neighbours`
_BIN = 2.0  # pitches: side of the squares that stand for lattice cells where there is no lattice


@dataclass(frozen=True, slots=True)
class Part:
    """One section of a prediction.

    Attributes
    ----------
    truth, pred
        (n, g) float64 in the same units; truth is NaN where nothing was measured.
    genes
        Names (g,).
    xy
        Positions (n, 2).
    array_rc
        Lattice coordinates (n, 2), or None off lattices.
    """

    section: str
    patient: str
    truth: Floats
    pred: Floats
    genes: pd.Index
    xy: Floats
    array_rc: NDArray[np.int64] | None

    @property
    def measured(self) -> Mask:
        """Where the truth is known, (n, g)."""
        return ~np.isnan(self.truth)

    @property
    def kind(self) -> Lattice | None:
        """``"hex"`` for doubled columns (row + column has one parity), ``"square"``, or None off lattices."""
        if self.array_rc is None:
            return None
        return "hex" if len(self.truth) > 1 and not np.ptp(self.array_rc.sum(axis=1) % 2) else "square"

    def neighbours(self, hops: int = 1) -> NDArray[np.int32]:
        """Neighbour table (n, k) after the lattice: squares, hexagonal rings, or the 6 · hops nearest."""
        if self.array_rc is None:
            return knn(self.xy, _PER_HOP * hops)
        return hex_hops(self.array_rc, hops) if self.kind == "hex" else grid_hops(self.array_rc, hops)

    def cells(self) -> NDArray[np.int64]:
        """Cells of a regular grid (n, 2) as (row, column); off lattices squares that several spots may share."""
        if self.array_rc is not None:
            return self.array_rc - self.array_rc.min(axis=0)
        side = _BIN * pitch(self.xy) if len(self.xy) > 1 else 1.0
        return np.floor((self.xy - self.xy.min(axis=0))[:, ::-1] / side).astype(np.int64)


def parts(prediction: AnnData) -> Iterator[Part]:
    """The sections of a prediction, in the order in which they come.

    Raises
    ------
    ValueError
        A table that is no stored prediction: without the layer ``truth``, section, patient or positions.
    """
    lacks = [name for name in (K.SECTION, K.PATIENT) if name not in prediction.obs]
    lacks += [f"layers[{TRUTH!r}]"] * (TRUTH not in prediction.layers)
    lacks += [f"obsm[{K.SPATIAL!r}]"] * (K.SPATIAL not in prediction.obsm)
    if lacks:
        raise ValueError(
            f"the table lacks {', '.join(lacks)}; give a stored prediction of a benchmark (`Report.prediction`), "
            "which holds the truth beside it"
        )
    sections = prediction.obs[K.SECTION].astype(str).to_numpy()
    for name in pd.unique(sections):
        rows = sections == name
        here = prediction.obs[rows]
        on_lattice = {K.ROW, K.COL} <= set(here.columns) and not here[[K.ROW, K.COL]].isna().any(axis=None)
        yield Part(
            section=str(name),
            patient=str(here[K.PATIENT].iloc[0]),
            truth=_dense(prediction.layers[TRUTH], rows),
            pred=_dense(prediction.X, rows),
            genes=prediction.var_names,
            xy=np.asarray(prediction.obsm[K.SPATIAL], dtype=np.float64)[rows],
            array_rc=here[[K.ROW, K.COL]].to_numpy(dtype=np.int64) if on_lattice else None,
        )


def _dense(values: Any, rows: Mask) -> Floats:
    chosen = values[rows]
    return np.asarray(chosen.toarray() if sparse.issparse(chosen) else chosen, dtype=np.float64)


def checked(truth: ArrayLike, pred: ArrayLike, mask: ArrayLike | None) -> tuple[Floats, Floats, Mask]:
    """Both sides (n, g) in float64 and what was measured, (n, g); where `mask` is None, the truth that is not NaN."""
    t, p, m = check(truth, pred, mask)
    x, y = t.astype(np.float64), p.astype(np.float64)
    seen = ~np.isnan(x) if m is None else m
    if not np.isfinite(y).all() or not np.isfinite(x[seen]).all():
        raise ValueError("a measured value or a prediction is NaN or infinite; mask what was not measured, predict all")
    return x, y, seen


def centred(values: Floats, mask: Mask) -> tuple[Floats, Mask]:
    """Deviations from each gene's mean over its measured spots (n, g), 0 elsewhere, and which genes vary, (g,)."""
    count = mask.sum(axis=0)
    x = np.where(mask, values, 0.0)
    mean = x.sum(axis=0) / np.maximum(count, 1)
    z = np.where(mask, x - mean, 0.0)
    # Truth and prediction are stored in float32, so a spread of its rounding is none.
    limit = rounding(np.dtype(np.float32)) * np.abs(x).max(axis=0, initial=0.0)
    return z, z.max(axis=0, initial=0.0) - z.min(axis=0, initial=0.0) > limit


def fdr(p: ArrayLike) -> Floats:
    """Benjamini–Hochberg's adjusted p-values, same shape; NaN (not tested) stays NaN and does not count as a test."""
    p = np.asarray(p, dtype=np.float64)
    out = np.full(p.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(p.ravel()))
    order = tested[np.argsort(-p.ravel()[tested], kind="stable")]  # largest first
    scaled = p.ravel()[order] * len(order) / np.arange(len(order), 0, -1)
    out.ravel()[order] = np.minimum(np.minimum.accumulate(scaled), 1.0)
    return out
