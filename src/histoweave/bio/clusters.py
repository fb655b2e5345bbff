"""Leiden clusters of a section's spots, by the truth and by the prediction, and the mean expression in them.

``pip install 'histoweave[clusters]'`` brings the Leiden algorithm; everything else here works without it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.linalg import eigh

from histoweave._optional import needs
from histoweave.bio._part import Floats, checked

COUNTS_PER_SPOT = 1e4  # of the log-normalisation, as is usual
TOP_GENES, COMPONENTS, NEIGHBOURS = 2000, 30, 15  # common defaults: scanpy's number of genes and of neighbours
MIN_SPOTS = 30  # twice the neighbours: with fewer every spot is everybody's neighbour
_BLOCK = 2**22  # distances held at a time


def log_normalised(counts: Any) -> sparse.csr_matrix:
    """log(1 + counts per 10,000 of the spot), CSR (n, G); spots without counts stay 0."""
    table = sparse.csr_matrix(counts, dtype=np.float64, copy=True)
    total = np.asarray(table.sum(axis=1)).ravel()
    factor = np.divide(COUNTS_PER_SPOT, total, out=np.zeros_like(total), where=total > 0)
    table.data *= np.repeat(factor, np.diff(table.indptr))
    np.log1p(table.data, out=table.data)
    return table


def leiden(
    values: Any,
    *,
    resolution: float = 1.0,
    genes: int = TOP_GENES,
    components: int = COMPONENTS,
    neighbours: int = NEIGHBOURS,
    seed: int = 0,
) -> NDArray[np.int64]:
    """Leiden clusters of the spots of one section.

    The genes of highest variance → principal components → k nearest spots in them → a graph whose edges weigh by the
    neighbours that two spots share (Jaccard) → Leiden by modularity.

    Parameters
    ----------
    values
        (n, g), dense or sparse, without missing values, on a log scale: `log_normalised` counts, or predictions.
    resolution
        Higher gives more clusters.
    genes, components, neighbours
        At most that many of each.
    seed
        The same seed gives the same clusters.

    Returns
    -------
    (n,) int64; 0 is the largest cluster, equally large ones in the order of their first spot. All 0 where no gene varies.

    Raises
    ------
    ImportError
        Without the extra ``clusters``.
    ValueError
        Fewer than 30 spots, or missing values.
    """
    native = needs("graspologic_native", extra="clusters")
    n = values.shape[0]
    if n < MIN_SPOTS:
        raise ValueError(f"{n} spots are too few for clusters; at least {MIN_SPOTS} are needed")
    scores = principal_components(_most_variable(values, genes), components)
    if not scores.shape[1]:
        return np.zeros(n, dtype=np.int64)
    graph = shared_neighbours(scores, min(neighbours, n - 1))
    _, found = native.leiden_csr(
        graph.indptr.astype(np.int64), graph.indices.astype(np.int32), graph.data, n, resolution=resolution, seed=seed
    )
    return _by_size(np.fromiter((found[i] for i in range(n)), dtype=np.int64, count=n))


def _most_variable(values: Any, most: int) -> Floats:
    """The columns of highest variance, dense (n, at most `most`), in their order; those without any are left out."""
    if sparse.issparse(values):
        table = sparse.csc_matrix(values, dtype=np.float64)
        mean = np.asarray(table.mean(axis=0)).ravel()
        variance = np.asarray(table.multiply(table).mean(axis=0)).ravel() - mean**2
        level = mean
    else:
        table = np.asarray(values, dtype=np.float64)
        variance, level = table.var(axis=0), np.abs(table).max(axis=0, initial=0.0)
    if not np.isfinite(variance).all():
        raise ValueError(
            f"{int((~np.isfinite(variance)).sum())} genes have missing values; cluster on what was measured everywhere"
        )
    varies = variance > 1e-12 * np.square(np.maximum(level, 1e-300))
    best = np.argsort(-variance, kind="stable")[:most]
    kept = np.sort(best[varies[best]])
    return np.asarray(table[:, kept].toarray() if sparse.issparse(table) else table[:, kept])


def principal_components(values: Floats, most: int) -> Floats:
    """Scores (n, c) on the principal components of highest variance, through the smaller of the two Gram matrices."""
    n, g = values.shape
    wanted = min(most, n - 1, g)
    if wanted < 1:
        return np.zeros((n, 0))
    x = values - values.mean(axis=0)
    if n <= g:
        size, vectors = eigh(x @ x.T, subset_by_index=(n - wanted, n - 1))
        scores = vectors * np.sqrt(np.maximum(size, 0.0))
    else:
        size, vectors = eigh(x.T @ x, subset_by_index=(g - wanted, g - 1))
        scores = x @ vectors
    return np.ascontiguousarray(scores[:, ::-1][:, size[::-1] > 1e-12 * max(size[-1], 1e-300)])


def shared_neighbours(points: Floats, k: int) -> sparse.csr_matrix:
    """Symmetric graph of the k nearest points, weighed by the share of neighbours in common, CSR (n, n).

    Two points are joined if one is among the other's k nearest; the weight is |common| / |either| of their
    neighbourhoods, themselves included, so that it is above 0 for all that are joined.
    """
    n = len(points)
    norm = np.einsum("nd,nd->n", points, points)
    near = np.empty((n, k + 1), dtype=np.int64)
    step = max(1, _BLOCK // n)
    for at in range(0, n, step):
        rows = np.arange(at, min(at + step, n))
        apart = norm[None, :] - 2 * points[rows] @ points.T  # squared distance but for a constant of the row
        apart[np.arange(len(rows)), rows] = -np.inf  # a point belongs to its own neighbourhood, twins or not
        near[rows] = np.argpartition(apart, k, axis=1)[:, : k + 1]
    member = sparse.csr_matrix((np.ones(n * (k + 1)), near.ravel(), np.arange(0, n * (k + 1) + 1, k + 1)), shape=(n, n))
    joined = member.maximum(member.T)
    joined.setdiag(0)
    joined.eliminate_zeros()
    common = (member @ member.T).multiply(joined).tocsr()
    common.data = common.data / (2 * (k + 1) - common.data)
    common.sort_indices()
    return common


def _by_size(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Labels renumbered by falling size, equal sizes by their first spot."""
    _, first, inverse, size = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(size), dtype=np.int64)
    rank[np.lexsort((first, -size))] = np.arange(len(size))
    return rank[inverse]


