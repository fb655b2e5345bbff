"""gimVI: one latent space for single cells and spatial counts, from which both are drawn (Lopez et al., 2019)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional as F

from histoweave.batch import Card
from histoweave.models._checks import at_least
from histoweave.models.impute._imputed import Imputed, Pair
from histoweave.models.impute._joint import Joint, drawn_spread, layer

DISCRIMINATOR = (32, 32, 32)  # widths, as in the authors' training plan
DISCRIMINATOR_DROPOUT = 0.1  # as in their classifier
_CHUNK = 4096  # cells whose genes are made at a time


@dataclass(frozen=True)
class GimVI:
    """A joint variational autoencoder of reference and target, which gives the target what only the reference has.

    Each side has an encoder layer of its own, then both share one and a latent space; a discriminator that tries to
    tell the sides apart there is fooled. A linear decoder gives the share of every gene. Over the genes that its side
    observes, times the size of the cell, this is the mean of a negative binomial, with zero inflation for the
    reference. The size of a reference cell is inferred, that of a target cell is its total of the shared genes.

    Parameters
    ----------
    latent, width, dropout
        Of the latent space and of the encoders.
    kappa
        Weight of fooling the discriminator; 0 leaves it out. The authors' tutorial had 1, which mixes too little.
    epochs
        An epoch walks the larger side once, and the smaller again and again.
    warmup
        Epochs until the divergences from the priors count in full. With 200 epochs they end at a half, as published.
    batch
        Cells of each side per step.
    lr, weight_decay, eps
        Of both Adams.
    samples
        Draws of the latent vector of a cell from which `spread` is made; 0 for none.

    Raises
    ------
    ValueError
        An argument out of range; on calling, tables that do not fit, or a side with fewer than 2 cells with counts.
    FloatingPointError
        The loss is not finite.

    Notes
    -----
    **Differences from the authors' code.** (1) Shares are over shared and imputed genes together; theirs divide by the
    sum over the shared ones, that is by 1 minus the sum of ours over all imputed genes. (2) All cells are trained on;
    theirs keep a tenth back, which nothing is decided by. (3) Cells of the target without counts break theirs (the
    logarithm of their size); here they are left out of training, and imputed as a cell whose input is 0. (4) A last
    minibatch of one cell, which a batch norm cannot take, joins the one before. (5) The smaller side is dealt anew each
    time round. (6) Neither side is split into technical batches. (7) The tables are not changed.
    """

    scale: ClassVar[str] = "share of a cell's counts over all genes of the reference"
    logarithmic: ClassVar[bool] = False
    card: ClassVar[Card] = Card(
        title="gimVI",
        citation="Lopez R, Nazaret A, Langevin M, et al. A joint model of unpaired data from scRNA-seq and spatial "
        "transcriptomics for imputing missing gene expression measurements. ICML Workshop on Computational Biology "
        "2019.",
        task="impute",
        learns="gradient",
        wrong="a target cell without counts makes the loss infinite or NaN",
    )

    latent: int = 10
    width: int = 64
    dropout: float = 0.2
    kappa: float = 5.0
    epochs: int = 200
    warmup: int = 400
    batch: int = 128
    lr: float = 1e-3
    weight_decay: float = 1e-6
    eps: float = 0.01
    samples: int = 0

    def __post_init__(self) -> None:
        """Checks the arguments."""
        for name, least in (("latent", 1), ("width", 1), ("epochs", 1), ("warmup", 0), ("batch", 2), ("samples", 0)):
            at_least(name, getattr(self, name), least)
        if self.samples == 1:
            raise ValueError("samples=1; a spread needs 2 or more draws, or 0 for none")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout!r}; expected a number from 0 to below 1")
        for name in ("kappa", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)!r}; expected a finite number of 0 or more")
        for name in ("lr", "eps"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)!r}; expected a finite number above 0")

    def __call__(
        self, reference: sparse.csr_matrix, seen: sparse.csr_matrix, *, seed: int = 0, groups: np.ndarray | None = None
    ) -> Imputed:
        """Imputes the genes of the reference (n, m + h) that `seen` (c, m) lacks; both hold raw counts.

        `spread` is the standard deviation over `samples` draws, None without. `notes` has the loss of the last epoch
        per cell, and the share of cells whose side the discriminator then tells. `groups` are not used.
        """
        pair = Pair.of(reference, seen)
        for side, counts in (("reference", pair.reference), ("target", pair.seen)):
            if counts.shape[0] < 2:
                raise ValueError(f"only one {side} cell has counts; a batch norm needs 2 or more: give more cells")
        # Weights, dropout and draws come from torch's own generator, which is put back as it was.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            model = Joint(pair, latent=self.latent, width=self.width, dropout=self.dropout)
            loss, told = self._train(model, (pair.reference, pair.seen), np.random.default_rng(seed))
            values, spread = self._decode(model, pair.seen)
            rest, rest_spread = self._decode(model, sparse.csr_matrix((1, pair.m)))
        notes = {"loss": loss} | ({"discriminated": told} if self.kappa else {})
        return pair.finish(
            values, spread, rest[0], np.zeros(pair.h) if rest_spread is None else rest_spread[0], **notes
        )

    def _train(
        self, model: Joint, sides: tuple[sparse.csr_matrix, ...], rng: np.random.Generator
    ) -> tuple[float, float]:
        """Loss per cell and share of cells that the discriminator tells, both over the last epoch."""
        widths = [self.latent, *DISCRIMINATOR]
        hidden = [layer(a, b, DISCRIMINATOR_DROPOUT) for a, b in pairwise(widths)]
        judge = nn.Sequential(*hidden, nn.Linear(widths[-1], 2))
        ours, theirs = self._adam(model), self._adam(judge)
        total = right = cells = 0.0
        model.train()
        for epoch in range(self.epochs):
            weight = min(1.0, epoch / self.warmup) if self.warmup else 1.0
            total = right = cells = 0.0
            for batch in self._batches(sides, rng):
                own = torch.cat([torch.full((len(x),), side) for side, x in enumerate(batch)])  # (b,)
                parts = [model(x, side, weight) for side, x in enumerate(batch)]
                loss = torch.cat([part[0] for part in parts]).mean()
                z = torch.cat([part[1] for part in parts])  # (b, d)
                if self.kappa:
                    loss = loss + self.kappa * F.cross_entropy(judge(z), 1 - own)
                if not torch.isfinite(loss):
                    raise FloatingPointError(
                        f"the loss became {float(loss.detach())} in epoch {epoch + 1} of {self.epochs}: give a lower lr "
                        f"than {self.lr}, and look for cells with extreme counts"
                    )
                ours.zero_grad()
                loss.backward()
                ours.step()
                total, cells = total + float(loss.detach()) * len(own), cells + len(own)
                if self.kappa:
                    right += self._judge(model, judge, theirs, batch, own)
        return total / cells, right / cells

    def _adam(self, module: nn.Module) -> torch.optim.Adam:
        return torch.optim.Adam(
            module.parameters(), lr=self.lr, weight_decay=self.weight_decay, eps=self.eps, fused=True
        )

    def _judge(
        self, model: Joint, judge: nn.Module, adam: torch.optim.Optimizer, batch: list[Tensor], own: Tensor
    ) -> float:
        """A step of the discriminator on latent vectors drawn anew; how many of the cells (b,) it told."""
        with torch.no_grad():
            z = torch.cat([model.encode(x.log1p(), side)[2] for side, x in enumerate(batch)])  # (b, d)
        logits = judge(z)
        adam.zero_grad()
        (self.kappa * F.cross_entropy(logits, own)).backward()
        adam.step()
        return float((logits.argmax(1) == own).sum())

    def _batches(self, sides: tuple[sparse.csr_matrix, ...], rng: np.random.Generator) -> Iterator[list[Tensor]]:
        """Counts (b, m + h) and (b, m) of an epoch's steps."""
        left = [_dealt(side.shape[0], self.batch, rng) for side in sides]
        for _ in range(max(len(parts) for parts in left)):
            made = []
            for i, side in enumerate(sides):
                if not left[i]:
                    left[i] = _dealt(side.shape[0], self.batch, rng)
                made.append(_dense(side[left[i].pop()]))
            yield made

    @torch.no_grad()
    def _decode(self, model: Joint, seen: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray | None]:
        """Shares of the imputed genes (c, h) at the mean of the latent posterior, and their spread over draws."""
        model.eval()
        values, spread = [], []
        for start in range(0, seen.shape[0], _CHUNK):
            mean, var, _ = model.encode(_dense(seen[start : start + _CHUNK]).log1p(), 1)
            values.append(model.shares(mean))
            if self.samples:
                spread.append(drawn_spread(model, mean, var, self.samples))
        return torch.cat(values).numpy(), torch.cat(spread).numpy() if spread else None


def _dealt(n: int, size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Rows in random batches of `size`; one row that would be left alone joins another batch."""
    rows = rng.permutation(n)
    parts = [rows[i : i + size] for i in range(0, n, size)]
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [np.concatenate(parts[-2:])]
    return parts


def _dense(counts: sparse.csr_matrix) -> Tensor:
    return torch.from_numpy(counts.toarray().astype(np.float32))
