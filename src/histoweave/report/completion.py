"""The part of the report on completion: error against the share of entries that was hidden, and maps of one gene."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from anndata import AnnData

from histoweave.bench.scoring import at_rate
from histoweave.bench.summary import Report
from histoweave.models import list_models, model_class, read_spec, split_specs
from histoweave.pl.completion import completion_maps, rate_curves
from histoweave.pl.maps import Plate
from histoweave.report.findings import Shot
from histoweave.report.tables import controls

ERROR = "mse_entries"
RETRAINED = "retrained at each share"
_AMONG = {"measured": "the measured", "all": "all"}
_ROWS = 4  # rates of the maps
_PANELS = 3  # models of the maps, beside what was measured and shown


def errors_by_rate(report: Report) -> pd.DataFrame:
    """Squared error over the hidden entries: rates (ascending) × models; no row for a run that hid no entries."""
    part = report.summary[report.summary["metric"].str.startswith(ERROR)]
    table = part.assign(rate=[_rate(report, metric) for metric in part["metric"]])
    wide = table.pivot_table(index="rate", columns="model", values="mean", aggfunc="first")
    return wide.reindex(columns=[model for model in report.models if model in wide])


def retrained(errors: pd.DataFrame, models: Mapping[str, float | None]) -> pd.DataFrame:
    """Curves of models that were trained anew for each hidden share, from those that differ in ``rate=`` alone.

    Parameters
    ----------
    errors
        Rates × models.
    models
        Of each, the share that it hides from itself in training; None for one that hides none.

    Returns
    -------
    The same rates × one column per such model: at each rate the error of the one that was trained at it, NaN where there is
    none. No column for a model that was trained at fewer than two of the rates.
    """
    curves: dict[str, pd.Series] = {}
    for model, own in models.items():
        if own is None:
            continue
        base = _without_rate(model)
        curve = curves.setdefault(base, pd.Series(np.nan, index=errors.index))
        at = errors.index[np.isclose(errors.index.to_numpy(dtype=np.float64), own)]
        curve[at] = errors.loc[at, model]
    return pd.DataFrame(
        {f"{base}, {RETRAINED}": curve for base, curve in curves.items() if curve.notna().sum() > 1}, index=errors.index
    )


def _without_rate(model: str) -> str:
    """A model's text without its ``rate=``."""
    head, _, inside = model.strip().partition("[")
    kept = [part for part in split_specs(inside.removesuffix("]")) if part.partition("=")[0].strip() != "rate"]
    return f"{head}[{','.join(kept)}]" if kept else head


def _trained_at(model: str) -> float | None:
    """The share of entries that a model hides from itself in training, by its argument ``rate``; None where it has none."""
    name, arguments = read_spec(model)
    own = inspect.signature(model_class(name)).parameters.get("rate") if name in list_models() else None
    return None if own is None else float(arguments.get("rate", own.default))


def completion_of(report: Report, made: Mapping[str, AnnData], plate: Plate, genes: Sequence[str]) -> list[Shot]:
    """The figures of a run that hid entries; none for others.

    Parameters
    ----------
    made
        Per model, the stored prediction of the section shown.
    genes
        The maps are of the first that was measured in the section shown.
    """
    errors = errors_by_rate(report)
    if errors.empty:
        return []
    shots = []
    if len(errors) > 1:
        shots.append(_curves(report, errors))
    for gene in genes:
        maps = _maps(report, made, plate, gene, errors)
        if maps:
            return [*shots, *maps]
    return shots


def _curves(report: Report, errors: pd.DataFrame) -> Shot:
    """Error by the share that is hidden, a curve per model, and one per model that was retrained at each share."""
    again = retrained(errors, {model: _trained_at(model) for model in errors})
    words = "; ".join(f"{model} {errors[model].iloc[0]:.3g} to {errors[model].iloc[-1]:.3g}" for model in errors)
    of = _of(report)
    return Shot(
        rate_curves(errors.join(again), controls=controls(report), dashed=list(again), trained_at=_of_run(report), of=of),
        "rates",
        f"Squared error over the hidden entries of the test sections, by the share of {_AMONG[of]} entries that was hidden "
        "(mean over patients). Every model was fitted once; it was shown each test section with the rest of its entries. The "
        "line marks the rate of the table above. Logarithmic scale."
        + (" Dashed: at each share the model that hid this share from itself in training." if len(again.columns) else ""),
        f"Error curves from {errors.index[0]:.0%} to {errors.index[-1]:.0%} hidden: {words}.",
    )


def _maps(report: Report, made: Mapping[str, AnnData], plate: Plate, gene: str, errors: pd.DataFrame) -> list[Shot]:
    """Maps of a gene: a row per rate, of what was measured, what was shown, and how the models completed it."""
    models = _chosen(report, errors)
    rates = errors.index[np.unique(np.linspace(0, len(errors) - 1, _ROWS).round().astype(int))]
    rows: dict[float, dict[str, np.ndarray]] = {}
    measured = None
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
            if measured is None:  # at the lowest rate, at which the fewest genes are dropped
                measured = np.where(np.isfinite(hidden), hidden, shown)
            panels = panels or {"measured": measured, "shown": shown}
            panels[model] = np.where(np.isfinite(shown), shown, predicted)
        rows[float(rate)] = panels
    if not np.isfinite(next(iter(rows.values()))["measured"]).any():
        return []
    units = str(report.cells[0]["units"])
    caption = (
        f"{gene}: measured (rings: no count), shown to the models, and completed; what was shown is kept. Rows: share of "
        f"{_AMONG[_of(report)]} entries that was hidden."
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


def _of(report: Report) -> str:
    """Which entries the rates of the run are shares of: ``measured`` ones, or ``all``."""
    return "all" if "of='all'" in str(report.card["hide"]) else "measured"


def _rate(report: Report, metric: str) -> float:
    _, at, rate = metric.partition("@")
    return float(rate) if at else _of_run(report)
