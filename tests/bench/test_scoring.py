"""Scores of hidden entries, genes and transcripts against plain loops."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix
from scipy.stats import spearmanr

from histoweave.bench.scoring import binned_spearman, score
from histoweave.bench.summary import over_entries
from histoweave.commands import bench, make_benchmark
from histoweave.data.holdout import Entries, Holdout, Thin
from histoweave.data.phantom import Phantom
from histoweave.data.section import Cohort
from histoweave.data.split import Split, leave_one_out
from histoweave.pp.counts import Target
from histoweave.report import write_html
from histoweave.settings import BenchSettings
from histoweave.view import View


def test_bins_against_a_loop(small: Phantom) -> None:
    section = small.cohort[0]
    rng = np.random.default_rng(0)
    truth, made = rng.random((2, section.n, 3))
    mask = np.ones((section.n, 3), bool)
    mask[:5, 1] = False
    side = 600.0
    many, every = binned_spearman(section, truth, made, mask, side_um=side)
    place = np.floor(section.xy * section.um_per_px / side).astype(int)
    for g in range(3):
        a, b = [], []
        for bin in {tuple(p) for p in place}:
            here = (place == bin).all(axis=1) & mask[:, g]
            if here.any():
                a.append(truth[here, g].mean())
                b.append(made[here, g].mean())
        assert every[g] == pytest.approx(spearmanr(a, b)[0])
    assert np.isnan(many).all() or np.isfinite(many).all()


def test_deviance_against_a_loop(small: Phantom, view: View) -> None:
    cohort = small.cohort
    split = leave_one_out(cohort)[0]
    holdout = Holdout(split, Thin(0.5, seed=3))
    fitted = replace(view, target=Target.preset("log1p-cpm")).fit(cohort.subset(split.train))
    section = cohort.subset(split.test)[0]
    shown = holdout.shown(Cohort([section]))[0]
    made = np.abs(np.random.default_rng(1).normal(8, 1, (section.n, len(fitted.genes)))).astype(np.float32)
    frame, _, _ = score(fitted, section, made, holdout)
    held = holdout.held(section).toarray()[:, section.genes.get_indexer(list(fitted.genes.genes))]
    for g in range(3):
        total = 0.0
        for i in range(section.n):
            mu = max((np.exp(made[i, g]) - 1) * shown.library[i] / 1e6, 1e-4)
            x = held[i, g]
            total += 2 * ((x * np.log(x / mu) if x else 0.0) - (x - mu))
        assert frame["deviance"].iloc[g] == pytest.approx(total / section.n, rel=1e-5)


def test_over_entries_counts_each_entry_once() -> None:
    where = {"benchmark": "b", "model": "m", "seed": 0, "fold": "f", "patient": "p", "section": "s"}
    rows = pd.DataFrame(
        [
            {**where, "gene": gene, "metric": metric, "value": value}
            for gene, mse, n in (("a", 1.0, 1.0), ("b", 3.0, 3.0))
            for metric, value in (("mse", mse), ("entries", n), ("mse@0.5", 2 * mse), ("entries@0.5", n))
        ]
    )
    made = over_entries(rows).set_index("metric")["value"]
    assert made.to_dict() == {"mse_entries": 2.5, "mse_entries@0.5": 5.0}


def test_genes_of_which_nothing_is_left_are_dropped_and_counted(small: Phantom, view: View) -> None:
    cohort = small.cohort
    split = leave_one_out(cohort)[0]
    fitted = replace(view, target=Target.preset("log1p-cpm")).fit(cohort.subset(split.train))
    section = cohort.subset(split.test)[0]
    counts = section.spots.X.toarray()
    rare = section.genes.get_loc(fitted.genes.genes[3])
    counts[section.n // 5 :, rare] = 0
    spots = section.spots.copy()
    spots.X = csr_matrix(counts)
    section = section.with_spots(spots)
    made = np.zeros((section.n, len(fitted.genes)), np.float32)
    frame, _, mask = score(fitted, section, made, Holdout(split, Entries(0.3, of="all")))
    assert frame["dropped"].to_list() == [float(g == 3) for g in range(len(fitted.genes))]
    assert frame["entries"].iloc[3] == 0 and np.isnan(frame["mse"].iloc[3]) and not mask[:, 3].any()
    assert "dropped" not in score(fitted, section, made, Holdout(split, Entries(0.3)))[0]


def test_a_benchmark_of_completion_and_its_report(small: Phantom, tmp_path: Path) -> None:
    how = BenchSettings(
        hide="entries:0.3", rates="0.1,0.6", models="median,spackle[width=16,hidden=32]", controls="zero,gene-mean,ridge-visible",
        target="log1p-cpm", panel="top-mean:10", recipe="tiny", store=str(tmp_path / "store"), threads=1,
    )  # fmt: skip
    report = bench(small.cohort, tmp_path / "run", how)
    table = report.summary.set_index(["model", "metric"])["mean"]
    assert table["gene-mean", "mse_entries"] < table["zero", "mse_entries"]
    assert {"mse_entries@0.1", "mse_entries@0.6"} <= set(report.summary["metric"])
    made = report.prediction("median", report.cells[0]["fold"])
    hidden, shown = np.isfinite(made.layers["truth"]), np.isfinite(made.layers["shown"])
    assert hidden.any() and not (hidden & shown).any()
    more = np.isfinite(made.layers["truth@0.6"])
    assert more.sum() > hidden.sum()
    page = write_html(report, small.cohort).read_text(encoding="utf-8")
    assert "rates" in page and "hidden share of the measured entries" in page


def test_a_benchmark_of_thinned_counts_and_its_report(small: Phantom, tmp_path: Path) -> None:
    how = BenchSettings(
        hide="thin:0.5", models="median", controls="gene-mean,ridge-visible", target="log1p-cpm", panel="top-mean:10",
        recipe="tiny", store=str(tmp_path / "store"), threads=1,
    )  # fmt: skip
    report = bench(small.cohort, tmp_path / "run", how)
    told = report.summary.set_index(["model", "metric"])["mean"]
    assert told["ridge-visible", "deviance"] < told["gene-mean", "deviance"]
    assert set(report.tests["reference"]) == {"ridge-visible"}
    page = write_html(report, small.cohort).read_text(encoding="utf-8")
    assert "deviance explained" in page and "Against ridge-visible" in page
    assert "Deviance is per gene" in page and "and the deviance explained of each model" in page
    assert "PCC is" not in page and "  PCC " not in page and "A ceiling is one of PCC" in page
    assert "pcc_pooled" not in set(report.summary["metric"])  # the whole count of a spot has a part that was shown


def test_a_benchmark_of_imputation(small: Phantom, tmp_path: Path) -> None:
    how = BenchSettings(
        hide="genes:random:12:0", models="spage[n_pv=5]", controls="gene-mean,ridge-expression", recipe="tiny",
        store=str(tmp_path / "store"), threads=1,
    )  # fmt: skip
    report = bench(small.cohort, tmp_path / "run", how)
    assert set(report.models) == {"gene-mean", "ridge-expression", "spage[n_pv=5]"}
    assert len(set(report.rows["gene"])) == 4
    made = report.prediction("spage[n_pv=5]", report.cells[0]["fold"])
    np.testing.assert_allclose(np.asarray(made.X).sum(axis=1), 1.0, atol=1e-5)


def test_validation_sections_are_no_reference_and_are_named(small: Phantom, tmp_path: Path) -> None:
    how = BenchSettings(
        hide="genes:random:12:0", models="spage[n_pv=5]", controls="gene-mean", recipe="tiny",
        store=str(tmp_path / "store"), threads=1,
    )  # fmt: skip
    first, second, third = small.cohort.ids
    split = Split(train=(first,), test=(third,), val=(second,), name="fold")
    report = bench(small.cohort, tmp_path / "run", how, splits=(split,))
    assert [cell["trained_on"] for cell in report.cells] == [[small.cohort[0].patient]] * 2
    assert report.card["validation"] == {"fold": [second]}
    page = write_html(report, small.cohort).read_text(encoding="utf-8")
    assert "validation sections</th>" in page and f'<td class="text wrap">{second}</td>' in page
    assert "stopping and choosing from its validation sections" in page


def test_entries_and_models_that_do_not_go_together(small: Phantom, tmp_path: Path) -> None:
    def run(**how: object) -> None:
        bench(small.cohort, tmp_path / "no", BenchSettings(store=str(tmp_path), threads=1, controls="", **how))  # type: ignore[arg-type]

    with pytest.raises(ValueError, match=r"--hide entries:0\.3"):
        run(models="median", target="log1p-cpm", panel="top-mean:10")
    with pytest.raises(ValueError, match="--target log1p-cpm"):
        run(models="median", hide="entries:0.3", panel="top-mean:10")
    with pytest.raises(ValueError, match="rates of hidden entries"):
        run(models="mean", rates="0.1", target="log1p-cpm", panel="top-mean:10")
    entries = {"models": "gene-mean", "hide": "entries:0.3", "target": "log1p-cpm", "panel": "top-mean:10"}
    with pytest.raises(ValueError, match="joined by commas"):
        run(**entries, rates="0.1,half")
    with pytest.raises(ValueError, match=r"rate=1\.5 of hidden entries"):
        run(**entries, rates="0.1,1.5")
    with pytest.raises(ValueError, match="name a rate twice"):
        run(**entries, rates="0.1,0.10000001")
    for target in ("log1p-given", "log1p-cpm[smooth=grid8]"):
        with pytest.raises(ValueError, match="no expected counts can be told"):
            run(models="mean", hide="thin:0.5", target=target, panel="top-mean:10")
    with pytest.raises(ValueError, match="measured=True"):
        run(models="gene-mean", hide="thin:0.5", target="log1p-cpm", panel="top-mean:10", measured=True)
    assert not (tmp_path / "no").exists()
    plain = make_benchmark(small.cohort, BenchSettings(**entries, controls="", rates="0.1,0.3,0.1"))  # type: ignore[arg-type]
    assert plain.rates == (0.1,)
    assert isinstance(Holdout(leave_one_out(small.cohort)[0], Entries(0.2)), Holdout)
