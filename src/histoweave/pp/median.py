"""Missing entries filled by the median of the smallest neighbourhood that has one: per section, gene by gene."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from scipy import sparse

from histoweave.data.section import Section
from histoweave.pp.lattice import lattice
from histoweave.pp.neighbors import knn, neighbours

HOPS = 4  # of the SpaRED pipeline
_BLOCK = 2**21  # values held at a time: 8 MiB of float32


def median_tables(section: Section, hops: int = HOPS) -> list[np.ndarray]:
    """The neighbour tables of `median_fill`: int32 (n, k) for 1, 2, … `hops` hops.

    On lattices these are the spots within that many hops. Off lattices they are the 3h(h + 1) nearest, as many as lie
    within h hops on a hexagonal lattice.

    Raises
    ------
    ValueError
        `hops` that is not a whole number of 1 or more.
    """
    if isinstance(hops, bool) or int(hops) != hops or hops < 1:
        raise ValueError(f"hops={hops!r} was given; expected a whole number of 1 or more")
    steps = range(1, int(hops) + 1)
    if lattice(section.platform) is None:
        return [knn(section.xy, 3 * h * (h + 1)) for h in steps]
    return [neighbours(section, h) for h in steps]


def median_fill(values: np.ndarray, seen: np.ndarray, tables: Sequence[np.ndarray]) -> np.ndarray:
    """Each missing entry by the median of the nearest spots, in the smallest window whose median is not 0.

    The window of h hops is the spot itself and the spots within h hops. What is missing counts as 0 in it, the spot's
    own entry too, and a neighbour that does not exist does not count. Where no window has a median other than 0, the
    median of what is seen of the gene in the whole section is taken, and 0 where nothing of the gene is seen.

    Parameters
    ----------
    values
        One section, (n, g). What lies in missing entries is not looked at.
    seen
        Which entries are measured and visible, (n, g) bool.
    tables
        Neighbour tables (n, k) of row numbers, -1 where there is none, for 1, 2, … hops (`median_tables`).

    Returns
    -------
    float32 (n, g), finite. Seen entries are those of `values`, bit for bit.

    Raises
    ------
    ValueError
        Shapes that do not agree, a mask that is not bool, seen values that are not finite.

    Notes
    -----
    The adaptive median of the SpaRED pipeline (Mejia et al. 2024), after the windows of SEPAL (Mejia et al. 2023).
    If more than half of a window is 0 its median is 0, so one sparse product per hop tells which few windows have to
    be sorted at all.

    **Differences from the authors' code.** Windows are the spots that exist within h steps of the lattice; the authors
    join each spot to its six nearest, which at a border reach past the first ring. Results inside a hexagonal lattice
    are the same. A seen value of 0 is kept as it is; there every 0 is missing.

    Examples
    --------
    >>> import numpy as np
    >>> row = np.array([[4.0], [0.0], [6.0]])
    >>> median_fill(row, row > 0, [np.array([[1, -1], [0, 2], [1, -1]])]).ravel()
    array([4., 4., 6.], dtype=float32)
    """
    values, seen = _checked(values, seen)
    n, g = values.shape
    windows = [_window(table, n) for table in tables]
    known = np.where(seen, values, np.float32(0))  # (n, g)
    filled = known.copy()
    operators = [_operator(window) for window in windows]
    # Counts of one hop follow from those of the hop before, so only what differs between the two is summed.
    steps = [operators[0], *(b - a for a, b in pairwise(operators))] if operators else []
    width = max(1, _BLOCK // max(n, 1))
    for start in range(0, g, width):
        part = slice(start, start + width)
        filled[:, part] = _fill_block(known[:, part], seen[:, part], windows, steps)
    return filled


def _checked(values: Any, seen: Any) -> tuple[np.ndarray, np.ndarray]:
    values, seen = np.asarray(values), np.asarray(seen)
    if values.ndim != 2:
        raise ValueError(f"values have shape {values.shape}; expected (n, g), spots by genes of one section")
    if seen.shape != values.shape or seen.dtype != bool:
        raise ValueError(
            f"the mask of seen entries has shape {seen.shape} and type {seen.dtype}; expected bool {values.shape}, "
            "True where a value is measured"
        )
    with np.errstate(over="ignore"):  # what does not fit is infinite, and told below
        values = values.astype(np.float32)
    bad = int((seen & ~np.isfinite(values)).sum())
    if bad:
        raise ValueError(f"{bad} seen values are NaN or infinite as float32; expected finite numbers. Mark them unseen")
    return values, seen


def _window(table: np.ndarray, n: int) -> np.ndarray:
    """The spot itself and its neighbours, n where there is none: int64 (n, 1 + k)."""
    table = np.asarray(table)
    if table.ndim != 2 or len(table) != n or not np.issubdtype(table.dtype, np.integer):
        raise ValueError(
            f"a neighbour table has shape {table.shape} and type {table.dtype}; expected integers ({n}, k), a row per spot"
        )
    if table.size and (table.min() < -1 or table.max() >= n):
        raise ValueError(
            f"a neighbour table points to rows {table.min()} to {table.max()} of {n}; build it from the same section"
        )
    return np.column_stack([np.arange(n), np.where(table < 0, n, table)])


def _operator(window: np.ndarray) -> sparse.csr_array:
    """CSR float32 (n, n): 1 for the members of a window."""
    n, size = len(window), (window < len(window)).sum(axis=1)
    members = window[window < n]
    starts = np.concatenate([[0], np.cumsum(size)])
    return sparse.csr_array((np.ones(len(members), dtype=np.float32), members, starts), shape=(n, n))


def _fill_block(
    known: np.ndarray, seen: np.ndarray, windows: Sequence[np.ndarray], steps: Sequence[sparse.csr_array]
) -> np.ndarray:
    """`known` (n, c), 0 where missing, with what is missing filled."""
    n, c = known.shape
    filled = np.array(known)
    open_ = ~seen
    padded = np.concatenate([known, np.full((1, c), np.inf, dtype=np.float32)]).ravel()  # row n: no neighbour
    present = (known != 0).astype(np.float32)
    counts = np.zeros_like(known)
    for window, step in zip(windows, steps, strict=True):
        if not open_.any():
            return filled
        counts += step @ present
        size = (window < n).sum(axis=1)
        row, gene = np.nonzero(open_ & (2 * counts >= size[:, None]))
        median = _window_medians(padded, c, window, size, row, gene)
        done = median != 0
        filled[row[done], gene[done]] = median[done]
        open_[row[done], gene[done]] = False
    rest = np.flatnonzero(open_.any(axis=0))
    if len(rest):
        overall = _seen_medians(known[:, rest], seen[:, rest])
        filled[:, rest] = np.where(open_[:, rest], overall, filled[:, rest])
    return filled


def _window_medians(
    padded: np.ndarray, c: int, window: np.ndarray, size: np.ndarray, row: np.ndarray, gene: np.ndarray
) -> np.ndarray:
    """Medians of the windows of the entries (row, gene), (p,); `padded` is the flat (n + 1, c) table."""
    median = np.empty(len(row), dtype=np.float32)
    length = max(1, _BLOCK // window.shape[1])
    for start in range(0, len(row), length):
        part = slice(start, start + length)
        inside = padded[window[row[part]] * c + gene[part, None]]  # (p, 1 + k)
        inside.sort(axis=1)
        median[part] = _middle(inside, size[row[part]])
    return median


def _middle(ordered: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Median of the first `size` (p,) of each sorted row of (p, k)."""
    at = np.arange(len(ordered))
    return (ordered[at, (size - 1) // 2] + ordered[at, size // 2]) / np.float32(2)


def _seen_medians(known: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Median of what is seen of each gene (c,), 0 where nothing is."""
    ordered = np.where(seen, known, np.float32(np.inf)).T.copy()  # (c, n)
    ordered.sort(axis=1)
    size = seen.sum(axis=0)
    middle = _middle(ordered, np.maximum(size, 1))
    return np.where(size > 0, middle, np.float32(0))
