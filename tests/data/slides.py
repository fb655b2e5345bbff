"""Slides of every kind with one known picture, and what windows of it have to show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from histoweave.data._slide_tiff import TiffSource
from histoweave.data.image import SlideImage, Window
from histoweave.data.slide_backends import OpenSlideSource, PlainSource

WIDTH, HEIGHT, TILE = 360, 300, 64


def make_picture() -> np.ndarray:
    """(300, 360, 3): smooth blobs with noise, so that shifts and mixed-up channels show."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (15, 18, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)).astype(np.int16)
    return np.clip(smooth + rng.integers(-20, 21, smooth.shape), 0, 255).astype(np.uint8)


def write_tiff(path: Path, levels: list[np.ndarray], *, sub: bool = False, **options) -> Path:
    """A tiled TIFF; further levels as SubIFDs or as further pages."""
    options = {"tile": (TILE, TILE), "photometric": "rgb", "compression": "zlib", **options}
    description, metadata = options.pop("description", None), options.pop("metadata", None)
    with tifffile.TiffWriter(path, ome=path.name.endswith(".ome.tif")) as tiff:
        subifds = len(levels) - 1 if sub else None
        tiff.write(levels[0], subifds=subifds, description=description, metadata=metadata, **options)
        options.pop("resolution", None), options.pop("resolutionunit", None)
        for level in levels[1:]:
            tiff.write(level, subfiletype=1, metadata=None, **options)
    return path


def halves(picture: np.ndarray) -> list[np.ndarray]:
    """Levels at 1, 1/2 and 1/4, marked so that it shows which one was read."""
    return [picture, picture[::2, ::2] // 2, picture[::4, ::4] // 4]


APERIO = "Aperio Image Library v10.0\r\n360x300 [0,0 360x300] (64x64)|AppMag = 20|MPP = {mpp}"


def slide_of(kind: str, folder: Path, picture: np.ndarray) -> SlideImage:
    """The same picture through each backend."""
    if kind == "array":
        return SlideImage.from_array(picture)
    if kind == "png":
        Image.fromarray(picture).save(folder / "a.png")
        return SlideImage.open(folder / "a.png")
    if kind == "strips":
        return SlideImage.open(write_tiff(folder / "s.tif", [picture], tile=None, rowsperstrip=16))
    if kind == "pages":
        return SlideImage.open(write_tiff(folder / "p.tif", halves(picture)))
    if kind == "openslide":
        return SlideImage.open(write_tiff(folder / "p.svs", halves(picture)))
    return SlideImage.open(write_tiff(folder / "o.ome.tif", halves(picture), sub=True, metadata={"axes": "YXS"}))


KINDS = ("array", "png", "strips", "pages", "ome", "openslide")
SOURCES = {
    "pages": TiffSource,
    "ome": TiffSource,
    "strips": TiffSource,
    "openslide": OpenSlideSource,
    "png": PlainSource,
}


def collect(slide: SlideImage, xy: np.ndarray, window: Window, **options) -> tuple[np.ndarray, np.ndarray]:
    """Windows and inside in the order of `xy`; each row has to come exactly once."""
    pixels = np.zeros((len(xy), window.out, window.out, 3), np.uint8)
    inside, seen = np.full(len(xy), np.nan, np.float32), np.zeros(len(xy), int)
    for rows, some, part in slide.windows(xy, window, **options):
        assert some.dtype == np.uint8
        assert part.dtype == np.float32
        assert len(rows) == len(some) == len(part)
        pixels[rows], inside[rows] = some, part
        np.add.at(seen, rows, 1)
    assert (seen == 1).all()
    return pixels, inside


def naive(canvas: np.ndarray, xy: np.ndarray, scale: float, out: int) -> np.ndarray:
    """One window after the other from a resampled picture, on white."""
    height, width = canvas.shape[:2]
    far = out + 2000
    padded = np.pad(canvas, ((far, far), (far, far), (0, 0)), constant_values=255)
    cuts = []
    for x, y in np.floor(xy * scale - out / 2 + 0.5).astype(int):
        top, left = np.clip(y, -out, height) + far, np.clip(x, -out, width) + far
        cuts.append(padded[top : top + out, left : left + out])
    return np.array(cuts)


def whole(picture: np.ndarray, scale: float) -> np.ndarray:
    """The picture resampled at once by PIL."""
    height, width = (int(np.ceil(side * scale - 1e-9)) for side in picture.shape[:2])
    beyond = [
        (0, int(np.ceil(n / scale - 1e-9)) - side) for n, side in zip((height, width), picture.shape, strict=False)
    ]
    padded = np.pad(picture, (*beyond, (0, 0)), mode="edge")  # the last px reaches over the edge
    box = (0, 0, width / scale, height / scale)
    return np.asarray(Image.fromarray(padded).resize((width, height), Image.Resampling.BILINEAR, box=box))


def somewhere(n: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).uniform((0, 0), (WIDTH, HEIGHT), (n, 2))
