"""Sequences of cells that lie near each other, and the pieces of the image in which they lie."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from histoweave.batch import Batch
from histoweave.data.image import Window
from histoweave.data.section import Cohort, Section
from histoweave.data.stains import pictures

SIDE_PX, UM_PER_PX, PATCH_PX = 1024, 0.425, 16  # xMINT: regions of 435 µm on the side, patches of 6.8 µm


@dataclass(frozen=True, slots=True)
class Sequencing:
    """How a model wants its sequences.

    Attributes
    ----------
    length
        Cells of a sequence.
    repeats
        How often a cell occurs, at least, in a pass over all cells.
    rule
        ``code``: repeats · (floor(cells / length) + 1) sequences of a region, the list of its cells going round until
        they are full, so that small regions are used too (with one repeat no more than hold every cell once); ``paper``:
        floor(cells · repeats / length), the rest left out. That is in training: in prediction every cell is in a
        sequence by either, and a region that one sequence holds has one.
    channels
        Of the image: 3 and its further stains (`histoweave.data.stains.StainedImage`).

    Raises
    ------
    ValueError
        Fewer than 3 channels.
    """

    length: int = 64
    repeats: int = 1
    rule: str = "code"
    channels: int = 3

    def __post_init__(self) -> None:
        if self.channels < 3:
            raise ValueError(
                f"channels={self.channels}: a slide image has 3, a grey one the same three times; leave channels out, or "
                "give 3 and the number of further stains"
            )

    def number(self, cells: int) -> int:
        """Sequences of a region of so many cells."""
        if self.rule == "paper":
            return cells * self.repeats // self.length
        if self.repeats == 1:
            return -(-cells // self.length)
        return self.repeats * (cells // self.length + 1)

    def occurrences(self, cohort: Cohort) -> int:
        """Cells in all sequences of a pass over the cohort, each as often as it occurs."""
        sizes = [n for s in cohort for n in np.unique(tiles(s)[0], axis=0, return_counts=True)[1].tolist()]
        return self.length * sum(self.number(n) for n in sizes)


def tiles(section: Section) -> tuple[np.ndarray, np.ndarray]:
    """(column, row) of the region of every cell (n, 2), and its place there in px of 0.425 µm (n, 2) as (x, y).

    Where a section has no µm per px, all of it is one region.
    """
    if section.um_per_px is None:
        return np.zeros((section.n, 2), dtype=np.int64), np.zeros((section.n, 2))
    px = section.xy * (section.um_per_px / UM_PER_PX)
    tile = np.floor(px / SIDE_PX).astype(np.int64)
    return tile, px - tile * SIDE_PX


class Regions:
    """Which cells share a region; and, if asked for, the pixels of every region with a cell."""

    def __init__(self, cohort: Cohort, device: torch.device, *, pixels: bool, channels: int = 3) -> None:
        self._device = device
        codes, patches, self._pixels, self._moments, start = [], [], [], [], 0
        for section in cohort:
            tile, place = tiles(section)
            kept, code = np.unique(tile, axis=0, return_inverse=True)
            codes.append(start + code.reshape(-1))
            patches.append((place[:, ::-1] // PATCH_PX).astype(np.int64))  # (row, column)
            start += len(kept)
            if pixels:
                read = _read(section, kept, channels)
                self._pixels += list(read)
                self._moments += [_moments(section, kept, read)] * len(kept)
        self.of = torch.from_numpy(np.concatenate(codes)).to(device)
        self._patch = torch.from_numpy(np.concatenate(patches)).to(device)

    def sequences(self, rows: Tensor, how: Sequencing, generator: torch.Generator | None) -> list[list[Tensor]]:
        """Sequences of rows, region by region; in random order with a generator.

        Without one every row is in a sequence, regions keep their order, and what is drawn in one is always the same.
        """
        made = []
        order = torch.argsort(self.of[rows], stable=True)
        sizes = torch.unique_consecutive(self.of[rows][order], return_counts=True)[1]
        for part in rows[order].split(sizes.tolist()):
            drawn, number = generator, how.number(len(part))
            if drawn is None:
                least = -(-len(part) // how.length)  # every cell is predicted
                # Sequences that hold the same cells would all say the same.
                drawn, number = torch.Generator().manual_seed(0), 1 if least == 1 else max(number, least)
            wanted = number * how.length
            passes = -(-wanted // len(part))
            orders = [torch.randperm(len(part), generator=drawn).to(part.device) for _ in range(passes)]
            filled = torch.cat([part[order] for order in orders])[:wanted] if orders else part[:0]
            made.append(list(filled.split(how.length)) if number else [])
        return [made[i] for i in _order(len(made), generator).tolist()]

    def batches(
        self, rows: Tensor, how: Sequencing, per_batch: int, generator: torch.Generator | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows (b,) and sequence (b,) of batches of at most `per_batch` sequences; those of a region follow each other."""
        queue = [sequence for region in self.sequences(rows, how, generator) for sequence in region]
        if not queue:
            raise ValueError(
                f"no region of {SIDE_PX * UM_PER_PX:.0f} µm has enough of the {len(rows)} cells for a sequence of "
                f"{how.length} by the paper's rule with {how.repeats} repeats; use rule=code, a smaller length, or more repeats"
            )
        for i in range(0, len(queue), per_batch):
            taken = queue[i : i + per_batch]
            yield torch.cat(taken), torch.arange(len(taken), device=self._device).repeat_interleave(how.length)

    def add(self, made: Batch) -> None:
        """The regions of a batch (r, c, 1024, 1024), standardized, each once, and where its cells lie in them."""
        present, made.region_of = torch.unique(self.of[made.spot], return_inverse=True)
        made.patch_rc = self._patch[made.spot]
        pieces = []
        for i in present.tolist():
            pixels = torch.from_numpy(self._pixels[i]).to(self._device).permute(2, 0, 1).float()  # (c, h, w)
            mean, sd = (torch.from_numpy(m).to(self._device)[:, None, None] for m in self._moments[i])
            pieces.append((pixels - mean) / sd)
        made.region = torch.stack(pieces)


