"""What completers in closed form share: entries hidden for choosing, moments of pairs of genes, conditional means.

Letters: b spots of a batch, n neighbours, g genes, k inner folds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from histoweave.batch import Batch, FeedLike, Needs
from histoweave.models._checks import at_least

WALK = 1024  # spots per step when the feed is walked: the neighbours' genes are held at once
HIDDEN = 0.3  # share of entries that is hidden while something is chosen, as in the validation of other completers
CHOOSING = 4096  # spots at most on which something is chosen
_ROOM = 2**22  # numbers that a block of systems may hold
_SPOTS = 20.0  # uncorrelated spots that are added to each pair of genes: a pair seen in 20 spots counts half


def walk(feed: FeedLike, needs: Needs) -> Iterator[tuple[Batch, Tensor, Tensor]]:
    """Batches of a feed, the inner fold of their spots (b,), and entries to hide (b, 1 + n, g): `HIDDEN` of all.

    They are of the spot (first) and of its neighbours where these are read. Each walk hides the same.
    """
    fold, at = feed.inner_fold(), 0
    generator = torch.Generator().manual_seed(0)
    for batch in feed.reading(needs).batches(WALK):
        shape = (len(batch), 1, batch.y.shape[1]) if batch.ctx_seen is None else batch.ctx_seen.shape
        hide = (torch.rand(shape, generator=generator) < HIDDEN).to(batch.y.device)
        yield batch, fold[at : at + len(batch)], hide
        at += len(batch)


class Pairs(NamedTuple):
    """Sums over the spots that have both genes of a pair, per fold: n, x and xx of the first gene, xy (k, g, g)."""

    n: Tensor
    x: Tensor
    xx: Tensor
    xy: Tensor

    @classmethod
    def of(cls, values: Tensor, there: Tensor, fold: Tensor, k: int) -> Pairs:
        """Of values (b, g) where they are `there` (b, g), by fold (b,), in float64."""
        values, there = torch.where(there, values, 0).double(), there.double()
        parts = [(values[fold == i], there[fold == i]) for i in range(k)]
        return cls(
            torch.stack([m.T @ m for _, m in parts]),
            torch.stack([v.T @ m for v, m in parts]),
            torch.stack([(v * v).T @ m for v, m in parts]),
            torch.stack([v.T @ v for v, _ in parts]),
        )

    @classmethod
    def sum(cls, parts: Iterable[Pairs]) -> Pairs:
        """Over the spots of all parts."""
        total: list[Tensor] = []
        for part in parts:
            total = [a + b for a, b in zip(total, part, strict=True)] if total else list(part)
        if not total:
            raise ValueError("there is no spot to learn from; give at least one training spot with counts")
        return cls(*total)

    def without(self, fold: int) -> Pairs:
        """Over all folds but one, or the only one there is, without the leading axis."""
        return self.total() if len(self.n) == 1 else Pairs(*(a.sum(dim=0) - a[fold] for a in self))

    def total(self) -> Pairs:
        """Over all folds, without the leading axis."""
        return Pairs(*(a.sum(dim=0) for a in self))


def above_zero(name: str, values: tuple[float, ...]) -> tuple[float, ...]:
    """The penalties, when there are some and all are finite and above 0."""
    if not values or not all(0 < value < float("inf") for value in values):
        raise ValueError(f"{name}={values!r}; expected one or more finite numbers above 0")
    return tuple(values)


def whole_numbers(name: str, values: tuple[int, ...]) -> tuple[int, ...]:
    """The sizes to choose from, when there are some and all are whole numbers of 1 or more."""
    if not values:
        raise ValueError(f"{name}={values!r}; expected one or more whole numbers of 1 or more")
    return tuple(at_least(name, value, 1) for value in values)


class Normal(NamedTuple):
    """A normal distribution over genes: mean and sd (g,), and correlation (g, g), float64."""

    mean: Tensor
    sd: Tensor
    correlation: Tensor

    @classmethod
    def of(cls, pairs: Pairs) -> Normal:
        """Moments of the entries that are there, each pair of genes over the spots that have both.

        A correlation over n spots is multiplied by n / (n + 20), as if 20 spots without any were added. Then negative
        eigenvalues are set to 0 and the diagonal is scaled back to 1. A gene without entries has mean 0, sd 0
        and no correlation.
        """
        n = pairs.n.clamp(min=1)
        mean = pairs.x / n  # [i, j]: of gene i over the spots that have j too
        spread = (pairs.xx / n - mean**2).clamp(min=0)
        both = (spread * spread.T).sqrt()
        tiny = 1e-12 * (pairs.xx / n).diagonal().amax().clamp(min=1e-12)  # rounding of a gene that does not vary
        r = torch.where(both > tiny, (pairs.xy / n - mean * mean.T) / both.clamp(min=tiny), 0.0).clamp(-1, 1)
        r = r * (pairs.n / (pairs.n + _SPOTS))
        r.fill_diagonal_(1.0)
        values, vectors = torch.linalg.eigh(r)
        r = (vectors * values.clamp(min=0)) @ vectors.T
        scale = r.diagonal().clamp(min=1e-12).rsqrt()
        return cls(mean.diagonal().clone(), spread.diagonal().sqrt(), (r * scale * scale[:, None]).contiguous())

    def given(self, values: Tensor, seen: Tensor, alpha: float) -> Tensor:
        """Means (b, g) of all genes given the values (b, g) of those that are seen (b, g), float64.

        In standard deviations it is R_s (R_ss + αI)⁻¹ z_s: `alpha`, above 0, is noise as a share of a gene's variance.
        """
        inverse = torch.where(self.sd > 0, 1 / self.sd.clamp(min=1e-300), 0.0)
        z = torch.where(seen, (values - self.mean) * inverse, 0.0)
        eye = torch.eye(len(self.sd), dtype=torch.float64, device=values.device)
        made = torch.empty_like(z)
        for rows in torch.arange(len(z), device=z.device).split(max(1, _ROOM // len(eye) ** 2)):
            s = seen[rows].double()  # (b, g)
            # (b, g, g): an unseen gene has a row of its own, and weight 0
            system = self.correlation * s[:, :, None] * s[:, None] + eye * (1 + (alpha - 1) * s)[:, None]
            weight = torch.cholesky_solve(z[rows][..., None], torch.linalg.cholesky(system))[..., 0]
            made[rows] = weight @ self.correlation
        return self.mean + self.sd * made
