"""Hist2ST: ConvMixer, transformer and graph network over a section (Zeng et al., Briefings in Bioinformatics 2022).

Length: an image network, a graph network, a likelihood of counts and self-distillation are one method, so one file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from histoweave.batch import Batch, Card, Dims, FeedLike, Needs
from histoweave.models._checks import at_least, given, one_of
from histoweave.models._layers import Stack
from histoweave.models._losses import masked_mse
from histoweave.models._section import Positions, normalised, resized

CHOICES = {
    "trunk": ("trainable", "frozen"),
    "counts": ("zinb", "nb", "none"),
    "start": ("random", "mean"),
    "legacy": ("raw-pixels",),
}
MEAN, DISPERSION = (1e-5, 1e6), (1e-4, 1e4)  # bounds of the counts' distribution, the authors'
GREY, FLIP = 0.1, 0.2  # how often a copy of the section is grey, and mirrored; the authors'
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


class Hist2ST(nn.Module):
    """A ConvMixer makes a token of each window, a transformer relates all spots of a section, a graph network nearby ones.

    The graph network averages neighbours in several rounds, and an LSTM over the rounds joins them. Beside the
    prediction, heads model the raw counts by a zero-inflated negative binomial, and the prediction is drawn towards a
    learned average of those of randomly altered copies of the section (self-distillation).

    Parameters
    ----------
    dims
        Number of genes, and width of the frozen embeddings (used with ``trunk="frozen"`` only).
    trunk
        ``"trainable"``: the paper's ConvMixer; ``"frozen"``: a linear map of the spot's embedding, without a window.
        Then there is no image to alter, so there is no self-distillation either.
    side, patch, channels, mixers
        Windows are resized to `side` pixels and cut into patches of `patch`; channels and layers of the ConvMixer.
    width, depth, heads, ratio, dropout
        Width of a token, transformer blocks, attention heads, width inside the feed-forward part as a multiple, dropout.
    rounds, neighbors, reach
        Rounds of averaging, over how many nearest spots, and how far these may be, in lattice steps (2 is the paper's
        "grid" pruning; None keeps all).
    positions
        Entries of the tables of rows and of columns. `index` lengthens them where training sections need more; a spot
        that lies outside at prediction gets the entry at that end.
    counts, counts_weight
        Distribution of the raw counts (``"none"`` leaves this loss out, and no counts are read), and weight of its loss.
    copies, copies_weight
        Altered copies for self-distillation (0 leaves it out), and weight of its loss.
    start
        ``"random"`` as in the paper, predicting about 0 at first; ``"mean"``: the head's bias starts at the training
        mean, so that short training is not spent on finding it.
    legacy
        Habits of the authors' code to reproduce, by name (below).

    Notes
    -----
    Training makes one pass over the section and one for each copy, each with its own batch statistics, as in the
    authors' code; memory and time are those of `copies` + 1 sections.

    **Differences from the authors' code.** (1) Their windows enter as raw values from 0 to 255; here colours are
    normalised, unless ``legacy="raw-pixels"``. (2) Where several spots compete for the last place among the nearest,
    theirs takes them in the order of the table; here the one further up, then further left. (3) A spot without a
    neighbour in reach divides by zero there; here it is its own neighbour. (4) Their tables of positions have 64
    entries whatever the section; a section beyond fails there. (5) Only measured entries count in the losses, and in
    the likelihood only those of spots that have counts at all: the mean is scaled by a spot's total over the measured
    genes, divided by the median of these totals over the section.

    As in their code, self-distillation has no side that only teaches: the weights of the copies are learnt through it
    and through nothing else, so gradients have to pass there, and they pass on the other side too. The last bias of
    these weights cancels in their softmax, and biases before a batch normalisation cancel in it; they are kept, so that
    the sizes agree. Corners of turned windows are black.
    """

    card: ClassVar[Card] = Card(
        title="Hist2ST",
        citation="Zeng Y, Wei Z, Yu W, et al. Spatial transcriptomics prediction from histology jointly through "
        "Transformer and graph neural networks. Briefings in Bioinformatics 23(5), bbac297 (2022).",
        published={"BC1 MSE": 0.285, "BC1 PCC(M)": 0.118, "BC1 PCC(H)": 0.248, "BC2 MSE": 0.181, "BC2 PCC(M)": 0.044}
        | {"BC2 PCC(H)": 0.099, "SCC MSE": 1.291, "SCC PCC(M)": 0.004, "SCC PCC(H)": 0.053},  # as run for TRIPLEX
        wrong="windows are raw values from 0 to 255, ties between neighbours fall by the order of the spots, a spot "
        "without neighbours divides by zero, and folds leave out one section while others of the same patient stay in "
        "the training",
    )
    needs: Needs = Needs.WINDOW | Needs.ARRAY_XY | Needs.COUNTS | Needs.WHOLE_SECTION  # an instance has its own

    def __init__(
        self,
        dims: Dims,
        *,
        trunk: Literal["trainable", "frozen"] = "trainable",
        side: int = 112,
        patch: int = 7,
        channels: int = 32,
        mixers: int = 2,
        width: int = 1024,
        depth: int = 8,
        heads: int = 16,
        ratio: int = 1,
        dropout: float = 0.2,
        rounds: int = 4,
        neighbors: int = 4,
        reach: float | None = 2.0,
        positions: int = 64,
        counts: Literal["zinb", "nb", "none"] = "zinb",
        counts_weight: float = 0.25,
        copies: int = 5,
        copies_weight: float = 0.5,
        start: Literal["random", "mean"] = "random",
        legacy: str | Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.legacy = (legacy,) if isinstance(legacy, str) else tuple(legacy)
        named = [("trunk", trunk), ("counts", counts), ("start", start)]
        for name, value in named + [("legacy", habit) for habit in self.legacy]:
            one_of(name, value, CHOICES[name])
        for name, number in (("counts_weight", counts_weight), ("copies_weight", copies_weight), ("reach", reach)):
            if number is not None and not number > 0:
                raise ValueError(f"{name}={number}; expected more than 0. Off are counts='none', copies=0, reach=None")
        self.frozen, self.start, self.side = trunk == "frozen", start, side
        self.neighbors, self.reach = at_least("neighbors", neighbors, 1), reach
        self.counts_weight, self.copies_weight = counts_weight, copies_weight
        if self.frozen and dims.emb < 1:
            raise ValueError(f"trunk='frozen' reads embeddings, but dims.emb is {dims.emb}: give an encoder")
        self.needs = (Needs.EMB if self.frozen else Needs.WINDOW) | Needs.ARRAY_XY | Needs.WHOLE_SECTION
        self.needs |= Needs.NONE if counts == "none" else Needs.COUNTS
        self.needs_zeros = "" if counts == "none" else "counts=none"
        if self.frozen:
            self.token: nn.Module = nn.Sequential(nn.Linear(dims.emb, width), nn.Dropout(dropout))
        else:
            self.token = _ConvMixer(side, patch, channels, mixers, width, dropout)
        self.positions = Positions(width, positions)
        self.transformer = Stack(depth, width, heads, width * at_least("ratio", ratio, 1), dropout, norm=False)
        self.graph = _Graph(width, rounds)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, dims.genes)
        heads_of = {"zinb": ("mean", "dispersion", "dropped"), "nb": ("mean", "dispersion"), "none": ()}[counts]
        self.counts = nn.ModuleDict({name: nn.Linear(width, dims.genes) for name in heads_of})
        self.copies = 0 if self.frozen or copies == 0 else at_least("copies", copies, 2)
        self.trust = None
        if self.copies:  # how much a copy counts; of a single one that would be all
            self.trust = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))

    @torch.no_grad()
    def index(self, feed: FeedLike) -> None:
        """Makes the tables of positions long enough, and starts the head at the mean target (g,) where asked for."""
        self.positions.cover(feed)
        if self.start == "mean":
            self.head.bias.copy_(feed.y_mean())

    def forward(self, batch: Batch) -> Tensor:
        """Predictions (b, g)."""
        return self.head(self.norm(self._spots(self._seen(batch), *self._lattice(batch))))

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared error, likelihood of the counts and, in training, distance to the average of the copies."""
        seen, lattice = self._seen(batch), self._lattice(batch)
        spots = self._spots(seen, *lattice)
        pred = self.head(self.norm(spots))
        parts = {"mse": masked_mse(pred, batch.y, batch.y_mask)}
        if self.counts:
            logits = {name: head(spots).float() for name, head in self.counts.items()}
            value = count_loss(logits, given(batch.counts, "counts"), batch.y_mask)
            parts["counts"] = self.counts_weight * value
        if self.trust is not None and self.training:
            views = torch.stack([self._spots(altered(seen), *lattice) for _ in range(self.copies)])  # (copies, b, d)
            together = (self.trust(views).softmax(0) * self.head(self.norm(views))).sum(0)  # (b, g)
            parts["copies"] = self.copies_weight * masked_mse(pred, together, batch.y_mask)
        return torch.stack(list(parts.values())).sum(), {name: part.detach() for name, part in parts.items()}

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """Arguments of a small model with every part; the tables are too short for any section."""
        sizes = {"side": 16, "patch": 4, "channels": 8, "mixers": 1, "width": 32, "depth": 1, "heads": 2, "rounds": 2}
        return sizes | {"positions": 2, "copies": 2}

    def _seen(self, batch: Batch) -> Tensor:
        """The embedding of each spot (b, emb), or its window as floats from 0 to 255 (b, 3, side, side)."""
        return given(batch.emb, "emb") if self.frozen else resized(given(batch.window, "window"), self.side)

    def _lattice(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Row and column of each spot (b, 2), and what it takes from its neighbours (b, b)."""
        rc = given(batch.array_xy, "array_xy")
        return rc, averaging(rc, self.neighbors, self.reach)

    def _spots(self, seen: Tensor, rc: Tensor, near: Tensor) -> Tensor:
        """What the heads read (b, d)."""
        raw = self.frozen or "raw-pixels" in self.legacy
        x = self.token(seen if raw else normalised(seen)) + self.positions(rc)
        return self.graph(self.transformer(x[None])[0], near)  # the spots are the tokens of one sequence


class _ConvMixer(nn.Module):
    """Windows (b, 3, side, side) to tokens (b, width): patches, depthwise and pointwise convolutions, flattened."""

    def __init__(self, side: int, patch: int, channels: int, mixers: int, width: int, dropout: float) -> None:
        super().__init__()
        across = at_least("side", side, 1) // at_least("patch", patch, 1)
        if side % patch or width % across**2:
            raise ValueError(
                f"side={side}, patch={patch}, width={width}: expected a side that is a multiple of the patch, and a "
                f"width that is a multiple of the number of patches ({across} × {across})"
            )
        self.patches = nn.Sequential(nn.Conv2d(3, channels, patch, patch), nn.Dropout(dropout))
        self.mixers = nn.ModuleList(_Mixer(channels) for _ in range(mixers))
        self.out = nn.Conv2d(channels, width // across**2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)  # (b, channels, across, across)
        for mixer in self.mixers:
            x = mixer(x)
        return self.out(x).flatten(1)


class _Mixer(nn.Module):
    """Two depthwise convolutions around which the input is added, then a pointwise one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        depthwise: list[nn.Module] = []
        for _ in range(2):
            conv = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
            depthwise += [conv, nn.BatchNorm2d(channels), nn.GELU()]
        self.depthwise = nn.Sequential(*depthwise)
        self.pointwise = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.GELU(), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(x + self.depthwise(x))


class _Graph(nn.Module):
    """Rounds of averaging over neighbours, then an LSTM whose steps are the rounds; the mean of its answers."""

    def __init__(self, width: int, rounds: int) -> None:
        super().__init__()
        at_least("rounds", rounds, 2)  # the recurrent weights of the LSTM have nothing to do in one step
        self.rounds = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(rounds))
        self.lstm = nn.LSTM(width, width, num_layers=2)

    def forward(self, x: Tensor, near: Tensor) -> Tensor:
        """Transform x (b, d) with near (b, b), whose rows say how much each spot takes from the others."""
        steps = []
        for linear in self.rounds:
            x = F.normalize(linear(near @ x).relu(), dim=-1)
            steps.append(x)
        return self.lstm(torch.stack(steps))[0].mean(0)  # (rounds, b, d) to (b, d)


