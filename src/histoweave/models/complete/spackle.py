"""SpaCKLE: a spot and its neighbours as tokens of a transformer that fills what is missing (SpaRED, Mejia et al.).

Letters: b spots of a batch, t a spot and its neighbours, g genes, d width, n tokens that exist, s sequences of l.
Length: the paper's model, its public code's axis, and the variant that learns what it is later asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from histoweave.batch import Batch, Card, Dims, FeedLike, Needs
from histoweave.models._checks import at_least, given, one_of
from histoweave.models._losses import masked_mse

WALK = 512  # spots per step when the feed is walked: the neighbours of each come with it
SHRINK = 0.3  # neighbours that the training mean counts as: the best of 0.01 to 1 on a validation patient of her2st
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"rule": "all", "objective": "all", "drop_filled": 0.0}
    | {"channels": "value", "standardize": False, "local": False},
    "plus": {"rule": "measured", "objective": "centre", "drop_filled": 1.0}
    | {"channels": "mask", "standardize": True, "local": True},
}
CHOICES = {
    "preset": tuple(PRESETS),
    "rule": ("all", "measured"),
    "objective": ("all", "masked", "centre"),
    "channels": ("value", "mask"),
    "legacy": ("batch-axis",),
}


class Spackle(nn.Module):
    """Two transformer layers over a spot (slot 0) and its neighbours; the centre's token gives its genes back.

    Parameters
    ----------
    dims
        Number of genes, and width of the image embeddings where they are read.
    preset
        ``"paper"``, or ``"plus"``: missing entries are missing in training as they are later (`drop_filled` = 1), the
        loss is on what was masked of the centre (`objective`), of measured entries (`rule`); values are standardized
        (`standardize`) and taken from what the neighbours show of the same gene (`local`), and tokens say which genes
        they show (`channels`). The arguments that it sets can be given one by one; None leaves them to it.
    width, depth, heads, hidden, dropout
        Width d of the tokens (0: as many as genes), layers, heads, width inside the feed-forward part, dropout.
    hops
        Reach of the neighbours on the lattice: 18 spots on a hexagonal one, 24 on a square one.
    rate, rule
        Share of entries that are masked in training: of all entries of a gene (``"all"``: measured ones are masked with
        probability min(1, rate / share of the training spots in which the gene is measured)), or of measured ones.
    objective
        Squared error over all entries of the tokens, filled ones too (``"all"``), over the masked entries of all
        tokens, or over those of the centre.
    drop_filled
        Share of the filled entries that are zeroed in training.
    channels
        Whether a token holds values only, or also which of its genes are measured and shown.
    standardize
        Whether values are standardized with the moments of measured training entries; 0 then means the gene's mean.
    local
        Whether values, and what is predicted, are differences from the mean of what the neighbours show of the gene,
        among which 0 (the gene's training mean, if `standardize`) counts as `SHRINK` neighbours. Sections and patients
        differ in the level of single genes, which a network learns from few patients only by heart.
    image
        Whether the spot's image embedding is added to the centre's token.
    legacy
        ``"batch-axis"``: attention as in the public code (below).

    Notes
    -----
    Training reads `ctx_fill`, completed by the adaptive median, if anything of it is used; predicting reads what is
    visible, and all else is 0. A slot without a neighbour, or whose neighbour shows nothing, is no key and enters no
    loss; slot 0 always is one.

    **Differences from the authors' code.** (1) Its encoder takes (samples, slots, genes) for a sequence-first layout,
    so a token attends to the same slot of the other samples of the minibatch, and neighbours never reach the centre;
    predictions depend on which spots share a batch, and on how many. Here attention runs over the neighbours, as the
    paper says, unless ``legacy="batch-axis"``. (2) Its width is the number of genes (``width=0``); the paper says 128.
    (3) Its neighbours are the 18 nearest over all slides of a split; here they are of the spot's own section, fewer at
    its border. (4) It registers an encoder layer that it never uses; there is none here. (5) The paper writes the loss
    as the norm of the difference; as in the code, it is the mean squared error. (6) Its validation draws another mask
    each time and leaves the last, smaller batch out; here entries are fixed and every spot counts.
    """

    card: ClassVar[Card] = Card(
        title="SpaCKLE",
        citation="Mejia G, Ruiz D, Cárdenas P, Manrique L, Vega D, Arbeláez P. Enhancing gene expression prediction "
        "from histology images with spatial transcriptomics completion. MICCAI 2024.",
        task="complete",
        wrong="attention runs over the samples of the minibatch instead of the neighbours, which never reach the "
        "centre; neighbours are taken from other slides; each validation draws another mask",
    )
    mean: Tensor
    sd: Tensor
    measured: Tensor

    def __init__(
        self,
        dims: Dims,
        *,
        preset: Literal["paper", "plus"] = "paper",
        width: int = 128,
        depth: int = 2,
        heads: int = 1,
        hidden: int = 2048,
        dropout: float = 0.1,
        hops: int = 2,
        rate: float = 0.3,
        rule: Literal["all", "measured"] | None = None,
        objective: Literal["all", "masked", "centre"] | None = None,
        drop_filled: float | None = None,
        channels: Literal["value", "mask"] | None = None,
        standardize: bool | None = None,
        local: bool | None = None,
        image: bool = False,
        legacy: str | Sequence[str] = (),
    ) -> None:
        super().__init__()
        chosen: dict[str, Any] = {"rule": rule, "objective": objective, "drop_filled": drop_filled}
        chosen |= {"channels": channels, "standardize": standardize, "local": local}
        own = {key: value for key, value in chosen.items() if value is not None}
        chosen = PRESETS[one_of("preset", preset, CHOICES["preset"])] | own
        self.legacy = (legacy,) if isinstance(legacy, str) else tuple(legacy)
        named = [(key, chosen[key]) for key in ("rule", "objective", "channels")]
        for name, value in named + [("legacy", defect) for defect in self.legacy]:
            one_of(name, value, CHOICES[name])
        self.drop_filled, self.standardize = float(chosen["drop_filled"]), bool(chosen["standardize"])
        if not 0 < rate <= 1 or not 0 <= self.drop_filled <= 1:
            raise ValueError(f"rate={rate}, drop_filled={self.drop_filled}: expected shares, and a rate above 0")
        self.rate, self.rule, self.objective = float(rate), chosen["rule"], chosen["objective"]
        self.marked, self.over_batch = chosen["channels"] == "mask", "batch-axis" in self.legacy
        self.local = bool(chosen["local"])
        if self.over_batch and self.local:
            raise ValueError("legacy='batch-axis' keeps neighbours from the centre, local=True does not: turn one off")
        self.hops = self.halo = at_least("hops", hops, 1)
        self.fills = self.objective == "all" or self.drop_filled < 1  # whether training has a use for medians
        self.needs = Needs.CTX_EXPR | (Needs.CTX_FILL if self.fills else Needs.NONE)
        self.needs |= Needs.EMB if image else Needs.NONE
        width = at_least("width", width, 0) or dims.genes
        self.lift = nn.Linear((1 + self.marked) * dims.genes, width)
        self.image = nn.Linear(dims.emb, width) if image else None
        sizes = (width, at_least("heads", heads, 1), at_least("hidden", hidden, 1), dropout)
        self.layers = nn.ModuleList(_Layer(*sizes) for _ in range(at_least("depth", depth, 1)))
        self.drop = nn.Linear(width, dims.genes)
        self.register_buffer("mean", torch.zeros(dims.genes))
        self.register_buffer("sd", torch.ones(dims.genes))
        self.register_buffer("measured", torch.ones(dims.genes))

    @torch.no_grad()
    def index(self, feed: FeedLike) -> None:
        """Share of the training spots in which each gene is measured, and its moments there (g,)."""
        n, total, square = (torch.zeros(self.mean.shape, dtype=torch.float64, device=self.mean.device) for _ in "nts")
        for batch in feed.reading(Needs.CTX_EXPR).batches(WALK):
            seen = given(batch.ctx_seen, "ctx_seen")[:, 0]  # (b, g)
            values = torch.where(seen, given(batch.ctx_expr, "ctx_expr")[:, 0], 0).double()
            n, total, square = n + seen.sum(dim=0), total + values.sum(dim=0), square + (values**2).sum(dim=0)
        self.measured = (n / max(feed.n, 1)).float()
        if self.standardize:
            mean = total / n.clamp(min=1)
            sd = (square / n.clamp(min=1) - mean**2).clamp(min=0).sqrt()
            self.mean, self.sd = mean.float(), torch.where(sd > 1e-6, sd, 1.0).float()

    def forward(self, batch: Batch) -> Tensor:
        """Predictions (b, g) of every entry, from what is visible."""
        values, seen = given(batch.ctx_expr, "ctx_expr"), given(batch.ctx_seen, "ctx_seen")  # (b, t, g)
        return self._complete(batch, values, seen, seen, _there(seen), centre=True)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error over the entries of `objective`, after masking."""
        seen = given(batch.ctx_seen, "ctx_seen")  # (b, t, g)
        full = given(batch.ctx_fill, "ctx_fill") if self.fills else given(batch.ctx_expr, "ctx_expr")
        there, masked = _there(seen), self.mask(seen)
        shown = seen & ~masked
        if self.drop_filled < 1:
            kept = torch.rand(seen.shape, device=seen.device) >= self.drop_filled
            shown = shown | (~seen & there[..., None] & kept)
        centre = self.objective == "centre"
        made = self._complete(batch, full, shown, seen & ~masked, there, centre=centre)  # (b or n, g)
        target, counts = (full[:, 0], masked[:, 0]) if centre else (full[there], masked[there])
        value = masked_mse(made, target, counts | (self.objective == "all"))
        return value, {"mse": value.detach()}

    def mask(self, seen: Tensor) -> Tensor:
        """Measured entries to be masked, drawn anew: bool (b, t, g), of `seen` (b, t, g)."""
        share = self.measured.clamp(min=1e-6) if self.rule == "all" else torch.ones_like(self.measured)
        return seen & (torch.rand(seen.shape, device=seen.device) < (self.rate / share).clamp(max=1))

    def _complete(
        self, batch: Batch, values: Tensor, shown: Tensor, known: Tensor, there: Tensor, *, centre: bool
    ) -> Tensor:
        """Entries of the tokens that are `there` (b, t): (n, g), in the order of slots; of the centre alone (b, g).

        Of the values (b, t, g), those `shown` go in; those `known` are marked as measured.
        """
        if self.over_batch and centre:  # the other slots never reach it
            values, shown, known, there = (part[:, :1] for part in (values, shown, known, there))
        x = torch.where(shown, (values - self.mean) / self.sd, 0.0)
        base = torch.zeros_like(x[:, :1])  # (b, 1, g)
        if self.local:
            base = x[:, 1:].sum(dim=1, keepdim=True) / (SHRINK + shown[:, 1:].sum(dim=1, keepdim=True))
            x = torch.where(shown, x - base, 0.0)
        first = torch.cumsum(there.sum(dim=1), dim=0) - there.sum(dim=1)  # (b,): where the centres stand among n
        x = self.lift((torch.cat([x, known.to(x.dtype)], dim=-1) if self.marked else x)[there])  # (n, d)
        if self.image is not None:
            x = x.index_add(0, first, self.image(given(batch.emb, "emb")))
        cell, keys = _sequences(there, over_batch=self.over_batch)
        for i, layer in enumerate(self.layers):
            last = centre and i == len(self.layers) - 1 and not self.over_batch
            x = layer(x, cell, keys, first if last else None)
        base = base[:, 0] if centre else base.expand_as(values)[there]  # (b or n, g)
        return (self.drop(x) + base) * self.sd + self.mean

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """Arguments of a small model with every part."""
        return {"preset": "plus", "objective": "all", "width": 32, "hidden": 64}


def _there(seen: Tensor) -> Tensor:
    """Slots that show anything, and the centre: bool (b, t), of seen (b, t, g)."""
    there = seen.any(dim=-1)
    there[:, 0] = True
    return there


def _sequences(there: Tensor, *, over_batch: bool) -> tuple[Tensor, Tensor]:
    """Where tokens that are `there` (b, t) lie in sequences: cell (n,) of s · l, and whether a cell is taken (s, l).

    A spot with its neighbours is a sequence; with `over_batch`, a slot of all spots is one.
    """
    if not over_batch:
        return there.flatten().nonzero().squeeze(1), there
    row, slot = there.nonzero(as_tuple=True)  # (n,), (n,)
    return slot * len(there) + row, there.T


class _Layer(nn.Module):
    """Attention and feed-forward part of a transformer's encoder over tokens that are packed without their padding."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} cannot be split into {heads} heads: choose a divisor of the width")
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        nn.init.xavier_uniform_(self.qkv.weight)  # as torch.nn.MultiheadAttention starts
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.widen, self.narrow = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cell: Tensor, keys: Tensor, query: Tensor | None = None) -> Tensor:
        """Tokens x (n, d) at `cell` (n,) of sequences with `keys` (s, l), or only one token `query` (s,) of each."""
        kept = x if query is None else x[query]
        x = self.norm1(kept + self.dropout(self._attend(x, cell, keys, query)))
        return self.norm2(x + self._feed_forward(x))

    def _feed_forward(self, x: Tensor) -> Tensor:
        h, share = _relu_dropout(self.widen(x), self.dropout.p if self.training else 0.0)  # (n, hidden)
        return self.dropout(F.linear(h, self.narrow.weight / share, self.narrow.bias))

    def _attend(self, x: Tensor, cell: Tensor, keys: Tensor, query: Tensor | None) -> Tensor:
        (s, length), d = keys.shape, x.shape[1]
        q = F.linear(x if query is None else x[query], self.qkv.weight[:d], self.qkv.bias[:d])  # (n or s, d)
        kv = _laid(F.linear(x, self.qkv.weight[d:], self.qkv.bias[d:]), cell, s * length)
        q = q if query is not None else _laid(q, cell, s * length)
        split = (s, -1, self.heads, d // self.heads)  # to (s, heads, l, d / heads)
        q, k, v = (part.reshape(split).transpose(1, 2) for part in (q, kv[:, :d], kv[:, d:]))
        rate = self.dropout.p if self.training else 0.0
        made = F.scaled_dot_product_attention(q, k, v, attn_mask=keys[:, None, None], dropout_p=rate)
        made = made.transpose(1, 2).reshape(-1, d)  # (s · l or s, d)
        return self.out(made[cell] if query is None else made)


def _relu_dropout(h: Tensor, p: float) -> tuple[Tensor, float]:
    """ReLU in place and then dropout without its division: h (n, hidden), and the share of units kept to divide by.

    A quarter of each 64-bit number decides on a unit: on a processor, drawing the mask would cost as much as a matrix
    product otherwise. Dropped units are put below 0, where ReLU gives 0 and lets no gradient through.
    """
    cut = min(round(p * 2**16), 2**16 - 1)
    if cut:
        bits = torch.empty(-(-h.numel() // 4), dtype=torch.int64, device=h.device).random_(-(2**63), None)
        with torch.no_grad():
            h.masked_fill_(bits.view(torch.int16)[: h.numel()].view(h.shape) < cut - 2**15, -1.0)
    return F.relu_(h), 1 - cut / 2**16


def _laid(x: Tensor, cell: Tensor, cells: int) -> Tensor:
    """Tokens x (n, d) in their cells (cells, d), 0 in the others."""
    return x.new_zeros(cells, x.shape[1]).index_copy(0, cell, x)
