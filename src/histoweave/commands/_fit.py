"""Fitting a model on a whole cohort, and predicting with it."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
from anndata import AnnData

from histoweave._repro import digest
from histoweave.bench._digest import section_digest
from histoweave.bench.benchmark import Benchmark
from histoweave.bench.expected import check_same, expected_accuracy
from histoweave.bench.summary import Report, summarise
from histoweave.commands._bench import Progress, Say, quiet
from histoweave.data.section import Cohort
from histoweave.data.split import k_fold
from histoweave.inference import predict_slide
from histoweave.settings import FitSettings, PredictSettings, RunSettings, choose_sections, set_up
from histoweave.train import Learner, load_predictor
from histoweave.train.saved import check_folder


def fit(
    cohort: Cohort,
    out: str | Path | None = None,
    settings: FitSettings | None = None,
    *,
    say: Say = quiet,
    progress: Progress | None = None,
) -> Learner:
    """Fits a model on a cohort, with the accuracy per gene to expect of it, and saves it if a folder is given."""
    settings = settings or FitSettings()
    set_up(settings.threads, settings.device)
    chosen = choose_sections(cohort, settings.sections)
    expected, note = _checked_expectation(chosen, settings)
    if out is not None:
        check_folder(Path(out))
    store = settings.open_store()
    checkpoint = None if out is None else _checkpoint(Path(out).absolute(), chosen, settings)
    learner = Learner(
        settings.model,
        settings.view(),
        store,
        recipe=settings.recipe,
        seed=settings.seed,
        device=settings.device,
        checkpoint=checkpoint,
        progress=progress,
        trunk_weights=settings.trunk_weights,
    ).fit(chosen)
    if expected is not None:
        learner.expected, learner.expected_note = expected, note
    elif settings.cv:
        say(f"cross-validation over {settings.cv} folds of patients")
        learner.expected = _cross_validated(chosen, settings, checkpoint and checkpoint / "cv", progress)
        learner.expected_note = f"{settings.cv}-fold cross-validation by patient"
    if out is not None:
        learner.save(out)
        shutil.rmtree(checkpoint, ignore_errors=True)  # type: ignore[arg-type]
        say(f"saved {out}")
    return learner


def _checked_expectation(cohort: Cohort, settings: FitSettings) -> tuple[pd.DataFrame | None, str]:
    """The accuracy per gene from a benchmark and where it is from; what is wrong is said before anything is fitted."""
    if settings.from_bench and settings.cv:
        raise ValueError("--cv and --from-bench both give the expected accuracy; use one of them")
    if settings.cv:
        k_fold(cohort, settings.cv)
    if not settings.from_bench:
        return None, ""
    report = Report.read(settings.from_bench)
    check_same(report, settings.view(), settings.recipe)
    note = f"benchmark {report.card['benchmark']!r}, {report.card['protocol']} protocol"
    return expected_accuracy(report, settings.model), note


def _checkpoint(out: Path, cohort: Cohort, settings: FitSettings) -> Path:
    """Where a killed fit of the same cohort with the same settings finds its state again."""
    address = digest({"sections": [section_digest(section) for section in cohort], **asdict(settings)})
    return out.with_name(f".{out.name}-{address[:16]}")


def _cross_validated(
    cohort: Cohort, settings: FitSettings, folder: Path | None, progress: Progress | None
) -> pd.DataFrame:
    """The accuracy per gene over folds of patients; with a folder, a killed run goes on where it stopped."""
    benchmark = Benchmark(
        name="cv",
        cohort=cohort,
        splits=tuple(k_fold(cohort, settings.cv)),
        view=settings.view(),
        models=(settings.model,),
        controls=(),
        recipe=settings.recipe,
        seeds=(settings.seed,),
        trunk_weights=settings.trunk_weights,
    )
    with TemporaryDirectory() as temporary:
        run = Path(temporary) if folder is None else folder
        cells = benchmark.run(run, settings.open_store(), device=settings.device, progress=progress)
        return expected_accuracy(summarise(benchmark, cells, run), settings.model)


def predict(
    model: str | Path | Learner,
    image: str | Path,
    out: str | Path | None = None,
    settings: PredictSettings | None = None,
    *,
    progress: Progress | None = None,
) -> AnnData:
    """Expression at every tile of a slide without counts, by a saved or fitted model."""
    settings = settings or PredictSettings()
    set_up(settings.threads, settings.device)
    if isinstance(model, Learner):
        learner = model
    else:
        store = RunSettings(store=settings.store).open_store()
        learner = load_predictor(model, store, device=settings.device, weights=settings.weights, progress=progress)
    return predict_slide(
        learner,
        image,
        out,
        um_per_px=settings.mpp,
        pitch_um=settings.pitch,
        min_tissue=settings.min_tissue,
        progress=progress,
    )
