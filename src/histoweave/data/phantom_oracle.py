"""What a phantom's expression lets anybody predict, given the spot, its 5 x 5 view, or the section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from histoweave.data.phantom import Phantom

View = Literal["spot", "context", "section"]
KNOWN: dict[str, tuple[str, ...]] = {
    "spot": ("local",),
    "context": ("local", "neighbourhood"),
    "section": ("local", "neighbourhood", "global"),
}  # families that lie wholly inside a view
RIDGE = (0.02, 0.2, 2.0)  # penalties per spot on standardised quadratic terms; the best out of fold is taken


def oracle_pcc(
    truth: Phantom, values: Mapping[str, np.ndarray], view: View, genes: Sequence[str] | None
) -> pd.DataFrame:
    """Per gene, the Pearson correlation of a view's conditional mean with the values; see `Phantom.oracle`."""
    if view not in get_args(View):
        raise ValueError(f"view {view!r} is unknown; expected one of {get_args(View)}")
    rules = truth.genes if genes is None else truth.genes.reindex(list(genes))
    if rules["family"].isna().any():
        raise ValueError(f"gene {rules.index[rules['family'].isna()][0]!r} is not a gene of this phantom")
    expected = _expected_factors(truth, view)
    rows, patients = [], []
    for section in truth.cohort:
        if section.id not in values:
            raise ValueError(f"no target values for section {section.id!r}; given: {sorted(values)}")
        y = np.asarray(values[section.id], dtype=np.float64)
        if y.shape != (section.n, len(rules)):
            raise ValueError(
                f"target values of section {section.id!r} have shape {y.shape}; expected spots x genes "
                f"{(section.n, len(rules))}; name a subset of genes with `genes`"
            )
        drive = expected[section.id].reindex(columns=rules["factor"]).fillna(0.0).to_numpy()
        guess = np.log1p(rules["mean"].to_numpy() * np.maximum(1 + rules["gain"].to_numpy() * drive, 0.0))
        ok = np.isfinite(y).all(axis=1)
        rows.append(_pearson(guess[ok], y[ok]))
        patients.append(section.patient)
    per_section = pd.DataFrame(np.array(rows), columns=rules.index)
    pcc = per_section.groupby(np.array(patients), sort=False).mean().mean()
    return pd.DataFrame({"family": rules["family"], "factor": rules["factor"], "pcc": pcc})


def _expected_factors(truth: Phantom, view: View) -> dict[str, pd.DataFrame]:
    """Per section, the conditional mean of every factor given the view's latents (n, factors)."""
    family = truth.genes.drop_duplicates("factor").set_index("factor")["family"]
    names = [f for f in next(iter(truth.factors.values())).columns if f in family.index]
    hidden = [f for f in names if family[f] not in KNOWN[view]]
    out = {id: table[names].copy() for id, table in truth.factors.items()}
    if not hidden:
        return out
    latents = truth.own if view == "spot" else truth.context
    fold, rows = [], []
    for i, section in enumerate(truth.cohort):
        far = np.argmax(np.ptp(section.xy, axis=0))
        half = section.xy[:, far] > np.median(section.xy[:, far])
        fold.append(half.astype(int) if len(truth.cohort) == 1 else np.full(section.n, i))
        rows.append(np.full(section.n, i))
    guess = _cross_fitted(
        np.concatenate([latents[s.id].to_numpy() for s in truth.cohort]),
        np.concatenate([truth.factors[s.id][hidden].to_numpy() for s in truth.cohort]),
        np.concatenate(fold),
    )
    section_of = np.concatenate(rows)
    for i, section in enumerate(truth.cohort):
        out[section.id][hidden] = guess[section_of == i]
    return out


def _cross_fitted(x: np.ndarray, y: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Out-of-fold predictions (n, t) of quadratic ridge regression from latents (n, p) to targets (n, t).

    Second moments are summed once per fold; each fit takes the total less its own fold's, so that the rows are walked
    once, however many folds there are. Columns of y choose their penalties independently.
    """
    z = (x - x.mean(axis=0)) / np.maximum(x.std(axis=0), 1e-9)
    i, j = np.triu_indices(z.shape[1])
    terms = np.concatenate([np.ones((len(z), 1)), z, z[:, i] * z[:, j]], axis=1)
    terms[:, 1:] = np.clip(terms[:, 1:], -8, 8)  # a rare tile must not carry the fit
    folds = np.unique(fold)
    gram = np.stack([terms[fold == f].T @ terms[fold == f] for f in folds])
    cross = np.stack([terms[fold == f].T @ y[fold == f] for f in folds])
    tried = np.empty((len(RIDGE), *y.shape))
    for k, f in enumerate(folds):
        gram_rest, cross_rest = gram.sum(axis=0) - gram[k], cross.sum(axis=0) - cross[k]
        for r, ridge in enumerate(RIDGE):
            penalty = ridge * (fold != f).sum() * np.eye(terms.shape[1])
            penalty[0, 0] = 1e-9  # the intercept is free
            tried[r, fold == f] = terms[fold == f] @ np.linalg.solve(gram_rest + penalty, cross_rest)
    best = ((tried - y) ** 2).mean(axis=1).argmin(axis=0)  # (t,)
    return tried[best, :, np.arange(y.shape[1])].T


def _pearson(guess: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson correlation per column (g,): 0 where the guess is constant, NaN where the truth is."""
    a, b = guess - guess.mean(axis=0), y - y.mean(axis=0)
    sa, sb = np.sqrt((a**2).sum(axis=0)), np.sqrt((b**2).sum(axis=0))
    flat_a, flat_b = sa <= 1e-9 * np.sqrt(len(y)), sb <= 1e-9 * np.sqrt(len(y))
    r = (a * b).sum(axis=0) / np.where(flat_a | flat_b, 1.0, sa * sb)
    return np.where(flat_b, np.nan, np.where(flat_a, 0.0, r))
