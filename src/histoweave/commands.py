"""What the commands do, as functions of a cohort and settings; the command line only parses and prints."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
from anndata import AnnData

from histoweave import _keys as K
from histoweave._repro import digest
from histoweave.bench.benchmark import Benchmark, section_digest
from histoweave.bench.plan import plan
from histoweave.bench.summary import Report, summarise
from histoweave.data.section import Cohort, Section
from histoweave.data.split import Split, k_fold, make_splits
from histoweave.inference import predict_slide
from histoweave.models import split_specs
from histoweave.settings import BenchSettings, FitSettings, PredictSettings, RunSettings, choose_sections
from histoweave.train import Learner, load_predictor

Progress = Callable[[int, int, str], None]
Say = Callable[[str], None]


def _quiet(_: str) -> None:
    return None


def make_benchmark(cohort: Cohort, settings: BenchSettings, *, splits: tuple[Split, ...] | None = None) -> Benchmark:
    """The benchmark that the settings describe; `splits` wins over ``settings.split``."""
    chosen = choose_sections(cohort, settings.sections)
    return Benchmark(
        name=settings.name or "benchmark", cohort=chosen, splits=splits or tuple(make_splits(chosen, settings.split)),
        view=settings.view(), models=tuple(split_specs(settings.models)), controls=tuple(split_specs(settings.controls)),
        recipe=settings.recipe, seeds=tuple(range(settings.seeds)), protocol=settings.protocol,  # type: ignore[arg-type]
        ensemble=settings.ensemble,
    )


def bench(
    cohort: Cohort, out: str | Path, settings: BenchSettings | None = None, *, splits: tuple[Split, ...] | None = None,
    say: Say = _quiet, progress: Progress | None = None,
) -> Report:
    """Runs a benchmark into a folder, or goes on with it, and returns its report.

    Raises
    ------
    TooLong
        If the plan takes longer than ``settings.max_hours``.
    """
    settings = settings or BenchSettings()
    settings.set_threads()
    benchmark = make_benchmark(cohort, settings, splits=splits)
    if left := benchmark.left_out():
        say(f"controls left out, because sections have no image: {', '.join(left)}")
    if not settings.resume and any(cell.done for cell in benchmark.cells(Path(out))):
        raise FileExistsError(f"{out} holds finished cells of this benchmark; use --resume, or another --out")
    planned = plan(benchmark, out, device=settings.device)
    say(str(planned))
    planned.check(settings.max_hours)
    cells = benchmark.run(out, settings.open_store(), device=settings.device, progress=progress)
    return summarise(benchmark, cells, out)


def external_split(train: Cohort, test: Cohort) -> tuple[Cohort, tuple[Split, ...], list[str]]:
    """Both cohorts as one, the one fold that trains on the first and tests on the second, and the genes not matched.

    Genes are matched by name; those that are not in every section of both are reported and not predicted.
    """
    common = set(train.genes("common")) & set(test.genes("common"))
    missing = [gene for gene in train.genes("common") if gene not in common]
    if not common:
        raise ValueError(f"the cohorts share no gene name (training: {', '.join(train.genes('common')[:3])}…; test: "
                         f"{', '.join(test.genes('common')[:3])}…). Are both symbols, or both Ensembl ids?")
    taken = set(train.ids) | set(train.patients)
    renamed = [_prefixed(section, "test-") if {section.id, section.patient} & taken else section for section in test]
    joined = Cohort([*train, *renamed])
    split = Split(train=train.ids, test=tuple(section.id for section in renamed), name="external")
    return joined, (split.check(joined),), missing


def _prefixed(section: Section, prefix: str) -> Section:
    return replace(section, id=prefix + section.id, patient=prefix + section.patient)


def fit(
    cohort: Cohort, out: str | Path | None = None, settings: FitSettings | None = None, *, say: Say = _quiet,
    progress: Progress | None = None,
) -> Learner:
    """Fits a model on a cohort, with the accuracy per gene to expect of it, and saves it if a folder is given."""
    settings = settings or FitSettings()
    settings.set_threads()
    chosen = choose_sections(cohort, settings.sections)
    store = settings.open_store()
    checkpoint = None if out is None else _checkpoint(Path(out), chosen, settings)
    learner = Learner(settings.model, settings.view(), store, recipe=settings.recipe, seed=settings.seed,
                      device=settings.device, checkpoint=checkpoint, progress=progress).fit(chosen)
    if settings.from_bench:
        report = Report.read(settings.from_bench)
        learner.expected = expected_accuracy(report, settings.model)
        learner.expected_note = f"benchmark {report.card['benchmark']!r}, {report.card['protocol']} protocol"
    elif settings.cv:
        say(f"cross-validation over {settings.cv} folds of patients")
        learner.expected = _cross_validated(chosen, settings, progress)
        learner.expected_note = f"{settings.cv}-fold cross-validation by patient"
    if out is not None:
        learner.save(out)
        shutil.rmtree(checkpoint, ignore_errors=True)  # type: ignore[arg-type]
        say(f"saved {out}")
    return learner


def _checkpoint(out: Path, cohort: Cohort, settings: FitSettings) -> Path:
    """Where a killed fit of the same cohort with the same settings finds its state again."""
    address = digest({"sections": [section_digest(section) for section in cohort], **asdict(settings)})
    return out.with_name(f".{out.name}-{address[:16]}")


def _cross_validated(cohort: Cohort, settings: FitSettings, progress: Progress | None) -> pd.DataFrame:
    from tempfile import TemporaryDirectory

    benchmark = Benchmark(name="cv", cohort=cohort, splits=tuple(k_fold(cohort, settings.cv)), view=settings.view(),
                          models=(settings.model,), controls=(), recipe=settings.recipe, seeds=(settings.seed,))
    with TemporaryDirectory() as folder:
        cells = benchmark.run(folder, settings.open_store(), device=settings.device, progress=progress)
        return expected_accuracy(summarise(benchmark, cells, folder), settings.model)


def expected_accuracy(report: Report, model: str) -> pd.DataFrame:
    """Per gene: mean over patients of the within-section PCC of a model, its sd over patients, and their number."""
    rows = report.rows[(report.rows["metric"] == "pcc") & (report.rows["model"] == model)]
    if rows.empty:
        raise ValueError(f"the benchmark has no model {model!r}; it has {', '.join(report.models)}")
    patient = rows.groupby(["gene", "patient"], sort=False)["value"].mean().groupby("gene", sort=False)
    return pd.DataFrame({K.CV_PCC: patient.mean(), K.CV_PCC_SD: patient.std(ddof=0), K.CV_PCC_N: patient.count()})


def predict(
    model: str | Path | Learner, image: str | Path, out: str | Path | None = None, settings: PredictSettings | None = None,
    *, progress: Progress | None = None,
) -> AnnData:
    """Expression at every tile of a slide without counts, by a saved or fitted model."""
    settings = settings or PredictSettings()
    if isinstance(model, Learner):
        learner = model
    else:
        store = RunSettings(store=settings.store).open_store()
        learner = load_predictor(model, store, device=settings.device, weights=settings.weights, progress=progress)
    return predict_slide(learner, image, out, um_per_px=settings.mpp, pitch_um=settings.pitch,
                         min_tissue=settings.min_tissue, progress=progress)
