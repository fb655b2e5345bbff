"""EGGN: a graph of windows and their exemplars (Yang, Hossain, Stone and Rahman, Pattern Recognition 2024).

Length: the graph and its layers, which a graph library would hold elsewhere, in the one file that a paper gets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from histoweave.batch import Batch, Card, Dims, FeedLike, Needs
from histoweave.models._bank import Bank
from histoweave.models._checks import at_least, given, one_of
from histoweave.models._losses import masked_mse, masked_pcc

LEGACY = ("hidden-slice", "value-decay")
SLOPE = 0.2  # of every LeakyReLU
BESIDE = 5  # neighbours of a window; this and the next one are the authors'
CLOSE = 3  # neighbours of an exemplar
STEPS = ((-1, 0), (0, -1), (0, 1), (1, 0), (-1, -1), (-1, 1), (1, -1), (1, 1))  # (row, column) within √2, nearest first
ROWS = 2048  # exemplars whose distances to all others are held at a time


class EGGN(nn.Module):
    """Message passing over all windows of a section, beside one another, and the exemplars that they look like.

    The *exemplars* of a spot are the training spots whose frozen embeddings are nearest to its own (Manhattan
    distance). A graph holds the section's spots, joined on the lattice, and the distinct exemplars of all of them,
    joined by embedding and expression; each spot is joined to its own exemplars. A layer averages neighbours on both
    sides and exchanges gated messages between them, in which the exemplars' expression takes part. A gene that an
    exemplar does not have counts as the gene's training mean there.

    Parameters
    ----------
    dims
        Number of genes, and width of the frozen embeddings.
    k
        Exemplars of a spot.
    width, depth
        Of the hidden vectors; layers.
    gates
        Gates of a message of 3 · `width` channels, of which each rules as many: a divisor of 3 · `width`.
    weight
        Of one minus the correlation, beside the squared error.
    start
        ``"random"``: as published, predicting about 0 at first; ``"mean"``: the head's bias starts at the training
        mean, so that short training is not spent on finding it.
    legacy
        Defects of the authors' code to reproduce, by name (below).

    Notes
    -----
    **Differences from the authors' code.** (1) What they pass on as the exemplars' expression are the last g channels
    of the exemplars' hidden vectors, since the variable was overwritten: ``legacy="hidden-slice"``. (2) Their
    activation after each layer acts on the mapped expression too, whose negative part so shrinks fivefold per layer:
    ``legacy="value-decay"``. (3) Which 5 of up to 8 neighbours a window keeps depends on the order of their spots, and
    neighbours are found on pixels divided by 256; here they are found on the lattice, edge neighbours first, then
    corners by row and column. (4) Their exemplars of a training spot leave out its own slide only; here its whole
    patient is left out. (5) Exemplars are distinct spots, theirs distinct vectors. (6) Genes that do not vary in a
    section are left out of the mean correlation; theirs count as 0.
    """

    card: ClassVar[Card] = Card(
        title="EGGN",
        citation="Yang Y, Hossain MZ, Stone E, Rahman S. Spatial transcriptomics analysis of gene expression prediction "
        "using exemplar guided graph neural network. Pattern Recognition 145, 109966 (2024).",
        retrieves=True,
        wrong="the expression of the exemplars never enters a message: a variable was overwritten, and hidden channels "
        "are taken in its place",
    )
    needs: Needs = Needs.EMB | Needs.ARRAY_XY | Needs.WHOLE_SECTION

    training_rows: Tensor

    def __init__(
        self,
        dims: Dims,
        *,
        k: int = 6,
        width: int = 512,
        depth: int = 4,
        gates: int = 128,
        weight: float = 0.5,
        start: Literal["random", "mean"] = "random",
        legacy: str | Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.start = one_of("start", start, ("random", "mean"))
        self.legacy = [one_of("legacy", x, LEGACY) for x in ((legacy,) if isinstance(legacy, str) else legacy)]
        if dims.emb < 1:
            raise ValueError(f"exemplars are found by embeddings, but dims.emb is {dims.emb}: give an encoder")
        if 3 * width % at_least("gates", gates, 1) or weight < 0:
            raise ValueError(f"gates={gates}, weight={weight}: expected a divisor of 3 · width = {3 * width}, and >= 0")
        if "hidden-slice" in self.legacy and dims.genes > width:
            raise ValueError(f"legacy='hidden-slice' takes {dims.genes} of {width} channels: choose a larger width")
        self.k, self.weight = at_least("k", k, 1), weight
        self.bank = Bank(dims.emb, dims.genes)
        self.register_buffer("training_rows", torch.zeros(0, 1, dtype=torch.long), persistent=False)
        self.window = nn.Linear(dims.emb, width, bias=False)
        self.exemplar = nn.Linear(dims.emb + dims.genes, width, bias=False)
        self.both = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(dims.genes, width, bias=False)
        self.layers = nn.ModuleList(_Layer(width, gates) for _ in range(at_least("depth", depth, 1)))
        self.pool = nn.Linear(width, width)
        self.share = nn.Parameter(torch.tensor(0.1))  # of the exemplars in what is pooled
        self.head = nn.Linear(width, dims.genes)

    @torch.no_grad()
    def index(self, feed: FeedLike) -> None:
        """Take in the training spots, and find the exemplars of each of them once: they do not change in training."""
        self.bank.fill(feed.reading(Needs.EMB), lambda batch: given(batch.emb, "emb"))
        spots, rows = [], []
        for batch in feed.batches(4096):
            spots.append(batch.spot)
            rows.append(self._nearest(batch, batch.spot))
        spot, k = torch.cat(spots), min(part.shape[1] for part in rows)  # the bank cuts k to what there is
        self.training_rows = spot.new_zeros(int(spot.max()) + 1, k)
        self.training_rows[spot] = torch.cat([part[:, :k] for part in rows])
        if self.start == "mean":
            self.head.bias.copy_(feed.y_mean())

    def exemplars(self, batch: Batch) -> Tensor:
        """Rows (b, k) of the bank; in training none of the spot's own patient."""
        return self.training_rows[batch.spot] if self.training else self._nearest(batch, None)

    def _nearest(self, batch: Batch, spot: Tensor | None) -> Tensor:
        return self.bank.nearest(given(batch.emb, "emb"), self.k, spot=spot, metric="manhattan")

    def forward(self, batch: Batch) -> Tensor:
        """Predictions (b, g) of all spots of a section; should a batch hold several, they do not see each other."""
        refer, rows, of = nodes(self.exemplars(batch), batch.section, len(self.bank))
        expression = self.bank.expression(rows)  # (m, g)
        shown = torch.cat([self.bank.keys[rows], expression], -1)  # (m, embedding and genes)
        beside = lattice_neighbours(given(batch.array_xy, "array_xy"), batch.section)
        close = nearest_others(shown, of, CLOSE)
        x = _leaky(self.both(_leaky(self.window(given(batch.emb, "emb")))))  # (b, d)
        e = _leaky(self.both(_leaky(self.exemplar(shown))))  # (m, d)
        v = self.value(e[:, -expression.shape[1] :] if "hidden-slice" in self.legacy else expression)  # (m, d)
        for layer in self.layers:
            x, e = layer(x, e, v, beside, close, refer)
            v = _leaky(v) if "value-decay" in self.legacy else v
        # The authors' softmax is over 0.1 · (exemplar - window); the window is the same for all of its exemplars.
        asked = e[refer]  # (b, k, d)
        return self.head(self.pool(x) + self.share * (asked * (0.1 * asked).softmax(1)).sum(1))

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared error, and how far the genes' correlations over the section are from 1."""
        pred = self(batch)
        mse = masked_mse(pred, batch.y, batch.y_mask)
        pcc = masked_pcc(pred, batch.y, batch.y_mask)
        return mse + self.weight * (1 - pcc), {"mse": mse.detach(), "pcc": pcc.detach()}

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """Arguments of a small model with every part."""
        return {"k": 3, "width": 32, "depth": 2, "gates": 8}


