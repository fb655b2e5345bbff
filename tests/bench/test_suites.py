"""Published suites: what is read of them, the arithmetic of the comparison, and dry runs from end to end."""

from __future__ import annotations

import json
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from histoweave.bench import suite_table
from histoweave.bench.external import external_split, prefixed
from histoweave.bench.metrics import ROWS
from histoweave.bench.suites import DRY, Suite, SuiteIncomplete, fewer, suite, suites
from histoweave.commands import SuiteRun, run_suite
from histoweave.data import catalog
from histoweave.data.phantom import phantom
from histoweave.data.section import Cohort, make_section
from histoweave.data.split import SplitLeak
from histoweave.settings import BenchSettings

QUICK: dict[str, Any] = {"encoder": "tiny", "models": "mean,ridge", "controls": "", "threads": 1}


def test_published_values_are_those_of_the_paper() -> None:
    """Spot checks against Tables 1, 2 and 3 of Chung et al. 2024."""
    for name, model, metric, mean, sd in (
        ("triplex-bc1", "triplex", "mse", 0.228, 0.07),
        ("triplex-bc1", "gem", "pcc_h_paper", 0.491, 0.17),
        ("triplex-bc2", "hist2st", "mse", 0.181, 0.02),
        ("triplex-bc2", "bleep", "pcc_m", 0.095, 0.05),
        ("triplex-scc", "stnet", "pcc_h_paper", 0.382, 0.08),
    ):
        (value,) = suite(name).published[model][metric]
        assert (value.mean, value.sd) == (mean, sd)
    assert [v.mean for v in suite("triplex-visium").published["nem"]["pcc_h_paper"]] == [0.259, 0.290, 0.175]
    (dropped,) = suite("triplex-scc").ablations["without global branch"]["mae"]
    assert dropped.mean == 0.402 and np.isnan(dropped.sd)


def test_every_suite_is_read_whole() -> None:
    table = tomllib.loads(files("histoweave.bench").joinpath("suites.toml").read_text("utf-8"))
    del table["variants"]
    assert [row.name for row in suites()] == list(table)
    for row in suites():
        values = table[row.name].get("published") or table[row.name]["published_sections"]
        assert list(row.published) == list(values)
        assert (row.dataset, row.target, row.panel, row.window_px) == tuple(
            table[row.name][key] for key in ("dataset", "target", "panel", "window_px")
        )
    with pytest.raises(ValueError, match="did you mean 'triplex-bc2'"):
        suite("triplex-bc-2")


def test_a_gene_panel_is_no_larger_than_what_there_is() -> None:
    assert [fewer("top-mean:250", genes) for genes in (156, 250, 9000)] == [
        "top-mean:156",
        "top-mean:250",
        "top-mean:250",
    ]


def test_models_stand_beside_the_published_row_that_they_are() -> None:
    bc2, scc = suite("triplex-bc2"), suite("triplex-scc")
    assert bc2.spec("triplex") == "triplex[preset=bc2]"
    assert bc2.spec("triplex[peg=none]") == "triplex[peg=none,preset=bc2]"
    assert bc2.spec("triplex[preset=bc1]") == "triplex[preset=bc1]"
    assert bc2.spec("stnet") == "stnet"
    assert bc2.published_as("triplex[preset=bc2,trunk=frozen]") == "triplex"
    assert bc2.published_as("triplex[preset=bc1]") is None  # another configuration is not what was published
    assert bc2.published_as("triplex[neighbor=false,global_=false,preset=bc2]") == "tem"
    assert bc2.published_as("triplex[peg=none,preset=bc2]") is None  # the ablations were made on SCC
    assert scc.published_as("triplex[peg=none,preset=scc]") == "peg=none"
    assert scc.published_as("triplex[peg=none,fusion=sum,preset=scc]") is None
    assert bc2.published_as("ridge") is None


def cohort_of(patients: tuple[str, ...]) -> Cohort:
    """One section with two spots of one gene per patient."""
    shared: dict[str, Any] = {"counts": np.ones((2, 1)), "genes": ["G"], "xy": [[0, 0], [9, 9]], "platform": "st"}
    return Cohort(make_section(id=f"{p}-1", patient=p, um_per_px=1.0, **shared) for p in patients)


