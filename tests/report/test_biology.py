"""The section "Biology" of the page: clusters, labels, signatures, and what it says where it has nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.report.conftest import build_run
from tests.report.test_report import Page

from histoweave import _optional
from histoweave.bench.summary import Report
from histoweave.data.phantom import Phantom, phantom
from histoweave.data.section import Cohort
from histoweave.report import biology as bio
from histoweave.report import write_html
from histoweave.report.labels import Labels

NAMES = {"LOCAL001": "ERBB2", "LOCAL003": "GRB7", "GLOBAL001": "COL1A1"}
Write = Callable[..., str]


@pytest.fixture(scope="module")
def truth() -> Phantom:
    """Three patients with enough spots for clusters, and genes that signatures know."""
    genes = {"local": 6, "neighbourhood": 2, "global": 2, "noise": 4}
    return phantom(n_patients=3, spots=(8, 8), genes=genes, um_per_px=200 / 16, seed=2)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def cohort(truth: Phantom) -> Cohort:
    """Its sections with labels by a known factor; the first has none."""
    made = []
    for i, section in enumerate(truth.cohort):
        spots = section.spots.copy()
        if i:
            value = truth.factors[section.id].iloc[:, 0]
            spots.obs["region"] = np.where(value > np.median(value), "tumour", "other")
        made.append(replace(section, spots=spots))
    return Cohort(made)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory, truth: Phantom) -> Report:
    return build_run(tmp_path_factory.mktemp("labelled"), truth, rename=NAMES)


def test_labels_bring_differences_and_choose_a_section_that_has_them(labelled: Report, cohort: Cohort) -> None:
    text = write_html(labelled, cohort, labels="region=tumour").read_text(encoding="utf-8")
    parsed = Page(text)
    assert not parsed.open
    assert "Section P2-1 of patient P2 alone" in text
    captions = parsed.texts("caption")
    for start in ("Spatial structure", "Leiden clusters", "Differential expression, tumour (", "Signature scores"):
        assert any(caption.startswith(start) for caption in captions), start
    drawn = [a["aria-label"] or "" for tag, a in parsed.tags if tag == "svg"]
    for start in ("Scatter plot of variance", "Maps of ", "Scatter plots of cluster", "Histogram", "Dot plots of"):
        assert any(label.startswith(start) for label in drawn), start
    ids = [a["id"] for _, a in parsed.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert "her2_amplicon" in parsed.texts("th")
    assert "2 of 4" in parsed.texts("td")
    assert "No labels" not in text


def test_without_labels_it_says_so(labelled: Report, cohort: Cohort) -> None:
    text = write_html(labelled, cohort).read_text(encoding="utf-8")
    assert "section P1-1 has no spot labelled in column &#39;label&#39;" in text
    assert "Differential expression" not in text


def test_numbers_of_the_page_are_those_of_the_functions(labelled: Report, cohort: Cohort) -> None:
    from histoweave.bio import agreement, contrast, differential_of, parts

    id = cohort.ids[1]
    made = {model: labelled.prediction(model, id) for model in labelled.models}
    found = bio.biology(
        made, cohort[id], bio.Plate.of(cohort[id]), ["ERBB2"], "net[depth=2]", Labels("region", "tumour")
    )
    table = next(table for table in found.tables if table.caption.startswith("Differential"))
    part = next(parts(made["net[depth=2]"]))
    one = agreement(*differential_of(part, contrast(cohort[id].spots.obs["region"], "tumour")))
    row = next(row for row in table.rows if row[0] == "net[depth=2]")
    assert row[1] == f"{one.common} of {one.top}"
    assert float(row[5].replace("−", "-")) == pytest.approx(one.effect_spearman, abs=0.005)
    mean = next(row for row in table.rows if row[0] == "mean")
    assert mean[5] == "–"  # it predicts no difference
    assert not found.remarks


@pytest.mark.parametrize(
    ("labels", "message"),
    [("tissue", "no section has a column 'tissue'; the columns are .*region"), ("region", "labels are in the cohort")],
)
def test_labels_that_cannot_be_had_are_an_error(labelled: Report, cohort: Cohort, labels: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_html(labelled, cohort if labels == "tissue" else None, labels=labels)


def test_labels_are_read_as_written(cohort: Cohort) -> None:
    assert Labels.read("region = tumour : other", cohort) == Labels("region", "tumour", "other")
    assert Labels.read("region", cohort) == Labels("region")
    assert Labels.read(None, None) == Labels()
    sets, why = Labels("region", "tumor").contrast(cohort[1])
    assert sets is None
    assert "no spot labelled 'tumor'; it has other, tumour" in why[0]
    few = replace(cohort[1], spots=cohort[1].spots.copy())
    few.spots.obs["region"] = np.where(np.arange(few.n) < 3, "tumour", "other")
    assert "each needs 5" in Labels("region", "tumour").contrast(few)[1][0]


def test_a_missing_extra_is_said_on_the_page(labelled: Report, cohort: Cohort, monkeypatch: pytest.MonkeyPatch) -> None:
    real = _optional.importlib.import_module

    def absent(name: str) -> object:
        if name == "graspologic_native":
            raise ModuleNotFoundError(name=name)
        return real(name)

    monkeypatch.setattr(_optional.importlib, "import_module", absent)
    text = write_html(labelled, cohort).read_text(encoding="utf-8")
    assert "pip install &#39;histoweave[clusters]&#39;" in text
    assert "Leiden clusters" not in text


def test_a_large_section_is_left_out(
    labelled: Report, cohort: Cohort, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(bio, "MOST_SPOTS", 10)
    text = write_html(replace(labelled), cohort).read_text(encoding="utf-8")
    assert "Left out: the section has" in text
    assert "Spatial structure" not in text