class _Layer(nn.Module):
    """Each kind of node hears its own kind and the other; it takes the mean of both, and an activation."""

    def __init__(self, width: int, gates: int) -> None:
        super().__init__()
        self.windows, self.exemplars = _Sage(width), _Sage(width)
        self.bridge = _Bridge(width, gates)

    def forward(
        self, x: Tensor, e: Tensor, v: Tensor, beside: Tensor, close: Tensor, refer: Tensor
    ) -> tuple[Tensor, Tensor]:
        """New windows x (b, d) and exemplars e (m, d); their expression v (m, d) stays as it is."""
        to_x, to_e = self.bridge(x, e, v, refer)
        return _leaky((self.windows(x, beside) + to_x) / 2), _leaky((self.exemplars(e, close) + to_e) / 2)


class _Sage(nn.Module):
    """GraphSAGE: a map of the node itself and one of the mean of its neighbours."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.others = nn.Linear(width, width)
        self.own = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, near: Tensor) -> Tensor:
        """New x (n, d) by near (n, k), -1 where there is no neighbour; a node without any hears 0."""
        there = near >= 0
        total = (x[near.clamp(min=0)] * there[..., None]).sum(1)
        return self.others(total / there.sum(1, keepdim=True).clamp(min=1)) + self.own(x)


class _Bridge(nn.Module):
    """Gated messages between windows and exemplars, both ways, in which the exemplars' expression takes part.

    A message is the mean of three vectors, each times its gates: sender, receiver and expression. The gates of both
    directions come from the difference of exemplar and window; a gate rules a run of neighbouring channels of the
    three vectors put in a row, whose order is the authors'.
    """

    def __init__(self, width: int, gates: int) -> None:
        super().__init__()
        self.window, self.exemplar, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.ask = nn.Linear(width, gates, bias=False)
        self.gate = nn.Linear(gates, 2 * gates)
        self.window_bias, self.exemplar_bias = (nn.Parameter(torch.zeros(width)) for _ in range(2))
        self.to_window, self.to_exemplar = (nn.Linear(width, width) for _ in range(2))
        self.run = 3 * width // gates
        for part in (self.window, self.exemplar, self.value, self.ask, self.gate, self.to_window, self.to_exemplar):
            nn.init.trunc_normal_(part.weight, std=0.02)
        for part in (self.to_window, self.to_exemplar):
            nn.init.zeros_(part.bias)

    def forward(self, x: Tensor, e: Tensor, v: Tensor, refer: Tensor) -> tuple[Tensor, Tensor]:
        """What windows x (b, d) and exemplars e (m, d) with expression v (m, d) hear along refer (b, k)."""
        x, e, v = self.window(x), self.exemplar(e), self.value(v)
        differ = self.ask(_leaky(e))[refer] - self.ask(_leaky(x))[:, None]  # (b, k, gates)
        gate = self.gate(_leaky(differ)).sigmoid().repeat_interleave(self.run, -1)  # (b, k, 2 · 3 · d)
        forth, back = gate.unflatten(-1, (2, 3, -1)).unbind(2)  # (b, k, 3, d) each, to windows and to exemplars
        told, shown = e[refer], v[refer]  # (b, k, d)
        of_e, of_v, of_x = forth.unbind(2)
        to_x = ((of_e * told + of_v * shown).mean(1) + of_x.mean(1) * x) / 3  # (b, d)
        of_x, of_e, of_v = back.unbind(2)
        to_e = ((of_x * x[:, None] + of_e * told + of_v * shown) / 3).flatten(0, 1)  # (b · k, d)
        heard = refer.flatten().bincount(minlength=len(e))[:, None].to(x.dtype)  # (m, 1), at least 1
        to_e = torch.zeros_like(e).index_add(0, refer.flatten(), to_e) / heard
        return self.to_window(to_x + self.window_bias), self.to_exemplar(to_e + self.exemplar_bias)


def nodes(near: Tensor, section: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The distinct exemplars of each section, ordered by their place in the bank, not by who found them.

    Parameters
    ----------
    near : (b, k)
        Rows of a bank of `size` entries.
    section : (b,)

    Returns
    -------
    refer, rows, of
        The node of each exemplar (b, k), and of each node its row in the bank (m,) and its section (m,).
    """
    pairs, refer = (section[:, None] * size + near).unique(return_inverse=True)
    return refer, pairs % size, pairs // size


