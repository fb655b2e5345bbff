"""EGN: a vision transformer that asks its exemplars' expression (Yang, Hossain, Stone and Rahman, WACV 2023).

Length: the transformer, its bridging block and its one-token form, in the one file that a paper gets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from histoweave.batch import Batch, Card, Dims, FeedLike, Needs
from histoweave.models._bank import Bank
from histoweave.models._checks import at_least, given, one_of
from histoweave.models._layers import Attention
from histoweave.models._losses import masked_mse, masked_pcc
from histoweave.models._section import resized

# Exemplars, heads of a bridging block, weight of the correlation: as in the paper, and as the authors' README runs it.
PRESETS = {"paper": (9, 16, 1.0), "readme": (6, 8, 0.5)}
COLOUR_MEAN, COLOUR_STD = (0.5476, 0.5218, 0.6881), (0.2461, 0.2101, 0.1649)  # of the authors' windows


class EGN(nn.Module):
    """A transformer over patches of the window, bridged to the training spots that look most like it.

    The *exemplars* of a spot are the training spots whose frozen embeddings are nearest to its own. Every second layer
    has a bridging block: the spot's own view asks the exemplars, and what their expression answers decides, head by
    head, which patches pass. The patches' pooled tokens and the own view predict together. A gene that an exemplar does
    not have counts as the gene's training mean there.

    Parameters
    ----------
    dims
        Number of genes, and width of the frozen embeddings by which exemplars are found.
    preset
        ``"paper"``: 9 exemplars, bridging blocks of 16 heads, equal weights of both losses; ``"readme"``: 6, 8 and a
        correlation that counts half. `k`, `bridge_heads` and `weight` override it.
    trunk
        ``"trainable"``: patches of the window, as in the paper; ``"frozen"``: the spot's embedding is the only patch
        and no window is read, so that there is nothing to attend to (`heads` is not used) and one cell to gate.
    width, depth, heads, ratio
        Of the transformer; its feed-forward parts are `ratio` times as wide as it is.
    bridge_heads, bridge_width, every
        Heads of a bridging block, width of one, and every how many layers there is one.
    side, patch
        Side in px to which windows are brought, and of a patch.
    weight
        Of one minus the correlation, beside the squared error.
    dropout
        After each attention and in each feed-forward part; the authors use none.
    start
        ``"random"``: as in the paper, predicting about 0 at first; ``"mean"``: the head's bias starts at the training
        mean, so that short training is not spent on finding it.
    legacy
        Defects of the authors' code to reproduce, by name (below).

    Notes
    -----
    **Differences from the authors' code.** (1) Theirs has weights that nothing reads: an output layer in each bridging
    block, one position too many, and the update of the exemplars in the last block. They change no prediction, only
    the number of parameters, and are left out unless ``legacy="unused-layer"``. (2) Their exemplars of a training spot
    leave out its own slide only, so the other slides of a patient are offered in training and never in a test; here
    its whole patient is left out. (3) Exemplars are found by the view's encoder; their code uses an ImageNet ResNet50
    (2048 wide) and the paper an encoder of its own. (4) Genes that do not vary in a batch are left out of the mean
    correlation; theirs count as 0. (5) Their training batches follow the order of the spots; here they are random.
    """

    card: ClassVar[Card] = Card(
        title="EGN",
        citation="Yang Y, Hossain MZ, Stone EA, Rahman S. Exemplar guided deep neural network for spatial "
        "transcriptomics analysis of gene expression prediction. WACV 2023.",
        published={"BC1 MSE": 0.241, "BC1 PCC(M)": 0.197, "BC1 PCC(H)": 0.328, "BC2 MSE": 0.192, "BC2 PCC(M)": 0.111}
        | {"BC2 PCC(H)": 0.203, "SCC MSE": 0.281, "SCC PCC(M)": 0.281, "SCC PCC(H)": 0.388},  # as run for TRIPLEX
        retrieves=True,
        wrong="two pairs of the six slides are one image with different counts, and every fold splits a pair, so that "
        "each is tested on an image it was trained on",
    )
    needs: Needs = Needs.WINDOW | Needs.EMB  # as in the paper; an instance has its own

    def __init__(
        self,
        dims: Dims,
        *,
        preset: Literal["paper", "readme"] = "paper",
        trunk: Literal["trainable", "frozen"] = "trainable",
        k: int | None = None,
        width: int = 1024,
        depth: int = 8,
        heads: int = 16,
        ratio: int = 4,
        bridge_heads: int | None = None,
        bridge_width: int = 64,
        every: int = 2,
        side: int = 256,
        patch: int = 32,
        weight: float | None = None,
        dropout: float = 0.0,
        start: Literal["random", "mean"] = "random",
        legacy: str | Sequence[str] = (),
    ) -> None:
        super().__init__()
        usual = PRESETS[one_of("preset", preset, tuple(PRESETS))]
        legacy = [one_of("legacy", x, ("unused-layer",)) for x in ((legacy,) if isinstance(legacy, str) else legacy)]
        unused = "unused-layer" in legacy
        frozen = one_of("trunk", trunk, ("trainable", "frozen")) == "frozen"
        self.start = one_of("start", start, ("random", "mean"))
        self.k = at_least("k", usual[0] if k is None else k, 1)
        bridge_heads = at_least("bridge_heads", usual[1] if bridge_heads is None else bridge_heads, 1)
        self.weight = usual[2] if weight is None else weight
        if dims.emb < 1:
            raise ValueError(f"exemplars are found by embeddings, but dims.emb is {dims.emb}: give an encoder")
        if not 1 <= at_least("every", every, 1) <= at_least("depth", depth, 1) or self.weight < 0:
            raise ValueError(f"every={every}, depth={depth}, weight={weight}: expected every <= depth and weight >= 0")
        if at_least("side", side, 1) % at_least("patch", patch, 1):
            raise ValueError(f"side={side} is not a multiple of patch={patch}: choose a side that patches fill")
        self.needs = Needs.EMB if frozen else Needs.WINDOW | Needs.EMB
        cells = 1 if frozen else (side // patch) ** 2
        self.bank = Bank(dims.emb, dims.genes)
        self.patches = nn.Linear(dims.emb, width) if frozen else _Patches(side, patch, width)
        self.position = nn.Parameter(torch.randn(cells + unused, width))
        self.own = nn.Linear(dims.emb, width)
        self.exemplar = nn.Linear(dims.emb + dims.genes, width)
        self.value = nn.Linear(dims.genes, width)
        self.before = nn.ModuleList(_feed_forward(width, width, dropout) for _ in range(2))  # 2 in the authors' README
        hidden = width * at_least("ratio", ratio, 1)
        self.layers = nn.ModuleList(_Layer(cells, width, heads, hidden, dropout) for _ in range(depth))
        bridged = range(every - 1, depth, every)
        for i in bridged:
            updates = unused or i < bridged[-1]  # nothing reads the exemplars after the last block
            self.layers[i].bridge = _Bridge(width, bridge_heads, bridge_width, cells, updates=updates, unused=unused)
        self.score = nn.Linear(width, width)
        self.norm = nn.LayerNorm(2 * width)
        self.head = nn.Linear(2 * width, dims.genes)

    @torch.no_grad()
    def index(self, feed: FeedLike) -> None:
        """Take in embeddings and targets of the training spots; start the head at their mean, where asked for."""
        self.bank.fill(feed.reading(Needs.EMB), lambda batch: given(batch.emb, "emb"))
        if self.start == "mean":
            self.head.bias.copy_(feed.y_mean())

    def exemplars(self, batch: Batch) -> Tensor:
        """Rows (b, k) of the bank; in training none of the spot's own patient."""
        return self.bank.nearest(given(batch.emb, "emb"), self.k, spot=batch.spot if self.training else None)

    def forward(self, batch: Batch) -> Tensor:
        """Predictions (b, g)."""
        near = self.exemplars(batch)
        expression = self.bank.expression(near)  # (b, k, g)
        own = self.own(given(batch.emb, "emb"))[:, None]  # (b, 1, d)
        keys = self.exemplar(torch.cat([self.bank.keys[near], expression], -1))  # (b, k, d)
        views = torch.cat([own, keys], 1)  # (b, 1 + k, d)
        for feed_forward in self.before:
            views = views + feed_forward(views)
        own, keys, values = views[:, :1], views[:, 1:], self.value(expression)
        window = Needs.WINDOW in self.needs
        x = self.patches(given(batch.window, "window") if window else given(batch.emb, "emb")[:, None])  # (b, t, d)
        position = self.position[: x.shape[1]]
        x = x + position
        for layer in self.layers:
            x, own, keys = layer(x, position, own, keys, values)
        return self.head(self.norm(torch.cat([_pool(self.score(x)), own[:, 0]], -1)))

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared error, and how far the genes' correlations over the batch are from 1."""
        pred = self(batch)
        mse = masked_mse(pred, batch.y, batch.y_mask)
        pcc = masked_pcc(pred, batch.y, batch.y_mask)
        return mse + self.weight * (1 - pcc), {"mse": mse.detach(), "pcc": pcc.detach()}

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """Arguments of a small model with every part."""
        sizes = {"width": 32, "depth": 4, "heads": 2, "ratio": 2, "bridge_heads": 2, "bridge_width": 8}
        return sizes | {"k": 3, "side": 32, "patch": 8}


