"""Which lattice the spots of a platform lie on, its pitch, and lattice coordinates from positions."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy.spatial import cKDTree

Lattice = Literal["square", "hex"]
_LATTICES: dict[str, Lattice] = {"st": "square", "visium": "hex", "visium_hd": "square"}
_FOLD: dict[str, int] = {"square": 4, "hex": 6}  # rotations that leave the lattice as it is
# Position of one row and one column step in pitches, as (x, y); hexagonal columns are doubled, as Visium numbers them.
_STEPS: dict[str, np.ndarray] = {
    "square": np.array([[0.0, 1.0], [1.0, 0.0]]),
    "hex": np.array([[0.0, np.sqrt(3) / 2], [0.5, 0.0]]),
}
_TOUCHING = 1.3  # pitches within which spots count as lattice neighbours; the next ring begins at 1.41
_TOLERANCE = 0.35  # pitches by which a position may miss its cell; at 0.5 two cells are equally near
_OUTLIERS = 0.01  # of the spots may miss by more: in hand-aligned legacy ST a few do
_START = 4.0  # pitches round the middle that are fitted first: there rounding cannot go wrong yet


def lattice(platform: str) -> Lattice | None:
    """``"square"`` or ``"hex"``; None for platforms whose spots lie on no lattice."""
    return _LATTICES.get(platform)


def pitch(xy: np.ndarray) -> float:
    """Median distance of the spots to their nearest neighbour, in the unit of `xy`.

    Parameters
    ----------
    xy
        Positions (n, 2), n of 2 or more.

    Raises
    ------
    ValueError
        Fewer than two spots, positions that are not finite, or most spots at the place of another.
    """
    xy = np.asarray(xy, dtype=np.float64)
    if xy.ndim != 2 or xy.shape[1] != 2 or len(xy) < 2 or not np.isfinite(xy).all():
        raise ValueError(f"the pitch needs two or more finite positions (n, 2); positions have shape {xy.shape}")
    step = float(np.median(cKDTree(xy).query(xy, k=2)[0][:, 1]))
    if step == 0:
        raise ValueError("most spots lie at the place of another, so there is no pitch; drop the duplicates")
    return step


def lattice_pitch(xy: np.ndarray, array_rc: np.ndarray, *, kind: Lattice = "square") -> float:
    """The pitch of the lattice that fits the positions best, in the unit of `xy`.

    Unlike `pitch`, it is not biased by jitter: the nearest of four jittered neighbours is nearer than the lattice has
    it, by 7 % in hand-aligned legacy ST. So take this one to tell µm per px from a known pitch.

    Parameters
    ----------
    xy, array_rc
        Positions and lattice coordinates, both (n, 2); the coordinates may be fractional.

    Raises
    ------
    ValueError
        Shapes that do not agree, or spots on one line.
    """
    xy, cells = np.asarray(xy, dtype=np.float64), np.asarray(array_rc, dtype=np.float64)
    if xy.ndim != 2 or xy.shape[1] != 2 or cells.shape != xy.shape:
        raise ValueError(
            f"positions have shape {xy.shape} and lattice coordinates {cells.shape}; expected (n, 2) for both"
        )
    design = np.column_stack([np.ones(len(cells)), cells])
    if np.linalg.matrix_rank(design) < 3:
        raise ValueError(f"{len(xy)} spots on one line do not show the pitch of a lattice; give it, or the µm per px")
    basis = np.linalg.lstsq(design, xy, rcond=None)[0][1:]
    return float(np.sqrt(abs(np.linalg.det(basis) / np.linalg.det(_STEPS[kind]))))


def derive_array(xy: np.ndarray, spacing: float | None = None, *, kind: Lattice = "square") -> np.ndarray:
    """Lattice coordinates from positions, for spots on a lattice of unknown origin, rotation and exact pitch.

    The direction of the lattice is that of the steps between touching spots (the turn nearest to upright images is
    taken), and pitch, shear and origin are fitted by least squares to a circle that grows from the middle of the
    section, so that a pitch that is a few per cent off does not add up over the tissue.

    Parameters
    ----------
    xy
        Positions (n, 2), (x, y).
    spacing
        Distance between touching spots in the unit of `xy`; None takes `pitch`.
    kind
        ``hex`` gives doubled columns, as Visium numbers them: neighbours at (0, ±2) and (±1, ±1).

    Returns
    -------
    int64 (n, 2) as (row, column): rows grow with y, columns with x; the smallest of each is 0 (or 1, where the parity
    of a hexagonal lattice asks for it).

    Raises
    ------
    ValueError
        The positions do not lie on such a lattice: two share a cell, or more than 1 % of them miss theirs by far.

    Examples
    --------
    >>> import numpy as np
    >>> derive_array(np.array([[10.0, 5.0], [20.2, 5.1], [9.9, 15.0]])).tolist()
    [[0, 0], [0, 1], [1, 0]]
    """
    if kind not in _STEPS:
        raise ValueError(f"kind={kind!r}; expected 'square' or 'hex'")
    xy = np.asarray(xy, dtype=np.float64)
    if len(xy) == 1:
        return np.zeros((1, 2), dtype=np.int64)
    step = pitch(xy) if spacing is None else float(spacing)
    turn = _direction(xy, step, kind)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    basis = step * _STEPS[kind] @ rotation  # (2, 2): rows are the row step and the column step
    middle = xy.mean(axis=0)
    away = np.hypot(*(xy - middle).T)
    seed = int(np.argmin(away))
    origin, away = xy[seed], np.hypot(*(xy - xy[seed]).T)
    within = _START * step
    while True:
        near = away <= within
        cells = _round(np.linalg.solve(basis.T, (xy[near] - origin).T).T, kind)  # (m, 2)
        origin, basis = _fit(xy[near], cells, origin, basis)
        if near.all():
            break
        within *= 1.5
    cells = _round(np.linalg.solve(basis.T, (xy - origin).T).T, kind)
    _check_cells(xy - origin - cells @ basis, cells, step, kind)
    cells -= cells.min(axis=0)
    if kind == "hex":
        cells[:, 1] += cells[0].sum() % 2  # row + column even, as in Visium
    return cells


def _direction(xy: np.ndarray, step: float, kind: str) -> float:
    """Angle of the lattice in radians, the smallest of those that are the same by symmetry."""
    pairs = cKDTree(xy).query_pairs(_TOUCHING * step, output_type="ndarray")
    if len(pairs) == 0:
        return 0.0
    move = xy[pairs[:, 1]] - xy[pairs[:, 0]]
    fold = _FOLD[kind]
    turned = np.exp(1j * fold * np.arctan2(move[:, 1], move[:, 0])).sum()
    return float(np.angle(turned) / fold)


def _round(at: np.ndarray, kind: str) -> np.ndarray:
    """The nearest cells (n, 2) to fractional lattice coordinates (row, column)."""
    if kind == "square":
        return np.rint(at).astype(np.int64)
    row = np.floor(at[:, 0])
    candidates = []
    for up in (row, row + 1):  # the nearest cell lies in the row above or below, on that row's parity
        column = 2 * np.rint((at[:, 1] - up) / 2) + up
        candidates.append(np.column_stack([up, column]))
    miss = [((at - cell) ** 2) @ [3.0, 1.0] for cell in candidates]  # in half pitches, squared
    return np.where((miss[0] <= miss[1])[:, None], *candidates).astype(np.int64)


def _fit(xy: np.ndarray, cells: np.ndarray, origin: np.ndarray, basis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Origin (2,) and basis (2, 2) that fit the positions best; those given where the cells span no plane."""
    design = np.column_stack([np.ones(len(cells)), cells])
    if np.linalg.matrix_rank(design) < 3:
        return origin, basis
    solved = np.linalg.lstsq(design, xy, rcond=None)[0]
    return solved[0], solved[1:]


def _check_cells(miss: np.ndarray, cells: np.ndarray, step: float, kind: str) -> None:
    off = np.hypot(*miss.T) / step
    twins = len(cells) - len(np.unique(cells, axis=0))
    far = int((off > _TOLERANCE).sum())
    if twins or far > _OUTLIERS * len(cells):
        raise ValueError(
            f"the positions do not lie on a {kind} lattice of pitch {step:g}: {far} of {len(cells)} miss "
            f"their cell by more than {_TOLERANCE} pitches (worst {off.max():.2f}) and {twins} share a "
            "cell. Give array coordinates, or use `knn`"
        )
