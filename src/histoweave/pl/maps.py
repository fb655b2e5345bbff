"""Maps of values over the spots of a section, with the spots at their physical size.

Colours are perceptually uniform (viridis) for expression and blue-white-red for signed error, also for the colour-blind.
Map layers are raster images inside vector figures, so that a section of thousands of spots stays small on disk.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import EllipseCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from histoweave import _keys as K
from histoweave.data.section import PITCH_UM, Section
from histoweave.pp.lattice import pitch

# Ink, secondary ink, hairlines and the ground under maps. The HTML report replaces these by its theme, light or dark.
INK, MUTED, LINE, GROUND = "#1a2129", "#5d6874", "#d5dae0", "#fdfefe"
EXPRESSION, ERROR = "viridis", "RdBu_r"
# Okabe & Ito (2008), without black and yellow: readable as thin rings on pink tissue.
LABELS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#8c6d31", "#4b4f57")
OTHER = "other"
_FILL = {"st": 0.5, "visium": 0.55}  # spot diameter over pitch: 100 of 200 µm, 55 of 100 µm
_TOUCHING = 0.92  # bins, cells and tiles cover the tissue: drawn as large as they can be told apart
_WIDTH = 11.0  # inches
_TITLE, _GAP = 8.5, "  "  # size in pt; what stands between a model and its number
_PER_ROW = 6
_BARS_UM = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
_EMPTY = "#8a929b"  # rim of a spot without a value
_ROBUST = (1.0, 99.0)  # percentiles that span the colour scale


@dataclass(frozen=True, slots=True)
class Plate:
    """Where the spots of a section lie, how large they are, and what is under them.

    Attributes
    ----------
    xy
        Centres (n, 2) as (x, y), level-0 px.
    diameter
        Of a spot, in px.
    um_per_px
        For the scale bar; None leaves it out.
    picture
        RGB pixels (h, w, 3) of the box around the spots, or None.
    labels
        Annotation per spot (n,), missing where there is none; or None.
    """

    xy: np.ndarray
    diameter: float
    um_per_px: float | None = None
    picture: np.ndarray | None = None
    labels: pd.Categorical | None = None

    @classmethod
    def of(cls, section: Section, *, max_px: int = 480) -> Plate:
        """The plate of a section, with its image at `max_px` along the longer side of the box around the spots."""
        xy = section.xy
        um = section.um_per_px
        step = _step(xy)
        if um is not None and section.platform in PITCH_UM:
            step = PITCH_UM[section.platform] / um
        plate = cls(xy, step * _FILL.get(section.platform, _TOUCHING), um, None, _labels(section))
        if section.image is None:
            return plate
        left, right, top, bottom = plate.box
        width, height = section.image.size
        left, top = max(left, 0.0), max(top, 0.0)
        right, bottom = min(right, float(width)), min(bottom, float(height))
        wanted = max_px * max(width, height) / max(right - left, bottom - top)
        whole = section.image.thumbnail(int(min(wanted, 4096)))
        # A thumbnail's sides are rounded; each axis has its own scale.
        fx, fy = whole.shape[1] / width, whole.shape[0] / height
        x, y = np.round([left * fx, right * fx]).astype(int), np.round([top * fy, bottom * fy]).astype(int)
        shown = _padded(whole[y[0] : y[1], x[0] : x[1]], plate.box, (left, right, top, bottom))
        return cls(xy, plate.diameter, um, shown, plate.labels)

    @classmethod
    def bare(cls, xy: np.ndarray) -> Plate:
        """A plate of positions alone: no image, no scale bar."""
        xy = np.asarray(xy, dtype=np.float64)
        return cls(xy, _step(xy) * _TOUCHING)

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, right, top and bottom of what is shown, in px: the spots and one diameter around them."""
        (left, top), (right, bottom) = self.xy.min(axis=0), self.xy.max(axis=0)
        pad = self.diameter
        return float(left - pad), float(right + pad), float(top - pad), float(bottom + pad)

    @property
    def aspect(self) -> float:
        """Height over width of the box, at least 0.25 and at most 4."""
        left, right, top, bottom = self.box
        return float(np.clip((bottom - top) / (right - left), 0.25, 4.0))


