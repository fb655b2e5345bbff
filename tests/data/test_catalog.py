"""The catalog and the suites: complete rows, the published folds and values, and fetching without a network."""

from __future__ import annotations

import tarfile
import tomllib
import zipfile
from importlib import resources
from pathlib import Path

import numpy as np
import pooch
import pytest
from sklearn.model_selection import KFold
from tests.data import fixtures as fx

from histoweave.data import catalog
from histoweave.data.catalog import DatasetNotFound, UnknownDataset
from histoweave.data.phantom import phantom_like
from histoweave.data.section import Cohort, make_section
from histoweave.data.split import from_table
from histoweave.pp.counts import PRESETS

MODELS = ["bleep", "egn", "gem", "hist2st", "histogene", "nem", "stnet", "tem", "triplex"]
SUITES = tomllib.loads(resources.files("histoweave.bench").joinpath("suites.toml").read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def _no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HISTOWEAVE_DATA", raising=False)


def test_rows_are_complete() -> None:
    rows = catalog.datasets()
    ours = ["her2st", "stnet", "scc", "visium-breast", "xenium-tonsil", "tonsil-atlas"]
    assert [row.name for row in rows[: len(ours)]] == ours
    assert all(row.name.startswith("spared-") for row in rows[len(ours) :])
    assert len({row.name for row in rows}) == len(rows) == len(ours) + 26
    for row in rows:
        assert row.licence
        assert row.citation
        assert bool(row.files) != bool(row.by_hand)  # downloaded, or the way to get it is told
        assert len(set(row.patients)) == len(row.patients)
        assert all(file.url.startswith("https://") and file.filename for file in row.files)
        assert all(file.sha256 is None or len(file.sha256) == 64 for file in row.files)
        assert len({(file.into, file.filename) for file in row.files}) == len(row.files)
        for other, same in row.overlaps.items():
            theirs = catalog.dataset(other)
            assert set(same) <= set(row.patients)
            assert theirs.overlaps[row.name] == {b: a for a, b in same.items()}


def test_folds_of_st_net_are_those_of_scikit_learn() -> None:
    row = catalog.dataset("stnet")
    patients = np.array(row.patients)
    folds = KFold(8, shuffle=True, random_state=2021).split(patients)
    assert [sorted(patients[test]) for _, test in folds] == [sorted(fold) for fold in row.folds]
    assert SUITES["triplex-bc2"]["test_patients"] == row.fold_table
    assert sorted(patient for fold in row.folds for patient in fold) == sorted(row.patients)


def test_unknown_name() -> None:
    with pytest.raises(UnknownDataset, match="did you mean 'her2st'"):
        catalog.find("her2")
    with pytest.raises(UnknownDataset, match="there are 'her2st'"):
        catalog.find("zzz")


def test_find_and_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DatasetNotFound, match=r"HISTOWEAVE_DATA is not set.*histoweave data fetch her2st"):
        catalog.find("her2st")
    fx.write_st_folder(tmp_path / "her2st/her2st-abc", {"A1": True, "B1": False}, "github")
    assert catalog.find("her2st", tmp_path) == tmp_path / "her2st"
    assert catalog.find("her2st", tmp_path / "her2st") == tmp_path / "her2st"
    monkeypatch.setenv("HISTOWEAVE_DATA", str(tmp_path))
    assert catalog.find("her2st") == tmp_path / "her2st"
    cohort = catalog.load("her2st")
    assert (cohort.ids, cohort.patients) == (("A1", "B1"), ("A", "B"))
    assert catalog.load("her2st", sections="with-image").ids == ("A1",)
    assert catalog.fetch("her2st", download=False) == tmp_path / "her2st"
    with pytest.raises(DatasetNotFound, match="'scc' is not on this machine"):
        catalog.fetch("scc", tmp_path, download=False)
    with pytest.raises(DatasetNotFound):  # the folder of another dataset is not taken for it
        catalog.find("scc", tmp_path / "her2st")


def test_load_takes_the_patients_of_the_catalog(tmp_path: Path) -> None:
    for id in catalog.dataset("visium-breast").patient_of:
        fx.write_visium(tmp_path / "visium-breast" / id, prefix=f"{id}_")
    cohort = catalog.load("visium-breast", tmp_path)
    assert cohort.patients == catalog.dataset("visium-breast").patients
    assert [section.patient for section in cohort] == ["block-A", "block-A", "Visium_Human_Breast_Cancer"]
    fx.write_st_folder(tmp_path / "scc", {f"{p}_ST_rep1": False for p in ("P2", "P10")}, "geo")
    assert set(catalog.load("scc", tmp_path).patients) == {"P2", "P10"}


class Network:
    """Stands for `pooch.retrieve`: serves local files by the end of their url, and fails from a given call on."""

    def __init__(self, files: dict[str, Path], fail_at: int = 10**9) -> None:
        self.files, self.fail_at, self.asked = files, fail_at, []

    def __call__(self, url: str, known_hash: str | None, fname: str, path: Path, progressbar: bool) -> str:
        if len(self.asked) >= self.fail_at:
            raise OSError("no route to host")
        self.asked.append(url)
        Path(path).mkdir(parents=True, exist_ok=True)
        served = Path(path) / fname
        served.write_bytes(next(file for end, file in self.files.items() if url.endswith(end)).read_bytes())
        return str(served)


