"""Minimising one smooth convex function per gene, all genes side by side, each with its own direction and step length.

Letters: p parameters, g genes, f genes that are not done.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

MEMORY = 8  # steps that a quasi-Newton direction remembers
_ARMIJO = 1e-4  # share of the decrease that the slope promises, which a step must give
_BACK, _SHORT = 0.3, 1e-8  # shortening of a step that does not give it, and where that ends


class Problem(Protocol):
    """The functions of all genes."""

    def at(self, theta: Tensor, genes: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Value (f,), gradient (p, f) and mean curvature (f,) of some genes at theta (p, f)."""
        ...

    def scale(self, weight: Tensor) -> Tensor:
        """A diagonal (p, f) near the Hessian, from the mean curvature (f,)."""
        ...


class Ways(Protocol):
    """Where to go from here."""

    def direction(self, theta: Tensor, genes: Tensor, gradient: Tensor, scale: Tensor) -> Tensor:
        """A direction (p, f) for some genes; what does not go downhill is replaced by the scaled gradient."""
        ...

    def add(self, genes: Tensor, step: Tensor, change: Tensor) -> None:
        """Told of every step (p, f) and the change of the gradient (p, f); 0 for genes whose step was not taken."""
        ...


class Memory:
    """The last steps s and changes of the gradient y of every gene, (p, g) each; what was not taken has weight 0."""

    def __init__(self, theta: Tensor) -> None:
        self.like = theta
        self.pairs: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, genes: Tensor, step: Tensor, change: Tensor) -> None:
        """Remember a step (p, f) of some genes; 0 where there was none."""
        product = (step * change).sum(dim=0)
        curved = product > 1e-10 * step.norm(dim=0) * change.norm(dim=0)
        s, y = torch.zeros_like(self.like), torch.zeros_like(self.like)
        rho = torch.zeros_like(self.like[-1])
        s[:, genes], y[:, genes] = step, change
        rho[genes] = torch.where(curved, 1 / product.clamp(min=1e-300), 0.0)
        self.pairs = [*self.pairs[-(MEMORY - 1) :], (s, y, rho)]

    def direction(self, theta: Tensor, genes: Tensor, gradient: Tensor, scale: Tensor) -> Tensor:
        """Downhill (p, f): the two loops of Nocedal and Wright, around the diagonal (p, f)."""
        used, q = [(s[:, genes], y[:, genes], rho[genes]) for s, y, rho in self.pairs], gradient.clone()
        shares = []
        for s, y, rho in reversed(used):
            shares.append(rho * (s * q).sum(dim=0))
            q -= shares[-1] * y
        q /= scale
        for (s, y, rho), share in zip(used, reversed(shares), strict=True):
            q += (share - rho * (y * q).sum(dim=0)) * s
        return -q


def descend(
    job: Problem, theta: Tensor, genes: Tensor, ways: Ways, dtype: torch.dtype, goal: float, passes: int
) -> Tensor:
    """Improves theta (p, g) in place for the genes (f,), and gives those that did not reach the goal.

    A gene is done when its gradient over the scale is at most `goal` everywhere. A step is taken where it gives enough of
    the decrease that the slope promises, to the rounding of `dtype`, in which the functions are evaluated; else that
    gene tries a shorter one in the next pass.
    """
    if not len(genes):
        return genes
    stuck = []
    value, gradient, weight = job.at(theta[:, genes], genes, dtype)
    length = torch.ones_like(value)
    for done in range(passes + 1):
        scale = job.scale(weight)
        far, short = (gradient.abs() / scale).amax(dim=0) > goal, length < _SHORT
        stuck.append(genes[far & short])
        go = far & ~short
        genes, value, weight, length = genes[go], value[go], weight[go], length[go]
        gradient, scale = gradient[:, go], scale[:, go]
        if not len(genes) or done == passes:
            break
        way = ways.direction(theta, genes, gradient, scale)
        slope = (way * gradient).sum(dim=0)
        downhill = slope < 0  # False where it is not finite, too
        way = torch.where(downhill, way, -gradient / scale)
        slope = torch.where(downhill, slope, -(gradient.square() / scale).sum(dim=0))
        new, new_gradient, new_weight = job.at(theta[:, genes] + length * way, genes, dtype)
        rounding = 4 * torch.finfo(dtype).eps * (value.abs() + weight)
        ok = new <= value + _ARMIJO * length * slope + rounding
        step = torch.where(ok, length * way, 0.0)
        ways.add(genes, step, torch.where(ok, new_gradient - gradient, 0.0))
        theta[:, genes] += step
        value, weight = torch.where(ok, new, value), torch.where(ok, new_weight, weight)
        gradient, length = torch.where(ok, new_gradient, gradient), torch.where(ok, 1.0, _BACK * length)
    return torch.cat([*stuck, genes])
