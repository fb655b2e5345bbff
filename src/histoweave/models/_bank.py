"""Training spots that a model looks up: keys to search by, and the expression that goes with them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from histoweave.batch import Batch, FeedLike
from histoweave.models._checks import one_of

_CHUNK = 1 << 25  # distances held at a time
_VALUES = 1 << 24  # values of neighbours held at a time, where some are missing
_METRICS = {"euclidean": 2.0, "manhattan": 1.0}


class Bank(nn.Module):
    """Keys (n, d) and expression (n, g) of the training spots that have some of the genes, and an exact search over them.

    ``values`` is NaN where a gene is not measured; `expression` has the gene's mean over the bank there.

    In training a spot must not find itself, nor what belongs to it: spots of its own patient, or its own section or
    block where there is but one patient. That is the unit of the inner split. Training patients are never test
    patients, so at evaluation there is nothing to keep apart.
    """

    keys: Tensor
    values: Tensor
    unit: Tensor
    unit_of_spot: Tensor

    def __init__(self, width: int, genes: int) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(1, width))
        self.register_buffer("values", torch.zeros(1, genes))
        self.register_buffer("unit", torch.zeros(1, dtype=torch.long))
        self.register_buffer("unit_of_spot", torch.full((1,), -1), persistent=False)  # by row of the training feed

    def __len__(self) -> int:
        return len(self.keys)

    @torch.no_grad()
    def fill(self, feed: FeedLike, key: Callable[[Batch], Tensor], *, size: int = 4096) -> None:
        """Take in the spots of a feed; `key` gives the keys (b, d) of a batch."""
        spots, keys, values, counts = [], [], [], []
        for batch in feed.batches(size):
            keys.append(key(batch).detach())
            values.append(masked(batch.y, batch.y_mask))
            counts.append(batch.y_mask.any(dim=1))
            spots.append(batch.spot)
        spot, keep, unit = torch.cat(spots), torch.cat(counts), feed.inner_unit()
        if not keep.any():
            raise ValueError("no training spot has a value for any gene of the panel: there is nothing to look up")
        self.keys, self.values, self.unit = torch.cat(keys)[keep], torch.cat(values)[keep], unit[keep]
        self.unit_of_spot = unit.new_full((int(spot.max()) + 1,), -1)
        self.unit_of_spot[spot] = unit

    def mean(self) -> Tensor:
        """Mean of every gene over the spots that have it (g,)."""
        return means(self.values)

    def expression(self, rows: Tensor | None = None) -> Tensor:
        """Expression of the given rows (…, g), or of all (n, g); the gene's mean where it is not measured."""
        found = self.values if rows is None else self.values[rows]
        missing = found.isnan()
        return torch.where(missing, self.mean(), found) if bool(missing.any()) else found

    def same_unit(self, spot: Tensor) -> Tensor:
        """Which entries a training spot (b,) must not find (b, n)."""
        return self.unit_of_spot[spot][:, None] == self.unit

    @torch.no_grad()
    def nearest(self, query: Tensor, k: int, *, spot: Tensor | None = None, metric: str = "euclidean") -> Tensor:
        """Rows of the `k` nearest keys, nearest first.

        Parameters
        ----------
        query
            (b, d).
        k
            How many; cut to what may be found by every query.
        spot
            (b,), in training: entries of a spot's own unit are not found.
        metric
            ``euclidean`` or ``manhattan``.

        Returns
        -------
        Tensor
            (b, k) int64.

        Raises
        ------
        ValueError
            A training spot that has nothing to look up.
        """
        p = _METRICS[one_of("metric", metric, tuple(_METRICS))]
        parts = []
        for rows in torch.arange(len(query), device=query.device).split(max(1, _CHUNK // len(self.keys))):
            distance = torch.cdist(query[rows], self.keys, p=p)  # (b, n)
            if spot is not None:
                own = self.same_unit(spot[rows])
                distance.masked_fill_(own, torch.inf)
                k = min(k, int((~own).sum(dim=1).min()))
                if k < 1:
                    raise ValueError(
                        "a training spot has no spot of another patient, section or block to look up; train on more spots"
                    )
            parts.append(distance.topk(min(k, len(self.keys)), dim=1, largest=False).indices)
        return torch.cat([part[:, :k] for part in parts])  # a later chunk may have had fewer to find


def masked(y: Tensor, measured: Tensor) -> Tensor:
    """Targets (b, g) with NaN where they do not count (b, g)."""
    return torch.where(measured, y, torch.nan)


def means(values: Tensor) -> Tensor:
    """Mean of every gene (g,) over what is not NaN of values (n, g); 0 for a gene without any."""
    return values.double().nanmean(dim=0).nan_to_num(nan=0.0).to(values.dtype)


def average(values: Tensor, near: Tensor, logits: Tensor | None = None) -> Tensor:
    """Mean of every gene (b, g) over those of the rows near (b, k) of values (n, g) that are not NaN in it.

    Where none is measured, that is the gene's mean over all rows. Weights are the softmax of `logits` (b, k), taken over
    the rows that are measured; without, they are equal.
    """
    usual, parts = means(values), []
    for rows in torch.arange(len(near), device=near.device).split(max(1, _VALUES // (near.shape[1] * len(usual)))):
        found = values[near[rows]]  # (b, k, g)
        there = ~found.isnan()
        weight = there.to(found.dtype)
        if logits is not None:
            some = logits[rows].to(found.dtype)[..., None].masked_fill(~there, -torch.inf)
            weight = (some - some.amax(dim=1, keepdim=True)).exp().nan_to_num(nan=0.0)  # of no row: -inf less -inf
        made = (weight * found.nan_to_num(nan=0.0)).sum(dim=1) / weight.sum(dim=1)
        parts.append(torch.where(there.any(dim=1), made, usual))
    return torch.cat(parts)
