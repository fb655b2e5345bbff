"""TRIPLEX: a spot, its neighbourhood and its whole section, fused (Chung, Ha, Im and Lee, CVPR 2024).

Length: the paper's model with every switch of its ablation tables, in the one file that a paper gets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import or_
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from histoweave.batch import Batch, Card, Dims, FeedLike, Needs
from histoweave.models._checks import given, one_of
from histoweave.models._layers import GridConv, Stack, square_packing
from histoweave.models._losses import masked_mse
from histoweave.models._trunk import Trunk

PRESETS = {  # depth, heads, feed-forward ratio and dropout of (fusion, global, neighbour): the authors' configurations
    "bc1": ((1, 3, 3), (4, 16, 16), (4, 4, 1), (0.2, 0.1, 0.3)),
    "bc2": ((3, 3, 4), (16, 8, 8), (4, 2, 4), (0.4, 0.1, 0.3)),
    "scc": ((2, 2, 4), (8, 16, 16), (4, 1, 1), (0.1, 0.1, 0.3)),
}
CHOICES = {
    "preset": tuple(PRESETS),
    "fusion": ("layer", "sum", "concat", "attention"),
    "query": ("mean-target", "learned"),
    "peg": ("apeg", "peg", "none"),
    "start": ("random", "mean"),
    "legacy": ("ffn-width", "eval-dropout", "aux-mean-masked"),
}
Tokens = dict[str, tuple[Tensor, Tensor | None]]  # per branch: (b, k, d), (b, k)


class Triplex(nn.Module):
    """Three views of a spot, each with its own encoder and head, joined by cross-attention.

    The *target* branch turns the window into tokens. The *neighbour* branch is a transformer with a learnable grid bias
    over frozen embeddings of the tiles around. The *global* branch is a transformer over those of all spots of the
    section, with positions from a convolution over the lattice (APEG). The spot's global token asks target tokens and
    neighbour tokens through the same cross-attention; the normalised sum of both answers predicts. A single branch
    predicts by itself: TEM, NEM and GEM of the paper.

    Parameters
    ----------
    dims
        Number of genes, and width of the frozen embeddings; when that is not `width`, one Linear adapts all of them.
    preset
        Dataset configuration; `depth`, `heads`, `ratio` and `dropout` override it: one value, or three for (fusion,
        global, neighbour).
    trunk
        ``"trainable"``: the paper's ResNet18; ``"frozen"``: the spot's embedding is the only target token and no window
        is read; else a timm architecture to train.
    context, target, neighbor, global_
        Side of the square of neighbour tiles; branches in use.
    fusion
        ``"layer"`` is the paper's; ``"sum"``, ``"concat"`` and ``"attention"`` combine the pooled branches instead.
    query
        What asks in the fusion layer when there is no global branch (the paper does not say).
    peg, residual
        Positions from the lattice (``"apeg"``), from spots packed row by row into a square (``"peg"``), or none; and
        whether a token is added to its convolution.
    alpha, detach, auxiliary
        Weight of a branch's agreement with the fused prediction; whether it teaches the branch only; and whether
        branches have heads and losses at all (``alpha=0`` keeps these and drops only the agreement).
    augment, init
        Random flips and turns of windows in training; weights of the trunk.
    start
        ``"random"``: heads as the paper has them, predicting about 0 at first; ``"mean"``: their biases start at the
        training mean, so that short training is not spent on finding it.
    legacy
        Defects of the authors' code to reproduce, by name (below).

    Notes
    -----
    **Differences from the authors' code.** (1) In their first release the neighbour feed-forward is 1 or 4 units wide
    instead of that multiple of d: ``legacy="ffn-width"``. (2) Their global encoder keeps the dropout of its attention
    at evaluation, so predictions are random: ``legacy="eval-dropout"``. (3) Their neighbour head averages tiles outside
    the image too; here only real tiles count, unless ``legacy="aux-mean-masked"``. (4) The paper describes teaching
    from the fused prediction to the branches, their gradients flow both ways: ``detach=False``. (5) Their APEG returns
    tokens in grid order, takes tokens that sum to 0 for void and sums spots of one cell, losing one; here tokens keep
    their place and a shared cell holds the mean. Their later release has no residual (``residual=False``), and, not
    offered, a grid sized by the first section and predictions clamped at 0. (6) The paper cites vector relative
    positions; as in the code, it is a scalar per head and (``|Δrow|``, ``|Δcolumn|``).
    """

    card: ClassVar[Card] = Card(
        title="TRIPLEX",
        citation="Chung Y, Ha JH, Im KC, Lee JS. Accurate spatial gene expression prediction by integrating "
        "multi-resolution features. CVPR 2024.",
        published={"BC1 MSE": 0.228, "BC1 PCC(M)": 0.314, "BC1 PCC(H)": 0.497, "BC2 MSE": 0.202, "BC2 PCC(M)": 0.206}
        | {"BC2 PCC(H)": 0.352, "SCC MSE": 0.268, "SCC PCC(M)": 0.374, "SCC PCC(H)": 0.490},
        wrong="the neighbour feed-forward is 1 or 4 units wide, dropout stays on at evaluation, the epoch is chosen on "
        "the test fold",
    )
    needs: Needs = Needs.WINDOW | Needs.CTX_EMB | Needs.POOL  # as in the paper; an instance has its own

    def __init__(
        self,
        dims: Dims,
        *,
        preset: Literal["bc1", "bc2", "scc"] = "bc1",
        trunk: str = "trainable",
        width: int = 512,
        depth: int | Sequence[int] | None = None,
        heads: int | Sequence[int] | None = None,
        ratio: int | Sequence[int] | None = None,
        dropout: float | Sequence[float] | None = None,
        context: int = 5,
        target: bool = True,
        neighbor: bool = True,
        global_: bool = True,
        fusion: Literal["layer", "sum", "concat", "attention"] = "layer",
        query: Literal["mean-target", "learned"] = "mean-target",
        peg: Literal["apeg", "peg", "none"] = "apeg",
        residual: bool = True,
        alpha: float = 0.3,
        detach: bool = True,
        auxiliary: bool = True,
        augment: bool = True,
        start: Literal["random", "mean"] = "random",
        legacy: str | Sequence[str] = (),
        init: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.legacy = (legacy,) if isinstance(legacy, str) else tuple(legacy)
        named = [("preset", preset), ("fusion", fusion), ("query", query), ("peg", peg), ("start", start)]
        for name, value in named + [("legacy", defect) for defect in self.legacy]:
            one_of(name, value, CHOICES[name])
        self.branches = [n for n, on in (("target", target), ("neighbor", neighbor), ("global", global_)) if on]
        if not self.branches or not 0 <= alpha <= 1:
            raise ValueError(f"branches={self.branches}, alpha={alpha}: expected a branch in use and 0 <= alpha <= 1")
        self.alpha, self.detach, self.context, self.start = alpha, detach, context, start
        self.needs = _needs(self.branches, frozen=trunk == "frozen")
        fuse, whole, near = _sizes(width, PRESETS[preset], (depth, heads, ratio, dropout))
        if "ffn-width" in self.legacy:
            near["hidden"] //= width
        self.trunk = None
        if Needs.WINDOW in self.needs:
            self.trunk = Trunk("resnet18" if trunk == "trainable" else trunk, augment=augment, init=init)
        self.trunk_adapt = _adapter(self.trunk.width if self.trunk else width, width)
        self.adapt = _adapter(width if self.needs == Needs.WINDOW else dims.emb, width)
        self.neighbor = Stack(width=width, grid=context, **near) if neighbor else None
        self.global_ = Stack(width=width, always_drop="eval-dropout" in self.legacy, **whole) if global_ else None
        self.peg = GridConv(width, residual=residual) if global_ and peg != "none" else None
        self.packed = peg == "peg"
        self.fusion = _Fusion(fusion, width, fuse, self.branches, query) if len(self.branches) > 1 else None
        self.heads = nn.ModuleDict({"fused": nn.Linear(self.fusion.out if self.fusion else width, dims.genes)})
        if self.fusion and auxiliary:
            self.heads.update({name: nn.Linear(width, dims.genes) for name in self.branches})

    @torch.no_grad()
    def index(self, feed: FeedLike) -> None:
        """Starts the heads at the mean target (g,), where that was asked for."""
        for name, bias in self.heads.named_parameters() if self.start == "mean" else ():
            if name.endswith("bias"):
                bias.copy_(feed.y_mean())

    def forward(self, batch: Batch) -> Tensor:
        """Predictions (b, g): those of the fused head."""
        return self.heads["fused"](self._views(batch)["fused"])

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Error of the fused prediction, plus for each branch its error mixed with its distance to the fused one."""
        pred = {name: self.heads[name](view) for name, view in self._views(batch).items() if name in self.heads}
        fused = pred.pop("fused")
        teacher = fused.detach() if self.detach else fused
        parts = {"fused": masked_mse(fused, batch.y, batch.y_mask)}
        for name, p in pred.items():
            agreement = masked_mse(p, teacher, batch.y_mask)
            parts[name] = (1 - self.alpha) * masked_mse(p, batch.y, batch.y_mask) + self.alpha * agreement
        return torch.stack(list(parts.values())).sum(), {name: part.detach() for name, part in parts.items()}

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """Arguments of a small model with every part."""
        sizes = {"width": 64, "depth": (1, 2, 1), "heads": 2, "ratio": 2, "dropout": 0.1}
        return sizes | {"trunk": "test_resnet", "augment": False}

    def _views(self, batch: Batch) -> dict[str, Tensor]:
        """What each head reads (b, d), by branch, and fused."""
        tokens: Tokens = {}
        pooled: dict[str, Tensor] = {}
        if "target" in self.branches:
            x = self._target(batch)
            tokens["target"], pooled["target"] = (x, None), x.mean(1)
        if self.neighbor:
            x, mask = self._neighbor(batch, self.neighbor)
            weight = (torch.ones_like(mask) if "aux-mean-masked" in self.legacy else mask)[..., None]
            tokens["neighbor"], pooled["neighbor"] = (x, mask), (x * weight).sum(1) / weight.sum(1).clamp(min=1)
        if self.global_:
            pooled["global"] = self._global(batch, self.global_)
        return pooled | {"fused": self.fusion(tokens, pooled) if self.fusion else pooled[self.branches[0]]}

    def _target(self, batch: Batch) -> Tensor:
        if self.trunk is None:
            return self.adapt(given(batch.emb, "emb"))[:, None]  # (b, 1, d)
        return self.trunk_adapt(self.trunk(given(batch.window, "window")))  # (b, t, d)

    def _neighbor(self, batch: Batch, encoder: Stack) -> tuple[Tensor, Tensor]:
        x, mask = given(batch.ctx_emb, "ctx_emb"), given(batch.ctx_mask, "ctx_mask")
        if x.shape[1] != self.context**2:
            raise ValueError(f"ctx_emb has {x.shape[1]} tiles a spot, but context={self.context} is {self.context**2}")
        if "aux-mean-masked" not in self.legacy:
            x = x.masked_fill(~mask[..., None], 0)  # an attention weight of 0 would not stop a NaN
        return encoder(self.adapt(x), mask), mask  # (b, k, d), (b, k)

    def _global(self, batch: Batch, encoder: Stack) -> Tensor:
        mask, rc = given(batch.pool_mask, "pool_mask"), given(batch.pool_rc, "pool_rc")
        peg, rc = self.peg, square_packing(rc, mask) if self.packed else rc
        x = self.adapt(given(batch.pool_emb, "pool_emb").masked_fill(~mask[..., None], 0))  # (s, n, d)
        x = encoder(x, mask, after_first=None if peg is None else lambda x: peg(x, rc, mask))
        return x.flatten(0, 1)[given(batch.pool_row, "pool_row")]  # (b, d)


