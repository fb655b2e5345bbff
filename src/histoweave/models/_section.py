"""What models of whole sections share: windows as floats of one side, and learned positions on the lattice."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from histoweave.batch import FeedLike, Needs
from histoweave.models._checks import at_least, given
from histoweave.models._trunk import IMAGENET_MEAN, IMAGENET_STD


def resized(window: Tensor, side: int) -> Tensor:
    """Windows (b, 3, h, h) of bytes as floats from 0 to 255, (b, 3, side, side)."""
    x = window.float()
    return x if x.shape[-2:] == (side, side) else F.interpolate(x, (side, side), mode="bilinear", antialias=True)


def normalised(x: Tensor) -> Tensor:
    """Floats from 0 to 255 (b, 3, h, h), each channel with ImageNet's mean taken off and divided by its deviation."""
    mean, std = (x.new_tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (x / 255 - mean) / std


class Positions(nn.Module):
    """A learned vector for each row of the lattice and one for each column; a spot gets the sum of its two.

    A position before the first entry of a table or behind its last one gets that entry, so that a section that is
    larger than those of the training can be predicted.

    Parameters
    ----------
    width
        Width d of a vector.
    size
        Entries of each table, as long as `cover` has not seen more.
    """

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        at_least("positions", size, 1)
        self.row = nn.Parameter(torch.randn(size, width))
        self.column = nn.Parameter(torch.randn(size, width))

    def forward(self, rc: Tensor) -> Tensor:
        """Vectors (b, d) of spots at lattice (row, column) rc (b, 2)."""
        row, column = rc.unbind(-1)
        return self.row[row.clamp(0, len(self.row) - 1)] + self.column[column.clamp(0, len(self.column) - 1)]

    @torch.no_grad()
    def cover(self, feed: FeedLike) -> None:
        """Lengthens the tables to the last row and column of the feed; entries that are there stay as they are."""
        batches = feed.reading(Needs.ARRAY_XY).batches(4096)
        last = torch.stack([given(batch.array_xy, "array_xy").amax(0) for batch in batches]).amax(0)
        for name, need in zip(("row", "column"), (last + 1).tolist(), strict=True):
            table = getattr(self, name)
            if need > len(table):
                more = torch.randn(need - len(table), table.shape[1], device=table.device, dtype=table.dtype)
                setattr(self, name, nn.Parameter(torch.cat([table, more])))
