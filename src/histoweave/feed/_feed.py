"""`Feed`: batches of a cohort for a model.

A feed holds what the declared needs ask for as tensors over all spots; a batch is a gather by row. Nothing after this
looks back at AnnData.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from histoweave.batch import FROZEN, Batch, Needs
from histoweave.data.section import Cohort, Section
from histoweave.data.split import InnerSplit, inner_split, inner_units
from histoweave.feed._embeddings import Embeddings
from histoweave.feed._expression import EXPRESSION, Expression
from histoweave.feed._sequences import Regions, Sequencing
from histoweave.pp.adjacency import adjacency_basis, nearest
from histoweave.pp.genes import candidate_counts
from histoweave.pp.lattice import lattice
from histoweave.pp.neighbors import edge_distance, neighbours
from histoweave.view import Features, FittedView, lattice_rc

_AROUND = Needs.CTX_EXPR | Needs.CTX_FILL


def dense_rc(section: Section) -> np.ndarray:
    """Lattice (row, column) of every spot (n, 2), int64, without the gaps of Visium's doubled columns."""
    rc = lattice_rc(section)
    return np.column_stack([rc[:, 0], rc[:, 1] // 2]) if lattice(section.platform) == "hex" else rc


class Feed:
    """Batches of a cohort for a model.

    Parameters
    ----------
    view
        Panel, target and embedding statistics.
    cohort
        The sections, in order; rows of the feed are their spots one after the other.
    features
        Embeddings and windows per section id, as `View.embed` gives them.
    needs
        What the model reads.
    device
        Where the batches are made.
    hops
        Reach of the neighbour tables.
    zeros
        Whether a count of 0 is a measurement, or an entry that is missing.
    filled
        What to learn in the place of missing entries, per section id (n, g); such a feed counts them as measured.
    sequencing
        Length and number of sequences, for models that want them.
    """

    def __init__(
        self,
        view: FittedView,
        cohort: Cohort,
        features: Features,
        needs: Needs,
        *,
        device: str = "cpu",
        hops: int = 1,
        zeros: bool = True,
        filled: Mapping[str, np.ndarray] | None = None,
        sequencing: Sequencing | None = None,
    ) -> None:
        self.view, self.cohort, self.needs, self.device = view, cohort, needs, torch.device(device)
        self._features, self._hops = features, hops
        sizes = np.array([section.n for section in cohort], dtype=np.int64)
        self._start = np.concatenate([[0], np.cumsum(sizes)])
        self._section = torch.from_numpy(np.repeat(np.arange(len(cohort)), sizes)).to(self.device)
        self._rows = torch.arange(int(self._start[-1]), device=self.device)
        truths = [view.truth(section, zeros=zeros or filled is not None) for section in cohort]
        self._mask = self._stack([mask for _, mask in truths])
        self._y = self._stack([y for y, _ in truths] if filled is None else [filled[id] for id in cohort.ids])
        center = None if view.center is None else torch.from_numpy(view.center).to(self.device)
        self._expression: Expression | None = None
        if needs & EXPRESSION:
            seen = [view.truth(section, zeros=False) for section in cohort]
            values, shown = (self._stack([pair[i] for pair in seen]) for i in (0, 1))
            self._expression = Expression(tuple(cohort), values, shown, center)
        if center is not None:
            self._y = (self._y - center) * self._mask
        self._fields = dict(self._spot_fields())
        self._sequencing = sequencing or Sequencing()
        pixels, channels = Needs.REGION in needs, self._sequencing.channels
        self._regions = Regions(cohort, self.device, pixels=pixels, channels=channels) if Needs.SEQ in needs else None
        self._embeddings = Embeddings(view, cohort, features, needs, self.device) if needs & FROZEN else None

    # -- what a model may ask in `index` ------------------------------------------------------------------------

    @property
    def n(self) -> int:
        """Spots that this feed walks."""
        return len(self._rows)

    @property
    def n_total(self) -> int:
        """Spots of the cohort, walked or not."""
        return int(self._start[-1])

    @property
    def width(self) -> int:
        """Width of the embeddings; 0 where none are needed."""
        return 0 if self._embeddings is None else self._embeddings.width

    def y_mean(self) -> Tensor:
        """Mean target per gene over the walked spots where it counts (g,)."""
        mask = self._mask[self._rows]
        total = (self._y[self._rows].double() * mask).sum(dim=0)
        return (total / mask.sum(dim=0).clamp(min=1)).float()

    def inner_fold(self) -> Tensor:
        """Fold of every walked spot (n,) on the highest rung that the cohort allows."""
        return torch.from_numpy(self.inner.fold).to(self.device)[self._rows]

    def inner_unit(self) -> Tensor:
        """What retrieval keeps apart, for every walked spot (n,): its patient, else section, else block of a section.

        The highest rung on which the walked spots are not all one.
        """
        present = self._section[self._rows].unique()
        _, unit = inner_units(self.cohort.subset([self.cohort.ids[s] for s in present.tolist()]))
        units = torch.full((self.n_total,), -1, dtype=torch.long, device=self.device)
        units[torch.isin(self._section, present)] = torch.from_numpy(unit).to(self.device)
        return units[self._rows]

    @cached_property
    def inner(self) -> InnerSplit:
        """The inner split of the whole cohort."""
        return inner_split(self.cohort)

    def only(self, keep: Tensor) -> Feed:
        """A feed over the same tensors that walks the spots where `keep` (n_total,) is True."""
        part = object.__new__(type(self))
        part.__dict__.update(self.__dict__)
        part._rows = torch.nonzero(keep.to(self.device)).squeeze(1)
        return part

    def reading(self, needs: Needs) -> Feed:
        """A feed over the same spots whose batches hold no more than these needs: windows are not gathered for nothing."""
        part = object.__new__(type(self))
        part.__dict__.update(self.__dict__)
        part.needs = self.needs & (needs | Needs.WHOLE_SECTION)
        return part

    def hiding(self, rate: float) -> Feed:
        """A feed that hides a share of the measured entries from a model that completes, and counts these alone.

        They are the same entries every time, so that the scores of epochs compare.
        """
        if self._expression is None:
            raise ValueError("only entries that a model reads can be hidden from it, and this one reads none")
        part = object.__new__(type(self))
        part.__dict__.update(self.__dict__)
        part._expression, hidden = self._expression.hiding(rate)
        part._mask = self._mask & hidden
        return part

    # -- batches ------------------------------------------------------------------------------------------------

    def batches(self, size: int, /, *, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """Every walked spot once (at least once in sequences), in random order if a generator is given.

        Models that need whole sections get one section a batch whatever `size` is.
        """
        for rows, seq in self._orders(size, generator):
            yield self.batch(rows, seq)

    def batch(self, rows: Tensor, seq: Tensor | None = None) -> Batch:
        """The batch of the given rows of the cohort (b,)."""
        made = Batch(spot=rows, section=self._section[rows], y=self._y[rows], y_mask=self._mask[rows], seq=seq)
        for name, table in self._fields.items():
            setattr(made, name, table[rows])
        if self._embeddings is not None:
            self._add_embeddings(made, self._embeddings)
        if self._expression is not None:
            self._expression.add(made, self.needs, self._near[rows] if self.needs & _AROUND else None)
        if self._regions is not None and Needs.REGION in self.needs:
            self._regions.add(made)
        if Needs.NBR in self.needs:
            made.nbr = self._local_neighbours(rows)
        if Needs.WINDOW in self.needs:
            made.window = self._windows(rows)
        return made

    def _orders(self, size: int, generator: torch.Generator | None) -> Iterator[tuple[Tensor, Tensor | None]]:
        rows = self._rows
        if generator is not None:
            rows = rows[torch.randperm(len(rows), generator=generator).to(self.device)]
        if Needs.WHOLE_SECTION in self.needs:
            of = self._section[self._rows]
            for s in _order(len(self.cohort), generator):
                if len(part := self._rows[of == s]):
                    yield part, None
        elif self._regions is not None:
            per_batch = max(1, size // self._sequencing.length)
            yield from self._regions.batches(rows, self._sequencing, per_batch, generator)
        else:
            for part in rows.split(size):
                yield part, None

    # -- tables -------------------------------------------------------------------------------------------------

    def _stack(self, arrays: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate(arrays)).to(self.device)

    def _spot_fields(self) -> Iterator[tuple[str, Tensor]]:
        """Fields that are one plain table over all spots."""
        cohort, needs = self.cohort, self.needs
        if Needs.XY in needs:
            yield "xy", self._stack([_centred_um(section) for section in cohort])
            yield (
                "edge",
                self._stack(
                    [(edge_distance(section.xy) * (section.um_per_px or 1.0)).astype(np.float32) for section in cohort]
                ),
            )
        if Needs.ARRAY_XY in needs:
            yield "array_xy", self._stack([dense_rc(section) for section in cohort])
        if Needs.PATIENT in needs:
            codes = {patient: i for i, patient in enumerate(cohort.patients)}
            yield "patient", self._stack([np.full(s.n, codes[s.patient], dtype=np.int64) for s in cohort])
        if Needs.COUNTS in needs:
            genes = self.view.genes.genes
            tables = [candidate_counts(s, genes, union=True).toarray() if s.spots.n_vars else None for s in cohort]
            none = np.zeros((1, len(genes)), np.float32)
            yield (
                "counts",
                self._stack([none.repeat(s.n, 0) if t is None else t for s, t in zip(cohort, tables, strict=True)]),
            )
            yield "library", self._stack([s.library.astype(np.float32) for s in cohort])
        if Needs.SHARED in needs:
            yield "shared", self._stack([_shares(s, self.view.view.shared) for s in cohort])
        for need, name in ((Needs.ADJACENCY, "adjacency"), (Needs.ADJACENCY_RAW, "adjacency_raw")):
            if need in needs:
                signed = need == Needs.ADJACENCY
                yield name, self._stack([adjacency_basis(section.xy, signed=signed) for section in cohort])
        if Needs.PRIOR in needs:
            none = np.zeros((1, len(self.view.genes)), np.float32)
            prior = [self._features[s.id].prior for s in cohort]
            yield (
                "prior",
                self._stack([np.repeat(none, s.n, 0) if p is None else p for s, p in zip(cohort, prior, strict=True)]),
            )
        if needs & (_AROUND | Needs.NBR):
            self._near = self._neighbour_rows()

    def _neighbour_rows(self) -> Tensor:
        """The spot itself, then its neighbours, as rows of the cohort (n, 1 + k); -1 for none."""
        tables = [neighbours(section, self._hops) for section in self.cohort]
        width = max(table.shape[1] for table in tables)
        near = np.full((self.n_total, 1 + width), -1, dtype=np.int64)
        near[:, 0] = np.arange(self.n_total)
        for start, table in zip(self._start, tables, strict=False):
            rows = slice(start, start + len(table))
            near[rows, 1 : 1 + table.shape[1]] = np.where(table >= 0, table + start, -1)
        return torch.from_numpy(near).to(self.device)

    def _add_embeddings(self, made: Batch, table: Embeddings) -> None:
        """What the frozen encoder saw of the spots of a batch, and around them."""
        rows, section = made.spot, made.section
        if Needs.EMB in self.needs:
            made.emb = table.spots(rows, section)
        if Needs.CTX_EMB in self.needs:
            made.ctx_emb, made.ctx_mask = table.tiles(rows, section)  # (b, k, d), (b, k)
        if Needs.POOL in self.needs:
            self._add_pool(made, table)
        if Needs.POOLED in self.needs:
            near = self._nearest[rows]  # (b, k)
            around = table.spots(near.clamp(min=0), section)
            made.pooled = (around * (near >= 0)[..., None]).sum(dim=1) / (near >= 0).sum(dim=1, keepdim=True)

    def _add_pool(self, made: Batch, table: Embeddings) -> None:
        """All spots of every section present, padded to the longest, and where the spots of the batch stand in it."""
        present, where = torch.unique(made.section, return_inverse=True)
        starts = torch.from_numpy(self._start).to(self.device)
        sizes = starts[present + 1] - starts[present]  # (s,)
        longest = int(sizes.max())
        slot = torch.arange(longest, device=self.device)
        made.pool_mask = slot[None] < sizes[:, None]  # (s, n)
        rows = starts[present][:, None] + torch.minimum(slot[None], sizes[:, None] - 1)  # (s, n)
        made.pool_emb = table.spots(rows, present) * made.pool_mask[..., None]
        made.pool_rc = self._pool_rc[rows] * made.pool_mask[..., None]
        made.pool_row = where * longest + made.spot - starts[made.section]

    @cached_property
    def _nearest(self) -> Tensor:
        """The spot itself and its nearest of the section, as rows of the cohort (n, k); -1 for none."""
        tables = [nearest(section.xy).astype(np.int64) for section in self.cohort]
        return self._stack([np.where(t >= 0, t + start, -1) for t, start in zip(tables, self._start, strict=False)])

    @cached_property
    def _pool_rc(self) -> Tensor:
        return self._stack([dense_rc(section) for section in self.cohort])

    def _local_neighbours(self, rows: Tensor) -> Tensor:
        """Neighbours as rows of the batch (b, k); -1 where there is none in it."""
        place = torch.full((self.n_total + 1,), -1, dtype=torch.long, device=self.device)  # last entry: no neighbour
        place[rows] = torch.arange(len(rows), device=self.device)
        return place[self._near[rows, 1:]]

    def _windows(self, rows: Tensor) -> Tensor:
        """Windows of the rows (b, 3, h, w), uint8, channels last in memory; gathered section by section."""
        at = rows.cpu().numpy()
        section = np.searchsorted(self._start, at, side="right") - 1
        out: np.ndarray | None = None
        for s in np.unique(section):
            pixels, here = self._features[self.cohort[int(s)].id].pixels, section == s
            assert pixels is not None
            out = np.empty((len(at), *pixels.shape[1:]), dtype=np.uint8) if out is None else out
            out[here] = pixels[at[here] - self._start[s]]
        assert out is not None
        return torch.from_numpy(out).permute(0, 3, 1, 2).to(self.device, non_blocking=True)


def _shares(section: Section, genes: tuple[str, ...]) -> np.ndarray:
    """Counts of the shared genes over their sum (n, m), float32; 0 in cells without any."""
    if not genes:
        raise ValueError("a model that imputes needs genes that are measured in the target too; name them (`shared`)")
    counts = section.counts(genes).toarray()
    return (counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0)).astype(np.float32)


def _order(n: int, generator: torch.Generator | None) -> list[int]:
    return list(range(n)) if generator is None else torch.randperm(n, generator=generator).tolist()


def _centred_um(section: Section) -> np.ndarray:
    """Positions in µm from the centre of the section's bounding box (n, 2), float32."""
    xy: Any = section.xy
    return ((xy - (xy.min(axis=0) + xy.max(axis=0)) / 2) * (section.um_per_px or 1.0)).astype(np.float32)
