"""What a prediction is worth: per gene within a section, and the order in which those values are averaged.

Everything is computed in float64 and for all genes at once (`_genewise`). Arrays come in as ``(n, g)``.

The long table ("rows") that the averages work on has the columns of `ROWS`; `value` is the value of `metric` for one
gene in one section. Names of metrics: ``pcc, spearman, mse, mse_offset, mse_pattern, mae, r2`` per section,
``pcc_pooled`` over concatenated sections, ``pcc_50`` and ``pcc_h_paper`` over 50 genes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from histoweave.bench import _genewise as gw
from histoweave.bench._genewise import Floats

Protocol = Literal["strict", "paper"]

ROWS = ("benchmark", "model", "seed", "fold", "patient", "section", "gene", "metric", "value")
_ERRORS = ("mse", "mse_offset", "mse_pattern", "mae", "mse_entries", "deviance")
LOWER_IS_BETTER = frozenset([*_ERRORS, *(f"{error}_measured" for error in _ERRORS)])

_MEASURES: Mapping[str, Callable[[gw.Pair], Floats]] = {
    "pcc": gw.pearson,
    "spearman": gw.spearman,
    "mse": gw.mse,
    "mse_offset": gw.offset,
    "mse_pattern": gw.pattern,
    "mae": gw.mae,
    "r2": gw.r2,
}
METRICS = tuple(_MEASURES)


def _one(name: str, truth: ArrayLike, pred: ArrayLike, mask: ArrayLike | None) -> Floats:
    return np.asarray(gw.evaluate(truth, pred, mask, _MEASURES[name])[0], dtype=np.float64)


def pearson(truth: ArrayLike, pred: ArrayLike, mask: ArrayLike | None = None) -> Floats:
    """Pearson correlation of each gene over the measured spots of one section, (g,).

    `truth` and `pred` are (n, g); `mask` is boolean (n, g), True = measured, None = all. What hidden entries hold never
    matters. NaN where the truth is constant over the measured spots (the gene is dropped, for every model alike); 0
    where only the prediction is. "Constant" means a spread of at most 8 units of rounding of the array's own precision.
    Raises ValueError when shapes differ or a measured entry is not finite.
    """
    return _one("pcc", truth, pred, mask)


def spearman(truth: ArrayLike, pred: ArrayLike, mask: ArrayLike | None = None) -> Floats:
    """Spearman correlation of each gene, ties on their average rank, (g,). Arguments and NaN as in `pearson`."""
    return _one("spearman", truth, pred, mask)


def mse(truth: ArrayLike, pred: ArrayLike, mask: ArrayLike | None = None) -> Floats:
    """Mean squared error per gene, (g,), in squared target units. Constant truth is kept; NaN if unmeasured."""
    return _one("mse", truth, pred, mask)


def mse_offset(truth: ArrayLike, pred: ArrayLike, mask: ArrayLike | None = None) -> Floats:
    """The part of `mse` that is a shift of the whole section: squared difference of the two means, (g,)."""
    return _one("mse_offset", truth, pred, mask)


def mse_pattern(truth: ArrayLike, pred: ArrayLike, mask: ArrayLike | None = None) -> Floats:
    """The part of `mse` within the section: variance of the centred residual, (g,). Offset + pattern = mse."""
    return _one("mse_pattern", truth, pred, mask)


def mae(truth: ArrayLike, pred: ArrayLike, mask: ArrayLike | None = None) -> Floats:
    """Mean absolute error of each gene, (g,), in units of the target. Constant truth is kept."""
    return _one("mae", truth, pred, mask)


def r2(truth: ArrayLike, pred: ArrayLike, mask: ArrayLike | None = None) -> Floats:
    """Coefficient of determination of each gene within the section, (g,); NaN where the truth is constant."""
    return _one("r2", truth, pred, mask)


def section_metrics(
    truth: ArrayLike, pred: ArrayLike, mask: ArrayLike | None = None, *, genes: Sequence[Hashable] | None = None
) -> tuple[pd.DataFrame, NDArray[np.generic]]:
    """All metrics of one section.

    Parameters
    ----------
    truth, pred
        (n, g) in the same units.
    mask
        (n, g), True = measured; None = all.
    genes
        Names of the g columns; 0 … g-1 when not given.

    Returns
    -------
    frame
        g rows, columns `METRICS`. `pcc`, `spearman` and `r2` are NaN for genes whose truth is constant here; `mse`, its
        two parts and `mae` are kept for them. A constant prediction has `pcc` and `spearman` 0 and its true `r2`.
    dropped
        Names of the genes whose truth is constant (or measured in fewer than two spots).
    """
    columns = np.asarray(truth).shape[-1] if np.ndim(truth) else 0
    index = pd.RangeIndex(columns, name="gene") if genes is None else pd.Index(genes, name="gene")
    if len(index) != columns or not index.is_unique:
        raise ValueError(
            f"need {columns} distinct gene names, got {len(index)} of which {index.nunique()} are distinct"
        )
    *values, flat = gw.evaluate(truth, pred, mask, *_MEASURES.values(), lambda pair: pair.truth_flat)
    frame = pd.DataFrame(dict(zip(METRICS, values, strict=True)), index=index)
    return frame, index.to_numpy()[flat.astype(bool)]


def pooled_pcc(
    truths: Sequence[ArrayLike], preds: Sequence[ArrayLike], masks: Sequence[ArrayLike] | None = None
) -> Floats:
    """Pearson correlation of each gene over the concatenation of sections, (g,): the metric named ``pcc_pooled``.

    Differences between section means count as skill here, so the value can be high when nothing inside a section is
    predicted. It is never mixed with `pcc`.
    """
    if not len(truths) or len(truths) != len(preds) or (masks is not None and len(masks) != len(truths)):
        raise ValueError(
            f"need one prediction (and mask) per section, got {len(truths)} truths, {len(preds)} predictions"
            + ("" if masks is None else f", {len(masks)} masks")
        )
    parts = [
        gw.check(t, p, None if masks is None else masks[i]) for i, (t, p) in enumerate(zip(truths, preds, strict=True))
    ]
    truth, pred = np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
    return pearson(truth, pred, None if masks is None else np.concatenate([np.asarray(m) for m in masks]))


def to_rows(
    frame: pd.DataFrame, *, benchmark: str, model: str, seed: int, fold: Hashable, patient: str, section: str
) -> pd.DataFrame:
    """A (genes x metrics) frame as long rows with the columns `ROWS`, in that order."""
    where = {"benchmark": benchmark, "model": model, "seed": seed, "fold": fold, "patient": patient, "section": section}
    gene = frame.index.rename("gene")
    long = frame.set_axis(gene, axis=0).reset_index().melt(id_vars="gene", var_name="metric", value_name="value")
    return long.assign(**where)[list(ROWS)]


_WHO = ["benchmark", "model", "metric"]


def check_rows(rows: pd.DataFrame, metric: str | None = None) -> pd.DataFrame:
    """The rows of one metric (None: all); ValueError for missing columns, empty or repeated addresses, no rows."""
    if missing := [name for name in ROWS if name not in rows.columns]:
        raise ValueError(f"the table of rows lacks the column(s) {missing}; expected {list(ROWS)}")
    if metric is not None:
        known = sorted(rows["metric"].unique())
        rows = rows[rows["metric"] == metric]
        if rows.empty:
            raise ValueError(f"there are no rows of metric {metric!r}; the table holds {known}")
    keys = [name for name in ROWS if name != "value"]
    if rows[keys].isna().any(axis=None):
        holes = [name for name in keys if rows[name].isna().any()]
        raise ValueError(
            f"the column(s) {holes} of the table of rows have empty fields: every value needs its full address"
        )
    if (again := rows.duplicated(keys)).any():
        twice = rows.loc[again, keys].iloc[0].to_dict()
        raise ValueError(f"the table of rows holds a value twice, first {twice}: it was probably appended to itself")
    return rows


def _means(table: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    return table.groupby(list(keys), sort=False, observed=True)["value"].mean().reset_index()


def per_unit(rows: pd.DataFrame, *, protocol: Protocol = "strict") -> pd.DataFrame:
    """One value per benchmark, model, metric, seed and unit, the unit being the patient or (``paper``) the fold.

    ``strict``: nan-mean over the genes of a section, then over the sections of a patient. ``paper``, the order of
    TRIPLEX: nan-mean of a gene over the sections of a fold, then over genes. Columns: benchmark, model, metric, seed,
    unit, value.
    """
    return _per_unit(check_rows(rows), protocol)


def _per_unit(rows: pd.DataFrame, protocol: str) -> pd.DataFrame:
    run = [*_WHO, "seed"]
    if protocol == "strict":
        steps = [[*run, "patient", "section", "fold"], [*run, "patient", "section"], [*run, "patient"]]
    elif protocol == "paper":
        steps = [[*run, "fold", "gene"], [*run, "fold"]]
    else:
        raise ValueError(f"protocol is {protocol!r}, expected 'strict' or 'paper'")
    for keys in steps:
        rows = _means(rows, keys)
    return rows.rename(columns={steps[-1][-1]: "unit"})


def _summary(units: pd.DataFrame) -> pd.DataFrame:
    """Mean and spread over units (seeds averaged first) and over seeds, one line per benchmark, model and metric."""

    def spread(table: pd.DataFrame) -> pd.DataFrame:
        grouped = table.groupby(_WHO, sort=False, observed=True)["value"]
        return pd.DataFrame({"mean": grouped.mean(), "sd": grouped.std(ddof=0), "n": grouped.count()})

    over_units = spread(_means(units, [*_WHO, "unit"]))
    over_seeds = spread(_means(units, [*_WHO, "seed"]))
    return over_units.assign(sd_seeds=over_seeds["sd"], n_seeds=over_seeds["n"]).reset_index()


def average(rows: pd.DataFrame, metric: str | None = None, *, protocol: Protocol = "strict") -> pd.DataFrame:
    """Averages of a long table, one line per benchmark, model and metric (or of the one `metric` named).

    Columns: benchmark, model, metric, mean, sd, n, sd_seeds, n_seeds. `mean` and `sd` (population) are over the n
    units: patients under ``strict``, folds under ``paper`` (see `per_unit`); `sd_seeds` is the population sd of that
    mean over the seeds. NaN values (genes without variance in the truth) are left out at every step. Raises ValueError
    for missing columns, empty or repeated addresses.
    """
    return _summary(_per_unit(check_rows(rows, metric), protocol))


def pcc_50(
    rows: pd.DataFrame, genes_per_fold: Mapping[Any, Sequence[str]], *, protocol: Protocol = "strict"
) -> pd.DataFrame:
    """`average` of ``pcc`` over one gene list per fold, the same for all models; `metric` reads ``pcc_50``.

    The lists are whatever was chosen on the training patients (50 genes in the benchmark); the number is not checked
    here, but every gene of a list must have a row in its fold for every model, else ValueError.
    """
    rows = check_rows(rows, "pcc")
    if missing := [fold for fold in rows["fold"].unique().tolist() if fold not in genes_per_fold]:
        raise ValueError(f"no gene list for fold(s) {missing}; lists were given for {list(genes_per_fold)}")
    wanted = pd.DataFrame(
        [(fold, gene) for fold in rows["fold"].unique() for gene in genes_per_fold[fold]], columns=["fold", "gene"]
    )
    if wanted.duplicated().any():
        raise ValueError(f"the gene lists name a gene twice: {wanted[wanted.duplicated()].iloc[0].to_dict()}")
    cells = rows[["benchmark", "model", "fold"]].drop_duplicates().merge(wanted, on="fold")
    have = rows[[*cells.columns]].drop_duplicates()
    absent = cells.merge(have, how="left", indicator="where").query("where == 'left_only'")
    if len(absent):
        raise ValueError(f"{len(absent)} listed gene(s) have no row, first {absent.iloc[0, :-1].to_dict()}")
    kept = rows.merge(wanted, on=["fold", "gene"])
    return _summary(_per_unit(kept.assign(metric="pcc_50"), protocol))


def pcc_h_paper(rows: pd.DataFrame, *, top: int = 50) -> pd.DataFrame:
    """The papers' PCC(H): each model and seed on its own `top` genes, chosen on the test folds. Optimistic by design.

    r(f, g) is the nan-mean over the sections of fold f. In each fold genes are ranked by it (1 = worst; NaN, or a gene
    the fold does not have, is worst; ties share their mean rank), ranks are averaged over folds and the best `top` kept
    (the earlier gene wins a tie; all genes if there are fewer). Their nan-mean in each fold is summarised over folds as
    in `average`.
    """
    gene = _means(check_rows(rows, "pcc"), [*_WHO, "seed", "fold", "gene"])
    parts: list[pd.DataFrame] = []
    for address, part in gene.groupby([*_WHO, "seed"], sort=False, observed=True):
        table = part.pivot(index="fold", columns="gene", values="value")
        table = table[part["gene"].drop_duplicates()]
        ranks = rankdata(table.fillna(-np.inf).to_numpy(), axis=1).mean(axis=0)
        best = np.argsort(-ranks, kind="stable")[:top]
        fold_mean = table.iloc[:, best].mean(axis=1)
        parts.append(
            pd.DataFrame({"unit": fold_mean.index, "value": fold_mean.to_numpy()}).assign(
                **dict(zip([*_WHO, "seed"], address, strict=True))
            )
        )
    return _summary(pd.concat(parts, ignore_index=True)).assign(metric="pcc_h_paper")
