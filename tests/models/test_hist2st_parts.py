"""Hist2ST: its graph and its likelihood of counts."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tests.models.section_batch import DIMS, close, make_batch, take
from torch import Tensor
from torch.distributions import NegativeBinomial

from histoweave.models.predict.hist2st import Hist2ST, averaging, count_loss


@pytest.fixture(autouse=True)
def _fixed() -> None:
    torch.manual_seed(0)


def model(**arguments: object) -> Hist2ST:
    return Hist2ST(DIMS, **(Hist2ST.tiny() | {"positions": 16, "dropout": 0.0} | arguments))


# -- graph ------------------------------------------------------------------------------------------------------------


def slowly(rc: Tensor, k: int, reach: float | None) -> Tensor:
    """`averaging`, spot by spot; spots on distinct cells."""
    out = torch.zeros(len(rc), len(rc))
    for i, (row, column) in enumerate(rc.tolist()):
        others = [(r - row, c - column, j) for j, (r, c) in enumerate(rc.tolist()) if j != i]
        nearest = sorted((r * r + c * c, r, c, j) for r, c, j in others)[:k]
        kept = [j for square, *_, j in nearest if reach is None or math.sqrt(square) <= reach] or [i]
        out[i, kept] = 1 / len(kept)
    return out


@pytest.mark.parametrize("reach", [2.0, None, 1.0])
@pytest.mark.parametrize("k", [1, 4, 30])
@pytest.mark.parametrize("n", [1, 2, 9, 40])
def test_averaging_agrees_with_a_loop_whatever_the_order(n: int, k: int, reach: float | None) -> None:
    cells = torch.randperm(400)[:n] if n == 9 else torch.randperm(100)[:n]  # nine spots far apart: some are alone
    rc = torch.stack([cells // 20 - 3, cells % 20 + 70], -1)
    made = averaging(rc, k, reach)
    close(made, slowly(rc, k, reach))
    close(made.sum(-1), torch.ones(n))
    order = torch.randperm(n)
    assert torch.equal(averaging(rc[order], k, reach), made[order][:, order])
    assert torch.equal(averaging(rc + torch.tensor([900, -40]), k, reach), made)


def test_neighbours_of_a_full_lattice_are_the_four_that_touch() -> None:
    rc = torch.cartesian_prod(torch.arange(5), torch.arange(6))
    made = averaging(rc, 4, 2.0)
    middle = made[2 * 6 + 3].nonzero().flatten()
    assert rc[middle].tolist() == [[1, 3], [2, 2], [2, 4], [3, 3]]
    corner = made[0].nonzero().flatten()  # two that touch, one diagonal, and of two at distance 2 the one further up
    assert rc[corner].tolist() == [[0, 1], [0, 2], [1, 0], [1, 1]]


def test_spots_that_share_a_cell_come_together() -> None:
    rc = torch.tensor([[0, 0], [0, 1], [0, 1], [0, 5]])
    made = averaging(rc, 1, 2.0)
    close(made[0], torch.tensor([0, 0.5, 0.5, 0]))
    close(made[1], torch.tensor([0, 0, 1.0, 0]))
    close(made[3], torch.tensor([0, 0, 0, 1.0]))


def test_a_spot_alone_is_predicted_from_itself() -> None:
    made, batch = model(counts="none", copies=0), take(make_batch(), torch.arange(5))
    batch.array_xy = torch.tensor([[1, 1], [1, 2], [2, 1], [2, 2], [9, 9]])
    made.loss(batch)[0].backward()
    assert all(torch.isfinite(p.grad).all() for p in made.parameters())
    made.eval()
    for spots in (batch, take(batch, torch.tensor([4]))):
        other = replace(spots, window=255 - spots.window)
        assert torch.isfinite(made(spots)).all() and not torch.allclose(made(spots)[-1], made(other)[-1], atol=1e-4)


def test_rounds_are_joined_by_the_lstm() -> None:
    graph, x = model(rounds=3).graph, torch.randn(4, 32)
    near = averaging(torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]]), 2, 2.0)
    step, steps = x, []
    for linear in graph.rounds:
        step = torch.relu(linear(torch.stack([(row[:, None] * step).sum(0) for row in near])))
        step = step / step.norm(dim=1, keepdim=True)
        steps.append(step)
    each = [graph.lstm(torch.stack(steps)[:, i : i + 1])[0].mean(0)[0] for i in range(4)]  # one spot at a time
    close(graph(x, near), torch.stack(each))


# -- counts -----------------------------------------------------------------------------------------------------------


def heads(n: int, genes: int, *, scale: float = 1.0, dropped: bool = True) -> dict[str, Tensor]:
    names = ("mean", "dispersion", "dropped") if dropped else ("mean", "dispersion")
    return {name: (scale * torch.randn(n, genes)).requires_grad_() for name in names}


def likelihood(logits: dict[str, Tensor], counts: Tensor, size: Tensor) -> Tensor:
    """Of every entry, by torch's own distribution."""
    mean = logits["mean"].exp() * size
    theta = torch.nn.functional.softplus(logits["dispersion"])
    plain = NegativeBinomial(theta, logits=(mean / theta).log()).log_prob(counts)
    if "dropped" not in logits:
        return plain
    drop = logits["dropped"].sigmoid()
    return torch.log((1 - drop) * plain.exp() + drop * (counts == 0))


