"""Legacy ST: layouts, the join, the axes, µm per px, labels, patients, and what is refused."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tests.data import fixtures as fx

from histoweave.data.io import _lattice, read_cohort, read_st_folder, read_st_section, recognise
from histoweave.data.section import Section, SectionError


def check(section: Section, truth: fx.Truth) -> None:
    """The spots in both files: all but the last of the counts and all but the first of the spot file."""
    assert list(section.genes) == truth.genes
    assert section.spots.obs_names.tolist() == truth.keys[1:-1]
    np.testing.assert_array_equal(section.spots.X.toarray(), truth.counts[1:-1])
    np.testing.assert_allclose(section.xy, truth.xy[1:-1])
    np.testing.assert_array_equal(section.array_rc, np.rint(truth.array_xy[1:-1][:, ::-1]))
    np.testing.assert_array_equal(section.library, truth.counts[1:-1].sum(axis=1))
    assert section.um_per_px == pytest.approx(200 / fx.ST_PITCH_PX, rel=1e-6)


@pytest.mark.parametrize("layout", ["her2st", "github", "zenodo", "geo"])
def test_layouts(tmp_path: Path, layout: str) -> None:
    names = ("P2_ST_rep1", "P2_ST_rep2", "P10_ST_rep1") if layout == "geo" else ("A1", "A2", "B1")
    ids = dict(zip(names, (True, False, True), strict=True))
    truths = fx.write_st_folder(tmp_path, ids, layout)
    assert recognise(tmp_path) == "st"
    cohort = read_cohort(tmp_path)
    assert cohort.ids == tuple(sorted(ids))
    assert set(cohort.patients) == ({"P2", "P10"} if layout == "geo" else {"A", "B"})
    for section in cohort:
        check(section, truths[section.id])
        assert (section.image is not None) is ids[section.id]
    assert read_cohort(tmp_path, sections="with-image").ids == tuple(id for id in sorted(ids) if ids[id])


def test_scale_survives_rotation_reflection_and_outliers() -> None:
    rng = np.random.default_rng(0)
    lattice = np.stack(np.meshgrid(np.arange(12), np.arange(9)), axis=-1).reshape(-1, 2)
    array_xy = lattice + rng.normal(0, 0.03, lattice.shape)
    turn = np.array([[np.cos(2.0), -np.sin(2.0)], [np.sin(2.0), np.cos(2.0)]]) @ np.diag([1, -1])
    xy = array_xy @ turn.T * 290.0 + 4000.0
    assert _lattice.um_per_px(array_xy, xy, "st", id="s") == pytest.approx(200 / 290, rel=1e-9)
    xy[:8] += 700.0
    assert _lattice.um_per_px(array_xy, xy, "st", id="s") == pytest.approx(200 / 290, rel=2e-3)


def test_scale_refuses_what_is_no_lattice() -> None:
    array_xy = np.stack(np.meshgrid(np.arange(6), np.arange(6)), axis=-1).reshape(-1, 2)
    with pytest.raises(SectionError, match="do not agree"):
        _lattice.um_per_px(array_xy, np.random.default_rng(0).uniform(0, 100, (36, 2)), "st", id="s")
    with pytest.raises(SectionError, match=r"on one line.*um_per_px="):
        _lattice.um_per_px(array_xy[:6], array_xy[:6] * 10.0, "st", id="s")


def test_given_scale_wins_and_disagreement_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fx.write_st_folder(tmp_path, {"A1": True})
    with caplog.at_level(logging.WARNING):
        cohort = read_st_folder(tmp_path, um_per_px=10.0)
    assert cohort["A1"].um_per_px == 10.0
    assert "the spot lattice says 20.0" in caplog.text


def test_labels_join_on_the_lattice_not_on_the_pixels_of_another_image(tmp_path: Path) -> None:
    truth = fx.write_st_folder(tmp_path, {"A1": False})["A1"]
    at = np.rint(truth.array_xy).astype(int)
    table = pd.DataFrame({"Row.names": "", "x": truth.array_xy[:, 0], "y": truth.array_xy[:, 1],
                          "pixel_x": truth.xy[:, 0] / 2, "pixel_y": 500 - truth.xy[:, 1] / 2,
                          "label": np.where(at[:, 0] < 4, "tumour", "fat")})
    table.loc[len(table)] = ["", np.nan, np.nan, 1.0, 1.0, "fat"]
    (tmp_path / "ST-pat").mkdir()
    table.drop(index=3).to_csv(tmp_path / "ST-pat/A1_labeled_coordinates.tsv", sep="\t", index=False)
    (tmp_path / "ST-cluster").mkdir()
    table.iloc[:-1].assign(label=at[:, 1]).to_csv(tmp_path / "ST-cluster/A1-cluster-annotation.tsv.gz", sep="\t")
    obs = read_st_folder(tmp_path)["A1"].spots.obs
    missing = truth.keys[3]
    assert obs["label"].isna().sum() == 1
    assert pd.isna(obs.loc[missing, "label"])
    kept = obs.drop(index=missing)
    np.testing.assert_array_equal(kept["label"] == "tumour", kept["array_col"] < 4)
    np.testing.assert_array_equal(obs["cluster"].astype(int), obs["array_row"])


def test_st_net_layout(tmp_path: Path) -> None:
    truth = fx.write_st_net(tmp_path)
    assert recognise(tmp_path) == "st-metadata"
    section = read_cohort(tmp_path)["BC1_C1"]
    assert (section.patient, section.n, section.image is not None) == ("BC1", len(truth.keys) - 5, True)
    np.testing.assert_array_equal(section.spots.X.toarray(), truth.counts[5:])
    np.testing.assert_array_equal(section.spots.obs["label"] == "tumor", section.array_rc[:, 1] < 5)
    assert set(section.spots.obs["subtype"]) == {"TNBC"}
    (tmp_path / "spots_BT1_C1.csv.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"BC1_C1.*spots_BT1_C1\.csv\.gz"):
        read_cohort(tmp_path)


def test_tables_that_do_not_join(tmp_path: Path) -> None:
    truth = fx.st_truth()
    counts = fx.write_counts(tmp_path / "A1.tsv", truth)
    truth.array_xy += 100
    spots = fx.write_selection(tmp_path / "A1_selection.tsv", truth)
    keys = r"counts have '\d+x\d+'.*spot file '10\d+x1\d+'"
    with pytest.raises(SectionError, match=rf"only 0 of 48 rows .* 48 spots .* {keys}"):
        read_st_section(counts, spots)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.genes.__setitem__(1, "GNAS"), "duplicate gene names 'GNAS'"),
        (lambda t: t.keys.__setitem__(5, t.keys[4]), r"duplicate spot names '\d+x\d+'"),
        (lambda t: t.counts.__setitem__((3, 0), -1), "1 counts are negative"),
        (lambda t: t.xy.__setitem__((2, 0), 500.0), "outside the image of 90 × 110 px"),
        (lambda t: t.xy.__setitem__((2, 0), np.nan), "without a finite position"),
    ],
)
def test_content_is_checked(tmp_path: Path, change, message: str) -> None:
    truth = fx.st_truth()
    change(truth)
    counts = fx.write_counts(tmp_path / "A1.tsv", truth)
    spots = fx.write_selection(tmp_path / "A1_selection.tsv", truth)
    image = fx.write_image(tmp_path / "A1.png", fx.ST_SIZE)
    with pytest.raises(SectionError, match=message):
        read_st_section(counts, spots, image)


def test_a_spot_without_counts_is_kept(tmp_path: Path) -> None:
    truth = fx.st_truth()
    truth.counts[4] = 0
    counts = fx.write_counts(tmp_path / "A1.tsv", truth)
    section = read_st_section(counts, fx.write_selection(tmp_path / "A1_selection.tsv", truth))
    assert section.n == len(truth.keys)
    assert section.library[4] == 0


def test_unselected_and_repeated_spots(tmp_path: Path) -> None:
    truth = fx.st_truth()
    counts = fx.write_counts(tmp_path / "A1.tsv", truth)
    spots = fx.write_selection(tmp_path / "A1_selection.tsv", truth)
    table = pd.read_csv(spots, sep="\t")
    table.assign(selected=np.arange(len(table)) >= 3).astype({"selected": int}).to_csv(spots, sep="\t", index=False)
    assert read_st_section(counts, spots).n == len(truth.keys) - 3
    pd.concat([table, table.iloc[[0]]]).to_csv(spots, sep="\t", index=False)
    with pytest.raises(SectionError, match="names 1 spots twice"):
        read_st_section(counts, spots)
    table.assign(new_x=table["new_x"].where(table.index != 2)).to_csv(spots, sep="\t", index=False)
    with pytest.raises(SectionError, match=r"1 lines of .* have no lattice position \(first: line 4\)"):
        read_st_section(counts, spots)
    table.drop(columns="pixel_x").to_csv(spots, sep="\t", index=False)
    with pytest.raises(SectionError, match="expected new_x"):
        read_st_section(counts, spots)


def test_patient_rules(tmp_path: Path) -> None:
    fx.write_st_folder(tmp_path, {"A1": False, "B2": False})
    assert read_st_folder(tmp_path, patient=str.lower).patients == ("a1", "b2")
    assert read_st_folder(tmp_path, patient=r"(\d)$").patients == ("1", "2")
    assert read_st_folder(tmp_path, patient={"A1": "one", "B2": "one"}).patients == ("one",)
    with pytest.raises(SectionError, match="'A1': no patient found by the rule"):
        read_st_folder(tmp_path, patient=r"^(Z)")
    with pytest.raises(SectionError, match="'B2' is not in the table"):
        read_st_folder(tmp_path, patient={"A1": "one"})


def test_files_that_are_missing_or_too_many(tmp_path: Path) -> None:
    fx.write_st_folder(tmp_path, {"A1": True, "A2": False})
    with pytest.raises(SectionError, match=r"no section 'A11'.*did you mean 'A1'"):
        read_st_folder(tmp_path, sections=["A11"])
    fx.write_image(tmp_path / "ST-imgs/A1/other.png", fx.ST_SIZE)
    with pytest.raises(SectionError, match=r"'A1' has 2 files of kind 'image'"):
        read_st_folder(tmp_path)
    assert read_st_folder(tmp_path, sections=["A2"]).ids == ("A2",)
    (tmp_path / "ST-spotfiles/A2_selection.tsv").unlink()
    with pytest.raises(SectionError, match=r"'A2': no spot file; expected 'A2_selection\.tsv'"):
        read_st_folder(tmp_path, sections=["A2"])
    fx.write_st_folder(tmp_path / "blind", {"C1": False})
    with pytest.raises(SectionError, match="none of the 1 sections"):
        read_st_folder(tmp_path / "blind", sections="with-image")