def lattice_neighbours(rc: Tensor, section: Tensor) -> Tensor:
    """Up to 5 neighbours (b, 5) of spots at (row, column) rc (b, 2) of a section (b,), within √2; -1 where none is.

    Edge neighbours come first, then corners, both by row and column, so that the order of the spots does not matter.
    Of several spots that share a cell, one is a neighbour.
    """
    row, column = (rc - rc.amin(0) + 1).unbind(-1)  # an empty row and column around
    height, width = int(row.max()) + 2, int(column.max()) + 2
    cell = (section * height + row) * width + column
    cells, order = cell.sort(stable=True)
    steps = torch.tensor(STEPS, device=rc.device)
    wanted = cell[:, None] + steps[:, 0] * width + steps[:, 1]  # (b, 8)
    at = torch.searchsorted(cells, wanted).clamp(max=len(cells) - 1)
    missing = cells[at] != wanted
    found = order[at].masked_fill(missing, -1)
    return found.gather(1, missing.long().argsort(dim=1, stable=True)[:, :BESIDE])


@torch.no_grad()
def nearest_others(x: Tensor, of: Tensor, count: int) -> Tensor:
    """The `count` nearest others (m, count) of nodes x (m, d) among those of the same section of (m,); -1 for none."""
    count, parts = min(count, len(x) - 1), []
    for rows in torch.arange(len(x), device=x.device).split(ROWS):
        distance = torch.cdist(x[rows], x).masked_fill(of[rows, None] != of, torch.inf)
        distance[torch.arange(len(rows), device=x.device), rows] = torch.inf  # not itself
        far, near = distance.topk(count, dim=1, largest=False)
        parts.append(near.masked_fill(far.isinf(), -1))
    return torch.cat(parts)


def _leaky(x: Tensor) -> Tensor:
    return leaky_relu(x, SLOPE)
