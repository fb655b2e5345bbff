"""SME of stLearn: a missing entry from the few neighbours that look most alike, in expression and in the image.

Letters: n spots of a section, c spots of a chunk, k neighbours within the radius, g genes, d embedding, p components.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor, nn

from histoweave.batch import Batch, Card, Dims, FeedLike, Needs
from histoweave.models._checks import at_least, given, one_of
from histoweave.models._losses import masked_mse
from histoweave.pp.lattice import pitch
from histoweave.pp.neighbors import radius as within

_WEIGHTS = ("all", "ge", "image", "physical")
_LEGACY = ("self-neighbour", "unit")
_HEX, _SQUARE = 3.0, 1.5  # radius in pitches: stLearn's for Visium, and for old Spatial Transcriptomics
_TOUCHING = 1.3  # pitches within which spots of a lattice touch; the next ring begins at 1.41
_AGREE = 0.5  # of the steps' directions, from which it is a lattice: 1 without jitter, about 0 for spots at random
_MOST = 64  # neighbours at most: twice the 30 of Visium; only spots off a lattice can have more
_CHUNK = 8192  # spots whose neighbours are compared at a time


class SME(nn.Module):
    """Weighted mean over the neighbours of largest weight S · M · E.

    S is 1 for spots nearer than the radius and 0 beyond; M is the cosine of the image embeddings' principal components, or
    0 where negative; E is the correlation of principal components of the expression. Both sets of components are made
    within the section, of what is visible: an unseen entry counts as 0, in the components and in the mean. A negative
    product counts as 0. A spot whose weights sum to 0 gets zeros.

    Parameters
    ----------
    dims
        Number of genes, and width of the frozen embeddings where the image is used.
    weights
        ``all``: S · M · E; ``ge``: S · E, without the image; ``image``: S · M; ``physical``: S alone.
    radius
        In pitches; 0 takes 1.5 on a square lattice and 3 else. Spots right on the radius are left out.
    neighbours
        How many are averaged; 0 takes 3, and 6 for ``physical``.
    components
        Principal components of expression and of the image, at most as many as there are.
    unseen
        ``zero``: unseen entries of the neighbours are averaged as 0; ``skip``: they are left out of the mean, which is 0
        where all are unseen.
    legacy
        ``self-neighbour``: the spot is one of its neighbours, with weight 1 as in the code of stLearn, so that the
        missing 0 itself is averaged. ``unit``: the radius in the code's unit, √2 times the step of a column, which is
        half a pitch on a hexagonal lattice: 2.12 instead of 3 pitches there, and 2.12 instead of 1.5 on a square one.

    Notes
    -----
    Only pairs within the radius are held, so memory grows with the spots. Equal weights are taken by distance, then by
    position, whatever the order of the spots.

    **Differences from the authors' code.** (1) The spot itself is left out (`legacy`). (2) The radius is in pitches
    (`legacy`), and on a lattice it is cut between two rings of neighbours, so that jitter does not decide. (3) Weights
    without S, which need all pairs of spots, are not offered. (4) Negative products count as 0; in the code a spot
    outside the radius, of weight 0, comes before a negative one inside, which amounts to the same. (5) The image is the
    view's frozen embedding at each spot; theirs is an ImageNet ResNet50 of tiles of 40 px. (6) Predictions are made for
    every entry, of which the caller keeps those that are missing, as ``sme_impute0`` does.
    """

    card: ClassVar[Card] = Card(
        title="stLearn SME",
        citation="Pham D, Tan X, Balderson B, et al. Robust mapping of spatiotemporal trajectories and cell-cell "
        "interactions in healthy and diseased tissues. Nat Commun 14, 7739 (2023).",
        task="complete",
        learns="none",
        wrong="the spot whose entry is missing is one of the three that are averaged, and the radius is in a unit that "
        "depends on the lattice",
    )
    needs: Needs = Needs.WHOLE_SECTION | Needs.EXPR | Needs.XY | Needs.EMB

    def __init__(
        self,
        dims: Dims,
        *,
        weights: Literal["all", "ge", "image", "physical"] = "all",
        radius: float = 0.0,
        neighbours: int = 0,
        components: int = 50,
        unseen: Literal["zero", "skip"] = "zero",
        legacy: str | Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.weights = one_of("weights", weights, _WEIGHTS)
        self.image, self.expression = weights in ("all", "image"), weights in ("all", "ge")
        if self.image and dims.emb < 1:
            raise ValueError(
                f"weights={weights!r} compare images, and there is no embedding: give an encoder, or weights=ge"
            )
        if not (math.isfinite(radius) and radius >= 0):
            raise ValueError(f"radius={radius!r}; expected a number of pitches above 0, or 0 for that of the lattice")
        self.legacy = [one_of("legacy", entry, _LEGACY) for entry in ([legacy] if isinstance(legacy, str) else legacy)]
        self.radius, self.unseen = float(radius), one_of("unseen", unseen, ("zero", "skip"))
        self.neighbours = at_least("neighbours", neighbours, 0) or (6 if weights == "physical" else 3)
        self.components = at_least("components", components, 1)
        self.needs = type(self).needs if self.image else type(self).needs & ~Needs.EMB

    def index(self, feed: FeedLike) -> None:
        """Nothing is learnt."""

    @torch.no_grad()
    def forward(self, batch: Batch) -> Tensor:
        """Weighted means (b, g), section by section."""
        expr, seen = given(batch.expr, "expr"), given(batch.seen, "seen")
        xy = given(batch.xy, "xy").cpu().numpy().astype(np.float64)
        emb = given(batch.emb, "emb") if self.image else expr
        made = torch.empty_like(expr)
        for section in batch.section.unique():
            rows = torch.nonzero(batch.section == section)[:, 0]
            at = rows.cpu().numpy()
            order = np.lexsort((xy[at, 0], xy[at, 1]))  # equal weights are taken by position, not by row
            rows, at = rows[torch.from_numpy(order).to(rows.device)], at[order]
            near = torch.from_numpy(self._near(xy[at])).to(rows.device)
            made[rows] = self._section(expr[rows], seen[rows], emb[rows], near)
        return made

    def _near(self, xy: np.ndarray) -> np.ndarray:
        """Neighbours of each spot within the radius, nearest first (n, k), -1 for none."""
        if len(xy) < 2:
            return np.full((len(xy), 1), -1, dtype=np.int64)
        step, fold = _lattice(xy)
        radius = self.radius or (_SQUARE if fold == 4 else _HEX)
        if "unit" in self.legacy:
            radius *= math.sqrt(2) if fold == 4 else math.sqrt(0.5)
        table = within(xy, _reach(radius, fold) * step, _MOST).astype(np.int64)
        return table[:, : max(1, int((table >= 0).sum(axis=1).max()))]

    def _section(self, expr: Tensor, seen: Tensor, emb: Tensor, near: Tensor) -> Tensor:
        """Weighted means (n, g) of expr (n, g) over near (n, k), by the likeness of expr and of emb (n, d)."""
        likeness, least = [], []  # vectors (n, p), and below what their product does not go
        if self.expression:
            scores = components(torch.where(seen, expr, 0.0), self.components)
            likeness.append(unit(scores - scores.mean(dim=1, keepdim=True)))
            least.append(-1.0)
        if self.image:
            likeness.append(unit(components(emb, self.components)))
            least.append(0.0)
        made = torch.empty_like(expr)
        for rows in torch.arange(len(expr), device=expr.device).split(_CHUNK):
            around = near[rows]  # (c, k)
            weight = (around >= 0).to(torch.float64)
            for vectors, floor in zip(likeness, least, strict=True):
                alike = torch.einsum("cp,ckp->ck", vectors[rows], vectors[around.clamp(min=0)])
                weight = weight * alike.clamp(min=floor)
            weight, best = weight.clamp(min=0).sort(dim=1, descending=True, stable=True)
            best = around.gather(1, best).clamp(min=0)
            if "self-neighbour" in self.legacy:
                best = torch.cat([rows[:, None], best], dim=1)
                weight = torch.cat([torch.ones_like(weight[:, :1]), weight], dim=1)
            weight, best = weight[:, : self.neighbours, None], best[:, : self.neighbours]
            there = seen[best].to(weight.dtype)  # (c, neighbours, g)
            total = (weight * there * expr[best]).sum(dim=1)
            by = (weight * there).sum(dim=1) if self.unseen == "skip" else weight.sum(dim=1)
            made[rows] = torch.where(by > 0, total / by.clamp(min=1e-300), 0.0).to(made.dtype)
        return made

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Masked MSE, for reports."""
        value = masked_mse(self(batch), batch.y, batch.y_mask)
        return value, {"mse": value}

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """Few components; every part is there."""
        return {"components": 8}


