"""What completes, and what learns from what was completed: measured values stay, validation hides, arms differ."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from anndata import AnnData

from histoweave.batch import Needs
from histoweave.data.holdout import Entries, Holdout, Thin, parse_hide
from histoweave.data.phantom import Phantom
from histoweave.data.section import Cohort, Section
from histoweave.data.split import leave_one_out
from histoweave.data.store import Store
from histoweave.feed import Feed
from histoweave.models import list_models, model_class
from histoweave.pp.counts import Target
from histoweave.train import Learner, Recipe, predictor, resolve
from histoweave.train.layers import complete, completers
from histoweave.view import View

QUICK = Recipe(name="quick", epochs=2, batch=64, lr=1e-3)


@pytest.fixture
def cpm(view: View) -> View:
    return replace(view, target=Target.preset("log1p-cpm"))


def learner(name: str, view: View, store: Store) -> Learner:
    return Learner(name, view, store, recipe=replace(QUICK, args=model_class(name.partition("[")[0]).tiny()))


@pytest.mark.parametrize("name", completers())
def test_measured_values_stay_to_the_bit(name: str, small: Phantom, cpm: View, shared_store: Store) -> None:
    fitted = learner(name, cpm, shared_store).fit(small.cohort)
    made = complete(fitted, small.cohort)
    assert fitted.fitted is not None
    truth = [fitted.fitted.truth(section, zeros=False) for section in small.cohort]
    values, measured = (np.concatenate([pair[i] for pair in truth]) for i in (0, 1))
    assert measured.any() and not measured.all()
    assert np.array_equal(np.asarray(made.X)[measured], values[measured])
    assert np.array_equal(made.layers["measured"].toarray(), measured)
    assert np.isfinite(made.X).all()


@pytest.mark.parametrize("name", [n for n in completers() if n != "zero"])
def test_sections_never_mix(name: str, small: Phantom, cpm: View, shared_store: Store) -> None:
    """What a section is completed to does not depend on which others are completed with it."""
    fitted = learner(name, cpm, shared_store).fit(small.cohort[:2])
    together = fitted.predict(small.cohort)
    alone = fitted.predict(Cohort([small.cohort[2]]))
    assert np.array_equal(together[alone.obs_names].X, alone.X)


def test_validation_hides_the_same_entries_every_time(small: Phantom, cpm: View) -> None:
    needs = Needs.EXPR | Needs.CTX_EXPR
    feed = Feed(cpm.fit(small.cohort), small.cohort, {}, needs, zeros=False)
    hidden = feed.hiding(0.3)
    before, after = feed.batch(torch.arange(feed.n)), hidden.batch(torch.arange(feed.n))
    again = feed.hiding(0.3).batch(torch.arange(feed.n))
    assert after.seen is not None and before.seen is not None and after.ctx_seen is not None
    assert torch.equal(after.y_mask, again.y_mask)
    assert not (after.seen & after.y_mask).any()  # what is scored is not shown
    assert torch.equal(after.seen | after.y_mask, before.seen)
    assert torch.equal(after.ctx_seen[:, 0], after.seen)
    assert float(after.y_mask.sum() / before.seen.sum()) == pytest.approx(0.3, abs=0.03)
    assert torch.equal(after.y[after.y_mask], before.y[after.y_mask])


def test_a_layer_is_what_is_learnt(small: Phantom, cpm: View, shared_store: Store) -> None:
    """The mean of the training spots, by arm: with zeros, over measured entries, and over completed values."""
    train = small.cohort[:2]
    made = {
        layer: Learner(f"mean[layer={layer}]", cpm, shared_store).fit(train).predict(small.cohort[2:]).X[0]
        for layer in ("raw", "measured", "gene-mean", "median")
    }
    fitted = cpm.fit(train)
    pairs = [fitted.truth(section) for section in train]
    y, ok = (np.concatenate([pair[i] for pair in pairs]) for i in (0, 1))
    np.testing.assert_allclose(made["raw"], np.where(ok, y, 0).sum(axis=0) / ok.sum(axis=0), rtol=1e-5)
    seen = np.concatenate([fitted.truth(section, zeros=False)[1] for section in train])
    np.testing.assert_allclose(made["measured"], np.where(seen, y, 0).sum(axis=0) / seen.sum(axis=0), rtol=1e-5)
    np.testing.assert_allclose(made["gene-mean"], made["measured"], rtol=1e-5)  # means filled in change no mean
    assert not np.allclose(made["median"], made["measured"])


def test_a_layer_and_delta_go_together(small: Phantom, cpm: View, shared_store: Store) -> None:
    plain, centred = (
        Learner(f"ridge[layer=gene-mean{more}]", cpm, shared_store).fit(small.cohort[:2]).predict(small.cohort[2:]).X
        for more in ("", ",delta=on")
    )
    np.testing.assert_allclose(plain, centred, atol=1e-3)  # ridge has an intercept


def test_what_a_completer_centres_is_what_was_measured(small: Phantom, cpm: View, shared_store: Store) -> None:
    fitted = Learner("zero[delta=on]", cpm, shared_store).fit(small.cohort).fitted
    assert fitted is not None and fitted.center is not None
    pairs = [fitted.truth(section, zeros=False) for section in small.cohort]
    y, seen = (np.concatenate([pair[i] for pair in pairs]) for i in (0, 1))
    assert not seen.all()
    np.testing.assert_allclose(fitted.center, np.where(seen, y, 0).sum(axis=0) / seen.sum(axis=0), rtol=1e-5)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("ridge[layer=ridge]", "does not complete"),
        ("median[layer=measured]", "leave layer="),
        ("ridge[layer=medain]", "did you mean 'median'"),
    ],
)
def test_wrong_layers_are_named(model: str, says: str, cpm: View, shared_store: Store) -> None:
    with pytest.raises(ValueError, match=says):
        Learner(model, cpm, shared_store)


def test_targets_in_which_zero_is_a_value_are_refused(small: Phantom, view: View, shared_store: Store) -> None:
    for text in ("triplex-paper", "log1p-cpm[pseudo=0.5]"):
        other = replace(view, target=Target.parse(text))
        for model in ("median", "ridge[layer=measured]"):
            with pytest.raises(ValueError, match="log1p-cpm"):
                Learner(model, other, shared_store).fit(small.cohort)


def test_sections_without_counts_cannot_be_completed(small: Phantom, cpm: View, shared_store: Store) -> None:
    fitted = Learner("gene-mean", cpm, shared_store).fit(small.cohort[:2])
    bare = Holdout(leave_one_out(small.cohort)[2]).given(small.cohort)[1]
    with pytest.raises(ValueError, match="have none"):
        fitted.predict(bare)
    with pytest.raises(ValueError, match=r"those that do: .*median"):
        complete(Learner("mean", cpm, shared_store).fit(small.cohort), small.cohort)


def test_the_rule_of_the_paper_hides_all_of_rare_genes(small: Phantom) -> None:
    section = small.cohort[0]
    hidden = Holdout(leave_one_out(small.cohort)[0], Entries(0.3, of="all")).hidden(section)
    fraction = np.asarray((section.spots.X > 0).mean(axis=0)).ravel()
    share = np.asarray(hidden.mean(axis=0)).ravel()
    assert (share[fraction <= 0.3] == fraction[fraction <= 0.3]).all()
    assert share[fraction > 0.3].mean() == pytest.approx(0.3, abs=0.03)


def test_thinning_keeps_zeros_and_adds_up(small: Phantom) -> None:
    holdout = Holdout(leave_one_out(small.cohort)[0], Thin(0.4))
    section = small.cohort[0]
    shown, held = holdout.shown(Cohort([section]))[0], holdout.held(section)
    assert np.array_equal((shown.spots.X + held).toarray(), section.spots.X.toarray())
    assert held.sum() / section.spots.X.sum() == pytest.approx(0.4, abs=0.02)
    assert np.array_equal(shown.library, np.asarray(shown.spots.X.sum(axis=1)).ravel())
    assert "oracle" not in " ".join(shown.spots.obs.columns)


@pytest.mark.parametrize(
    "text", ["entries", "entries:x", "entries:0.3:some", "thin:2", "genes:first:0", "genes:last:3", "al"]
)
def test_wrong_hides_are_named(text: str) -> None:
    with pytest.raises(ValueError, match="hide"):
        parse_hide(text, ["A", "B", "C"])


def test_genes_are_hidden_by_place_by_seed_and_by_name() -> None:
    genes = [f"g{i}" for i in range(10)]
    assert parse_hide("genes:first:8", genes).names == ("g8", "g9")  # type: ignore[union-attr]
    assert parse_hide("genes:list:g3,g1", genes).names == ("g1", "g3")  # type: ignore[union-attr]
    drawn = parse_hide("genes:random:8:1", genes).names  # type: ignore[union-attr]
    assert len(drawn) == 2 and drawn == parse_hide("genes:random:8:1", genes).names  # type: ignore[union-attr]


def test_there_are_completers() -> None:
    assert {"median", "sme", "spackle", "ridge-visible"} <= set(completers()) <= set(list_models())


@pytest.mark.parametrize("name", ["mlp", "gnn"])  # batches of spots, and whole sections
def test_what_is_filled_in_decides_nothing(
    name: str, small: Phantom, cpm: View, shared_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training stops on measured entries: garbage in the gaps of held-out spots changes no validation score."""
    recipe = Recipe(name="tiny", args=model_class(name).tiny(), epochs=3, batch=64, lr=1e-3)
    real = predictor.filled_values

    def garbled(filler: Learner, train: Cohort) -> dict[str, np.ndarray]:
        made, start = real(filler, train), 0
        held = Feed(cpm.fit(train), train, {}, Needs.NONE).inner.fold == 0
        for section in train:
            gaps = ~filler.fitted.truth(section, zeros=False)[1]  # type: ignore[union-attr]
            gaps &= held[start : start + section.n, None]
            made[section.id], start = np.where(gaps, np.float32(1e3), made[section.id]), start + section.n
        return made

    scores = []
    for fill in (real, garbled):
        monkeypatch.setattr(predictor, "filled_values", fill)
        fitted = Learner(f"{name}[layer=gene-mean]", cpm, shared_store, recipe=recipe).fit(small.cohort)
        scores.append([(row["val_mse"], row["val_pcc"]) for row in fitted.history.rows])
    assert scores[0] == scores[1]


