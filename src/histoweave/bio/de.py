"""Differential expression between two labels, on the truth and on the prediction, and how far the two agree.

Spots of a section are not independent, so p and q order genes and say nothing about other patients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import hypergeom, norm, spearmanr
from scipy.stats import t as student

from histoweave.bio._part import Floats, Mask, Part, centred, checked, fdr

Test = Literal["welch", "wilcoxon"]
MIN_SPOTS = 5  # of each label, measured; under it a gene is not tested
TOP = 20  # genes whose overlap is looked at
_LEAST_P = 1e-300  # a smaller p of one section would be an infinite deviate


@dataclass(frozen=True, slots=True)
class Contrast:
    """Two sets of spots: those that carry one label, and those that carry the other (or any other).

    Attributes
    ----------
    a, b
        Their names.
    is_a, is_b
        Which spots they are, (n,) each.
    """

    a: str
    b: str
    is_a: Mask
    is_b: Mask

    @property
    def testable(self) -> bool:
        """Whether both have enough spots."""
        return min(int(self.is_a.sum()), int(self.is_b.sum())) >= MIN_SPOTS


def contrast(labels: pd.Series, a: str | None = None, b: str | None = None) -> Contrast:
    """The spots of label `a` against those of `b`.

    Parameters
    ----------
    labels
        (n,), missing where a spot has none; such spots are in neither set.
    a
        By default the commonest label (the first by name of equally common ones).
    b
        By default all other labels.

    Raises
    ------
    ValueError
        No label at all, or a name that no spot carries.
    """
    known = labels.notna().to_numpy()
    names = labels.astype(str).to_numpy()
    counts = (
        pd.Series(names[known]).value_counts().sort_index(kind="stable").sort_values(ascending=False, kind="stable")
    )
    if counts.empty:
        raise ValueError(
            f"column {labels.name!r} labels none of the {len(labels)} spots; choose another column or section"
        )
    for name in (a, b):
        if name is not None and name not in counts.index:
            raise ValueError(f"no spot is labelled {name!r}; the labels are {', '.join(map(repr, counts.index[:8]))}")
    first = str(counts.index[0]) if a is None else a
    is_a = known & (names == first)
    is_b = known & (names != first) if b is None else known & (names == b)
    others = [str(name) for name in counts.index if name != first]
    rest = others[0] if len(others) == 1 else "all others"
    return Contrast(first, rest if b is None else b, is_a, is_b)


def differential(
    values: ArrayLike,
    is_a: Mask,
    is_b: Mask,
    *,
    genes: pd.Index | None = None,
    mask: ArrayLike | None = None,
    test: Test = "welch",
) -> pd.DataFrame:
    """Each gene's difference between two sets of spots.

    Parameters
    ----------
    values
        (n, g).
    is_a, is_b
        (n,) boolean, without a common spot.
    mask
        (n, g), True = measured; None = what is not NaN.
    test
        ``welch``: the t-test without equal variances. ``wilcoxon``: the rank-sum test, normal approximation with the
        correction for ties, without one for continuity.

    Returns
    -------
    g rows: effect (mean of a - mean of b), statistic (positive where a is higher), p two-sided, q (Benjamini–Hochberg).
    Genes that do not vary over the spots compared, or with fewer than 5 in a set, have NaN but for the effect.
    """
    x, _, seen = checked(values, np.zeros(np.shape(values)), mask)
    a, b = np.asarray(is_a, dtype=bool), np.asarray(is_b, dtype=bool)
    if a.shape != (len(x),) or b.shape != (len(x),) or (a & b).any():
        raise ValueError(
            f"the two sets have shapes {a.shape} and {b.shape} and {int((a & b).sum()) if a.shape == b.shape else '?'} "
            f"common spots; expected ({len(x)},) each and none in common"
        )
    if test not in ("welch", "wilcoxon"):
        raise ValueError(f"test={test!r}; expected 'welch' or 'wilcoxon'")
    rows = a | b
    x, seen, first = x[rows], seen[rows], a[rows]
    in_a, in_b = seen & first[:, None], seen & ~first[:, None]
    n_a, n_b = in_a.sum(axis=0).astype(np.float64), in_b.sum(axis=0).astype(np.float64)
    z, varies = centred(x, seen)
    usable = varies & (np.minimum(n_a, n_b) >= MIN_SPOTS)
    statistic, p = (_welch if test == "welch" else _wilcoxon)(z, in_a, in_b)
    table = pd.DataFrame(
        {
            "effect": np.where(np.minimum(n_a, n_b) > 0, _mean(z, in_a) - _mean(z, in_b), np.nan),
            "statistic": np.where(usable, statistic, np.nan),
            "p": np.where(usable, p, np.nan),
        },
        index=None if genes is None else pd.Index(genes, name="gene"),
    )
    table["q"] = fdr(table["p"].to_numpy())
    return table


def _mean(z: Floats, inside: Mask) -> Floats:
    return np.where(inside, z, 0.0).sum(axis=0) / np.maximum(inside.sum(axis=0), 1)


def _welch(z: Floats, in_a: Mask, in_b: Mask) -> tuple[Floats, Floats]:
    """Welch's t and its two-sided p, (g,) each; an exact separation without any spread is infinite."""

    def error(inside: Mask) -> tuple[Floats, Floats]:
        n = inside.sum(axis=0).astype(np.float64)
        free = np.maximum(n - 1, 1)
        spread = np.where(inside, np.square(z - _mean(z, inside)), 0.0).sum(axis=0) / free
        return spread / np.maximum(n, 1), free

    (error_a, free_a), (error_b, free_b) = error(in_a), error(in_b)
    total = error_a + error_b
    safe = np.where(total > 0, total, 1.0)
    gap = _mean(z, in_a) - _mean(z, in_b)
    t = np.where(total > 0, gap / np.sqrt(safe), np.copysign(np.inf, gap))
    weight = np.square(error_a) / free_a + np.square(error_b) / free_b
    freedom = np.square(safe) / np.where(weight > 0, weight, 1.0)
    return t, np.where(np.isinf(t), 0.0, 2 * student.sf(np.abs(t), freedom))