def test_fetch_unpacks_and_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fx.write_st_folder(tmp_path / "made/her2st-x", {"A1": True}, "github")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in (tmp_path / "made").rglob("*"):
            archive.write(path, path.relative_to(tmp_path / "made"))
    monkeypatch.setattr(pooch, "retrieve", Network({".zip": tmp_path / "a.zip"}))
    with pytest.raises(DatasetNotFound, match="no place for dataset 'her2st'"):
        catalog.fetch("her2st")
    folder = catalog.fetch("her2st", tmp_path / "data")
    assert folder == tmp_path / "data/her2st"
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["her2st"]
    assert sorted(path.name for path in folder.iterdir()) == ["her2st-x"]
    assert catalog.load("her2st", folder).ids == ("A1",)
    monkeypatch.setattr(pooch, "retrieve", Network({}, fail_at=0))
    assert catalog.fetch("her2st", tmp_path / "data") == folder


def test_interrupted_fetch_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = catalog.dataset("visium-breast")
    truth_folder = tmp_path / "one"
    fx.write_visium(truth_folder)
    with tarfile.open(tmp_path / "spatial.tar.gz", "w:gz") as archive:
        archive.add(truth_folder / "spatial", "spatial")
    files = {
        "matrix.h5": truth_folder / "filtered_feature_bc_matrix.h5",
        "spatial.tar.gz": tmp_path / "spatial.tar.gz",
        "image.tif": fx.write_image(tmp_path / "image.tif", (90, 90)),
    }
    broken = Network(files, fail_at=4)
    monkeypatch.setattr(pooch, "retrieve", broken)
    with pytest.raises(DatasetNotFound, match=r"could not be fetched \(no route to host\)"):
        catalog.fetch(row.name, tmp_path / "data")
    with pytest.raises(DatasetNotFound):
        catalog.find(row.name, tmp_path / "data")
    again = Network(files)
    monkeypatch.setattr(pooch, "retrieve", again)
    catalog.fetch(row.name, tmp_path / "data")
    assert len(broken.asked) + len(again.asked) == len(row.files) == 9
    cohort = catalog.load(row.name, tmp_path / "data")
    assert len(cohort.with_image()) == 3


def test_unpacked_images_and_archives_that_reach_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gzip

    (tmp_path / "made").mkdir()
    image = fx.write_image(tmp_path / "i.png", (4, 4)).read_bytes()
    (tmp_path / "made/P2_ST_rep1.png.gz").write_bytes(gzip.compress(image))
    (tmp_path / "made/outside.txt").write_text("x")
    with tarfile.open(tmp_path / "good.tar", "w") as archive:
        archive.add(tmp_path / "made/P2_ST_rep1.png.gz", "P2_ST_rep1.png.gz")
    with tarfile.open(tmp_path / "bad.tar", "w") as archive:
        archive.add(tmp_path / "made/outside.txt", "../../outside.txt")
    monkeypatch.setattr(pooch, "retrieve", Network({"format=file": tmp_path / "good.tar"}))
    assert (catalog.fetch("scc", tmp_path / "data") / "P2_ST_rep1.png").read_bytes() == image
    monkeypatch.setattr(pooch, "retrieve", Network({"format=file": tmp_path / "bad.tar"}))
    with pytest.raises(tarfile.OutsideDestinationError):
        catalog.fetch("scc", tmp_path / "other")
    assert not list((tmp_path).glob("outside.txt"))


def test_suites_are_complete() -> None:
    for name in ("triplex-bc1", "triplex-bc2", "triplex-scc"):
        suite = SUITES[name]
        row = catalog.dataset(suite["dataset"])
        assert suite["target"] in PRESETS
        assert suite["split"] == row.split
        assert suite["folds"] == (len(row.folds) or len(row.patients))
        assert sorted(suite["published"]) == MODELS
        for model, values in suite["published"].items():
            assert {"mse", "pcc_m", "pcc_h_paper"} <= set(values), model
            for metric in ("mse", "pcc_m", "pcc_h_paper"):
                mean, sd = values[metric]
                assert -1 < mean < 1.3
                assert 0 < sd < 0.7
            assert values["pcc_h_paper"][0] > values["pcc_m"][0]  # the better ranked fifth of the same genes


def test_published_values_agree_with_statements_of_the_paper() -> None:
    """The text quotes gains of TRIPLEX over EGN, and the mean over Visium: another place than the tables."""
    for name, gains in (("bc1", (0.117, 0.169)), ("bc2", (0.095, 0.149)), ("scc", (0.093, 0.102))):
        published = SUITES[f"triplex-{name}"]["published"]
        ours, egn = published["triplex"], published["egn"]
        assert ours["pcc_m"][0] - egn["pcc_m"][0] == pytest.approx(gains[0], abs=1e-9)
        assert ours["pcc_h_paper"][0] - egn["pcc_h_paper"][0] == pytest.approx(gains[1], abs=1e-9)
    visium = SUITES["triplex-visium"]["published_sections"]["triplex"]["pcc_h_paper"]
    assert np.mean(visium) == pytest.approx(0.293, abs=5e-4)


def test_the_folds_split_sections_with_the_patients_of_the_catalog() -> None:
    row = catalog.dataset("stnet")
    cohort = Cohort(
        make_section(
            id=f"{patient}_{i}",
            patient=patient,
            counts=np.ones((2, 1)),
            genes=["G"],
            xy=[[0, 0], [9, 9]],
            platform="st",
            um_per_px=1.0,
        )
        for patient in row.patients
        for i in (1, 2)
    )
    splits = from_table(cohort, row.fold_table)
    assert [len(split.test) for split in splits] == [2 * len(fold) for fold in row.folds]


def test_a_phantom_has_the_patients_of_its_suite() -> None:
    suite = SUITES["triplex-scc"]  # the smallest; the shapes of all are tested with the phantom
    row = catalog.dataset(suite["dataset"])
    cohort = phantom_like(suite["phantom"], spots=(4, 4)).cohort
    assert cohort.patients == row.patients
    assert len(cohort) == row.sections
