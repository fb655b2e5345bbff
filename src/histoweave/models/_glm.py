"""Poisson and negative binomial regression with a log link for all genes at once.

The likelihood of every gene has a Hessian of its own, and building them costs n·d²·g. Here the features are made white
once, by one eigendecomposition of their Gram matrix that all genes share; there each Hessian is close to a multiple of
the identity, and a quasi-Newton method (limited memory BFGS, all genes side by side, each with its own step length)
needs few passes over the spots, of n·d·g each. Passes are float32 until they stall there, then float64. The few genes
that do not get there are solved by exact Newton steps.

Letters: b spots of a chunk, n all spots, d features, p white directions and the intercept, g genes, f genes not done.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from histoweave.models._descent import Memory, descend
from histoweave.models._linear import Centred, Moments, whitening

Chunk = tuple[Tensor, Tensor, Tensor | None]  # features (b, d), counts (b, g), offset of the linear predictor (b,)
Walk = Callable[[], Iterable[Chunk]]

BOUND = 30.0  # of the linear predictor: e³⁰ counts are none that a spot can have, and no float32 overflows
ALPHA_LEAST = 1e-6  # Poisson, but for its name
COARSE = 1e-3  # gradient at which float32 gives way to float64
FAINT = 1e-5  # of a gene's mean: a spot with less is one whose mean runs away to 0
_HELD = 1 << 23  # numbers held when Hessians are built


class CountFit(NamedTuple):
    """What `fit_counts` found.

    Attributes
    ----------
    coef, intercept : (d, g), (g,) float64
        Of the linear predictor log μ = xᵀw + b + offset.
    converged : (g,) bool
        Whether the gradient vanishes and there is a maximum. Where not, the numbers are finite and not to be relied on.
    separated : (g,) bool
        Whether the likelihood has no maximum at finite coefficients (all counts 0, or spots that a direction separates),
        seen by a mean that falls below 1e-5 of the gene's average in some spot.
    passes : int
        How often the spots were walked.
    """

    coef: Tensor
    intercept: Tensor
    converged: Tensor
    separated: Tensor
    passes: int


def alpha_from_moments(mean: Tensor, var: Tensor, *, least: float = ALPHA_LEAST) -> Tensor:
    """Dispersion (g,) with which a negative binomial has these moments: (s² - m) / m², at least `least`."""
    return torch.where(mean > 0, (var - mean) / mean.clamp(min=1e-30).square(), least).clamp(min=least)


def fit_counts(
    walk: Walk, *, alpha: Tensor | float | None = None, penalty: float = 0.0, tol: float = 1e-6, passes: int = 100
) -> CountFit:
    """Maximum likelihood of log μ = xᵀw + b + offset, for Poisson counts or negative binomial ones of known dispersion.

    Minimises -loglik / n + penalty/2 ‖w‖², which is scikit-learn's ``PoissonRegressor(alpha=penalty)`` and statsmodels'
    ``GLM.fit_regularized(alpha=penalty, L1_wt=0)`` without a penalty on b, for every gene by itself.

    Parameters
    ----------
    walk
        Called for every pass; gives chunks (features (b, d), counts (b, g), offset (b,) or None), so that spots need not
        be in memory. Every call must give the same spots.
    alpha
        Dispersion, Var = μ + αμ²: one for all or one per gene (g,), above 0; None for Poisson.
    penalty
        0 or more.
    tol
        A gene is done when its gradient, in white features and by its mean weight, is below this: about the error of a
        coefficient that belongs to a feature of variance 1.
    passes
        Most passes of each of the two precisions.

    Raises
    ------
    ValueError
        No spot; features, counts or offsets that are not finite; negative counts; a bad `alpha` or `penalty`.
    """
    data, null = _survey(walk)
    if not (math.isfinite(penalty) and penalty >= 0):
        raise ValueError(f"penalty={penalty}; expected a finite number of 0 or more")
    job = _Job(walk, data, _dispersion(alpha, data.y), penalty)
    theta = torch.zeros(job.p + 1, len(null), dtype=torch.float64, device=null.device)
    theta[-1] = null
    some = data.y > 0
    genes = torch.nonzero(some).squeeze(1)
    memory = Memory(theta)
    descend(job, theta, genes, memory, torch.float32, max(COARSE, tol), passes)
    left = descend(job, theta, genes, memory, torch.float64, tol, passes)
    left = descend(job, theta, left, _Newton(job), torch.float64, tol, passes)
    done = some.clone()
    done[left] = False
    separated = ~some | (job.least_mean(theta) < math.log(FAINT))
    coef = job.basis @ theta[:-1]
    return CountFit(coef, theta[-1] - data.x @ coef, done & ~separated, separated, job.walked)


def _survey(walk: Walk) -> tuple[Centred, Tensor]:
    """Moments about the means, and the intercepts (g,) that fit without features; everything is checked."""
    exposure, least, finite = 0.0, 0.0, True

    def seen() -> Iterable[tuple[Tensor, Tensor]]:
        nonlocal exposure, least, finite
        for x, y, offset in walk():
            exposure += float(len(x)) if offset is None else float(offset.double().exp().sum())
            least = min(least, float(y.min())) if y.numel() else least
            finite &= offset is None or bool(torch.isfinite(offset).all())
            yield x, y

    sums = Moments.stream(seen())
    if not (finite and 0 < exposure < math.inf):
        raise ValueError("offsets hold NaN or infinite values; leave out spots whose size is 0 or not known")
    if least < 0:
        raise ValueError(f"counts as low as {least:g}; expected 0 or more: give counts, not logarithms or residuals")
    null = (sums.y[0] / exposure).clamp(min=math.exp(-BOUND)).log()
    return Centred.of(sums), null


def _dispersion(alpha: Tensor | float | None, like: Tensor) -> Tensor | None:
    """Dispersion of every gene (g,), checked."""
    if alpha is None:
        return None
    made = torch.as_tensor(alpha, dtype=torch.float64, device=like.device).expand(len(like))
    if not bool((torch.isfinite(made) & (made > 0)).all()):
        raise ValueError(
            f"alpha={alpha}; expected finite dispersions above 0; for none at all fit Poisson (alpha=None)"
        )
    return made.clamp(min=ALPHA_LEAST)


class _Job:
    """The likelihood in white features: parameters theta (p + 1, g), the intercept last."""

    def __init__(self, walk: Walk, data: Centred, alpha: Tensor | None, penalty: float) -> None:
        self.walk, self.alpha, self.n = walk, alpha, data.n
        self.basis = whitening(data)  # (d, p)
        self.p = self.basis.shape[1]
        self.centre = data.x
        self.ridge = torch.zeros(self.p + 1, self.p + 1, dtype=torch.float64, device=data.x.device)
        self.ridge[:-1, :-1] = penalty * self.basis.T @ self.basis
        self.walked = 1

    def _chunks(
        self, theta: Tensor, genes: Tensor, dtype: torch.dtype, *, shifted: bool = True
    ) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
        """Centred features (b, d), counts (b, f) and linear predictors (b, f) with or without offset, of one pass."""
        self.walked += 1
        coef, intercept = (self.basis @ theta[:-1]).to(dtype), theta[-1].to(dtype)
        for x, y, offset in self.walk():
            x = (x - self.centre.to(x.dtype)).to(dtype)
            eta = torch.addmm(intercept, x, coef)
            if shifted and offset is not None:
                eta += offset.to(dtype)[:, None]
            yield x, (y if len(genes) == y.shape[1] else y[:, genes]).to(dtype), eta

    def _likelihood(self, y: Tensor, eta: Tensor, alpha: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Negative loglik up to a constant, its slope in eta, and its curvature, all (b, f).

        Beyond the bound a Poisson mean goes on in a straight line, so that no trial step overflows.
        """
        if alpha is None:
            low = eta.clamp(max=BOUND)
            mean = low.exp()
            return mean * (1 + eta - low) - y * eta, mean - y, mean
        inner = eta + alpha.log()
        share = torch.sigmoid(inner)  # αμ / (1 + αμ)
        size = y + 1 / alpha
        drawn = size * share
        return size * torch.nn.functional.softplus(inner) - y * eta, drawn - y, drawn * (1 - share)

    def at(self, theta: Tensor, genes: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Objective (f,), gradient (p + 1, f) and mean weight (f,), all of one spot, float64."""
        alpha = None if self.alpha is None else self.alpha[genes].to(dtype)
        value, weight = torch.zeros_like(theta[-1]), torch.zeros_like(theta[-1])
        slope_x, slope = theta.new_zeros(len(self.basis), len(genes)), torch.zeros_like(theta[-1])
        for x, y, eta in self._chunks(theta, genes, dtype):
            loss, residual, curve = self._likelihood(y, eta, alpha)
            value += loss.sum(dim=0)
            weight += curve.sum(dim=0)
            slope += residual.sum(dim=0)
            slope_x += x.T @ residual
        pull = self.ridge @ theta
        gradient = torch.cat([self.basis.T @ slope_x, slope[None]]) / self.n + pull
        return value / self.n + (theta * pull).sum(dim=0) / 2, gradient, weight / self.n

    def scale(self, weight: Tensor) -> Tensor:
        """Diagonal (p + 1, f) of the Hessian that all white features would have at their mean weight (f,)."""
        return weight.clamp(min=1e-12) + self.ridge.diagonal()[:, None]

    def hessian(self, theta: Tensor, genes: Tensor) -> Tensor:
        """Hessians (f, p + 1, p + 1), float64."""
        alpha = None if self.alpha is None else self.alpha[genes]
        made = self.ridge.expand(len(genes), -1, -1) * self.n
        for x, y, eta in self._chunks(theta, genes, torch.float64):
            white = torch.cat([x @ self.basis, torch.ones_like(x[:, :1])], dim=1)  # (b, p + 1)
            curve = self._likelihood(y, eta, alpha)[2]
            rows = max(1, _HELD // (len(genes) * white.shape[1]))
            for z, w in zip(white.split(rows), curve.split(rows), strict=True):
                made = made + (z.T * w.T[:, None]) @ z
        return made / self.n

    def least_mean(self, theta: Tensor) -> Tensor:
        """Log of the least mean of a spot, without offset, over the average one (g,)."""
        genes = torch.arange(theta.shape[1], device=theta.device)
        least, total = torch.full_like(theta[-1], math.inf), torch.zeros_like(theta[-1])
        for _, _, eta in self._chunks(theta, genes, torch.float32, shifted=False):
            least = torch.minimum(least, eta.amin(dim=0))
            total += eta.clamp(max=BOUND).exp().sum(dim=0)
        return least - (total / self.n).clamp(min=1e-300).log()


class _Newton:
    """Newton's method, that is iteratively reweighted least squares, for all genes given at once.

    Weights are those of the observed information, which is positive with a log link, so that the last steps are quadratic;
    those of the expected one, which statsmodels takes, are the same for Poisson.
    """

    def __init__(self, job: _Job) -> None:
        self.job = job

    def add(self, genes: Tensor, step: Tensor, change: Tensor) -> None:
        """Nothing: every direction is made afresh."""

    def direction(self, theta: Tensor, genes: Tensor, gradient: Tensor, scale: Tensor) -> Tensor:
        """Downhill (p + 1, f); a part in 1e12 of the diagonal keeps separated genes solvable."""
        systems = self.job.hessian(theta[:, genes], genes) + torch.diag_embed(1e-12 * scale.T)
        factor, _ = torch.linalg.cholesky_ex(systems)
        return -torch.cholesky_solve(gradient.T[..., None], factor)[..., 0].T