@pytest.mark.parametrize("dropped", [True, False])
def test_count_loss_agrees_with_the_distribution(dropped: bool) -> None:
    counts = torch.poisson(torch.rand(31, 5) * 4)
    counts[3] = 0  # a spot without any: no scale, no loss
    mask = torch.rand(31, 5) < 0.8
    logits = heads(31, 5, dropped=dropped)
    total = (counts * mask).sum(1)
    kept = total > 0
    size = total[kept] / total[kept].quantile(0.5)
    expected = -likelihood({name: x[kept] for name, x in logits.items()}, counts[kept], size[:, None])[mask[kept]]
    close(count_loss(logits, counts.masked_fill(~mask, torch.nan), mask), expected.mean())
    count_loss(logits, counts.masked_fill(~mask, torch.nan), mask).backward()
    for x in logits.values():
        assert torch.isfinite(x.grad).all() and not (x.grad != 0)[~(mask & kept[:, None])].any()


@pytest.mark.parametrize("scale", [1e2, 1e4])
def test_count_loss_stays_finite(scale: float) -> None:
    logits = heads(20, 5, scale=scale)
    counts = torch.randint(0, 20_000, (20, 5)).float()
    mask = torch.ones(20, 5, dtype=torch.bool)
    for given in (counts, counts * (torch.rand(20, 5) < 0.1), torch.zeros(20, 5)):
        value = count_loss(logits, given, mask)
        assert torch.isfinite(value)
        for gradient in torch.autograd.grad(value, list(logits.values()), allow_unused=True):
            assert gradient is None or torch.isfinite(gradient).all()


def test_a_section_without_counts_weighs_nothing() -> None:
    made, batch = model(), make_batch()
    for nothing in (
        replace(batch, counts=torch.zeros_like(batch.counts)),
        replace(batch, y_mask=torch.zeros_like(batch.y_mask)),
    ):
        assert made.loss(nothing)[1]["counts"] == 0


def test_unmeasured_entries_do_not_count() -> None:
    made, batch = model(), make_batch()
    batch.y_mask = torch.rand(batch.y.shape) < 0.6
    spoilt = replace(
        batch, y=batch.y.masked_fill(~batch.y_mask, torch.nan), counts=batch.counts.masked_fill(~batch.y_mask, 1e6)
    )
    values = []
    for given in (batch, spoilt):
        torch.manual_seed(1)
        values.append(made.loss(given)[0])
    assert torch.equal(*values)
    values[1].backward()
    assert all(torch.isfinite(p.grad).all() for p in made.parameters())
