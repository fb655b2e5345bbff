"""A small batch, a feed over it, and small BLEEP models that know it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from histoweave.batch import Batch, Dims, Needs
from histoweave.models.predict.bleep import BLEEP

DIMS = Dims(genes=6, emb=12)
FROZEN = {"trunk": "frozen", "width": 8, "dropout": 0.0, "k": 4}


def make_batch(n: int = 20) -> Batch:
    g = torch.Generator().manual_seed(1)
    return Batch(
        spot=torch.arange(n), section=torch.arange(n) % 4,
        y=torch.randn(n, DIMS.genes, generator=g), y_mask=torch.ones(n, DIMS.genes, dtype=torch.bool),
        window=torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=g),
        emb=torch.randn(n, DIMS.emb, generator=g),
    )  # fmt: skip


def take(batch: Batch, rows: Tensor) -> Batch:
    return Batch(**{name: value[rows] for name, value in batch.items()})


class FakeFeed:
    """The rows of one batch; every section is a patient."""

    def __init__(self, batch: Batch) -> None:
        self.batch, self.n = batch, len(batch)

    def batches(self, size: int, /) -> Iterator[Batch]:
        for rows in torch.arange(self.n).split(min(size, 7)):
            yield take(self.batch, rows)

    def y_mean(self) -> Tensor:
        return self.batch.y.mean(0)

    def inner_fold(self) -> Tensor:
        return self.batch.section

    def inner_unit(self) -> Tensor:
        return self.batch.section

    def reading(self, needs: Needs, /) -> FakeFeed:
        return self


def model(reference: Batch | None = None, **arguments: object) -> BLEEP:
    """A model in evaluation that knows the reference."""
    made = BLEEP(DIMS, **(FROZEN | arguments)).eval()
    if reference is not None:
        made.index(FakeFeed(reference))
    return made


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
