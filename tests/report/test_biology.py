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


def test_labelled_sections_are_compared_one_by_one_and_together(labelled: Report, cohort: Cohort) -> None:
    from histoweave.bio import agreement, combined, contrast, differential_of, parts
    from histoweave.report.differences import over_sections

    labels, model = Labels("region", "tumour"), "net[depth=2]"
    table, left = over_sections(labelled, cohort, labels, [model, "ridge"])
    assert table is not None and not left
    assert [row[:2] for row in table.rows] == [
        [name, where] for name in (model, "ridge") for where in (*cohort.ids[1:], "all 2")
    ]
    pairs = {}
    for id in cohort.ids[1:]:
        (part,) = parts(labelled.prediction(model, id))
        pairs[id] = differential_of(part, contrast(cohort[id].spots.obs["region"], "tumour"))
    truth, pred = (combined({id: pair[side] for id, pair in pairs.items()}) for side in (0, 1))
    one = agreement(truth, pred)
    row = table.rows[2]
    assert row[3] == f"{one.common} of {one.top}"
    assert float(row[7].replace("−", "-")) == pytest.approx(one.effect_spearman, abs=0.005)
    assert over_sections(labelled, cohort.subset(cohort.ids[:2]), labels, [model]) == (None, [])
    text = write_html(labelled, cohort, labels="region=tumour").read_text(encoding="utf-8")
    assert "over all labelled test sections together" in text


def test_only_so_many_sections_are_compared(labelled: Report, cohort: Cohort, monkeypatch: pytest.MonkeyPatch) -> None:
    from histoweave.report import differences

    everywhere = []
    for section in cohort:
        spots = section.spots.copy()
        spots.obs["region"] = np.where(np.arange(section.n) % 2, "tumour", "other")
        everywhere.append(replace(section, spots=spots))
    monkeypatch.setattr(differences, "MOST_SECTIONS", 2)
    table, left = differences.over_sections(labelled, Cohort(everywhere), Labels("region"), ["ridge"])
    assert table is not None and [row[1] for row in table.rows] == [*cohort.ids[:2], "all 2"]
    assert left == ["Labels: 1 further labelled sections are not in the table over sections."]


def test_signatures_of_a_file_take_the_place_of_the_built_in_ones(
    labelled: Report, cohort: Cohort, tmp_path: Path
) -> None:
    path = tmp_path / "mine.gmt"
    path.write_text("mine\tsource\tERBB2\tCOL1A1\tNOWHERE\n", encoding="utf-8")
    cells = Page(write_html(labelled, cohort, signatures=path).read_text(encoding="utf-8")).texts("th")
    assert "mine" in cells and "her2_amplicon" not in cells
    text = write_html(labelled, cohort).read_text(encoding="utf-8")
    assert "Not checked against its source: stroma, her2_amplicon." in text  # those with a gene in the panel
    path.write_text("mine\tsource\tNOWHERE\n", encoding="utf-8")
    assert "none of those given has a gene" in write_html(labelled, cohort, signatures=path).read_text(encoding="utf-8")


def test_maps_are_of_counts_where_the_target_can_be_inverted(labelled: Report, cohort: Cohort) -> None:
    from histoweave.bio import parts
    from histoweave.pp.counts import Target

    section = cohort[1]
    (part,) = parts(labelled.prediction("ridge", section.id))
    renamed = section.with_spots(section.spots.copy())
    renamed.spots.var_names = [NAMES.get(name, name) for name in section.genes]
    target = Target.preset("log1p-given")
    scaled, why = bio.as_counts(part, renamed, target)
    assert (
        scaled is not None
        and why == "Predictions are inverted to counts, by the divisor that was measured in each spot."
    )
    counts = renamed.counts(list(part.genes)).toarray()
    np.testing.assert_array_equal(scaled.truth, counts)
    factor = renamed.spots.obs["size_factor"].to_numpy()[:, None]
    np.testing.assert_allclose(scaled.pred, np.maximum(np.expm1(part.pred) * factor, 0), rtol=1e-6, atol=1e-9)
    plain, why = bio.as_counts(part, renamed, Target.preset("log1p-counts"))
    assert plain is not None and why == "Predictions are inverted to counts."
    np.testing.assert_allclose(plain.pred, np.maximum(np.expm1(part.pred), 0), rtol=1e-6, atol=1e-9)
    assert bio.as_counts(part, renamed, Target.preset("triplex-paper"))[1].startswith(
        "Not on the scale of counts: target"
    )
    assert bio.as_counts(part, section, target)[1].startswith("Not on the scale of counts: section")  # other names
    assert bio.as_counts(part, None, target) == (None, "Not on the scale of counts: the cohort was not given.")
