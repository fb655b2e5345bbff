"""Figures of scores: models over patients, genes against the ceiling that their counts set."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from histoweave.pl.maps import INK, LINE, MUTED, shortened

METHOD, CONTROL = "#0b70b0", "#87909a"  # close to the blue of Okabe & Ito (2008), and grey; the report themes these too
_WIDTH = 11.0  # inches
_ROW = 0.34
_NAME = 44  # characters
_MANY = 1500  # points; more are drawn as a raster image


def patient_dots(
    values: pd.DataFrame, *, controls: Collection[str] = (), reference: str | None = None, metric: str = "PCC"
) -> Figure:
    """One line per model: a dot per patient and a bar at their mean.

    A patient's dot lies at the same height within every line, so that patients can be followed from model to model.

    Parameters
    ----------
    values
        Patients × models, in the order of the lines.
    controls
        Models drawn in grey.
    reference
        A model whose mean is a dashed line through the figure.

    Raises
    ------
    ValueError
        No model or no patient; a reference that is not among the models.
    """
    if values.empty:
        raise ValueError(f"values have shape {values.shape}; expected at least one patient and one model")
    if reference is not None and reference not in values.columns:
        raise ValueError(f"reference {reference!r} is not among the models: {', '.join(map(str, values.columns))}")
    n = values.shape[1]
    height = 0.75 + _ROW * n
    figure = Figure(figsize=(_WIDTH, height), facecolor="none")
    names = [shortened(str(model), _NAME) for model in values.columns]
    left = (0.25 + 0.075 * max(map(len, names))) / _WIDTH
    ax = figure.add_axes((left, 0.5 / height, 0.99 - left, (height - 0.6) / height), facecolor="none")
    offset = np.linspace(-0.22, 0.22, len(values)) if len(values) > 1 else np.zeros(1)
    if reference is not None:
        ax.axvline(float(values[reference].mean()), color=MUTED, lw=0.8, ls=(0, (4, 3)), zorder=1)
    for row, model in enumerate(values.columns):
        seen = values[model].to_numpy(dtype=np.float64)
        colour = CONTROL if model in controls else METHOD
        ax.plot(seen, row + offset, "o", ms=4.6, mfc=colour, mec="none", alpha=0.75, zorder=2)
        mean = float(np.nanmean(seen)) if np.isfinite(seen).any() else np.nan
        ax.plot([mean, mean], [row - 0.34, row + 0.34], color=INK, lw=1.8, solid_capstyle="butt", zorder=3)
    ax.set(ylim=(n - 0.5, -0.5), yticks=range(n))
    ax.set_yticklabels(names, parse_math=False)
    _plain(ax, f"{metric} per patient")
    ax.axvline(0, color=LINE, lw=0.9, zorder=0)
    ax.grid(axis="x", color=LINE, lw=0.5, zorder=0)
    return figure


def ceiling_scatter(
    ceiling: pd.Series, pcc: pd.DataFrame, *, marked: Sequence[str] = (), limit: float | None = None
) -> Figure:
    """Per gene, the PCC that each model reaches against the highest that the gene's counts allow: one panel per model.

    Parameters
    ----------
    ceiling
        Per gene, the root of its reliability.
    pcc
        Genes × models.
    marked
        Genes named in the figure.
    limit
        Ceiling under which a gene counts as unreliable: a thin vertical line.

    Raises
    ------
    ValueError
        No model, or no gene with a ceiling.
    """
    x = ceiling.reindex(pcc.index).to_numpy(dtype=np.float64)
    if pcc.empty or not np.isfinite(x).any():
        raise ValueError(
            f"{pcc.shape[1]} models and {int(np.isfinite(x).sum())} genes with a ceiling; expected at least one"
        )
    columns = max(pcc.shape[1], 2)
    side = min((_WIDTH - 0.8 - 0.5 * (columns - 1)) / columns, 4.2)
    height = side + 0.85
    figure = Figure(figsize=(_WIDTH, height), facecolor="none")
    low = min(-0.1, float(np.nanmin(pcc.to_numpy())) - 0.05)
    for i, model in enumerate(pcc.columns):
        place = ((0.6 + i * (side + 0.7)) / _WIDTH, 0.5 / height, side / _WIDTH, side / height)
        ax = figure.add_axes(place, facecolor="none")
        ax.fill_between([0, 1], [0, 1], [1.02, 1.02], color=LINE, alpha=0.45, lw=0)
        ax.plot([0, 1], [0, 1], color=MUTED, lw=0.8)
        if limit is not None:
            ax.axvline(limit, color=MUTED, lw=0.7, ls=(0, (2, 3)))
        y = pcc[model].to_numpy(dtype=np.float64)
        ax.plot(x, y, "o", ms=3.4, mfc=METHOD, mec="none", alpha=0.55, rasterized=len(x) > _MANY)
        ax.set(xlim=(-0.02, 1.02), ylim=(low, 1.02))
        _name_genes(ax, dict(zip(pcc.index, zip(x, y, strict=True), strict=True)), marked)
        _plain(ax, "ceiling: √reliability")
        ax.set_title(shortened(str(model), _NAME), fontsize=8.5, color=INK, pad=5, parse_math=False)
        if i == 0:
            ax.set_ylabel("PCC, mean over patients", fontsize=8.5, color=INK)
        ax.axhline(0, color=LINE, lw=0.9, zorder=0)
    return figure


def _name_genes(ax: Axes, at: Mapping[str, tuple[float, float]], marked: Sequence[str]) -> None:
    """Rings and names; names that would meet move apart, highest first."""
    found = {gene: at[gene] for gene in marked if gene in at and np.isfinite(at[gene]).all()}
    low, high = ax.get_ylim()
    room, free = (high - low) / 24, np.inf  # height of a line of text; the lowest place taken
    for gene, (x, y) in sorted(found.items(), key=lambda item: -item[1][1]):
        ax.plot([x], [y], "o", ms=5.2, mfc="none", mec=INK, mew=0.9)
        free = min(y + room / 2, free - room)
        ax.annotate(
            gene,
            (x, y),
            xytext=(x - 0.08, free),
            textcoords="data",
            ha="right",
            va="center",
            fontsize=7.5,
            color=INK,
            arrowprops={"arrowstyle": "-", "color": MUTED, "lw": 0.6, "shrinkB": 3},
            parse_math=False,
        )


def _plain(ax: Axes, label: str) -> None:
    ax.set_xlabel(label, fontsize=8.5, color=INK)
    ax.tick_params(labelsize=8, length=3, width=0.6, color=LINE, labelcolor=INK)
    for side, spine in ax.spines.items():
        spine.set(color=LINE, linewidth=0.7, visible=side in ("left", "bottom"))
