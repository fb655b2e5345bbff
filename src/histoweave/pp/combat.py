"""ComBat without covariates: shift and scale of each batch and gene, shrunken over the genes of the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

_TOLERANCE = 1e-8  # of shift (in standard deviations) and of the variance's ratio; that of the original is 1e-4
_ROUNDS = 1000  # the steps shrink by a constant factor, so tens suffice; a bound all the same


@dataclass(frozen=True, slots=True)
class Prior:
    """Normal prior of shifts (mean, variance) and inverse-gamma prior of variances (shape, rate) over genes.

    An infinite shape stands for variances that do not vary: all are `typical` then, which is their mean.
    """

    mean: float
    variance: float
    shape: float
    rate: float
    typical: float


@dataclass(frozen=True, slots=True, eq=False)
class Combat:
    """What ComBat learnt from the training spots. Build it with `fit`.

    Attributes
    ----------
    batches
        Names of the batches, sorted.
    mean, sd
        Grand mean and pooled standard deviation of each gene (g,), float64; `sd` is 0 for genes that do not vary.
    shift, variance
        Shrunken shift and variance of each batch and gene (batches, g), in units of `sd` and of its square.
    new
        Prior for a batch that was not there, None where one batch says nothing about how batches differ.
    note
        What the caller should know, "" where there is nothing.

    Notes
    -----
    Johnson, Li & Rabinovic, Biostatistics 8, 118 (2007), parametric form. Empirical priors by moments, one normal and
    one inverse-gamma per batch; conditional posterior means in turn until they stand.

    **Differences from the authors' code.** The original (and scanpy's and pyComBat's port of it) fails or gives NaN for
    a single batch, a batch of one spot, or genes without variance. Here a single batch is returned as it is; a batch of
    one spot gets a shift and no scale; genes that vary nowhere are returned as they are and take no part in the priors
    (in scanpy they do, with a shift and a variance of 0); a gene that is constant within one batch counts with a
    variance of 0 there, as in scanpy. Iterations end at changes below 1e-8 rather than 1e-4. Missing entries can be
    left out of every estimate, and a new batch can be adjusted without being fitted.
    """

    batches: tuple[str, ...]
    mean: np.ndarray
    sd: np.ndarray
    shift: np.ndarray
    variance: np.ndarray
    new: Prior | None
    note: str = ""

    @classmethod
    def fit(cls, values: np.ndarray, batch: Sequence[Any] | np.ndarray, seen: np.ndarray | None = None) -> Combat:
        """Learn from training spots.

        Parameters
        ----------
        values
            Log expression (n, g), finite.
        batch
            Batch of each spot (n,): names or numbers.
        seen
            Entries that count (n, g), bool; all where None.

        Raises
        ------
        ValueError
            Shapes that do not agree, values that are not finite, a mask that is not bool, a batch without a name.
        """
        values, seen = _checked(values, seen)
        names, at = _batches(batch, len(values))
        size, centre, spread = _per_batch(values, seen, at, len(names))  # (batches, g) each
        total = size.sum(axis=0)
        mean = (size * centre).sum(axis=0) / np.maximum(total, 1)
        pooled = spread.sum(axis=0) / np.maximum(total, 1)
        # What is left of a constant after taking its mean off is rounding, not variance.
        sd = np.where(pooled > (1e-12 * np.abs(mean)) ** 2, np.sqrt(pooled), 0.0)
        shift, variance = np.zeros_like(size), np.ones_like(size)
        if len(names) == 1:
            note = f"all spots are of one batch ({names[0]!r}), so values are returned as they are"
            return cls(names, mean, sd, shift, variance, None, note)
        first, second = _standardized(size, centre, spread, mean, sd)
        for b in range(len(names)):
            prior = _prior(first[b], second[b])
            shift[b], variance[b] = _shrunken(size[b], first[b], second[b], prior)
        return cls(names, mean, sd, shift, variance, _prior(first.ravel(), second.ravel()))

    def transform(self, values: np.ndarray, batch: Sequence[Any] | np.ndarray) -> np.ndarray:
        """Adjusted values (n, g) of spots of batches that were fitted, in the type of `values`.

        Raises
        ------
        ValueError
            A batch that was not fitted, another number of genes, values that are not finite.
        """
        table = self._genes(values)
        names, at = _batches(batch, len(table))
        unknown = sorted(set(names) - set(self.batches))
        if unknown:
            raise ValueError(
                f"batches {unknown} were not fitted (there are {list(self.batches)}); adjust them with `transform_new`"
            )
        row = np.array([self.batches.index(name) for name in names], dtype=np.int64)[at]
        return self._apply(values, table, self.shift[row], self.variance[row])

    def transform_new(self, values: np.ndarray, seen: np.ndarray | None = None) -> np.ndarray:
        """Adjusted values (n, g) of one batch that was not fitted, in the type of `values`.

        Its shift and scale are estimated from its own entries, against grand mean, pooled variance and priors of the
        training spots. The prior is that over all genes and batches of the training spots. Where these are of one
        batch, which says nothing about how batches differ, values are returned as they are.

        Parameters
        ----------
        values
            (n, g), finite. All entries are adjusted.
        seen
            Entries that the estimates may look at (n, g), bool; all where None.

        Raises
        ------
        ValueError
            Another number of genes, values that are not finite, a mask of another shape.
        """
        table, seen = _checked(self._genes(values), seen)
        if self.new is None:
            return np.array(values)
        size, centre, spread = _per_batch(table, seen, np.zeros(len(table), dtype=np.int64), 1)
        first, second = _standardized(size, centre, spread, self.mean, self.sd)
        shift, variance = _shrunken(size[0], first[0], second[0], self.new)
        return self._apply(values, table, shift, variance)

    def _genes(self, values: np.ndarray) -> np.ndarray:
        table = _checked(values, None)[0]
        if table.shape[1] != len(self.mean):
            raise ValueError(f"values have {table.shape[1]} genes, but ComBat was fitted to {len(self.mean)}")
        return table

    def _apply(self, given: np.ndarray, table: np.ndarray, shift: np.ndarray, variance: np.ndarray) -> np.ndarray:
        """`shift` and `variance` are (n, g) or (g,)."""
        given = np.asarray(given)
        kind = given.dtype if np.issubdtype(given.dtype, np.floating) else np.dtype(np.float64)
        varies = self.sd > 0
        if self.new is None or not varies.any():
            return given.astype(kind)
        z = (table - self.mean) / np.where(varies, self.sd, 1.0)
        adjusted = (z - shift) / np.sqrt(variance) * self.sd + self.mean
        return np.where(varies, adjusted, table).astype(kind)


def _checked(values: Any, seen: Any) -> tuple[np.ndarray, np.ndarray]:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or not np.isfinite(values).all():
        bad = f"{int((~np.isfinite(values)).sum())} that are NaN or infinite"
        raise ValueError(f"values have shape {values.shape}, with {bad}; expected finite numbers (n, g)")
    seen = np.ones(values.shape, dtype=bool) if seen is None else np.asarray(seen)
    if seen.shape != values.shape or seen.dtype != bool:
        raise ValueError(f"the mask has shape {seen.shape} and type {seen.dtype}; expected bool {values.shape}")
    return values, seen


def _batches(batch: Sequence[Any] | np.ndarray, n: int) -> tuple[tuple[str, ...], np.ndarray]:
    """Names, sorted, and the position of each spot's (n,)."""
    given = list(batch)
    if len(given) != n:
        raise ValueError(f"{len(given)} batch names were given for {n} spots")
    nameless = int(pd.isna(np.array(given, dtype=object)).sum())
    if nameless:
        raise ValueError(f"{nameless} spots have no batch; name the batch of every spot")
    names, at = np.unique(np.array([str(name) for name in given], dtype=object), return_inverse=True)
    if not len(names):
        raise ValueError("there are no spots to adjust")
    return tuple(names.tolist()), at