def test_folds_are_exactly_those_published() -> None:
    patients = catalog.dataset("stnet").patients
    splits = suite("triplex-bc2").splits(cohort_of(patients))
    assert [split.name for split in splits] == [f"fold {i}" for i in range(1, 9)]
    assert set(splits[0].test) == {"BC23277-1", "BC23287-1", "BC23508-1"}
    assert set(splits[7].test) == {"BC23944-1", "BC24044-1"}
    assert sorted(id for split in splits for id in split.test) == sorted(f"{p}-1" for p in patients)
    with pytest.raises(SuiteIncomplete, match=r"lacks \['BC24223'\].*beside them, \['X'\]"):
        suite("triplex-bc2").splits(cohort_of((*patients[:-1], "X")))
    with pytest.raises(SuiteIncomplete, match="8 folds; this cohort of 3 patients"):
        suite("triplex-bc1").splits(cohort_of(("A", "B", "C")))
    with pytest.raises(ValueError, match="trains on 'her2st' and tests on 'visium-breast'"):
        suite("triplex-visium").splits(cohort_of(("A", "B", "C")))


def test_data_that_is_not_there_is_named_with_the_way_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(catalog.DatasetNotFound, match="histoweave data fetch her2st"):
        run_suite("triplex-bc1", tmp_path / "run", data=tmp_path)
    assert not (tmp_path / "run").exists()


def test_half_a_dataset_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "load", lambda name, root, sections: cohort_of(("P2", "P5", "P10")))
    with pytest.raises(SuiteIncomplete, match=r"every patient of dataset 'scc', and \['P9'\] have no section"):
        suite("triplex-scc").load()
    monkeypatch.setattr(catalog, "load", lambda name, root, sections: cohort_of(catalog.dataset(name).patients))
    train, test = suite("triplex-visium").load()
    assert train.patients == tuple("ABCDEFGH") and test is not None and len(test) == 2


def long_rows(values: dict[tuple[str, str, str, str], tuple[float, float]]) -> pd.DataFrame:
    """(model, fold, section, gene) → (pcc, mse) as the long table of a run."""
    made = [
        ("b", model, 0, fold, section[0], section, gene, metric, value)
        for (model, fold, section, gene), both in values.items()
        for metric, value in zip(("pcc", "mse"), both, strict=True)
    ]
    return pd.DataFrame(made, columns=list(ROWS))


def test_ours_are_averaged_per_gene_over_the_sections_of_a_fold_then_over_genes_and_folds() -> None:
    """Fold 1 has two sections, and gene g2 is constant in the second, so that the order of averaging shows."""
    values = {
        ("stnet", "fold 1", "a1", "g1"): (0.1, 1.0),
        ("stnet", "fold 1", "a1", "g2"): (0.5, 2.0),
        ("stnet", "fold 1", "a2", "g1"): (0.3, 3.0),
        ("stnet", "fold 1", "a2", "g2"): (np.nan, 4.0),
        ("stnet", "fold 2", "b1", "g1"): (0.2, 0.0),
        ("stnet", "fold 2", "b1", "g2"): (0.6, 1.0),
    }
    table = suite_table.comparison(suite("triplex-bc2"), long_rows(values))
    ours = table[table["model"] == "stnet"].set_index("metric")
    fold_1, fold_2 = (0.2 + 0.5) / 2, 0.4
    assert ours.loc["pcc_m", "ours"] == pytest.approx((fold_1 + fold_2) / 2, abs=1e-12)
    assert ours.loc["pcc_m", "ours_sd"] == pytest.approx(abs(fold_1 - fold_2) / 2, abs=1e-12)
    assert ours.loc["mse", "ours"] == pytest.approx((2.5 + 0.5) / 2, abs=1e-12)
    assert ours.loc["mse", "n"] == 2
    assert ours.loc["mse", "published"] == 0.209 and ours.loc["mse", "published_sd"] == 0.02
    assert ours.loc["mse", "difference"] == pytest.approx(1.5 - 0.209, abs=1e-12)
    rest = table[table["model"] == ""]
    assert set(rest["published_as"]) == set(suite("triplex-bc2").published) - {"stnet"}
    assert rest["ours"].isna().all() and rest["difference"].isna().all() and rest["published"].notna().all()


