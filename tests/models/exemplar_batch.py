"""Three sections of three patients on a lattice, as a batch and as a feed, for models that look exemplars up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

from histoweave.batch import Batch, Dims, Needs

DIMS = Dims(genes=5, emb=12)
M = TypeVar("M", bound=nn.Module)
SIZES = (9, 7, 6)  # spots of the sections


def make_batch(sizes: tuple[int, ...] = SIZES) -> Batch:
    g = torch.Generator().manual_seed(1)
    n = sum(sizes)
    cells = [torch.randperm(16, generator=g)[:size] for size in sizes]  # of a 4 × 4 lattice
    return Batch(
        spot=torch.arange(n), section=torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)),
        y=torch.randn(n, DIMS.genes, generator=g) - 3, y_mask=torch.ones(n, DIMS.genes, dtype=torch.bool),
        window=torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=g),
        emb=torch.randn(n, DIMS.emb, generator=g),
        array_xy=torch.cat([torch.stack([c // 4 + 20, c % 4 + 7], -1) for c in cells]),
    )  # fmt: skip


def take(batch: Batch, rows: Tensor) -> Batch:
    return Batch(**{name: value[rows] for name, value in batch.items()})


class FakeFeed:
    """A batch as a feed; its sections are the units that retrieval keeps apart."""

    def __init__(self, batch: Batch) -> None:
        self.batch, self.n = batch, len(batch)

    def batches(self, size: int, /) -> Iterator[Batch]:
        for section in self.batch.section.unique():
            yield take(self.batch, torch.nonzero(self.batch.section == section).flatten())

    def y_mean(self) -> Tensor:
        return self.batch.y.mean(0)

    def inner_fold(self) -> Tensor:
        return self.batch.section % 2

    def inner_unit(self) -> Tensor:
        return self.batch.section

    def reading(self, needs: Needs, /) -> FakeFeed:
        return self


def indexed(made: M, batch: Batch | None = None) -> M:
    made.index(FakeFeed(make_batch() if batch is None else batch))
    return made


def found(made: nn.Module, batch: Batch, p: float) -> Tensor:
    """Rows of the k nearest entries of the bank (b, k), one spot and one entry at a time."""
    rows = []
    for i in range(len(batch)):
        far = (made.bank.keys - batch.emb[i]).double().abs().pow(p).sum(-1)
        if made.training:
            far[made.bank.unit == batch.section[i]] = torch.inf
        rows.append(far.argsort()[: made.k])
    return torch.stack(rows)


def reached(made: nn.Module, batch: Batch, steps: int = 2) -> set[str]:
    """Names of the parameters that a gradient reaches within some steps."""
    optimiser, names = torch.optim.SGD(made.parameters(), lr=1e-2), set()
    for _ in range(steps):
        optimiser.zero_grad()
        made.loss(batch)[0].backward()
        names |= {name for name, p in made.named_parameters() if p.grad is not None and bool((p.grad != 0).any())}
        optimiser.step()
    return names


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
