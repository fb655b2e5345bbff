"""TIFF slides through tifffile: which colours are read, where the pixel size is from, one row of tiles at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from histoweave.data._pixels import ImageReadError, ImageRefused, jpeg_is_complete, palette_to_rgb, to_rgb
from histoweave.data.slide_backends import (
    READ_ERRORS,
    Closing,
    Level,
    Reader,
    broken,
    check_tile,
    level_factor,
    plausible,
)

_UM = {
    "pm": 1e-6, "Å": 1e-4, "nm": 1e-3, "\u00b5m": 1.0, "\u03bcm": 1.0, "um": 1.0,
    "mm": 1e3, "cm": 1e4, "m": 1e6, "in": 25400.0,
}  # fmt: skip
_RESOLUTION_UM = {2: 25400.0, 3: 10000.0}  # TIFF ResolutionUnit: inch, centimetre
_MINISWHITE, _MINISBLACK, _RGB, _PALETTE, _YCBCR = 0, 1, 2, 3, 6
_JPEG_COMPRESSIONS = (6, 7, 34892, 33007)


@dataclass(frozen=True, slots=True)
class TiffSource:
    """A TIFF that tifffile reads: tiles or strips; OME, SubIFD and plain pyramids; colours interleaved or as planes."""

    path: Path
    levels: tuple[Level, ...]
    mpp: tuple[float, float] | None

    @classmethod
    def open(cls, path: Path, max_px: int) -> TiffSource:
        """Describe the file from its header; a colour space that cannot be shown as RGB is a `ImageRefused`."""
        with _tifffile(path) as tiff:
            if not tiff.series:
                raise ImageReadError(f"'{path}' holds no image")
            bytes_there, full = tiff.filehandle.size, (0, 0)
            levels: list[Level] = []
            for level in tiff.series[0].levels:
                page = level.keyframe
                _check_colour(path, level, page)
                size = (int(page.imagewidth), int(page.imagelength))
                full = full if levels else size
                strip = (size[0], min(page.rowsperstrip, size[1]))
                tile = (page.tilewidth, page.tilelength) if page.is_tiled else strip
                levels.append(Level(*size, level_factor(full, size), int(tile[0]), int(tile[1])))
                for plane in level.pages:
                    ends = np.add(plane.dataoffsets, plane.databytecounts, dtype=np.float64)
                    if (ends > bytes_there).any():
                        raise ImageRefused(
                            f"'{path}' is truncated: {int((ends > bytes_there).sum())} of its {len(ends)} tiles or "
                            f"strips lie beyond its {bytes_there:,} bytes; copy or download it again"
                        )
            mpp = _ome_mpp(tiff.ome_metadata) if tiff.is_ome else _tag_mpp(tiff.series[0].levels[0].keyframe)
        check_tile(path, levels[0], max_px)
        return cls(path, tuple(levels), mpp)

    def reader(self) -> Reader:
        return _TiffReader(self)


@dataclass(slots=True)
class _TiffReader(Closing):
    source: TiffSource
    tiff: Any = field(init=False)

    def __post_init__(self) -> None:
        self.tiff = _tifffile(self.source.path)

    def tile_row(self, level: int, row: int, wanted: np.ndarray) -> tuple[np.ndarray, int]:
        at, (down, across) = self.source.levels[level], self.source.levels[level].grid
        columns = np.flatnonzero(wanted)
        height = min(at.tile_h, at.height - row * at.tile_h)
        pixels = np.zeros((height, at.width, 3), np.uint8)
        if not len(columns):
            return pixels, 0
        try:
            shown = self.tiff.series[0].levels[level]
            planes = [self._plane(page, row * across + columns + plane * down * across)
                      for page in shown.pages
                      for plane in range(len(page.dataoffsets) // (down * across))]  # fmt: skip
            for column, *parts in zip(columns.tolist(), *planes, strict=True):
                left = column * at.tile_w
                width = min(at.tile_w, at.width - left)
                tile = None if any(part is None for part in parts) else np.concatenate(parts, axis=2)[:height, :width]
                pixels[:, left : left + width] = 255 if tile is None else _shown(tile, shown.keyframe)
        except ImageRefused as error:
            raise ImageRefused(f"'{self.source.path}': {error}") from error
        except READ_ERRORS as error:
            raise ImageReadError(broken(self.source.path, error)) from error
        return pixels, int(np.minimum(at.tile_w, at.width - columns * at.tile_w).sum()) * height

    def _plane(self, page: Any, segments: np.ndarray) -> Iterator[np.ndarray | None]:
        """Tiles (h, w, samples) in the order asked for; None where the file has left one out as background."""
        offsets = [page.dataoffsets[i] for i in segments.tolist()]
        counts = [page.databytecounts[i] for i in segments.tolist()]
        jpeg = page.keyframe.compression in _JPEG_COMPRESSIONS
        tables = {"jpegtables": page.jpegtables, "jpegheader": page.keyframe.jpegheader} if jpeg else {}
        for data, at in self.tiff.filehandle.read_segments(offsets, counts, segments.tolist(), sort=False):
            if data is not None and jpeg and tables["jpegheader"] is None and not jpeg_is_complete(data):
                raise ValueError("a tile ends before its end-of-image marker")  # which libjpeg would not say
            tile = page.decode(data, at, **tables)[0]
            yield None if tile is None else tile[0]

    def close(self) -> None:
        self.tiff.close()


def _tifffile(path: Path) -> Any:
    import tifffile

    try:
        return tifffile.TiffFile(path)
    except READ_ERRORS as error:
        raise ImageReadError(broken(path, error)) from error


def _check_colour(path: Path, level: Any, page: Any) -> None:
    """Refuse, by name, what is not one picture in grey, RGB, RGBA or palette colours."""
    extent = {axis: int(n) for axis, n in zip(level.axes, level.shape, strict=True) if axis not in "YX" and n > 1}
    channels = extent.pop("C", 1) * extent.pop("S", 1)
    kind, samples = int(page.photometric), int(page.samplesperpixel)
    where = f"'{path}' (axes {level.axes}, shape {tuple(level.shape)}, {page.dtype})"
    if extent:
        raise ImageRefused(f"{where} is a stack of pictures; expected one. Save the plane to look at as its own file")
    rgba = samples == 4 and kind == _RGB
    if channels not in (1, 3, 4) or (channels == 4 and not rgba) or (samples > 1 and samples != channels):
        raise ImageRefused(f"{where} has {channels} channels that are not grey, RGB or RGBA (fluorescence, or CMYK?); "
                          "save the stain's RGB image instead")  # fmt: skip
    if page.dtype is None or page.dtype.kind not in "uib":
        raise ImageRefused(f"{where}: pixels of type {page.dtype} have no white; scale them to uint8 and save again")
    in_jpeg = kind == _YCBCR and page.compression in _JPEG_COMPRESSIONS  # its decoder gives RGB
    if kind not in (_MINISWHITE, _MINISBLACK, _RGB, _PALETTE) and not in_jpeg:
        name = getattr(page.photometric, "name", kind)
        raise ImageRefused(f"{where} is stored as {name}, which is not read; convert it to RGB and save again")
    if any(plane is None for plane in level.pages):
        raise ImageRefused(f"{where} lacks one of its colour planes; the file is incomplete: copy or download it again")


def _shown(tile: np.ndarray, page: Any) -> np.ndarray:
    """A decoded tile (h, w, samples) as RGB."""
    kind, bits = int(page.photometric), page.bitspersample
    if kind == _PALETTE:
        return palette_to_rgb(tile, np.asarray(page.colormap))
    premultiplied = bool(page.extrasamples) and int(page.extrasamples[0]) == 1
    rgb = to_rgb(tile, bits=bits if tile.dtype.kind == "u" else None, alpha=True, premultiplied=premultiplied)
    return 255 - rgb if kind == _MINISWHITE else rgb


def _ome_mpp(xml: str | None) -> tuple[float, float] | None:
    """µm per px of the first image of OME metadata; None where absent or in no unit of length."""
    if xml is None or "<!DOCTYPE" in xml:  # no OME writer makes entities; expanding them is a known attack
        return None
    try:
        pixels = ElementTree.fromstring(xml.strip("\0 ")).find(".//{*}Pixels")
    except ElementTree.ParseError:
        return None
    if pixels is None:
        return None
    um = []
    for axis in "XY":
        value, unit = pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "µm")
        if value is None or unit not in _UM:
            return None
        um.append(float(value) * _UM[unit])
    return (um[0], um[1]) if all(math.isfinite(side) and side > 0 for side in um) else None


def _tag_mpp(page: Any) -> tuple[float, float] | None:
    """µm per px of the resolution tags, where a unit is given and the value can be a microscope's."""
    unit = page.tags.valueof("ResolutionUnit")
    um = []
    for axis in "XY":
        ratio = page.tags.valueof(f"{axis}Resolution")
        if unit is None or int(unit) not in _RESOLUTION_UM or not ratio or not ratio[0]:
            return None
        um.append(_RESOLUTION_UM[int(unit)] * ratio[1] / ratio[0])
    return (um[0], um[1]) if all(map(plausible, um)) else None
