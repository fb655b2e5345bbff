"""Lasso for all genes and all penalties at once, on the Gram matrix, with a duality gap for every gene and penalty.

Letters: d features, g genes, f genes that are not done, a penalties, m features that have a part.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from histoweave.models._by_gene import GeneCentred, GeneMoments, least_squares_by_gene
from histoweave.models._linear import Centred, Moments, least_squares, penalties

EVERY = 20  # steps between two looks at the gap
EXACT = 256  # features up to which the coefficients of a known support are solved for
ROUNDS = 8  # of these in a row, each with features less
_RIDGE = 1e-11  # of variances 1: collinear features, which no exact solution tells apart, run until one of them is 0
_HELD = 1 << 24  # numbers of the systems that are solved together


class LassoPath(NamedTuple):
    """What `lasso_path` found.

    Attributes
    ----------
    coef, intercept : (a, d, g), (a, g) float64
    gap : (a, g)
        How far the objective can at most be above its minimum.
    converged : (a, g) bool
        Whether the gap fell below the tolerance.
    """

    coef: Tensor
    intercept: Tensor
    gap: Tensor
    converged: Tensor


def lasso_path(sums: Moments | GeneMoments, alphas: Tensor, *, tol: float = 1e-6, steps: int = 2000) -> LassoPath:
    """Minimises ‖y - Xw - b‖² / (2n) + α‖w‖₁ for every penalty and every gene.

    That is scikit-learn's ``Lasso(alpha)``; b is not penalised. At α = 0 it is least squares. Penalties are taken from
    the largest down and each starts where the one before ended. The steps are accelerated proximal ones (Beck and
    Teboulle 2009, restarted after O'Donoghue and Candès 2015) on features of unit variance, all genes in one product with
    the Gram matrix; a gene whose gap is small enough leaves. Between them the coefficients of the present support and
    signs are solved for exactly and taken where they lower the gap, which ends the path of most genes in few steps.

    Parameters
    ----------
    sums
        Moments of one fold, over the same spots for all genes, or over spots of each gene's own.
    alphas
        (a,), 0 or more, in any order.
    tol
        A gene is done when its gap is at most this share of its objective, or what float64 cannot tell from 0.
    steps
        Most steps per penalty; what is not done then is not ``converged``, and still finite.
    """
    alphas = penalties(alphas).to(sums.x)
    data = GeneCentred.of(sums) if isinstance(sums, GeneMoments) else Centred.of(sums)
    job = _OwnGram(data, tol) if isinstance(data, GeneCentred) else _Job(data, tol)
    coef = data.cross.new_zeros(len(alphas), *data.cross.shape)
    gap = data.total.new_zeros(len(alphas), len(data.total))
    done = torch.ones_like(gap, dtype=torch.bool)
    scaled = torch.zeros_like(data.cross)  # (d, g), coefficients of the scaled features
    for i in alphas.argsort(descending=True).tolist():
        if alphas[i] == 0:
            coef[i] = least_squares_by_gene(data) if isinstance(data, GeneCentred) else least_squares(data)
            continue
        scaled, gap[i], done[i] = job.solve(alphas[i], scaled, steps)
        coef[i] = scaled / job.sd
    return LassoPath(coef, data.intercept(coef), gap, done)


class _Job:
    """The problem on features of unit variance, in which feature j has the penalty α / sd_j."""

    def __init__(self, data: Centred, tol: float) -> None:
        sd = (data.gram.diagonal() / data.n).clamp(min=0).sqrt()
        sd = torch.where(sd > 0, sd, 1.0)
        self.sd = sd[:, None]  # (d, 1)
        self.gram = data.gram / (data.n * torch.outer(sd, sd))  # (d, d)
        self.cross = data.cross / (data.n * self.sd)  # (d, g)
        self.total = data.total / data.n  # (g,)
        # the largest eigenvalue; the part in 1e6 is for its rounding
        self._steepest = float(torch.linalg.eigvalsh(self.gram)[-1].clamp(min=1e-12)) * (1 + 1e-6)
        self.tol = tol

    def weight(self, alpha: Tensor, of: Tensor) -> Tensor:
        """Penalties of the features (d, 1) for the genes `of` (f,), which all have the same."""
        return alpha / self.sd

    def steepest(self, of: Tensor) -> Tensor | float:
        """The largest eigenvalue of the Gram matrix of the genes `of` (f,)."""
        return self._steepest

    def times(self, w: Tensor, of: Tensor) -> Tensor:
        """The Gram matrix times w (d, f) of the genes `of` (f,)."""
        return self.gram @ w

    def parts(self, order: Tensor, of: Tensor) -> Tensor:
        """The rows and columns `order` (f, m) of the Gram matrix of the genes `of` (f,): (f, m, m)."""
        return self.gram[order[:, :, None], order[:, None]]

    def whole(self, right: Tensor, full: Tensor, of: Tensor) -> Tensor:
        """Solutions for the right sides (d, f) of the genes `of` (f,) that are `full` (f,), with the whole matrix."""
        return _solve(self.gram[None], right[None, :, full])[0]

    def gap(self, w: Tensor, alpha: Tensor, of: Tensor) -> tuple[Tensor, Tensor]:
        """Duality gap of w (d, f) and the objective, both (f,), for the genes `of` (f,).

        The dual point is the residual, shrunk until no feature correlates with it more than its penalty allows.
        """
        cross, total, weight = self.cross[:, of], self.total[of], self.weight(alpha, of)
        product = self.times(w, of)
        explained = (cross * w).sum(dim=0)
        left = (total - 2 * explained + (w * product).sum(dim=0)).clamp(min=0)  # ‖r‖² / n
        steep = ((cross - product).abs() / weight).amax(dim=0)
        shrink = (1 / steep.clamp(min=1e-300)).clamp(max=1)
        objective = left / 2 + (weight * w.abs()).sum(dim=0)
        dual = shrink * (total - explained) - shrink.square() * left / 2
        return (objective - dual).clamp(min=0), objective

    def small(self, gap: Tensor, objective: Tensor, of: Tensor) -> Tensor:
        """Whether the gaps (f,) are small enough."""
        return gap <= self.tol * objective + 64 * torch.finfo(gap.dtype).eps * self.total[of]

    def solve(self, alpha: Tensor, start: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """Coefficients (d, g), gaps (g,) and whether they are small enough (g,) at one penalty."""
        out, of = start.clone(), torch.arange(start.shape[1], device=start.device)
        gap, objective = self.gap(out, alpha, of)
        done = self.small(gap, objective, of)
        of = of[~done]
        w = out[:, of]  # (d, f)
        ahead, t = w, torch.ones(len(of), dtype=w.dtype, device=w.device)
        for step in range(1, steps + 1):
            if not len(of):
                break
            steepest = self.steepest(of)
            moved = ahead + (self.cross[:, of] - self.times(ahead, of)) / steepest
            new = torch.sign(moved) * (moved.abs() - self.weight(alpha, of) / steepest).clamp(min=0)
            t = torch.where(((ahead - new) * (new - w)).sum(dim=0) > 0, 1.0, t)  # restart: the momentum points uphill
            t_next = (1 + (1 + 4 * t * t).sqrt()) / 2
            ahead, w, t = new + (t - 1) / t_next * (new - w), new, t_next
            if step % EVERY and step != steps:
                continue
            w = self._better(w, alpha, of)
            ahead, t = w, torch.ones_like(t)
            here, objective = self.gap(w, alpha, of)
            out[:, of], gap[of], done[of] = w, here, self.small(here, objective, of)
            go = ~done[of]
            of, w, ahead, t = of[go], w[:, go], ahead[:, go], t[go]
        return out, gap, done

    def objective(self, w: Tensor, alpha: Tensor, of: Tensor) -> Tensor:
        """Objective (f,) of w (d, f), less the constant ‖y‖² / (2n)."""
        fitted = (w * self.times(w, of)).sum(dim=0)
        return fitted / 2 - (self.cross[:, of] * w).sum(dim=0) + (self.weight(alpha, of) * w.abs()).sum(dim=0)

    def _better(self, w: Tensor, alpha: Tensor, of: Tensor) -> Tensor:
        """w (d, f), moved to the exact solution on its support and signs, where that lowers the objective.

        It moves as far as no sign changes: the objective is a parabola until there, so that it cannot rise. A feature
        that gets to 0 leaves the support, and the rest moves on.
        """
        if len(w) > EXACT:
            return w
        w, rows = w.clone(), torch.arange(len(of), device=w.device)
        for _ in range(ROUNDS):
            part, genes = w[:, rows], of[rows]
            exact = self._exact(part, alpha, genes)
            crossing = torch.where(exact * part < 0, part / (part - exact), 1.0)  # how far each goes before it is 0
            far = crossing.amin(dim=0)
            moved = torch.where((crossing == far) & (far < 1), 0.0, part + far * (exact - part))
            better = self.objective(moved, alpha, genes) < self.objective(part, alpha, genes)
            w[:, rows] = torch.where(better, moved, part)
            rows = rows[better & (far < 1)]
            if not len(rows):
                break
        return w

    def _exact(self, w: Tensor, alpha: Tensor, of: Tensor) -> Tensor:
        """The minimum (d, f) where the support and the signs of w (d, f) are given; w itself where it is not determined.

        Genes in which every feature has a part, which are most at small penalties, share one factor.
        """
        sign = torch.sign(w)
        on = sign != 0
        right = torch.where(on, self.cross[:, of] - self.weight(alpha, of) * sign, 0.0)
        exact = torch.zeros_like(w)
        full = on.all(dim=0)
        if full.any():
            exact[:, full] = self.whole(right, full, of)
        some = torch.nonzero(~full).squeeze(1)
        most = int(on[:, some].sum(dim=0).max()) if len(some) else 0
        for rows in some.split(max(1, _HELD // max(most, 1) ** 2)):
            held, order = on[:, rows].T.sort(dim=1, descending=True, stable=True)  # the features that are on come first
            held, order = held[:, :most].to(w), order[:, :most]  # (f, m)
            systems = self.parts(order, of[rows]) * held[:, :, None] * held[:, None]
            solved = _solve(systems + torch.diag_embed(1 - held), right[:, rows].T.gather(1, order)[..., None])
            exact[:, rows] = torch.zeros_like(w[:, rows].T).scatter(1, order, solved[..., 0]).T
        return torch.where(torch.isfinite(exact).all(dim=0), exact, w)


class _OwnGram(_Job):
    """The same where every gene has spots, and so a Gram matrix (g, d, d), of its own."""

    def __init__(self, data: GeneCentred, tol: float) -> None:
        sd = (data.gram.diagonal(dim1=1, dim2=2) / data.n[:, None]).clamp(min=0).sqrt()  # (g, d)
        sd = torch.where(sd > 0, sd, 1.0)
        self.sd = sd.T  # (d, g)
        self.gram = data.gram / (data.n[:, None, None] * sd[:, :, None] * sd[:, None])
        self.cross, self.total, self.tol = data.cross / (data.n * self.sd), data.total / data.n, tol
        self._each = torch.linalg.eigvalsh(self.gram)[:, -1].clamp(min=1e-12) * (1 + 1e-6)  # (g,)

    def weight(self, alpha: Tensor, of: Tensor) -> Tensor:
        """Penalties of the features (d, f)."""
        return alpha / self.sd[:, of]

    def steepest(self, of: Tensor) -> Tensor:
        """The largest eigenvalues (f,)."""
        return self._each[of]

    def times(self, w: Tensor, of: Tensor) -> Tensor:
        """Each gene's Gram matrix times its column of w (d, f)."""
        gram = self.gram if len(of) == len(self.gram) else self.gram[of]
        return (gram @ w.T[..., None])[..., 0].T

    def parts(self, order: Tensor, of: Tensor) -> Tensor:
        """Rows and columns of each gene's own (f, m, m)."""
        return self.gram[of[:, None, None], order[:, :, None], order[:, None]]

    def whole(self, right: Tensor, full: Tensor, of: Tensor) -> Tensor:
        """Solutions with each gene's own matrix."""
        return _solve(self.gram[of[full]], right[:, full].T[..., None])[..., 0].T


def _solve(systems: Tensor, right: Tensor) -> Tensor:
    """Solutions (f, m, r) of systems (f, m, m) with right sides (f, m, r); NaN for what is not positive definite.

    A small ridge lets collinear features have a factor, and one step of refinement takes it out again.
    """
    ridge = _RIDGE * torch.eye(systems.shape[1], dtype=systems.dtype, device=systems.device)
    factor, failed = torch.linalg.cholesky_ex(systems + ridge)
    solved = torch.cholesky_solve(right, factor)
    solved = solved + torch.cholesky_solve(right - systems @ solved, factor)
    return torch.where((failed == 0)[:, None, None], solved, torch.nan)
