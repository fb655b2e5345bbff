"""The suite of three sides: its split, its tables on two scales, its orderings, and a dry run from end to end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from histoweave import commands
from histoweave.bench import anand, suite_table
from histoweave.bench.sides import MEANS, SIDES
from histoweave.bench.suites import DRY, Suite, SuiteIncomplete, shortened, suite
from histoweave.commands import _suite
from histoweave.data import catalog
from histoweave.data.section import Cohort
from histoweave.settings import BenchSettings

# Subtypes of the 23 patients, from the table of the dataset.
SUBTYPES = {
    "HER2_luminal": (23287, 23450, 23901, 23944, 24220),
    "HER2_non_luminal": (23567, 23810, 23903, 24044, 24105),
    "Luminal_A": (23268, 23269, 23272, 24223),
    "Luminal_B": (23270, 23277, 23506, 23508, 23895),
    "TNBC": (23209, 23288, 23377, 23803),
}
MODELS = "lasso[adjacency=paper],nb[offset=none,clip=off],nb[alpha=1,offset=none,clip=off],mlp[adjacency=paper],ols"


@pytest.fixture(scope="module")
def paper() -> Suite:
    return suite("anand")


@pytest.fixture(scope="module")
def cohort(paper: Suite) -> Cohort:
    """The phantom of the dry run, with sixteen spots per section."""
    return paper.stand_in((4, 4))[0]


def test_sides_are_stratified_by_subtype_after_the_rule(paper: Suite, cohort: Cohort) -> None:
    tested = set(paper.test_patients["test"])
    assert sorted(f"BC{p}" for group in SUBTYPES.values() for p in group) == sorted(catalog.dataset("stnet").patients)
    for group in SUBTYPES.values():
        *_, before, last = sorted(group)
        assert f"BC{last}" in tested and f"BC{before}" in paper.val_patients
    (split,) = paper.splits(cohort)
    sides = [cohort.subset(getattr(split, side)) for side in SIDES]
    assert [len(side) for side in sides] == [38, 15, 15]
    assert [len(side.patients) for side in sides] == [13, 5, 5]
    with pytest.raises(SuiteIncomplete, match=r"validates or tests on \['BC24223'\]"):
        paper.splits(cohort.where_patient([p for p in cohort.patients if p != "BC24223"]))


def test_published_values_are_those_of_the_paper(paper: Suite) -> None:
    """Spot checks of Table I: training, validation, test."""
    for row, metric, values in (
        ("kNN ridge", "pcc", (0.32554, 0.25974, 0.06064)),
        ("lasso", "mse", (0.2344, 0.2751, 0.2881)),
        ("kNN NB", "mse", (588.8546, 6.1521, 49.3884)),
        ("GNN", "r2", (0.00137, -0.0876, -0.0697)),
        ("MLP", "mae", (0.3070, 0.3916, 0.3775)),
    ):
        assert tuple(value.mean for value in paper.published[row][metric]) == values
    assert set(paper.published) | {"Poisson", "NB, alpha 1"} == set(paper.rows)


def test_every_published_row_is_a_model_that_is_run(paper: Suite) -> None:
    found = {row: model for model in paper.models if (row := paper.published_as(model))}
    assert found == dict(paper.rows)
    assert len(paper.models) == 21 == len(set(paper.models))
    grid = {(name, pooled, near) for name in ("ols", "lasso", "ridge-gene") for pooled in (0, 1) for near in (0, 1)}
    made = {(m.partition("[")[0], int("input=pooled" in m), int("adjacency=paper" in m)) for m in paper.models[:12]}
    assert made == grid
    assert paper.published_as("mlp[adjacency=paper,lr=0.1]") == "MLP"  # whatever the validation side chose
    assert paper.published_as("mlp[lr=0.1]") is None


def means_of(values: dict[tuple[str, str, str, str], float], models: dict[str, str]) -> pd.DataFrame:
    """(published row, scale, side, metric) → value as a table of `side_means`; what is not given is 0."""
    rows = {(models[row], scale, side) for row, scale, _, _ in values for side in SIDES}
    table = pd.DataFrame(0.0, index=pd.MultiIndex.from_tuples(sorted(rows)), columns=list(MEANS))
    for (row, scale, side, metric), value in values.items():
        table.loc[(models[row], scale, side), metric] = value
    return table.rename_axis(["model", "scale", "side"]).reset_index()


def published_means(paper: Suite) -> pd.DataFrame:
    values = {
        (row, "counts" if row in paper.count_rows else "target", side, metric): found[metric][i].mean
        for row, found in paper.published.items()
        for metric in found
        for i, side in enumerate(SIDES)
    }
    extra = {("Poisson", "counts", "test", "zeros"): 1.0, ("Poisson", "counts", "test", "zeros_truth"): 0.7}
    return means_of(values | extra, dict(paper.rows))


def test_the_published_numbers_hold_their_own_orderings(paper: Suite) -> None:
    held = anand.orderings(paper, published_means(paper)).set_index("ordering")
    assert held.loc[["alpha from moments above alpha 1 in PCC on validation"], "holds"].isna().all()  # not published
    told = held[~held.index.str.startswith("alpha")]
    assert len(told) == 8 and told["holds"].all()
    best = held.loc["best PCC on validation is kNN ridge"]
    assert (best["ours_first"], best["ours_second"]) == (0.25974, 0.1759)
    assert (best["published_first"], best["published_second"]) == (0.25974, 0.1759)
    second = held.loc["second PCC on validation is lasso"]
    assert (second["ours_first"], second["ours_second"]) == (0.1759, 0.0687)
    zeros = told[told.index.str.startswith("Poisson")].iloc[0]
    assert (zeros["ours_first"], zeros["ours_second"]) == (1.0, 0.7)


@pytest.mark.parametrize(
    ("row", "scale", "side", "metric", "value", "ordering"),
    [
        ("lasso", "target", "val", "pcc", 0.3, "best PCC on validation is kNN ridge"),
        ("NB", "counts", "val", "pcc", 0.2, "second PCC on validation is lasso"),
        ("MLP", "target", "test", "pcc", 0.2, "best PCC on test is lasso"),
        ("GNN", "target", "val", "pcc", 0.1, "MLP at least GNN in PCC on validation"),
        ("GNN", "target", "test", "pcc", 0.1, "MLP at least GNN in PCC on test"),
        ("NB", "counts", "val", "pcc", 0.07, "kNN NB above NB in PCC on validation"),
        ("kNN NB", "counts", "val", "mse", 9.0, "kNN NB below NB in MSE of counts on validation"),
        ("Poisson", "counts", "test", "zeros", 0.5, "Poisson collapses"),
        ("Poisson", "counts", "test", "zeros_truth", 1.0, "Poisson collapses"),
    ],
)
def test_an_ordering_that_does_not_hold_is_told(
    paper: Suite, row: str, scale: str, side: str, metric: str, value: float, ordering: str
) -> None:
    means = published_means(paper)
    at = (means["model"] == paper.rows[row]) & (means["scale"] == scale) & (means["side"] == side)
    assert at.sum() == 1
    means.loc[at, metric] = value
    held = anand.orderings(paper, means)
    broken = held[~held["holds"].fillna(True)]
    assert broken["ordering"].str.startswith(ordering).any()
    line = next(line for line in anand.lines(held) if line.startswith(ordering))
    assert ": does not hold; " in line and f"{value:.4f}" in line


def test_values_on_counts_never_meet_those_of_the_target(paper: Suite) -> None:
    values = {
        ("NB", "target", "val", "mse"): 0.5,
        ("NB", "counts", "val", "mse"): 30.0,
        ("lasso", "target", "val", "mse"): 0.4,
    }
    means = means_of(values, dict(paper.rows))
    target, counts = (anand.comparison(paper, means, scale) for scale in ("target", "counts"))
    at = {"model": paper.rows["NB"], "side": "val", "metric": "mse"}

    def one(table: pd.DataFrame) -> pd.Series:
        return table[np.logical_and.reduce([table[key] == value for key, value in at.items()])].iloc[0]

    assert (one(target)["ours"], one(counts)["ours"]) == (0.5, 30.0)
    assert np.isnan(one(target)["published"]) and one(counts)["published"] == 8.0991
    assert set(counts.loc[counts["published"].notna(), "published_as"]) == {"NB", "kNN NB"}
    assert not set(target.loc[target["published"].notna(), "published_as"]) & {"NB", "kNN NB"}
    text = suite_table.by_side(counts)
    assert text.loc[paper.rows["NB"]].set_index("side").loc["val", "mse"] == "30.000 (8.099)"
    assert suite_table.by_side(counts, run=False).loc["kNN NB"].set_index("side").loc["val", "mse"] == "6.152"


def run(out: Path, cohort: Cohort, patch: pytest.MonkeyPatch, said: list[str]) -> commands.SuiteRun:
    """A dry run of some models on the first section of each patient, with two rates."""
    first = Cohort(next(iter(cohort.where_patient([patient]))) for patient in cohort.patients)
    patch.setattr(Suite, "stand_in", lambda self, spots: (first, None))
    patch.setattr(_suite, "suite", lambda name: replace(suite(name), search={"mlp": {"lr": [1e-3, 1e-2]}}))
    settings: dict[str, Any] = {"encoder": "tiny", "models": MODELS, "controls": "mean", "threads": 1}
    return commands.run_suite("anand", out, BenchSettings(**settings), dry_run=True, say=said.append)


@pytest.fixture(scope="module")
def dry(tmp_path_factory: pytest.TempPathFactory, cohort: Cohort) -> tuple[commands.SuiteRun, list[str]]:
    """A dry run and what it said."""
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        return run(tmp_path_factory.mktemp("anand"), cohort, patch, said), said


def test_a_dry_run_scores_all_sides_and_says_what_it_is(dry: tuple[commands.SuiteRun, list[str]]) -> None:
    made, said = dry
    ours = made.table[made.table["model"] != ""]
    assert ours.groupby("side")["model"].nunique().to_dict() == {"train": 6, "val": 6, "test": 6}
    (mlp,) = (model for model in made.report.models if model.startswith("mlp"))
    assert mlp in ("mlp[adjacency=paper,lr=0.001]", "mlp[adjacency=paper,lr=0.01]")
    lines = [line for line in said if " holds; " in line or " does not hold; " in line or " not run; " in line]
    assert len(lines) == 10 and all(line.endswith(f"[{DRY}]") for line in lines)
    assert sum(" not run; " in line for line in lines) == 8  # no kNN models, GNN or Poisson here
    assert [path.name for path in made.files] == list(anand.FILES)
    counts, held, tried = (pd.read_parquet(path) for path in made.files[2:])
    assert set(counts["model"]) == {"nb[offset=none,clip=off]", "nb[alpha=1,offset=none,clip=off]", ""}
    assert held["holds"].notna().sum() == 2 and (held["note"] == DRY).all()
    assert tried["lr"].tolist() == [1e-3, 1e-2] and set(tried["search"]) == {"mlp[adjacency=paper]"}
    assert mlp == tried.loc[tried["mse"].idxmin(), "model"]
    text = made.files[1].read_text("utf-8")
    heads = [line for line in text.splitlines() if line.startswith("## ")]
    assert len(heads) == 6 and all(DRY in line for line in heads)
    assert "In units of the target: ln(count + 1)" in text and "| GNN | train | 0.143 |" in text
    assert suite_table.shown(made.table).loc["ols"].index.tolist() == [f"PCC, {side}" for side in SIDES]


def test_a_dry_run_goes_on_where_it_stopped(
    dry: tuple[commands.SuiteRun, list[str]], cohort: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is fitted again."""
    from histoweave.train import Learner

    made, _ = dry
    monkeypatch.setattr(Learner, "fit", lambda *_: pytest.fail("fitted again"))
    again = run(made.files[0].parent, cohort, monkeypatch, [])
    pd.testing.assert_frame_equal(again.table, made.table)


def test_the_suite_runs_its_own_models_where_none_are_named(paper: Suite) -> None:
    named = _suite._suite_settings(paper, BenchSettings(), None)
    assert named.models == ",".join(paper.models) and named.target == "log1p-counts" and named.protocol == "strict"
    assert _suite._suite_settings(paper, BenchSettings(models="ols"), None).models == "ols"


def test_a_dry_run_searches_two_values_of_one_setting(paper: Suite) -> None:
    assert shortened(paper.search) == {"mlp": {"lr": [1e-4, 1e-3]}, "gnn": {"hidden": [32, 64]}}
    assert paper.search["mlp"]["lr"] == [1e-4, 1e-3, 1e-2, 1e-1]
