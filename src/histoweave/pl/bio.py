"""Figures of the biology of a prediction: labels, clusters, values, and how much of the variance is left."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from histoweave.pl.maps import (
    ERROR,
    INK,
    LABELS,
    LINE,
    MUTED,
    Plate,
    _discs,
    _dress,
    _grid,
    _scale_bar,
    error_map,
    shortened,
)
from histoweave.pl.scores import CONTROL, METHOD, _plain

_WIDTH = 11.0  # inches
_DOT = 130.0  # area in pt² of a dot that stands for all spots
_MANY = 1500  # points; more are drawn as a raster image
_MOST_RATIO = 2.0  # variance ratios beyond are drawn at the rim
_PANELS = 5  # of cluster means in a row


def de_dots(
    truth: NDArray[np.float64],
    pred: NDArray[np.float64],
    sets: Mapping[str, NDArray[np.bool_]],
    genes: Sequence[str],
    *,
    model: str,
) -> Figure:
    """Genes × labels as dots, measured and predicted side by side.

    A dot's colour is the gene's mean in the label, in standard deviations from its mean over all labelled spots of that
    side; its area the share of the label's spots above the gene's median there. Both sides share one colour scale, and
    each is scaled by itself: a prediction of half the spread looks the same.

    Parameters
    ----------
    truth, pred
        (n, g), truth NaN where nothing was measured.
    sets
        Label → its spots (n,), in the order of the columns.
    genes
        Names (g,), in the order of the rows.

    Raises
    ------
    ValueError
        No gene or no label.
    """
    if not len(genes) or not sets:
        raise ValueError(f"{len(genes)} genes and {len(sets)} labels; expected at least one of each")
    height = 1.15 + 0.24 * len(genes)
    figure = Figure(figsize=(_WIDTH, height), facecolor="none")
    labelled = np.logical_or.reduce(list(sets.values()))
    seen = ~np.isnan(truth)
    shown = [_dot_values(side, seen & labelled[:, None], sets) for side in (truth, pred)]
    most = max(float(np.nanmax(np.abs(means))) if np.isfinite(means).any() else 0.0 for means, _ in shown) or 1.0
    norm = Normalize(-most, most)
    wide, left = 0.62 * len(sets), 0.35 + 0.085 * max(len(str(gene)) for gene in genes)
    for i, (name, (means, share)) in enumerate(zip(("measured", model), shown, strict=True)):
        x = left + i * (wide + 0.55)
        ax = figure.add_axes((x / _WIDTH, 0.62 / height, wide / _WIDTH, (height - 0.95) / height), facecolor="none")
        column, row = np.meshgrid(np.arange(len(sets)), np.arange(len(genes)))
        ax.scatter(
            column.ravel(), row.ravel(), s=_DOT * share.ravel(), c=means.ravel(), cmap=ERROR, norm=norm,
            edgecolors=MUTED, linewidths=0.5, plotnonfinite=False,
        )  # fmt: skip
        ax.set(
            xlim=(-0.6, len(sets) - 0.4),
            ylim=(len(genes) - 0.4, -0.6),
            xticks=range(len(sets)),
            yticks=range(len(genes)),
        )
        ax.set_xticklabels([shortened(str(label), 18) for label in sets], rotation=20, ha="right", parse_math=False)
        ax.set_yticklabels(genes if i == 0 else [], parse_math=False)
        _plain(ax, "")
        ax.set_title(shortened(name, 24), fontsize=8.5, color=INK, pad=5, parse_math=False)
    at = left + 2 * (wide + 0.55)
    _legend_of_dots(figure, (at, height), norm)
    return figure


def _dot_values(
    values: NDArray[np.float64], seen: NDArray[np.bool_], sets: Mapping[str, NDArray[np.bool_]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean z-score and share above the median, (g, labels) each; NaN and 0 where a label has no measured spot."""
    x = np.where(seen, values, np.nan)
    known = seen.any(axis=0)
    middle, spread, half = (np.full(x.shape[1], np.nan) for _ in range(3))
    middle[known], spread[known] = np.nanmean(x[:, known], axis=0), np.nanstd(x[:, known], axis=0)
    half[known] = np.nanmedian(x[:, known], axis=0)
    z = (x - middle) / np.where(spread > 0, spread, 1.0)
    inside = np.stack([np.asarray(rows, dtype=np.float64) for rows in sets.values()])  # (labels, n)
    count = inside @ seen
    mean = np.divide(inside @ np.nan_to_num(z), count, out=np.full(count.shape, np.nan), where=count > 0)
    share = np.divide(inside @ (seen & (x > half)), count, out=np.zeros(count.shape), where=count > 0)
    return mean.T, share.T


