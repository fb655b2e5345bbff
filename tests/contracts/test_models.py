"""The contract: what every model of the table keeps. A new line in the table joins these tests; no model is named here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from histoweave.batch import Batch, Card, Dims, Needs
from histoweave.data.image import SlideImage
from histoweave.data.phantom import Phantom
from histoweave.data.section import Cohort
from histoweave.data.store import Store
from histoweave.feed import Feed, Sequencing
from histoweave.models import blank, card_of, create, describe, list_models, model_class, needs_of
from histoweave.pp.counts import Target
from histoweave.train import Learner, Recipe, load_predictor
from histoweave.view import View

ALL = list_models()
BY_GRADIENT = [name for name in ALL if card_of(name).learns == "gradient"]
FITTED = [name for name in ALL if card_of(name).learns in ("closed-form", "retrieval")]
LOOKING_UP = [name for name in ALL if card_of(name).learns == "retrieval" or card_of(name).retrieves]
ALWAYS = {"spot", "section", "y", "y_mask"}
GIVES = {
    Needs.WINDOW: {"window"},
    Needs.EMB: {"emb"},
    Needs.CTX_EMB: {"ctx_emb", "ctx_mask"},
    Needs.EXPR: {"expr", "seen"},
    Needs.FILL: {"fill"},
    Needs.CTX_EXPR: {"ctx_expr", "ctx_seen"},
    Needs.CTX_FILL: {"ctx_fill"},
    Needs.POOL: {"pool_emb", "pool_rc", "pool_mask", "pool_row"},
    Needs.NBR: {"nbr"},
    Needs.XY: {"xy", "edge"},
    Needs.ARRAY_XY: {"array_xy"},
    Needs.COUNTS: {"counts", "library"},
    Needs.PATIENT: {"patient"},
    Needs.PRIOR: {"prior"},
    Needs.POOLED: {"pooled"},
    Needs.ADJACENCY: {"adjacency"},
    Needs.ADJACENCY_RAW: {"adjacency_raw"},
    Needs.SHARED: {"shared"},
    Needs.REGION: {"region", "region_of", "patch_rc"},
    Needs.SEQ: {"seq"},
    Needs.WHOLE_SECTION: set(),
}


def suited(name: str, view: View, cohort: Cohort) -> View:
    """The view with what the task asks for: a target in which 0 is an entry that is missing, or genes to impute from."""
    task, genes = card_of(name).task, cohort.genes("common")
    if task == "complete":
        return replace(view, target=Target.preset("log1p-cpm"))
    if task == "impute":
        return replace(view, target=Target.preset("share"), panel=f"list:{','.join(genes[6:])}", shared=genes[:6])
    return view


def feed_for(name: str, cohort: Cohort, view: View, store: Store) -> Feed:
    model = blank(name, model_class(name).tiny())
    needs, view = model.needs, suited(name, view, cohort)
    features = view.embed(cohort, needs, store)
    zeros = card_of(name).task != "complete"
    hops = getattr(model, "hops", 1)
    how = Sequencing(*getattr(model, "sequencing", ()))
    return Feed(view.fit(cohort, features), cohort, features, needs, hops=hops, zeros=zeros, sequencing=how)


def build(name: str, feed: Feed, *, dropout: bool = True) -> nn.Module:
    """The model at its tiny size, indexed."""
    torch.manual_seed(0)
    dims = Dims(genes=len(feed.view.genes), emb=feed.width, shared=len(feed.view.view.shared))
    module = create(name, dims, **model_class(name).tiny())
    assert isinstance(module, nn.Module)
    if not dropout:
        for part in module.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0
    if hasattr(module, "index"):
        module.index(feed)
    return module


@pytest.mark.parametrize("name", ALL)
def test_card_needs_and_description(name: str) -> None:
    card = card_of(name)
    assert isinstance(card, Card) and card.title and card.citation
    row = describe(name)
    assert row["name"] == name and row["parameters"] >= 0
    assert isinstance(needs_of(name, {}), Needs)


@pytest.mark.parametrize("name", ALL)
def test_shape_and_only_declared_fields(name: str, small: Phantom, view: View, shared_store: Store) -> None:
    feed = feed_for(name, small.cohort, view, shared_store)
    module = build(name, feed).eval()
    declared = set.union(ALWAYS, *(fields for need, fields in GIVES.items() if need in feed.needs))
    for batch in feed.batches(17):
        assert {field for field, _ in batch.items()} == declared
        out = module(batch)
        assert out.shape == batch.y.shape and out.dtype == torch.float32 and torch.isfinite(out).all()
        value, parts = module.loss(batch)
        assert value.ndim == 0 and torch.isfinite(value) and parts


@pytest.mark.parametrize("name", BY_GRADIENT)
def test_a_gradient_reaches_every_parameter(name: str, small: Phantom, view: View, shared_store: Store) -> None:
    feed = feed_for(name, small.cohort, view, shared_store)
    module = build(name, feed).train()
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-2)
    reached: set[str] = set()
    for _ in range(2):  # a head that starts at zero lets nothing through in the first step
        batch = next(feed.batches(32, generator=torch.Generator().manual_seed(1)))
        optimizer.zero_grad()
        module.loss(batch)[0].backward()
        reached |= {key for key, p in module.named_parameters() if p.grad is not None and bool((p.grad != 0).any())}
        optimizer.step()
    assert reached == {key for key, p in module.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("name", BY_GRADIENT)
def test_no_pixel_is_decoded_in_an_epoch(
    name: str, small: Phantom, view: View, shared_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = feed_for(name, small.cohort, view, shared_store)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a slide was read")

    for reading in ("windows", "held"):
        monkeypatch.setattr(SlideImage, reading, refuse)
    module = build(name, feed).train()
    for batch in feed.batches(64, generator=torch.Generator().manual_seed(0)):
        assert torch.isfinite(module.loss(batch)[0])


@pytest.mark.parametrize("name", ALL)
def test_evaluation_is_deterministic_and_ignores_batch_mates(
    name: str, small: Phantom, view: View, shared_store: Store
) -> None:
    feed = feed_for(name, small.cohort, view, shared_store)
    module = build(name, feed).eval()
    rows = torch.arange(0, feed.n, 5)
    together, again = module(some(feed, rows)), module(some(feed, rows))
    assert torch.equal(together, again)
    if Needs.WHOLE_SECTION not in feed.needs and Needs.SEQ not in feed.needs:
        alone = torch.cat([module(feed.batch(rows[i : i + 1])) for i in range(len(rows))])
        torch.testing.assert_close(together, alone, atol=2e-5, rtol=2e-5)


def some(feed: Feed, rows: Tensor) -> Batch:
    """The batch of these rows; the first one for models of sequences, which only the feed can make."""
    return next(feed.batches(64)) if Needs.SEQ in feed.needs else feed.batch(rows)


def padded(batch: Batch) -> Batch:
    """The batch with garbage in everything that is masked out, and more of it."""
    made = replace_fields(batch)
    if made.expr is not None and made.seen is not None:
        made.expr = torch.where(made.seen, made.expr, torch.full_like(made.expr, 7.0))
    if made.ctx_expr is not None and made.ctx_seen is not None:
        made.ctx_expr = torch.where(made.ctx_seen, made.ctx_expr, torch.full_like(made.ctx_expr, 7.0))
    if made.ctx_emb is not None and made.ctx_mask is not None:
        made.ctx_emb = torch.where(made.ctx_mask[..., None], made.ctx_emb, torch.full_like(made.ctx_emb, 7.0))
    if made.pool_emb is not None and made.pool_mask is not None and made.pool_rc is not None:
        s, n, d = made.pool_emb.shape
        wide = n + 3
        made.pool_emb = torch.cat([made.pool_emb, torch.full((s, 3, d), 7.0)], dim=1)
        made.pool_emb[:, :n][~made.pool_mask] = 7.0
        made.pool_mask = torch.cat([made.pool_mask, torch.zeros(s, 3, dtype=torch.bool)], dim=1)
        made.pool_rc = torch.cat([made.pool_rc, torch.ones(s, 3, 2, dtype=torch.long)], dim=1)
        assert made.pool_row is not None
        made.pool_row = made.pool_row // n * wide + made.pool_row % n
    if made.y is not None:
        made.y = torch.where(made.y_mask, made.y, torch.full_like(made.y, 7.0))
    return made


def replace_fields(batch: Batch) -> Batch:
    return Batch(**{key: value.clone() for key, value in batch.items()})


@pytest.mark.parametrize("name", ALL)
def test_padding_does_not_matter(name: str, small: Phantom, view: View, shared_store: Store) -> None:
    feed = feed_for(name, small.cohort, view, shared_store)
    module = build(name, feed).eval()
    batch = some(feed, torch.arange(3, feed.n, 7))
    torch.testing.assert_close(module(batch), module(padded(batch)), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", ALL)
def test_permuting_spots_permutes_predictions(name: str, small: Phantom, view: View, shared_store: Store) -> None:
    learner = tiny_learner(name, view, shared_store, small.cohort).fit(small.cohort)
    section = small.cohort[0]
    order = np.random.default_rng(0).permutation(section.n)
    moved = section.with_spots(section.spots[order].copy())
    straight, shuffled = learner.predict(Cohort([section])), learner.predict(Cohort([moved]))
    np.testing.assert_allclose(straight.X[order], shuffled.X, atol=2e-5, rtol=2e-5)
    assert list(straight.obs_names[order]) == list(shuffled.obs_names)


def tiny_learner(name: str, view: View, store: Store, cohort: Cohort) -> Learner:
    recipe = Recipe(name="quick", args=model_class(name).tiny(), epochs=2, batch=64, lr=1e-3)
    return Learner(name, suited(name, view, cohort), store, recipe=recipe)


@pytest.mark.parametrize("name", ALL)
def test_save_and_load_give_the_same_predictions(
    name: str, small: Phantom, view: View, shared_store: Store, tmp_path: Path
) -> None:
    fitted = tiny_learner(name, view, shared_store, small.cohort).fit(small.cohort)
    fitted.save(tmp_path / "model")
    loaded = load_predictor(tmp_path / "model", shared_store)
    before, after = fitted.predict(small.cohort), loaded.predict(small.cohort)
    assert np.array_equal(before.X, after.X)
    assert before.uns["histoweave"]["card"] == after.uns["histoweave"]["card"]
    assert not list((tmp_path / "model").glob("*.p*kl*")) and len(list((tmp_path / "model").iterdir())) <= 3


@pytest.mark.parametrize("name", BY_GRADIENT)
def test_sixteen_spots_can_be_learnt_by_heart(name: str, small: Phantom, view: View, shared_store: Store) -> None:
    one = small.cohort[0]  # two patients with the same spots: what is looked up stands with the other one
    feed = feed_for(name, Cohort([one, replace(one, id="twin", patient="twin")]), view, shared_store)
    chosen = torch.zeros(feed.n, dtype=torch.bool)
    chosen[torch.arange(0, one.n, one.n // 16)[:16]] = True
    part = feed.only(chosen)
    module = build(name, feed, dropout=False).train()
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    batch = next(part.batches(16 if Needs.SEQ not in part.needs else 10_000))  # sequences of all regions
    spread = float(((batch.y - batch.y.mean(dim=0)) ** 2)[batch.y_mask].mean())
    for _ in range(400):
        optimizer.zero_grad()
        module.loss(batch)[0].backward()
        optimizer.step()
        if error(module, batch) < 0.1 * spread:
            break
    assert error(module, batch) < 0.1 * spread


def error(module: nn.Module, batch: Batch) -> float:
    """Squared error in training mode: normalisation uses the batch, and trunks see turned windows, so it stays above 0."""
    with torch.no_grad():
        out: Tensor = module(batch)
    return float(((out - batch.y) ** 2)[batch.y_mask].mean())


@pytest.mark.parametrize("name", LOOKING_UP)
def test_what_is_looked_up_changes_the_prediction(name: str, small: Phantom, view: View, shared_store: Store) -> None:
    feed = feed_for(name, small.cohort, view, shared_store)
    module = build(name, feed).eval()
    batch = next(feed.batches(64))
    before = module(batch)
    state = module.state_dict()
    kept = {key: value for key, value in module.named_buffers() if value.shape[-1:] == (batch.y.shape[1],)}
    assert kept, "the expression that is looked up is a buffer (n, g)"
    for key, value in kept.items():
        state[key] = value + torch.randn(value.shape, generator=torch.Generator().manual_seed(2))
    module.load_state_dict(state)
    assert not torch.allclose(before, module(batch))


@pytest.mark.parametrize("name", FITTED)
def test_retrieval_and_closed_form_use_the_expression(
    name: str, small: Phantom, view: View, shared_store: Store
) -> None:
    feed = feed_for(name, small.cohort, view, shared_store)
    batch = feed.batch(torch.arange(8))
    before = build(name, feed).eval()(batch)
    feed._y = feed._y + torch.arange(feed._y.shape[1])
    assert not torch.allclose(before, build(name, feed).eval()(batch))


def test_an_image_model_names_the_sections_without_one(small: Phantom, view: View, shared_store: Store) -> None:
    bare = Cohort([replace(small.cohort[0], image=None), *small.cohort[1:]])
    with pytest.raises(ValueError, match=r"--sections with-image") as caught:
        tiny_learner("ridge", view, shared_store, bare).fit(bare)
    assert small.cohort[0].id in str(caught.value)
