"""A feed of plain arrays in which every gene is measured in spots of its own."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from histoweave.batch import Batch, Needs

N, D, G = 140, 8, 7
ONE, NONE, FEW, THERE = 3, 4, 5, 6  # genes of one spot, of none, of three spots, and of one fold only


class Gaps:
    """Features (n, d), targets (n, g) with `garbage` where they are not measured, and folds (n,); no gaps if `whole`."""

    def __init__(self, *, whole: bool = False, garbage: float = np.nan) -> None:
        rng = np.random.default_rng(0)
        self.x = rng.normal(size=(N, D)) * np.geomspace(3, 0.3, D) @ (np.eye(D) + 0.2 * rng.normal(size=(D, D))) + 2
        truth = self.x @ (rng.normal(size=(D, G)) * 0.4 * (rng.random((D, G)) < 0.6)) + rng.normal(size=(N, G)) + 1
        self.fold = np.arange(N) % 4
        self.mask = rng.random((N, G)) < 0.6
        self.mask[:, [ONE, NONE, FEW]] = False
        self.mask[50, ONE] = self.mask[[3, 8, 21], FEW] = True
        self.mask[self.fold != 1, THERE] = False
        self.mask[:5] = False
        if whole:
            self.mask[5:] = True
        self.y = np.where(self.mask, truth, garbage)

    @property
    def n(self) -> int:
        return N

    def batches(self, size: int, /) -> Iterator[Batch]:
        tables = [torch.from_numpy(table).float() for table in (self.x, self.y)]
        for rows in torch.arange(N).split(min(size, 37)):
            x, y = (table[rows] for table in tables)
            yield Batch(spot=rows, section=rows % 4, y=y, y_mask=torch.from_numpy(self.mask)[rows], emb=x)

    def y_mean(self) -> torch.Tensor:
        return torch.from_numpy(np.where(self.mask, self.y, 0).sum(0) / self.mask.sum(0).clip(1)).float()

    def inner_fold(self) -> torch.Tensor:
        return torch.from_numpy(self.fold)

    def inner_unit(self) -> torch.Tensor:
        return self.inner_fold()

    def reading(self, _: Needs, /) -> Gaps:
        return self

    def entries(self) -> list[tuple[torch.Tensor, ...]]:
        """What a closed form sums over, in three chunks: float64."""
        tables = [torch.from_numpy(table) for table in (self.x, self.y, self.mask, self.fold)]
        return [tuple(table[rows] for table in tables) for rows in torch.arange(N).split(60)]

    def of(self, gene: int, x: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Features (or those given), target and fold of the spots that have a gene."""
        here = self.mask[:, gene]
        return (self.x if x is None else x)[here], self.y[here, gene], self.fold[here]
