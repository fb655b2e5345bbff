"""Where spots lie to one another as features: the nearest spots of each, their fuzzy graph, and a basis of it.

Source: Anand et al., "Integrating Histology Imaging and Spatial Transcriptomics through Low-Dimensional Embeddings".
The basis of one section is not that of another: axes come in any order and direction, so what a model learns on one
does not carry over. It is here because the paper uses it.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import svds

from histoweave.pp.neighbors import knn

NEAREST = 15  # spots, the spot itself among them: the paper's, and how scanpy counts
WIDTH = 32  # of the basis, the paper's
_STEPS = 64  # halvings of the interval in which the width of a spot's kernel is sought


def nearest(xy: np.ndarray, k: int = NEAREST) -> np.ndarray:
    """The spot itself and its `k` - 1 nearest: int32 (n, k), ordered by distance, then by position; -1 for none.

    Of spots at one distance the one further up comes first, then further left: the order of the spots has no part in it.

    Parameters
    ----------
    xy
        Positions (n, 2), in any unit.
    """
    order = np.lexsort((xy[:, 0], xy[:, 1]))
    others = knn(xy[order], k - 1) if k > 1 else np.empty((len(xy), 0), np.int32)
    table = np.empty((len(xy), k), dtype=np.int32)
    table[order, 0] = order
    table[order, 1:] = np.where(others >= 0, order[others], -1)
    return table


def connectivities(xy: np.ndarray, k: int = NEAREST) -> sparse.csr_matrix:
    """Fuzzy graph of the nearest spots, as UMAP and scanpy weigh it: sparse (n, n), symmetric, within [0, 1].

    The weight falls with the distance beyond the nearest other spot, at a rate at which the weights of a spot sum to
    log2(k); both directions are joined by probabilistic or.
    """
    table = nearest(xy, k)[:, 1:]
    there = table >= 0
    far = np.where(there, np.linalg.norm(xy[table] - xy[:, None], axis=-1), np.inf)  # (n, k - 1)
    first = np.where(far > 0, far, np.inf).min(axis=1, initial=np.inf)
    beyond = np.maximum(far - np.where(np.isfinite(first), first, 0.0)[:, None], 0.0)
    low, high = np.zeros(len(xy)), np.full(len(xy), np.inf)
    width = np.ones(len(xy))
    for _ in range(_STEPS):
        total = np.exp(-beyond / width[:, None]).sum(axis=1)
        low, high = np.where(total > np.log2(k), low, width), np.where(total > np.log2(k), width, high)
        width = np.where(np.isinf(high), width * 2, (low + high) / 2)
    # A spot among equals would get a width of 0; UMAP's floor is a thousandth of the mean distance.
    mean = np.where(there, far, 0.0).sum(axis=1) / np.maximum(there.sum(axis=1), 1)
    weight = np.exp(-beyond / np.maximum(width, 1e-3 * np.maximum(mean, 1e-12))[:, None])
    rows = np.repeat(np.arange(len(xy)), there.sum(axis=1))
    one_way = sparse.csr_matrix((weight[there], (rows, table[there])), shape=(len(xy), len(xy)))
    both = one_way.multiply(one_way.T)
    return (one_way + one_way.T - both).tocsr()


def adjacency_basis(xy: np.ndarray, *, k: int = NEAREST, width: int = WIDTH, signed: bool = True) -> np.ndarray:
    """Truncated singular vectors of the fuzzy graph times their values: float32 (n, width), largest first.

    Sections with fewer spots than that are filled up with zeros.

    Parameters
    ----------
    xy
        Positions (n, 2), in any unit.
    signed
        Turn each vector so that its entry of largest size is positive; else its direction is left to the solver, as in
        the paper.
    """
    graph = connectivities(xy, k)
    n = len(xy)
    if n <= width + 1:
        u, s, _ = np.linalg.svd(graph.toarray())
        made = u * s
    else:
        u, s, _ = svds(graph.astype(np.float64), k=width, v0=np.ones(n))
        made = (u * s)[:, ::-1]
    made = made[:, :width]
    if signed:
        made = made * np.sign(made[np.abs(made).argmax(axis=0), np.arange(made.shape[1])])
    return np.pad(made, ((0, 0), (0, width - made.shape[1]))).astype(np.float32)
