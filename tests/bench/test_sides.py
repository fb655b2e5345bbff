"""Three sides of a split: what is scored, against plain calculations, and that validation patients only choose."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

from histoweave.bench.benchmark import Benchmark
from histoweave.bench.sides import SIDES, UNS, SidedBenchmark, expecting_counts, side_means
from histoweave.commands._bench import make_benchmark
from histoweave.data.image import Window
from histoweave.data.phantom import phantom
from histoweave.data.section import Cohort
from histoweave.data.split import Split
from histoweave.data.store import Store
from histoweave.pp.counts import Target
from histoweave.settings import BenchSettings
from histoweave.train import Learner
from histoweave.view import View

MODELS = ("mean", "ols[components=4]", "nb[components=4,offset=none]")


@pytest.fixture(scope="module")
def cohort() -> Cohort:
    genes: Any = {"local": 4, "neighbourhood": 0, "global": 0, "noise": 2}
    return phantom(n_patients=4, sections_per_patient=2, spots=(5, 5), genes=genes, um_per_px=10.0, seed=3).cohort


@pytest.fixture(scope="module")
def split(cohort: Cohort) -> Split:
    ids = cohort.ids
    return Split(train=ids[:4], val=ids[4:6], test=ids[6:], name="sides")


@pytest.fixture(scope="module")
def view() -> View:
    return View(
        target=Target.preset("log1p-counts"), panel="top-mean:6", encoder="tiny", window=Window(um=200.0, out=32)
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


def sided(cohort: Cohort, split: Split, view: View, **changed: Any) -> SidedBenchmark:
    given: dict[str, Any] = {"name": "sides", "cohort": cohort, "splits": (split,), "view": view, "models": MODELS}
    return SidedBenchmark(**given | {"controls": (), "recipe": "tiny"} | changed)


@pytest.fixture(scope="module")
def scores(
    cohort: Cohort, split: Split, view: View, store: Store, tmp_path_factory: pytest.TempPathFactory
) -> pd.DataFrame:
    """Stored scores of every model, as they are read back."""
    import anndata

    parts = []
    for cell in sided(cohort, split, view).run(tmp_path_factory.mktemp("run"), store):
        parts.append(anndata.read_h5ad(cell.folder / "prediction.h5ad").uns[UNS].assign(model=cell.model))
    return pd.concat(parts, ignore_index=True).astype({"side": str, "scale": str, "gene": str, "metric": str})


@pytest.mark.parametrize("scale", ["target", "counts"])
def test_scores_are_those_of_plain_calculations_over_all_spots_of_a_side(
    cohort: Cohort, split: Split, view: View, store: Store, scores: pd.DataFrame, scale: str
) -> None:
    learner = Learner(MODELS[2], view, store, recipe="tiny").fit(cohort.subset(split.train))
    model = expecting_counts(learner) if scale == "counts" else learner
    assert model.units == ("expected counts at the median library" if scale == "counts" else "ln(count + 1)")
    assert learner.units == "ln(count + 1)"
    wide = scores[(scores["model"] == MODELS[2]) & (scores["scale"] == scale)]
    wide = wide.set_index(["side", "gene", "metric"])["value"]
    for side in SIDES:
        sections = cohort.subset(getattr(split, side))
        pred = np.asarray(model.predict(sections).X, dtype=np.float64)
        assert learner.fitted is not None
        for g, gene in enumerate(learner.fitted.genes.genes):
            each = [section.counts([gene]).toarray().ravel() for section in sections]
            each = each if scale == "counts" else [np.log1p(part) for part in each]
            t, p = np.concatenate(each), pred[:, g]
            plain = {
                "pcc": np.corrcoef(t, p)[0, 1], "spearman": spearmanr(t, p).statistic, "mse": mean_squared_error(t, p),
                "mae": mean_absolute_error(t, p), "r2": r2_score(t, p), "constant": 0.0,
                "pcc_within": np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(each, np.split(p, len(each)), strict=True)]),
            }  # fmt: skip
            if scale == "counts":
                plain |= {"zeros": np.mean(p < 0.5), "zeros_truth": np.mean(t == 0)}
            for metric, value in plain.items():
                assert wide[side, gene, metric] == pytest.approx(value, abs=2e-5), (side, gene, metric)


def test_only_count_models_are_scored_on_counts(scores: pd.DataFrame) -> None:
    assert set(scores.loc[scores["scale"] == "counts", "model"]) == {MODELS[2]}
    assert set(scores.loc[scores["scale"] == "target", "model"]) == set(MODELS)


def test_a_constant_prediction_counts_as_0_or_is_left_out(scores: pd.DataFrame) -> None:
    means = side_means(scores).set_index(["model", "scale", "side"])
    for side in SIDES:
        row = means.loc[("mean", "target", side)]
        assert row["constant"] == 1.0 and row["pcc"] == 0.0 and np.isnan(row["pcc_varying"])
        other = means.loc[(MODELS[1], "target", side)]
        assert other["constant"] == 0.0 and other["pcc_varying"] == other["pcc"]


def test_the_test_side_is_scored_as_in_any_benchmark_that_does_not_train_on_validation(
    cohort: Cohort, split: Split, view: View, store: Store, tmp_path: Path
) -> None:
    made = list[pd.DataFrame]()

    def plain(one: Split) -> Benchmark:
        return Benchmark(
            name="sides", cohort=cohort, splits=(one,), view=view, models=MODELS, controls=(), recipe="tiny"
        )

    bare = Split(split.train, split.test, name="sides")
    for name, benchmark in (("bare", plain(bare)), ("val", plain(split)), ("sides", sided(cohort, split, view))):
        cells = benchmark.run(tmp_path / name, store)
        made.append(pd.concat([pd.read_parquet(cell.folder / "rows.parquet") for cell in cells], ignore_index=True))
    for other in made[1:]:
        pd.testing.assert_frame_equal(made[0], other)


def test_validation_counts_teach_nothing_but_the_penalty(
    cohort: Cohort, split: Split, view: View, store: Store
) -> None:
    """Each gene's penalty is the one whose own fit on the training side has the least error on validation."""
    train, val = cohort.subset(split.train), cohort.subset(split.val)
    for model, alphas in (("ridge-gene", (0.0, 3.0, 300.0)), ("lasso", (1e-4, 1e-2, 0.3))):
        text = f"{model}[components=4,alphas={'+'.join(map(str, alphas))}]"
        chosen = Learner(text, view, store, recipe="tiny").fit(train).choose(val)
        errors, made = [], []
        for alpha in alphas:
            one = Learner(f"{model}[components=4,alphas={alpha}]", view, store, recipe="tiny").fit(train)
            assert one.fitted is not None
            truth = np.concatenate([one.fitted.truth(section)[0] for section in val])
            made.append(np.asarray(one.predict(val).X, dtype=np.float64))
            errors.append(((made[-1] - truth) ** 2).mean(axis=0))
        best = np.argmin(errors, axis=0)
        assert len(set(best)) > 1  # so that genes differ in what they choose
        np.testing.assert_allclose(chosen.predict(val).X, np.choose(best, made), atol=2e-4)
        assert chosen.rung == "given"