# -- agreement of two clusterings -------------------------------------------------------------------------------------


def _contingency(a: ArrayLike, b: ArrayLike) -> Floats:
    x, y = np.asarray(a), np.asarray(b)
    if x.ndim != 1 or x.shape != y.shape or not len(x):
        raise ValueError(
            f"clusterings have shapes {x.shape} and {y.shape}; expected one label per spot in both, of one spot or more"
        )
    (names, i), (others, j) = np.unique(x, return_inverse=True), np.unique(y, return_inverse=True)
    flat = np.bincount(i * len(others) + j, minlength=len(names) * len(others))
    return flat.reshape(len(names), len(others)).astype(np.float64)


def adjusted_rand(a: ArrayLike, b: ArrayLike) -> float:
    """Adjusted Rand index (Hubert & Arabie 1985): 1 for the same clusters under any names, 0 on average by chance."""
    table = _contingency(a, b)

    def pairs(counts: Floats) -> float:
        return float((counts * (counts - 1) / 2).sum())

    both, rows, columns = pairs(table), pairs(table.sum(axis=1)), pairs(table.sum(axis=0))
    n = table.sum()
    chance = rows * columns / (n * (n - 1) / 2) if n > 1 else 0.0
    middle = (rows + columns) / 2
    return 1.0 if middle == chance else float((both - chance) / (middle - chance))


