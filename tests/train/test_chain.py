"""Two stages: the first one's features and predictions are what the second starts from; delta is added back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from histoweave.bench.benchmark import Benchmark
from histoweave.data.holdout import Holdout
from histoweave.data.phantom import Phantom
from histoweave.data.section import Cohort
from histoweave.data.split import leave_one_out
from histoweave.data.store import Store
from histoweave.models import blank, parse
from histoweave.train import Learner, Recipe, load_predictor, resolve
from histoweave.view import View

QUICK = Recipe(name="tiny", epochs=2, batch=64, lr=1e-3)
SECOND = replace(QUICK, args={"pre": (16,), "graph": (16,), "first": "stnet[trunk=frozen,delta=on]"})


def test_brackets_nest() -> None:
    assert parse("sepal[first=stnet[trunk=frozen,delta=on],hops=2]")[1] == {
        "first": "stnet[trunk=frozen,delta=on]",
        "hops": 2,
    }


def test_a_spec_keeps_what_is_common_from_the_model() -> None:
    spec = resolve("sepal[first=stnet,hops=3,delta=on]", "tiny")
    assert spec.hops == 3 and spec.delta and spec.first is not None and spec.first.name == "stnet"
    assert spec.first.recipe.name == "tiny" and not {"first", "delta"} & set(spec.args)
    assert spec.trains and spec.embeds
    with pytest.raises(ValueError, match="cannot be the first stage of 'sepal': it has no features"):
        resolve("sepal[first=mean]", "tiny")
    with pytest.raises(ValueError, match="no argument 'frist'; did you mean 'first'"):
        resolve("sepal[frist=stnet]", "tiny")


def test_the_first_stage_learns_from_the_same_layer() -> None:
    for layer in ("measured", "median", "spackle[rate=0.5]"):
        spec = resolve(f"sepal[layer={layer}]", "cpu")
        assert spec.first is not None and spec.first.name == "vitb" and spec.first.delta
        assert (spec.first.layer, spec.first.filler) == (spec.layer, spec.filler) and spec.layer == layer
    kept = resolve("sepal[layer=median,first=stnet[layer=raw]]", "cpu")
    assert kept.first is not None and (kept.first.layer, kept.layer) == ("raw", "median")
    plain = resolve("sepal", "cpu")
    assert plain.first is not None and plain.first.text == "vitb[delta=on]"


def test_the_recipes_of_all_stages_are_told() -> None:
    told = resolve("sepal[layer=spackle,lr=0.5]", "cpu").recipes
    assert told["own"]["lr"] == 0.5 and told["filler"]["own"] == resolve("spackle", "cpu").recipe.to_dict()
    assert told["first"]["filler"] == told["filler"] and told["first"]["first"] is None
    json.dumps(told)


def test_the_second_stage_corrects_the_first(small: Phantom, view: View, shared_store: Store, tmp_path: Path) -> None:
    learner = Learner("sepal", view, shared_store, recipe=SECOND).fit(small.cohort)
    assert learner.first is not None and learner.first.module is not None and learner.module is not None
    alone, both = learner.first.predict(small.cohort), learner.predict(small.cohort)
    assert not np.allclose(alone.X, both.X)
    with torch.no_grad():
        for p in learner.module.head.parameters():  # type: ignore[union-attr, operator]
            p.zero_()
    np.testing.assert_allclose(learner.predict(small.cohort).X, alone.X, atol=1e-6)


def test_both_stages_are_saved(small: Phantom, view: View, shared_store: Store, tmp_path: Path) -> None:
    learner = Learner("sepal", view, shared_store, recipe=SECOND).fit(small.cohort)
    learner.save(tmp_path / "model")
    loaded = load_predictor(tmp_path / "model", shared_store)
    assert np.array_equal(learner.predict(small.cohort).X, loaded.predict(small.cohort).X)
    assert loaded.describe()["first"]["model"] == "stnet[trunk=frozen,delta=on]"


def test_no_stage_sees_what_is_hidden(small: Phantom, view: View, shared_store: Store) -> None:
    holdout = Holdout(leave_one_out(small.cohort)[0])
    made = []
    for cohort in (small.cohort, holdout.garble(small.cohort, seed=4)):
        train, test = holdout.given(cohort)
        made.append(Learner("sepal", view, shared_store, recipe=SECOND).fit(train).predict(test).X)
    assert np.array_equal(*made)


def test_delta_is_learnt_from_training_and_added_back(small: Phantom, view: View, shared_store: Store) -> None:
    frozen = replace(QUICK, args={"trunk": "frozen", "delta": True})
    learner = Learner("stnet", view, shared_store, recipe=frozen).fit(small.cohort)
    assert learner.fitted is not None and learner.fitted.center is not None
    values = [learner.fitted.truth(section) for section in small.cohort]
    y, mask = (np.concatenate(part) for part in zip(*values, strict=True))
    np.testing.assert_allclose(learner.fitted.center, (y * mask).sum(0) / mask.sum(0), rtol=1e-5)
    feed = learner._feed(small.cohort)
    assert float(feed.y_mean().abs().max()) < 1e-5 and not feed._y[~feed._mask].any()
    plain = Learner("mean", view, shared_store).fit(small.cohort)
    moved = Learner("mean[delta=on]", view, shared_store).fit(small.cohort)
    np.testing.assert_allclose(plain.predict(small.cohort).X, moved.predict(small.cohort).X, atol=1e-5)
    np.testing.assert_allclose(feed._y.numpy()[mask], (y - learner.fitted.center)[mask], atol=1e-6)


def test_what_is_kept_apart_is_the_highest_rung_of_the_walked_spots(
    small: Phantom, view: View, shared_store: Store
) -> None:
    feed = Learner("mean", view, shared_store).fit(small.cohort)._feed(small.cohort)
    assert feed.inner_unit().unique().tolist() == [0, 1, 2]
    one = feed.only(feed._section == 1)
    units = one.inner_unit()
    assert len(units.unique()) == 5 and len(units) == small.cohort[1].n
    two = Cohort([small.cohort[0], replace(small.cohort[1], patient=small.cohort[0].patient)])
    assert Learner("mean", view, shared_store).fit(two)._feed(two).inner_unit().unique().tolist() == [0, 1]


def test_an_encoder_can_be_a_trunk(small: Phantom) -> None:
    spec = resolve("tem[trunk=h-optimus-0]", "cpu")
    trunk = blank("tem", spec.args).trunk  # type: ignore[attr-defined]
    assert trunk.name == "vit_giant_patch14_reg4_dinov2" and trunk.net.num_features == 1536
    card = json.loads(spec.args["trunk"].partition("?")[2])
    assert card["mean"] == [0.707223, 0.578729, 0.703617]
    assert resolve("tem[trunk=resnet50]", "cpu").args["trunk"].startswith("resnet50?")
    with pytest.raises(ValueError, match="can only be used frozen"):
        resolve("tem[trunk=efficientnet-lite0]", "cpu")


def test_counts_are_named_and_kept_out_of_tables(
    small: Phantom, view: View, shared_store: Store, tmp_path: Path
) -> None:
    learner = Learner("poisson[scale=counts]", view, shared_store).fit(small.cohort)
    made = learner.predict(small.cohort)
    assert made.uns["histoweave"]["units"] == "expected counts at the median library" and (made.X >= 0).all()
    with pytest.raises(ValueError, match="predict counts, and every model of a table is scored on its target"):
        Benchmark(
            name="counts",
            cohort=small.cohort,
            splits=tuple(leave_one_out(small.cohort)),
            view=view,
            models=("nb[scale=counts]",),
        )