def _legend_of_dots(figure: Figure, at: tuple[float, float], norm: Normalize) -> None:
    x, height = at
    bar = figure.add_axes((x / _WIDTH, (height - 0.62) / height, 1.6 / _WIDTH, 0.09 / height))
    strip = figure.colorbar(ScalarMappable(norm, ERROR), cax=bar, orientation="horizontal")
    strip.outline.set(edgecolor=LINE, linewidth=0.5)
    strip.ax.tick_params(labelsize=7.5, length=2, width=0.5, color=MUTED, labelcolor=INK)
    strip.ax.set_title("mean, in sd of the gene", fontsize=7.5, color=MUTED, pad=3, loc="left")
    if strip.solids is not None:
        strip.solids.set_rasterized(True)
    sizes = figure.add_axes((x / _WIDTH, (height - 1.3) / height, 1.6 / _WIDTH, 0.3 / height), facecolor="none")
    sizes.scatter([0, 1, 2], [0, 0, 0], s=[_DOT * share for share in (0.25, 0.5, 1.0)], c=MUTED)
    sizes.set(xlim=(-0.5, 2.5), ylim=(-1, 1), yticks=[], xticks=[0, 1, 2])
    sizes.set_xticklabels(["25 %", "50 %", "100 %"])
    sizes.tick_params(labelsize=7.5, length=0, labelcolor=INK)
    sizes.set_title("spots above the median", fontsize=7.5, color=MUTED, pad=1, loc="left")
    for spine in sizes.spines.values():
        spine.set_visible(False)


def cluster_scatter(means: pd.DataFrame, genes: Sequence[str], *, model: str) -> Figure:
    """Mean expression per cluster, truth against prediction, one panel per gene, with standard errors and the diagonal.

    Parameters
    ----------
    means
        A table of `bio.cluster_means`.
    genes
        Those to draw; the mean absolute error of each stands over its panel.

    Raises
    ------
    ValueError
        None of the genes is in the table.
    """
    chosen = [gene for gene in genes if gene in set(means["gene"])][:_PANELS]
    if not chosen:
        raise ValueError(f"none of the genes {list(genes)[:5]} is in the table of cluster means")
    side = (_WIDTH - 0.6 - 0.55 * (_PANELS - 1)) / _PANELS
    height = side + 0.85
    figure = Figure(figsize=(_WIDTH, height), facecolor="none")
    for i, gene in enumerate(chosen):
        rows = means[(means["gene"] == gene) & means["error"].notna()]
        x = 0.6 + i * (side + 0.55)
        ax = figure.add_axes((x / _WIDTH, 0.5 / height, side / _WIDTH, side / height), facecolor="none")
        ends = rows[["truth", "prediction"]].to_numpy()
        low, high = (float(ends.min()), float(ends.max())) if len(rows) else (0.0, 1.0)
        pad = 0.12 * (high - low) or 0.5
        ax.plot([low - pad, high + pad], [low - pad, high + pad], color=MUTED, lw=0.8)
        for row in rows.itertuples(index=False):
            colour = LABELS[min(int(row.cluster), len(LABELS) - 1)]
            ax.errorbar(row.truth, row.prediction, xerr=np.nan_to_num(row.truth_se), yerr=np.nan_to_num(row.prediction_se),
                        fmt="o", ms=4.5, mfc=colour, mec="none", ecolor=colour, elinewidth=0.8)  # fmt: skip
        ax.set(xlim=(low - pad, high + pad), ylim=(low - pad, high + pad))
        _plain(ax, "measured")
        title = f"{shortened(str(gene), 16)}  mean |error| {rows['error'].abs().mean():.2f}"
        ax.set_title(title, fontsize=8.5, color=INK, pad=5, parse_math=False)
        if i == 0:
            ax.set_ylabel(shortened(model, 24), fontsize=8.5, color=INK, parse_math=False)
    return figure


def cluster_maps(plate: Plate, clusters: Mapping[str, NDArray[np.int64]]) -> Figure:
    """The clusters of a section's spots over its positions, one panel per clustering.

    Parameters
    ----------
    clusters
        Title → cluster per spot (n,), 0 the largest. The eighth and all further clusters share one colour. Clusterings are
        numbered each by itself: equal colours do not mean equal clusters.

    Raises
    ------
    ValueError
        No clustering, or one that does not match the plate.
    """
    bad = {name: len(labels) for name, labels in clusters.items() if len(labels) != len(plate.xy)}
    if bad or not clusters:
        raise ValueError(f"{len(clusters)} clusterings, wrong in length {bad}; expected {len(plate.xy)} spots in each")
    figure, axes, _ = _grid(plate, len(clusters))
    for ax, (name, labels) in zip(axes, clusters.items(), strict=True):
        colours = [LABELS[min(int(code), len(LABELS) - 1)] for code in labels]
        _discs(ax, plate, plate.xy, linewidths=0, facecolors=colours)
        _dress(ax, plate, name)
    _scale_bar(axes[0], plate)
    return figure