def normalised_mutual_information(a: ArrayLike, b: ArrayLike) -> float:
    """Mutual information over the mean of the two entropies; 1 where both clusterings are one cluster each.

    Not adjusted for chance: it grows with the number of clusters, so read it beside the adjusted Rand index.
    """
    table = _contingency(a, b)
    if min(table.shape) == 1:
        return float(table.shape == (1, 1))
    share = table / table.sum()
    rows, columns = share.sum(axis=1), share.sum(axis=0)
    filled = share > 0
    mutual = (share[filled] * np.log(share[filled] / np.outer(rows, columns)[filled])).sum()
    entropies = -(rows * np.log(rows)).sum() - (columns * np.log(columns)).sum()
    return float(np.clip(2 * mutual / entropies, 0.0, 1.0))


# -- expression in clusters -------------------------------------------------------------------------------------------


def cluster_means(
    truth: ArrayLike, pred: ArrayLike, labels: ArrayLike, genes: pd.Index, mask: ArrayLike | None = None
) -> pd.DataFrame:
    """Mean expression of every gene in every cluster, over its measured spots.

    Returns
    -------
    Long, one row per cluster and gene: cluster, gene, spots (measured), truth, prediction, error (prediction - truth) and
    the standard errors of the two means, truth_se and prediction_se (NaN for one spot; spots are neighbours, so these
    are too small). Means are NaN where nothing was measured.
    """
    x, y, seen = checked(truth, pred, mask)
    names, at = np.unique(np.asarray(labels), return_inverse=True)
    if at.shape != (len(x),) or len(genes) != x.shape[1]:
        raise ValueError(
            f"{at.shape} labels and {len(genes)} gene names for {x.shape} values; expected one per spot and gene"
        )
    inside = sparse.csr_array((np.ones(len(at)), (at, np.arange(len(at)))), shape=(len(names), len(at)))
    count = inside @ seen.astype(np.float64)  # (clusters, g)
    known = np.where(count > 0, count, np.nan)
    columns: dict[str, Floats] = {}
    for name, values in (("truth", x), ("prediction", y)):
        filled = np.where(seen, values, 0.0)
        mean = (inside @ filled) / known
        rest = np.where(seen, values - np.nan_to_num(mean)[at], 0.0)
        with np.errstate(invalid="ignore", divide="ignore"):  # one spot has no spread: 0 / 0 is the answer, NaN
            columns[name], columns[f"{name}_se"] = mean, np.sqrt((inside @ np.square(rest)) / (known - 1) / known)
    return pd.DataFrame(
        {
            "cluster": np.repeat(names, len(genes)),
            "gene": np.tile(genes.to_numpy(), len(names)),
            "spots": count.ravel().astype(np.int64),
            **{name: values.ravel() for name, values in columns.items()},
            "error": (columns["prediction"] - columns["truth"]).ravel(),
        }
    )


def cluster_error(means: pd.DataFrame, *, by: str = "gene") -> pd.DataFrame:
    """What a table of `cluster_means` says in short, one row per ``"gene"`` (over clusters) or ``"cluster"`` (over genes).

    Columns: bias (mean error), mae, rmse, and spread, the population sd of the true means: with an rmse as large as it
    nothing of the difference is known. Clusters count alike, however many spots they have.
    """
    if by not in ("gene", "cluster"):
        raise ValueError(f"by={by!r}; expected 'gene' or 'cluster'")
    known = means.dropna(subset=["error"])
    grouped = known.groupby(by, sort=False, observed=True)
    error = grouped["error"]
    return pd.DataFrame(
        {
            "bias": error.mean(),
            "mae": known["error"].abs().groupby(known[by], sort=False, observed=True).mean(),
            "rmse": np.sqrt(np.square(known["error"]).groupby(known[by], sort=False, observed=True).mean()),
            "spread": grouped["truth"].std(ddof=0),
        }
    )
