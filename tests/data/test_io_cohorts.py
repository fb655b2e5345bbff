"""HEST-1k, samples.csv, and what `read_cohort` recognises."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.data import fixtures as fx

from histoweave.data.io import read_cohort, read_hest, read_samples, recognise
from histoweave.data.section import SectionError


def test_hest(tmp_path: Path) -> None:
    fx.write_hest(tmp_path, {"X1": "Patient 1", "X2": "Patient 1", "X3": None})
    assert recognise(tmp_path) == "hest"
    cohort = read_cohort(tmp_path)
    assert cohort.ids == ("X1", "X2", "X3")
    assert [section.patient for section in cohort] == ["Patient 1", "Patient 1", "X3"]
    assert [section.image is not None for section in cohort] == [True, True, False]
    assert {(section.platform, section.um_per_px) for section in cohort} == {("visium", 10.0)}
    assert read_hest(tmp_path, sections="with-image").ids == ("X1", "X2")


def test_hest_patients_of_two_studies_are_not_one(tmp_path: Path) -> None:
    fx.write_hest(tmp_path, {"X1": "Patient 1", "X2": "Patient 1"}, {"X1": "Study A", "X2": "Study B"})
    assert read_hest(tmp_path).patients == ("Study A: Patient 1", "Study B: Patient 1")
    assert read_hest(tmp_path, sections=["X2"]).patients == ("Patient 1",)


def test_hest_metadata_errors(tmp_path: Path) -> None:
    fx.write_hest(tmp_path, {"X1": "P", "X2": "P"})
    path = tmp_path / "metadata/X1.json"
    path.write_text(json.dumps({"st_technology": "Visium"}))
    with pytest.raises(SectionError, match="'X1': metadata has no pixel_size_um_estimated"):
        read_hest(tmp_path)
    assert read_hest(tmp_path, um_per_px=10.0)["X1"].um_per_px == 10.0
    path.write_text(json.dumps({"st_technology": "Slide-seq", "pixel_size_um_embedded": 1.0}))
    with pytest.raises(SectionError, match="technology 'Slide-seq' is unknown"):
        read_hest(tmp_path)
    path.write_text("{")
    with pytest.raises(SectionError, match="is no JSON"):
        read_hest(tmp_path)


def samples(folder: Path, *lines: str, header: str = "id,patient,platform,path,image,mpp") -> Path:
    path = folder / "samples.csv"
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def test_samples_of_a_mixture(tmp_path: Path) -> None:
    fx.write_st_folder(tmp_path / "st", {"A1": True})
    fx.write_visium(tmp_path / "v/outs")
    fx.visium_adata().write_h5ad(tmp_path / "c.h5ad")
    fx.write_image(tmp_path / "c_slide.png", (70, 70))
    path = samples(tmp_path, "one, p1, st, st/ST-cnts/A1.tsv.gz, st/ST-imgs/A1.png,", "two,p2,,v,,",
                   "three,p1,visium,c.h5ad,c_slide.png,10.0")
    cohort = read_cohort(tmp_path)
    assert recognise(tmp_path) == recognise(path) == "samples"
    assert cohort.ids == ("one", "two", "three")
    assert cohort.patients == ("p1", "p2")
    assert list(cohort.obs["platform"]) == ["st", "visium", "visium"]
    assert list(cohort.obs["image"]) == [True, False, True]
    assert cohort["three"].um_per_px == 10.0
    assert read_cohort(path, sections="with-image").ids == ("one", "three")
    with pytest.raises(SectionError, match="column 'mpp' per section"):
        read_cohort(path, um_per_px=0.5)
    with pytest.raises(SectionError, match="names its patients"):
        read_cohort(path, patient="^(.)")


def test_samples_spot_file_column(tmp_path: Path) -> None:
    truth = fx.st_truth()
    fx.write_counts(tmp_path / "counts.tsv", truth)
    header = "id,patient,path,spots"
    with pytest.raises(FileNotFoundError, match="no spot file for"):
        read_samples(samples(tmp_path, "a,p,counts.tsv,", header=header))
    fx.write_selection(tmp_path / "where.tsv", truth)
    assert read_samples(samples(tmp_path, "a,p,counts.tsv,where.tsv", header=header)).n == len(truth.keys)


@pytest.mark.parametrize(
    ("header", "line", "message"),
    [
        ("id,pateint,path", "a,p,x.h5ad", r"'pateint' \(did you mean 'patient'\?\); missing columns 'patient'"),
        ("id,path", "a,x.h5ad", "missing columns 'patient'"),
        ("id,patient,path,platform", "a,p,c.h5ad,Visum", "line 2: platform 'Visum' is unknown; did you mean 'visium'"),
        ("id,patient,path", "a,,c.h5ad", "line 2: 'patient' is empty"),
        ("id,patient,path,image", "a,p,,slide.tif", "'path' is empty; a slide without counts"),
        ("id,patient,path,mpp", "a,p,c.h5ad,half", "mpp is 'half'; expected a number"),
        ("id,patient,path", "a,p,notes.txt", "is not recognised"),
        ("id,patient,path", "a,p,c.h5ad\na,p,c.h5ad", "duplicate section ids 'a'"),
        ("id,patient,path,platform", "a,p,v,xenium", "is of platform 'visium', but 'xenium' is given"),
    ],
)
def test_samples_errors(tmp_path: Path, header: str, line: str, message: str) -> None:
    fx.visium_adata().write_h5ad(tmp_path / "c.h5ad")
    fx.write_visium(tmp_path / "v")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(SectionError, match=message):
        read_samples(samples(tmp_path, line, header=header))


def test_samples_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"line 2: column 'path' names 'gone\.h5ad'"):
        read_samples(samples(tmp_path, "a,p,gone.h5ad", header="id,patient,path"))
    with pytest.raises(SectionError, match="lists no sections"):
        read_samples(samples(tmp_path, header="id,patient,path"))
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_samples(tmp_path / "none.csv")


def test_what_is_not_recognised(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(SectionError, match=r"is not recognised\. Expected a samples\.csv"):
        read_cohort(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is nothing at"):
        read_cohort(tmp_path / "none")


def test_readers_do_not_import_torch() -> None:
    code = "import sys, histoweave.data.catalog; sys.exit(bool({'torch', 'pooch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
