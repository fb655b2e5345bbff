"""Differences between models, tested with the patient as the unit.

Spots and sections of one patient are not independent, so nothing here counts them: values are averaged to one number
per patient (seeds first) and the signs of the patients' differences are flipped. With few patients no test can be
passed, and that is said.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student

from histoweave.bench._genewise import rounding
from histoweave.bench.metrics import LOWER_IS_BETTER, check_rows, per_unit

Floats = NDArray[np.float64]

MIN_PATIENTS = 6  # below it even unanimous differences give p >= 2/2**5 = 0.0625
_EXACT_UP_TO = 16  # patients; 2**15 sums
_CHUNK = 2**22  # elements of one chunk of random signs or permutations


@dataclass(frozen=True, slots=True)
class SignFlip:
    """Outcome of `sign_flip`. `str()` is the sentence to print; it says "not testable" where that is so.

    `p` and `p_min` (the smallest p this design can reach) are NaN when not `testable`; `exact` is False for random
    draws.
    """

    n: int
    mean: float
    p: float
    p_min: float
    testable: bool
    exact: bool

    def __str__(self) -> str:
        if not self.testable:
            return f"not testable (n = {self.n} patients, at least {MIN_PATIENTS} needed)"
        how = "exact" if self.exact else "Monte Carlo"
        return (
            f"{self.mean:+.4f}, p = {self.p:.4g} ({how} sign flip, n = {self.n} patients, smallest p {self.p_min:.2g})"
        )


def sign_flip(
    differences: ArrayLike, *, min_patients: int = MIN_PATIENTS, draws: int = 100_000, seed: int = 0
) -> SignFlip:
    """Two-sided sign-flip test that paired differences, one per patient, are symmetric around 0.

    `differences` is (patients,), finite. Up to 16 patients all 2**n sign patterns are counted, so the test is exact and
    its smallest p is 2/2**n; beyond that `draws` random patterns and the identity are, seeded. Fewer than
    `min_patients`: not testable.
    """
    d = np.asarray(differences, dtype=np.float64)
    if d.ndim != 1 or not np.isfinite(d).all():
        raise ValueError(f"differences must be finite, one per patient, got shape {d.shape}: {d.ravel()[:5]}")
    n = len(d)
    mean = float(d.mean()) if n else float("nan")
    exact = n <= _EXACT_UP_TO
    if n < max(min_patients, 1):
        return SignFlip(n, mean, float("nan"), float("nan"), False, exact)
    # Patterns that tie with the observed one must count however their sums were rounded.
    bar = abs(d.sum()) - 1e-12 * np.abs(d).sum()
    if exact:
        sums = d[:1]  # the first sign stays: the other half of the patterns is the mirror image
        for value in d[1:]:
            sums = np.concatenate([sums + value, sums - value])
        return SignFlip(n, mean, float(np.mean(np.abs(sums) >= bar)), 2.0 / 2.0**n, True, True)
    rng, hits, step = np.random.default_rng(seed), 0, max(1, _CHUNK // n)
    for at in range(0, draws, step):
        signs = rng.integers(0, 2, size=(min(step, draws - at), n), dtype=np.int8) * 2.0 - 1.0
        hits += int((np.abs(signs @ d) >= bar).sum())
    return SignFlip(n, mean, (1 + hits) / (1 + draws), max(2.0 / 2.0**n, 1.0 / (1 + draws)), True, False)


def holm(p: ArrayLike) -> Floats:
    """Holm's step-down adjustment of p-values, same shape; NaN (not tested) stays NaN and does not count as a test."""
    p = np.asarray(p, dtype=np.float64)
    out = np.full(p.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    scaled = p[order] * np.arange(len(order), 0, -1)
    out[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return out


def _check_same_data(rows: pd.DataFrame, benchmark: Hashable) -> None:
    """Every model of a comparison saw the same values: same sections, same genes, same ones dropped."""
    keys = ["fold", "patient", "section", "gene"]
    values = rows.groupby([*keys, "model"], sort=False, observed=True)["value"].mean()
    seen = values.unstack("model").notna()
    uneven = seen.any(axis=1) & ~seen.all(axis=1)
    if uneven.any():
        first = seen.loc[uneven].iloc[0]
        where = dict(zip(keys, first.name, strict=True))
        raise ValueError(
            f"models of benchmark {benchmark!r} were scored on different data: {int(uneven.sum())} (section, gene) "
            f"values are missing for some, first {where} for {list(first.index[~first])}; compare models of one run"
        )


def compare(
    rows: pd.DataFrame,
    metric: str = "pcc",
    reference: str = "ridge",
    *,
    min_patients: int = MIN_PATIENTS,
    draws: int = 100_000,
    seed: int = 0,
) -> pd.DataFrame:
    """Each model against `reference`: mean over patients of the difference of `metric`, and its sign-flip test.

    Values are averaged to patients in the strict order (`per_unit`), over seeds, then paired. Holm's adjustment runs
    over the models of a benchmark. Where the test can be made, models come best difference first (``mse`` and its like:
    lowest first); where it cannot (fewer than `min_patients`), p-values are NaN, `note` reads "not testable …" and the
    order is that of the names: nothing is ranked.

    Columns: benchmark, model, reference, metric, difference, n_patients, p, p_holm, p_min, testable, exact, note.
    Raises ValueError when the reference is missing, or when models were scored on different patients, sections or
    genes.
    """
    chosen = check_rows(rows, metric)
    parts: list[pd.DataFrame] = []
    for benchmark, part in chosen.groupby("benchmark", sort=False, observed=True):
        names = sorted(str(name) for name in part["model"].unique())
        if reference not in names:
            raise ValueError(
                f"reference {reference!r} has no {metric!r} in benchmark {benchmark!r}; models there: {names}"
            )
        _check_same_data(part, benchmark)
        units = per_unit(part).groupby(["unit", "model"], observed=True)["value"].mean().unstack("model")
        units = units.dropna()  # a patient without one usable gene has no value for any model
        found = {
            name: sign_flip(units[name] - units[reference], min_patients=min_patients, draws=draws, seed=seed)
            for name in names
            if name != reference
        }
        table = pd.DataFrame(
            {
                "benchmark": benchmark,
                "model": list(found),
                "reference": reference,
                "metric": metric,
                "difference": [r.mean for r in found.values()],
                "n_patients": [r.n for r in found.values()],
                "p": [r.p for r in found.values()],
                "p_holm": holm([r.p for r in found.values()]),
                "p_min": [r.p_min for r in found.values()],
                "testable": [r.testable for r in found.values()],
                "exact": [r.exact for r in found.values()],
                "note": [str(r) for r in found.values()],
            }
        )
        if table["testable"].any():
            table = table.sort_values("difference", ascending=metric in LOWER_IS_BETTER, kind="stable")
        parts.append(table)
    return pd.concat(parts, ignore_index=True)


def mean_interval(values: ArrayLike, *, level: float = 0.95) -> tuple[float, float, float]:
    """Mean over patients and its two-sided Student-t interval: (mean, low, high).

    `values` is (patients,); NaN is left out. The sample sd (n - 1) is used, unlike in result tables, whose sd describes
    the patients seen. With one value the interval is NaN; it assumes roughly normal patient values and is wide for few
    of them.
    """
    x = np.asarray(values, dtype=np.float64).ravel()
    x = x[~np.isnan(x)]
    if not 0 < level < 1:
        raise ValueError(f"level is {level}, expected a number between 0 and 1")
    if len(x) < 2:
        return (float(x[0]) if len(x) else float("nan"), float("nan"), float("nan"))
    half = float(student.ppf((1 + level) / 2, len(x) - 1)) * float(x.std(ddof=1)) / float(np.sqrt(len(x)))
    return float(x.mean()), float(x.mean()) - half, float(x.mean()) + half


@dataclass(frozen=True, slots=True)
class PermutationNull:
    """Interval [low, high] of the mean PCC when nothing in a section is predicted; `observed` is the value itself."""

    low: float
    high: float
    observed: float
    level: float
    draws: int

    @property
    def inside(self) -> bool:
        """Whether the observed mean PCC is what chance gives."""
        return self.low <= self.observed <= self.high

    def __str__(self) -> str:
        word = "inside" if self.inside else "outside"
        return f"mean PCC {self.observed:+.4f} {word} the {self.level:.0%} null [{self.low:+.4f}, {self.high:+.4f}]"


def _unit_columns(values: NDArray[np.generic]) -> Floats:
    """Columns of (n, g) in float64, centred and scaled to norm 1; a constant column (as in `pearson`) becomes 0."""
    x = values.astype(np.float64)
    flat = np.ptp(x, axis=0) <= rounding(values.dtype) * np.abs(x).max(axis=0)
    x -= x.mean(axis=0)
    size = np.sqrt(np.einsum("ng,ng->g", x, x))
    return np.divide(x, size, out=np.zeros_like(x), where=~flat & (size > 0))


def _null_of_section(
    truth: NDArray[np.generic], pred: NDArray[np.generic], draws: int, rng: np.random.Generator
) -> Floats:
    """Mean PCC over genes for the identity and `draws` shuffles of rows, (1 + draws,); NaN without usable genes.

    With unit columns the gene mean of a shuffle is a sum of entries of one (n, n) product, so for more shuffles than
    spots that product (in column blocks) is cheaper than shuffling all genes each time.
    """
    t, p = _unit_columns(truth), _unit_columns(pred)  # (n, g)
    usable = np.einsum("ng,ng->g", t, t) > 0.5
    n, g = len(t), int(usable.sum())
    total = np.full(1 + draws, np.nan)
    if g == 0:
        return total
    t, p = t[:, usable], p[:, usable]
    order = np.tile(np.arange(n, dtype=np.int32), (1 + draws, 1))
    rng.permuted(order[1:], axis=1, out=order[1:])
    total[:] = 0.0
    if n > 4 * draws:
        for row in range(1 + draws):
            total[row] = np.einsum("ng,ng->", t[order[row]], p)
    else:
        step = max(1, _CHUNK // n)
        for at in range(0, n, step):
            product = t @ p[at : at + step].T  # (n, step)
            columns = np.arange(product.shape[1])
            for rows in np.array_split(np.arange(1 + draws), max(1, (1 + draws) * len(columns) // _CHUNK)):
                total[rows] += product[order[rows, at : at + step], columns].sum(axis=1)
    return total / g


def permutation_null(
    truth: ArrayLike,
    pred: ArrayLike,
    section_index: ArrayLike,
    *,
    patient_index: ArrayLike | None = None,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.99,
) -> PermutationNull:
    """Where the mean PCC lies when the spots of every section are shuffled, and where it is observed.

    `truth`, `pred` are (n, g), finite; `section_index` (n,) says which spots belong together. The interval is the
    central `level` of the shuffles; whole rows are shuffled, so genes keep their correlation with each other. The
    statistic is the mean over genes, sections and (with `patient_index` (n,)) patients. Neighbouring spots resemble
    each other, which shuffling removes: the interval is narrower than one from smooth maps would be.
    """
    t, p = np.asarray(truth), np.asarray(pred)
    section = np.asarray(section_index)
    patient = section if patient_index is None else np.asarray(patient_index)
    if t.ndim != 2 or t.shape != p.shape or not len(t) == len(section) == len(patient):
        raise ValueError(
            f"truth {t.shape}, prediction {p.shape} and indices ({len(section)}, {len(patient)}) must agree on spots"
        )
    if not (np.isfinite(t).all() and np.isfinite(p).all()):
        raise ValueError("truth and prediction must be finite: leave out spots without a measurement")
    if not 0 < level < 1 or draws < 1:
        raise ValueError(
            f"level is {level} and draws {draws}: expected a number between 0 and 1, and at least one draw"
        )
    rng = np.random.default_rng(seed)
    frames: dict[tuple[Hashable, Hashable], Floats] = {}
    for name in pd.unique(section):
        rows = section == name
        if len(owner := pd.unique(patient[rows])) != 1:
            raise ValueError(f"section {name!r} belongs to more than one patient: {list(owner)}")
        frames[owner[0], name] = _null_of_section(t[rows], p[rows], draws, rng)
    table = pd.DataFrame(frames).T  # (sections, 1 + draws)
    values = table.groupby(level=0).mean().mean(axis=0).to_numpy()
    if np.isnan(values).any():
        raise ValueError("no gene of the truth varies within any section: there is nothing to correlate")
    low, high = np.quantile(values[1:], [(1 - level) / 2, (1 + level) / 2])
    return PermutationNull(float(low), float(high), float(values[0]), level, draws)