def _order(n: int, generator: torch.Generator | None) -> Tensor:
    return torch.arange(n) if generator is None else torch.randperm(n, generator=generator)


def _native(section: Section) -> float:
    """Side of a region in level-0 px."""
    assert section.um_per_px is not None
    return SIDE_PX * UM_PER_PX / section.um_per_px


def _read(section: Section, kept: np.ndarray, channels: int) -> np.ndarray:
    """Pixels of the regions at (column, row) `kept` (r, 2): uint8 (r, 1024, 1024, c), 0 outside of the image."""
    if section.image is None or section.um_per_px is None:
        raise ValueError(
            f"section {section.id!r} has no image with a known size of its pixels, and regions of it are read"
        )
    seen = pictures(section.image)
    if (there := sum(depth for _, depth in seen)) != channels:
        raise ValueError(
            f"the image of section {section.id!r} has {there} channels, its own three and {len(seen) - 1} further stains, and "
            f"the model reads {channels}: give its stains (`stains` in samples.csv), or channels={there}"
        )
    centres = (kept + 0.5) * _native(section)
    out = np.zeros((len(kept), SIDE_PX, SIDE_PX, channels), dtype=np.uint8)
    window, at = Window(um=SIDE_PX * UM_PER_PX, out=SIDE_PX), 0
    for image, depth in seen:
        for rows, pixels, _ in image.windows(centres, window, section.um_per_px, batch=8, allow_outside=True):
            out[rows, :, :, at : at + depth] = pixels[..., :depth]
        at += depth
    for k, (width, height) in enumerate(_inside(section, kept)):
        out[k, height:], out[k, :, width:] = 0, 0
    return out


def _inside(section: Section, kept: np.ndarray) -> np.ndarray:
    """(width, height) of the part of every region that lies in the image, in its own px (r, 2)."""
    assert section.image is not None
    left = (np.asarray(section.image.size) - kept * _native(section)) * (SIDE_PX / _native(section))
    return np.clip(np.ceil(left), 0, SIDE_PX).astype(np.int64)


def _moments(section: Section, kept: np.ndarray, read: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every channel over the regions of a section, outside of the image left out (c,)."""
    channels = read.shape[-1]
    total, square, count = np.zeros(channels), np.zeros(channels), 0
    for pixels, (width, height) in zip(read, _inside(section, kept), strict=True):
        part = pixels[:height, :width].reshape(-1, channels).astype(np.float64)
        total += part.sum(axis=0)
        square += (part**2).sum(axis=0)
        count += len(part)
    mean = total / max(count, 1)
    sd = np.sqrt(np.maximum(square / max(count, 1) - mean**2, 0.0))
    return mean.astype(np.float32), np.maximum(sd, 1.0).astype(np.float32)
