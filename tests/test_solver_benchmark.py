"""The benchmark of the solvers: its ways agree, its tables are written. Nothing here is timed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks import solvers
from benchmarks.clock import Disagreement, compare
from benchmarks.solvers import QUICK, TARGETS, Data, lasso, main, nb, ridge, run
from benchmarks.solvers_stream import Spots, chunks, work, write


@pytest.mark.parametrize("make", [ridge, lasso, nb])
def test_all_ways_give_the_same_coefficients(make: object) -> None:
    job = make(Data.of(QUICK))  # type: ignore[operator]
    said = [text for text in compare(job.case)[0] if text]
    assert len(said) == (1 if job.name == "nb" else 2)
    assert job.name in TARGETS and min(job.share.values()) == pytest.approx(QUICK.sampled / QUICK.genes)


def test_a_difference_is_seen() -> None:
    job = ridge(Data.of(QUICK))
    same = job.case.pairs[0].same
    assert same is not None
    (ours,), (theirs,) = (list(job.case.ways[way]()) for way in list(job.case.ways)[:2])
    with pytest.raises(Disagreement, match="results differ"):
        same([ours + 0.1], [theirs])


def test_spots_come_back_from_the_file_in_chunks(tmp_path: Path) -> None:
    write(tmp_path, Spots(8, 6), 5000)
    x, y = Spots(8, 6).draw(100)
    parts = list(chunks(tmp_path))
    assert [len(a) for a, _ in parts] == [4096, 904]
    assert x.shape == (100, 8) and y.shape == (100, 6)
    assert all(torch.isfinite(a).all() and (b >= 0).all() for a, b in parts)
    assert work("ridge", tmp_path) == "finite"
    with pytest.raises(ValueError, match="job 'lass'; expected one of ridge, lasso, nb"):
        work("lass", tmp_path)


def test_the_report_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solvers, "JOBS", ("ridge",))  # every row is a process of its own
    text = run(tmp_path, sizes=QUICK, parts=("ridge", "spots"), rounds=1, command="test")
    assert (tmp_path / "solvers.md").read_text() == text
    found = json.loads((tmp_path / "solvers.json").read_text())
    assert {row["spots"] for row in found["spots"]} == set(QUICK.streamed)
    assert "sampled: 33%" in text and "| ridge | 1,000 |" in text
    assert np.isfinite([row["seconds"] for row in found["spots"]]).all()


def test_unknown_parts_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--only", "rigde"])
    assert "there are no parts ['rigde']" in capsys.readouterr().err
