"""Slides: pixel sizes, refused arguments, digests, and handles between processes."""

from __future__ import annotations

import hashlib
import pickle

import numpy as np
import pytest
from tests.data.slides import (
    APERIO,
    HEIGHT,
    KINDS,
    WIDTH,
    collect,
    halves,
    make_picture,
    slide_of,
    somewhere,
    write_tiff,
)

from histoweave.data._slide_file import file_digest
from histoweave.data.image import ImageReadError, SlideImage, Window
from histoweave.data.slide_backends import OpenSlideSource


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return make_picture()


def test_the_side_of_a_window():
    assert Window(um=112).native(0.5) == 224
    assert Window(px=224).native(None) == 224
    with pytest.raises(ValueError, match=r"pass um_per_px.*Window\(px="):
        Window(um=112).native(None)
    with pytest.raises(ValueError, match="um_per_px=0"):
        Window(um=112).native(0)
    for bad in ({}, {"um": 1, "px": 1}, {"um": -1}, {"um": float("nan")}, {"px": 0}, {"px": 5, "out": 0}):
        with pytest.raises(ValueError, match=r"exactly one|positive"):
            Window(**bad)
    with pytest.raises(TypeError, match=r"out=2\.5"):
        Window(um=1, out=2.5)


def test_micrometres_count_with_the_pixel_size_that_wins(picture):
    xy = somewhere(10)
    by_px, _ = collect(SlideImage.from_array(picture), xy, Window(px=60, out=30))
    by_um, _ = collect(SlideImage.from_array(picture, 0.5), xy, Window(um=30, out=30))
    overruled, _ = collect(SlideImage.from_array(picture, 7.0), xy, Window(um=30, out=30), um_per_px=0.5)
    np.testing.assert_array_equal(by_um, by_px)
    np.testing.assert_array_equal(overruled, by_px)
    with pytest.raises(ValueError, match="pixel size"):
        SlideImage.from_array(picture).windows(xy, Window(um=30))


@pytest.mark.parametrize(
    "size,unit,um",
    [
        (0.25, "µm", 0.25),
        (250, "nm", 0.25),
        (2.5e-4, "mm", 0.25),
        (1.0, None, 1.0),
        (1, "pixel", None),
        (None, None, None),
    ],
)
def test_pixel_size_of_ome(size, unit, um, tmp_path, picture):
    metadata = {"axes": "YXS"}
    for axis in "XY":
        metadata |= {} if size is None else {f"PhysicalSize{axis}": size}
        metadata |= {} if unit is None else {f"PhysicalSize{axis}Unit": unit}
    slide = SlideImage.open(write_tiff(tmp_path / "a.ome.tif", [picture], metadata=metadata))
    assert slide.um_per_px == (None if um is None else pytest.approx(um))
    assert SlideImage.open(slide.path, um_per_px=0.4).um_per_px == 0.4


@pytest.mark.parametrize(
    "resolution,unit,um",
    [
        ((20000, 20000), 3, 0.5),
        ((50800, 50800), 2, 0.5),
        ((20000, 20000), 1, None),
        ((72, 72), 2, None),
        ((300, 300), 2, None),
    ],
)
@pytest.mark.parametrize("suffix", [".tif", ".svs"])  # tifffile; OpenSlide's generic TIFF
def test_pixel_size_of_tags(resolution, unit, um, suffix, tmp_path, picture):
    path = write_tiff(tmp_path / f"a{suffix}", [picture], resolution=resolution, resolutionunit=unit)
    found = SlideImage.open(path).um_per_px
    assert found is None if um is None else found == pytest.approx(um)


def test_pixel_size_of_a_vendor(tmp_path, picture):
    for suffix in (".svs", ".tif"):
        path = write_tiff(
            tmp_path / f"a{suffix}", halves(picture), compression="jpeg", description=APERIO.format(mpp=0.499)
        )
        slide = SlideImage.open(path)
        assert isinstance(slide._source, OpenSlideSource)
        assert slide.um_per_px == pytest.approx(0.499)
        pixels, _ = collect(slide, np.array([[180.0, 150.0]]), Window(px=100, out=100))
        assert np.abs(pixels[0].astype(int) - picture[100:200, 130:230]).mean() < 12  # JPEG with thinned-out colours