class _Patches(nn.Module):
    """Tokens of a window's patches; windows are bytes of any size until here."""

    mean: Tensor
    std: Tensor

    def __init__(self, side: int, patch: int, width: int) -> None:
        super().__init__()
        self.side = side
        self.conv = nn.Conv2d(3, width, patch, stride=patch)
        self.register_buffer("mean", torch.tensor(COLOUR_MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(COLOUR_STD).view(3, 1, 1))

    def forward(self, window: Tensor) -> Tensor:
        """Tokens (b, t, d), row-major, of windows (b, 3, h, w) uint8."""
        x = (resized(window, self.side) / 255 - self.mean) / self.std
        return self.conv(x).flatten(2).transpose(1, 2)


class _Layer(nn.Module):
    """Attention over the patches, the bridging block if there is one, and a feed-forward part."""

    def __init__(self, cells: int, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = _Alone(width, dropout) if cells == 1 else Attention(width, heads, dropout=dropout)
        self.bridge: _Bridge | None = None
        self.feed_forward = _feed_forward(width, hidden, dropout)

    def forward(
        self, x: Tensor, position: Tensor, own: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """New patches x (b, t, d), own view (b, 1, d) and exemplars (b, k, d); positions (t, d) enter every layer."""
        tokens = self.norm(x + position)
        x = x + self.attention(tokens, tokens)
        if self.bridge is not None:
            x, own, keys = self.bridge(x, own, keys, values)
        return x + self.feed_forward(x), own, keys


class _Bridge(nn.Module):
    """From exemplars to patches: gates of the exemplars' expression, then of the patches by what was answered."""

    def __init__(self, width: int, heads: int, head_width: int, cells: int, *, updates: bool, unused: bool) -> None:
        super().__init__()
        self.heads, inner, between = heads, heads * head_width, 4 * head_width  # 4 in the code, whatever the heads
        self.gates = nn.Sequential(
            nn.Linear(2 * width, between), nn.SiLU(), nn.Linear(between, 2 * width if updates else width)
        )
        self.value = nn.Linear(width, width)
        self.key_norm = nn.LayerNorm(width) if updates else None
        self.map = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, heads * cells))
        self.tokens = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, inner))
        self.to_patches = nn.Linear(inner, width, bias=False)
        self.to_own = nn.Linear(inner, width, bias=False)
        self.unused = nn.Linear(inner, width) if unused else None

    def forward(self, x: Tensor, own: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """New patches x (b, t, d), own view (b, 1, d) and exemplars (b, k, d)."""
        d = x.shape[-1]
        gates = self.gates(torch.cat([own - keys, keys], -1)).sigmoid()  # (b, k, d), or (b, k, 2 d) with an update
        value = self.value(values)
        answered = own + (gates[..., :d] * value).mean(1, keepdim=True)  # (b, 1, d); it gates and is then forgotten
        passes = self.map(answered).sigmoid().unflatten(-1, (self.heads, -1))[:, 0].mT[..., None]  # (b, t, heads, 1)
        tokens = (self.tokens(x).unflatten(-1, (self.heads, -1)) * passes).flatten(-2)  # (b, t, inner)
        if self.key_norm is not None:
            keys = self.key_norm(keys + gates[..., d:] * value)
        return x + self.to_patches(tokens), own + self.to_own(tokens.mean(1, keepdim=True)), keys


class _Alone(nn.Module):
    """Attention of a single token: a softmax over one key is 1, so that only value and output maps are left."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.value = nn.Linear(width, width, bias=False)
        self.out = nn.Sequential(nn.Linear(width, width), nn.Dropout(dropout))

    def forward(self, query: Tensor, keys: Tensor) -> Tensor:
        """What a query (b, 1, d) gets from the only key (b, 1, d)."""
        return self.out(self.value(keys))


def _feed_forward(width: int, hidden: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout),
        nn.Linear(hidden, width), nn.Dropout(dropout),
    )  # fmt: skip


def _pool(score: Tensor) -> Tensor:
    """Class-specific residual attention of scores (b, t, d): their mean, and half of what stands out of it (b, d)."""
    return score.mean(1) + 0.5 * (score * (0.1 * score).softmax(1)).sum(1)  # half and 0.1: the authors'
