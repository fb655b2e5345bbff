"""The search among settings: which combinations there are, which wins, and what is kept."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from histoweave.bench.benchmark import Benchmark
from histoweave.bench.plan import TooLong, plan
from histoweave.bench.search import search, tune, variants
from histoweave.bench.sides import SidedBenchmark
from histoweave.data.image import Window
from histoweave.data.phantom import phantom
from histoweave.data.section import Cohort
from histoweave.data.split import Split
from histoweave.data.store import Store
from histoweave.pp.counts import Target
from histoweave.train import Learner, load_recipe, recipe, resolve
from histoweave.view import View

MLP = "mlp[components=4,hidden=8]"


@pytest.fixture(scope="module")
def cohort() -> Cohort:
    genes: Any = {"local": 4, "neighbourhood": 0, "global": 0, "noise": 0}
    return phantom(n_patients=4, spots=(6, 6), genes=genes, um_per_px=10.0, seed=3).cohort


@pytest.fixture(scope="module")
def view() -> View:
    return View(
        target=Target.preset("log1p-counts"), panel="top-mean:4", encoder="tiny", window=Window(um=200.0, out=32)
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


def test_every_combination_is_written_as_a_model() -> None:
    made = variants("gnn", {"hidden": [8, 16], "lr": [1e-4], "optimizer": ["adam", "nadam"]})
    assert list(made) == [
        f"gnn[hidden={hidden},lr=0.0001,optimizer={optimizer}]" for hidden in (8, 16) for optimizer in ("adam", "nadam")
    ]
    assert made["gnn[hidden=16,lr=0.0001,optimizer=adam]"] == {"hidden": 16, "lr": 1e-4, "optimizer": "adam"}
    (text,) = variants("lasso[input=pooled]", {"alphas": [(0.1, 1.0)]})
    assert resolve(text, "tiny").args == {"input": "pooled", "alphas": (0.1, 1.0)}
    assert list(variants("nb", {"clip": [True, False]})) == ["nb[clip=true]", "nb[clip=false]"]
    with pytest.raises(ValueError, match="has lr already"):
        variants("mlp[lr=1e-3]", {"lr": [1e-4]})
    for grid in ({}, {"lr": []}):
        with pytest.raises(ValueError, match="one value or more"):
            variants("mlp", grid)


def test_rate_and_optimiser_are_arguments_of_every_model_that_is_trained() -> None:
    spec = resolve("mlp[lr=0.01,optimizer=nadam,epochs=3]", "cpu")
    usual = load_recipe("mlp", "cpu")
    assert (spec.recipe.lr, spec.recipe.optimizer, spec.recipe.epochs) == (0.01, "nadam", 3)
    assert spec.recipe.batch == usual.batch and usual.lr == 1e-3 and usual.epochs > 3
    assert "lr" not in spec.args and "optimizer" not in spec.args
    with pytest.raises(ValueError, match="'lasso' is not trained step by step; leave lr out"):
        resolve("lasso[lr=0.1]", "cpu")
    with pytest.raises(ValueError, match="optimizer='lbfgs'; expected one of"):
        resolve("mlp[optimizer=lbfgs]", "cpu")
    with pytest.raises(ValueError, match="lr='fast'; expected a value of type float"):
        resolve("mlp[lr=fast]", "cpu")


def test_the_winner_has_the_least_error_on_validation(cohort: Cohort, view: View, store: Store) -> None:
    train, val = cohort[:2], cohort[2:3]
    grid = {"lr": [1e-5, 1e-2]}
    found = search(MLP, grid, train, val, view=view, store=store, recipe="tiny")
    errors = {}
    for text in variants(MLP, grid):
        learner = Learner(text, view, store, recipe="tiny").fit(train, val)
        assert learner.fitted is not None
        truth = learner.fitted.truth(val[0])[0].astype(np.float64)
        errors[text] = float(((learner.predict(val).X - truth) ** 2).mean())
    assert found.table["mse"].to_dict() == pytest.approx(errors)
    assert found.best == min(errors, key=errors.__getitem__)
    assert found.table["lr"].tolist() == [1e-5, 1e-2]
    assert (found.table["epochs"] > 0).all()
    by_pcc = search(MLP, grid, train, val, view=view, store=store, recipe="tiny", by="pcc")
    assert by_pcc.best == found.table["pcc"].idxmax()


def test_an_arm_is_searched_by_what_is_measured(cohort: Cohort, view: View, store: Store) -> None:
    """Predictions of a model that learnt completed values are not to be 0 where a count is."""
    text = f"{MLP[:-1]},layer=gene-mean]"
    found = search(text, {"lr": [1e-2]}, cohort[:2], cohort[2:3], view=view, store=store, recipe="tiny")
    learner = Learner(str(found.best), view, store, recipe="tiny").fit(cohort[:2], cohort[2:3])
    assert learner.fitted is not None
    truth, seen = learner.fitted.truth(cohort[2], zeros=False)
    assert not seen.all()
    error = np.where(seen, learner.predict(cohort[2:3]).X - truth.astype(np.float64), 0.0) ** 2
    assert found.table["mse"].iloc[0] == pytest.approx(float((error.sum(axis=0) / seen.sum(axis=0)).mean()))


def test_the_plan_counts_the_model_that_completes(cohort: Cohort, view: View, tmp_path: Path) -> None:
    def seconds(layer: str) -> float:
        model = f"ols[layer={layer}]"
        made = Benchmark(name="t", cohort=cohort, splits=(Split(cohort.ids[:3], cohort.ids[3:]),), view=view, controls=(),
                         recipe="tiny", models=(model,))  # fmt: skip
        return plan(made, tmp_path).seconds_training

    assert seconds("spackle[width=8,hidden=8]") > 0 == seconds("median")


def test_any_model_can_be_searched(cohort: Cohort, view: View, store: Store) -> None:
    grid = {"alphas": [0.0, 1e9], "input": ["spot"]}
    found = search("ridge-gene[components=4]", grid, cohort[:2], cohort[2:3], view=view, store=store, recipe="tiny")
    fitted = view.fit(cohort[:2])
    mean = np.concatenate([fitted.truth(section)[0] for section in cohort[:2]]).mean(axis=0, dtype=np.float64)
    flat = float(((fitted.truth(cohort[2])[0] - mean) ** 2).mean())
    assert found.table["mse"].iloc[1] == pytest.approx(flat, rel=1e-4)  # 1e9 leaves the training mean
    assert found.best == found.table["mse"].idxmin() and found.table["mse"].nunique() == 2
    assert found.table["epochs"].tolist() == [0, 0]


def test_a_training_that_diverges_loses(
    cohort: Cohort, view: View, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Learner.fit

    def diverging(self: Learner, *sides: Any) -> Learner:
        if self.recipe.lr > 1:
            raise FloatingPointError("the loss became nan")
        return real(self, *sides)

    monkeypatch.setattr(Learner, "fit", diverging)
    given: dict[str, Any] = {"view": view, "store": store, "recipe": "tiny"}
    found = search(MLP, {"lr": [10.0, 1e-3]}, cohort[:2], cohort[2:3], **given)
    assert found.best == "mlp[components=4,hidden=8,lr=0.001]"
    assert math.isnan(found.table["mse"].iloc[0])
    with pytest.raises(ValueError, match="none of 1 combinations"):
        search(MLP, {"lr": [10.0]}, cohort[:2], cohort[2:3], **given)
    with pytest.raises(ValueError, match="by='r2'"):
        search(MLP, {"lr": [1e-3]}, cohort[:2], cohort[2:3], by="r2", **given)  # type: ignore[arg-type]


def test_finished_combinations_are_taken_as_they_are(
    cohort: Cohort, view: View, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {"view": view, "store": store, "recipe": "tiny", "folder": tmp_path}
    first = search(MLP, {"lr": [1e-3]}, cohort[:2], cohort[2:3], **given)
    fits = []
    real = Learner.fit
    monkeypatch.setattr(Learner, "fit", lambda self, *sides: (fits.append(self.model), real(self, *sides))[1])
    again = search(MLP, {"lr": [1e-3, 1e-2]}, cohort[:2], cohort[2:3], **given)
    assert fits == ["mlp[components=4,hidden=8,lr=0.01]"]
    assert again.table.iloc[0].equals(first.table.iloc[0])
    search(MLP, {"lr": [1e-3]}, cohort[:2], cohort[3:], **given)  # other validation patients
    assert len(fits) == 2


def test_a_combination_is_that_of_all_its_recipes(
    cohort: Cohort, view: View, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What completes the training sections has a recipe of its own, and other values with another one."""
    given: dict[str, Any] = {"view": view, "store": store, "recipe": "tiny", "folder": tmp_path}
    model, grid = "ridge-gene[components=4,layer=low-rank]", {"alphas": [0.1]}
    table = recipe._recipes()
    for count in (1, 1, 2):
        if count == 2:
            monkeypatch.setattr(recipe, "_recipes", lambda: {**table, "low-rank": {"tiny": {"epochs": 3}}})
        search(model, grid, cohort[:2], cohort[2:3], **given)
        assert len(list(tmp_path.glob("*.json"))) == count


def test_what_a_model_names_itself_is_not_searched(cohort: Cohort, view: View, store: Store, tmp_path: Path) -> None:
    ids = cohort.ids
    benchmark = SidedBenchmark(
        name="t", cohort=cohort, splits=(Split(ids[:2], ids[3:], ids[2:3]),), view=view, controls=(), recipe="tiny",
        models=("ols", MLP, "mlp[components=4,lr=0.01]"),
    )  # fmt: skip
    with pytest.raises(TooLong):
        tune(benchmark, {"mlp": {"lr": [1e-3, 1e-2]}}, tmp_path / "a", store, max_hours=1e-9)
    said: list[str] = []
    found = tune(benchmark, {"mlp": {"lr": [1e-3, 1e-2]}}, tmp_path / "b", store, say=said.append)
    assert list(found) == [MLP]
    assert set(found[MLP].table.index) == {"mlp[components=4,hidden=8,lr=0.001]", "mlp[components=4,hidden=8,lr=0.01]"}
    assert said and said[0].startswith("search: 2 cells")
