"""SpaCKLE: sizes, which axis attends, and what may not matter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tests.models.section_batch import Sections, close, count, take
from tests.models.spackle_batch import DIMS, STILL, absent, dense, made, make_batch, moved

from histoweave.batch import Dims, Needs
from histoweave.models.complete.spackle import Spackle


@pytest.fixture(autouse=True)
def _fixed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("genes", "width", "parameters"), [(128, 0, 1_219_072), (32, 0, 277_120), (32, 128, 1_194_400)]
)
def test_parameter_count(genes: int, width: int, parameters: int) -> None:
    with torch.device("meta"):
        assert count(Spackle(Dims(genes=genes), width=width)) == parameters
        assert count(Spackle(Dims(genes=genes), width=width, legacy="batch-axis")) == parameters


@pytest.mark.parametrize("arguments", [{}, {"heads": 2, "depth": 3}, {"depth": 1}])
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


def test_the_image_of_the_spot() -> None:
    batch, model = make_batch(), made(image=True)
    assert batch.emb is not None
    assert model.needs == Needs.CTX_EXPR | Needs.CTX_FILL | Needs.EMB and Needs.EMB not in made().needs
    other = replace(batch, emb=torch.cat([batch.emb[:1], batch.emb[1:] + 1]))
    change = (model(other) - model(batch)).abs().amax(1)
    assert change[0] == 0 and (change[1:] > 1e-3).all()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"preset": "pluss"}, "preset='pluss' is not one of 'paper', 'plus'; did you mean 'plus'"),
        ({"legacy": "batch"}, "legacy='batch' is not one of 'batch-axis'"),
        ({"objective": "center"}, "objective='center' is not one of"),
        ({"rate": 0.0}, "rate=0.0"),
        ({"drop_filled": 1.5}, "drop_filled=1.5"),
        ({"preset": "plus", "legacy": "batch-axis"}, "local=True does not: turn one off"),
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
