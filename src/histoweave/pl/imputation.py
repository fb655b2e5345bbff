"""Figures of imputation: scores of genes against the number of genes that were measured."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pandas as pd
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from histoweave.pl.maps import INK, LINE, MUTED, shortened
from histoweave.pl.scores import CONTROL, METHOD

_WIDTH = 11.0  # inches
# Okabe and Ito, with a brown before their yellow.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c510a", "#f0e442")
_FADED = 0.65
COLUMNS = ("model", "m", "value")


def boxes_by_m(table: pd.DataFrame, *, controls: Collection[str] = (), metric: str = "Spearman of bins") -> Figure:
    """Boxes of a score over genes, by the number m of shared genes and within it by model.

    A box reaches from the first to the third quartile with the median as a line, whiskers to the farthest gene within 1.5
    times its height; genes beyond are dots.

    Parameters
    ----------
    table
        A row per gene, model and m: the columns `COLUMNS`. Rows without a value are left out.
    controls
        Models drawn in grey; the others have a colour each.
    metric
        Of the values, under the axis.

    Raises
    ------
    ValueError
        Columns that are missing, or no value at all.
    """
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        raise ValueError(f"the table lacks the columns {missing}; expected {', '.join(COLUMNS)}")
    told = table.dropna(subset=["value"])
    if told.empty:
        raise ValueError("no gene has a value; expected at least one row with a number")
    models, sizes = list(dict.fromkeys(table["model"].astype(str))), sorted(told["m"].unique())
    grey = [model for model in models if model in set(controls)]
    coloured = [model for model in models if model not in set(grey)]
    colours = dict(zip(coloured, _cycle(METHOD, len(coloured)), strict=True))
    shades = np.linspace(0.35, 1.0, max(len(grey), 1))
    colours |= {model: to_rgba(CONTROL, alpha) for model, alpha in zip(grey, shades, strict=False)}
    figure = Figure(figsize=(_WIDTH, 4.6), facecolor="none")
    ax = figure.add_axes((0.07, 0.12, 0.68, 0.84), facecolor="none")
    ax.axhline(0, color=LINE, lw=1.0, zorder=0)
    width = 0.8 / len(models)
    for i, model in enumerate(models):
        one = told[told["model"].astype(str) == model]
        there = [(k, one.loc[one["m"] == m, "value"].to_numpy()) for k, m in enumerate(sizes)]
        there = [(k, values) for k, values in there if len(values)]
        if there:
            ax.boxplot(
                [values for _, values in there], positions=[k - 0.4 + width * (i + 0.5) for k, _ in there],
                widths=0.85 * width, manage_ticks=False, patch_artist=True, medianprops={"color": INK, "lw": 1.2},
                boxprops={"facecolor": colours[model], "edgecolor": INK, "lw": 0.6, "alpha": _FADED},
                whiskerprops={"color": MUTED, "lw": 0.8}, capprops={"color": MUTED, "lw": 0.8},
                flierprops={"marker": "o", "ms": 2, "mfc": MUTED, "mec": "none", "alpha": 0.5},
            )  # fmt: skip
    ax.set_xticks(range(len(sizes)), [f"m = {m}" for m in sizes], color=INK)
    ax.set_xlim(-0.5, len(sizes) - 0.5)
    ax.set_ylabel(f"{metric}, per gene", color=INK)
    ax.tick_params(colors=MUTED)
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(LINE)
    handles = [Patch(facecolor=colours[m], edgecolor=INK, lw=0.6, label=shortened(m, 34), alpha=_FADED) for m in models]
    legend = figure.legend(handles=handles, loc="center left", bbox_to_anchor=(0.76, 0.55), frameon=False, fontsize=8.5)
    for text in legend.get_texts():
        text.set_parse_math(False)
        text.set_color(INK)
    return figure


def _cycle(first: str, n: int) -> list[str]:
    """Colours of n models, distinct as far as they reach; a single one has the colour that methods have elsewhere."""
    return [first] if n == 1 else [_COLOURS[i % len(_COLOURS)] for i in range(n)]
