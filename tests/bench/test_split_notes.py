"""What a published split says of itself stands above the numbers of its benchmark."""

from __future__ import annotations

from pathlib import Path

import histoweave as hw
from histoweave.bench.markdown import notes
from histoweave.data import catalog
from histoweave.data.phantom import phantom_like


def test_a_split_by_section_and_without_test_sections_is_told_at_the_top(tmp_path: Path) -> None:
    row = catalog.dataset("spared-mirzazadeh_human_colon_p1")
    cohort = phantom_like(row.name, spots=(5, 5), um_per_px=12.5).cohort
    settings = hw.BenchSettings(models="mean", controls="", target="log1p-cpm", panel="top-mean:20", recipe="tiny")
    report = hw.benchmark(cohort, tmp_path / "run", settings, splits=(row.published_split(cohort),))
    assert report.card["folds"] == {row.name: ["V11M22-349_A1"]}
    above = notes(report)
    assert above[0].startswith("Split by section: sections of one patient stand on several sides")
    assert above[1].startswith("Patients are serial numbers of capture slides, not people")
    assert above[2].startswith("Validation-selected: no test split was published")
    written = (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    assert all(f"> {note}" in written for note in above[:3])
    del report.card["split_notes"]  # as runs before it was kept
    assert notes(report) == above[3:]