def test_pixels_that_are_not_square(tmp_path, picture):
    for ratio, fine in ((1.01, True), (1.05, False)):
        path = write_tiff(tmp_path / f"{ratio}.tif", [picture], resolution=(20000 * ratio, 20000), resolutionunit=3)
        if fine:
            assert SlideImage.open(path).um_per_px == pytest.approx(0.5 * (1 + 1 / ratio) / 2)
            continue
        with pytest.raises(ImageReadError, match=r"not square; resample the image, or pass um_per_px"):
            SlideImage.open(path)
        assert SlideImage.open(path, um_per_px=0.5).um_per_px == 0.5
    with pytest.raises(ValueError, match="um_per_px=-1"):
        SlideImage.from_array(picture, -1)


def test_centres_outside_are_counted_and_named(picture):
    slide, xy = SlideImage.from_array(picture), somewhere(20)
    xy[[4, 9]] = [[-1, 5], [WIDTH, 5]]
    with pytest.raises(
        ValueError, match=r"2 of 20 centres lie outside of the image of 360 × 300 px \(rows 4, 9\).*allow"
    ):
        slide.windows(xy, Window(px=20))
    xy[7] = np.nan
    with pytest.raises(ValueError, match=r"1 of 20 centres are not finite.*rows 7"):
        slide.windows(xy, Window(px=20), allow_outside=True)
    for bad in (np.zeros(4), np.zeros((2, 3)), np.array([["a", "b"]]), np.zeros((1, 2), complex)):
        with pytest.raises(ValueError, match=r"shape \(n, 2\)"):
            slide.windows(bad, Window(px=20))
    with pytest.raises(ValueError, match="batch=0"):
        slide.windows(xy, Window(px=20), batch=0)
    with pytest.raises(TypeError, match="expected a Window"):
        slide.windows(xy, 224)


def test_arrays_that_are_no_image(picture):
    for bad in (picture.astype(float), picture[..., 0], picture.tolist(), np.zeros((4, 4, 4), np.uint8)):
        with pytest.raises(TypeError, match=r"uint8 array \(height, width, 3\)"):
            SlideImage.from_array(bad)
    with pytest.raises(ValueError, match="at least one pixel"):
        SlideImage.from_array(picture[:0])
    sliced = SlideImage.from_array(picture[::2, ::-1])
    np.testing.assert_array_equal(sliced.thumbnail(), picture[::2, ::-1])


@pytest.mark.parametrize("kind", KINDS)
def test_handles_travel_between_processes(kind, tmp_path, picture):
    slide, xy = slide_of(kind, tmp_path, picture), somewhere(5)
    before, _ = collect(slide, xy, Window(px=30, out=20))
    with slide.held():
        copy = pickle.loads(pickle.dumps(slide))  # noqa: S301  our own bytes
    assert copy.digest == slide.digest
    assert copy.size == slide.size
    np.testing.assert_array_equal(collect(copy, xy, Window(px=30, out=20))[0], before)
    assert kind == "array" or len(pickle.dumps(slide)) < 5000


def test_digests_are_of_the_content(tmp_path, picture):
    array = SlideImage.from_array(picture)
    assert array.digest == SlideImage.from_array(picture.copy()).digest
    assert array.digest != SlideImage.from_array(picture.reshape(WIDTH, HEIGHT, 3)).digest
    slide = slide_of("png", tmp_path, picture)
    assert slide.digest == hashlib.blake2b(slide.path.read_bytes(), digest_size=32).hexdigest()
    other = tmp_path / "other name.png"
    other.write_bytes(slide.path.read_bytes())
    assert SlideImage.open(other).digest == slide.digest
    other.write_bytes(slide.path.read_bytes() + b"\0")
    assert SlideImage.open(other).digest != slide.digest


def test_the_digest_of_an_mrxs_covers_its_folder(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a.mrxs").write_bytes(b"index")
    seen = {file_digest(tmp_path / "a.mrxs")}
    for name, content in (
        ("Data0001.dat", b"xy"),
        ("Data0000.dat", b"z"),
        ("Data0001.dat", b"x"),
        ("Data0000.dat", b"yz"),
    ):
        (tmp_path / "a" / name).write_bytes(content)
        seen.add(file_digest(tmp_path / "a.mrxs"))
    assert len(seen) == 5


def test_the_handle_says_what_it_is(tmp_path, picture):
    assert repr(slide_of("pages", tmp_path, picture)).endswith("p.tif', 360 × 300 px, 3 levels, µm per px unknown)")
    assert "array" in repr(SlideImage.from_array(picture, 0.5))