def test_other_sections_decide_by_what_is_measured(small: Phantom, cpm: View, shared_store: Store) -> None:
    recipe = Recipe(name="tiny", epochs=3, batch=64, lr=1e-3)
    fitted = Learner("mlp[layer=gene-mean,delta=on]", cpm, shared_store, recipe=recipe)
    fitted.fit(small.cohort[:2], small.cohort[2:])
    assert fitted.fitted is not None
    truth, seen = fitted.fitted.truth(small.cohort[2], zeros=False)
    assert not seen.all()
    error = (np.asarray(fitted.predict(small.cohort[2:]).X) - truth)[seen]
    told = fitted.history.rows[fitted.history.best_epoch]["val_mse"]
    assert told == pytest.approx(float(np.square(error, dtype=np.float64).mean()), rel=1e-4)


def test_a_completed_cohort_is_predicted_once(
    small: Phantom, cpm: View, shared_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted = learner("gene-mean", cpm, shared_store).fit(small.cohort)
    real, calls = Learner._whole, list[str]()

    def counted(self: Learner, section: Section) -> AnnData:
        calls.append(section.id)
        return real(self, section)

    monkeypatch.setattr(Learner, "_whole", counted)
    complete(fitted, small.cohort)
    assert calls == list(small.cohort.ids)


def test_a_filler_is_trained_as_published_under_the_recipe_of_spared(
    small: Phantom, cpm: View, shared_store: Store
) -> None:
    spec = resolve("stnet[layer=spackle]", "spared")
    assert spec.filler is not None and spec.recipe.lr == 1e-4
    paper = resolve("spackle", "paper").recipe.to_dict()
    assert spec.filler.recipe.to_dict() == {**paper, "name": "spared"} and paper["lr"] == 1e-3
    assert spec.filler.recipe.steps * spec.filler.recipe.epochs == 10_000  # type: ignore[operator]
    fitted = Learner("mean[layer=low-rank]", cpm, shared_store, recipe="spared").fit(small.cohort)
    assert fitted.describe()["layer_recipe"] == resolve("low-rank", "spared").recipe.to_dict()
    assert Learner("mean", cpm, shared_store).fit(small.cohort).describe()["layer_recipe"] is None


def test_what_a_filler_looks_at_is_known_before_anything_is_fitted(
    small: Phantom, cpm: View, shared_store: Store
) -> None:
    spec = resolve("mean[layer=sme]", "tiny")
    assert spec.sees == Needs.EMB and spec.embeds and not spec.looks
    assert not resolve("mean[layer=sme[weights=ge]]", "tiny").embeds
    bare = Cohort([small.cohort[0], small.cohort[1], replace(small.cohort[2], image=None)])
    with pytest.raises(ValueError, match=r"model 'sme' looks at images, and 1 of 3 sections have none"):
        Learner("mean[layer=sme]", cpm, shared_store).fit(bare)
    fitted = Learner("mean[layer=sme]", cpm, shared_store).fit(small.cohort)
    assert fitted.predict(bare).n_obs == bare.n  # where it predicts, nothing is filled in