class _Fusion(nn.Module):
    """Joins the branches: a query token per spot asks their tokens, or their pooled vectors are combined."""

    def __init__(self, kind: str, width: int, layer: dict[str, Any], branches: list[str], query: str) -> None:
        super().__init__()
        self.kind, self.out = kind, width * len(branches) if kind == "concat" else width
        self.norm = nn.LayerNorm(self.out)
        self.query: nn.Parameter | None = None
        if kind == "layer":
            self.ask = Stack(width=width, norm=False, **layer)  # one set of weights for all branches
            if query == "learned" and "global" not in branches:
                self.query = nn.Parameter(torch.randn(width) * 0.02)  # the usual scale of a class token
        if kind == "attention":  # Ilse, Tomczak and Welling 2018, with their 128 hidden units
            self.score = nn.Sequential(nn.Linear(width, 128), nn.Tanh(), nn.Linear(128, 1, bias=False))

    def forward(self, tokens: Tokens, pooled: dict[str, Tensor]) -> Tensor:
        """Fused vector (b, out)."""
        x = torch.stack(list(pooled.values()), 1)  # (b, branches, d)
        if self.kind == "layer":
            first = pooled["global"] if "global" in pooled else pooled["target"]
            query = (first if self.query is None else self.query.expand_as(first))[:, None]
            x = torch.cat([self.ask(query, mask, context) for context, mask in tokens.values()], 1)
        elif self.kind == "concat":
            x = x.flatten(1)[:, None]
        elif self.kind == "attention":
            x = x * self.score(x).softmax(1)
        return self.norm(x.sum(1))


def _needs(branches: list[str], *, frozen: bool) -> Needs:
    fields = {"target": Needs.EMB if frozen else Needs.WINDOW, "neighbor": Needs.CTX_EMB, "global": Needs.POOL}
    return reduce(or_, (fields[name] for name in branches))


def _sizes(width: int, preset: Sequence[Sequence[Any]], given: Sequence[Any]) -> list[dict[str, Any]]:
    """Arguments of the three stacks, from the preset and what overrides it."""
    chosen = []
    for name, usual, value in zip(("depth", "heads", "ratio", "dropout"), preset, given, strict=True):
        three = usual if value is None else tuple(value) if isinstance(value, Sequence) else (value,) * 3
        if len(three) != 3:
            raise ValueError(f"{name}={value!r}: expected one value, or three for (fusion, global, neighbour)")
        chosen.append(three)
    return [{"depth": n, "heads": h, "hidden": width * r, "dropout": p} for n, h, r, p in zip(*chosen, strict=True)]


def _adapter(given: int, width: int) -> nn.Module:
    if given < 1:
        raise ValueError(f"the frozen embeddings are {given} wide: give an encoder, or use the target branch alone")
    return nn.Identity() if given == width else nn.Linear(given, width)
