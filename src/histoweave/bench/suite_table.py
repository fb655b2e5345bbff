"""Published values of a suite and ours, side by side: the arithmetic, and the table as text and as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from histoweave.bench.markdown import notes as run_notes
from histoweave.bench.metrics import average, pcc_h_paper
from histoweave.bench.suites import DRY, METRICS, Suite, SuiteIncomplete, Value
from histoweave.bench.summary import Report
from histoweave.data import catalog

FILES = ("suite.parquet", "suite.md")


def comparison(suite: Suite, rows: pd.DataFrame, *, note: str = "") -> pd.DataFrame:
    """Published values and ours, one line per model and metric (and test section, where the suite is external).

    Ours are averaged as the authors do, whatever the protocol of training: per gene over the sections of a fold, then
    over genes, then mean and population sd over folds. Models without a published row have NaN there; published models
    that were not run come after those that were, with NaN for ours.

    Parameters
    ----------
    rows
        Long table of a run, see `histoweave.bench.metrics`.
    note
        Written into every line.

    Returns
    -------
    Columns: section ("" for all), model, published_as ("" where nothing is), metric, published, published_sd, ours,
    ours_sd, n (folds), difference (ours - published), note.
    """
    external = suite.split == "external"
    sections = list(dict.fromkeys(rows["section"])) if external else [""]
    if external and len(sections) != suite.folds:
        raise SuiteIncomplete(
            f"suite {suite.name!r} has published values of {suite.folds} test sections; the run "
            f"has {len(sections)}: {sections}"
        )
    models = list(dict.fromkeys(rows["model"]))
    lines = [(model, suite.published_as(model)) for model in models]
    run = {label for _, label in lines}
    lines += [("", label) for label in [*suite.published, *suite.ablations] if label not in run]
    published = {**suite.ablations, **suite.published}
    made = []
    for at, section in enumerate(sections):
        ours = _ours(rows[rows["section"] == section] if external else rows)
        for model, label in lines:
            for metric in suite.metrics:
                values = published.get(label or "", {}).get(metric)
                theirs = values[at] if values else Value(np.nan)
                mean, sd, n = ours.get((model, METRICS[metric]), (np.nan, np.nan, 0))
                made.append(
                    (section, model, label or "", metric, theirs.mean, theirs.sd, mean, sd, n, mean - theirs.mean, note)
                )
    columns = [
        "section",
        "model",
        "published_as",
        "metric",
        "published",
        "published_sd",
        "ours",
        "ours_sd",
        "n",
        "difference",
        "note",
    ]
    return pd.DataFrame(made, columns=columns)


def shown(table: pd.DataFrame, *, run: bool = True) -> pd.DataFrame:
    """A comparison as text, indexed by model: the models that were run, or the published ones that were not.

    One line per metric. Of a comparison of sides the correlations alone, side by side, with the published ones in
    brackets: see `by_side` for the rest.
    """
    part = table[(table["model"] != "") == run]
    model = part["model"] if run else part["published_as"]
    if "side" in part:
        chosen = by_side(table[table["metric"] == "pcc"], run=run).reset_index()
        return (
            chosen.pivot(index="model", columns="side", values="pcc")
            .loc[list(dict.fromkeys(model)), list(dict.fromkeys(part["side"]))]
            .rename_axis(columns=None)
            .add_prefix("PCC, ")
        )
    columns = {
        "metric": part["metric"],
        "published": [_pm(m, s) for m, s in zip(part["published"], part["published_sd"], strict=True)],
        "ours": [
            _pm(m, s if n > 1 else np.nan) for m, s, n in zip(part["ours"], part["ours_sd"], part["n"], strict=True)
        ],
        "difference": ["–" if np.isnan(value) else f"{value:+.3f}" for value in part["difference"]],
    }
    if (part["section"] != "").any():
        columns = {"section": part["section"], **columns}
    return pd.DataFrame(columns).set_axis(pd.Index(model, name="model"), axis=0)


def by_side(table: pd.DataFrame, *, run: bool = True) -> pd.DataFrame:
    """A comparison of sides as text: a line per model and side, a column per metric, the published value in brackets.

    Of models that were not run (`run=False`) the published values alone. Indexed by model.
    """
    part = table[(table["model"] != "") == run]
    part = part if run else part.assign(model=part["published_as"])
    if not len(part):
        return pd.DataFrame()

    def cell(row: pd.Series) -> str:
        theirs = _short(row["published"])
        return theirs if not run else _short(row["ours"]) + (f" ({theirs})" if theirs != "–" else "")

    text = part.assign(text=part.apply(cell, axis=1))
    keys = pd.MultiIndex.from_frame(text[["model", "side"]].drop_duplicates())
    wide = text.pivot(index=["model", "side"], columns="metric", values="text").reindex(keys).fillna("–")
    return wide[list(dict.fromkeys(text["metric"]))].reset_index("side").rename_axis(columns=None)


def _short(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.3g}" if abs(value) >= 1000 else f"{value:.3f}"


def to_markdown(suite: Suite, table: pd.DataFrame, notes: Sequence[str]) -> str:
    """Both parts of a comparison as Markdown, under the notes and what the published numbers are."""
    lines = [f"# {suite.name}: published and ours", "", f"Published: {suite.title}. {suite.citation}.", ""]
    lines += [line for note in notes for line in (f"> {note}", ">")][:-1]
    for run, title in ((True, "Models that were run"), (False, "Published, not run here")):
        if len(part := shown(table, run=run)):
            dry = f" ({DRY})" if (table["note"] == DRY).any() else ""
            lines += ["", f"## {title}{dry}", "", lined(part)]
    return "\n".join(lines) + "\n"


def write(suite: Suite, table: pd.DataFrame, notes: Sequence[str], out: str | Path) -> tuple[Path, Path]:
    """Writes the comparison into the folder of a run, as parquet and as Markdown, and returns both paths."""
    parquet, markdown = (Path(out) / name for name in FILES)
    table.to_parquet(parquet, index=False)
    markdown.write_text(to_markdown(suite, table, notes), encoding="utf-8")
    return parquet, markdown


def remarks(suite: Suite, report: Report, *, dry_run: bool) -> list[str]:
    """What a reader must know before comparing a run with the published numbers."""
    found = [f"{DRY[0].upper()}{DRY[1:]}."] if dry_run else []
    found.append(
        "Ours are averaged as the authors do: per gene over the sections of a fold, over genes, over folds; ± is the "
        "population sd over folds. The authors do not say which sd theirs is."
    )
    card, sections = report.card, len(report.card["patients"])
    found.append(f"Ours: encoder {card['view']['encoder']}, recipe {card['recipe']}; the run's own table says more.")
    if card["protocol"] != suite.protocol:
        found.append(
            f"Ours were made under protocol {card['protocol']!r} and the published values under {suite.protocol!r}: genes "
            "and epochs were chosen in another way."
        )
    if suite.split == "external":
        found.append(
            "The authors do not say which files their test sections are: ours, in the order of the catalog, stand beside "
            "theirs by inference. Under either protocol, genes are chosen on the training sections here."
        )
    elif not dry_run and sections != (wanted := catalog.dataset(suite.dataset).sections):
        found.append(f"{sections} of {wanted} sections have an image here; the published values are over all.")
    return [*found, *(f"The run: {note}" for note in run_notes(report))]


def _ours(rows: pd.DataFrame) -> dict[tuple[str, str], tuple[float, float, int]]:
    """(model, metric) → mean, sd and number of folds."""
    scored = rows[rows["metric"].isin(set(METRICS.values()))]
    table = pd.concat([average(scored, protocol="paper"), pcc_h_paper(rows)])
    return {(row.model, row.metric): (row.mean, row.sd, row.n) for row in table.itertuples(index=False)}


def _pm(mean: float, sd: float) -> str:
    if np.isnan(mean):
        return "–"
    return f"{mean:.3f}" if np.isnan(sd) else f"{mean:.3f} ± {sd:.3f}"


def lined(table: pd.DataFrame) -> str:
    """A table of text as Markdown."""
    rows = [["model", *table.columns], ["---"] * (1 + table.shape[1]), *table.reset_index().to_numpy().tolist()]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows)
