"""A benchmark killed in the middle ends, when it is run again, with the same bytes; finished work is left alone."""

from __future__ import annotations

from pathlib import Path

from benchmarks.kill import ordeal


def test_a_killed_benchmark_goes_on(tmp_path: Path) -> None:
    found = ordeal("bench", tmp_path, kills=2, seed=1)
    assert found.same and found.untouched and not found.leftover
