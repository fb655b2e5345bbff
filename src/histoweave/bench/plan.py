"""What a benchmark will cost, estimated before it starts: windows to encode, and training steps, both timed here."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from histoweave.batch import FROZEN, Dims, Needs
from histoweave.bench.benchmark import Benchmark
from histoweave.data.section import Cohort, Section
from histoweave.embed import SectionFeatures, encoder_card
from histoweave.embed.context import lay_tiles
from histoweave.feed import Feed
from histoweave.models import create
from histoweave.train import Spec
from histoweave.train.transfer import TransferSpec
from histoweave.view import CONTEXT, Features, View

_TILES = CONTEXT * CONTEXT
_TRIAL = 16  # windows encoded and spots trained on to take the time


class TooLong(ValueError):
    """The plan takes more hours than allowed."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Predicted cost of what is not done yet.

    Attributes
    ----------
    windows
        Distinct windows of the cohort; those that the store already holds cost nothing.
    seconds_embedding, seconds_training
        At the speed just measured; training at its longest, without early stopping.
    cells, cells_done
        Cells of the benchmark, and those that an earlier run left finished.
    imputers
        Cells to do that are imputers, whose time is not counted: they tell nothing of it before they run.
    """

    windows: int
    seconds_embedding: float
    seconds_training: float
    cells: int
    cells_done: int
    imputers: int = 0

    @property
    def hours(self) -> float:
        """Upper estimate of the whole."""
        return (self.seconds_embedding + self.seconds_training) / 3600

    def __str__(self) -> str:
        return (
            f"{self.cells} cells, {self.cells_done} done; at most {self.windows} windows to encode "
            f"(≈ {self.seconds_embedding / 60:.1f} min) and ≈ {self.seconds_training / 60:.1f} min of training: "
            f"{self.hours:.2f} h in all"
        ) + (f"; the time of {self.imputers} cells of imputers is not counted" if self.imputers else "")

    def check(self, max_hours: float) -> None:
        """`TooLong` if the plan takes more hours than allowed."""
        if self.hours > max_hours:
            raise TooLong(
                f"the plan takes up to {self.hours:.1f} h, and --max-hours is {max_hours:g}. Raise it, take "
                "fewer models or seeds, a shorter --recipe, or sections with fewer spots"
            )


def plan(benchmark: Benchmark, out: str | Path, *, device: str = "cpu") -> Plan:
    """The cost of the cells that are not finished in the folder of the run."""
    cells = benchmark.cells(Path(out))
    todo = [cell for cell in cells if not cell.done]
    needs = Needs.NONE
    for cell in todo:
        needs |= benchmark.spec(cell.model).sees
    view = benchmark.view
    context = CONTEXT if Needs.CTX_EMB in needs else 0
    windows = sum(_windows(section, view, context) for section in benchmark.cohort) if needs & FROZEN else 0
    embedding = windows / _throughput(view, device) if windows else 0.0
    steps: dict[str, float] = {}
    training = 0.0
    for cell in todo:
        if cell.model not in steps:
            steps[cell.model] = _seconds_per_spot(benchmark, benchmark.spec(cell.model), device)
        spots = sum(benchmark.cohort[id].n for id in cell.split.train)
        training += steps[cell.model] * spots * max(1, benchmark.ensemble)
    imputers = sum(isinstance(benchmark.spec(cell.model), TransferSpec) for cell in todo)
    return Plan(windows, embedding, training, len(cells), len(cells) - len(todo), imputers)


def _windows(section: Section, view: View, context: int) -> int:
    """Distinct windows of a section."""
    if section.image is None:
        return 0
    native = view.window.native(section.um_per_px)
    return len(lay_tiles(section.xy, native, view.window.out, context, section.image.size).centres)


def _throughput(view: View, device: str) -> float:
    """Windows per second of the encoder, after one batch to warm up."""
    encoder = view.make_encoder(device)
    side = view.window.out
    pixels = torch.zeros(_TRIAL, 3, side, side, dtype=torch.uint8, device=device)
    encoder.encode(pixels)
    start = time.perf_counter()
    encoder.encode(pixels)
    return _TRIAL / (time.perf_counter() - start)


def _seconds_per_spot(benchmark: Benchmark, spec: Spec | TransferSpec, device: str) -> float:
    """Time of training all epochs of a model and the stages before it per spot, on the cohort's positions and counts.

    Embeddings are zeros, for a second stage too, as wide as the frozen encoder's.
    """
    if isinstance(spec, TransferSpec):  # not counted
        return 0.0
    stages = [stage for stage in (spec.first, spec.filler) if stage is not None]
    before = sum(_seconds_per_spot(benchmark, stage, device) for stage in stages)
    if spec.card.learns != "gradient":
        return before
    needs, recipe = spec.needs, spec.recipe
    cohort = Cohort(benchmark.cohort.subset(benchmark.splits[0].train))
    width = encoder_card(benchmark.view.encoder).dim if needs & FROZEN else 0
    features = zeros(cohort, width, benchmark.view.window.out)
    view = benchmark.fitted_view()
    fitted = view.fit(cohort)
    feed = Feed(
        fitted, cohort, features, needs, device=device, hops=spec.hops, zeros=spec.zeros, sequencing=spec.sequencing
    )
    dims = Dims(genes=len(fitted.genes), emb=width, shared=len(view.shared))
    module = create(spec.name, dims, **spec.args).to(device).train()  # type: ignore[attr-defined]
    if hasattr(module, "index"):
        module.index(feed)
    batches = list(islice(feed.batches(recipe.batch, generator=torch.Generator().manual_seed(0)), 2))
    spots, start = 0, time.perf_counter()
    for i, batch in enumerate([batches[0], *batches]):  # the first step warms up; there may be one batch only
        if i == 1:
            start = time.perf_counter()
        with torch.autocast(feed.device.type, torch.bfloat16, enabled=recipe.precision == "bf16-mixed"):
            value = module.loss(batch)[0]
        value.backward()
        spots += len(batch) if i else 0
    passes = recipe.epochs if recipe.steps is None else recipe.epochs * recipe.steps * recipe.batch / cohort.n
    if recipe.steps is None and Needs.SEQ in needs:  # a batch holds a cell as often as it occurs
        passes *= spec.sequencing.occurrences(cohort) / cohort.n
    return before + passes * (time.perf_counter() - start) / spots


def zeros(cohort: Cohort, width: int, side: int) -> Features:
    """Features of the right shapes that take no memory."""
    return {
        section.id: SectionFeatures(
            emb=np.zeros((section.n, width), dtype=np.float16),
            inside=np.ones(section.n, dtype=np.float32),
            ctx=np.zeros((1, width), dtype=np.float16),
            ctx_index=np.zeros((section.n, _TILES), dtype=np.int32),
            ctx_mask=np.ones((section.n, _TILES), dtype=bool),
            pixels=np.broadcast_to(np.uint8(0), (section.n, side, side, 3)),
        )
        for section in cohort
    }
