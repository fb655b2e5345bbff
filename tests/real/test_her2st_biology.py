"""Clusters of every section, and ERBB2 where cells carry its amplification."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.biology import clusters, differences

from histoweave.data.io import read_cohort
from histoweave.data.section import Cohort

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def her2st(her2st_folder: Path) -> Cohort:
    return read_cohort(her2st_folder)


def test_every_section_has_clusters(her2st: Cohort) -> None:
    rows = [clusters(section) for section in her2st]
    assert len(rows) == 36 and all(2 <= int(str(row["clusters"])) <= 15 for row in rows)


def test_her2_is_higher_in_cancer(her2st: Cohort) -> None:
    rows = [row for section in her2st if (row := differences(section)) is not None]
    assert len(rows) == 8
    assert all(float(str(row["ERBB2 effect"])) > 0 for row in rows)  # every one of these tumours is HER2-positive