def _wilcoxon(z: Floats, in_a: Mask, in_b: Mask) -> tuple[Floats, Floats]:
    """Rank-sum z with ties and its two-sided p, (g,) each."""
    ranks, tied = midranks(z, in_a | in_b)
    n_a, n_b = in_a.sum(axis=0).astype(np.float64), in_b.sum(axis=0).astype(np.float64)
    n = np.maximum(n_a + n_b, 2.0)
    above = np.where(in_a, ranks, 0.0).sum(axis=0) - n_a * (n + 1) / 2
    variance = n_a * n_b / 12 * (n + 1 - tied / (n * (n - 1)))
    found: Floats = above / np.sqrt(np.where(variance > 0, variance, 1.0))
    return found, 2 * norm.sf(np.abs(found))


def midranks(values: Floats, mask: Mask) -> tuple[Floats, Floats]:
    """Ranks 1 … of each column's measured entries, ties on their average (n, g), and Σ(t³ - t) over its ties, (g,)."""
    n, g = values.shape
    x = np.where(mask, values, np.inf).T  # (g, n); what was not measured is ranked last, where it moves nobody
    order = np.argsort(x, axis=1, kind="stable")
    ascending = np.take_along_axis(x, order, axis=1).ravel()
    starts = np.ones(g * n, dtype=bool)
    np.not_equal(ascending[1:], ascending[:-1], out=starts[1:])
    starts[::n] = True
    start = np.flatnonzero(starts)
    length = np.diff(start, append=g * n).astype(np.float64)
    ranks = np.empty((g, n))
    middle = np.repeat(start % n + (length + 1) / 2, length.astype(np.int64)).reshape(g, n)
    np.put_along_axis(ranks, order, middle, axis=1)
    real = np.isfinite(ascending[start])
    tied = np.bincount(start // n, weights=np.where(real, length**3 - length, 0.0), minlength=g)
    return ranks.T, tied.astype(np.float64)


def auc(scores: ArrayLike, is_a: Mask, is_b: Mask) -> float:
    """Probability that a spot of `a` scores above one of `b`, ties half; NaN where a set has no scored spot."""
    x = np.asarray(scores, dtype=np.float64)
    known = np.isfinite(x)
    a, b = is_a & known, is_b & known
    if not a.any() or not b.any():
        return float("nan")
    ranks, _ = midranks(x[:, None], (a | b)[:, None])
    n_a, n_b = int(a.sum()), int(b.sum())
    return float((ranks[a, 0].sum() - n_a * (n_a + 1) / 2) / (n_a * n_b))


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far the differential expression of a prediction is that of the truth.

    Attributes
    ----------
    genes, top
        Genes tested on the truth; how many were taken from each list.
    common
        Genes on both lists of `top`, by absolute statistic.
    by_chance
        How many two lists drawn at random would share: top² / genes.
    p
        Hypergeometric probability of at least `common`.
    same_sign
        Of the common genes, the share with the same direction; NaN without any.
    effect_spearman
        Rank correlation of the effects over all genes tested on the truth.
    """

    genes: int
    top: int
    common: int
    by_chance: float
    p: float
    same_sign: float
    effect_spearman: float


def agreement(truth: pd.DataFrame, pred: pd.DataFrame, *, top: int = TOP) -> Agreement:
    """Compares two tables of `differential` on the same genes.

    Lists are by absolute statistic among the genes tested on the truth; a gene that the prediction leaves constant comes
    last. `top` is cut to half of those genes: longer lists overlap whatever they hold.

    Notes
    -----
    The chance level takes genes for exchangeable. Co-expressed genes are not, so `p` is smaller than it should be.
    """
    if not truth.index.equals(pred.index):
        raise ValueError(f"the tables have {len(truth)} and {len(pred)} genes in different order; give the same genes")
    if top < 1:
        raise ValueError(f"top={top}; expected 1 or more")
    tested = truth["p"].notna()
    t, p = truth[tested], pred[tested]
    n, size = len(t), min(top, len(t) // 2)
    if size == 0:
        nan = float("nan")
        return Agreement(n, 0, 0, nan, nan, nan, nan)
    best_t = _best(t["statistic"], size)
    best_p = _best(p["statistic"], size)
    both = best_t.intersection(best_p, sort=False)
    moves = bool((p["effect"].max() - p["effect"].min()) > 0)
    same = np.sign(t.loc[both, "effect"]) == np.sign(p.loc[both, "effect"])
    return Agreement(
        genes=n,
        top=size,
        common=len(both),
        by_chance=size * size / n,
        p=float(hypergeom.sf(len(both) - 1, n, size, size)),
        same_sign=float(same.mean()) if len(both) else float("nan"),
        effect_spearman=float(spearmanr(t["effect"], p["effect"]).statistic) if moves else float("nan"),
    )


def _best(statistic: pd.Series, size: int) -> pd.Index:
    """The genes of the largest absolute statistic, ties in their order; constant ones are on no list."""
    ranked = statistic.abs().dropna().sort_values(ascending=False, kind="stable")
    return ranked.index[:size]


def combined(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Differences over several sections together, from the tables of `differential` of each.

    Parameters
    ----------
    tables
        Section → table, by gene; genes that a section lacks or could not test are left out there.

    Returns
    -------
    One row per gene, in the order in which they come: effect (mean over the sections that tested it), statistic
    (Stouffer's Z: the sections' two-sided p as signed normal deviates, their sum over the root of their number), p, q,
    sections (how many tested it), same_sign (share of them with the sign of the mean effect).

    Raises
    ------
    ValueError
        No table.

    Notes
    -----
    Every section counts alike, whatever its spots, and differences between sections have no part in it. Spots of a
    section and sections of a patient are not independent, so p orders genes and says nothing about other patients.
    """
    if not tables:
        raise ValueError("there is no table of a section to combine; give one or more")
    genes = pd.Index(dict.fromkeys(gene for table in tables.values() for gene in table.index), name="gene")
    each = [table.reindex(genes) for table in tables.values()]
    effect, statistic, p = (
        np.stack([t[name].to_numpy(np.float64) for t in each]) for name in ("effect", "statistic", "p")
    )
    told = ~np.isnan(p)  # (s, g)
    number = told.sum(axis=0)
    deviate = np.where(told, np.sign(statistic) * norm.isf(np.clip(p / 2, _LEAST_P, 0.5)), 0.0)
    usable = number > 0
    mean = np.divide(np.where(told, effect, 0.0).sum(axis=0), number, out=np.full(len(genes), np.nan), where=usable)
    z = np.divide(deviate.sum(axis=0), np.sqrt(number), out=np.full(len(genes), np.nan), where=usable)
    same = ((np.sign(effect) == np.sign(mean)) & told).sum(axis=0)
    table = pd.DataFrame({"effect": mean, "statistic": z, "p": 2 * norm.sf(np.abs(z))}, index=genes)
    table["q"] = fdr(table["p"].to_numpy())
    table["sections"] = number
    table["same_sign"] = np.divide(same, number, out=np.full(len(genes), np.nan), where=usable)
    return table


def differential_of(part: Part, sets: Contrast, *, test: Test = "welch") -> tuple[pd.DataFrame, pd.DataFrame]:
    """`differential` on the truth and on the prediction of one section, over the same spots of each gene."""
    seen = part.measured
    truth = differential(part.truth, sets.is_a, sets.is_b, genes=part.genes, mask=seen, test=test)
    pred = differential(part.pred, sets.is_a, sets.is_b, genes=part.genes, mask=seen, test=test)
    return truth, pred
