"""The benchmark of the SpaRED steps: its ways agree, its table is written. Nothing here is timed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from benchmarks import completion_memory, completion_speed
from benchmarks.clock import Disagreement, compare
from benchmarks.completion_speed import QUICK, combat_jobs, main, median_jobs, moran_jobs


def test_all_ways_agree() -> None:
    jobs = [*median_jobs(QUICK, None), *moran_jobs(QUICK), *combat_jobs(QUICK)]
    assert [job.share for job in jobs] == [QUICK.sampled / QUICK.genes] * 2 + [1.0] * 3
    for job in jobs:
        assert all(compare(job.case)[0])


def test_a_difference_is_seen() -> None:
    jobs = [next(median_jobs(QUICK, None)), next(moran_jobs(QUICK))]
    for job in jobs:
        (pair,) = job.case.pairs
        assert pair.same is not None
        ours, theirs = ([np.array(x) for x in job.case.ways[way]()] for way in (pair.ours, pair.theirs))
        with pytest.raises(Disagreement, match="differ"):
            pair.same([ours[0] + 0.1], theirs)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("HISTOWEAVE_DATA", raising=False)
    monkeypatch.setattr(completion_speed, "measure", lambda case, rounds: _once(case))
    main(["--quick", "--only", "median", "--out", str(tmp_path)])
    text = (tmp_path / "completion-speed.md").read_text(encoding="utf-8")
    assert text.strip() == capsys.readouterr().out.strip()
    assert "`python -m benchmarks.completion_speed --quick --only median`" in text
    assert text.count("identical") == 2
    assert "met" not in text and "MISSED" not in text  # tiny sizes judge nothing
    with pytest.raises(SystemExit):
        main(["--only", "mean"])
    with pytest.raises(SystemExit):
        main(["--rounds", "0"])


def _once(case):  # type: ignore[no-untyped-def]
    agreement, seconds = compare(case)
    return completion_speed.Measured(case, {way: [time] for way, time in seconds.items()}, agreement)


@pytest.mark.parametrize("form", completion_memory.FORMS)
def test_memory_is_measured_around_a_whole_section(form: str) -> None:
    row = completion_memory.one(form, 120, 6)
    assert 0 < row["before_mib"] <= row["peak_mib"] and row["seconds"] > 0
    text = completion_memory.page([row, row], 120, 6, 0.0)
    assert text.count("| yes |") == 2 and "120 spots of one section × 6 genes" in text