def _step(xy: np.ndarray) -> float:
    return pitch(xy) if len(xy) > 1 else 1.0


def _labels(section: Section) -> pd.Categorical | None:
    """The annotation with its commonest values by name; the rest is "other"."""
    if K.LABEL not in section.spots.obs:
        return None
    given = section.spots.obs[K.LABEL].astype(object)
    kept = given.where(given.isna(), given.astype(str))
    names = list(kept.value_counts().index)
    if len(names) > len(LABELS):
        names = [*names[: len(LABELS) - 1], OTHER]
        kept = kept.where(kept.isin(names) | kept.isna(), OTHER)
    return pd.Categorical(kept, categories=sorted(names, key=lambda name: (name == OTHER, name))) if names else None


def _padded(pixels: np.ndarray, box: Sequence[float], seen: Sequence[float]) -> np.ndarray:
    """Pixels of the part `seen` of a box, filled up with white to the whole box."""
    fx = pixels.shape[1] / max(seen[1] - seen[0], 1e-9)
    fy = pixels.shape[0] / max(seen[3] - seen[2], 1e-9)
    pad = [(round((seen[2] - box[2]) * fy), round((box[3] - seen[3]) * fy)),
           (round((seen[0] - box[0]) * fx), round((box[1] - seen[1]) * fx)), (0, 0)]
    return np.pad(pixels, pad, constant_values=255)


# -- figures ----------------------------------------------------------------------------------------------------------


def marker_map(
    plate: Plate, gene: str, truth: np.ndarray, predictions: Mapping[str, np.ndarray], *,
    pcc: Mapping[str, float] | None = None, units: str = "",
) -> Figure:
    """One gene over a section: the image, the truth, and every model's prediction on the truth's colour scale.

    Parameters
    ----------
    truth
        Measured values (n,); NaN where nothing was measured, drawn as an empty ring.
    predictions
        Per model, values (n,).
    pcc
        Per model, the correlation printed over its panel; without it, panels have the models' names alone.
    units
        Of truth and predictions, beside the colour scale.

    Raises
    ------
    ValueError
        Values that do not match the spots of the plate; a truth without one measured spot.
    """
    norm = expression_norm(gene, truth)
    under = [name for name, there in (("image", plate.picture), ("annotation", plate.labels)) if there is not None]
    values = {"measured": truth} | {_titled(m, pcc.get(m, math.nan) if pcc else None): v for m, v in predictions.items()}
    figure, axes, strip = _grid(plate, len(under) + len(values))
    for ax, name in zip(axes, under, strict=False):
        (_draw_image if name == "image" else _draw_labels)(ax, plate)
        _dress(ax, plate, name)
    for ax, (name, shown) in zip(axes[len(under) :], values.items(), strict=True):
        draw_spots(ax, plate, shown, EXPRESSION, norm)
        _dress(ax, plate, name)
    _scale_bar(axes[0], plate)
    _colour_strip(figure, strip, EXPRESSION, norm, units, list(values.values()))
    return figure


def error_map(
    plate: Plate, gene: str, truth: np.ndarray, prediction: np.ndarray, *, model: str, pcc: float | None = None,
    units: str = "", where: str = "",
) -> Figure:
    """Truth, prediction and their difference (prediction - truth, on a scale centred at 0) of one gene over a section.

    Parameters are those of `marker_map`, for one model; `where` follows the titles of truth and difference.
    """
    norm = expression_norm(gene, truth)
    error = np.asarray(prediction, dtype=np.float64) - np.asarray(truth, dtype=np.float64)
    most = float(np.nanpercentile(np.abs(error), _ROBUST[1])) or 1.0
    signed = Normalize(-most, most)
    panels = [(f"measured{where}", truth, EXPRESSION, norm), (_titled(model, pcc), prediction, EXPRESSION, norm),
              (f"predicted − measured{where}", error, ERROR, signed)]
    figure, axes, strip = _grid(plate, 3)
    for ax, (name, values, cmap, scale) in zip(axes, panels, strict=True):
        draw_spots(ax, plate, values, cmap, scale)
        _dress(ax, plate, name)
    _scale_bar(axes[0], plate)
    for ax, cmap, scale, label, of in ((axes[1], EXPRESSION, norm, units, [truth, prediction]),
                                       (axes[2], ERROR, signed, "error, same units", [error])):
        at = ax.get_position()
        _colour_strip(figure, (at.x0 + 0.04 * at.width, strip[1], 0.92 * at.width, strip[3]), cmap, scale, label, of)
    return figure


