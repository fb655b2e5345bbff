"""Exact nearest neighbours of many cells among many, in chunks, and means over them.

Letters: c cells that ask, n cells that are looked among, d dimensions, k neighbours, b cells of a chunk, h genes.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

_SPARE = 16  # candidates more than asked for, which are ordered anew in float64
_CELLS = 2**25  # numbers of a chunk's table of similarities: 128 MiB in float32
_GATHERED = 2**24  # numbers of a chunk's candidates in float64: 128 MiB
_LEAST = 1e-300  # length of a vector that is divided by
_GENES = 256  # genes that are averaged at a time


def nearest(
    queries: np.ndarray, keys: np.ndarray, k: int, *, metric: Literal["euclidean", "cosine"]
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest keys of every query: distances (c, k) float64 and rows (c, k) int64, nearest first, ties by row.

    Candidates are found by matrix products in float32 and ordered by distances in float64. Where float32 cannot tell
    the last neighbour from those left out, the cell is looked up again in float64, so the result is exact; differences
    below 2^-40 of the length of the vectors count as ties there.

    Parameters
    ----------
    queries, keys
        (c, d) and (n, d).
    k
        At most n are given.
    metric
        ``cosine`` is 1 - cosine similarity; a row of zeros is at 1 from everything.
    """
    k = min(k, len(keys))
    x, y = (torch.from_numpy(np.ascontiguousarray(part, dtype=np.float64)) for part in (queries, keys))
    if metric == "cosine":
        x, y = _unit(x), _unit(y)
        among = _Among(y, y.T, y.T.float(), "cosine")
    else:
        middle = y.mean(dim=0)  # distances between large numbers would lose their digits
        x, y = x - middle, y - middle
        # (x, 1) · (y, -|y|² / 2) orders keys as the distance does.
        table = torch.cat([y, -y.square().sum(dim=1, keepdim=True) / 2], dim=1).T
        among = _Among(y, table, table.float(), "euclidean")
    rows = max(1, min(_CELLS // len(keys), _GATHERED // ((k + _SPARE) * max(1, x.shape[1]))))
    found = [_chunk(x[i : i + rows], among, k) for i in range(0, len(x), rows)]
    if not found:
        return np.empty((0, k)), np.empty((0, k), dtype=np.int64)
    return torch.cat([f[0] for f in found]).numpy(), torch.cat([f[1] for f in found]).numpy()


class _Among(NamedTuple):
    """Keys (n, d), and the tables (d or d + 1, n) in float64 and float32 that queries are multiplied with."""

    keys: Tensor
    table: Tensor
    rough: Tensor
    metric: str


def _unit(x: Tensor) -> Tensor:
    length = x.norm(dim=1, keepdim=True)
    return x / torch.where(length > 0, length, 1.0)


def _chunk(x: Tensor, among: _Among, k: int) -> tuple[Tensor, Tensor]:
    """Distances and rows (b, k) of queries (b, d)."""
    n = len(among.keys)
    wide = min(n, k + _SPARE)
    wider = x if among.metric == "cosine" else torch.nn.functional.pad(x, (0, 1), value=1.0)
    near = (wider.float() @ among.rough).topk(wide, dim=1)
    distance, index = _ordered(x, near.indices, among)
    if wide < n:
        size = wider.norm(dim=1) * among.table.norm(dim=0).max()
        # Twice the bound on the rounding of a product of d terms: what lies within it of the k-th may be nearer.
        slack = (wider.shape[1] + 4) * torch.finfo(torch.float32).eps * size  # (b,)
        close = (near.values[:, k - 1] - near.values[:, -1]).double() <= slack
        for rows in torch.nonzero(close).squeeze(1).split(max(1, _CELLS // 4 // n)):
            # One whole number per pair, similarity first and then row, has no ties; it is below 2^63 for n below 2^23.
            steps = ((wider[rows] @ among.table) / size[rows, None].clamp(min=_LEAST) * 2**40).round().long()
            order = (steps * n - torch.arange(n)).topk(wide, dim=1).indices
            distance[rows], index[rows] = _ordered(x[rows], order, among)
    return distance[:, :k].contiguous(), index[:, :k].contiguous()


def _ordered(x: Tensor, index: Tensor, among: _Among) -> tuple[Tensor, Tensor]:
    """Candidates (b, k) in the order of their distance in float64, ties by row."""
    index = index.sort(dim=1).values
    candidates = among.keys[index]  # (b, k, d)
    if among.metric == "cosine":
        distance = 1 - (candidates * x[:, None, :]).sum(dim=2)
    else:
        distance = (candidates - x[:, None, :]).square().sum(dim=2).sqrt()
    order = distance.sort(dim=1, stable=True)
    return order.values, index.gather(1, order.indices)


def weighted_mean(weights: sparse.csr_matrix, values: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (c, h) float32 of `values` (n, h) under `weights` (c, n), whose rows sum to 1."""
    c, h = weights.shape[0], values.shape[1]
    mean, spread = np.empty((c, h), dtype=np.float32), np.empty((c, h), dtype=np.float32)
    rows = max(1, _CELLS // 4 // _GENES)
    by_gene = values.tocsc()
    for j in range(0, h, _GENES):
        dense = by_gene[:, j : j + _GENES].toarray()  # (n, up to _GENES)
        square = dense**2
        for i in range(0, c, rows):
            part = weights[i : i + rows]
            here = part @ dense
            mean[i : i + rows, j : j + _GENES] = here
            variance = part @ square - here**2
            # What is left of a difference of equal numbers is rounding, not spread.
            variance[variance < 1e-12 * here**2] = 0.0
            spread[i : i + rows, j : j + _GENES] = np.sqrt(variance)
    return mean, spread


def as_weights(index: np.ndarray, weight: np.ndarray, n: int) -> sparse.csr_matrix:
    """Rows (c, k) of neighbours and their weights (c, k) as a sparse matrix (c, n)."""
    c, k = index.shape
    return sparse.csr_matrix((weight.ravel(), index.ravel(), np.arange(c + 1) * k), shape=(c, n))
