"""The overlay: marks where the cells are, crops that show the place under them, in the image's orientation."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from matplotlib.axes import Axes

import histoweave as hw
from histoweave.data.section import Section

UM = 0.5
NUCLEUS = np.array([200, 30, 90], dtype=np.uint8)


def section(shift: float = 0.0) -> Section:
    """A hundred cells, each on a 7 × 7 px nucleus of a grey image of 1200 × 300 px."""
    rng = np.random.default_rng(3)
    at = np.unique(rng.integers([5, 5], [1190, 290], (100, 2)), axis=0)
    pixels = np.full((300, 1200, 3), 128, dtype=np.uint8)
    for x, y in at:
        pixels[y - 3 : y + 4, x - 3 : x + 4] = NUCLEUS
    return hw.make_section(
        id="S", patient="p", counts=np.ones((len(at), 1)), genes=["G"], xy=at + 0.5 + [0, shift], platform="xenium",
        um_per_px=UM, image=hw.SlideImage.from_array(pixels, um_per_px=UM),
    )  # fmt: skip


def crops(given: Section, **options: int) -> list[Axes]:
    """The panels of marked crops."""
    figure = hw.pl.overlay(given, crop_um=60.0, **options)  # type: ignore[arg-type]
    assert len(figure.savefig(buffer := BytesIO(), dpi=40) or buffer.getvalue()) > 1000
    return [ax for ax in figure.axes[1:] if ax.collections]


def under(ax: Axes) -> np.ndarray:
    """Colours of a panel's picture under its marks (m, 3), found through the extent it is drawn at."""
    picture = np.asarray(ax.images[0].get_array())
    left, right, bottom, top = ax.images[0].get_extent()
    x, y = np.asarray(ax.collections[0].get_offsets()).T
    row = ((y - top) / (bottom - top) * len(picture)).astype(int)
    return picture[row, ((x - left) / (right - left) * picture.shape[1]).astype(int)]


def test_marks_lie_on_nuclei_and_an_error_is_seen() -> None:
    panels = crops(section())
    assert len(panels) == 3
    for ax in panels:
        assert len(ax.collections[0].get_offsets()) > 1
        np.testing.assert_allclose(under(ax), np.broadcast_to(NUCLEUS, (len(under(ax)), 3)), atol=2)
    off = np.concatenate([under(ax) for ax in crops(section(shift=8))])
    assert (off[:, 1] > 100).mean() > 0.7  # on the grey between the nuclei


def test_crops_are_spread_and_hold_all_their_cells() -> None:
    given = section()
    panels = crops(given, crops=4)
    middles = [np.mean(ax.get_xlim()) for ax in panels]
    assert np.floor(np.array(middles) / 300).astype(int).tolist() == [0, 1, 2, 3]
    for ax in panels:
        (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
        assert bottom > top and right - left == pytest.approx(60 / UM)
        inside = (given.xy > [left, top]).all(axis=1) & (given.xy < [right, bottom]).all(axis=1)
        assert len(ax.collections[0].get_offsets()) == inside.sum()
        assert ax.get_title(loc="left").endswith(f"{inside.sum()} cells")


def test_the_whole_slide_shows_a_sample() -> None:
    given = section()
    figure = hw.pl.overlay(given, cells=40)
    whole = figure.axes[0]
    marks = np.asarray(whole.collections[0].get_offsets())
    assert len(marks) == 40 and {tuple(m) for m in marks} <= {tuple(xy) for xy in given.xy}
    assert whole.get_xlim() == (0, 1200) and whole.get_ylim() == (300, 0)
    assert whole.get_title(loc="left") == f"S: 40 of {given.n} cells"
    again = hw.pl.overlay(given, cells=40).axes[0].collections[0].get_offsets()
    np.testing.assert_array_equal(marks, again)
    assert len(hw.pl.overlay(given).axes[0].collections[0].get_offsets()) == given.n


def test_a_single_cell() -> None:
    given = section()
    one = given.with_spots(given.spots[:1].copy())
    assert len(hw.pl.overlay(one).axes) == 1 + 2


def test_what_is_refused() -> None:
    given = section()
    bare = hw.make_section(id="S", patient="p", counts=np.ones((1, 1)), genes=["G"], xy=[[1.0, 1.0]], platform="xenium",
                           um_per_px=UM)  # fmt: skip
    with pytest.raises(ValueError, match="'S' has no image"):
        hw.pl.overlay(bare)
    with pytest.raises(ValueError, match=r"crops=0.*numbers above 0"):
        hw.pl.overlay(given, crops=0)
    with pytest.raises(ValueError, match=r"crop_um=-1"):
        hw.pl.overlay(given, crop_um=-1)
