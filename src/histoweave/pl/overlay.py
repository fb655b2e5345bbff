"""Cells on their image: a figure to check an alignment by eye."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import sparse

from histoweave.data.image import Window
from histoweave.data.section import Section
from histoweave.pl.maps import INK, LINE, MUTED

_WIDTH, _GAP, _TITLE, _EDGE = 11.0, 0.12, 0.3, 0.06  # inches
_TALLEST = 7.0  # inches for the whole slide
_THUMB_PX = 2000
_CROP_PX = 448  # twice the pixels that a crop has in a report of the usual width
_MARK, _RIM = "#ffd21f", "#1a2129"  # seen on pink tissue, on white glass and on black fluorescence
_BARS_UM = (5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)


def overlay(section: Section, *, cells: int = 4000, crops: int = 3, crop_um: float = 150.0, seed: int = 0) -> Figure:
    """The image of a section with the centres of its cells, whole and in crops.

    Above, the whole slide with a sample of the cells; the squares are the crops. Below, each crop without and with all
    its cells. Where the alignment is right, every mark of a crop sits on a nucleus; where all are off in one direction
    it is shifted, where they are off by more towards the edges of the slide it is scaled or turned.

    Parameters
    ----------
    section
        With an image and its µm per px.
    cells
        How many cells the whole slide shows, drawn at random.
    crops
        How many places are looked at closely: spread over the longer axis of the tissue, in each part where the cells
        lie densest, so that an error of scale or rotation, which grows with distance, is seen.
    crop_um
        Side of a crop, µm.
    seed
        Of the sample.

    Returns
    -------
    Figure
        1 + 2 · crops panels.

    Raises
    ------
    ValueError
        No image, or numbers that are not positive.
    """
    if section.image is None or section.um_per_px is None:
        raise ValueError(
            f"section {section.id!r} has no image, so there is nothing to lay cells on; read it with `image=`"
        )
    if cells < 1 or crops < 1 or not crop_um > 0:
        raise ValueError(f"cells={cells!r}, crops={crops!r}, crop_um={crop_um!r}: expected numbers above 0")
    side = crop_um / section.um_per_px  # px
    centres = _places(section.xy, side, crops)
    width, height = section.image.size
    with section.image.held() as image:
        whole = image.thumbnail(_THUMB_PX)
        pictures = np.empty((len(centres), _CROP_PX, _CROP_PX, 3), dtype=np.uint8)
        window = Window(um=crop_um, out=_CROP_PX)
        for rows, pixels, _ in image.windows(centres, window, section.um_per_px, allow_outside=True):
            pictures[rows] = pixels
    figure, above, below = _layout(height / width, len(centres))
    above.imshow(whole, extent=(0, width, height, 0), interpolation="antialiased")
    shown = np.random.default_rng(seed).permutation(section.n)[:cells]
    above.scatter(
        section.xy[shown, 0], section.xy[shown, 1], s=3, c=_MARK, edgecolors=_RIM, linewidths=0.25, rasterized=True
    )
    _dress(above, (0, width, height, 0), f"{section.id}: {len(shown)} of {section.n} cells")
    _scale_bar(above, section.um_per_px)
    for i, (centre, picture) in enumerate(zip(centres, pictures, strict=True)):
        left, top = centre - side / 2
        box = (float(left), float(left + side), float(top + side), float(top))
        inside = section.xy[(np.abs(section.xy - centre) < side / 2).all(axis=1)]
        above.plot(*_square(box), color=_RIM, lw=2.0)
        above.plot(*_square(box), color="#ffffff", lw=0.9)
        above.text(left, top, f"{i + 1} ", color="#ffffff", fontsize=8, ha="right", va="top",
                   bbox={"facecolor": _RIM, "edgecolor": "none", "pad": 1.0})  # fmt: skip
        for ax, marked in zip(below[i], (False, True), strict=True):
            ax.imshow(picture, extent=box, interpolation="antialiased")
            if marked:
                ax.scatter(inside[:, 0], inside[:, 1], s=14, facecolors=_MARK, edgecolors=_RIM, linewidths=0.6)
            _dress(ax, box, f"{i + 1}: {len(inside)} cells" if marked else f"{i + 1}")
    _scale_bar(below[0][1], section.um_per_px)
    return figure


def _places(xy: np.ndarray, side: float, crops: int) -> np.ndarray:
    """Centres (crops, 2) of the densest squares of that side, one in each equal part of the longer axis with cells."""
    axis = int(np.ptp(xy, axis=0).argmax())
    low, high = xy[:, axis].min(), xy[:, axis].max()
    part = np.minimum((xy[:, axis] - low) / max(high - low, 1e-9) * crops, crops - 1).astype(np.int64)
    column, row = np.floor((xy - xy.min(axis=0)) / side).astype(np.int64).T
    places = []
    for p in np.unique(part):  # a handful
        chosen = part == p
        counts = sparse.coo_matrix((np.ones(chosen.sum()), (row[chosen], column[chosen])))
        counts.sum_duplicates()
        fullest = int(counts.data.argmax())
        places.append(xy.min(axis=0) + (np.array([counts.col[fullest], counts.row[fullest]]) + 0.5) * side)
    return np.asarray(places)


# -- layout -----------------------------------------------------------------------------------------------------------


def _layout(aspect: float, crops: int) -> tuple[Figure, Axes, list[tuple[Axes, Axes]]]:
    """A panel of the slide's shape, and two rows of square panels below it."""
    room = _WIDTH - 2 * _EDGE
    wide = min(room, _TALLEST / aspect)
    tall = wide * aspect
    side = min((room - _GAP * (crops - 1)) / crops, 3.4)
    height = tall + 2 * side + 3 * _TITLE + 2 * 0.3
    figure = Figure(figsize=(_WIDTH, height), facecolor="white")

    def panel(x: float, top: float, w: float, h: float) -> Axes:
        return figure.add_axes(((x + _EDGE) / _WIDTH, 1 - (top + h) / height, w / _WIDTH, h / height))

    above = panel(0.0, _TITLE, wide, tall)
    first = 2 * _TITLE + tall + 0.3
    second = first + side + _TITLE
    pairs = [(panel(i * (side + _GAP), first, side, side), panel(i * (side + _GAP), second, side, side))
             for i in range(crops)]  # fmt: skip
    return figure, above, pairs


