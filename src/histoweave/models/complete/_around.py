"""What the section and the neighbourhood of a spot say of each gene: ridge on means over visible values.

Letters: b spots of a batch, c spots of a piece of it, n neighbours, g genes, k inner folds, f inputs of a gene, p
principal components.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from histoweave.batch import Batch, FeedLike, Needs
from histoweave.models._checks import given
from histoweave.models.complete._masked import walk

NEEDS = Needs.CTX_EXPR | Needs.WHOLE_SECTION
_PIECE = 2**24  # numbers that a piece's inputs may hold
_ONE, _FIRST = 1, 2  # where the 1 stands, and how many inputs come before the components
_SHRINK = (0.5, 50.0)  # bounds of the shrinkage of a neighbourhood's mean, in spots
_LEVEL = 5.0  # shrinkage of a section's mean to the training mean, in spots: 5 visible entries count half


class Piece(NamedTuple):
    """Spots of one batch, standardized about the level of their section.

    z, seen (c, 1 + n, g): visible values, 0 where unseen, the spot first. y, measured, hidden (c, g): the truth, where
    there is one, and which of it is hidden from z. level (c, g); fold (c,), -1 where there is none.
    """

    z: Tensor
    seen: Tensor
    y: Tensor
    measured: Tensor
    hidden: Tensor
    level: Tensor
    fold: Tensor


class Around(nn.Module):
    """Predicts genes (c, g) from the spot's section and its visible neighbours, in standard deviations from its level.

    The level of a gene is the mean of its visible entries in the section, shrunk to the training mean. Inputs are the
    gene's mean over the visible neighbours, shrunk to 0 by their number, 1, and principal components of these means.

    Parameters
    ----------
    genes
        Number of genes.
    components
        Numbers of principal components to choose from; one above the number of genes counts as that.
    ridges
        Penalties to choose from, in spots: a penalty of 30 weighs as much as 30 spots do.
    """

    mean: Tensor
    sd: Tensor
    shrink: Tensor
    axes: Tensor
    scale: Tensor
    coef: Tensor

    def __init__(self, genes: int, *, components: tuple[int, ...], ridges: tuple[float, ...]) -> None:
        super().__init__()
        self.components, self.ridges = sorted({min(p, genes) for p in components}), ridges
        p = self.components[-1]
        for name, value in {
            "mean": torch.zeros(genes), "sd": torch.ones(genes), "shrink": torch.ones(genes),
            "axes": torch.zeros(genes, p), "scale": torch.ones(_FIRST + p), "coef": torch.zeros(genes, _FIRST + p),
        }.items():  # fmt: skip
            self.register_buffer(name, value)

    def pieces(self, batch: Batch, hide: Tensor | None = None, fold: Tensor | None = None) -> Iterator[Piece]:
        """A batch piece by piece; entries to `hide` (b, 1 + n, g) count as unseen."""
        expr, seen = given(batch.ctx_expr, "ctx_expr"), given(batch.ctx_seen, "ctx_seen")
        hide = torch.zeros_like(seen[:1]).expand_as(seen) if hide is None else hide
        level = self._level(batch.section, expr[:, 0], seen[:, 0] & ~hide[:, 0])  # (b, g)
        fold = torch.full_like(batch.section, -1) if fold is None else fold
        size = max(1, _PIECE // (self.coef.numel() + expr[0].numel()))
        for rows in torch.arange(len(batch), device=expr.device).split(size):
            about = level[rows]
            visible = seen[rows] & ~hide[rows]
            z = torch.where(visible, (expr[rows] - about[:, None]) / self.sd, 0.0)
            y = torch.where(batch.y_mask[rows], (batch.y[rows] - about) / self.sd, 0.0)
            yield Piece(z, visible, y, batch.y_mask[rows], hide[rows, 0], about, fold[rows])

    def walk(self, feed: FeedLike) -> Iterator[Piece]:
        """The pieces of a feed, with the same entries hidden in each walk."""
        for batch, fold, hide in walk(feed, NEEDS):
            yield from self.pieces(batch, hide, fold)

    def forward(self, piece: Piece) -> Tensor:
        """Predictions (c, g)."""
        return torch.einsum("cgf,gf->cg", self._inputs(piece) / self.scale, self.coef)

    def _level(self, section: Tensor, expr: Tensor, seen: Tensor) -> Tensor:
        """Level of each spot's section (b, g), of section (b,), expr and seen (b, g)."""
        present, where = section.unique(return_inverse=True)
        r = torch.where(seen, expr - self.mean, 0.0).double()
        n, total = (torch.zeros(len(present), r.shape[1], dtype=r.dtype, device=r.device) for _ in range(2))
        n.index_add_(0, where, seen.to(r.dtype))
        total.index_add_(0, where, r)
        return (self.mean + total / (n + _LEVEL)).float()[where]

    def _average(self, piece: Piece) -> Tensor:
        """Shrunk means over the visible neighbours (c, g): Σz / (their number + shrink)."""
        return piece.z[:, 1:].sum(dim=1) / (piece.seen[:, 1:].sum(dim=1) + self.shrink)

    def _inputs(self, piece: Piece) -> Tensor:
        """What each gene is regressed on (c, g, f)."""
        own = self._average(piece)
        shared = torch.cat([torch.ones_like(own[:, :1]), own @ self.axes], dim=1)
        return torch.cat([own[..., None], shared[:, None].expand(-1, own.shape[1], -1)], dim=2)

    @torch.no_grad()
    def fit(self, feed: FeedLike) -> None:
        """Learns all of it in three walks over the training spots."""
        self.mean = feed.y_mean()
        self._fit_spread(feed)
        self._fit_axes(feed)
        self._fit_coef(feed, int(feed.inner_fold().max()) + 1)

    def _fit_spread(self, feed: FeedLike) -> None:
        """Deviation and shrinkage of every gene (g,).

        A gene's shrinkage is that of the best linear guess from a mean of neighbours: variance that is not common to
        neighbours over variance that is, the latter being the mean product of a spot's value and a neighbour's.
        """
        zero = torch.zeros(len(self.mean), dtype=torch.float64, device=self.mean.device)
        n, total, pairs, common = (zero.clone() for _ in range(4))
        for piece in self.walk(feed):
            y = piece.y.double()
            n += piece.measured.sum(dim=0)
            total += (y**2).sum(dim=0)
            pairs += (piece.seen[:, 1:].sum(dim=1) * piece.measured).sum(dim=0)
            common += (piece.z[:, 1:].double().sum(dim=1) * y).sum(dim=0)
        variance, signal = total / n.clamp(min=1), (common / pairs.clamp(min=1)).clamp(min=0)
        self.sd = torch.where(variance > 1e-12, variance, 1.0).sqrt().float()
        self.shrink = ((variance - signal) / signal.clamp(min=1e-12)).clamp(*_SHRINK).float()

    def _fit_axes(self, feed: FeedLike) -> None:
        """Principal axes (g, p) of the means over the neighbourhood; each points to where its largest loading is."""
        gram = torch.zeros(2 * self.mean.shape, dtype=torch.float64, device=self.mean.device)
        for piece in self.walk(feed):
            whole = self._average(piece).double()
            gram += whole.T @ whole
        axes = torch.linalg.eigh(gram)[1].flip(1)[:, : self.axes.shape[1]]
        self.axes = (axes * axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)).sign()).float().contiguous()

    def _fit_coef(self, feed: FeedLike, folds: int) -> None:
        """Coefficients (g, f) by normal equations per gene; those of components that are not chosen are 0."""
        g, f = self.coef.shape
        gram, cross = (
            torch.zeros(folds, g, *shape, dtype=torch.float64, device=self.coef.device) for shape in ((f, f), (f,))
        )
        for piece in self.walk(feed):
            x, y = (self._inputs(piece) * piece.measured[..., None]).double(), piece.y.double()
            for i in piece.fold.unique().tolist():
                part, truth = x[piece.fold == i].transpose(0, 1), y[piece.fold == i]  # (g, c, f), (c, g)
                gram[i] += part.transpose(1, 2) @ part
                cross[i] += torch.einsum("gcf,cg->gf", part, truth)
        squares = gram.sum(dim=(0, 1)).diagonal()
        scale = (squares / squares[_ONE].clamp(min=1)).sqrt()
        self.scale = torch.where(scale > 1e-6, scale, 1.0).float()
        by = self.scale.double()
        gram, cross = gram / by[:, None] / by, cross / by
        width, ridge = self._choose(gram, cross)
        self.coef = torch.zeros(g, f, device=self.coef.device)
        self.coef[:, :width] = _solve(gram.sum(dim=0), cross.sum(dim=0), width, ridge).float()

    def _choose(self, gram: Tensor, cross: Tensor) -> tuple[int, float]:
        """Number of inputs and penalty of the smallest squared error, each fold predicted from the others.

        The squares of the truth are left out of the error: they are the same for all.
        """
        folds, grid = len(gram), [(_FIRST + p, ridge) for p in self.components for ridge in self.ridges]
        error = torch.zeros(len(grid), dtype=torch.float64)
        for a, (width, ridge) in enumerate(grid if folds > 1 else ()):
            for i in range(folds):
                w = _solve(gram.sum(dim=0) - gram[i], cross.sum(dim=0) - cross[i], width, ridge)
                fitted = (gram[i, :, :width, :width] @ w[..., None])[..., 0]
                error[a] += (w * (fitted - 2 * cross[i, :, :width])).sum().cpu()
        return grid[int(error.argmin())]


def _solve(gram: Tensor, cross: Tensor, width: int, ridge: float) -> Tensor:
    """Coefficients (g, width) of the first inputs by normal equations (g, f, f), (g, f); 1 is hardly penalised."""
    penalty = torch.full((width,), ridge, dtype=gram.dtype, device=gram.device)
    penalty[_ONE] = 1e-3
    return torch.linalg.solve(gram[:, :width, :width] + torch.diag(penalty), cross[:, :width])
