"""SpaCKLE: sizes, which axis attends, what is masked, what may not matter, and the variant for short data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tests.models.section_batch import Sections, close, count, reached, take
from torch import Tensor, nn

from histoweave.batch import Batch, Dims, Needs
from histoweave.models import parse
from histoweave.models.complete.spackle import Spackle, _relu_dropout
from histoweave.train import load_recipe

DIMS = Dims(genes=6, emb=5)
SLOTS = 7
STILL = Spackle.tiny() | {"dropout": 0.0}


@pytest.fixture(autouse=True)
def _fixed() -> None:
    torch.manual_seed(0)


def make_batch(b: int = 12, *, whole: bool = False) -> Batch:
    """b spots with 6 neighbours: some slots empty, a spot alone, one that shows nothing, a gene never seen."""
    g = torch.Generator().manual_seed(1)
    shape = (b, SLOTS, DIMS.genes)
    full, seen = torch.rand(shape, generator=g) * 4 + 1, torch.rand(shape, generator=g) < 0.6
    if not whole:
        seen[:, 5:] &= (torch.rand(b, SLOTS - 5, generator=g) < 0.5)[..., None]
        seen[1, 1:], seen[2, 0], seen[..., 3] = False, False, False
    there = seen.any(-1, keepdim=True)
    there[:, 0] = True
    full = full * there
    return Batch(
        spot=torch.arange(b), section=torch.zeros(b, dtype=torch.long), y=full[:, 0] * seen[:, 0], y_mask=seen[:, 0],
        ctx_expr=full * seen, ctx_seen=seen, ctx_fill=full, emb=torch.randn(b, DIMS.emb, generator=g),
    )  # fmt: skip


def made(**arguments: Any) -> Spackle:
    return Spackle(DIMS, **(STILL | arguments)).eval()


def dense(model: Spackle, x: Tensor, absent: Tensor | None, *, batch_first: bool = True) -> Tensor:
    """Every token (b, t, g) by torch's own encoder with the weights of the model, padding and all."""
    first: Any = model.layers[0]
    width, hidden = first.widen.in_features, first.widen.out_features
    layer = nn.TransformerEncoderLayer(
        width, first.heads, hidden, 0.0, batch_first=batch_first, norm_first=first.before
    )
    encoder = nn.TransformerEncoder(layer, len(model.layers), enable_nested_tensor=False)
    for theirs, ours in zip(encoder.layers, model.layers, strict=True):
        names = {"qkv.": "self_attn.in_proj_", "out.": "self_attn.out_proj.", "widen": "linear1", "narrow": "linear2"}
        state = {}
        for key, value in ours.state_dict().items():
            for old, new in names.items():
                key = key.replace(old, new) if key.startswith(old) else key
            state[key] = value
        theirs.load_state_dict(state)
    with torch.no_grad():
        made = model.norm(encoder(model.lift(x), src_key_padding_mask=absent))
        return model.drop(made) * model.sd + model.mean


def absent(batch: Batch) -> Tensor:
    assert batch.ctx_seen is not None
    gone = ~batch.ctx_seen.any(-1)
    gone[:, 0] = False
    return gone


@pytest.mark.parametrize(
    ("genes", "width", "parameters"), [(128, 0, 1_219_072), (32, 0, 277_120), (32, 128, 1_194_400)]
)
def test_parameter_count(genes: int, width: int, parameters: int) -> None:
    with torch.device("meta"):
        assert count(Spackle(Dims(genes=genes), width=width)) == parameters
        assert count(Spackle(Dims(genes=genes), width=width, legacy="batch-axis")) == parameters


@pytest.mark.parametrize("arguments", [{}, {"norm": "pre", "heads": 2, "depth": 3}, {"depth": 1}])
def test_it_is_the_encoder_of_torch(arguments: dict[str, Any]) -> None:
    model, batch = made(**arguments), make_batch()
    assert batch.ctx_expr is not None and batch.ctx_seen is not None
    whole = dense(model, batch.ctx_expr, absent(batch))
    close(model(batch), whole[:, 0])  # the last layer for the centre alone, the others without padding
    there = ~absent(batch)
    close(model._complete(batch, batch.ctx_expr, batch.ctx_seen, batch.ctx_seen, there, centre=False), whole[there])


def test_the_legacy_form_is_the_encoder_of_torch_over_the_samples() -> None:
    model, batch = made(legacy="batch-axis"), make_batch(whole=True)
    assert batch.ctx_expr is not None and batch.ctx_seen is not None
    there = batch.ctx_seen.any(-1)
    whole = dense(model, batch.ctx_expr, None, batch_first=False)
    close(model(batch), whole[:, 0])
    every = model._complete(batch, batch.ctx_expr, batch.ctx_seen, batch.ctx_seen, there, centre=False)
    close(every, whole.flatten(0, 1))