def test_models_without_a_penalty_do_not_look_at_validation(
    cohort: Cohort, split: Split, view: View, store: Store
) -> None:
    train, val, test = (cohort.subset(side) for side in (split.train, split.val, split.test))
    spots = [section.spots.copy() for section in val]
    for table in spots:
        table.X = table.X[::-1]
    garbled = Cohort(section.with_spots(table) for section, table in zip(val, spots, strict=True))
    made = [
        Learner("ols[components=4]", view, store, recipe="tiny").fit(train, side).choose(side).predict(test).X
        for side in (val, garbled)
    ]
    np.testing.assert_array_equal(*made)


def test_choosing_before_fitting_is_an_error(view: View, store: Store, cohort: Cohort) -> None:
    from histoweave.batch import Dims
    from histoweave.models import create

    with pytest.raises(ValueError, match="was not fitted"):
        Learner("lasso", view, store, recipe="tiny").choose(cohort)
    with pytest.raises(ValueError, match="nothing was; call index"):
        create("lasso", Dims(genes=2, emb=3)).choose(None)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"splits": "bare"}, r"1 of 1 folds have no validation sections \('sides'\)"),
        ({"protocol": "paper"}, "leave out protocol='paper'"),
        ({"ensemble": 2}, r"1 of 1 folds name validation sections to stop on \('.*'\); leave the ensemble out"),
    ],
)
def test_what_does_not_go_with_sides_is_refused(
    cohort: Cohort, split: Split, view: View, changed: dict[str, Any], message: str
) -> None:
    if "splits" in changed:
        changed = {"splits": (Split(split.train + split.val, split.test, name="sides"),)}
    with pytest.raises(ValueError, match=message):
        sided(cohort, split, view, **changed)


def test_a_cell_is_that_of_its_validation_sections(cohort: Cohort, split: Split, view: View, tmp_path: Path) -> None:
    other = replace(split, train=split.train[:2] + split.val, val=split.train[2:])
    same_train = replace(split, val=split.val[:1])
    names = [
        {cell.folder.name for cell in sided(cohort, one, view).cells(tmp_path)} for one in (split, other, same_train)
    ]
    assert not names[0] & names[1] and not names[0] & names[2]


def test_validation_sections_that_were_not_chosen_are_told(cohort: Cohort, split: Split) -> None:
    ids = [id for id in cohort.ids if id not in split.val]
    settings = BenchSettings(models="mean", controls="", panel="top-mean:3", sections=",".join(ids))
    with pytest.raises(ValueError, match=rf"validation sections \({split.val[0]}.*none of them was chosen"):
        make_benchmark(cohort, settings, splits=(split,))
    some = make_benchmark(cohort, replace(settings, sections=",".join((*ids, split.val[0]))), splits=(split,))
    assert some.splits[0].val == split.val[:1]
    plain = make_benchmark(cohort, settings, splits=(replace(split, val=()),))
    assert not plain.splits[0].val
