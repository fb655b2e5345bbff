"""The search over training spots is exact, and finds nothing of a spot's own unit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from histoweave.batch import Batch
from histoweave.models import _bank
from histoweave.models._bank import Bank


class Rows:
    """A feed of embeddings and targets; every fifth spot has none that is measured."""

    def __init__(self, n: int, d: int, g: int, units: int) -> None:
        draw = torch.Generator().manual_seed(1)
        self.n, self.emb, self.y = n, torch.randn(n, d, generator=draw), torch.randn(n, g, generator=draw)
        self.mask = torch.ones(n, g, dtype=torch.bool)
        self.mask[::5] = False
        self.unit = torch.arange(n) * units // n

    def batches(self, size: int, /) -> Iterator[Batch]:
        for rows in torch.arange(self.n).split(size):
            zeros = torch.zeros_like(rows)
            yield Batch(spot=rows, section=zeros, y=self.y[rows], y_mask=self.mask[rows], emb=self.emb[rows])

    def y_mean(self) -> Tensor:
        return self.y.mean(0)

    def inner_fold(self) -> Tensor:
        return self.unit

    def inner_unit(self) -> Tensor:
        return self.unit


@pytest.fixture
def feed() -> Rows:
    return Rows(n=60, d=6, g=3, units=4)


@pytest.fixture
def bank(feed: Rows) -> Bank:
    bank = Bank(6, 3)
    bank.fill(feed, lambda batch: batch.emb, size=17)  # type: ignore[arg-type, return-value]
    return bank


def brute(feed: Rows, query: Tensor, k: int, p: float, own: Tensor | None) -> list[list[int]]:
    """Nearest spots with counts as rows of the feed, by sorting all distances."""
    found = []
    for i, q in enumerate(query):
        distance = {
            j: float((q - feed.emb[j]).abs().pow(p).sum())
            for j in range(feed.n)
            if feed.mask[j].all() and (own is None or feed.unit[j] != feed.unit[own[i]])
        }
        found.append(sorted(distance, key=distance.__getitem__)[:k])
    return found


@pytest.mark.parametrize(("metric", "p"), [("euclidean", 2.0), ("manhattan", 1.0)])
@pytest.mark.parametrize("apart", [False, True])
def test_nearest_is_brute_force(
    feed: Rows, bank: Bank, metric: str, p: float, apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_bank, "_CHUNK", 300)  # several chunks
    kept = torch.nonzero(feed.mask.all(1)).squeeze(1)
    spot = torch.arange(0, feed.n, 7)
    near = bank.nearest(feed.emb[spot], 5, spot=spot if apart else None, metric=metric)
    assert kept[near].tolist() == brute(feed, feed.emb[spot], 5, p, spot if apart else None)
    assert torch.equal(bank.values[near], feed.y[kept[near]])
    if apart:
        assert not (bank.unit[near] == feed.unit[spot][:, None]).any()


def test_k_is_cut_to_what_may_be_found(feed: Rows, bank: Bank) -> None:
    spot = torch.arange(feed.n)
    assert bank.nearest(feed.emb, 1000).shape == (60, len(bank))
    assert bank.nearest(feed.emb, 1000, spot=spot).shape[1] == int((~bank.same_unit(spot)).sum(1).min())


def test_nothing_to_look_up_is_an_error(feed: Rows, bank: Bank) -> None:
    bank.unit = torch.zeros_like(bank.unit)
    bank.unit_of_spot = torch.zeros_like(bank.unit_of_spot)
    with pytest.raises(ValueError, match="train on more spots"):
        bank.nearest(feed.emb, 3, spot=torch.arange(feed.n))
    feed.mask[:] = False
    with pytest.raises(ValueError, match="nothing to look up"):
        Bank(6, 3).fill(feed, lambda batch: batch.emb)  # type: ignore[arg-type, return-value]
