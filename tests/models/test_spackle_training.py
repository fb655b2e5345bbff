"""SpaCKLE in training: what is masked, what is learnt from it, and the variant that learns what it is later asked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tests.models.section_batch import Sections, close, reached
from tests.models.spackle_batch import DIMS, SLOTS, SMALL, STILL, absent, dense, made, make_batch
from torch import Tensor

from histoweave.batch import Batch, Dims, Needs
from histoweave.models import parse
from histoweave.models.complete.spackle import Spackle, _relu_dropout
from histoweave.train import load_recipe


@pytest.fixture(autouse=True)
def _fixed() -> None:
    torch.manual_seed(0)


def test_masked_shares() -> None:
    seen = torch.rand(4000, 5, 4) < torch.tensor([0.9, 0.5, 0.2, 0.0])
    model = Spackle(Dims(genes=4), **STILL)
    model.measured = seen.float().mean((0, 1))
    masked = model.mask(seen)
    assert not (masked & ~seen).any() and torch.equal(masked[..., 2], seen[..., 2])  # 0.3 of all is more than there is
    np.testing.assert_allclose(masked.float().mean((0, 1)), [0.3, 0.3, float(model.measured[2]), 0.0], atol=0.015)
    model.rule = "measured"
    share = model.mask(seen).float().sum((0, 1)) / seen.sum((0, 1)).clamp(min=1)
    np.testing.assert_allclose(share, [0.3, 0.3, 0.3, 0.0], atol=0.025)
    model.rate = 0.7
    assert float(model.mask(seen)[seen].float().mean()) == pytest.approx(0.7, abs=0.02)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_a_share_of_what_was_filled_goes_missing_in_training(share: float) -> None:
    model, batch = made(drop_filled=share, rule="measured"), make_batch(600, whole=True)
    taken: list[Tensor] = []
    model.lift.register_forward_hook(lambda _, inputs, __: taken.append(inputs[0]))
    model.loss(batch)
    assert batch.ctx_fill is not None and batch.ctx_seen is not None
    seen = batch.ctx_seen[~absent(batch)]
    filled, measured = ((taken[0] == 0)[part].float().mean() for part in (~seen, seen))
    assert float(filled) == pytest.approx(share, abs=0.02) and float(measured) == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize("objective", ["all", "masked", "centre"])
def test_the_loss_by_hand(objective: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = made(objective=objective), make_batch()
    assert batch.ctx_fill is not None and batch.ctx_seen is not None
    masked = batch.ctx_seen & (torch.rand(batch.ctx_seen.shape) < 0.4)
    monkeypatch.setattr(model, "mask", lambda _: masked)
    guess = dense(model, batch.ctx_fill.masked_fill(masked, 0), absent(batch))
    there = ~absent(batch)
    errors = [
        float((guess[b, t, g] - batch.ctx_fill[b, t, g]) ** 2)
        for b in range(len(batch)) for t in range(SLOTS if objective != "centre" else 1) for g in range(DIMS.genes)
        if there[b, t] and (objective == "all" or masked[b, t, g])
    ]  # fmt: skip
    value, parts = model.loss(batch)
    assert float(value.detach()) == pytest.approx(np.mean(errors), rel=1e-4) and torch.equal(parts["mse"], value)


def test_marks_tell_a_zero_from_a_gap() -> None:
    batch = make_batch()
    assert batch.ctx_expr is not None and batch.ctx_seen is not None
    zeros, gaps = (replace(batch, ctx_expr=batch.ctx_expr.clone(), ctx_seen=batch.ctx_seen.clone()) for _ in "ab")
    zeros.ctx_expr[:, 0, 0] = gaps.ctx_expr[:, 0, 0] = 0.0  # type: ignore[index]
    zeros.ctx_seen[:, 0, 0], gaps.ctx_seen[:, 0, 0] = True, False  # type: ignore[index]
    model = made()
    assert torch.equal(model(zeros), model(gaps))
    model = made(channels="mask")
    assert not torch.allclose(model(zeros), model(gaps))


def test_values_may_be_taken_from_what_neighbours_show() -> None:
    batch, model = make_batch(), made(local=True, standardize=True)
    model.index(Sections(batch))
    assert batch.ctx_expr is not None and batch.ctx_seen is not None
    seen, there = batch.ctx_seen, ~absent(batch)
    base = torch.zeros(len(batch), DIMS.genes)
    for b in range(len(batch)):
        for g in range(DIMS.genes):
            shown = [(batch.ctx_expr[b, t, g] - model.mean[g]) / model.sd[g] for t in range(1, SLOTS) if seen[b, t, g]]
            base[b, g] = sum(shown) / (0.3 + len(shown))
    taken: list[Tensor] = []
    model.lift.register_forward_hook(lambda _, inputs, __: taken.append(inputs[0]))
    model.drop.register_forward_hook(lambda _, __, output: torch.zeros_like(output))
    close(model(batch), base * model.sd + model.mean)
    z = (batch.ctx_expr - model.mean) / model.sd - base[:, None]
    close(taken[0], torch.where(seen, z, 0)[there])
    made_all = model._complete(batch, batch.ctx_expr, seen, seen, there, centre=False)
    close(made_all, (base * model.sd + model.mean)[there.nonzero()[:, 0]])


def test_medians_are_asked_for_where_they_are_used() -> None:
    batch = make_batch()
    assert made().needs == made(preset="plus", drop_filled=0.5).needs == Needs.CTX_EXPR | Needs.CTX_FILL
    plus = made(preset="plus")
    assert plus.needs == Needs.CTX_EXPR and plus.hops == plus.halo == 2
    assert torch.isfinite(plus.loss(replace(batch, ctx_fill=None))[0])


def test_presets_and_what_overrides_them() -> None:
    def of(model: Spackle) -> tuple[object, ...]:
        return (model.rule, model.objective, model.drop_filled, model.marked, model.standardize, model.local)

    assert of(made()) == ("all", "all", 0.0, False, False, False)
    assert of(made(preset="plus")) == ("measured", "centre", 1.0, True, True, True)
    mixed = made(preset="plus", rule="all", objective="masked", drop_filled=0.25, channels="value", local=False)
    assert of(mixed) == ("all", "masked", 0.25, False, True, False)
    assert of(made(preset="plus", standardize=False)) == ("measured", "centre", 1.0, True, False, True)


@pytest.mark.parametrize(
    "arguments", [{}, {"preset": "plus"}, {"objective": "masked"}, {"legacy": "batch-axis"}, {"image": True}]
)
def test_a_gradient_reaches_every_parameter(arguments: dict[str, Any]) -> None:
    model = Spackle(DIMS, **(SMALL | arguments)).train()
    assert reached(model, make_batch()) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 1.0])
def test_dropout_of_the_feed_forward_part(p: float) -> None:
    h = torch.randn(501, 333, requires_grad=True)
    made, share = _relu_dropout(h * 1, p)
    positive = h > 0
    assert share == pytest.approx(1 - p, abs=2e-5) and not made[~positive].any()
    kept = made > 0
    assert float(kept[positive].float().mean()) == pytest.approx(1 - p, abs=0.01)
    assert torch.equal(made[kept], h[kept])
    made.sum().backward()
    assert h.grad is not None and torch.equal(h.grad, kept.float())


def test_dropout_is_random_in_training_only() -> None:
    model, batch = Spackle(DIMS, **(SMALL)).train(), make_batch()
    assert not torch.equal(model(batch), model(batch))
    assert torch.equal(model.eval()(batch), model(batch))


@pytest.mark.parametrize(("legacy", "below", "above"), [((), 0.0, 0.35), ("batch-axis", 0.8, 9.0)])
def test_only_attention_over_neighbours_learns_from_them(legacy: Any, below: float, above: float) -> None:
    """A value that a spot shares with its neighbours, and shows nothing of itself."""
    model = Spackle(DIMS, **(STILL | {"preset": "plus", "local": False, "legacy": legacy})).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    ones = torch.ones(64, SLOTS, DIMS.genes)
    for _ in range(60):
        full = torch.randn(64, 1, DIMS.genes) * ones
        batch = Batch(
            spot=torch.arange(64), section=torch.zeros(64, dtype=torch.long), y=full[:, 0], y_mask=ones[:, 0] > 0,
            ctx_expr=full, ctx_seen=ones > 0, ctx_fill=full,
        )  # fmt: skip
        optimizer.zero_grad()
        model.loss(batch)[0].backward()
        optimizer.step()
    seen = ones > 0
    seen[:, 0] = False
    error = (model.eval()(replace(batch, ctx_expr=full * seen, ctx_seen=seen)) - batch.y).square().mean()
    assert below <= float(error.detach()) < above


def test_recipes_and_text() -> None:
    paper, cpu = load_recipe("spackle", "paper"), load_recipe("spackle", "cpu")
    assert (paper.optimizer, paper.lr, paper.batch, paper.monitor) == ("adam", 1e-3, 256, "mse")
    assert paper.steps is not None and cpu.steps is not None and "preset" not in paper.args
    assert (paper.steps, paper.steps * paper.epochs, cpu.steps * cpu.epochs) == (10, 10_000, 1_000)
    assert parse("spackle[preset=plus,legacy=batch-axis]")[1] == {"preset": "plus", "legacy": "batch-axis"}
