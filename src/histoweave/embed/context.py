"""Where the windows of a section lie: on its spots, and in the square of tiles around each; equal windows are one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Tiles:
    """Distinct windows of a section: first those of the n spots, then the u further ones of their contexts.

    `centres` (n + u, 2) are level-0 pixels (x, y); `index` (n, k * k) int32 gives each tile's row in them, row-major
    from the top left, None without context.
    """

    centres: np.ndarray
    index: np.ndarray | None


def lay_tiles(xy: np.ndarray, native: float, out: int, context: int, size: tuple[int, int]) -> Tiles:
    """Lay the windows of spots at `xy` (n, 2), of `native` level-0 pixels a side and read as `out` pixels.

    Positions are rounded to whole pixels of the image as it is read (at most half such a pixel away), in which the
    tiles of a context lie exactly `out` apart. So tiles of neighbouring spots coincide where the pitch is a multiple of
    the window's side, and are then one window. Tiles that lie wholly outside an image of `size` (width, height) are all
    alike, and one window too.
    """
    scale = out / native
    corner = np.floor(xy * scale - out / 2 + 0.5).astype(np.int64)  # (n, 2)
    if not context:
        return Tiles(_centres(corner, out, scale), None)
    n, half = len(xy), context // 2
    row, col = np.divmod(np.arange(context * context), context)
    steps = np.stack([col - half, row - half], axis=1) * out  # (k * k, 2)
    tiles = corner[:, None] + steps  # (n, k * k, 2)
    outside = ((tiles + out <= 0) | (tiles >= np.asarray(size) * scale)).any(axis=2)
    tiles[outside] = corner.min(axis=0) - (half + 3) * out  # beyond every other tile, and beyond the image
    low = tiles.reshape(-1, 2).min(axis=0)
    width = int(tiles[..., 0].max() - low[0]) + 1
    key = (tiles[..., 1] - low[1]) * width + (tiles[..., 0] - low[0])  # (n, k * k)
    own = key[:, context * context // 2]
    own_sorted, first = np.unique(own, return_index=True)
    distinct, inverse = np.unique(key, return_inverse=True)
    at = np.minimum(np.searchsorted(own_sorted, distinct), len(own_sorted) - 1)
    is_spot = own_sorted[at] == distinct
    row_of = np.where(is_spot, first[at], n + np.cumsum(~is_spot) - 1)
    index = row_of[inverse].reshape(key.shape).astype(np.int32)
    index[:, context * context // 2] = np.arange(n)  # its own row, also where two spots share a window
    further = distinct[~is_spot]
    corners = np.concatenate([corner, np.stack([further % width, further // width], axis=1) + low])
    return Tiles(_centres(corners, out, scale), index)


def _centres(corner: np.ndarray, out: int, scale: float) -> np.ndarray:
    return (corner + out / 2) / scale
