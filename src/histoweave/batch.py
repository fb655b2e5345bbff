"""What a model is: the tensors it gets (`Batch`), what it declares (`Needs`, `Card`) and what it offers (`SpotModel`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from enum import Flag, auto
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor


class Needs(Flag):
    """What a model reads from a batch. The feed provides exactly this, beside the four fields that are always there."""

    NONE = 0
    WINDOW = auto()  # window
    EMB = auto()  # emb
    CTX_EMB = auto()  # ctx_emb, ctx_mask: the 5 × 5 tiles around a spot
    EXPR = auto()  # expr, seen: what is measured and visible of the spot itself
    CTX_EXPR = auto()  # ctx_expr, ctx_seen: the same of the spot (first) and of its neighbours
    FILL = auto()  # fill: expr with what is missing filled by medians of the neighbourhood
    CTX_FILL = auto()  # ctx_fill: the same of the spot (first) and of its neighbours
    POOL = auto()  # pool_emb, pool_rc, pool_mask, pool_row: all spots of every section present
    NBR = auto()  # nbr: neighbours as rows of the batch (whole sections only)
    XY = auto()  # xy, edge
    ARRAY_XY = auto()  # array_xy
    COUNTS = auto()  # counts, library
    PATIENT = auto()  # patient
    POOLED = auto()  # pooled: the mean embedding of the nearest spots
    ADJACENCY = auto()  # adjacency: where the spot lies among the others of its section
    ADJACENCY_RAW = auto()  # adjacency_raw: the same, in whatever direction the solver left it
    PRIOR = auto()  # prior: what an earlier stage predicts
    SHARED = auto()  # shared: the genes that are measured in the target too, from which others are imputed
    REGION = auto()  # region, region_of, patch_rc: pieces of the image, and where the spots of the batch lie in them
    SEQ = auto()  # seq: the batch is made of sequences of spots of one section; a spot may occur repeatedly
    WHOLE_SECTION = auto()  # a batch is one whole section


FROZEN = Needs.EMB | Needs.CTX_EMB | Needs.POOL | Needs.POOLED  # made by the frozen encoder
IMAGE = FROZEN | Needs.WINDOW


@dataclass(frozen=True, slots=True)
class Dims:
    """Sizes that a model is built for."""

    genes: int
    emb: int = 0  # width of the frozen embeddings; 0 where there are none
    shared: int = 0  # genes from which others are imputed


@dataclass(slots=True)
class Batch:
    """Tensors of b spots. Only what was declared is there, beside the first four.

    Attributes
    ----------
    spot : (b,) int64
        Row of each spot over all spots of the feed; results are scattered back by it.
    section : (b,) int64
        Section of each spot, as its position in the cohort.
    y, y_mask : (b, g) float32, bool
        Target, and where it counts. All False when a cohort has no counts.
    window : (b, 3, h, w) uint8
    emb : (b, d) float32
    ctx_emb, ctx_mask : (b, k, d) float32, (b, k) bool
        Tiles around the spot, row-major; False where a tile leaves the image. The middle one is the spot itself.
    expr, seen : (b, g) float32, (b, g) bool
        Target values of the spot where they are measured and visible, else 0.
    ctx_expr, ctx_seen : (b, k, g) float32, (b, k, g) bool
        The same of the spot (k = 0) and its neighbours; all unseen where there is no neighbour.
    fill, ctx_fill : (b, g) float32, (b, k, g) float32
        `expr` after the adaptive median of `histoweave.pp.median_fill`, of the spot, and with its neighbours.
    pool_emb, pool_rc, pool_mask : (s, n, d) float32, (s, n, 2) int64, (s, n) bool
        All spots of each section present, with lattice (row, column).
    pool_row : (b,) int64
        Where a spot of the batch stands in the pool, flattened over (s, n).
    nbr : (b, k) int64
        Neighbours as rows of this batch; -1 for none.
    xy, edge : (b, 2) float32, (b,) float32
        Position in µm from the centre of the section, and distance to the edge of the tissue in µm.
    array_xy : (b, 2) int64
    counts, library : (b, g) float32, (b,) float32
    pooled : (b, d) float32
        Mean of `emb` over the 15 nearest spots of the section, the spot included.
    adjacency, adjacency_raw : (b, 32) float32
        Singular vectors of the section's graph of nearest spots. A section's basis is its own.
    prior : (b, g) float32
        Predictions of the stage before; zeros where there is none.
    shared : (b, m) float32
        Counts of the shared genes over their sum; 0 in a cell without any.
    region, region_of, patch_rc : (r, c, h, w) float32, (b,) int64, (b, 2) int64
        Standardized pieces of the image, the piece of each spot, and the (row, column) of its patch of 16 × 16 px there.
    patient, seq : (b,) int64
    """

    spot: Tensor
    section: Tensor
    y: Tensor
    y_mask: Tensor
    window: Tensor | None = None
    emb: Tensor | None = None
    ctx_emb: Tensor | None = None
    ctx_mask: Tensor | None = None
    expr: Tensor | None = None
    seen: Tensor | None = None
    ctx_expr: Tensor | None = None
    ctx_seen: Tensor | None = None
    fill: Tensor | None = None
    ctx_fill: Tensor | None = None
    pool_emb: Tensor | None = None
    pool_rc: Tensor | None = None
    pool_mask: Tensor | None = None
    pool_row: Tensor | None = None
    nbr: Tensor | None = None
    xy: Tensor | None = None
    edge: Tensor | None = None
    array_xy: Tensor | None = None
    counts: Tensor | None = None
    library: Tensor | None = None
    pooled: Tensor | None = None
    adjacency: Tensor | None = None
    adjacency_raw: Tensor | None = None
    prior: Tensor | None = None
    shared: Tensor | None = None
    region: Tensor | None = None
    region_of: Tensor | None = None
    patch_rc: Tensor | None = None
    patient: Tensor | None = None
    seq: Tensor | None = None

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """The fields that are there."""
        for f in fields(self):
            value = getattr(self, f.name)
            if value is not None:
                yield f.name, value

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""
        return Batch(**{name: value.to(device, non_blocking=True) for name, value in self.items()})

    def __len__(self) -> int:
        return len(self.spot)


@dataclass(frozen=True, slots=True)
class Card:
    """What a reader must know about a model.

    Attributes
    ----------
    title, citation
        Name in tables, and the paper.
    task
        ``predict``, ``complete`` or ``impute``.
    learns
        How it learns, which selects the contract tests that apply: by gradient, in closed form, by retrieval, or not.
    licence
        Of any weights that come with it; our code is BSD-3-Clause.
    published
        Published numbers, as ``{"her2st PCC(M)": 0.314}``.
    control
        Whether it is a control that every table shows.
    retrieves
        Whether it looks up expression of training spots.
    wrong
        What was wrong in the authors' public code, in a sentence; empty if nothing that changes a result is known.
    """

    title: str
    citation: str
    task: Literal["predict", "complete", "impute"] = "predict"
    learns: Literal["gradient", "closed-form", "retrieval", "none"] = "gradient"
    licence: str = "no weights"
    published: dict[str, float] = field(default_factory=dict)
    control: bool = False
    retrieves: bool = False
    wrong: str = ""


class FeedLike(Protocol):
    """What a model may ask of the feed in `index`: it can be walked several times."""

    @property
    def n(self) -> int: ...

    def batches(self, size: int, /) -> Iterator[Batch]: ...

    def y_mean(self) -> Tensor: ...

    def inner_fold(self) -> Tensor: ...

    def inner_unit(self) -> Tensor: ...

    def reading(self, needs: Needs, /) -> FeedLike: ...


@runtime_checkable
class SpotModel(Protocol):
    """A torch module over a batch; there is nothing to inherit but `torch.nn.Module`.

    It is built as ``cls(dims, **arguments)``, with explicit keyword arguments only. A model may also have
    ``index(feed)``, called once before training with all training spots: reference banks, normal equations, means;
    ``choose(feed)``, which takes a setting that `index` left open (a penalty) by its error on validation spots;
    ``features(batch)`` (b, d), which lets it be the first stage of another; and ``hops`` and ``halo``, how far its neighbours
    reach and how far it looks around a region of a section, in lattice steps; ``sequencing``, the length of its
    sequences, how often a spot occurs in them at least, and by which rule (see `histoweave.feed.Sequencing`); and
    ``needs_zeros``, where it fits raw counts, to which zeros belong, so that it learns from no layer but ``raw``: True, or
    the argument that turns this off, such as ``"counts=none"``.
    """

    card: ClassVar[Card]
    needs: Needs

    def forward(self, batch: Batch) -> Tensor:
        """Predictions (b, g) in the units of the target."""
        ...

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise and its named parts."""
        ...

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """The smallest arguments that still exercise every part: what the contract tests use."""
        ...
