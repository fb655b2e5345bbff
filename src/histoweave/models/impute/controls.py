"""Controls: what a gene is on average, in cells alike, and by a linear rule, without any correction between assays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from scipy import sparse

from histoweave.batch import Card
from histoweave.models._checks import at_least, one_of
from histoweave.models.impute._imputed import LOG_SCALE, Imputed, Pair, log_normalised, moments
from histoweave.models.impute._nearest import as_weights, nearest, weighted_mean

PENALTIES = tuple(10.0**e for e in np.arange(-4, 4.5, 0.5))  # multiples of the mean eigenvalue of the features' scatter
_CHUNK = 4096  # cells that are made dense at a time


@dataclass(frozen=True, slots=True)
class GeneMean:
    """The mean of each gene over the reference, the same in every cell; its spread is that over the reference."""

    scale: ClassVar[str] = LOG_SCALE
    logarithmic: ClassVar[bool] = True
    card: ClassVar[Card] = Card(
        title="mean of the reference", citation="control", task="impute", learns="none", control=True
    )

    def __call__(
        self,
        reference: sparse.csr_matrix,
        seen: sparse.csr_matrix,
        *,
        seed: int = 0,
        groups: np.ndarray | None = None,
    ) -> Imputed:
        """Imputes (c, h) from counts (n, m + h) and (c, m); nothing is drawn and `groups` is not used."""
        pair = Pair.of(reference, seen)
        mean, sd = moments(pair.expression())
        return pair.finish(mean, sd, mean, sd)


@dataclass(frozen=True, slots=True)
class KnnExpression:
    """The mean over the `k` reference cells whose shared genes are most alike; its spread is that over the neighbours.

    Shared genes are compared as ln(1 + counts per 10,000 of the shared genes alone), so that totals over different panels
    do not enter.

    Parameters
    ----------
    k
        Neighbours. A reference with fewer cells gives all of them.
    metric
        ``cosine`` or ``euclidean``.
    """

    scale: ClassVar[str] = LOG_SCALE
    logarithmic: ClassVar[bool] = True
    card: ClassVar[Card] = Card(
        title="k nearest by expression", citation="control", task="impute", learns="retrieval", control=True, retrieves=True
    )  # fmt: skip

    k: int = 50
    metric: Literal["cosine", "euclidean"] = "cosine"

    def __post_init__(self) -> None:
        at_least("k", self.k, 1)
        one_of("metric", self.metric, ("cosine", "euclidean"))

    def __call__(
        self,
        reference: sparse.csr_matrix,
        seen: sparse.csr_matrix,
        *,
        seed: int = 0,
        groups: np.ndarray | None = None,
    ) -> Imputed:
        """Imputes (c, h) from counts (n, m + h) and (c, m); nothing is drawn and `groups` is not used."""
        pair = Pair.of(reference, seen)
        keys, target, expression = log_normalised(pair.shared()), log_normalised(pair.seen), pair.expression()
        found = [nearest(part, keys.toarray(), self.k, metric=self.metric)[1] for part in _dense(target)]
        index = np.concatenate(found)
        weight = np.full(index.shape, 1 / index.shape[1])
        made, spread = weighted_mean(as_weights(index, weight, keys.shape[0]), expression)
        return pair.finish(made, spread, *moments(expression), neighbours=index.shape[1])


@dataclass(frozen=True, slots=True)
class RidgeExpression:
    """A linear rule from the shared genes to each imputed one, learnt on the reference.

    Features are ln(1 + counts per 10,000 of the shared genes alone) about their means; the penalty of each gene is the
    one of 17 with the least generalised cross-validation error over the reference cells, which approximates leaving out
    one cell at a time. Penalties are multiples of the mean eigenvalue of the features' scatter. What falls below 0, which
    no value of this scale is, is set to 0. There is no spread.

    References
    ----------
    Golub GH, Heath M, Wahba G. Generalized cross-validation as a method for choosing a good ridge parameter.
    Technometrics 21:215-223 (1979).
    """

    scale: ClassVar[str] = LOG_SCALE
    logarithmic: ClassVar[bool] = True
    card: ClassVar[Card] = Card(
        title="ridge from shared genes", citation="control", task="impute", learns="closed-form", control=True
    )

    def __call__(
        self,
        reference: sparse.csr_matrix,
        seen: sparse.csr_matrix,
        *,
        seed: int = 0,
        groups: np.ndarray | None = None,
    ) -> Imputed:
        """Imputes (c, h) from counts (n, m + h) and (c, m); nothing is drawn and `groups` is not used."""
        pair = Pair.of(reference, seen)
        expression = pair.expression()
        mean, sd = moments(expression)
        made, penalty = _linear_rule(pair.shared(), expression, pair.seen)
        return pair.finish(made, None, mean, sd, median_relative_penalty=penalty)


@dataclass(frozen=True, slots=True)
class RidgeShares:
    """A linear rule from the shared genes to the share of each other gene: `RidgeExpression` on the scale of comparisons.

    A share is a cell's count of a gene over its counts of all genes that are not shared; reference cells without any are
    not learnt from. What falls below 0 is set to 0. There is no spread.
    """

    scale: ClassVar[str] = "share of the counts over the genes of the reference that are not shared"
    logarithmic: ClassVar[bool] = False
    card: ClassVar[Card] = Card(
        title="ridge from shared genes to shares", citation="control", task="impute", learns="closed-form", control=True
    )

    def __call__(
        self,
        reference: sparse.csr_matrix,
        seen: sparse.csr_matrix,
        *,
        seed: int = 0,
        groups: np.ndarray | None = None,
    ) -> Imputed:
        """Imputes (c, h) from counts (n, m + h) and (c, m); nothing is drawn and `groups` is not used."""
        pair = Pair.of(reference, seen)
        shares, has = pair.shares()
        made, penalty = _linear_rule(pair.shared()[has], shares, pair.seen)
        return pair.finish(made, None, *moments(shares), median_relative_penalty=penalty)


def _linear_rule(
    shared: sparse.csr_matrix, targets: sparse.csr_matrix, seen: sparse.csr_matrix
) -> tuple[np.ndarray, float]:
    """What ridge from counts (n, m) to targets (n, h) gives for counts (c, m), 0 or more; and the median penalty."""
    coef, intercept, penalty = ridge_gcv(log_normalised(shared), targets)
    made = np.concatenate([np.maximum(x @ coef + intercept, 0) for x in _dense(log_normalised(seen))])
    return made, float(np.median(penalty))


def ridge_gcv(
    features: sparse.csr_matrix, targets: sparse.csr_matrix, penalties: tuple[float, ...] = PENALTIES
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ridge from features (n, m) to every target (n, h), each at the penalty of least generalised cross-validation error.

    With the scatter about the means XᵀX = V diag(S) Vᵀ and a penalty α, the fit takes 1 + Σ S / (S + α) degrees of
    freedom, and the error is RSS / (1 - freedom / n)², all from sums over cells: no cell is looked at twice. A target or
    a feature without spread has coefficients of 0.

    Returns
    -------
    coef, intercept, penalty
        (m, h), (h,), and (h,) as a multiple of the mean eigenvalue.
    """
    n, m = features.shape
    x_mean, _ = moments(features)
    y_mean, y_sd = moments(targets)
    gram, cross = np.zeros((m, m)), np.zeros((m, targets.shape[1]))
    for start, x in zip(range(0, n, _CHUNK), _dense(features), strict=True):
        x = x - x_mean
        gram += x.T @ x
        cross += (targets[start : start + _CHUNK].T @ x).T - x.sum(axis=0)[:, None] * y_mean
    values, vectors = np.linalg.eigh(gram)
    values = values.clip(min=0)
    turned = vectors.T @ cross  # (m, h)
    unit = values.mean() if values.mean() > 0 else 1.0
    best, chosen = np.full(targets.shape[1], np.inf), np.full(targets.shape[1], penalties[-1])
    for relative in penalties:
        shrunk = 1 / (values + relative * unit)  # (m,)
        residual = n * y_sd**2 - (2 * shrunk - values * shrunk**2) @ turned**2  # (h,)
        freedom = 1 + values @ shrunk
        if freedom >= n:
            continue
        error = residual.clip(min=0) / (1 - freedom / n) ** 2
        better = error < best
        best[better], chosen[better] = error[better], relative
    coef = vectors @ (turned / (values[:, None] + chosen * unit))
    return coef, y_mean - x_mean @ coef, chosen


def _dense(values: sparse.csr_matrix) -> Iterator[np.ndarray]:
    """Rows (b, m), a chunk at a time."""
    for start in range(0, values.shape[0], _CHUNK):
        yield values[start : start + _CHUNK].toarray()
