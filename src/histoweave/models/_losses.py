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