def test_models_without_a_published_value_have_a_dash() -> None:
    rows = long_rows({("ridge", "fold 1", "a1", "g1"): (0.25, 0.5), ("triplex", "fold 1", "a1", "g1"): (0.5, 0.25)})
    shown = suite_table.shown(suite_table.comparison(suite("triplex-bc1"), rows))
    assert shown.loc["ridge", "published"].tolist() == ["–"] * 3
    assert shown.loc["ridge", "difference"].tolist() == ["–"] * 3
    triplex = shown.loc["triplex"].set_index("metric")
    assert triplex.loc["mse"].tolist() == ["0.228 ± 0.070", "0.250", "+0.022"]  # one fold has no spread


def test_external_values_stand_beside_those_of_their_own_section() -> None:
    rows = long_rows({("stnet", "external", id, "g1"): (0.1 * i, 0.2 * i) for i, id in enumerate(("x", "y", "z"), 1)})
    external = suite("triplex-visium")
    table = suite_table.comparison(external, rows)
    mse = table[(table["model"] == "stnet") & (table["metric"] == "mse")].set_index("section")
    assert mse["published"].to_dict() == {"x": 0.423, "y": 0.395, "z": 0.424}
    np.testing.assert_allclose(mse["ours"], [0.2, 0.4, 0.6], atol=1e-12)
    assert "section" in suite_table.shown(table)
    with pytest.raises(SuiteIncomplete, match="3 test sections; the run has 2"):
        suite_table.comparison(external, rows[rows["section"] != "z"])


def test_one_person_under_two_names_is_not_trained_and_tested_on() -> None:
    a = phantom(n_patients=2, spots=(4, 4), um_per_px=10.0).cohort
    b = phantom(n_patients=2, spots=(4, 4), um_per_px=10.0, seed=1).cohort[1:]
    with pytest.raises(SplitLeak, match=r"\['P1'\] are test patients \['P2'\] under another name"):
        external_split(a, b, same={"P1": "P2"})
    with pytest.raises(SplitLeak, match=r"'P2', 'P2-1' stand in both cohorts"):
        external_split(a, b, same={"P1": "P9"})
    joined, (split,), missing = external_split(a, prefixed(b, "test-"), same={"P1": "P9", "P9": "P2"})
    assert split.test == ("test-P2-1",) and len(joined) == 3 and not missing
    assert catalog.dataset("her2st").overlaps["stnet"]["E"] == "BC23567"
    assert suite("triplex-visium").same_patients == {}


@pytest.fixture(scope="module")
def bc2(tmp_path_factory: pytest.TempPathFactory) -> SuiteRun:
    """A dry run of BC2 with sixteen spots per section."""
    return run_suite(
        "triplex-bc2",
        tmp_path_factory.mktemp("bc2"),
        BenchSettings(**QUICK | {"controls": "mean,ridge,knn"}),
        dry_run=True,
        spots=(4, 4),
    )


def test_a_dry_run_has_the_folds_of_the_suite(bc2: SuiteRun) -> None:
    table = tomllib.loads(files("histoweave.bench").joinpath("suites.toml").read_text("utf-8"))["triplex-bc2"]
    card = json.loads((bc2.report.folder / "run.json").read_text("utf-8"))
    tested = {fold: {card["patients"][id] for id in ids} for fold, ids in card["folds"].items()}
    assert tested == {fold: set(group) for fold, group in table["test_patients"].items()}
    assert len(card["patients"]) == 68
    assert bc2.table.loc[bc2.table["model"] != "", "n"].eq(8).all()
    for cell in card["cells"]:
        assert not {card["patients"][id] for id in cell["test"]} & set(cell["trained_on"])


