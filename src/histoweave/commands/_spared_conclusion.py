"""What the suite `spared` found: tables over datasets, figures and the page, written to the folder of the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from histoweave.bench.markdown import pipe
from histoweave.bench.over_datasets import arm, gain_of_layers, normalised, per_dataset, standing
from histoweave.bench.suites import DRY
from histoweave.bench.summary import Report
from histoweave.data._atomic import writing
from histoweave.data.spared import left_out
from histoweave.models import card_of, parse
from histoweave.pl.over_datasets import error_violins, layer_pairs, size_scatter, standing_dots

NAME = "spared"
RATES = (1e-5, 1e-4, 1e-3)  # learning rates of the search, on the layer `SEARCHED`
SEARCHED = "median"
ERROR, ERROR_ZEROS, PCC = "mse_measured", "mse", "pcc_measured"


@dataclass(frozen=True, slots=True)
class SparedRun:
    """What the suite found.

    Attributes
    ----------
    values
        Columns dataset, model, metric, value.
    standing
        One line per model over all datasets.
    gains
        What each layer brings over the loss on measured entries alone, tested over datasets.
    rates
        The learning rate that the validation sections chose, per model that was searched.
    folder
        Where tables, figures and the runs of the datasets are.
    """

    values: pd.DataFrame
    standing: pd.DataFrame
    gains: pd.DataFrame
    rates: dict[str, float]
    folder: Path


def conclude(
    out: Path, reports: dict[str, Report], rates: dict[str, float], notes: Sequence[str], *, dry_run: bool
) -> SparedRun:
    """Tables over datasets, written with their figures; `notes` are on single datasets."""
    values = per_dataset({name: report.summary for name, report in reports.items()}, [ERROR, ERROR_ZEROS, PCC])
    why = left_out(reports)
    ratios = normalised(values, metric=ERROR, left_out=list(why))
    first = next(iter(reports.values()))
    parameters = {card["model"]: int(card["parameters"]) for card in first.cells}
    table = standing(ratios, parameters)
    gains = pd.concat([gain_of_layers(_averaged(values, why), metric=m) for m in (ERROR, PCC)], ignore_index=True)
    figures = _figures(values, ratios, table, {name: r for name, r in reports.items() if name not in why})
    figures["size"].axes[0].set_xlabel(f"trainable parameters on {next(iter(reports))}")
    for name, figure in figures.items():
        with writing(out / f"{NAME}-{name}.svg") as file:
            figure.savefig(file, format="svg", metadata={"Date": None})
    for name, frame in (("values", values), ("standing", table.reset_index()), ("gains", gains)):
        with writing(out / f"{NAME}-{name}.parquet") as file:
            frame.to_parquet(file, index=False)
    with writing(out / f"{NAME}.md") as file:
        file.write(_text(values, table, gains, why, rates, list(reports), figures, notes, dry_run=dry_run).encode())
    return SparedRun(values, table, gains, rates, out)


def _averaged(values: pd.DataFrame, why: dict[str, str]) -> pd.DataFrame:
    return values[~values["dataset"].isin(why)]


def _figures(
    values: pd.DataFrame, ratios: pd.DataFrame, table: pd.DataFrame, reports: dict[str, Report]
) -> dict[str, Figure]:
    """Standing, size, spread of errors over the genes of the `reports`, and the best PCC per layer."""
    controls = [model for model in ratios.columns if card_of(parse(model)[0]).control]
    errors = {model: np.concatenate([_by_gene(report, model) for report in reports.values()]) for model in table.index}
    best = values[values["metric"] == PCC].assign(
        layer=[arm(m)[1] for m in values.loc[values["metric"] == PCC, "model"]]
    )
    layers = best.pivot_table(index="dataset", columns="layer", values="value", aggfunc="max")
    layers = layers[[name for name in dict.fromkeys(best["layer"]) if name in layers]]
    return {
        "standing": standing_dots(ratios, controls=controls),
        "size": size_scatter(table),
        "errors": error_violins(errors, controls=controls),
        "layers": layer_pairs(layers, metric="best PCC over measured entries"),
    }


def _by_gene(report: Report, model: str) -> np.ndarray:
    """Error of a model on each gene (g,), the mean over sections and seeds."""
    rows = report.rows[(report.rows["model"] == model) & (report.rows["metric"] == ERROR)]
    return rows.groupby("gene")["value"].mean().dropna().to_numpy()


def _text(
    values: pd.DataFrame,
    table: pd.DataFrame,
    gains: pd.DataFrame,
    why: dict[str, str],
    rates: dict[str, float],
    datasets: Sequence[str],
    figures: dict[str, Figure],
    remarks: Sequence[str],
    *,
    dry_run: bool,
) -> str:
    """The whole conclusion as Markdown."""
    shown = table.assign(
        normalised=[f"{m:.3f} ± {s:.3f}" for m, s in zip(table["normalised"], table["sd"], strict=True)],
        win_share=table["win_share"].map("{:.0%}".format),
    ).drop(columns="sd")
    wide = values.assign(value=values["value"].round(4)).pivot(
        index=["dataset", "model"], columns="metric", values="value"
    )
    wide.index = pd.Index([f"{dataset}, {model}" for dataset, model in wide.index], name="dataset, model")
    notes = [
        f"Squared error over measured entries of the scored sections, log2(1 + counts per million), averaged over genes, "
        "sections and patients; over that of the best model on the dataset, then over "
        f"{len(datasets) - len(why)} datasets. No batch was adjusted: errors on adjusted values are no part of any "
        "table.",
        "A gain of completion is a gain over the arm `measured`, whose loss leaves out what was not measured; `mse` counts "
        "zeros as observations.",
        f"Parameters are those on {datasets[0]}.",
        *[f"{name} is left out of averages: {reason}." for name, reason in why.items()],
        *remarks,
    ]
    searched = (
        f"Learning rates, of {RATES} on layer `{SEARCHED}`: {rates}" if rates else "Learning rates: the recipes'."
    )
    lines = [f"# {NAME}: {len(datasets)} datasets" + (f" ({DRY})" if dry_run else ""), ""]
    lines += [f"> {note}" for note in dict.fromkeys(notes)]
    lines += ["", searched, "", "## Over datasets", "", pipe(shown), ""]
    lines += ["## What a layer brings over the loss on measured entries", "", pipe(gains.set_index("model")), ""]
    lines += [f"![{name}]({NAME}-{name}.svg)" for name in figures]
    lines += ["", "## Per dataset", "", pipe(wide), ""]
    return "\n".join(lines)
