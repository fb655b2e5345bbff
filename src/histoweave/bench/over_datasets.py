"""One benchmark on many datasets: what a model is worth on each in terms of the best, and over all of them.

The tables of SpaRED (Mejia et al. 2024), and a test that its paper does not have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from histoweave.bench.stats import holm, sign_flip
from histoweave.models import parse

MIN_DATASETS = 6  # fewer cannot give a p-value under 0.05 (2 / 2⁶)


def per_dataset(summaries: Mapping[str, pd.DataFrame], metrics: Sequence[str]) -> pd.DataFrame:
    """Means of every dataset, model and metric: columns dataset, model, metric, value.

    Parameters
    ----------
    summaries
        Dataset → the summary of its report.
    """
    parts = [
        table.loc[table["metric"].isin(metrics), ["model", "metric", "mean"]].assign(dataset=name)
        for name, table in summaries.items()
    ]
    made = pd.concat(parts, ignore_index=True).rename(columns={"mean": "value"})
    return made[["dataset", "model", "metric", "value"]]


def normalised(values: pd.DataFrame, *, metric: str = "mse_measured", left_out: Sequence[str] = ()) -> pd.DataFrame:
    """Error of every model over that of the best on the same dataset: datasets × models.

    Parameters
    ----------
    values
        As `per_dataset` makes them.
    left_out
        Datasets that are made of others, which would count twice.

    Raises
    ------
    ValueError
        Models that were not run on every dataset: the best of few is not the best of all.
    """
    part = values[(values["metric"] == metric) & ~values["dataset"].isin(left_out)]
    if part.empty:
        raise ValueError(f"no dataset has {metric!r}; there are {', '.join(sorted(values['metric'].unique()))}")
    wide = part.pivot(index="dataset", columns="model", values="value")
    wide = wide[list(dict.fromkeys(part["model"]))].loc[list(dict.fromkeys(part["dataset"]))]
    if wide.isna().any(axis=None):
        row, column = np.argwhere(wide.isna().to_numpy())[0]
        raise ValueError(
            f"model {wide.columns[column]!r} has no {metric} on {wide.index[row]!r}; run it on every dataset"
        )
    return wide.div(wide.min(axis=1), axis=0)


def standing(ratios: pd.DataFrame, parameters: Mapping[str, int]) -> pd.DataFrame:
    """Every model over all datasets, best first: mean and population sd of its normalised error, share of wins, parameters.

    A model wins a dataset if none has a smaller error; models that tie share the win.
    """
    best = ratios.eq(ratios.min(axis=1), axis=0)
    table = pd.DataFrame(
        {
            "normalised": ratios.mean(),
            "sd": ratios.std(ddof=0),
            "win_share": best.div(best.sum(axis=1), axis=0).mean(),
            "datasets": len(ratios),
            "parameters": [parameters[model] for model in ratios.columns],
        }
    )
    return table.sort_values("normalised", kind="stable").rename_axis("model")


def gain_of_layers(values: pd.DataFrame, *, metric: str, against: str = "measured") -> pd.DataFrame:
    """What it brings to learn from another layer: each model's arms against the arm `against`, paired over datasets.

    The arms of a model are its texts that differ in ``layer`` alone. The reference is the loss on measured entries, which
    needs no completion: what is better than raw zeros may only be better for leaving zeros out.

    Returns
    -------
    One line per model and layer: mean difference of the metric (negative is better for errors), datasets, p of the exact
    sign-flip test over datasets, Holm's p over the lines, and a note where it cannot be tested.
    """
    part = values[values["metric"] == metric]
    split = [arm(model) for model in part["model"]]
    part = part.assign(base=[base for base, _ in split], layer=[layer for _, layer in split])
    rows = []
    for base, group in part.groupby("base", sort=False):
        wide = group.pivot(index="dataset", columns="layer", values="value")
        if against not in wide:
            continue
        for layer in [name for name in wide if name != against]:
            found = sign_flip((wide[layer] - wide[against]).dropna(), min_patients=MIN_DATASETS)
            note = "" if found.testable else f"not testable with {found.n} datasets"
            rows.append((base, layer, against, metric, found.mean, found.n, found.p, note))
    columns = ["model", "layer", "against", "metric", "difference", "datasets", "p", "note"]
    table = pd.DataFrame(rows, columns=columns)
    return table.assign(p_holm=holm(list(table["p"])) if len(table) else [])


def arm(model: str) -> tuple[str, str]:
    """A model's text without its layer, and the layer."""
    name, arguments = parse(model)
    layer = str(arguments.pop("layer", "raw"))
    inside = ",".join(f"{key}={value}" for key, value in arguments.items())
    return (f"{name}[{inside}]" if inside else name), layer
