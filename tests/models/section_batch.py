"""One small section as a batch, and a feed of it, for models that look at whole sections."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from histoweave.batch import Batch, Dims, Needs

DIMS = Dims(genes=6, emb=12)


def make_batch(n: int = 20) -> Batch:
    """n spots on distinct cells of a 6 × 7 lattice that does not begin at 0."""
    g = torch.Generator().manual_seed(1)
    cells = torch.randperm(42, generator=g)[:n]
    counts = torch.poisson(torch.full((n, DIMS.genes), 3.0), generator=g)
    return Batch(
        spot=torch.arange(n), section=torch.zeros(n, dtype=torch.long),
        y=torch.randn(n, DIMS.genes, generator=g), y_mask=torch.ones(n, DIMS.genes, dtype=torch.bool),
        window=torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=g),
        emb=torch.randn(n, DIMS.emb, generator=g), array_xy=torch.stack([cells // 7 + 3, cells % 7 + 1], -1),
        counts=counts, library=counts.sum(1),
    )  # fmt: skip


def take(batch: Batch, rows: Tensor) -> Batch:
    return Batch(**{name: value[rows] for name, value in batch.items()})


class Sections:
    """A feed whose batches are the given ones."""

    def __init__(self, *batches: Batch) -> None:
        self.made, self.n = batches, sum(map(len, batches))

    def batches(self, size: int, /) -> Iterator[Batch]:
        yield from self.made

    def y_mean(self) -> Tensor:
        return torch.cat([batch.y for batch in self.made]).mean(0)

    def inner_fold(self) -> Tensor:
        return torch.arange(self.n) % 2

    def inner_unit(self) -> Tensor:
        return self.inner_fold()

    def reading(self, needs: Needs, /) -> Sections:
        return self


def without(batch: Batch, *fields: str) -> Batch:
    return replace(batch, **dict.fromkeys(fields))


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def reached(module: nn.Module, batch: Batch, *, steps: int = 2) -> set[str]:
    """Parameters that a gradient reaches within two steps."""
    optimiser, found = torch.optim.SGD(module.parameters(), lr=1e-2), set()
    for _ in range(steps):
        optimiser.zero_grad()
        value, parts = module.loss(batch)  # type: ignore[operator]
        value.backward()
        found |= {name for name, p in module.named_parameters() if p.grad is not None and bool((p.grad != 0).any())}
        optimiser.step()
    close(torch.stack(list(parts.values())).sum(), value.detach())
    return found
