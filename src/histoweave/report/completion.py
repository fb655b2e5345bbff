"""The part of the report on completion: error against the share of entries that was hidden, and maps of one gene."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from anndata import AnnData

from histoweave.bench.scoring import at_rate
from histoweave.bench.summary import Report
from histoweave.pl.completion import completion_maps, rate_curves
from histoweave.pl.maps import Plate
from histoweave.report.findings import Shot
from histoweave.report.tables import controls

ERROR = "mse_entries"
_ROWS = 4  # rates of the maps
_PANELS = 3  # models of the maps, beside what was measured and shown


def errors_by_rate(report: Report) -> pd.DataFrame:
    """Squared error over the hidden entries: rates (ascending) × models; no row for a run that hid no entries."""
    part = report.summary[report.summary["metric"].str.startswith(ERROR)]
    table = part.assign(rate=[_rate(report, metric) for metric in part["metric"]])
    wide = table.pivot_table(index="rate", columns="model", values="mean", aggfunc="first")
    return wide.reindex(columns=[model for model in report.models if model in wide])


def completion_of(report: Report, made: Mapping[str, AnnData], plate: Plate, gene: str | None) -> list[Shot]:
    """The figures of a run that hid entries; none for others.

    Parameters
    ----------
    made
        Per model, the stored prediction of the section shown.
    gene
        The gene of the maps.
    """
    errors = errors_by_rate(report)
    if len(errors) < 2:
        return []
    shots = []
    words = "; ".join(f"{model} {errors[model].iloc[0]:.3g} to {errors[model].iloc[-1]:.3g}" for model in errors)
    shots.append(
        Shot(
            rate_curves(errors, controls=controls(report), trained_at=_of_run(report)),
            "rates",
            "Squared error over the hidden entries of the test sections, by the share that was hidden (mean over patients). "
            "Every model was fitted once; it was shown each test section with the rest of its entries. The line marks the "
            "rate of the table above. Logarithmic scale.",
            f"Error curves from {errors.index[0]:.0%} to {errors.index[-1]:.0%} hidden: {words}.",
        )
    )
    if gene is not None:
        shots += _maps(report, made, plate, gene, errors)
    return shots


def _maps(report: Report, made: Mapping[str, AnnData], plate: Plate, gene: str, errors: pd.DataFrame) -> list[Shot]:
    """Maps of a gene: a row per rate, of what was measured, what was shown, and how the models completed it."""
    models = _chosen(report, errors)
    rates = errors.index[np.unique(np.linspace(0, len(errors) - 1, _ROWS).round().astype(int))]
    rows = {}
    for rate in rates:
        own = rate == _of_run(report)
        panels: dict[str, np.ndarray] = {}
        for model in models:
            table = made[model]
            at = int(table.var_names.get_loc(gene))
            shown, hidden, predicted = (
                np.asarray(values[:, at]).ravel()
                for values in (
                    (table.layers["shown"], table.layers["truth"], table.X)
                    if own
                    else (table.layers[at_rate(name, rate)] for name in ("shown", "truth", "X"))
                )
            )
            measured = np.where(np.isfinite(hidden), hidden, shown)
            panels = panels or {"measured": measured, "shown": shown}
            panels[model] = np.where(np.isfinite(shown), shown, predicted)
        rows[float(rate)] = panels
    if not np.isfinite(next(iter(rows.values()))["measured"]).any():
        return []
    units = str(report.cells[0]["units"])
    caption = (
        f"{gene}: measured (rings: no count), shown to the models, and completed; what was shown is kept. Rows: share of the "
        "measured entries that was hidden."
    )
    alt = f"Maps of {gene} at {', '.join(f'{rate:.0%}' for rate in rows)} hidden, completed by {', '.join(models)}."
    return [Shot(completion_maps(plate, gene, rows, units=units), "completed", caption, alt)]


def _chosen(report: Report, errors: pd.DataFrame) -> list[str]:
    """The models of the maps: the best median and SpaCKLE where they are there, then the best by error."""
    best = [str(model) for model in errors.mean().sort_values().index]
    named = {name: next((m for m in best if m.partition("[")[0] == name), None) for name in ("median", "spackle")}
    wanted = [model for model in named.values() if model is not None]
    return [*wanted, *(model for model in best if model not in wanted)][:_PANELS]


def _of_run(report: Report) -> float:
    """The rate at which the run hid entries."""
    return float(report.card["rate"])


def _rate(report: Report, metric: str) -> float:
    _, at, rate = metric.partition("@")
    return float(rate) if at else _of_run(report)
