"""Figures of completion: error against the share of entries that was hidden, and maps of what was filled in."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from histoweave.pl.maps import EXPRESSION, INK, LINE, MUTED, Plate, draw_spots, expression_norm, shortened
from histoweave.pl.scores import CONTROL, METHOD

_WIDTH = 11.0  # inches
_APART = 0.045  # least distance of two names at the end of curves, as a share of the height of the axes


def rate_curves(
    errors: pd.DataFrame,
    *,
    controls: Collection[str] = (),
    dashed: Collection[str] = (),
    trained_at: float | None = None,
    of: str = "measured",
) -> Figure:
    """Squared error of hidden entries against their share, a line per model, on a logarithmic scale.

    Parameters
    ----------
    errors
        Rates (rows, ascending) × models; NaN where a curve has no point.
    controls
        Models drawn in grey.
    dashed
        Models whose curve is dashed.
    trained_at
        The rate of the run itself, marked by a line.
    of
        Which entries the rates are shares of: ``measured`` ones, or ``all``.

    Raises
    ------
    ValueError
        Fewer than two rates, or no model.
    """
    if len(errors) < 2 or errors.shape[1] == 0:
        raise ValueError(f"errors have shape {errors.shape}; expected two rates or more (rows) and a model (columns)")
    figure = Figure(figsize=(_WIDTH, 4.4), facecolor="none")
    ax = figure.add_axes((0.07, 0.13, 0.65, 0.84), facecolor="none")
    ax.set_yscale("log")
    if trained_at is not None:
        ax.axvline(100 * trained_at, color=LINE, lw=1.0, zorder=0)
    rates = 100 * errors.index.to_numpy(dtype=np.float64)
    for model in errors.columns:
        colour = CONTROL if model in controls else METHOD
        there = errors[model].notna().to_numpy()
        ax.plot(rates[there], errors[model][there], "o--" if model in dashed else "o-", color=colour, ms=4, lw=1.4,
                zorder=2 if model in controls else 3)  # fmt: skip
    ax.set_xlabel(f"hidden share of {'the measured' if of == 'measured' else 'all'} entries (%)", color=INK)
    ax.set_ylabel("squared error of hidden entries", color=INK)
    ax.tick_params(colors=MUTED, which="both")
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(LINE)
    ax.margins(y=0.08)
    ax.autoscale_view()  # the scale is settled only now, and names stand at the ends of the curves
    last = errors.ffill().iloc[-1].sort_values()
    places = ax.transAxes.inverted().transform(
        ax.transData.transform(np.column_stack([np.full(len(last), rates[-1]), last.to_numpy()]))
    )[:, 1]
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + _APART)
    for i in range(len(places)):  # from the top: what was pushed out of the axes comes down again
        places[-1 - i] = min(places[-1 - i], 1 - i * _APART)
    for model, y in zip(last.index, places, strict=True):
        text = ax.text(1.01, y, shortened(str(model), 34), transform=ax.transAxes, va="center", fontsize=8.5,
                       color=CONTROL if model in controls else METHOD)  # fmt: skip
        text.set_parse_math(False)
    return figure


def completion_maps(
    plate: Plate, gene: str, rows: Mapping[float, Mapping[str, np.ndarray]], *, units: str = ""
) -> Figure:
    """One gene over a section: what was measured, what of it was shown, and how models completed it; a row per rate.

    Parameters
    ----------
    rows
        Rate of hidden entries → title of a panel → values (n,), NaN where there is none. Panels are the same in every row;
        the first is what was measured, and sets the colours of all.
    """
    if not rows:
        raise ValueError("no rate was given; expected one row of panels or more")
    titles = list(next(iter(rows.values())))
    columns, height = len(titles), plate.aspect
    side = _WIDTH / columns
    tall = side * height + 0.25
    figure = Figure(figsize=(_WIDTH, tall * len(rows) + 0.45), facecolor="none")
    total = tall * len(rows) + 0.45
    norm = expression_norm(gene, next(iter(rows.values()))[titles[0]])
    drawn = None
    for r, (rate, panels) in enumerate(rows.items()):
        for c, title in enumerate(titles):
            box = (c / columns + 0.004, 1 - (tall * (r + 1)) / total, 1 / columns - 0.008, side * height / total)
            ax = figure.add_axes(box, facecolor="none")
            left, right, top, bottom = plate.box
            ax.set_xlim(left, right)
            ax.set_ylim(bottom, top)
            ax.set_axis_off()
            drawn = draw_spots(ax, plate, panels[title], EXPRESSION, norm)
            name = f"{shortened(title, 24)}" + (f", {rate:.0%} hidden" if c == 1 else "")
            text = ax.set_title(name, fontsize=8, color=INK, pad=3, loc="left")
            text.set_parse_math(False)
    assert drawn is not None
    bar = figure.colorbar(drawn, cax=figure.add_axes((0.01, 0.30 / total, 0.3, 0.10 / total)), orientation="horizontal")
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7, colors=MUTED)
    label = figure.text(0.33, 0.30 / total, f"{gene}: {units}", fontsize=8, color=INK)
    label.set_parse_math(False)
    return figure
