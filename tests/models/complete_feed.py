"""A small cohort with missing entries as a feed, for completers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from histoweave.batch import Batch, Needs

SIDES = (6, 5, 4, 5)  # of the square sections; patients have two each


class CompleteFeed:
    """What a completer may ask of a feed, over square sections with structured expression.

    Genes follow two factors of the place and one of the spot; a share `missing` of the entries is missing, and a share
    `hidden` of the others is hidden. Feeds of other seeds are other sections of the same genes.
    """

    def __init__(
        self,
        genes: int = 6,
        *,
        sides: tuple[int, ...] = SIDES,
        missing: float = 0.25,
        hidden: float = 0.0,
        seed: int = 3,
    ) -> None:
        g = torch.Generator().manual_seed(seed)
        loadings = torch.randn(3, genes, generator=torch.Generator().manual_seed(0))
        self.side, n = sides, sum(side * side for side in sides)
        self.section = torch.repeat_interleave(torch.arange(len(sides)), torch.tensor([s * s for s in sides]))
        self.rc = torch.cat([torch.cartesian_prod(torch.arange(s), torch.arange(s)) for s in sides])
        place = self.rc.float() / 3
        drives = torch.stack([place[:, 0].sin(), place[:, 1].cos(), 0.5 * torch.randn(n, generator=g)], 1)
        y = 3 + drives @ loadings + 0.2 * torch.randn(n, genes, generator=g)
        y = y + 0.5 * torch.randn(len(sides), genes, generator=g)[self.section]
        self.measured = torch.rand(n, genes, generator=g) >= missing
        self.seen = self.measured & (torch.rand(n, genes, generator=g) >= hidden)
        self.y, self.expr = y * self.measured, y * self.seen
        self.emb = torch.randn(n, 5, generator=g)
        self.needs = Needs.NONE
        self.near = self._near()

    def _near(self) -> Tensor:
        """The spot and those within two rows and columns of its section (n, 25), nearest first, -1 for none."""
        far = (self.rc[:, None] - self.rc[None]).abs()
        square = (far**2).sum(-1).masked_fill((self.section[:, None] != self.section) | (far.amax(-1) > 2), 99)
        by, order = square.sort(dim=1, stable=True)
        return torch.where(by < 99, order, -1)[:, :25]

    @property
    def n(self) -> int:
        return len(self.y)

    def y_mean(self) -> Tensor:
        return self.y.sum(0) / self.measured.sum(0).clamp(min=1)

    def inner_fold(self) -> Tensor:
        return self.section // 2

    def inner_unit(self) -> Tensor:
        return self.section

    def reading(self, needs: Needs) -> CompleteFeed:
        part = object.__new__(type(self))
        part.__dict__.update(self.__dict__, needs=needs)
        return part

    def batches(self, size: int, /) -> Iterator[Batch]:
        whole = Needs.WHOLE_SECTION in self.needs
        of = [torch.nonzero(self.section == s)[:, 0] for s in range(len(self.side))]
        for rows in of if whole else torch.arange(self.n).split(size):
            yield self.batch(rows)

    def batch(self, rows: Tensor | None = None) -> Batch:
        """All that a completer can read of these spots."""
        rows = torch.arange(self.n) if rows is None else rows
        near = self.near[rows]
        there = (near >= 0)[..., None]
        return Batch(
            spot=rows, section=self.section[rows], y=self.y[rows], y_mask=self.measured[rows],
            expr=self.expr[rows], seen=self.seen[rows], emb=self.emb[rows],
            ctx_expr=self.expr[near.clamp(min=0)] * there, ctx_seen=self.seen[near.clamp(min=0)] & there,
            xy=self.rc[rows].flip(1).float() * 200, array_xy=self.rc[rows],
        )  # fmt: skip


def garbled(batch: Batch) -> Batch:
    """The batch with garbage in the truth and in everything that is not seen."""
    assert batch.expr is not None and batch.seen is not None
    assert batch.ctx_expr is not None and batch.ctx_seen is not None
    return replace(
        batch,
        y=torch.full_like(batch.y, 1e6),
        y_mask=~batch.y_mask,
        expr=torch.where(batch.seen, batch.expr, 77.0),
        ctx_expr=torch.where(batch.ctx_seen, batch.ctx_expr, -55.0),
    )


def hard(genes: int = 6) -> Batch:
    """A section of 5 spots: one gene and one spot are all missing, and the last spot has no neighbour."""
    feed = CompleteFeed(genes, sides=(5,), missing=0.2)
    rows = torch.tensor([0, 1, 5, 6, 24])
    place = torch.full((26,), -1)
    place[rows] = torch.arange(5)
    feed.rc, feed.section, feed.near = feed.rc[rows], feed.section[rows], place[feed.near[rows]]
    feed.y, feed.expr, feed.emb = feed.y[rows], feed.expr[rows], feed.emb[rows]
    feed.measured, feed.seen = feed.measured[rows], feed.seen[rows].clone()
    feed.seen[:, 2] = feed.seen[1] = False
    feed.expr = feed.expr * feed.seen
    return feed.batch()
