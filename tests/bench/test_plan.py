"""The plan of a benchmark, with a clock that ticks once per cell that a model reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from histoweave.batch import Batch
from histoweave.bench import plan as planning
from histoweave.bench.plan import plan
from histoweave.commands import make_benchmark
from histoweave.data.phantom import Phantom
from histoweave.data.split import Split
from histoweave.feed import Sequencing
from histoweave.models.impute.xmint import XMINT
from histoweave.settings import BenchSettings


@pytest.mark.parametrize("how", [Sequencing(8, 5), Sequencing(200, 3), Sequencing(2, 3, "paper")])
def test_models_of_sequences_are_counted_by_occurrences(
    how: Sequencing, small: Phantom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, halved = [0.0], []
    plain = XMINT.loss

    def loss(self: XMINT, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        now[0] += len(batch)
        halved.append(torch.is_autocast_enabled("cpu"))
        return plain(self, batch)

    monkeypatch.setattr(XMINT, "loss", loss)
    monkeypatch.setattr(planning.time, "perf_counter", lambda: now[0])
    settings = BenchSettings(
        hide="genes:first:5", controls="gene-mean", threads=1, recipe="cpu", store=str(tmp_path),
        models="xmint[width=8,layers=1,heads=2,expansion=1,image=off,epochs=3,"
        f"length={how.length},repeats={how.repeats},rule={how.rule}]",
    )  # fmt: skip
    split = Split(train=small.cohort.ids[:2], test=small.cohort.ids[2:])
    made = plan(make_benchmark(small.cohort, settings, splits=(split,)), tmp_path)
    occurrences = how.occurrences(small.cohort.subset(split.train))
    assert occurrences > small.cohort.subset(split.train).n
    assert made.seconds_training == pytest.approx(3 * occurrences) and all(halved)  # the recipe is in bf16
    assert made.imputers == 1 and "the time of 1 cells of imputers is not counted" in str(made)
