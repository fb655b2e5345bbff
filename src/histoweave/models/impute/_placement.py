"""Tangram's objective with its gradient written out, and the descent: nothing n × c is kept but what Adam needs.

Letters: n sources (cells or groups of the reference), c places (cells of the target), m shared genes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_LEAST = 1e-12  # below this a norm is 0; that of torch's normalize


class Terms(NamedTuple):
    """Weights of what is summed in the objective: both cosines, the density and the entropy."""

    gene: float = 1.0
    spot: float = 0.0
    density: float = 1.0
    entropy: float = 0.0


def objective(p: Tensor, source: Tensor, target: Tensor, density: Tensor, terms: Terms) -> tuple[Tensor, Tensor]:
    """What Tangram minimises, and its slope in every probability.

    Parameters
    ----------
    p : (n, c)
        Probability that each of n sources (cells or groups) lies at each of c places; rows sum to 1.
    source : (n, m + 1)
        Expression times the share of the reference that a source stands for; last that share itself, summing to 1.
    target : (c, m)
        Measured expression.
    density : (c,)
        Share of the cells that is expected at each place, summing to 1.

    Returns
    -------
    Tensor, Tensor
        - gene · mean cosine of a gene - spot · mean cosine of a place + density · KL(expected ‖ predicted density)
        + entropy · Σ entropy of a row, a scalar; and its derivative (n, c).
    """
    mixed = p.T @ source  # (c, m + 1): one product for expression and density
    made, share = mixed[:, :-1], mixed[:, -1].clamp(min=torch.finfo(p.dtype).tiny)
    slope = torch.zeros_like(mixed)
    loss = terms.density * (torch.xlogy(density, density) - density * share.log()).sum()
    slope[:, -1] = -terms.density * density / share
    for weight, axis in ((terms.gene, 0), (terms.spot, 1)):
        if weight:
            loss -= _cosines(made, target, axis, weight, slope[:, :-1])
    back = source @ slope.T  # (n, c)
    if terms.entropy:
        log_p = p.clamp(min=torch.finfo(p.dtype).tiny).log()
        loss -= terms.entropy * torch.xlogy(p, p).sum()
        back -= terms.entropy * (log_p + 1)
    return loss, back


def _cosines(made: Tensor, target: Tensor, axis: int, weight: float, slope: Tensor) -> Tensor:
    """Weighted mean cosine of made and target (c, m) along an axis; its derivative is taken off `slope` (c, m)."""
    long = torch.linalg.vector_norm(made, dim=axis, keepdim=True).clamp(min=_LEAST)
    wide = torch.linalg.vector_norm(target, dim=axis, keepdim=True).clamp(min=_LEAST)
    cosine = (made * target).sum(axis, keepdim=True) / (long * wide)
    each = weight / cosine.numel()
    slope.addcmul_(target, -each / (long * wide)).addcmul_(made, each * cosine / long.square())
    return each * cosine.sum()


def place(
    source: Tensor, target: Tensor, density: Tensor, terms: Terms, *, epochs: int, lr: float, generator: torch.Generator
) -> tuple[Tensor, float]:
    """Logits (n, c) of the placement that Adam finds from standard normal ones, and its loss; sizes as in `objective`.

    Memory is five times n × c floats (logits, two moments, slope, probabilities): 20 bytes for each pair of source and
    place, and 28 with an entropy.

    Raises
    ------
    FloatingPointError
        The loss is not finite.
    """
    logits = torch.randn(len(source), len(target), generator=generator)
    optimizer = torch.optim.Adam([logits], lr=lr, fused=True)  # fused: one pass and no further n × c
    for epoch in range(epochs):
        p = logits.softmax(1)
        loss, back = objective(p, source, target, density, terms)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss became {float(loss)} in epoch {epoch + 1} of {epochs}: give a lower lr than {lr}"
            )
        back -= torch.einsum("nc,nc->n", p, back)[:, None]
        logits.grad = back.mul_(p)
        del p
        optimizer.step()
        logits.grad = None  # or the next slope would stand beside this one
    p = logits.softmax(1)
    return logits, float(objective(p, source, target, density, terms)[0])
