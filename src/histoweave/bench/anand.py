"""The suite of a paper that reports three sides: its tables on two scales, and whether its orderings hold here.

Values on the scale of counts never share a column with those of the target: they have a table of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from histoweave.bench.markdown import notes as run_notes
from histoweave.bench.search import Search
from histoweave.bench.sides import MEANS, SIDES, UNS, side_means
from histoweave.bench.suite_table import by_side, lined
from histoweave.bench.suites import DRY, Suite
from histoweave.bench.summary import Report
from histoweave.data import catalog

FILES = ("suite.parquet", "suite.md", "suite_counts.parquet", "suite_orderings.parquet", "suite_search.parquet")
PRINTED = ("side", "pcc", "spearman", "mse", "mae", "r2")  # of the tables; all columns are in the files
EMPTY = 0.99  # share of predictions that round to 0 from which on a model has collapsed


@dataclass(frozen=True, slots=True)
class Conclusion:
    """A suite of three sides as it came out.

    Attributes
    ----------
    table, counts
        Published values and ours, one line per model, side and metric: in units of the target, and on the scale of counts.
    orderings
        One line per ordering of the paper: see `orderings`.
    files
        Where all of it was written; the second is the text.
    """

    table: pd.DataFrame
    counts: pd.DataFrame
    orderings: pd.DataFrame
    files: tuple[Path, ...]


def conclude(
    suite: Suite,
    report: Report,
    searches: Mapping[str, Search],
    out: str | Path,
    *,
    dry_run: bool,
    say: Callable[[str], None],
) -> Conclusion:
    """Tables and orderings of a run, written into its folder and said."""
    note = DRY if dry_run else ""
    means = side_means(collect(report))
    table, counts = (comparison(suite, means, scale, note=note) for scale in ("target", "counts"))
    held = orderings(suite, means, note=note)
    tried = [found.table.reset_index().assign(search=model) for model, found in searches.items()]
    search = pd.concat(tried, ignore_index=True) if tried else pd.DataFrame({"model": [], "search": []})
    text = _text(suite, report, table, counts, held, searches, dry_run=dry_run)
    files = tuple(Path(out) / name for name in FILES)
    for path, made in zip((files[0], *files[2:]), (table, counts, held, search), strict=True):
        made.to_parquet(path, index=False)
    files[1].write_text(text, encoding="utf-8")
    for title, made in (("In units of the target", table), ("On counts", counts)):
        if (made["model"] != "").any():
            say(f"{title}, published values in brackets:\n{by_side(made)[list(PRINTED)].to_string()}")
    for line in lines(held):
        say(line)
    return Conclusion(table, counts, held, files)


def collect(report: Report) -> pd.DataFrame:
    """`side_scores` of all models of a run, with the column model; of the first seed."""
    parts = []
    (fold,) = report.card["folds"]
    for model in report.models:
        parts.append(report.prediction(model, fold).uns[UNS].assign(model=model))
    return pd.concat(parts, ignore_index=True).astype({"side": str, "scale": str, "gene": str, "metric": str})


def comparison(suite: Suite, means: pd.DataFrame, scale: str, *, note: str = "") -> pd.DataFrame:
    """Published values and ours on one scale, in the columns of `suite_table.comparison` and side.

    Parameters
    ----------
    means
        Of `side_means`.
    scale
        ``target`` or ``counts``. Rows are compared where they were published on that scale.
    """
    published = {
        row: found for row, found in suite.published.items() if (row in suite.count_rows) == (scale == "counts")
    }
    ours = means[means["scale"] == scale]
    models = list(dict.fromkeys(ours["model"]))
    rows = [(model, suite.published_as(model) or "") for model in models]
    rows += [("", row) for row in published if row not in {label for _, label in rows}]
    values = ours.set_index(["model", "side"])
    made = []
    for model, label in rows:
        for i, side in enumerate(SIDES):
            for metric in MEANS:
                theirs = published[label][metric][i].mean if metric in published.get(label, {}) else np.nan
                mine = float(values.loc[(model, side), metric]) if model else np.nan
                if np.isnan(theirs) and (np.isnan(mine) or not model):
                    continue
                made.append(
                    (side, model, label, metric, theirs, np.nan, mine, np.nan, int(bool(model)), mine - theirs, note)
                )
    columns = ["side", "model", "published_as", "metric", "published", "published_sd", "ours", "ours_sd", "n"]
    return pd.DataFrame(made, columns=[*columns, "difference", "note"])


def orderings(suite: Suite, means: pd.DataFrame, *, note: str = "") -> pd.DataFrame:
    """Whether what the paper finds of its models holds here, one line per ordering.

    Returns
    -------
    Columns: ordering, holds (None where a model of it did not run, or has no such value), first, second (what is
    compared, in words), ours_first, ours_second, published_first, published_second, note. NB rows are compared on counts,
    as published; correlations stand beside those of other rows, errors do not.
    """
    at = means.set_index(["model", "scale", "side"])
    run = {row: model for model in reversed(list(dict.fromkeys(means["model"]))) if (row := suite.published_as(model))}

    def ours(row: str, side: str, metric: str) -> float:
        scale = "counts" if row in (*suite.count_rows, *_ON_COUNTS) else "target"
        key = (run.get(row), scale, side)
        return float(at.loc[key, metric]) if key in at.index else np.nan

    def theirs(row: str, side: str, metric: str) -> float:
        values = suite.published.get(row, {}).get(metric)
        return values[SIDES.index(side)].mean if values else np.nan

    made = []
    for ordering in _ORDERINGS:
        mine, published = ordering.numbers(ours), ordering.numbers(theirs)
        holds = None if np.isnan(mine).any() else bool(ordering.holds(*mine))
        made.append((ordering.text, holds, *ordering.names, *mine, *published, note))
    columns = [
        "ordering",
        "holds",
        "first",
        "second",
        "ours_first",
        "ours_second",
        "published_first",
        "published_second",
    ]
    return pd.DataFrame(made, columns=[*columns, "note"]).astype({"holds": "boolean"})


def lines(held: pd.DataFrame) -> list[str]:
    """The orderings as text, each with the two numbers that are compared and, where there are such, the published ones."""
    made = []
    for row in held.itertuples(index=False):
        verdict = "not run" if pd.isna(row.holds) else "holds" if row.holds else "does not hold"
        told = (
            f"{row.ordering}: {verdict}; {row.first} {_number(row.ours_first)}, {row.second} {_number(row.ours_second)}"
        )
        if not np.isnan([row.published_first, row.published_second]).any():
            told += f" (published {_number(row.published_first)}, {_number(row.published_second)})"
        made.append(told + (f" [{row.note}]" if row.note else ""))
    return made


# -- the orderings of the paper -----------------------------------------------------------------------------------------

Read = Callable[[str, str, str], float]  # published row, side, metric → value
_ON_COUNTS = ("Poisson", "NB, alpha 1")  # rows that the paper names without values, scored on counts too
_RANKED = ("MLP", "lasso", "NB", "kNN NB", "GNN", "kNN ridge")  # the rows of Table I


@dataclass(frozen=True, slots=True)
class _Ordering:
    """A sentence of the paper about two numbers."""

    text: str
    names: tuple[str, str]
    numbers: Callable[[Read], tuple[float, float]]
    holds: Callable[[float, float], bool]


def _more(a: float, b: float) -> bool:
    return a > b


def _pair(text: str, rows: tuple[str, str], side: str, metric: str, holds: Callable[[float, float], bool]) -> _Ordering:
    """One row against another."""
    return _Ordering(text, rows, lambda read: (read(rows[0], side, metric), read(rows[1], side, metric)), holds)


def _leads(text: str, row: str, side: str, but: tuple[str, ...] = ()) -> _Ordering:
    """The PCC of one row against the best of the other rows of the table, but for some."""
    others = [other for other in _RANKED if other not in (row, *but)]

    def numbers(read: Read) -> tuple[float, float]:
        values = [read(other, side, "pcc") for other in others]
        return read(row, side, "pcc"), float(np.max(values))  # NaN where one of them did not run

    return _Ordering(text, (row, "best of the others"), numbers, _more)


_ORDERINGS = (
    _leads("best PCC on validation is kNN ridge", "kNN ridge", "val"),
    _leads("second PCC on validation is lasso", "lasso", "val", but=("kNN ridge",)),
    _leads("best PCC on test is lasso", "lasso", "test"),
    _pair("MLP at least GNN in PCC on validation", ("MLP", "GNN"), "val", "pcc", lambda a, b: a >= b),
    _pair("MLP at least GNN in PCC on test", ("MLP", "GNN"), "test", "pcc", lambda a, b: a >= b),
    _pair("kNN NB above NB in PCC on validation", ("kNN NB", "NB"), "val", "pcc", _more),
    _pair("kNN NB below NB in MSE of counts on validation", ("kNN NB", "NB"), "val", "mse", lambda a, b: a < b),
    _Ordering(
        f"Poisson collapses to zeros (at least {EMPTY:.0%} of its counts on test round to 0, and fewer are)",
        ("predicted zeros", "measured zeros"),
        lambda read: (read("Poisson", "test", "zeros"), read("Poisson", "test", "zeros_truth")),
        lambda a, b: a >= EMPTY > b,
    ),
    _pair("alpha from moments above alpha 1 in PCC on validation", ("NB", "NB, alpha 1"), "val", "pcc", _more),
    _pair("alpha from moments below alpha 1 in MSE of counts on validation", ("NB", "NB, alpha 1"), "val", "mse",
          lambda a, b: a < b),
)  # fmt: skip


# -- text ---------------------------------------------------------------------------------------------------------------


def _text(
    suite: Suite,
    report: Report,
    table: pd.DataFrame,
    counts: pd.DataFrame,
    held: pd.DataFrame,
    searches: Mapping[str, Search],
    *,
    dry_run: bool,
) -> str:
    """The whole conclusion as Markdown."""
    dry = f" ({DRY})" if dry_run else ""
    notes = _remarks(suite, report, dry_run=dry_run)
    parts = [f"# {suite.name}: published and ours", "", f"Published: {suite.title}. {suite.citation}.", ""]
    parts += [line for note in notes for line in (f"> {note}", ">")][:-1]
    parts += ["", f"## Orderings of the paper{dry}", "", *(f"- {line}" for line in lines(held))]
    units = str(report.cells[0]["units"])
    for title, made in ((f"In units of the target: {units}", table), ("On the scale of counts", counts)):
        for run, which in ((True, ""), (False, "; published, not run here")):
            if len(part := by_side(made, run=run)):
                parts += ["", f"## {title}{which}{dry}", "", lined(part)]
    for model, found in searches.items():
        part = found.table.map(lambda value: _number(value) if isinstance(value, float) else str(value))
        parts += ["", f"## What the validation side chose for {model}: {found.best}{dry}", "", lined(part)]
    return "\n".join(parts) + "\n"


def _remarks(suite: Suite, report: Report, *, dry_run: bool) -> list[str]:
    """What a reader must know before comparing."""
    found = [f"{DRY[0].upper()}{DRY[1:]}."] if dry_run else []
    card, sections = report.card, len(report.card["patients"])
    found += [
        "Every value is per gene over all spots of a side, then the mean over genes, which is what the published values fit; "
        "pcc_within is within a section, as in the other tables here. A constant prediction counts as a correlation of 0 in "
        "pcc and is left out of pcc_varying; constant is the share of such genes. The paper does not say what it did.",
        "The paper gives no list of patients and no grid for the GNN; ours are in suites.toml. Whether its lasso and ridge "
        "read the adjacency is not clear: the rows that do are compared with the published ones.",
        "A line that says 'does not hold' is about these data, this encoder and this split of 13, 5 and 5 patients; with "
        "five patients on a side, small differences mean nothing.",
        f"Ours: encoder {card['view']['encoder']}, standardize {card['view']['standardize']}, recipe {card['recipe']}; "
        "theirs: resnet50 of ImageNet (`--encoder resnet50 --standardize none --recipe paper`).",
    ]
    if not dry_run and sections != (wanted := catalog.dataset(suite.dataset).sections):
        found.append(f"{sections} of {wanted} sections have an image here; the published values are over all.")
    return [*found, *(f"The run: {note}" for note in run_notes(report))]


def _number(value: float) -> str:
    if np.isnan(value):
        return "–"
    return f"{value:.4g}" if abs(value) >= 100 or 0 < abs(value) < 1e-3 else f"{value:.4f}"
