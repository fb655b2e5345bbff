"""The part of the page on completion: what is drawn of which run, and curves of models retrained at each share."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from histoweave.bench.summary import Report
from histoweave.commands import bench
from histoweave.data.holdout import Entries, Holdout
from histoweave.data.phantom import Phantom
from histoweave.data.section import Cohort
from histoweave.data.split import leave_one_out
from histoweave.report import write_html
from histoweave.report.completion import _trained_at, retrained
from histoweave.report.html import _choose_section
from histoweave.settings import BenchSettings

RARE = "LOCAL001"  # almost never measured in the first section: nothing of it stays visible there


@pytest.fixture(scope="module")
def cohort(small: Phantom) -> Cohort:
    first, *others = small.cohort
    spots = first.spots.copy()
    counts = spots.X.toarray()
    counts[first.n // 10 :, first.genes.get_loc(RARE)] = 0
    spots.X = csr_matrix(counts)
    return Cohort([first.with_spots(spots), *others])


@pytest.fixture(scope="module")
def run(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Report:
    out = tmp_path_factory.mktemp("run")
    how = BenchSettings(
        hide="entries:0.3:all", models="median", controls="gene-mean", target="log1p-cpm", panel="top-mean:16",
        store=str(out / "store"), threads=1,
    )  # fmt: skip
    return bench(cohort, out / "run", how)


def test_hidden_values_of_a_dropped_gene_are_not_kept_as_shown(run: Report, cohort: Cohort) -> None:
    for section, split in zip(cohort, leave_one_out(cohort), strict=True):
        made = run.prediction("median", split.name)
        columns = section.genes.get_indexer(list(made.var_names))
        hidden = Holdout(split, Entries(0.3, of="all")).hidden(section)[:, columns].toarray()
        visible = (section.spots.X[:, columns].toarray() > 0) & ~hidden
        np.testing.assert_array_equal(np.isfinite(made.layers["shown"]), visible)
    first = run.prediction("median", leave_one_out(cohort)[0].name)
    at = first.var_names.get_loc(RARE)
    assert not np.isfinite(first.layers["truth"][:, at]).any()
    assert not np.isfinite(first.layers["shown"][:, at]).any()


def test_dropped_genes_are_counted_per_section(run: Report) -> None:
    rows = run.rows[(run.rows["metric"] == "dropped") & (run.rows["model"] == "median")]
    number = rows.groupby("section", observed=True)["value"].sum()
    assert number.iloc[0] >= 1  # a number of genes, not a share of them
    told = run.summary.set_index(["model", "metric"])["mean"]
    assert told["median", "dropped"] == pytest.approx(number.mean())


def test_where_entries_are_hidden_there_is_no_ceiling_and_no_biology(run: Report, cohort: Cohort) -> None:
    assert "pcc_of_ceiling" not in set(run.summary["metric"]) and "pcc_reliable" in set(run.summary["metric"])
    assert run.genes["ceiling"].isna().all() and run.genes["reliability"].notna().any()
    page = write_html(run, cohort).read_text(encoding="utf-8")
    assert "so there is no ceiling to compare with" in page and "the highest PCC that its counts allow" not in page
    assert "Left out: models were shown a part" in page and "Leiden" not in page
    assert "PCC is over the hidden entries" in page and "predicted − measured, hidden entries" in page


def test_one_rate_has_maps_and_no_curve(run: Report, cohort: Cohort) -> None:
    page = write_html(run, cohort, genes=[RARE, "LOCAL002"]).read_text(encoding="utf-8")
    assert "LOCAL002: measured (rings: no count), shown to the models" in page  # the first one is dropped here
    assert "share of all entries that was hidden" in page
    assert "hidden share of" not in page


def test_maps_are_of_the_completed_section(run: Report, cohort: Cohort) -> None:
    shown = _choose_section(run, cohort, [])
    section = cohort[shown.section]
    truth, made = shown.completed("LOCAL002")
    hidden, predicted = shown.values("LOCAL002")
    counts = section.counts(["LOCAL002"]).toarray().ravel()
    np.testing.assert_array_equal(np.isfinite(truth), counts > 0)
    kept = np.isfinite(truth) & ~np.isfinite(hidden)
    assert kept.any() and np.isfinite(hidden).any()
    for model in run.models:
        np.testing.assert_array_equal(made[model][kept], truth[kept])
        np.testing.assert_array_equal(made[model][~kept], predicted[model][~kept])


def test_models_that_differ_in_their_rate_give_a_curve_of_the_retrained() -> None:
    models = ["median", "spackle", "spackle[rate=0.1]", "spackle[rate=0.5]", "spackle[preset=plus,rate=0.1]",
              "spackle[preset=plus]", "spackle[legacy=batch-axis]", "spackle[width=64,rate=0.9]"]  # fmt: skip
    rates = [0.1, 0.3, 0.5, 0.7]
    errors = pd.DataFrame(
        [[10.0 * i + j for i in range(len(models))] for j in range(len(rates))], index=rates, columns=models
    )
    made = retrained(errors, {model: _trained_at(model) for model in models})
    assert list(made) == ["spackle, retrained at each share", "spackle[preset=plus], retrained at each share"]
    np.testing.assert_array_equal(made.iloc[:, 0], [20.0, 11.0, 32.0, np.nan])
    np.testing.assert_array_equal(made.iloc[:, 1], [40.0, 51.0, np.nan, np.nan])
    alone = errors[["median", "spackle", "spackle[legacy=batch-axis]"]]
    assert retrained(alone, {model: _trained_at(model) for model in alone}).shape == (4, 0)
