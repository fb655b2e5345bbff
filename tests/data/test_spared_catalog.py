"""The 26 datasets of SpaRED: totals of the paper, published sides, what can be fetched, phantoms."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pooch
import pytest
from tests.data import fixtures as fx

from histoweave.data import catalog, spared
from histoweave.data.catalog import DatasetNotFound
from histoweave.data.dataset import Dataset
from histoweave.data.phantom import _suite_sections, phantom_like
from histoweave.data.section import Cohort, SectionError, make_section
from histoweave.data.split import SplitLeak

ROWS = spared.rows()
BRAIN = "spared-mirzazadeh_mouse_brain"
DOCS = Path(__file__).parents[2] / "docs" / "reference" / "datasets.md"


@pytest.fixture(autouse=True)
def _no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HISTOWEAVE_DATA", raising=False)


def named(end: str) -> Dataset:
    return catalog.dataset(f"spared-{end}")


def cohort_of(row: Dataset, *more: str) -> Cohort:
    """Sections of that row without images, and others."""
    who = {id: patient_in(row, id) for id in row.section_ids} | dict.fromkeys(more, "X")
    return Cohort(
        make_section(
            id=id,
            patient=patient,
            counts=np.ones((2, 1)),
            genes=["G"],
            xy=[[0, 0], [9, 9]],
            platform="visium",
            um_per_px=1.0,
        )
        for id, patient in who.items()
    )


def patient_in(row: Dataset, id: str) -> str:
    """The patient as a plain reading of the rule gives it."""
    return row.patient_of[id] if row.patient_of else re.search(row.patient, id)[1]


def test_totals_are_those_of_the_paper() -> None:
    assert len(ROWS) == 26
    assert Counter(row.organism for row in ROWS) == {"human": 14, "mouse": 12}
    assert Counter(row.n_genes for row in ROWS) == {128: 20, 32: 6}
    assert sum(not row.validation_selected for row in ROWS) == 11
    assert sum(row.sections for row in ROWS) == 105
    assert Counter(row.scope for row in ROWS) == {"intra-patient": 19, "inter-patient": 7}
    assert {row.name for row in ROWS if row.min_spot_counts} == {"spared-mirzazadeh_human_small_intestine"}
    slides = {(row.citation, id) for row in ROWS for id in row.section_ids}
    assert len(slides) == 97


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_sides_are_apart_and_every_section_has_one(row: Dataset) -> None:
    assert len(set(row.section_ids)) == row.sections
    assert row.patients == tuple(dict.fromkeys(patient_in(row, id) for id in row.section_ids))
    split = row.published_split(cohort_of(row))
    assert split.train and split.test
    assert sorted(id for ids in _suite_sections(row.name).values() for id in ids) == sorted(row.section_ids)
    assert bool(split.val) != row.validation_selected  # validation sections are scored where there are no others
    assert any("validation-selected" in note for note in split.notes) == row.validation_selected
    assert any("capture slides" in note for note in split.notes) == row.patient_is_serial
    sides = [{patient_in(row, id) for id in side} for side in (split.train, split.val, split.test)]
    straddle = len(set.union(*sides)) < sum(map(len, sides))
    assert split.by == ("section" if straddle else "patient")
    assert any("split by section" in note for note in split.notes) == straddle


def test_known_splits() -> None:
    assert named("abalo_human_squamous_cell_carcinoma").sides.val == ("V10F24-015_B1",)
    assert named("erickson_human_prostate_cancer_p1").sides.test == ("P1_H2-5",)
    assert named("fan_mouse_olfatory_bulb").sides.test == ("MOB_C1",)  # scored, because there is no test section
    assert {row.name for row in ROWS if row.sides.by == "patient"} == {
        f"spared-{end}"
        for end in (
            "mirzazadeh_human_colon_p2",
            "mirzazadeh_human_prostate_cancer",
            "parigi_mouse_intestine",
            "vicari_mouse_brain",
        )
    }
    # one slide carries validation and test sections, or training and validation sections
    assert named("mirzazadeh_mouse_brain").sides.by == named("mirzazadeh_human_small_intestine").sides.by == "section"


def test_no_slide_counts_twice_in_an_average() -> None:
    names = [row.name for row in ROWS]
    out = spared.left_out(names)
    assert list(out) == [BRAIN]
    kept = [id for row in ROWS if row.name not in out for id in row.section_ids if id.startswith(("V", "P"))]
    assert Counter(id for id in kept if "V10S29-134" in id or "V11D08-304" in id).most_common(1)[0][1] == 1
    assert sum(row.sections for row in ROWS if row.name not in out) == 97
    assert set(spared.left_out([BRAIN, f"{BRAIN}_p2"])) == {f"{BRAIN}_p2"}
    assert spared.left_out([BRAIN]) == spared.left_out([f"{BRAIN}_p1", f"{BRAIN}_p2"]) == {}
    whole = catalog.dataset(BRAIN)
    assert sorted(whole.section_ids) == sorted(id for part in whole.parts for id in catalog.dataset(part).section_ids)


def test_a_cohort_that_does_not_fit_the_split() -> None:
    row = named("vicari_human_striatium")
    with pytest.raises(SectionError, match=r"lacks sections \['V11T17-102_D1'\] of the published split"):
        row.published_split(cohort_of(row).subset(row.section_ids[:-1]))
    with pytest.raises(SectionError, match="'her2st' has no published sides; its split is 'leave-one-patient-out'"):
        catalog.dataset("her2st").published_split(cohort_of(row))
    one = named("mirzazadeh_human_colon_p2")  # by patient: the same serial on both sides is refused
    wrong = Cohort(
        make_section(
            id=id,
            patient="same",
            counts=np.ones((2, 1)),
            genes=["G"],
            xy=[[0, 0], [9, 9]],
            platform="visium",
            um_per_px=1.0,
        )
        for id in one.section_ids
    )
    with pytest.raises(SplitLeak, match="'same' are in both train and test"):
        one.published_split(wrong)


def test_what_needs_work_by_hand_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> str:
        raise AssertionError("nothing may be downloaded")

    monkeypatch.setattr(pooch, "retrieve", refuse)
    row = named("villacampa_kidney_organoid")
    with pytest.raises(DatasetNotFound) as caught:
        catalog.fetch(row.name, tmp_path)
    for part in (row.homepage, row.licence, row.by_hand, "V19D02-085_D1", "samples.csv", "$HISTOWEAVE_DATA"):
        assert part in str(caught.value)
    assert not list(tmp_path.iterdir())
    for id in (*row.section_ids, "V19D02-085_A1"):
        fx.write_visium(tmp_path / row.name / id)
    assert catalog.fetch(row.name, tmp_path) == catalog.find(row.name, tmp_path / row.name) == tmp_path / row.name
    cohort = catalog.load(row.name, tmp_path)  # sections that SpaRED does not use are left out
    assert sorted(cohort.ids) == sorted(row.section_ids)
    assert cohort.patients == ("V19D02-085",)
    assert row.published_split(cohort).test == ("V19D02-085_D1",)
    with pytest.raises(DatasetNotFound):  # the folder of another dataset is not taken for it
        catalog.find("spared-villacampa_lung_organoid", tmp_path / row.name)


def test_a_samples_csv_may_list_the_sections(tmp_path: Path) -> None:
    row = named("fan_mouse_brain_coronal")
    lines = ["id,patient,path"]
    for id in row.section_ids:
        fx.write_visium(tmp_path / "files" / id)
        lines.append(f"{id},mouse-{id},../files/{id}")
    folder = tmp_path / row.name
    folder.mkdir()
    (folder / "samples.csv").write_text("\n".join(lines) + "\n")
    assert catalog.find(row.name, folder) == folder
    assert catalog.load(row.name, folder).patients == ("mouse-HC_B1", "mouse-HC_A1")  # who is known better than there
    with pytest.raises(DatasetNotFound):
        catalog.find("spared-fan_mouse_olfatory_bulb", folder)


def test_files_of_one_name_end_in_their_sections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = named("vicari_human_striatium")
    assert len({file.filename for file in row.files}) == 4
    made = tmp_path / "made"
    fx.write_visium(made, version=1)
    fx.write_image(made / "image.jpg", (90, 90))
    source = {
        "filtered_feature_bc_matrix.h5": made,
        "image.jpg": made,
        "tissue_positions_list.csv": made / "spatial",
        "scalefactors_json.json": made / "spatial",
    }
    asked: list[str] = []

    def serve(url: str, known_hash: str | None, fname: str, path: Path, progressbar: bool) -> str:
        if len(asked) == 5:
            asked.append("broken")
            raise OSError("no route to host")
        asked.append(url)
        Path(path).mkdir(parents=True, exist_ok=True)
        (Path(path) / fname).write_bytes((source[fname] / fname).read_bytes())
        return str(Path(path) / fname)

    monkeypatch.setattr(pooch, "retrieve", serve)
    with pytest.raises(DatasetNotFound, match="could not be fetched"):
        catalog.fetch(row.name, tmp_path / "data")
    catalog.fetch(row.name, tmp_path / "data")
    assert len(set(asked) - {"broken"}) == len(asked) - 1 == len(row.files) == 16  # nothing twice
    cohort = catalog.load(row.name, tmp_path / "data")
    assert sorted(cohort.with_image().ids) == sorted(row.section_ids)


def test_urls_name_their_section() -> None:
    for row in ROWS:
        assert all("{" not in file.url + file.into for file in row.files)
        if row.citation.startswith("10x"):
            assert {file.into for file in row.files} == set(row.section_ids)
            assert all(file.url.count(f"/{file.into}/{file.into}_") == 1 for file in row.files)


@pytest.mark.parametrize("end", ["mirzazadeh_mouse_brain_p1", "parigi_mouse_intestine"])
def test_a_phantom_has_the_sections_and_patients_of_its_dataset(end: str) -> None:
    row = named(end)
    truth = phantom_like(row.name, spots=(4, 4), um_per_px=12.5)
    assert sorted(truth.cohort.ids) == sorted(row.section_ids)
    assert {s.id: s.patient for s in truth.cohort} == {id: patient_in(row, id) for id in row.section_ids}
    assert {s.platform for s in truth.cohort} == {"visium"}
    assert len(truth.genes) > row.n_genes
    row.published_split(truth.cohort)
    counts = np.vstack([s.spots.X.toarray() for s in truth.cohort])
    assert 0.2 < (counts == 0).mean() < 0.4
    steps = truth.cohort[0].array_rc
    assert ((steps[:, 0] + steps[:, 1]) % 2 == steps[0].sum() % 2).all()  # the staggered lattice, columns by two


def test_the_docs_list_every_dataset() -> None:
    table = [line.split("|")[1:-1] for line in DOCS.read_text(encoding="utf-8").splitlines() if "| `spared-" in line]
    listed = {cells[0].strip(" `"): [cell.strip() for cell in cells[1:]] for cells in table}
    assert list(listed) == [row.name for row in ROWS]
    for row in ROWS:
        sides = row.sides
        val, test = (sides.test, ()) if row.validation_selected else (sides.val, sides.test)
        assert listed[row.name] == [
            row.organism,
            str(row.n_genes),
            row.scope.removesuffix("-patient"),
            row.combat_key,
            f"{len(sides.train)} / {len(val)} / {len(test)}",
            sides.by,
            "slide" if row.patient_is_serial else "",
            "yes" if row.files else "by hand",
            row.licence.split(" (")[0],
        ]


def test_rows_can_be_written_as_json() -> None:
    from dataclasses import asdict

    told = json.loads(json.dumps([asdict(row) for row in ROWS]))
    assert told[0]["sides"]["train"] == ["V1_Human_Brain_Section_1"]
    assert sum(row["patient_is_serial"] for row in told) == 16
