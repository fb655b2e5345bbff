"""SEPAL's graph stage: a spot's prediction corrected by what lies around it (Mejia et al., ICCV Workshops 2023)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from histoweave.batch import Batch, Card, Dims, Needs
from histoweave.models._checks import at_least, given, one_of
from histoweave.models._losses import masked_mse

PRESETS: dict[str, dict[str, Any]] = {  # the authors' best configurations
    "visium": {"operator": "gcn", "position": "concat", "pre": (512,), "graph": (256, 128), "head": True},
    "stnet": {"operator": "graph", "position": "sum", "pre": (), "graph": (), "head": False},
}
CHOICES = {
    "preset": tuple(PRESETS),
    "operator": ("gcn", "sage", "graph", "gat", "gatv2", "transformer"),
    "position": ("concat", "sum"),
    "pooling": ("top", "centre", "mean"),
    "legacy": ("elu-output",),
}


class Sepal(nn.Module):
    """Graph convolutions over the spots around each spot, added to what a first stage predicts.

    Every spot has a graph of its own: itself and all spots within `hops`; two of its spots are linked when they are
    within `hops` of each other. A node is the embedding of its spot with a sine and cosine code of its place relative
    to the centre. The first stage gives embeddings and the prediction to be corrected: ``sepal[first=…]``, and the
    recipes say which it is. Without one, the graph stage reads the frozen encoder and predicts by itself.

    Parameters
    ----------
    dims
        Number of genes, and width of the embeddings, which must be divisible by 4.
    preset
        The authors' configuration for Visium breast sections (``visium``) or the ST-Net sections (``stnet``): operator,
        position, widths. The arguments after it override it.
    operator
        Convolution: ``gcn``, ``sage``, ``graph``, ``gat``, ``gatv2`` or ``transformer``.
    position
        Whether the code of the place is joined to the embedding or added to it.
    pre, graph
        Widths of the layers before the convolutions, and of the convolutions.
    hops
        Reach of a spot's graph.
    pooling
        What of a graph is read: its node of the highest score, weighted by the score (``top``), its ``centre``, or
        the ``mean`` of its nodes.
    legacy
        Defects of the public code to reproduce, by name (below).

    Notes
    -----
    **Differences from the authors' code.** (1) Their last layer has an ELU behind it, so that a correction cannot fall
    below -1: ``legacy="elu-output"``. (2) One section is one step of training; they draw 256 graphs over all sections.
    (3) Their pooling is asked for a ratio of 1 and, as that is a whole number, keeps one node: that is ``top``, and the
    default because their results have it. (4) The frozen encoder may replace their ViT-B, and its embeddings are
    standardized as the view says.
    """

    card: ClassVar[Card] = Card(
        title="SEPAL",
        citation="Mejia G, Cárdenas P, Ruiz D, Castillo A, Arbeláez P. SEPAL: spatial gene expression prediction from "
        "local graphs. ICCV Workshops 2023.",
        wrong="an ELU after the last layer bounds corrections below by -1; pooling keeps one node by a type mistake",
    )
    needs: Needs = Needs.EMB | Needs.NBR | Needs.ARRAY_XY | Needs.PRIOR | Needs.WHOLE_SECTION

    def __init__(
        self,
        dims: Dims,
        *,
        preset: Literal["visium", "stnet"] = "visium",
        operator: str | None = None,
        position: Literal["concat", "sum"] | None = None,
        pre: int | Sequence[int] | None = None,
        graph: int | Sequence[int] | None = None,
        hops: int = 1,
        pooling: Literal["top", "centre", "mean"] = "top",
        legacy: str | Sequence[str] = (),
    ) -> None:
        super().__init__()
        usual = PRESETS[one_of("preset", preset, CHOICES["preset"])]
        operator = one_of("operator", operator or usual["operator"], CHOICES["operator"])
        self.position = one_of("position", position or usual["position"], CHOICES["position"])
        self.pooling = one_of("pooling", pooling, CHOICES["pooling"])
        self.legacy = [one_of("legacy", name, CHOICES["legacy"]) for name in _several(legacy)]
        if dims.emb < 4 or dims.emb % 4:
            raise ValueError(f"the embeddings are {dims.emb} wide; expected a multiple of 4: give another encoder")
        self.hops, self.halo, self.width = at_least("hops", hops, 1), 2 * hops, dims.emb
        into = dims.emb * (2 if self.position == "concat" else 1)
        self.pre = nn.Sequential()
        for width in _several(usual["pre"] if pre is None else pre):
            self.pre.extend([nn.Linear(into, width), nn.ELU()])
            into = width
        widths = [*_several(usual["graph"] if graph is None else graph)] + ([] if usual["head"] else [dims.genes])
        self.convolutions = nn.ModuleList()
        for width in widths:
            self.convolutions.append(_Convolution(operator, into, width))
            into = width
        self.score = _Convolution("graph", into, 1) if pooling == "top" else None
        self.head = nn.Linear(into, dims.genes) if usual["head"] else None

    def forward(self, batch: Batch) -> Tensor:
        """Predictions (b, g): those of the first stage and the correction."""
        node, linked = self._graphs(batch)  # (b, m), (b, m, m)
        rc = given(batch.array_xy, "array_xy")
        offset = (rc[node] - rc[:, None]).float()  # (b, m, 2)
        x, place = given(batch.emb, "emb")[node], _code(offset, self.width)  # (b, m, d)
        x = self.pre(torch.cat([x, place], -1) if self.position == "concat" else x + place)
        for i, convolution in enumerate(self.convolutions, 1):
            x = convolution(x, linked)
            if self.head is not None or i < len(self.convolutions):
                x = F.elu(x)
        there = linked.diagonal(dim1=1, dim2=2)  # (b, m)
        x = self._pooled(x, linked, there)  # (b, d)
        x = x if self.head is None else self.head(x)
        return given(batch.prior, "prior") + (F.elu(x) if "elu-output" in self.legacy else x)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Masked mean squared error."""
        value = masked_mse(self(batch), batch.y, batch.y_mask)
        return value, {"mse": value.detach()}

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """Arguments of a small model with every part."""
        return {"pre": (128,), "graph": (64, 64)}

    def _graphs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The spots of each spot's graph as rows of the batch, itself first (b, m), and which are linked (b, m, m).

        A node is linked to itself; what is no node has no link and points to row 0.
        """
        near = given(batch.nbr, "nbr")  # (b, k)
        b = len(near)
        node = torch.cat([torch.arange(b, device=near.device)[:, None], near], 1)
        edges = (node[:, :1] * b + node)[node >= 0]  # one number per pair of neighbours, or of a spot with itself
        there = (node[:, :, None] >= 0) & (node[:, None] >= 0)
        linked = torch.isin(node[:, :, None] * b + node[:, None], edges) & there
        return node.clamp(min=0), linked

    def _pooled(self, x: Tensor, linked: Tensor, there: Tensor) -> Tensor:
        """One vector (b, d) of each graph's nodes (b, m, d)."""
        if self.pooling == "centre":
            return x[:, 0]
        if self.pooling == "mean":
            return (x * there[..., None]).sum(1) / there.sum(1)[:, None]
        assert self.score is not None
        score = self.score(x, linked)[..., 0].masked_fill(~there, -torch.inf)  # (b, m)
        best, at = score.max(1)
        return x[torch.arange(len(x), device=x.device), at] * best.tanh()[:, None]