def moved(batch: Batch, where: tuple[Any, ...]) -> Batch:
    """The batch with other values in a part of what is seen."""
    assert batch.ctx_expr is not None and batch.ctx_seen is not None
    values = batch.ctx_expr.clone()
    values[where] += 1.5
    return replace(batch, ctx_expr=values * batch.ctx_seen)


def test_neighbours_reach_the_centre_and_other_samples_do_not() -> None:
    model, batch = made(), make_batch(whole=True)
    assert ((model(moved(batch, (slice(None), slice(1, None)))) - model(batch)).abs().amax(1) > 0.01).all()
    assert torch.equal(model(moved(batch, (slice(1, None),)))[0], model(batch)[0])
    close(model(take(batch, torch.tensor([4]))), model(batch)[4:5])


def test_in_the_legacy_form_samples_reach_the_centre_and_neighbours_do_not() -> None:
    model, batch = made(legacy="batch-axis"), make_batch(whole=True)
    assert torch.equal(model(moved(batch, (slice(None), slice(1, None)))), model(batch))
    assert (model(moved(batch, (slice(1, None),)))[0] - model(batch)[0]).abs().max() > 0.01
    assert (model(take(batch, torch.tensor([4]))) - model(batch)[4:5]).abs().max() > 0.01


@pytest.mark.parametrize("arguments", [{}, {"preset": "plus"}, {"preset": "plus", "drop_filled": 0.5}])
def test_what_is_not_there_does_not_matter(arguments: dict[str, Any]) -> None:
    model, batch = made(**arguments), make_batch()
    model.index(Sections(batch))
    assert batch.ctx_expr is not None and batch.ctx_seen is not None and batch.ctx_fill is not None
    garbage = replace(
        batch, y=torch.full_like(batch.y, torch.nan), y_mask=~batch.y_mask,
        ctx_expr=batch.ctx_expr.masked_fill(~batch.ctx_seen, torch.nan),
        ctx_fill=batch.ctx_fill.masked_fill(absent(batch)[..., None], torch.nan),
    )  # fmt: skip
    assert torch.equal(model(batch), model(garbage)) and torch.isfinite(model(batch)).all()
    values = []
    for one in (batch, garbage):
        torch.manual_seed(3)
        values.append(model.loss(one)[0])
    assert torch.equal(*values) and values[0] > 0
    wider = replace(batch, **{
        name: torch.cat([value, torch.zeros_like(value)], 1)
        for name, value in batch.items() if name in ("ctx_expr", "ctx_seen", "ctx_fill")
    })  # fmt: skip
    close(model(wider), model(batch))


@pytest.mark.parametrize("arguments", [{}, {"preset": "plus"}, {"legacy": "batch-axis"}])
def test_nothing_visible_at_all(arguments: dict[str, Any]) -> None:
    model, batch = made(**arguments), make_batch()
    assert batch.ctx_seen is not None
    empty = replace(batch, ctx_seen=torch.zeros_like(batch.ctx_seen))
    model.index(Sections(empty))
    before = {name: value.clone() for name, value in empty.items()}
    value = model.train().loss(empty)[0]
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(model(empty)).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert all(torch.equal(value, before[name]) for name, value in empty.items())


def test_index_learns_shares_and_moments_of_the_measured_centres() -> None:
    one, two = make_batch(), take(make_batch(30), torch.arange(15, 30))
    model = made(preset="plus")
    model.index(Sections(one, two))
    values = np.concatenate([np.asarray(batch.ctx_expr)[:, 0] for batch in (one, two)])
    seen = np.concatenate([np.asarray(batch.ctx_seen)[:, 0] for batch in (one, two)])
    np.testing.assert_allclose(model.measured, seen.mean(0), rtol=1e-6)
    for gene in (0, 1, 2, 4, 5):
        np.testing.assert_allclose(model.mean[gene], values[seen[:, gene], gene].mean(), rtol=1e-5)
        np.testing.assert_allclose(model.sd[gene], values[seen[:, gene], gene].std(), rtol=1e-4)
    assert (model.mean[3], model.sd[3]) == (0, 1)  # never seen
    paper = made()
    paper.index(Sections(one, two))
    assert torch.equal(paper.measured, model.measured) and not paper.mean.any() and (paper.sd == 1).all()


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


