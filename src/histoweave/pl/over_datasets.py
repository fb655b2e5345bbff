"""Figures over many datasets: standing of the models, error against size, spread of errors, and what a layer brings."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from histoweave.pl.maps import INK, LINE, MUTED, shortened
from histoweave.pl.scores import CONTROL, METHOD

_WIDTH = 11.0  # inches
_ROW = 0.34


def standing_dots(ratios: pd.DataFrame, *, controls: Collection[str] = ()) -> Figure:
    """Normalised error of every model: a dot per dataset and a bar at the mean, the best model on top.

    Parameters
    ----------
    ratios
        Datasets × models: error over that of the best model on the dataset, 1 or more.
    controls
        Models drawn in grey.
    """
    order = ratios.mean().sort_values().index
    figure, ax = _rows(len(order), "error over that of the best model on the dataset")
    for row, model in enumerate(order):
        colour = CONTROL if model in controls else METHOD
        ax.plot(ratios[model], row + np.linspace(-0.2, 0.2, len(ratios)), "o", ms=4, mfc=colour, mec="none", alpha=0.7)
        ax.plot([ratios[model].mean()] * 2, [row - 0.34, row + 0.34], color=INK, lw=1.8, solid_capstyle="butt")
    ax.axvline(1.0, color=LINE, lw=1.0, zorder=0)
    ax.set_xscale("log")
    _names(ax, list(order))
    return figure


def size_scatter(table: pd.DataFrame) -> Figure:
    """Mean normalised error against trainable parameters; models without any stand at the left edge.

    Of models with as many parameters, the best has its name beside it.

    Parameters
    ----------
    table
        Models × columns ``normalised``, ``sd``, ``parameters``.
    """
    figure = Figure(figsize=(_WIDTH, 4.2), facecolor="none")
    ax = figure.add_axes((0.08, 0.14, 0.88, 0.82), facecolor="none")
    size = np.maximum(table["parameters"].to_numpy(dtype=np.float64), 1.0)
    ax.errorbar(size, table["normalised"], yerr=table["sd"], fmt="o", color=METHOD, ecolor=LINE, ms=5, lw=1)
    ax.set_xscale("log")
    ax.margins(x=0.15)  # room for names
    best = table.assign(size=size).sort_values("normalised", kind="stable").drop_duplicates("size")
    for model, x, y in zip(best.index, best["size"], best["normalised"], strict=True):
        text = ax.annotate(
            shortened(str(model), 26), (x, y), xytext=(6, 3), textcoords="offset points", fontsize=8, color=INK
        )
        text.set_parse_math(False)
    ax.set_xlabel("trainable parameters", color=INK)
    ax.set_ylabel("mean normalised error", color=INK)
    _plain(ax)
    return figure


def error_violins(errors: Mapping[str, np.ndarray], *, controls: Collection[str] = ()) -> Figure:
    """Distribution of log10 of squared errors per model, one value per dataset and gene.

    Parameters
    ----------
    errors
        Model → errors (k,), above 0.
    """
    figure, ax = _rows(len(errors), "log10 of the squared error of a gene on a dataset")
    for row, (model, values) in enumerate(errors.items()):
        logs = np.log10(np.maximum(np.asarray(values, dtype=np.float64), 1e-12))
        logs = logs[np.isfinite(logs)]
        colour = CONTROL if model in controls else METHOD
        if np.ptp(logs) > 0:
            shape = ax.violinplot(logs, positions=[row], orientation="horizontal", widths=0.8, showextrema=False)
            for body in shape["bodies"]:  # type: ignore[attr-defined]
                body.set(facecolor=colour, edgecolor="none", alpha=0.55)
        ax.plot([np.median(logs)] * 2, [row - 0.34, row + 0.34], color=INK, lw=1.6, solid_capstyle="butt")
    _names(ax, list(errors))
    return figure


def layer_pairs(values: pd.DataFrame, *, metric: str = "PCC") -> Figure:
    """One line per dataset from what models reach on the first layer to what they reach on the last.

    Parameters
    ----------
    values
        Datasets × layers.
    """
    figure, ax = _rows(len(values) + 1, metric)  # the last row is for the legend
    shades = np.linspace(0.35, 1.0, values.shape[1])
    for row, dataset in enumerate(values.index):
        seen = values.loc[dataset].to_numpy(dtype=np.float64)
        ax.plot([np.nanmin(seen), np.nanmax(seen)], [row, row], color=LINE, lw=2, zorder=1)
        for layer, value, alpha in zip(values.columns, seen, shades, strict=True):
            label = str(layer) if row == 0 else None
            ax.plot([value], [row], "o", ms=6, mfc=METHOD, mec="none", alpha=alpha, label=label, zorder=2)
    legend = ax.legend(loc="lower right", ncols=values.shape[1], frameon=False, fontsize=8, labelcolor=INK)
    for text in legend.get_texts():
        text.set_parse_math(False)
    _names(ax, list(values.index))
    return figure


def _rows(n: int, label: str) -> tuple[Figure, Axes]:
    """A figure with n even rows and a label under its axis."""
    height = 0.9 + _ROW * n
    figure = Figure(figsize=(_WIDTH, height), facecolor="none")
    ax = figure.add_axes((0.32, 0.62 / height, 0.66, (height - 0.72) / height), facecolor="none")
    ax.set_xlabel(label, color=INK)
    ax.set_ylim(n - 0.4, -0.6)
    _plain(ax)
    return figure, ax


def _names(ax: Axes, names: list[str]) -> None:
    ax.set_yticks(range(len(names)), [shortened(str(name), 44) for name in names], color=INK, fontsize=8.5)
    for label in ax.get_yticklabels():
        label.set_parse_math(False)


def _plain(ax: Axes) -> None:
    ax.tick_params(colors=MUTED, which="both", length=0)
    for side, spine in ax.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(LINE)
