"""What reads the bytes of a slide: OpenSlide, tifffile, plain JPEG and PNG, or an array. See `histoweave.data.image`.

Every source is a picklable description (path and levels), made from the header alone. Its `reader` decodes one row of
tiles at a time, only the tiles asked for, so that whoever walks down a slide decodes nothing twice. A plain image is
one tile.
"""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from histoweave.data._pixels import ImageReadError, ImageRefused, jpeg_is_complete, to_rgb

# A resolution tag outside of these µm per px is a printer's dots per inch (72 dpi is 353 µm), not a microscope's.
PLAUSIBLE_UM = (0.05, 10.0)
# What PIL, imagecodecs (RuntimeError), tifffile (ValueError) and their inner workings raise on bytes they cannot read.
READ_ERRORS = (
    OSError, ValueError, RuntimeError, SyntaxError, LookupError, TypeError, AttributeError, struct.error, zlib.error,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Level:
    """One resolution of a slide: its size in px, level-0 px per px, and the tiles it is stored in."""

    width: int
    height: int
    factor: float
    tile_w: int
    tile_h: int

    @property
    def grid(self) -> tuple[int, int]:
        """Tiles down and across."""
        return -(-self.height // self.tile_h), -(-self.width // self.tile_w)


_Kind = type[BaseException] | None


class Reader(Protocol):
    """An open slide."""

    def __enter__(self) -> Self: ...
    def __exit__(self, kind: _Kind, value: BaseException | None, trace: TracebackType | None) -> None: ...

    def tile_row(self, level: int, row: int, wanted: np.ndarray) -> tuple[np.ndarray, int]:
        """Pixels (h, width, 3) of a row of tiles, black where `wanted` (columns,) is False, and how many it decoded."""
        ...


class Source(Protocol):
    """A described slide."""

    @property
    def path(self) -> Path | None: ...
    @property
    def levels(self) -> tuple[Level, ...]: ...
    @property
    def mpp(self) -> tuple[float, float] | None: ...

    def reader(self) -> Reader: ...


def level_factor(full: tuple[int, int], size: tuple[int, int]) -> float:
    """Level-0 px per px: the whole number that the sizes allow (they are rounded), else the mean ratio of the sides."""
    ratios = [a / b for a, b in zip(full, size, strict=True)]
    whole = round(ratios[0])
    if all(b in (a // whole, -(-a // whole)) for a, b in zip(full, size, strict=True)):
        return float(whole)
    return sum(ratios) / 2


def plausible(um: float) -> bool:
    """Whether a resolution tag can be a microscope's µm per px."""
    return PLAUSIBLE_UM[0] <= um <= PLAUSIBLE_UM[1]


def check_tile(path: Path, level: Level, max_px: int) -> None:
    """Refuse an image whose smallest decodable part is beyond the bound on decoded pixels."""
    px = min(level.tile_w, level.width) * min(level.tile_h, level.height)
    if px > max_px:
        raise ImageRefused(
            f"'{path}' has to be decoded {px:,} px at a time, more than the bound of {max_px:,} px; convert it to a "
            "tiled, pyramidal TIFF, or raise the bound with SlideImage.open(..., max_px=...)"
        )


class Closing:
    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: _Kind, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of file and pixels."""


@dataclass(slots=True)
class _Whole(Closing):
    """An image that is one tile; decoded at the first use and kept until closed."""

    source: PlainSource | ArraySource
    pixels: np.ndarray | None = None

    def tile_row(self, level: int, row: int, wanted: np.ndarray) -> tuple[np.ndarray, int]:
        decoded = 0
        if self.pixels is None:
            self.pixels, decoded = self.source.decode()
        return self.pixels, decoded

    def close(self) -> None:
        self.pixels = None


@dataclass(frozen=True, slots=True)
class ArraySource:
    """Pixels (H, W, 3) uint8 in memory."""

    array: np.ndarray
    path: Path | None = None
    mpp: tuple[float, float] | None = None

    @property
    def levels(self) -> tuple[Level, ...]:
        """The one level."""
        height, width = self.array.shape[:2]
        return (Level(width, height, 1.0, width, height),)

    def decode(self) -> tuple[np.ndarray, int]:
        """The array itself: nothing is decoded."""
        return self.array, 0

    def reader(self) -> Reader:
        return _Whole(self)


@dataclass(frozen=True, slots=True)
class PlainSource:
    """A JPEG or PNG file."""

    path: Path
    levels: tuple[Level, ...]
    mode: str
    bits: int
    mpp: tuple[float, float] | None = None

    @classmethod
    def open(cls, path: Path, max_px: int) -> PlainSource:
        """Describe the file from its header."""
        with path.open("rb") as file, _plugin(path, file) as image:
            mode, (width, height) = image.mode, image.size
            bits = 8
            if image.format == "PNG":
                file.seek(24)  # bit depth in IHDR, which PIL hides where it cuts 16 bits down to 8
                bits = max(8, file.read(1)[0])
        source = cls(path, (Level(width, height, 1.0, width, height),), mode, bits)
        check_tile(path, source.levels[0], max_px)
        return source

    def decode(self) -> tuple[np.ndarray, int]:
        """The pixels (H, W, 3), and their number."""
        import imagecodecs

        level = self.levels[0]
        try:
            data = self.path.read_bytes()
            if data[:2] == b"\xff\xd8" and not jpeg_is_complete(data):
                raise ValueError("the data ends before the end-of-image marker")  # libjpeg would fill in grey
            if self.bits == 16:
                pixels = to_rgb(imagecodecs.png_decode(data), alpha=True)
            elif self.mode in ("L", "RGB") and data[:2] == b"\xff\xd8":
                pixels = to_rgb(imagecodecs.jpeg8_decode(data))
            else:
                pixels = self._with_pillow()
        except ImageRefused as error:
            raise ImageRefused(f"'{self.path}': {error}") from error
        except READ_ERRORS as error:
            raise ImageReadError(broken(self.path, error)) from error
        if pixels.shape != (level.height, level.width, 3):
            raise ImageReadError(
                f"'{self.path}' was {level.width} × {level.height} px when it was opened and now decodes to "
                f"{pixels.shape[1]} × {pixels.shape[0]} px; it was replaced or is corrupt: open it again"
            )
        return pixels, level.width * level.height

    def _with_pillow(self) -> np.ndarray:
        with self.path.open("rb") as file, _plugin(self.path, file) as image:
            if image.mode in ("PA", "LA", "RGBA") or "transparency" in image.info:
                return to_rgb(np.asarray(image.convert("RGBA")), alpha=True)
            return to_rgb(np.asarray(image.convert("RGB")))

    def reader(self) -> Reader:
        return _Whole(self)


def _plugin(path: Path, file: Any) -> Any:
    """PIL's image class for the content. Not `Image.open`: its bound on size is global state, and ours is explicit."""
    from PIL import JpegImagePlugin, PngImagePlugin

    magic = file.read(8)
    file.seek(0)
    try:
        if magic[:3] == b"\xff\xd8\xff":
            return JpegImagePlugin.JpegImageFile(file)
        if magic == b"\x89PNG\r\n\x1a\n":
            return PngImagePlugin.PngImageFile(file)
    except READ_ERRORS as error:
        raise ImageReadError(broken(path, error)) from error
    raise ImageReadError(f"'{path}' is neither JPEG nor PNG (its first bytes are {magic!r}); give it its proper suffix")


def broken(path: Path, error: BaseException) -> str:
    cause = str(error) or type(error).__name__
    return f"cannot decode '{path}': {cause}. The file is truncated or corrupt: copy or download it again"


@dataclass(frozen=True, slots=True)
class OpenSlideSource:
    """A file that OpenSlide reads."""

    path: Path
    levels: tuple[Level, ...]
    mpp: tuple[float, float] | None

    @classmethod
    def open(cls, path: Path, max_px: int) -> OpenSlideSource:
        """Describe the file from its header."""
        import openslide

        with openslide.OpenSlide(path) as slide:
            known, full = slide.properties, slide.dimensions
            levels = []
            for index, (width, height) in enumerate(slide.level_dimensions):
                tile = [int(known.get(f"openslide.level[{index}].tile-{side}", 512)) for side in ("width", "height")]
                levels.append(Level(width, height, level_factor(full, (width, height)), tile[0], tile[1]))
            mpp = [float(known.get(f"openslide.mpp-{axis}", "nan")) for axis in "xy"]
            if known.get("openslide.vendor") == "generic-tiff" and not all(plausible(um) for um in mpp):
                mpp = [math.nan, math.nan]
        check_tile(path, levels[0], max_px)
        return cls(path, tuple(levels), (mpp[0], mpp[1]) if all(um > 0 for um in mpp) else None)

    def reader(self) -> Reader:
        return _OpenSlideReader(self)


class _OpenSlideReader(Closing):
    def __init__(self, source: OpenSlideSource) -> None:
        import openslide

        self.source, self.errors = source, (openslide.OpenSlideError, *READ_ERRORS)
        try:
            self.slide = openslide.OpenSlide(source.path)
        except self.errors as error:
            raise ImageReadError(broken(source.path, error)) from error

    def tile_row(self, level: int, row: int, wanted: np.ndarray) -> tuple[np.ndarray, int]:
        at = self.source.levels[level]
        top, height = row * at.tile_h, min(at.tile_h, at.height - row * at.tile_h)
        pixels, decoded = np.zeros((height, at.width, 3), np.uint8), 0
        factor = self.slide.level_downsamples[level]
        edges = np.flatnonzero(np.diff(wanted.astype(np.int8), prepend=0, append=0))
        for first, last in edges.reshape(-1, 2).tolist():  # runs of neighbouring tiles in one call
            left, right = first * at.tile_w, min(last * at.tile_w, at.width)
            where = (round(left * factor), round(top * factor))
            try:
                region = self.slide.read_region(where, level, (right - left, height))
            except self.errors as error:
                raise ImageReadError(broken(self.source.path, error)) from error
            pixels[:, left:right] = to_rgb(np.asarray(region), alpha=True)
            decoded += (right - left) * height
        return pixels, decoded

    def close(self) -> None:
        self.slide.close()