def test_what_is_linear_may_pass_the_layers_by() -> None:
    batch, model = make_batch(), made(skip=True, channels="mask")
    assert batch.ctx_expr is not None and batch.ctx_seen is not None and model.skip is not None
    seen, there = batch.ctx_seen, ~absent(batch)
    before = [model(batch), model._complete(batch, batch.ctx_expr, seen, seen, there, centre=False)]
    nn.init.normal_(model.skip.weight)  # it was 0
    after = [model(batch), model._complete(batch, batch.ctx_expr, seen, seen, there, centre=False)]
    rows = []
    for b, t in there.nonzero().tolist():
        others = [i for i in range(SLOTS) if i != t]
        mean = batch.ctx_expr[b, others].sum(0) / (1 + seen[b, others].sum(0))
        rows.append(model.skip.weight @ torch.cat([batch.ctx_expr[b, t], seen[b, t].float(), mean]))
    more = torch.stack(rows)
    close(after[1] - before[1], more)
    close(after[0] - before[0], more[torch.cumsum(there.sum(1), 0) - there.sum(1)])


def test_medians_are_asked_for_where_they_are_used() -> None:
    batch = make_batch()
    assert made().needs == made(preset="plus", drop_filled=0.5).needs == Needs.CTX_EXPR | Needs.CTX_FILL
    plus = made(preset="plus")
    assert plus.needs == Needs.CTX_EXPR and plus.hops == plus.halo == 2
    assert torch.isfinite(plus.loss(replace(batch, ctx_fill=None))[0])


def test_presets_and_what_overrides_them() -> None:
    plus = made(preset="plus", norm="post", drop_filled=0.25)
    assert (plus.objective, plus.drop_filled, plus.marked, plus.standardize) == ("centre", 0.25, True, True)
    assert isinstance(plus.norm, nn.Identity) and isinstance(made(preset="plus").norm, nn.LayerNorm)
    assert made(preset="plus", standardize=False).standardize is False
    paper = made()
    assert (paper.objective, paper.drop_filled, paper.marked, paper.standardize) == ("all", 0.0, False, False)


def test_the_image_of_the_spot() -> None:
    batch, model = make_batch(), made(image=True)
    assert batch.emb is not None
    assert model.needs == Needs.CTX_EXPR | Needs.CTX_FILL | Needs.EMB and Needs.EMB not in made().needs
    other = replace(batch, emb=torch.cat([batch.emb[:1], batch.emb[1:] + 1]))
    change = (model(other) - model(batch)).abs().amax(1)
    assert change[0] == 0 and (change[1:] > 1e-3).all()


@pytest.mark.parametrize(
    "arguments", [{}, {"preset": "plus"}, {"objective": "masked"}, {"legacy": "batch-axis"}, {"image": True}]
)
def test_a_gradient_reaches_every_parameter(arguments: dict[str, Any]) -> None:
    model = Spackle(DIMS, **(Spackle.tiny() | arguments)).train()
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
    model, batch = Spackle(DIMS, **(Spackle.tiny())).train(), make_batch()
    assert not torch.equal(model(batch), model(batch))
    assert torch.equal(model.eval()(batch), model(batch))


@pytest.mark.parametrize(("legacy", "below", "above"), [((), 0.0, 0.35), ("batch-axis", 0.8, 9.0)])
def test_only_attention_over_neighbours_learns_from_them(legacy: Any, below: float, above: float) -> None:
    """A value that a spot shares with its neighbours, and shows nothing of itself."""
    model = Spackle(DIMS, **(STILL | {"preset": "plus", "skip": False, "legacy": legacy})).train()
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


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"preset": "pluss"}, "preset='pluss' is not one of 'paper', 'plus'; did you mean 'plus'"),
        ({"legacy": "batch"}, "legacy='batch' is not one of 'batch-axis'"),
        ({"objective": "center"}, "objective='center' is not one of"),
        ({"rate": 0.0}, "rate=0.0"),
        ({"drop_filled": 1.5}, "drop_filled=1.5"),
        ({"preset": "plus", "legacy": "batch-axis"}, "skip=True lets them in: turn one off"),
        ({"heads": 3}, "width 32 cannot be split into 3 heads"),
        ({"hops": 0}, "hops=0; expected a whole number of 1 or more"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Spackle(DIMS, **(STILL | arguments))


def test_a_batch_without_neighbours_is_named() -> None:
    with pytest.raises(ValueError, match="the batch has no 'ctx_expr'"):
        made()(replace(make_batch(), ctx_expr=None))
