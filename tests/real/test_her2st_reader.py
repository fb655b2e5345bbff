"""The her2st reader on the authors' files: the published number of spots, and facts that were checked by hand."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from histoweave.data import catalog
from histoweave.data.io import read_cohort
from histoweave.data.io._tsv import read_count_table
from histoweave.data.section import Cohort

pytestmark = pytest.mark.real
LABELLED = {"A1", "B1", "C1", "D1", "E1", "F1", "G2", "H1"}


@pytest.fixture(scope="module")
def cohort(her2st_folder: Path) -> Cohort:
    return read_cohort(her2st_folder)


def test_spots_sections_patients_and_genes(cohort: Cohort) -> None:
    assert (cohort.n, len(cohort), cohort.patients) == (13_620, 36, tuple("ABCDEFGH"))
    assert len(cohort.genes("common")) == 11_871
    assert len(cohort.genes("union")) == 18_758
    sections = cohort.obs.groupby("patient").size()
    assert sections.to_dict() == dict.fromkeys("ABCD", 6) | dict.fromkeys("EFGH", 3)


def test_images(cohort: Cohort) -> None:
    assert cohort.with_image().ids == ("B4", "C2", "C3", "C4", "C5", "C6")
    assert cohort["B4"].n == 283
    assert cohort.where_patient("C").with_image().n == 910


def test_scale(cohort: Cohort) -> None:
    scale = cohort.obs["um_per_px"]
    first = cohort.obs["patient"] == "A"
    np.testing.assert_allclose(scale[first], 0.917, atol=0.004)
    np.testing.assert_allclose(scale[~first], 0.688, atol=0.004)


def test_labels_cover_the_labelled_sections(cohort: Cohort) -> None:
    assert {section.id for section in cohort if "label" in section.spots.obs} == LABELLED
    for id in LABELLED:
        label = cohort[id].spots.obs["label"]
        assert label.notna().all()
        assert 4 <= label.nunique() <= 7
    assert all(section.spots.obs["cluster"].notna().mean() > 0.75 for section in cohort)


def test_counts_equal_those_read_by_pandas(cohort: Cohort, her2st_folder: Path) -> None:
    section = cohort["C1"]
    table = pd.read_csv(her2st_folder / "ST-cnts/C1.tsv.gz", sep="\t", index_col=0)
    assert list(section.genes) == list(table.columns)
    np.testing.assert_array_equal(section.spots.X.toarray(), table.loc[section.spots.obs_names].to_numpy())


def test_catalog_finds_it(her2st_folder: Path) -> None:
    assert catalog.find("her2st", her2st_folder) == her2st_folder
    assert catalog.load("her2st", her2st_folder.parent, sections=["C1"]).patients == ("C",)


def test_reading_is_faster_than_the_usual_idiom(her2st_folder: Path) -> None:
    path = her2st_folder / "ST-cnts/A2.tsv.gz"

    def seconds(read: Callable[[], object]) -> float:
        start = time.process_time()
        read()
        return time.process_time() - start

    ours = min(seconds(lambda: read_count_table(path)) for _ in range(3))
    usual = seconds(lambda: csr_matrix(pd.read_csv(path, sep="\t", index_col=0).to_numpy()))
    assert usual > 2 * ours
