"""Where windows lie on a resampled slide, and how they are cut out of it, many at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from histoweave.data._raster import Raster
from histoweave.data.slide_backends import Reader


@dataclass(frozen=True, slots=True)
class Layout:
    """Windows of one side in the order in which they are cut: those wholly outside, then by upper edge, left edge, row.

    `rows`, `top` and `left` (n,) int64, corners in px of the raster; `inside` (n,) float32 as areas; the first `blank`
    windows show nothing.
    """

    rows: np.ndarray
    top: np.ndarray
    left: np.ndarray
    inside: np.ndarray
    blank: int
    out: int
    raster: Raster

    @classmethod
    def of(cls, centres: np.ndarray, size: tuple[int, int], out: int, raster: Raster) -> Layout:
        """Lay windows around `centres` (n, 2) in px of a level 0 of `size` (width, height)."""
        scale = raster.scale / raster.level.factor
        left, top = np.floor(centres * scale - out / 2 + 0.5).astype(np.int64).T
        inside = np.ones(len(centres))
        blank = np.zeros(len(centres), bool)
        for low, side, cells in ((left, size[0], raster.width), (top, size[1], raster.height)):
            inside *= np.clip(np.minimum(low + out, side * scale) - np.maximum(low, 0), 0, out) / out
            blank |= (low >= cells) | (low + out <= 0)
        order = np.lexsort((left, top, ~blank))  # stable, so that rows break ties
        return cls(order, top[order], left[order], inside[order].astype(np.float32), int(blank.sum()), out, raster)

    def cut(
        self, reader: Reader | None, batch: int, count: Callable[[int], None]
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Rows (b,), pixels (b, out, out, 3) and inside (b,), in pieces of `batch`."""
        n, start = len(self.rows), 0
        page = np.empty((min(batch, n), self.out, self.out, 3), np.uint8)
        for first, last, pixels, offset in self._ready(reader, count):
            while first < last:
                stop = min(last, start + len(page))
                self._gather(pixels, offset, slice(first, stop), page[first - start : stop - start])
                first = stop
                if stop == start + len(page):
                    yield self.rows[start:stop], page, self.inside[start:stop]
                    start = stop
                    page = np.empty((min(batch, n - start), self.out, self.out, 3), np.uint8)

    def _ready(
        self, reader: Reader | None, count: Callable[[int], None]
    ) -> Iterator[tuple[int, int, np.ndarray | None, int]]:
        """Runs [first, last) of windows with pixels that hold them, whose first row is raster row `offset`."""
        if self.blank:
            yield 0, self.blank, None, 0
        height, width = self.raster.height, self.raster.width
        top, bottom = np.maximum(self.top, 0), np.minimum(self.top + self.out, height)
        left, right = np.maximum(self.left, 0), np.minimum(self.left + self.out, width)
        boxes = np.stack([top, bottom, left, right], axis=1)[self.blank :]
        if reader is None:
            return
        first, pixels, offset = self.blank, np.empty((0, width, 3), np.uint8), 0
        for row, band in self.raster.bands(reader, boxes, count):
            keep = pixels[top[first] - offset :] if top[first] < row else pixels[:0]
            pixels, offset = (np.concatenate([keep, band]), row - len(keep)) if len(keep) else (band, row)
            last = int(np.searchsorted(bottom[self.blank :], row + len(band), side="right")) + self.blank
            if last > first:
                yield first, last, pixels, offset
            first = last
            if first == len(self.rows):
                return

    def _gather(self, pixels: np.ndarray | None, offset: int, which: slice, page: np.ndarray) -> None:
        """Copy windows into `page` (b, out, out, 3)."""
        if pixels is None:
            page[:] = 255
            return
        out, (rows, columns) = self.out, pixels.shape[:2]
        y, x = self.top[which] - offset, self.left[which]
        whole = (y >= 0) & (x >= 0) & (y + out <= rows) & (x + out <= columns)
        if whole.any():
            # Every window of the picture as lines of bytes: one indexed copy moves whole lines.
            lines = np.lib.stride_tricks.as_strided(
                pixels,
                (rows - out + 1, columns - out + 1, out, out * 3),
                (pixels.strides[0], pixels.strides[1], pixels.strides[0], 1),
                writeable=False,
            )
            flat = page.reshape(len(page), out, out * 3)
            if whole.all():
                flat[:] = lines[y, x]
            else:
                flat[whole] = lines[y[whole], x[whole]]
        if not whole.all():
            down = y[~whole, None] + np.arange(out)  # (b, out)
            across = x[~whole, None] + np.arange(out)
            cut = pixels[np.clip(down, 0, rows - 1)[:, :, None], np.clip(across, 0, columns - 1)[:, None, :]]
            beside = (across < 0) | (across >= columns)
            beyond = (down + offset < 0) | (down + offset >= self.raster.height)
            cut[beyond[:, :, None] | beside[:, None, :]] = 255
            page[~whole] = cut