def normalised_maps(
    plate: Plate,
    gene: str,
    truth: NDArray[np.float64],
    pred: NDArray[np.float64],
    *,
    model: str,
    pcc: float = math.nan,
) -> Figure:
    """Truth, prediction and error of a gene over a section, as multiples of its mean measured value.

    So genes of different abundance can be compared. Arguments as in `error_map`.

    Raises
    ------
    ValueError
        A gene that was not measured here, or whose mean is not above 0.
    """
    known = np.isfinite(truth)
    mean = float(np.mean(truth[known])) if known.any() else 0.0
    if mean <= 0:
        raise ValueError(f"gene {gene!r} has a mean of {mean:g} in this section; only a mean above 0 can be divided by")
    return error_map(
        plate, gene, truth / mean, pred / mean, model=model, pcc=pcc, units="multiples of the mean measured"
    )


def value_histogram(
    gene: str, truth: NDArray[np.float64], predictions: Mapping[str, NDArray[np.float64]], *, units: str = ""
) -> Figure:
    """How often values occur, measured (filled) and predicted (lines), over the spots in which the gene was measured."""
    known = np.isfinite(truth)
    if not known.any():
        raise ValueError(f"gene {gene!r} was measured in no spot of this section; choose another gene or section")
    values = [truth[known], *(np.asarray(pred)[known] for pred in predictions.values())]
    edges = np.histogram_bin_edges(np.concatenate(values), bins=30).tolist()
    height = 2.6
    figure = Figure(figsize=(_WIDTH, height), facecolor="none")
    ax = figure.add_axes((0.6 / _WIDTH, 0.5 / height, 6.2 / _WIDTH, 1.85 / height), facecolor="none")
    ax.hist(values[0], bins=edges, color=CONTROL, alpha=0.45, label="measured")
    for colour, (name, seen) in zip(_colours(len(predictions)), zip(predictions, values[1:], strict=True), strict=True):
        ax.hist(seen, bins=edges, histtype="step", color=colour, lw=1.3, label=shortened(name, 40))
    _plain(ax, units)
    ax.set_ylabel("spots", fontsize=8.5, color=INK)
    ax.set_title(str(gene), fontsize=8.5, color=INK, pad=5, parse_math=False)
    _legend(ax)
    return figure


def oversmoothing(genes: Mapping[str, pd.DataFrame]) -> Figure:
    """Variance ratio against PCC of every gene of a section, one colour per model.

    The line is the ratio PCC²: a prediction scaled as least squares would have it. Left of it variance is missing that the
    correlation would allow (oversmoothed); right of it there is more than the correlation supports.

    Parameters
    ----------
    genes
        Model → a table of `bio.structure`; constant genes are left out.

    Raises
    ------
    ValueError
        No model with a gene that varies.
    """
    known = {model: table[["variance_ratio", "pcc"]].dropna() for model, table in genes.items()}
    if not any(len(table) for table in known.values()):
        raise ValueError("no gene varies in the truth of this section, so there is no variance ratio to draw")
    height = 3.9
    figure = Figure(figsize=(_WIDTH, height), facecolor="none")
    ax = figure.add_axes((0.6 / _WIDTH, 0.5 / height, 5.4 / _WIDTH, 3.2 / height), facecolor="none")
    r = np.linspace(0, 1, 100)
    ax.plot(r**2, r, color=MUTED, lw=0.9)
    ax.axvline(1, color=MUTED, lw=0.7, ls=(0, (2, 3)))
    for colour, (model, table) in zip(_colours(len(known)), known.items(), strict=True):
        ax.plot(np.minimum(table["variance_ratio"], _MOST_RATIO), table["pcc"], "o", ms=3.6, mfc=colour, mec="none",
                alpha=0.6, label=shortened(model, 40), rasterized=len(table) > _MANY)  # fmt: skip
    lowest = min(float(table["pcc"].min()) for table in known.values() if len(table))
    ax.set(xlim=(-0.03, _MOST_RATIO + 0.03), ylim=(min(-0.1, lowest - 0.05), 1.02))
    ax.axhline(0, color=LINE, lw=0.9, zorder=0)
    _plain(ax, "variance of the prediction / variance of the truth")
    ax.set_ylabel("PCC within the section", fontsize=8.5, color=INK)
    _legend(ax)
    return figure


def _colours(count: int) -> list[str]:
    """One colour per model; a single one has the colour of methods."""
    return [METHOD] if count == 1 else [LABELS[i % len(LABELS)] for i in range(count)]


def _legend(ax: Axes) -> None:
    legend = ax.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), frameon=False, fontsize=8, labelcolor=INK)
    for text in legend.get_texts():
        text.set_parse_math(False)
