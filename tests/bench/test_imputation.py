"""Benchmarks that hide genes: what is refused before anything runs, one patient on both sides, and the page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from histoweave.bench.external import external_split
from histoweave.bench.scoring import binned_spearman
from histoweave.commands import bench
from histoweave.data.phantom import Phantom, phantom
from histoweave.data.section import Cohort, Section
from histoweave.data.split import Split, SplitLeak
from histoweave.report import write_html
from histoweave.report.tables import hidden, unseen
from histoweave.settings import BenchSettings


@pytest.mark.parametrize(
    ("hide", "models", "says"),
    [
        ("genes:first:5", "spage", "spage: n_pv=30 principal vectors, but 5 genes are shared"),
        ("genes:first:5", "tangram[mode=clusters]", "needs the cell type of each reference cell"),
        ("one", "spage[n_pv=2]", "hide two or more"),
        ("all", "spage[n_pv=2]", "leave some to be seen"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is(
    hide: str, models: str, says: str, small: Phantom, tmp_path: Path
) -> None:
    genes = list(small.cohort[0].genes)
    hide = {"one": f"genes:list:{genes[3]}", "all": f"genes:list:{','.join(genes)}"}.get(hide, hide)
    how = BenchSettings(hide=hide, models=models, controls="gene-mean", store=str(tmp_path), threads=1)
    with pytest.raises(ValueError, match=says):
        bench(small.cohort, tmp_path / "run", how)
    assert not (tmp_path / "run").exists()


def renamed(section: Section, genes: list[str]) -> Section:
    table = section.spots.copy()
    table.var_names = genes
    return section.with_spots(table)


def test_names_that_differ_in_case_are_told(small: Phantom, tmp_path: Path) -> None:
    genes, split = list(small.cohort[0].genes), Split(train=("P1S1",), test=("P2S1",))
    train, test = (replace(s, id=id) for s, id in zip(small.cohort[:2], ("P1S1", "P2S1"), strict=True))
    lower = [gene.lower() for gene in genes]
    how = BenchSettings(hide="genes:first:5", models="gene-mean", controls="", store=str(tmp_path / "s"), threads=1)
    with pytest.raises(ValueError, match=f"share no gene name .*{len(genes)} names agree if case is ignored, such as"):
        bench(Cohort([train, renamed(test, lower)]), tmp_path / "none", how, splits=(split,))
    said: list[str] = []
    half = Cohort([train, renamed(test, [*genes[:10], *lower[10:-1], "other"])])
    bench(half, tmp_path / "half", how, splits=(split,), say=said.append)
    n = len(genes) - 10
    assert any(f"{n} of the training side, {n} of the test side (WARNING: {n - 1} names agree but" in s for s in said)
    said.clear()
    how = replace(how, models="gene-mean,tangram[epochs=2]")
    report = bench(Cohort([train, test]), tmp_path / "all", how, splits=(split,), say=said.append)
    assert not any("left out" in s for s in said)
    assert report.table()["parameters"].tolist() == [0, "–"]  # what Tangram trains is not counted


def test_one_patient_on_both_sides_has_to_be_said(small: Phantom, tmp_path: Path) -> None:
    train, test = (Cohort([replace(s, patient="P", id=id)]) for s, id in zip(small.cohort[:2], "AB", strict=True))
    with pytest.raises(SplitLeak, match="--same-patient"):
        external_split(train, test)
    joined, (split,), _ = external_split(train, test, same_patient=True)
    assert split.by == "section" and "known patients" in split.notes[0]
    with pytest.raises(SplitLeak, match="'A' stand in both"):
        external_split(train, Cohort([replace(test[0], id="A")]), same_patient=True)
    assert external_split(train, Cohort([replace(test[0], patient="Q")]), same_patient=True)[1][0].by == "patient"
    how = BenchSettings(
        hide="genes:first:10", models="knn-expression[k=3]", controls="gene-mean,ridge-expression", target_layer="measured",
        recipe="tiny", store=str(tmp_path / "s"), threads=1,
    )  # fmt: skip
    report = bench(joined, tmp_path / "run", how, splits=(split,))
    page = write_html(report, joined).read_text(encoding="utf-8")
    assert "known patients" in page and "no model saw its hidden genes" in page
    names = list(small.cohort[0].genes[10:])
    assert hidden(report).startswith(f"{len(names)} whole genes of the test sections ({', '.join(names[:5])}")
    assert unseen(report) == "its hidden genes" and "Genes(names" not in page


def test_values_of_an_imputer_are_scored_on_its_own_scale_too(tmp_path: Path) -> None:
    truth = phantom(n_patients=2, layout="cells", spots=(14, 14), pitch_um=14)
    model = "spage[n_pv=5,k=5]"
    how = BenchSettings(
        hide="genes:first:100", models=model, controls="ridge-expression", split="k-fold:2", store=str(tmp_path / "s"),
        threads=1,
    )  # fmt: skip
    report = bench(truth.cohort, tmp_path / "run", how)
    fold, (id,) = next(iter(report.card["folds"].items()))
    made = report.prediction(model, fold)
    own, section = made.layers["own"].astype(np.float64), truth.cohort[id]
    linear = np.expm1(own)
    np.testing.assert_allclose(made.X, linear / linear.sum(axis=1, keepdims=True), rtol=1e-4)
    expected = binned_spearman(section, made.layers["truth"], own, np.isfinite(made.layers["truth"]))[0]
    rows = report.rows[(report.rows["model"] == model) & (report.rows["fold"] == fold)]
    found = {m: rows[rows["metric"] == m].set_index("gene")["value"] for m in ("spearman_bins", "spearman_bins_own")}
    np.testing.assert_allclose(found["spearman_bins_own"].loc[list(made.var_names)], expected, atol=1e-6)
    assert (found["spearman_bins"] != found["spearman_bins_own"]).mean() > 0.5