def expression_norm(gene: str, truth: np.ndarray) -> Normalize:
    """The colour scale of a gene: from the 1st to the 99th percentile of its truth."""
    seen = np.asarray(truth, dtype=np.float64)
    seen = seen[np.isfinite(seen)]
    if not len(seen):
        raise ValueError(f"gene {gene!r} was measured in no spot of this section; choose another gene or section")
    low, high = np.percentile(seen, _ROBUST)
    return Normalize(float(low), float(high) if high > low else float(low) + 1.0)


def draw_spots(ax: Axes, plate: Plate, values: np.ndarray, cmap: str, norm: Normalize) -> EllipseCollection:
    """Spots as discs of their physical size in data coordinates; spots without a value are empty rings."""
    values = np.asarray(values, dtype=np.float64)
    if values.shape != (len(plate.xy),):
        raise ValueError(f"{values.shape} values were given for the {len(plate.xy)} spots of the plate; expected one each")
    known = np.isfinite(values)
    width = _wide(ax) * 72 / (plate.box[1] - plate.box[0])  # pt per px
    edge = 0.25 if plate.diameter * width > 4 else 0.0  # a rim would hide what is smaller
    spots = _discs(ax, plate, plate.xy[known], linewidths=edge, edgecolors="#00000066", cmap=cmap, norm=norm)
    spots.set_array(values[known])
    if not known.all():
        _discs(ax, plate, plate.xy[~known], linewidths=0.35, edgecolors=_EMPTY, facecolors="none")
    return spots


def _discs(ax: Axes, plate: Plate, xy: np.ndarray, **looks: object) -> EllipseCollection:
    side = np.full(len(xy), plate.diameter)
    discs = EllipseCollection(side, side, np.zeros(len(xy)), units="xy", offsets=xy, offset_transform=ax.transData,
                              **looks)
    discs.set_rasterized(True)
    ax.add_collection(discs, autolim=False)
    return discs


def _draw_image(ax: Axes, plate: Plate) -> None:
    if plate.picture is not None:
        left, right, top, bottom = plate.box
        ax.imshow(plate.picture, extent=(left, right, bottom, top), interpolation="antialiased")


def _draw_labels(ax: Axes, plate: Plate) -> None:
    """The annotation of each spot as its colour, with a legend under the panel."""
    if plate.labels is None:
        return
    for code, name in enumerate(plate.labels.categories):
        _discs(ax, plate, plate.xy[plate.labels.codes == code], linewidths=0, facecolors=LABELS[code])
        ax.plot([], [], "o", mfc=LABELS[code], mec="none", ms=5, label=name)
    _discs(ax, plate, plate.xy[plate.labels.codes < 0], linewidths=0.35, edgecolors=_EMPTY, facecolors="none")
    legend = ax.legend(loc="upper left", bbox_to_anchor=(-0.02, -0.04 / _tall(ax)), frameon=False, fontsize=7, labelcolor=INK,
                       handletextpad=0.1, borderpad=0, labelspacing=0.35, handlelength=1.2)
    for text in legend.get_texts():
        text.set_parse_math(False)


# -- layout -----------------------------------------------------------------------------------------------------------


def _grid(plate: Plate, n: int) -> tuple[Figure, list[Axes], tuple[float, float, float, float]]:
    """A figure with n panels of the plate's shape in even rows, and the place of a colour strip below them."""
    rows = math.ceil(n / _PER_ROW) if n != _PER_ROW + 1 else 1
    columns = max(math.ceil(n / rows), 3)
    gap, title, below = 0.12, 0.30, 0.30  # inches
    side = min((_WIDTH - 0.01 - gap * (columns - 1)) / columns, 3.4 / max(plate.aspect, 0.5))
    tall = side * plate.aspect
    legend = 0.0 if plate.labels is None or n == 3 else 0.1 + 0.145 * len(plate.labels.categories)
    below = max(below, legend) if rows > 1 else below
    foot = 0.62 if rows > 1 else max(0.62, legend)
    height = rows * (tall + title) + (rows - 1) * below + foot
    figure = Figure(figsize=(_WIDTH, height), facecolor="none")
    used = columns * side + (columns - 1) * gap
    axes = []
    for i in range(n):
        row, column = divmod(i, columns)
        x = column * (side + gap)
        y = height - (row + 1) * (tall + title) - row * below
        axes.append(figure.add_axes((x / _WIDTH, y / height, side / _WIDTH, tall / height)))
    wide = min(3.2, used / 2)
    return figure, axes, ((used - wide - 0.1) / _WIDTH, (foot - 0.26) / height, wide / _WIDTH, 0.09 / height)


