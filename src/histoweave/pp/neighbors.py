"""Padded neighbour tables: int32 (n, k) of row numbers, nearest first, ties by row, -1 where there is none.

A spot is never its own neighbour. Lattice tables look positions up in a sorted list of cells, the others in a k-d tree;
both grow as n log n and never hold an n × n matrix.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from histoweave.data.section import Section
from histoweave.pp.lattice import derive_array, lattice

_EDGE_NEIGHBOURS = 16  # points at random round a spot leave 150° open with a chance of 16 · (210 / 360)^15, under 1 %
_EDGE_ANGLE = np.deg2rad(150)  # a straight edge leaves 180° open, less where spots are jittered; one missing spot 120°


def neighbours(section: Section, hops: int = 1) -> np.ndarray:
    """Neighbour table of a section after its platform.

    Square lattices: the (2 · hops + 1)² - 1 spots of the square around each; hexagonal ones: the rings up to `hops`;
    off lattices: the 6 · hops nearest. Lattice coordinates that the section lacks are derived from its positions.
    """
    kind = lattice(section.platform)
    if kind is None:
        return knn(section.xy, 6 * hops)
    rc = section.array_rc if section.array_rc is not None else derive_array(section.xy, kind=kind)
    return hex_hops(rc, hops) if kind == "hex" else grid_hops(rc, hops)


def grid8(array_rc: np.ndarray) -> np.ndarray:
    """The up to 8 spots of the 3 × 3 square around each spot of a square lattice.

    Parameters
    ----------
    array_rc
        Lattice coordinates (n, 2), integers (row, column).

    Returns
    -------
    int32 (n, 8): edge neighbours, then corner neighbours.

    Raises
    ------
    ValueError
        Coordinates that are not integers, or that two spots share.

    Examples
    --------
    >>> import numpy as np
    >>> grid8(np.array([[0, 0], [1, 1], [0, 1]]))[:, :3]
    array([[ 2,  1, -1],
           [ 2,  0, -1],
           [ 0,  1, -1]], dtype=int32)
    """
    return grid_hops(array_rc, 1)


def grid_hops(array_rc: np.ndarray, hops: int) -> np.ndarray:
    """The spots within `hops` rows and columns on a square lattice: int32 (n, (2 · hops + 1)² - 1)."""
    span = np.arange(-_positive("hops", hops), hops + 1)
    offsets = np.stack(np.meshgrid(span, span, indexing="ij"), axis=-1).reshape(-1, 2)
    offsets = offsets[(offsets != 0).any(axis=1)]
    return _lattice_table(_cells(array_rc), offsets, (offsets**2).sum(axis=1))


def hex_hops(array_rc: np.ndarray, hops: int) -> np.ndarray:
    """The spots within `hops` steps on a hexagonal lattice in doubled columns, as Visium numbers them.

    The six neighbours of (r, c) are (r, c ± 2) and (r ± 1, c ± 1).

    Parameters
    ----------
    array_rc
        Lattice coordinates (n, 2), integers (row, column); row + column is even for all spots or odd for all.

    Returns
    -------
    int32 (n, 3 · hops · (hops + 1)): 6 for one hop, 18 for two; by distance on the tissue.

    Raises
    ------
    ValueError
        Coordinates that are not integers, not in doubled columns, or that two spots share.
    """
    _positive("hops", hops)
    cells = _cells(array_rc)
    if len(cells) and np.ptp(cells.sum(axis=1) % 2):
        raise ValueError(
            "row + column is even for some spots and odd for others; hexagonal lattices are expected in "
            "doubled columns (neighbours at (0, ±2) and (±1, ±1)), as in Visium's array_row, array_col"
        )
    rows, columns = np.meshgrid(np.arange(-hops, hops + 1), np.arange(-2 * hops, 2 * hops + 1), indexing="ij")
    offsets = np.stack([rows, columns], axis=-1).reshape(-1, 2)
    height, width = np.abs(offsets).T
    steps = height + np.maximum(0, (width - height) // 2)
    offsets = offsets[(offsets.sum(axis=1) % 2 == 0) & (steps > 0) & (steps <= hops)]
    # A row is √3/2 pitches high and a doubled column half a pitch wide: 4 × the squared distance is an integer.
    return _lattice_table(cells, offsets, 3 * offsets[:, 0] ** 2 + offsets[:, 1] ** 2)


def knn(xy: np.ndarray, k: int) -> np.ndarray:
    """The `k` nearest spots.

    Parameters
    ----------
    xy
        Positions (n, 2), in any unit.

    Returns
    -------
    int32 (n, k). Spots at the same place are neighbours of each other. With fewer than k + 1 spots the rest is -1.

    Raises
    ------
    ValueError
        Positions that are not finite (n, 2), or `k` below 1.
    """
    return _nearest(_positions(xy), _positive("k", k), np.inf)


def radius(xy: np.ndarray, r: float, max_neighbors: int) -> np.ndarray:
    """The spots no farther than `r`; of more than `max_neighbors`, the nearest.

    Returns
    -------
    int32 (n, max_neighbors).

    Raises
    ------
    ValueError
        Positions that are not finite (n, 2), `r` not above 0, or `max_neighbors` below 1.
    """
    if not r > 0:
        raise ValueError(f"radius {r!r} was given; expected a number above 0, in the unit of the positions")
    return _nearest(_positions(xy), _positive("max_neighbors", max_neighbors), float(r))


def edge_distance(xy: np.ndarray) -> np.ndarray:
    """Distance of each spot to the edge of the tissue, as the spots show it.

    A spot lies on the edge if its 16 nearest neighbours leave an angle of 150° or more open: a straight edge leaves
    180°, a single missing spot of a square or hexagonal lattice at most 120°. The distance is that to the nearest spot
    on the edge, so it is 0 there.

    Parameters
    ----------
    xy
        Positions (n, 2).

    Returns
    -------
    (n,) float64, in the unit of `xy`.

    Raises
    ------
    ValueError
        Positions that are not finite (n, 2).
    """
    xy = _positions(xy)
    if len(xy) == 0:
        return np.zeros(0)
    nbr = _nearest(xy, _EDGE_NEIGHBOURS, np.inf)
    step = xy[nbr] - xy[:, None, :]  # (n, k, 2)
    counts = (nbr >= 0) & (step != 0).any(axis=2)
    angle = np.where(counts, np.arctan2(step[..., 1], step[..., 0]), np.inf)
    angle.sort(axis=1)
    first = np.where(counts.any(axis=1), angle[:, 0], 0.0)
    angle = np.minimum(angle, first[:, None] + 2 * np.pi)  # what is missing closes the circle, and opens no angle
    gap = np.diff(angle, axis=1, append=first[:, None] + 2 * np.pi).max(axis=1)
    # The corners of the convex hull leave 180° or more open, so there always is an edge.
    edge = (gap >= _EDGE_ANGLE) | ~counts.any(axis=1)
    return cKDTree(xy[edge]).query(xy)[0]


def _positive(name: str, value: int) -> int:
    if isinstance(value, bool) or int(value) != value or value < 1:
        raise ValueError(f"{name}={value!r} was given; expected a whole number of 1 or more")
    return int(value)


def _positions(xy: np.ndarray) -> np.ndarray:
    xy = np.asarray(xy, dtype=np.float64)
    if xy.ndim != 2 or xy.shape[1] != 2 or not np.isfinite(xy).all():
        raise ValueError(f"positions have shape {xy.shape}; expected finite numbers (n, 2) as (x, y)")
    return xy


def _cells(array_rc: np.ndarray) -> np.ndarray:
    given = np.asarray(array_rc)
    if given.ndim != 2 or given.shape[1] != 2 or not np.issubdtype(given.dtype, np.integer):
        raise ValueError(
            f"lattice coordinates have shape {given.shape} and type {given.dtype}; expected integers "
            "(n, 2) as (row, column). Positions in px become lattice coordinates with `derive_array`"
        )
    return given.astype(np.int64)


def _lattice_table(cells: np.ndarray, offsets: np.ndarray, far: np.ndarray) -> np.ndarray:
    """Rows of the spots at cells + offsets, ordered by (far, row): int32 (n, k)."""
    n, k = len(cells), len(offsets)
    if n == 0:
        return np.zeros((0, k), dtype=np.int32)
    reach = np.abs(offsets).max(axis=0)
    low = cells.min(axis=0)
    width = int(np.ptp(cells[:, 1])) + 1 + 2 * int(reach[1])  # a margin, so that no offset wraps into another row
    if (int(np.ptp(cells[:, 0])) + 1) * width >= 2**62:
        raise ValueError(
            f"lattice coordinates span {np.ptp(cells, axis=0)} rows and columns; these are not array indices"
        )
    key = (cells[:, 0] - low[0]) * width + (cells[:, 1] - low[1]) + reach[1]  # (n,)
    order = np.argsort(key, kind="stable")
    ordered = key[order]
    same = np.flatnonzero(np.diff(ordered) == 0)
    if len(same):
        twins = "; ".join(f"{order[i]} and {order[i + 1]} at {tuple(cells[order[i]].tolist())}" for i in same[:3])
        raise ValueError(
            f"{len(same)} lattice positions are given to more than one spot (spots {twins}); keep one of each"
        )
    wanted = key[:, None] + (offsets[:, 0] * width + offsets[:, 1])[None, :]  # (n, k)
    at = np.minimum(np.searchsorted(ordered, wanted), n - 1)
    found = ordered[at] == wanted
    row = order[at]
    # One sort per row by (distance, row of the neighbour); what is missing goes to the end.
    level = np.unique(far, return_inverse=True)[1]
    rank = np.where(found, level[None, :] * n + row, np.iinfo(np.int64).max)
    by = np.argsort(rank, axis=1, kind="stable")
    return np.take_along_axis(np.where(found, row, -1), by, axis=1).astype(np.int32)


def _nearest(xy: np.ndarray, k: int, reach: float) -> np.ndarray:
    """The `k` nearest within `reach` (included), ordered by (distance, row): int32 (n, k)."""
    n = len(xy)
    table = np.full((n, k), -1, dtype=np.int32)
    if n < 2:
        return table
    tree = cKDTree(xy)
    bound = np.inf if np.isinf(reach) else np.nextafter(reach, np.inf)  # the tree leaves the bound itself out
    rows, ask = np.arange(n), min(n, k + 3)
    while len(rows):
        block = max(1, 2**22 // ask)
        parts = np.split(rows, range(block, len(rows), block))
        rows = np.concatenate([_fill(table, tree, xy, part, ask, bound) for part in parts])
        ask = min(n, 2 * ask)
    return table


def _fill(table: np.ndarray, tree: cKDTree, xy: np.ndarray, rows: np.ndarray, ask: int, bound: float) -> np.ndarray:
    """Fill the rows whose k-th neighbour is decided among `ask` candidates; return the others.

    The tree cuts a group of equally distant spots wherever it likes, so a row is decided only if its last candidate is
    farther than its k-th neighbour.
    """
    n, k = table.shape
    distance, found = tree.query(xy[rows], k=ask, distance_upper_bound=bound)
    all_seen = np.isinf(distance[:, -1]) | (ask == n)
    distance = np.where(found == rows[:, None], np.inf, distance)
    found = np.where(np.isinf(distance), n, found)  # n stands for "none", and for the spot itself
    order = np.lexsort((found, distance), axis=1)
    distance, found = np.take_along_axis(distance, order, 1), np.take_along_axis(found, order, 1)
    width = min(k, ask)
    last = np.where(np.isinf(distance), -1.0, distance).max(axis=1)
    decided = all_seen | (last > distance[:, width - 1])
    table[rows[decided], :width] = np.where(found == n, -1, found)[decided, :width]
    return rows[~decided]
