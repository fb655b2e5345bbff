"""The benchmark of xMINT's cost: its arithmetic is the specification's, its report is written. Nothing here is timed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from benchmarks import xmint
from benchmarks.clock import Disagreement
from benchmarks.xmint import (
    QUICK,
    TABLE,
    WAYS,
    Row,
    Sizes,
    arguments,
    run,
    step,
    step_bf16,
    step_flop,
    tokenizer_macs,
    way,
)
from benchmarks.xmint import transformer_macs as macs

from histoweave.batch import Dims
from histoweave.models.impute.xmint import XMINT


@pytest.mark.parametrize(
    ("row", "region", "sequence"),
    list(zip(TABLE, (861, 861, 311, 311, 861), (22.6, 66.6, 7.3, 19.9, 33.3), strict=True)),
)
def test_the_arithmetic_is_that_of_the_specification(row: Row, region: float, sequence: float) -> None:
    with torch.device("meta"):
        model = XMINT(Dims(genes=176, shared=200), **arguments(row, Sizes()))  # type: ignore[arg-type]
    assert model.tokenizer is not None
    assert tokenizer_macs(model.tokenizer, 1024**2) / 1e9 == pytest.approx(region, abs=0.5)
    assert macs(model, 1024) / 1e9 == pytest.approx(sequence, rel=0.01)
    flop = step_flop(row, Sizes(), patches=4096)
    assert flop["dense"] == 4 * flop["patches"]


def test_the_report_is_written_part_by_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def here(job: str, sizes: Sizes, device: str, *given: str) -> object:  # every row is a process of its own
        if job == "way":
            return way(sizes, device, Path(given[0]), given[1])
        return {"step": step, "bf16": step_bf16}[job](sizes, device, int(given[0]))

    monkeypatch.setattr(xmint, "in_its_own", here)
    def rate(device: str) -> dict[str, float]:
        return {"convolution": 1e9, "matrices": 4e9 if torch.is_autocast_enabled(device) else 2e9}

    monkeypatch.setattr(xmint, "rate", rate)
    monkeypatch.setattr(xmint, "timed", lambda run, device: (run(), 1.5)[1])
    monkeypatch.setattr(xmint, "TABLE", TABLE[-1:])
    text = run("table1", tmp_path, sizes=QUICK, device="cpu", command="test")
    assert "27,297,808 | 1.50 |" in text and "fixed statistics" not in text and "In bf16 the step takes 1.5 s" in text
    text = run("tokenizer", tmp_path, sizes=QUICK, device="cpu", command="test")
    assert (tmp_path / "xmint-cost.md").read_text() == text
    assert "27,297,808" in text and all(f"| {name} | 1.50 |" in text for name in WAYS)
    found = json.loads((tmp_path / "xmint-cost.json").read_text())
    rates = {row["way"]: row["rate"]["matrices"] for row in found["tokenizer"]["rows"]}
    assert rates == {name: 4e9 if "bf16" in name else 2e9 for name in WAYS}  # each row has the floor of its precision
    assert found["tokenizer"]["errors"]["values"] <= 1e-5 and set(found) == {"table1", "tokenizer"}
    monkeypatch.setitem(xmint.TOLERANCE, "gradients", -1.0)
    with pytest.raises(Disagreement, match="gradients of occupied patches"):
        run("tokenizer", tmp_path, sizes=QUICK, device="cpu", command="test")


def test_other_parameters_than_the_published_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xmint, "TABLE", (Row(256, 4, 4, 4, 1, 1.0),))
    with pytest.raises(Disagreement, match="has 16,799,760 parameters here"):
        xmint.table1(QUICK, "cpu")
