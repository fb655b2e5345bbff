"""Training spots that a model looks up: keys to search by, and the expression that goes with them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from histoweave.batch import Batch, FeedLike
from histoweave.models._checks import one_of

_CHUNK = 1 << 25  # distances held at a time
_METRICS = {"euclidean": 2.0, "manhattan": 1.0}


class Bank(nn.Module):
    """Keys (n, d) and expression (n, g) of the training spots whose whole target counts, and an exact search over them.

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
            values.append(batch.y)
            counts.append(batch.y_mask.all(dim=1))
            spots.append(batch.spot)
        spot, keep, unit = torch.cat(spots), torch.cat(counts), feed.inner_unit()
        if not keep.any():
            raise ValueError("no training spot has a value for every gene of the panel: there is nothing to look up")
        self.keys, self.values, self.unit = torch.cat(keys)[keep], torch.cat(values)[keep], unit[keep]
        self.unit_of_spot = unit.new_full((int(spot.max()) + 1,), -1)
        self.unit_of_spot[spot] = unit

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
