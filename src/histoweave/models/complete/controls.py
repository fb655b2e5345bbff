"""Completers that know next to nothing: 0, the training mean, the median of the section, and gene plus spot."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from histoweave.batch import Batch, Card, Dims, FeedLike, Needs
from histoweave.models._checks import given
from histoweave.models._losses import masked_mse
from histoweave.models.complete._masked import walk


class _Control(nn.Module):
    """What the four share: the training mean, a loss for reports, and nothing to make smaller."""

    card: ClassVar[Card]
    needs: Needs = Needs.NONE
    mean: Tensor

    def __init__(self, dims: Dims) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dims.genes))

    def index(self, feed: FeedLike) -> None:
        """Takes the mean of each gene (g,) over the measured entries of the training spots."""
        self.mean = feed.y_mean()

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Masked MSE, for reports."""
        value = masked_mse(self(batch), batch.y, batch.y_mask)
        return value, {"mse": value}

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """There is nothing to make smaller."""
        return {}


class Zero(_Control):
    """Takes what is missing for 0, as a method that is given raw counts does."""

    card: ClassVar[Card] = Card(title="Zero", citation="control", task="complete", learns="none", control=True)

    def index(self, feed: FeedLike) -> None:
        """Nothing is learnt."""

    def forward(self, batch: Batch) -> Tensor:
        """Zeros (b, g)."""
        return torch.zeros_like(batch.y)


class GeneMean(_Control):
    """The mean of each gene over the measured entries of the training spots; 0 for a gene without any."""

    card: ClassVar[Card] = Card(title="Gene mean", citation="control", task="complete", learns="none", control=True)

    def forward(self, batch: Batch) -> Tensor:
        """The mean for every spot (b, g)."""
        return self.mean.expand(len(batch), -1)


class SlideMedian(_Control):
    """The median of each gene over the visible entries of the section; the training mean for a gene without any."""

    card: ClassVar[Card] = Card(title="Slide median", citation="control", task="complete", learns="none", control=True)
    needs = Needs.EXPR | Needs.WHOLE_SECTION

    def forward(self, batch: Batch) -> Tensor:
        """The median of the spot's section (b, g)."""
        expr, seen = given(batch.expr, "expr"), given(batch.seen, "seen")
        made = torch.empty_like(expr)
        for section in batch.section.unique():
            here = batch.section == section
            made[here] = self._median(expr[here], seen[here])
        return made

    def _median(self, expr: Tensor, seen: Tensor) -> Tensor:
        """Median (g,) of expr (n, g) where seen; of an even number, the mean of the two in the middle."""
        n = seen.sum(dim=0)  # (g,)
        ordered = expr.masked_fill(~seen, torch.inf).sort(dim=0).values
        middle = torch.stack([(n - 1).clamp(min=0) // 2, (n // 2).clamp(max=len(expr) - 1)])
        return torch.where(n > 0, ordered.gather(0, middle).mean(dim=0), self.mean)


class SpotGene(_Control):
    """Additive: the training mean of the gene, and an effect of the spot from its visible genes.

    An entry is y = μ_gene + a_spot + e, with a of variance τ² and e of variance σ². The effect of a spot with m visible
    genes is the sum of their differences from the mean over m + σ²/τ²: ridge, with the penalty that the training spots
    show. A spot without visible genes has effect 0.

    Notes
    -----
    σ² and τ² are those of the analysis of variance of measured training entries with spots of different numbers of
    them (Searle, Casella and McCulloch 1992, Variance Components, §3.6): σ² is the mean square within spots, and τ² what
    the sum of squares between spots has above (s - 1) σ² over N - Σm²/N, for s spots with N entries, or 0.
    """

    card: ClassVar[Card] = Card(
        title="Gene + spot", citation="control", task="complete", learns="closed-form", control=True
    )
    needs = Needs.EXPR
    within: Tensor
    between: Tensor

    def __init__(self, dims: Dims) -> None:
        super().__init__(dims)
        self.register_buffer("within", torch.tensor(1.0))
        self.register_buffer("between", torch.tensor(0.0))

    def index(self, feed: FeedLike) -> None:
        """Takes the mean of each gene, and the variances of spots and of entries."""
        super().index(feed)
        spots = entries = squared = total = raw = explained = 0.0  # s, N, Σm², Σr, Σr² and Σ(Σr)²/m of differences r
        for batch, _, _ in walk(feed, Needs.NONE):
            r = torch.where(batch.y_mask, batch.y - self.mean, 0.0).double()
            m, sums = batch.y_mask.sum(dim=1).double(), r.sum(dim=1)  # (b,)
            spots += float((m > 0).sum())
            entries, squared = entries + float(m.sum()), squared + float((m * m).sum())
            total, raw = total + float(sums.sum()), raw + float((r * r).sum())
            explained += float((sums**2 / m.clamp(min=1)).sum())
        free = max(entries, 1.0)
        within = (raw - explained) / max(entries - spots, 1.0)
        between = (explained - total**2 / free - (spots - 1) * within) / max(entries - squared / free, 1.0)
        self.within, self.between = torch.tensor(max(within, 1e-12)), torch.tensor(max(between, 0.0))

    def forward(self, batch: Batch) -> Tensor:
        """Mean of the gene plus effect of the spot (b, g)."""
        seen = given(batch.seen, "seen")
        r = torch.where(seen, given(batch.expr, "expr") - self.mean, 0.0)
        effect = self.between * r.sum(dim=1) / (seen.sum(dim=1) * self.between + self.within)  # (b,)
        return self.mean + effect[:, None]