def _per_batch(
    values: np.ndarray, seen: np.ndarray, at: np.ndarray, batches: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Number, mean, and sum of squared deviations of the seen entries of each batch and gene: (batches, g) each."""
    size, centre, spread = np.zeros((3, batches, values.shape[1]))
    for b in range(batches):
        part, use = values[at == b], seen[at == b]
        size[b] = use.sum(axis=0)
        centre[b] = np.where(use, part, 0.0).sum(axis=0) / np.maximum(size[b], 1)
        spread[b] = np.where(use, (part - centre[b]) ** 2, 0.0).sum(axis=0)
    return size, centre, spread


def _standardized(
    size: np.ndarray, centre: np.ndarray, spread: np.ndarray, mean: np.ndarray, sd: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Shift and variance of each batch and gene in units of `sd`, NaN where too few entries tell them."""
    unit = np.where(sd > 0, sd, np.nan)
    shift = np.where(size > 0, (centre - mean) / unit, np.nan)
    return shift, np.where(size > 1, spread / np.maximum(size - 1, 1) / unit**2, np.nan)


def _prior(shift: np.ndarray, variance: np.ndarray) -> Prior:
    """Priors by moments of what is known."""
    shift, variance = shift[~np.isnan(shift)], variance[~np.isnan(variance)]
    mean, wide = (float(shift.mean()), float(shift.var())) if len(shift) else (0.0, 0.0)
    typical = float(variance.mean()) if len(variance) and variance.mean() > 0 else 1.0
    spread = float(variance.var(ddof=1)) if len(variance) > 1 else 0.0
    if spread <= (1e-12 * typical) ** 2:
        return Prior(mean, wide, np.inf, np.inf, typical)
    return Prior(mean, wide, 2 + typical**2 / spread, typical + typical**3 / spread, typical)


def _shrunken(size: np.ndarray, shift: np.ndarray, variance: np.ndarray, prior: Prior) -> tuple[np.ndarray, np.ndarray]:
    """Posterior shift and variance of one batch (g,), from the numbers of entries and the estimates of `_standardized`."""
    told = np.where(np.isnan(shift), prior.mean, shift)
    size = np.where(np.isnan(shift), 0.0, size)
    squares = np.where(np.isnan(variance), 0.0, variance * np.maximum(size - 1, 0))  # about the batch's own mean
    v = np.where(np.isnan(variance) | np.isinf(prior.shape), prior.typical, variance)
    s = told
    for _ in range(_ROUNDS):
        weight = prior.variance * size + v
        s_next = np.where(
            weight > 0, (prior.variance * size * told + v * prior.mean) / np.where(weight > 0, weight, 1.0), told
        )
        v_next = v
        if np.isfinite(prior.shape):
            v_next = (0.5 * (squares + size * (told - s_next) ** 2) + prior.rate) / (size / 2 + prior.shape - 1)
        still = np.abs(s_next - s).max(initial=0) <= _TOLERANCE and (np.abs(v_next - v) <= _TOLERANCE * v_next).all()
        s, v = s_next, v_next
        if still:
            break
    return s, v
