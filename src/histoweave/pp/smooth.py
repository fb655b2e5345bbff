"""Means over neighbourhoods, as one sparse product."""

from __future__ import annotations

import numpy as np
from scipy import sparse


def mean_operator(nbr: np.ndarray, *, use: np.ndarray | None = None, include_self: bool = True) -> sparse.csr_array:
    """The matrix M for which ``M @ values`` is the mean over each spot's neighbourhood.

    Parameters
    ----------
    nbr
        Neighbour table (n, k) of row numbers, -1 where there is none.
    use
        Spots that may enter a mean (n,), bool; all where None.
    include_self
        Whether a spot belongs to its own neighbourhood.

    Returns
    -------
    CSR (n, n), float64. Rows sum to 1, or to 0 where nobody can be averaged.

    Raises
    ------
    ValueError
        The table is not two-dimensional integers, or points outside its own rows.
    """
    nbr = np.asarray(nbr)
    if nbr.ndim != 2 or not np.issubdtype(nbr.dtype, np.integer):
        raise ValueError(f"the neighbour table has shape {nbr.shape} and type {nbr.dtype}; expected integers (n, k)")
    n = len(nbr)
    if nbr.size and (nbr.min() < -1 or nbr.max() >= n):
        raise ValueError(
            f"the neighbour table points to rows {nbr.min()} to {nbr.max()}, but it has {n} rows; build "
            "it from the positions of the same section"
        )
    members = np.column_stack([np.arange(n), nbr]) if include_self else nbr  # (n, 1 + k)
    exists = members >= 0
    if use is not None:
        use = np.asarray(use)
        if use.shape != (n,) or use.dtype != bool:
            raise ValueError(f"`use` has shape {use.shape} and type {use.dtype}; expected bool ({n},)")
        exists &= use[members]  # -1 looks up the last spot, and is already False in `exists`
    size = exists.sum(axis=1)
    weights = np.repeat(1.0 / np.maximum(size, 1), size)
    starts = np.concatenate([[0], np.cumsum(size)])
    return sparse.csr_array((weights, members[exists], starts), shape=(n, n))


def smooth(values: np.ndarray, nbr: np.ndarray, *, use: np.ndarray | None = None) -> np.ndarray:
    """The mean of each spot and its existing neighbours.

    Parameters
    ----------
    values
        (n, g), finite.
    nbr
        Neighbour table (n, k) of row numbers, -1 where there is none.
    use
        Spots that may enter a mean (n,), bool; all where None.

    Returns
    -------
    (n, g) in the type of `values`; 0 where nobody can be averaged.

    Raises
    ------
    ValueError
        Shapes that do not agree.

    Examples
    --------
    >>> import numpy as np
    >>> smooth(np.array([[0.0], [3.0], [9.0]]), np.array([[1, -1], [0, 2], [1, -1]])).ravel()
    array([1.5, 4. , 6. ])
    """
    values = np.asarray(values)
    if values.ndim != 2 or len(values) != len(nbr):
        raise ValueError(
            f"values have shape {values.shape} and the neighbour table has {len(nbr)} rows; expected "
            "(n, g) with one row per spot"
        )
    kind = values.dtype if np.issubdtype(values.dtype, np.floating) else np.dtype(np.float64)
    return mean_operator(nbr, use=use).astype(kind, copy=False) @ values