def _wide(ax: Axes) -> float:
    """Width of a panel in inches."""
    return float(ax.get_position().width * ax.get_figure(root=True).get_figwidth())  # type: ignore[union-attr]


def _tall(ax: Axes) -> float:
    """Height of a panel in inches."""
    return float(ax.get_position().height * ax.get_figure(root=True).get_figheight())  # type: ignore[union-attr]


def _dress(ax: Axes, plate: Plate, title: str) -> None:
    left, right, top, bottom = plate.box
    ax.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[])  # y grows downwards, as in the image
    ax.set_facecolor(GROUND)
    room = int(_wide(ax) * 72 / (0.56 * _TITLE))  # characters
    ax.set_title(_fitted(title, room), fontsize=_TITLE, color=INK, pad=4, parse_math=False)
    for spine in ax.spines.values():
        spine.set(color=LINE, linewidth=0.6)


def _titled(model: str, pcc: float | None) -> str:
    return model if pcc is None else f"{model}{_GAP}PCC " + (f"{pcc:.2f}".replace("-", "−") if math.isfinite(pcc) else "–")


def _fitted(title: str, room: int) -> str:
    """A title of at most `room` characters: the model's name is cut, its number is kept."""
    name, gap, score = title.partition(_GAP)
    return shortened(name, room - len(gap + score)) + gap + score


def shortened(name: str, most: int) -> str:
    """A name of at most `most` characters (at least 4), its middle left out."""
    most = max(most, 4)
    return name if len(name) <= most else f"{name[: most - most // 3 - 1]}…{name[-(most // 3) :]}"


def _scale_bar(ax: Axes, plate: Plate) -> None:
    """A bar of a round length below the lower left corner of a panel, about a quarter of its width."""
    if plate.um_per_px is None:
        return
    left, right, *_ = plate.box
    target = (right - left) * plate.um_per_px / 4
    um = min(_BARS_UM, key=lambda bar: abs(math.log(bar / target)))
    length = um / plate.um_per_px / (right - left)
    y = -0.09 / _tall(ax)
    ax.plot([0, length], [y, y], color=INK, lw=1.6, solid_capstyle="butt", transform=ax.transAxes, clip_on=False)
    ax.text(length + 0.03, y, f"{um / 1000:g} mm" if um >= 1000 else f"{um} µm", fontsize=7.5, color=INK, va="center",
            transform=ax.transAxes)


def _colour_strip(
    figure: Figure, place: tuple[float, float, float, float], cmap: str, norm: Normalize, label: str,
    values: Sequence[np.ndarray],
) -> None:
    """A horizontal colour scale with its units; arrows where values lie beyond it."""
    low = any(np.nanmin(v) < norm.vmin for v in values)
    high = any(np.nanmax(v) > norm.vmax for v in values)
    extend = {(True, True): "both", (True, False): "min", (False, True): "max"}.get((low, high), "neither")
    bar = figure.colorbar(ScalarMappable(norm, cmap), cax=figure.add_axes(place), orientation="horizontal", extend=extend)
    bar.outline.set(edgecolor=LINE, linewidth=0.5)
    bar.ax.tick_params(labelsize=7.5, length=2, width=0.5, color=MUTED, labelcolor=INK, pad=2)
    bar.locator = MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10])
    bar.update_ticks()
    bar.ax.set_title(label, fontsize=7.5, color=MUTED, pad=3, parse_math=False, loc="right")
    if bar.solids is not None:
        bar.solids.set_rasterized(True)
