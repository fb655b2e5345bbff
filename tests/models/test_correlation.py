"""The correlation that is learnt by, over measured entries only."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from histoweave.models._losses import masked_pcc


def test_is_the_mean_of_the_genes_correlations() -> None:
    g = torch.Generator().manual_seed(0)
    pred, y = torch.randn(9, 4, generator=g), torch.randn(9, 4, generator=g)
    mask = torch.rand(9, 4, generator=g) < 0.7
    expected = np.mean([np.corrcoef(pred[mask[:, i], i], y[mask[:, i], i])[0, 1] for i in range(4)])
    assert float(masked_pcc(pred, y.masked_fill(~mask, torch.nan), mask)) == pytest.approx(expected, abs=1e-6)
    assert float(masked_pcc(y * 3 - 2, y, mask)) == pytest.approx(1, abs=1e-6)


def test_genes_that_do_not_vary_are_left_out() -> None:
    pred, y = torch.randn(8, 3), torch.randn(8, 3)
    mask = torch.ones(8, 3, dtype=torch.bool)
    y[:, 1] = 0.1  # no exact binary number: its mean is off by rounding
    mask[1:, 2] = False
    torch.testing.assert_close(masked_pcc(pred, y, mask), masked_pcc(pred[:, :1], y[:, :1], mask[:, :1]))
    assert masked_pcc(pred[:1], y[:1], mask[:1]) == 0


def test_gradients_are_finite_and_only_where_something_was_measured() -> None:
    pred, y = torch.randn(8, 3, requires_grad=True), torch.randn(8, 3)
    mask = torch.rand(8, 3, generator=torch.Generator().manual_seed(0)) < 0.6
    masked_pcc(pred, y.masked_fill(~mask, torch.nan), mask).backward()
    assert torch.equal(pred.grad != 0, mask)
    flat = torch.zeros(8, 3, requires_grad=True)
    masked_pcc(flat, y, mask).backward()
    assert torch.isfinite(flat.grad).all()
