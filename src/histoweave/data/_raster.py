"""One level of a slide at one scale, row by row: decoded once, resampled once on a fixed grid of blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from PIL import Image

from histoweave.data.slide_backends import Level, Reader

_BAND_BYTES = 64 << 20  # of source or result, whichever is larger: a few bands are all that is held
_BLOCK = 256  # side in px of the squares resampled at a time: margins matter little, and few px that nobody asked for
_FILTER = Image.Resampling.BILINEAR
_SLACK = 1e-9  # rounding noise in products of sizes and scales; far below a pixel


@dataclass(frozen=True, slots=True)
class Raster:
    """The picture of a level at `scale` result px per level px.

    The grid of bands and blocks depends on level and scale only, and each block is resampled with all the source that
    its filter reaches, so a result px has one value whichever windows are asked for.
    """

    level: Level
    index: int
    scale: float

    @property
    def width(self) -> int:
        """Columns of the result, the last of which may be covered in part."""
        return math.ceil(self.level.width * self.scale - _SLACK)

    @property
    def height(self) -> int:
        """Rows of the result, the last of which may be covered in part."""
        return math.ceil(self.level.height * self.scale - _SLACK)

    @property
    def band(self) -> int:
        """Rows of the result worked on at a time."""
        if self.scale == 1:  # whole rows of tiles, passed on without a copy
            rows = max(1, _BAND_BYTES // (3 * self.level.width * self.level.tile_h)) * self.level.tile_h
            return min(rows, self.height) if self.level.grid[0] > 1 else self.height
        widest = max(self.width, self.level.width / self.scale)
        return max(1, int(np.clip(_BAND_BYTES // (3 * widest), 64, 2048)) // self.block) * self.block

    @property
    def block(self) -> int:
        """Rows and columns of the result resampled at a time."""
        return self._whole_periods(_BLOCK)

    def _whole_periods(self, side: int) -> int:
        """About `side`, with edges on whole level px where the scale allows: PIL takes boxes in single precision.

        With simple ratios many values lie halfway between two greys, and the least error in a box would tip them.
        """
        ratio = Fraction(1 / self.scale).limit_denominator(512)
        period = ratio.denominator if abs(float(ratio) * self.scale - 1) < 1e-12 else 1
        return max(1, side // period) * period

    @property
    def reach(self) -> float:
        """How far from its centre, in level px, the triangle filter of a result px looks; one px is for rounding."""
        return max(1.0, 1 / self.scale) + 1

    def bands(
        self, reader: Reader, boxes: np.ndarray, count: Callable[[int], None]
    ) -> Iterator[tuple[int, np.ndarray]]:
        """First row and pixels (h, width, 3) of each band that a box touches, top down.

        Parameters
        ----------
        reader
            The open slide.
        boxes
            (n, 4) int, (top, bottom, left, right) in the result, clipped to it, none empty. Pixels outside of all boxes
            are arbitrary.
        count
            Told the number of source px decoded, as they are.
        """
        side = self.block
        bands = _touched(boxes, (self.band, self.width), (self.height, self.width))
        blocks = _touched(boxes, (side, side), (self.height, self.width))
        level = self.level
        tiles = _touched(self._source(boxes), (level.tile_h, level.tile_w), (level.height, level.width))
        strips = _Strips(level, self.index, reader, tiles, count)
        for band in np.flatnonzero(bands).tolist():
            top, bottom = band * self.band, min((band + 1) * self.band, self.height)
            if self.scale == 1:
                yield top, strips.cut(top, bottom, 0, self.width)
                continue
            rows = np.zeros((bottom - top, self.width, 3), np.uint8)
            first = top // side
            for row, column in np.argwhere(blocks[first : -(-bottom // side)]).tolist():
                y, x = (first + row) * side, column * side
                box = np.array([y, min(y + side, bottom), x, min(x + side, self.width)])
                rows[y - top : box[1] - top, x : box[3]] = self._resampled(strips, box)
            yield top, rows

    def _source(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes (..., 4) of level px that boxes of the result are made from."""
        if self.scale == 1:
            return boxes
        low = np.floor(boxes[..., 0::2] / self.scale - self.reach).astype(np.int64)
        high = np.ceil(boxes[..., 1::2] / self.scale + self.reach).astype(np.int64)
        size = (self.level.height, self.level.width)
        return np.stack([np.maximum(low, 0), np.minimum(high, size)], axis=-1).reshape(boxes.shape)

    def _resampled(self, strips: _Strips, box: np.ndarray) -> np.ndarray:
        """One block of the result."""
        top, bottom, left, right = self._source(box).tolist()
        pixels = strips.cut(top, bottom, left, right)
        edges = box / self.scale
        edges = np.where(np.abs(edges - np.rint(edges)) < 1e-6, np.rint(edges), edges)
        y0, y1, x0, x1 = (edges - [top, top, left, left]).tolist()
        beyond = (max(0, math.ceil(y1 - _SLACK) - (bottom - top)), max(0, math.ceil(x1 - _SLACK) - (right - left)))
        if any(beyond):  # the last px of the result reaches over the edge: it shows the edge
            pixels = np.pad(pixels, ((0, beyond[0]), (0, beyond[1]), (0, 0)), mode="edge")
        height, width = pixels.shape[:2]
        x, y = (max(0.0, x0), min(x1, width)), (max(0.0, y0), min(y1, height))
        columns, rows = int(box[3] - box[2]), int(box[1] - box[0])
        # One axis after the other, as PIL does too; but which comes first there depends on the shape of the block.
        wide = Image.fromarray(pixels).resize((columns, height), _FILTER, box=(x[0], 0, x[1], height))
        return np.asarray(wide.resize((columns, rows), _FILTER, box=(0, y[0], columns, y[1])))