def averaging(rc: Tensor, k: int, reach: float | None) -> Tensor:
    """Matrix (b, b) that averages over the k nearest spots at most `reach` away; a spot without any stands for itself.

    Parameters
    ----------
    rc : (b, 2) int64
        Lattice (row, column).

    Notes
    -----
    Of spots at one distance those further up are nearer, then those further left, so that the order of the spots does
    not matter. Spots that share a cell come together, which can make more than k. Exact on lattices of up to 32,000
    rows and columns.
    """
    row, column = (
        axis[None] - axis[:, None] for axis in rc.unbind(-1)
    )  # (b, b): from the spot of the row to the other
    square = row.square() + column.square()
    span = 2 * torch.maximum(row.amax(), column.amax()) + 1
    rank = (square * span + row) * span + column  # by distance, then row, then column: these are below span / 2
    rank.fill_diagonal_(torch.iinfo(rank.dtype).max)
    near = torch.zeros_like(rank, dtype=torch.bool)
    if (k := min(k, len(rc) - 1)) > 0:
        near = rank <= rank.topk(k, largest=False).values.amax(-1, keepdim=True)
    if reach is not None:
        near &= square <= reach**2
    near |= torch.diag(~near.any(-1))
    return near / near.sum(-1, keepdim=True)


def altered(x: Tensor) -> Tensor:
    """Windows x (b, 3, h, h) of a section, all turned by one random angle of up to 90°, and at times grey or mirrored."""
    grey, flip, turn = torch.rand(3).tolist()
    if grey < GREY:
        x = (x * x.new_tensor(LUMA).view(3, 1, 1)).sum(1, keepdim=True).expand_as(x)
    if flip < FLIP:
        x = x.flip(-1)
    angle = (2 * turn - 1) * math.pi / 2
    matrix = x.new_tensor([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0]])
    # All windows go as channels of one image, because one grid of sampling points serves them all.
    grid = F.affine_grid(matrix[None], [1, 1, *x.shape[-2:]], align_corners=False)  # (1, h, h, 2)
    return F.grid_sample(x.flatten(0, 1)[None], grid, align_corners=False)[0].view_as(x)