class _Convolution(nn.Module):
    """A graph convolution over dense graphs; nodes come linked to themselves, operators without self-links drop that."""

    def __init__(self, operator: str, width: int, out: int) -> None:
        super().__init__()
        self.operator = operator
        self.map = nn.Linear(width, out, bias=operator not in ("sage", "graph"))  # of the neighbours
        self.own = nn.Linear(width, out) if operator in ("sage", "graph", "transformer", "gatv2") else None
        if operator in ("gat", "gatv2"):
            self.ask = nn.Parameter(torch.empty(out if operator == "gatv2" else 2 * out))
            nn.init.normal_(self.ask, std=out**-0.5)
        if operator == "transformer":
            self.query, self.key = nn.Linear(width, out), nn.Linear(width, out, bias=False)

    def forward(self, x: Tensor, linked: Tensor) -> Tensor:
        """Nodes x (b, m, d), linked (b, m, m) with every node linked to itself → (b, m, out)."""
        y = self.map(x)
        if self.operator == "gcn":
            degree = linked.sum(-1).clamp(min=1).to(x.dtype).rsqrt()  # (b, m)
            return (linked * degree[:, :, None] * degree[:, None]) @ y
        others = linked & ~torch.eye(linked.shape[-1], dtype=torch.bool, device=x.device)
        if self.own is not None and self.operator in ("sage", "graph"):
            total = others.to(x.dtype) @ y
            return self.own(x) + (
                total / others.sum(-1, keepdim=True).clamp(min=1) if self.operator == "sage" else total
            )
        if self.operator == "gat":
            mine, theirs = self.ask.chunk(2)
            logits = F.leaky_relu((y @ mine)[:, :, None] + (y @ theirs)[:, None], 0.2)
            return _attention(logits, linked) @ y
        assert self.own is not None
        if self.operator == "gatv2":
            return _attention(F.leaky_relu(self.own(x)[:, :, None] + y[:, None], 0.2) @ self.ask, linked) @ y
        logits = self.query(x) @ self.key(x).transpose(1, 2) / math.sqrt(y.shape[-1])
        return self.own(x) + _attention(logits, others) @ y


def _attention(logits: Tensor, linked: Tensor) -> Tensor:
    """Softmax (b, m, m) over what is linked; a node without links attends to nothing."""
    return logits.masked_fill(~linked, -1e9).softmax(-1) * linked


def _code(offset: Tensor, width: int) -> Tensor:
    """Sines and cosines (…, width) of offsets (…, 2) in lattice steps: half for rows, half for columns."""
    rate = 10_000 ** (-torch.arange(width // 4, device=offset.device) * 4 / width)  # (d / 4,)
    angle = offset[..., None] * rate  # (…, 2, d / 4)
    return torch.cat([angle.sin(), angle.cos()], -1).flatten(-2)


def _several(value: Any) -> tuple[Any, ...]:
    """A value or several as a tuple."""
    return (value,) if isinstance(value, int | str) else tuple(value)
