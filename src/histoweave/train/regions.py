"""How sections lie: cut into regions for models that look at all spots at once, and the spacing of their spots.

Regions keep memory from growing with the slide.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from histoweave.data.section import PITCH_UM, Cohort
from histoweave.pp.lattice import pitch

_LEAST = 64  # spots of a region below which it is not cut further, whatever its halo adds


def regions(rc: np.ndarray, at_most: int, *, halo: int = 5) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Regions of a section that together cover every spot once.

    Parameters
    ----------
    rc
        Lattice (row, column) (n, 2).
    at_most
        Spots in a region, its halo included.
    halo
        Lattice steps around a region whose spots are looked at but not predicted.

    Yields
    ------
    rows, core
        Spots of the region with its halo (m,), ascending, and which of them are predicted (m,) bool.
    """
    stack = [np.arange(len(rc))]
    while stack:
        part = stack.pop()
        low, high = rc[part].min(axis=0) - halo, rc[part].max(axis=0) + halo
        rows = np.flatnonzero(((rc >= low) & (rc <= high)).all(axis=1))
        if len(rows) <= at_most or len(part) <= min(_LEAST, at_most):
            yield rows, np.isin(rows, part, assume_unique=True)
            continue
        axis = int(np.ptp(rc[part], axis=0).argmax())
        order = part[np.argsort(rc[part, axis], kind="stable")]
        stack += [np.sort(order[len(order) // 2 :]), np.sort(order[: len(order) // 2])]


def spacing(train: Cohort) -> dict[str, Any]:
    """Platform and centre-to-centre distance in µm of the training spots: how a slide without spots is tiled."""
    platforms = [section.platform for section in train]
    platform = max(dict.fromkeys(platforms), key=platforms.count)
    measured = [pitch(s.xy) * s.um_per_px for s in train if s.platform == platform and s.um_per_px and s.n > 1]
    known = PITCH_UM.get(platform)
    return {"platform": platform, "pitch_um": known or (float(np.median(measured)) if measured else None)}