def test_a_dry_run_averages_as_an_independent_calculation_does(bc2: SuiteRun) -> None:
    folds = []
    for fold in bc2.suite.test_patients:
        made = bc2.report.prediction("ridge", fold)
        per_section = []
        for id in made.obs["section"].unique():
            here = (made.obs["section"] == id).to_numpy()
            truth, pred = made.layers["truth"][here].astype(float), made.X[here].astype(float)
            r = [np.corrcoef(t, p)[0, 1] if np.ptp(t) > 0 else np.nan for t, p in zip(truth.T, pred.T, strict=True)]
            per_section.append(r)
        gene = np.ma.masked_invalid(per_section).mean(axis=0)
        folds.append(float(gene.mean()))
    ours = bc2.table[(bc2.table["model"] == "ridge") & (bc2.table["metric"] == "pcc_m")].iloc[0]
    assert ours["ours"] == pytest.approx(np.mean(folds), abs=1e-6)
    assert ours["ours_sd"] == pytest.approx(np.std(folds), abs=1e-6)


def test_every_table_of_a_dry_run_says_so(bc2: SuiteRun) -> None:
    parquet, markdown = bc2.files
    pd.testing.assert_frame_equal(pd.read_parquet(parquet), bc2.table)
    assert (bc2.table["note"] == DRY).all()
    text = markdown.read_text("utf-8")
    assert text.count("## ") == 2 and all(DRY in line for line in text.splitlines() if line.startswith("## "))
    assert "| triplex | mse | 0.202 ± 0.020 | – | – |" in text
    assert DRY in (bc2.report.folder / "report.md").read_text("utf-8")
    assert bc2.report.rows["benchmark"].str.contains(DRY, regex=False).all()
    assert bc2.report.card["protocol"] == "paper" and bc2.report.card["recipe"] == "tiny"
    assert bc2.report.models == ["mean", "ridge"]
    assert bc2.report.card["view"]["panel"] == "top-mean:156"
    assert bc2.report.card["view"]["target"] == BenchSettings(target="triplex-paper").view().target.to_dict()


def test_bc1_leaves_one_patient_out_under_either_protocol(tmp_path: Path) -> None:
    said: list[str] = []
    settings = BenchSettings(**QUICK | {"models": "mean"})
    made = run_suite("triplex-bc1", tmp_path, settings, dry_run=True, protocol="strict", spots=(4, 4), say=said.append)
    assert list(made.report.card["folds"]) == list("ABCDEFGH")
    assert len(made.report.card["patients"]) == 36
    assert made.report.card["protocol"] == "strict"
    assert "under protocol 'strict' and the published values under 'paper'" in made.files[1].read_text("utf-8")
    assert said[0] == DRY
    assert any("top-mean:156 instead of top-mean:250" in line for line in said)


def test_the_external_suite_trains_on_one_phantom_and_tests_on_another(tmp_path: Path) -> None:
    made = run_suite("triplex-visium", tmp_path, BenchSettings(**QUICK), dry_run=True, spots=(4, 4))
    assert list(made.report.card["folds"]) == ["external"]
    tested = made.report.card["folds"]["external"]
    assert len(tested) == 3
    assert {section.platform for section in made.cohort.subset(tested)} == {"visium"}
    ridge = made.table[(made.table["model"] == "ridge") & (made.table["metric"] == "mse")]
    assert ridge["section"].tolist() == tested
    assert np.isfinite(ridge["ours"]).all() and ridge["published"].isna().all()


def test_the_command_lists_the_suites(capsys: pytest.CaptureFixture[str]) -> None:
    from histoweave.cli import app, show

    listed = CliRunner().invoke(app, ["suite", "--list"], env={"COLUMNS": "200"})
    assert listed.exit_code == 0
    assert all(row.name in listed.output for row in suites())
    show(pd.DataFrame({"mse": ["–"]}, index=["triplex[peg=none]"]), "a table")
    assert "triplex[peg=none]" in capsys.readouterr().out
    flags = CliRunner().invoke(app, ["suite", "--help"], env={"COLUMNS": "200"}).output
    assert "--dry-run" in flags and "--max-hours" in flags and "--target" not in flags


def test_an_unknown_entry_of_a_row_is_an_error() -> None:
    from histoweave.bench.suites import _suite

    with pytest.raises(ValueError, match=r"'x' has unknown entries \['pannel'\]"):
        _suite("x", {"title": "T", "pannel": "top-mean:250"})
    assert isinstance(suite("triplex-bc1"), Suite)
