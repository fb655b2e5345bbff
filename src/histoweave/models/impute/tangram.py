"""Tangram: cells of a reference placed in the target, so that together they look like it (Biancalani et al., 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from histoweave.batch import Card
from histoweave.models._checks import at_least, one_of
from histoweave.models.impute._imputed import PER_CELL, Imputed, Pair
from histoweave.models.impute._placement import Terms, place

CHOICES = {"mode": ("cells", "clusters"), "density": ("rna_count", "uniform"), "legacy": ("undivided",)}
_CHUNK = 512  # target cells whose genes are made at a time


@dataclass(frozen=True)
class Tangram:
    """Places cells of the reference in the target, and reads off what they express.

    Every source has a distribution over the target's cells: every reference cell in ``mode="cells"``, the mean of
    every group, weighted by its size, in ``mode="clusters"``. Gradient descent finds those whose expression together
    resembles the measured one, gene by gene, and which lie as densely as expected. A gene that was not measured is then
    the mean over what lies at a cell. Counts are normalised to totals of 10,000, without logarithm: the reference over
    all its genes, the target over the shared ones.

    Parameters
    ----------
    mode
        ``"clusters"`` needs the groups of the reference cells and takes little time and memory.
    density
        How many reference cells are expected at a cell of the target: in proportion to its counts (``"rna_count"``),
        for places that hold several cells; or the same everywhere (``"uniform"``), for single cells.
    gene_weight, spot_weight, density_weight, entropy_weight
        Of the terms of the objective; entropy draws sources to few places.
    epochs, lr
        Of Adam.
    bag
        Most cells of the target that are solved together in ``mode="cells"``: they are dealt at random into bags, and
        the whole reference is placed in every bag. Memory is at least 20 bytes × reference cells × bag, which is
        1.6 GB for 20,000 × 4,096.
    legacy
        Defects of public code to reproduce, by name (below).

    Raises
    ------
    ValueError
        An argument out of range; on calling, tables that do not fit or hold no counts, or groups that are missing.
    FloatingPointError
        The loss is not finite.

    Notes
    -----
    **Differences from the authors' code.** (1) Imputed values are divided by the mass that lies at a cell. Theirs are
    not, and so grow with the number of reference cells that land there: ``legacy="undivided"``. (2) Theirs lowers the
    case of gene names and takes them from an unordered set; here genes are columns, in the order given. (3) Theirs
    refuses genes without counts; here they take no part in the placement. (4) Nor do cells without counts of the
    shared genes: such a cell of the target gets the mean of the reference, or 0 with the defect. (5) Theirs solves all
    cells at once, with at least four times cells × cells in memory, and advises to split the target by hand; here the
    gradient is written out, and bags are drawn. (6) The weight of the density is 1 in theirs whenever a density is
    given, also where 0 was asked for; here 0 is 0.
    """

    scale: ClassVar[str] = "expected counts per 10,000 counts of a reference cell, over all genes"
    logarithmic: ClassVar[bool] = False
    card: ClassVar[Card] = Card(
        title="Tangram",
        citation="Biancalani T, Scalia G, Buffoni L, et al. Deep learning and alignment of spatially resolved "
        "single-cell transcriptomes with Tangram. Nature Methods 18, 2021.",
        task="impute",
        learns="gradient",
        retrieves=True,
        wrong="imputed values are not divided by the mass that lies at a spot, so that they grow with it; gene names "
        "are changed to lower case, and the order of training genes differs between runs",
    )

    mode: Literal["cells", "clusters"] = "cells"
    density: Literal["rna_count", "uniform"] = "rna_count"
    gene_weight: float = 1.0
    spot_weight: float = 0.0
    density_weight: float = 1.0
    entropy_weight: float = 0.0
    epochs: int = 1000
    lr: float = 0.1
    bag: int = 4096
    legacy: str | Sequence[str] = ()

    def __post_init__(self) -> None:
        """Checks the arguments."""
        names = (self.legacy,) if isinstance(self.legacy, str) else tuple(self.legacy)
        for name, value in [("mode", self.mode), ("density", self.density), *(("legacy", x) for x in names)]:
            one_of(name, value, CHOICES[name])
        at_least("epochs", self.epochs, 1)
        at_least("bag", self.bag, 2)
        for name in ("gene_weight", "spot_weight", "density_weight", "entropy_weight"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ValueError(f"{name}={getattr(self, name)!r}; expected a finite number of 0 or more")
        if self.gene_weight == self.spot_weight == 0:
            raise ValueError("gene_weight and spot_weight are both 0, so that nothing is compared; give one of them")
        if not 0 < self.lr < np.inf:
            raise ValueError(f"lr={self.lr!r}; expected a finite number above 0")

    def check(self, m: int, *, grouped: bool) -> None:
        """`ValueError` if groups are needed and not there; m shared genes can be any number."""
        if self.mode == "clusters" and not grouped:
            raise ValueError(
                "mode='clusters' needs the cell type of each reference cell (`obs['group']`; `--groups` with "
                "`--reference`), and not every section of the reference has them; give them, or mode='cells'"
            )

    def __call__(
        self, reference: sparse.csr_matrix, seen: sparse.csr_matrix, *, seed: int = 0, groups: np.ndarray | None = None
    ) -> Imputed:
        """Imputes the genes of the reference (n, m + h) that `seen` (c, m) lacks; both hold raw counts.

        `spread` is the standard deviation over the reference cells that lie at a cell, each by its mass there; None
        with ``legacy="undivided"``. `notes` counts the cells and genes that took no part and the bags, and has the mean
        loss of a bag.
        """
        pair = Pair.of(reference, seen)
        size, there = _sums(pair.seen, 1), _sums(pair.shared(), 1) > 0
        told = np.flatnonzero((_sums(pair.seen, 0) > 0) & (_sums(pair.shared(), 0) > 0))
        if not len(told):
            raise ValueError(
                f"none of {pair.m} shared genes has counts both in the reference and in the target, so that no cell "
                "can be placed by them; match the genes of both by one kind of identifier"
            )
        kept = np.flatnonzero(pair.kept)[there]
        of, share = self._grouped(groups, kept, len(pair.kept))
        cells = _scaled(pair.reference[there], PER_CELL / _sums(pair.reference[there], 1))
        made, square = of @ cells, (of @ cells[:, pair.m :].power(2)).T.tocsr()  # (n, m + h), (h, n)
        source = np.hstack([made[:, told].toarray() * share[:, None], share[:, None]])
        made = made[:, pair.m :].T.tocsr()  # (h, n)
        measured = _scaled(pair.seen, PER_CELL / size)[:, told]
        values, spread = np.empty((2, len(size), pair.h), dtype=np.float32)
        generator, bags, losses = torch.Generator().manual_seed(seed), self._bags(len(size), seed), []
        for rows in bags:
            prior = size[rows] if self.density == "rna_count" else np.ones(len(rows))
            logits, loss = place(
                _tensor(source),
                _tensor(measured[rows].toarray()),
                _tensor(prior / prior.sum()),
                Terms(self.gene_weight, self.spot_weight, self.density_weight, self.entropy_weight),
                epochs=self.epochs,
                lr=self.lr,
                generator=generator,
            )
            losses.append(loss)
            level = (torch.from_numpy(share).log() - logits.logsumexp(1))[:, None]
            for at, columns in zip(_split(rows), logits.split(_CHUNK, dim=1), strict=True):
                log_mass = columns + level  # (n, b) float64
                mean, deviation = _moments(made, square, log_mass.softmax(0).numpy())
                mass = len(kept) * log_mass.logsumexp(0).exp().numpy()[:, None] if self._undivided else 1.0
                values[at], spread[at] = mean * mass, deviation
        mean, deviation = _moments(made, square, share[:, None])
        return pair.finish(
            values,
            None if self._undivided else spread,
            mean[0] * (not self._undivided),  # no mass lies at a cell without counts
            deviation[0],
            reference_cells_left_out=len(pair.kept) - len(kept),
            genes_left_out=pair.m - len(told),
            bags=len(bags),
            loss=float(np.mean(losses)),
        )

    @property
    def _undivided(self) -> bool:
        return "undivided" in ((self.legacy,) if isinstance(self.legacy, str) else self.legacy)

    def _grouped(self, groups: np.ndarray | None, kept: np.ndarray, n: int) -> tuple[sparse.csr_matrix, np.ndarray]:
        """Matrix (sources, cells kept) that averages cells to sources, and the share of the cells of each source."""
        if self.mode == "cells":
            return sparse.identity(len(kept), format="csr"), np.full(len(kept), 1 / len(kept))
        if groups is None or np.shape(groups) != (n,):
            raise ValueError(
                f"groups: {'None was' if groups is None else f'shape {np.shape(groups)} was'} given; mode='clusters' "
                f"expects the cell type of each of {n} reference cells, in their order; else give mode='cells'"
            )
        names, of = np.unique(np.asarray(groups)[kept].astype(str), return_inverse=True)
        count = np.bincount(of)
        at = (of, np.arange(len(kept)))
        return sparse.csr_matrix((1 / count[of], at), shape=(len(names), len(kept))), count / len(kept)

    def _bags(self, c: int, seed: int) -> list[np.ndarray]:
        """Rows of the target's cells that are solved together."""
        if self.mode == "clusters" or c <= self.bag:
            return [np.arange(c)]
        dealt = np.random.default_rng(seed).permutation(c)
        return [np.sort(part) for part in np.array_split(dealt, -(-c // self.bag))]


def _moments(made: sparse.csr_matrix, square: sparse.csr_matrix, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation (b, h) of sources with moments (h, n), by weights (n, b) that sum to 1."""
    mean = (made @ weight).T
    return mean, np.sqrt(np.maximum((square @ weight).T - mean**2, 0))


def _sums(table: sparse.csr_matrix, axis: int) -> np.ndarray:
    return np.asarray(table.sum(axis)).ravel()


def _scaled(table: sparse.csr_matrix, factor: np.ndarray) -> sparse.csr_matrix:
    """Rows of the table times a factor each (n,)."""
    return sparse.csr_matrix(sparse.diags(factor) @ table)


def _tensor(table: np.ndarray) -> Tensor:
    return torch.from_numpy(table.astype(np.float32))


def _split(rows: np.ndarray) -> list[np.ndarray]:
    return [rows[i : i + _CHUNK] for i in range(0, len(rows), _CHUNK)]
