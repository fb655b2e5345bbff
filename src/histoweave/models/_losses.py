"""Losses over measured entries only: a hidden or missing target can neither raise a loss nor reach a gradient."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_error(pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Squared error (b, g), exactly 0 where `mask` is False, whatever the target holds there (NaN too)."""
    return torch.where(mask, pred - target, torch.zeros((), dtype=pred.dtype, device=pred.device)).square()


def masked_mse(pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over the measured entries.

    Parameters
    ----------
    pred, target : (b, g)
    mask : (b, g) bool
        True where the target counts.

    Returns
    -------
    Tensor
        Scalar; 0 when nothing is measured.
    """
    return masked_error(pred, target, mask).sum() / mask.sum().clamp(min=1)


def spot_mse(pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error of each spot over its own measured genes: (b,), 0 for a spot without any."""
    return masked_error(pred, target, mask).sum(-1) / mask.sum(-1).clamp(min=1)


def masked_pcc(pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Correlation of each gene over the measured spots of a batch, averaged over the genes that vary among them.

    Parameters
    ----------
    pred, target : (b, g)
    mask : (b, g) bool
        True where the target counts; elsewhere it may hold anything, NaN too.

    Returns
    -------
    Tensor
        Scalar; 0 when no gene varies, as in a batch of one spot.
    """
    zero = torch.zeros((), dtype=pred.dtype, device=pred.device)
    count = mask.sum(0).clamp(min=1)  # (g,)

    def centred(x: Tensor) -> Tensor:
        return torch.where(mask, x - torch.where(mask, x, zero).sum(0) / count, zero)

    a, b = centred(pred), centred(target)
    # The norm's gradient is 0 at 0, so a gene that is predicted constant does no harm; 1e-8 is the authors'.
    r = (a * b).sum(0) / (torch.linalg.vector_norm(a, dim=0) * torch.linalg.vector_norm(b, dim=0) + 1e-8)
    varies = target.masked_fill(~mask, -torch.inf).amax(0) > target.masked_fill(~mask, torch.inf).amin(0)
    return (r * varies).sum() / varies.sum().clamp(min=1)
