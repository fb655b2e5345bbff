"""Slides: the pixels of windows against naive cuts and PIL, and what is decoded for them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.data.slides import (
    HEIGHT,
    KINDS,
    SOURCES,
    TILE,
    WIDTH,
    collect,
    halves,
    make_picture,
    naive,
    slide_of,
    somewhere,
    whole,
    write_tiff,
)

from histoweave.data import _raster
from histoweave.data.image import SlideImage, Window


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return make_picture()


@pytest.mark.parametrize("kind", KINDS)
def test_at_scale_one_windows_are_the_bytes_of_the_file(kind, tmp_path, picture):
    slide = slide_of(kind, tmp_path, picture)
    assert slide.size == (WIDTH, HEIGHT)
    if kind != "array":
        assert type(slide._source) is SOURCES[kind]
    xy = somewhere(70)
    pixels, _ = collect(slide, xy, Window(px=40, out=40), batch=16)
    np.testing.assert_array_equal(pixels, naive(picture, xy, 1.0, 40))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("px,out", [(48, 32), (50, 31), (31, 24), (20, 33)])
def test_resampled_windows_are_cuts_of_the_whole_picture_resampled_by_pil(kind, px, out, tmp_path, picture):
    slide, xy = slide_of(kind, tmp_path, picture), somewhere(60)
    pixels, _ = collect(slide, xy, Window(px=px, out=out))
    expected = naive(whole(picture, out / px), xy, out / px, out)
    assert np.abs(pixels.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("kind", ["pages", "ome", "openslide"])
@pytest.mark.parametrize("reduction,index", [(2, 1), (4, 2), (3, 1), (5, 2)])
def test_the_coarsest_level_that_is_fine_enough_is_read(kind, reduction, index, tmp_path, picture):
    slide, xy, out = slide_of(kind, tmp_path, picture), somewhere(40), 24
    pixels, _ = collect(slide, xy, Window(px=out * reduction, out=out))
    level = halves(picture)[index]
    own = 2**index / reduction
    expected = level if own == 1 else whole(level, own)
    difference = np.abs(pixels.astype(int) - naive(expected, xy, 1 / reduction, out)).max()
    assert difference <= (0 if own == 1 else 1)


def test_bands_and_blocks_do_not_show(monkeypatch, tmp_path, picture):
    """Many small bands and blocks against the picture resampled at once, across tiles."""
    monkeypatch.setattr(_raster, "_BAND_BYTES", 1)
    monkeypatch.setattr(_raster, "_BLOCK", 50)
    xy = somewhere(80, seed=3)
    for kind in ("array", "strips", "pages"):
        slide = slide_of(kind, tmp_path, picture)
        for px, out in ((40, 30), (32, 32), (30, 64)):
            pixels, _ = collect(slide, xy, Window(px=px, out=out))
            expected = naive(picture if px == out else whole(picture, out / px), xy, out / px, out)
            assert np.abs(pixels.astype(int) - expected).max() <= (px != out)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("px,out", [(32, 32), (41, 27)])
def test_a_window_depends_neither_on_the_batch_nor_on_the_others(kind, px, out, tmp_path, picture):
    slide, xy, window = slide_of(kind, tmp_path, picture), somewhere(50), Window(px=px, out=out)
    pixels, inside = collect(slide, xy, window)
    for batch in (1, 7, 1000):
        again = collect(slide, xy, window, batch=batch)
        np.testing.assert_array_equal(again[0], pixels)
        np.testing.assert_array_equal(again[1], inside)
    some = np.array([41, 3, 17, 3])
    np.testing.assert_array_equal(collect(slide, xy[some], window)[0], pixels[some])


def test_all_pieces_but_the_last_are_full(picture):
    lengths = [
        len(rows) for rows, _, _ in SlideImage.from_array(picture).windows(somewhere(50), Window(px=40), batch=16)
    ]
    assert lengths == [16, 16, 16, 2]


@settings(max_examples=60, deadline=None)
@given(
    data=st.lists(st.tuples(st.floats(-60, 120), st.floats(-60, 110)), min_size=1, max_size=12),
    px=st.integers(5, 130),
    out=st.integers(3, 70),
)
def test_outside_is_white_and_inside_is_the_share_of_the_area(data, px, out):
    """A black picture smaller than most windows; centres also outside."""
    size, scale, xy = (61, 47), out / px, np.array(data)
    slide = SlideImage.from_array(np.zeros((size[1], size[0], 3), np.uint8))
    pixels, inside = collect(slide, xy, Window(px=px, out=out), batch=5, allow_outside=True)
    if abs(scale - 1) * max(size) <= 0.49:
        scale = 1.0
    corner = np.floor(xy * scale - out / 2 + 0.5)
    for k in range(len(xy)):
        shown = [
            np.array([max(0.0, min(i + 1, side * scale) - max(i, 0)) for i in np.arange(out) + low])
            for low, side in zip(corner[k], size, strict=True)
        ]
        assert inside[k] == pytest.approx(np.outer(*shown).sum() / out**2, abs=1e-6)
        dark = (shown[1] > 1e-6)[:, None] & (shown[0] > 1e-6)[None, :]
        np.testing.assert_array_equal(pixels[k], np.where(dark, 0, 255)[:, :, None].repeat(3, axis=2))


def test_a_window_far_outside_is_white_and_decodes_nothing(tmp_path, picture):
    slide = slide_of("png", tmp_path, picture)
    pixels, inside = collect(slide, np.array([[-500.0, 20], [20, 5000]]), Window(px=30, out=30), allow_outside=True)
    assert (pixels == 255).all()
    assert (inside == 0).all()
    assert slide.decoded_px == 0
    assert list(slide.windows(np.empty((0, 2)), Window(px=30))) == []


def tiles_reached(xy: np.ndarray, px: int, margin: int, side: int = TILE) -> int:
    """Pixels of the tiles of level 0 that windows and margin meet, tile by tile."""
    reached = np.zeros((HEIGHT, WIDTH), bool)
    for x, y in np.floor(xy - px / 2 + 0.5).astype(int):
        reached[max(0, y - margin) : max(0, y + px + margin), max(0, x - margin) : max(0, x + px + margin)] = True
    total = 0
    for top in range(0, HEIGHT, side):
        for left in range(0, WIDTH, side):
            tile = reached[top : top + side, left : left + side]
            total += tile.size if tile.any() else 0
    return total


@pytest.mark.parametrize("kind", ["pages", "ome", "openslide"])
def test_only_tiles_that_windows_meet_are_decoded_and_once(kind, tmp_path, picture, monkeypatch):
    monkeypatch.setattr(_raster, "_BAND_BYTES", 1)  # bands of the least height: margins are shared by neighbours
    two = np.array([[100.0, 30], [300, 290]])
    slide = slide_of(kind, tmp_path, picture)
    collect(slide, two, Window(px=20, out=20))
    assert slide.decoded_px == tiles_reached(two, 20, 0)

    around = np.array([[dx, dy] for dy in range(-2, 3) for dx in range(-2, 3)]) * 20
    tiles = (somewhere(40)[:, None] + around).reshape(-1, 2)  # 5 × 5 tiles around each spot, overlapping many times
    for window, margin in ((Window(px=20, out=20), 0), (Window(px=20, out=31), 2)):
        slide = slide_of(kind, tmp_path, picture)
        collect(slide, tiles, window, allow_outside=True)
        assert slide.decoded_px <= WIDTH * HEIGHT
        assert slide.decoded_px >= tiles_reached(tiles, 20, margin) - 3 * TILE * TILE
    low = tiles[tiles[:, 1] > 200]
    slide = slide_of(kind, tmp_path, picture)
    collect(slide, low, Window(px=20, out=20), allow_outside=True)
    assert slide.decoded_px == tiles_reached(low, 20, 0) < WIDTH * HEIGHT


@pytest.mark.parametrize("kind", ["pages", "ome", "openslide", "strips"])
def test_covering_a_slide_decodes_every_pixel_exactly_once(kind, tmp_path, picture, monkeypatch):
    monkeypatch.setattr(_raster, "_BAND_BYTES", 1)
    grid = np.stack(np.meshgrid(np.arange(0, WIDTH, 10), np.arange(0, HEIGHT, 10)), -1).reshape(-1, 2)
    for window in (Window(px=32, out=32), Window(px=32, out=30), Window(px=30, out=64)):
        slide = slide_of(kind, tmp_path, picture)
        collect(slide, grid, window)
        assert slide.decoded_px == WIDTH * HEIGHT


def test_a_plain_image_is_decoded_once_a_call_and_let_go(tmp_path, picture):
    slide, xy = slide_of("png", tmp_path, picture), somewhere(9)
    assert slide.decoded_px == 0
    for calls in (1, 2):
        collect(slide, xy, Window(px=30, out=20), batch=2)
        assert slide.decoded_px == calls * WIDTH * HEIGHT
    with slide.held():
        with slide.held():
            collect(slide, xy, Window(px=30, out=20))
        collect(slide, xy, Window(px=30, out=30))
        slide.thumbnail(50)
    assert slide.decoded_px == 3 * WIDTH * HEIGHT
    assert slide._held is None
    slide.thumbnail(50)
    assert slide.decoded_px == 4 * WIDTH * HEIGHT


@pytest.mark.parametrize("kind", KINDS)
def test_thumbnails(kind, tmp_path, picture):
    slide = slide_of(kind, tmp_path, picture)
    small = slide.thumbnail(90)
    assert small.shape == (75, 90, 3)
    pyramid = len(slide._source.levels) > 1
    expected = picture[::4, ::4] // 4 if pyramid else np.asarray(Image.fromarray(picture).resize((90, 75), 2))
    assert np.abs(small.astype(int) - expected).max() <= 1
    assert slide.decoded_px == {"array": 0}.get(kind, 90 * 75 if pyramid else WIDTH * HEIGHT)
    np.testing.assert_array_equal(slide.thumbnail(), picture)
    assert slide.thumbnail(7).shape == (6, 7, 3)
    with pytest.raises(ValueError, match="max_px=0"):
        slide.thumbnail(0)


def test_a_scale_within_half_a_pixel_of_a_whole_one_copies_bytes(picture):
    slide, xy = SlideImage.from_array(picture), somewhere(30)
    close, _ = collect(slide, xy, Window(um=40.03, out=40), um_per_px=1.0)  # 0.27 px over the picture's width
    np.testing.assert_array_equal(close, naive(picture, xy, 1.0, 40))
    corners = np.floor(xy * (40 / 40.03) - 20 + 0.5)  # laid on whole px of the scale as given: they stay there
    laid, _ = collect(slide, (corners + 20) / (40 / 40.03), Window(um=40.03, out=40), um_per_px=1.0, allow_outside=True)
    np.testing.assert_array_equal(laid, naive(picture, corners + 20, 1.0, 40))


def test_levels_of_odd_sizes(tmp_path):
    """A level of 250 columns under one of 1001 is a quarter, not 1 / 4.004."""
    wide = np.random.default_rng(0).integers(0, 255, (99, 1001, 3), dtype=np.uint8)
    slide = SlideImage.open(write_tiff(tmp_path / "a.tif", [wide, wide[:96:4, :1000:4]]))
    assert [level.factor for level in slide._source.levels] == [1.0, 4.0]
    pixels, _ = collect(slide, np.array([[960.0, 48.0]]), Window(px=64, out=16))
    np.testing.assert_array_equal(pixels[0], wide[::4, ::4][4:20, 232:248])