class _Strips:
    """The rows of tiles being looked at. Asked for from top to bottom, each is decoded once and dropped when passed."""

    def __init__(
        self, level: Level, index: int, reader: Reader, tiles: np.ndarray, count: Callable[[int], None]
    ) -> None:
        self.level, self.index, self.reader, self.tiles, self.count = level, index, reader, tiles, count
        self.held: dict[int, np.ndarray] = {}

    def cut(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        """Pixels (h, w, 3) of a box, a view where it lies in one row of tiles."""
        side = self.level.tile_h
        first, last = top // side, (bottom - 1) // side
        for row in [row for row in self.held if row < first]:
            del self.held[row]
        for row in range(first, last + 1):
            if row not in self.held:
                self.held[row] = self._decoded(row)
        parts = [
            self.held[row][max(top - row * side, 0) : bottom - row * side, left:right] for row in range(first, last + 1)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _decoded(self, row: int) -> np.ndarray:
        if not self.tiles[row].any():  # pages of zeros that nothing touches take no memory
            height = min(self.level.tile_h, self.level.height - row * self.level.tile_h)
            return np.zeros((height, self.level.width, 3), np.uint8)
        pixels, decoded = self.reader.tile_row(self.index, row, self.tiles[row])
        self.count(decoded)
        return pixels


def _touched(boxes: np.ndarray, cell: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Which cells (rows, columns) of a grid over `size` any of the boxes (n, 4) meets, from corner counts summed up."""
    shape = [-(-n // side) for n, side in zip(size, cell, strict=True)]
    corners = np.zeros((shape[0] + 1, shape[1] + 1), np.int64)
    top, left = boxes[:, 0] // cell[0], boxes[:, 2] // cell[1]
    bottom, right = (boxes[:, 1] - 1) // cell[0] + 1, (boxes[:, 3] - 1) // cell[1] + 1
    for row, column, sign in ((top, left, 1), (bottom, right, 1), (top, right, -1), (bottom, left, -1)):
        np.add.at(corners, (row, column), sign)
    return corners.cumsum(axis=0).cumsum(axis=1)[:-1, :-1] > 0