def components(x: Tensor, most: int) -> Tensor:
    """Principal component scores (n, p) of x (n, d), float64, as scikit-learn's ``PCA`` gives them.

    Each component points to where its loading of largest size is positive. Components that are rounding are left out,
    so p is at most n - 1, d and `most`.
    """
    x = x.double()
    x = x - x.mean(dim=0)
    if len(x) < x.shape[1]:  # the smaller of the two Gram matrices
        values, left = torch.linalg.eigh(x @ x.T)
        vectors = x.T @ left
        vectors = vectors / torch.linalg.vector_norm(vectors, dim=0).clamp(min=1e-300)
    else:
        values, vectors = torch.linalg.eigh(x.T @ x)
    told = values > values[-1] * x.shape[1] * 1e-12
    vectors = vectors[:, told].flip(1)[:, :most]
    if not vectors.shape[1]:
        return x.new_zeros(len(x), 1)
    return x @ (vectors * vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True)).sign())


def unit(x: Tensor) -> Tensor:
    """Rows of x (n, d) of length 1; rows of zeros, to rounding, stay zeros."""
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return torch.where(length > 1e-9 * length.max(), x / length.clamp(min=1e-300), 0.0)


def _lattice(xy: np.ndarray) -> tuple[float, int]:
    """Pitch in the unit of xy (n, 2), and the fold of the lattice: 6 hexagonal, 4 square, 0 none.

    Steps between touching spots of a lattice point the same way when turned by a sixth or a quarter of a circle. Their
    median is the pitch, which jitter hardly moves; the nearest of several jittered neighbours would be too near.
    """
    step = pitch(xy)
    pairs = cKDTree(xy).query_pairs(_TOUCHING * step, output_type="ndarray")
    move = xy[pairs[:, 1]] - xy[pairs[:, 0]]
    angle = np.arctan2(move[:, 1], move[:, 0])
    agree = {fold: abs(np.exp(1j * fold * angle).mean()) for fold in (4, 6)}
    fold = max(agree, key=lambda fold: agree[fold])
    return (float(np.median(np.hypot(*move.T))), fold) if agree[fold] > _AGREE else (step, 0)


def _reach(radius: float, fold: int) -> float:
    """Where to cut, in pitches: halfway from the farthest neighbours within the radius to the next ones.

    Neighbours right on the radius count as beyond. Off lattices it is the radius.
    """
    if not fold:
        return radius
    span = np.arange(math.ceil(radius) + 2)
    i, j = np.meshgrid(span, span)
    shells = np.unique(np.sqrt(i * i + j * j + (i * j if fold == 6 else 0)))
    inner = int((shells < radius - 1e-9).sum())
    return float(shells[max(inner - 1, 0)] + shells[inner]) / 2