def count_loss(logits: dict[str, Tensor], counts: Tensor, mask: Tensor) -> Tensor:
    """Negative log-likelihood of raw counts, averaged over the measured entries of spots that have counts.

    Parameters
    ----------
    logits : (b, g) each
        ``mean`` (its logarithm) and ``dispersion`` of a negative binomial; with ``dropped``, more zeros than it has.
    counts, mask : (b, g), (b, g) bool
        Raw counts of a section, and where they are measured.
    """
    counts = torch.where(mask, counts, 0)
    total = counts.sum(-1, keepdim=True)  # (b, 1)
    some = total > 0
    usual = torch.where(some, total, torch.nan).nanquantile(0.5)
    # Bounds on the logarithm, because the gradient of an exponential that overflows is not a number.
    mean = logits["mean"].clamp(math.log(MEAN[0]), math.log(MEAN[1])).exp() * torch.where(some, total / usual, 1)
    theta = F.softplus(logits["dispersion"]).clamp(*DISPERSION)
    none = -theta * torch.log1p(mean / theta)  # log-probability of a zero
    likely = torch.lgamma(counts + theta) - torch.lgamma(theta) - torch.lgamma(counts + 1)
    likely = likely + none + counts * (mean.log() - (mean + theta).log())
    if "dropped" in logits:
        drop, keep = F.logsigmoid(logits["dropped"]), F.logsigmoid(-logits["dropped"])
        likely = torch.where(counts > 0, keep + likely, torch.logaddexp(drop, keep + none))
    used = mask & some
    return -torch.where(used, likely, 0).sum() / used.sum().clamp(min=1)