def _dress(ax: Axes, box: tuple[float, float, float, float], title: str) -> None:
    left, right, bottom, top = box
    ax.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[])  # y grows downwards, as in the image
    ax.set_title(title, fontsize=8.5, color=INK, pad=4, loc="left", parse_math=False)
    for spine in ax.spines.values():
        spine.set(color=LINE, linewidth=0.6)


def _square(box: tuple[float, float, float, float]) -> tuple[list[float], list[float]]:
    left, right, bottom, top = box
    return [left, right, right, left, left], [top, top, bottom, bottom, top]


def _scale_bar(ax: Axes, um_per_px: float) -> None:
    """A bar of a round length below a panel, about a fifth of its width."""
    left, right = ax.get_xlim()
    um = min(_BARS_UM, key=lambda bar: abs(math.log(bar / ((right - left) * um_per_px / 5))))
    length = um / um_per_px / (right - left)
    down = ax.get_position().height * ax.get_figure(root=True).get_figheight()  # type: ignore[union-attr]
    y = -0.12 / down
    ax.plot([0, length], [y, y], color=INK, lw=1.6, solid_capstyle="butt", transform=ax.transAxes, clip_on=False)
    ax.text(length + 0.01, y, f"{um / 1000:g} mm" if um >= 1000 else f"{um} µm", fontsize=7.5, color=MUTED, va="center",
            transform=ax.transAxes)  # fmt: skip
