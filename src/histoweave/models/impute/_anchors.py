"""Pairs of cells that name each other, how good they are, and what they weigh in a cell.

Letters: n reference cells, c target cells, a anchors, k neighbours, u target cells in anchors, b target cells of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import sparse

QUANTILES = (0.01, 0.9)  # scores that become 0 and 1 (Seurat)
_CHUNK = 8192  # cells, or anchors, at a time


def mutual(there: np.ndarray, back: np.ndarray) -> np.ndarray:
    """Pairs (a, 2) of reference and target rows that name each other, by row: `there` (n, k) and `back` (c, k)."""
    n, c = len(there), len(back)
    forth = np.repeat(np.arange(n), there.shape[1]) * c + there.ravel()
    rear = back.ravel() * c + np.repeat(np.arange(c), back.shape[1])
    return np.stack(np.divmod(np.intersect1d(forth, rear), c), axis=1)


def overlap(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """How many numbers each row of `one` (a, k) has in common with that of `two` (a, k)."""
    found = [
        (one[i : i + _CHUNK, :, None] == two[i : i + _CHUNK, None, :]).sum(axis=(1, 2))
        for i in range(0, len(one), _CHUNK)
    ]
    return np.concatenate([np.zeros(0, dtype=np.int64), *found])


def rescaled(score: np.ndarray) -> np.ndarray:
    """Scores (a,) from their 1 % and 90 % quantiles to 0 and 1, cut off there; 1 where the quantiles are one."""
    low, high = np.quantile(score, QUANTILES)
    return np.clip((score - low) / (high - low), 0, 1) if high > low else np.ones(len(score))


def anchor_weights(
    distance: np.ndarray, near: np.ndarray, source: np.ndarray, which: np.ndarray, score: np.ndarray, n: int, sd: float
) -> tuple[sparse.csr_matrix, int]:
    """Weights (c, n) of reference cells in target cells, with rows that sum to 1, and how many cells weigh evenly.

    A neighbour may be in several anchors; only the first k anchors of a target cell count, nearest first.

    Parameters
    ----------
    distance, near
        (c, k) distances and numbers, below u, of the target cells in anchors that are nearest, nearest first.
    source, which, score
        (a,) reference row, number of the target cell and score of each anchor.
    """
    order = np.argsort(which, kind="stable")
    source, score = source[order], score[order]
    size = np.bincount(which)  # (u,) anchors of each target cell
    start = np.cumsum(size) - size
    made = list(_weights(distance, near, source, score, size, start, n, sd))
    return sparse.vstack([w for w, _ in made], format="csr"), sum(even for _, even in made)


def _weights(
    distance: np.ndarray,
    near: np.ndarray,
    source: np.ndarray,
    score: np.ndarray,
    size: np.ndarray,
    start: np.ndarray,
    n: int,
    sd: float,
) -> Iterator[tuple[sparse.csr_matrix, int]]:
    """`anchor_weights` of a chunk of target cells at a time; anchors lie ordered by target cell."""
    for i in range(0, len(distance), _CHUNK):
        d, at = distance[i : i + _CHUNK], near[i : i + _CHUNK].ravel()  # (b, k), (b · k,)
        closeness = 1 - d / np.where(d[:, -1:] > 0, d[:, -1:], 1.0)
        many = size[at]  # anchors of each neighbour, 1 or more
        ends = np.cumsum(many)
        first = np.concatenate([[0], ends.reshape(d.shape)[:-1, -1]])  # (b,) where the anchors of a target cell begin
        kept = (first[:, None] + np.arange(d.shape[1])).ravel()
        anchor = (np.repeat(start[at] - (ends - many), many) + np.arange(ends[-1]))[kept].reshape(d.shape)
        near_by = np.repeat(closeness.ravel(), many)[kept].reshape(d.shape)
        weight = -np.expm1(-near_by * score[anchor] * (sd / 2) ** 2)
        total = weight.sum(axis=1, keepdims=True)
        weight = np.where(total > 0, weight, 1.0) / np.where(total > 0, total, d.shape[1])
        rows = np.arange(len(d) + 1) * d.shape[1]
        made = sparse.csr_matrix((weight.ravel(), source[anchor].ravel(), rows), shape=(len(d), n))
        yield made, int((total <= 0).sum())
