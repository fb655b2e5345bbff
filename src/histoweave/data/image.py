"""Slides: pixels of square windows around spots, decoded once, whatever the file format.

`SlideImage` is a lazy handle; `Window` says how large a square is looked at and at how many pixels it is shown.

Formats. JPEG and PNG; TIFF with tiles or strips, OME-TIFF, pyramids as SubIFDs or further pages (tifffile); vendor
slides (OpenSlide). The formats .svs, .ndpi, .mrxs, .scn, .bif and .svslide are *not yet tried on a vendor file*: the
code has run on TIFFs that imitate one.

Coordinates are stored level-0 pixels, (0, 0) being the upper left corner of the first pixel. An EXIF orientation is
*not* applied, because spot positions refer to the pixels as stored.

Colours. Grey is repeated, transparency is laid on white, palettes are looked up, whole numbers of other widths are
scaled from the range of their type (16 bits: divided by 257 and rounded). A CMYK JPEG is converted by Pillow, without
its colour profile. Refused by name: floating point, CMYK and Lab TIFFs, stacks, and other than 1, 3 or 4 channels
(four channels that are separate pictures are taken for fluorescence).

Limits. Damage *within* a JPEG's scan that still parses cannot be seen by any decoder in use here; a cut end can, and
is an error. OpenSlide places reads of levels whose reduction is not a whole number at whole level-0 pixels.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from histoweave.data._pixels import ImageReadError
from histoweave.data._raster import Raster
from histoweave.data._slide_file import check_readable, file_digest, open_source
from histoweave.data._windows import Layout
from histoweave.data.slide_backends import ArraySource, Reader, Source

__all__ = ["ImageReadError", "SlideImage", "Window"]

MAX_TILE_PX = 2_000_000_000  # px decoded in one piece: 6 GB as RGB, more than any microscope writes without tiles
_ANISOTROPY = 0.02
_FARTHEST = 1e9  # px; beyond it a position is a mistake, and whole numbers would overflow
_DRIFT_PX = 0.49  # below half a px, so that corners laid on whole px of the unsnapped scale stay where they are


@dataclass(frozen=True, slots=True)
class Window:
    """A square around a spot and how it is shown.

    Parameters
    ----------
    um
        Side in µm. Exactly one of `um` and `px` is given.
    px
        Side in level-0 px (a habit of papers; the physical size then depends on the scanner).
    out
        Side in px at which the square is shown.

    Raises
    ------
    ValueError
        If none or both of `um` and `px` are given, or a side is not positive.
    TypeError
        If `px` or `out` is not a whole number.
    """

    um: float | None = None
    px: int | None = None
    out: int = 224

    def __post_init__(self) -> None:
        if (self.um is None) == (self.px is None):
            raise ValueError(f"a window's side is in µm or in px, got um={self.um} and px={self.px}; give exactly one")
        for name in ("px", "out"):
            side = getattr(self, name)
            if side is not None and (isinstance(side, bool) or not isinstance(side, int | np.integer)):
                raise TypeError(f"{name}={side!r} is not a whole number of pixels")
        for name in ("um", "px", "out"):
            side = getattr(self, name)
            if side is not None and not (math.isfinite(side) and side > 0):
                raise ValueError(f"{name}={side!r}: the side of a window has to be positive")

    def native(self, um_per_px: float | None) -> float:
        """Return the side in level-0 px on a slide of `um_per_px`.

        Raises
        ------
        ValueError
            If the side is in µm and the pixel size is unknown or not positive.
        """
        if self.px is not None:
            return float(self.px)
        assert self.um is not None
        if um_per_px is None:
            raise ValueError(
                f"a window of {self.um:g} µm needs the slide's pixel size, which its file does not give; pass "
                "um_per_px (µm per level-0 px), or give the window in pixels: Window(px=...)"
            )
        return self.um / _checked_scale(um_per_px)


class SlideImage:
    """A lazy, picklable handle on the picture of a section. Make one with `open` or `from_array`.

    Attributes
    ----------
    size
        (width, height) of level 0 in px.
    um_per_px
        µm per level-0 px: as given, else from the file, else None.
    path
        The file; None for an array.
    decoded_px
        Source pixels decoded through this handle so far (those of an array are there already and not counted).
    """

    def __init__(self, source: Source, um_per_px: float | None) -> None:
        self._source = source
        self.um_per_px = um_per_px
        self.decoded_px = 0
        self._digest: str | None = None
        self._held: Reader | None = None

    @classmethod
    def open(cls, path: str | Path, um_per_px: float | None = None, *, max_px: int = MAX_TILE_PX) -> SlideImage:
        """Open a slide; only its header is read.

        Parameters
        ----------
        path
            A file of one of the formats above.
        um_per_px
            µm per level-0 px. Wins over what the file says; without it the file is asked (OpenSlide's mpp, OME
            PhysicalSize, TIFF resolution with a unit and between 0.05 and 10 µm).
        max_px
            Largest number of px to decode in one piece: the image for JPEG and PNG, a tile or strip for TIFF.

        Raises
        ------
        FileNotFoundError, PermissionError
            If there is no such file, or it may not be read.
        ImageReadError
            A `ValueError`: unknown suffix, truncated or corrupt file (with the cause of every reader tried), colours
            that are not read, too many pixels in one piece, pixels that are not square (sides more than 2 % apart).
        """
        path = Path(path)
        check_readable(path)
        source = open_source(path, max_px)
        if um_per_px is None and source.mpp is not None:
            x, y = source.mpp
            if max(x, y) > (1 + _ANISOTROPY) * min(x, y):
                raise ImageReadError(
                    f"'{path}' has pixels of {x:g} × {y:g} µm, which are not square; resample the image, or pass "
                    "um_per_px if the file is wrong"
                )
            um_per_px = (x + y) / 2
        return cls(source, None if um_per_px is None else _checked_scale(um_per_px))

    @classmethod
    def from_array(cls, array: np.ndarray, um_per_px: float | None = None) -> SlideImage:
        """Wrap pixels (H, W, 3) uint8, which the handle keeps (and pickles), uncopied if they are contiguous."""
        shape: tuple[int, ...] = getattr(array, "shape", ())
        if getattr(array, "dtype", None) != np.uint8 or len(shape) != 3 or shape[2] != 3:
            got = f"{getattr(array, 'dtype', type(array).__name__)} {shape}"
            raise TypeError(f"an image in memory is a uint8 array (height, width, 3), got {got}")
        if 0 in array.shape:
            raise ValueError(f"an image has at least one pixel, got the shape {array.shape}")
        kept = np.ascontiguousarray(array).view()
        kept.flags.writeable = False
        return cls(ArraySource(kept), None if um_per_px is None else _checked_scale(um_per_px))

    def __repr__(self) -> str:
        name = "array" if self.path is None else f"'{self.path}'"
        scale = "unknown" if self.um_per_px is None else f"{self.um_per_px:g}"
        levels, (width, height) = len(self._source.levels), self.size
        return f"SlideImage({name}, {width} × {height} px, {levels} levels, µm per px {scale})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": None}  # an open file stays with its process

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of level 0 in px."""
        return self._source.levels[0].width, self._source.levels[0].height

    @property
    def path(self) -> Path | None:
        """The file; None for an array."""
        return self._source.path

    @property
    def digest(self) -> str:
        """BLAKE2b of the whole content in hex: the file (.mrxs: and its folder), or an array's shape and bytes."""
        if self._digest is None:
            if isinstance(self._source, ArraySource):
                state = hashlib.blake2b(repr(self._source.array.shape).encode(), digest_size=32)
                state.update(self._source.array.data)
                self._digest = state.hexdigest()
            else:
                assert self.path is not None
                self._digest = file_digest(self.path)
        return self._digest

    @contextmanager
    def held(self) -> Iterator[Self]:
        """Keep the file open, and a JPEG or PNG decoded, between the calls made inside; let go of them afterwards.

        Without it every call of `windows` and `thumbnail` decodes on its own and keeps nothing. May be nested; a
        generator from `windows` has to be used up inside.
        """
        if self._held is not None:
            yield self
            return
        with self._source.reader() as self._held:
            try:
                yield self
            finally:
                self._held = None

    @contextmanager
    def _reader(self) -> Iterator[Reader]:
        if self._held is not None:
            yield self._held
        else:
            with self._source.reader() as reader:
                yield reader

    def _count(self, decoded: int) -> None:
        self.decoded_px += decoded

    def windows(
        self,
        xy: np.ndarray,
        window: Window,
        um_per_px: float | None = None,
        *,
        batch: int = 64,
        allow_outside: bool = False,
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Cut windows around centres, top down, each source pixel being decoded at most once.

        With scale = `window.out` / native side, the slide is resampled once to that scale (triangle filter that widens
        with the reduction, on the coarsest level that is fine enough), and a window is the whole-pixel cut of it whose
        upper left corner is floor(scale · xy − out / 2 + ½). At scale 1, or that of a stored level, its bytes are those
        of the file. A scale so close to one of these that no window moves by half a pixel is taken for it. What a window
        shows does not depend on the other windows nor on `batch`.

        Parameters
        ----------
        xy
            (n, 2) centres (x, y) in level-0 px.
        window
            The square around each.
        um_per_px
            Overrules that of the handle.
        batch
            Windows per item; the last one may be smaller.
        allow_outside
            Whether centres may lie outside of the image, as those of neighbour tiles do.

        Yields
        ------
        rows (b,) int64, the positions in `xy`; pixels (b, out, out, 3) uint8, white outside of the image; inside (b,)
        float32, the part of the window's area that lies in the image. Every row occurs once: first those wholly
        outside, then by upper edge, left edge, row.

        Raises
        ------
        ValueError
            At the call: unusable `xy`, centres outside, unknown pixel size; while walking, as `ImageReadError`: a file
            that turns out to be truncated or corrupt.
        """
        if not isinstance(window, Window):
            raise TypeError(f"expected a Window, got {type(window).__name__}; write Window(um=112) or Window(px=224)")
        if not _is_count(batch):
            raise ValueError(f"batch={batch!r}: expected a whole number of windows, at least 1")
        centres = _checked_centres(xy, self.size, self.path, allow_outside=allow_outside)
        native = window.native(self.um_per_px if um_per_px is None else um_per_px)
        layout = Layout.of(centres, self.size, int(window.out), self._raster(window.out / native))
        return self._cut(layout, int(batch))

    def _cut(self, layout: Layout, batch: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        if len(layout.rows) == layout.blank:  # nothing to see: nothing to decode
            yield from layout.cut(None, batch, self._count)
            return
        with self._reader() as reader:
            yield from layout.cut(reader, batch, self._count)

    def _raster(self, scale: float) -> Raster:
        """The coarsest level that is fine enough for `scale` (result px per level-0 px), at that scale."""
        raster = Raster(self._source.levels[0], 0, scale)
        for index, level in enumerate(self._source.levels):
            own = scale * level.factor
            if abs(own - 1) * max(level.width, level.height) <= _DRIFT_PX:
                own = 1.0
            if index == 0 or (own <= 1 and level.factor > raster.level.factor):
                raster = Raster(level, index, own)
        return raster

    def thumbnail(self, max_px: int = 1024) -> np.ndarray:
        """Return the whole slide as uint8 (h, w, 3), its longer side at most `max_px` px; never enlarged.

        Made from the coarsest level that is fine enough; a JPEG or PNG is decoded once.
        """
        if not _is_count(max_px):
            raise ValueError(f"max_px={max_px!r}: expected a whole number of pixels, at least 1")
        raster = self._raster(min(1.0, max_px / max(self.size)))
        box = np.array([[0, raster.height, 0, raster.width]])
        with self._reader() as reader:
            bands = [rows for _, rows in raster.bands(reader, box, self._count)]
        return np.concatenate(bands)[:max_px, :max_px]


def _is_count(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= 1)


def _checked_scale(um_per_px: float) -> float:
    if not (math.isfinite(um_per_px) and um_per_px > 0):
        raise ValueError(f"um_per_px={um_per_px!r}: expected a positive number of µm per level-0 px")
    return float(um_per_px)


def _checked_centres(xy: np.ndarray, size: tuple[int, int], path: Path | None, *, allow_outside: bool) -> np.ndarray:
    """Centres (n, 2) as float64, or an error that names what is wrong with them and where."""
    centres = np.asarray(xy)
    if centres.ndim != 2 or centres.shape[1] != 2 or centres.dtype.kind not in "uif":
        raise ValueError(f"xy: expected numbers of shape (n, 2), columns x and y; got {centres.dtype} {centres.shape}")
    centres = centres.astype(np.float64)
    name = "the image" if path is None else f"'{path}'"
    wild = np.flatnonzero(~np.isfinite(centres).all(axis=1) | (np.abs(centres) > _FARTHEST).any(axis=1))
    if len(wild):
        raise ValueError(
            f"xy: {len(wild)} of {len(centres)} centres are not finite positions (rows {_first(wild)}); drop them"
        )
    outside = np.flatnonzero(((centres < 0) | (centres >= size)).any(axis=1))
    if len(outside) and not allow_outside:
        raise ValueError(
            f"xy: {len(outside)} of {len(centres)} centres lie outside of {name} of {size[0]} × {size[1]} px (rows "
            f"{_first(outside)}). Are they level-0 pixels of this file? Pass allow_outside=True if so meant"
        )
    return centres


def _first(rows: np.ndarray) -> str:
    return ", ".join(map(str, rows[:5].tolist())) + (", ..." if len(rows) > 5 else "")
