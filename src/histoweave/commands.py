"""What the commands do, as functions of a cohort and settings; the command line only parses and prints."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import pandas as pd
from anndata import AnnData

from histoweave._repro import digest
from histoweave.bench import suite_table
from histoweave.bench._digest import section_digest
from histoweave.bench.anand import conclude
from histoweave.bench.benchmark import Benchmark
from histoweave.bench.expected import check_same, expected_accuracy
from histoweave.bench.external import external_split, prefixed
from histoweave.bench.plan import plan
from histoweave.bench.search import tune
from histoweave.bench.sides import SidedBenchmark
from histoweave.bench.suites import DRY, PHANTOM_WINDOW_PX, Suite, fewer, shortened, suite
from histoweave.bench.summary import Report, summarise
from histoweave.data.holdout import Genes, parse_hide
from histoweave.data.section import Cohort
from histoweave.data.split import Split, k_fold, make_splits
from histoweave.embed import encoder_card
from histoweave.inference import predict_slide
from histoweave.models import split_specs, with_argument
from histoweave.pp.counts import Target
from histoweave.pp.genes import select_panel
from histoweave.settings import BenchSettings, FitSettings, PredictSettings, RunSettings, choose_sections, set_up
from histoweave.train import Learner, load_predictor
from histoweave.train.saved import check_folder

Progress = Callable[[int, int, str], None]
Say = Callable[[str], None]
DRY_CONTROLS = ("mean", "ridge")  # what the tables are made with; the others only cost time where values mean nothing


def _quiet(_: str) -> None:
    return None


def make_benchmark(
    cohort: Cohort, settings: BenchSettings, *, splits: tuple[Split, ...] | None = None, all_sides: bool = False
) -> Benchmark:
    """The benchmark that the settings describe; `splits` wins over ``settings.split``. See `SidedBenchmark` for all sides."""
    chosen = choose_sections(cohort, settings.sections)
    if splits is not None:
        splits = tuple(_among(split, set(chosen.ids)) for split in splits)
    settings = settings.named()
    view, hide = settings.view(), parse_hide(settings.hide, chosen.genes("common"))
    if isinstance(hide, Genes):  # panel and target are what is asked for, whatever the settings say of them
        shared = tuple(gene for gene in chosen.genes("common") if gene not in set(hide.names))
        panel = select_panel(chosen, f"list:{','.join(hide.names)}", candidates=hide.names)
        view = replace(view, shared=shared, panel=panel, target=Target.preset("share"))
    return (SidedBenchmark if all_sides else Benchmark)(
        name=settings.name or "benchmark",
        cohort=chosen,
        splits=splits or tuple(make_splits(chosen, settings.split)),
        view=view,
        models=_layered(settings.models, settings.target_layer),
        controls=_layered(settings.controls, settings.target_layer),
        hide=hide,
        rates=tuple(float(rate) for rate in settings.rates.split(",") if rate.strip()),
        measured=settings.measured,
        recipe=settings.recipe,
        seeds=tuple(range(settings.seeds)),
        protocol=settings.protocol,
        ensemble=settings.ensemble,
        trunk_weights=settings.trunk_weights,
    )


def _layered(models: str, layer: str) -> tuple[str, ...]:
    """The models, each with the layer that it learns, where that is not raw counts."""
    given = split_specs(models)
    return tuple(given if layer == "raw" else [with_argument(model, "layer", layer) for model in given])


def _among(split: Split, ids: set[str]) -> Split:
    """The split without the sections that were not chosen."""
    train, test, val = (tuple(id for id in side if id in ids) for side in (split.train, split.test, split.val))
    return replace(split, train=train, test=test, val=val)


def bench(
    cohort: Cohort,
    out: str | Path,
    settings: BenchSettings | None = None,
    *,
    splits: tuple[Split, ...] | None = None,
    all_sides: bool = False,
    say: Say = _quiet,
    progress: Progress | None = None,
) -> Report:
    """Runs a benchmark into a folder, or goes on with it, and returns its report.

    Raises
    ------
    TooLong
        If the plan takes longer than ``settings.max_hours``.
    """
    settings = settings or BenchSettings()
    set_up(settings.threads, settings.device)
    if Path(out).is_file():
        raise FileExistsError(f"{out} is a file; --out names the folder of the run")
    benchmark = make_benchmark(cohort, settings, splits=splits, all_sides=all_sides)
    if left := benchmark.left_out():
        say(f"controls left out, because sections have no image: {', '.join(left)}")
    if not settings.resume and any(cell.done for cell in benchmark.cells(Path(out))):
        raise FileExistsError(f"{out} holds finished cells of this benchmark; use --resume, or another --out")
    planned = plan(benchmark, out, device=settings.device)
    say(str(planned))
    planned.check(settings.max_hours)
    cells = benchmark.run(out, settings.open_store(), device=settings.device, progress=progress)
    return summarise(benchmark, cells, out)


@dataclass(frozen=True, slots=True)
class SuiteRun:
    """A suite that was run: the run's report and cohort, published values beside ours, and where these are written."""

    suite: Suite
    report: Report
    cohort: Cohort
    table: pd.DataFrame
    files: tuple[Path, ...]


def run_suite(
    name: str,
    out: str | Path,
    settings: BenchSettings | None = None,
    *,
    data: str | Path | None = None,
    protocol: Literal["strict", "paper"] | None = None,
    dry_run: bool = False,
    spots: tuple[int, int] = (5, 5),
    say: Say = _quiet,
    progress: Progress | None = None,
) -> SuiteRun:
    """Runs a published suite into a folder, or goes on with it, and puts its values beside the published ones.

    Parameters
    ----------
    settings
        Models, encoder, recipe and so on. Target, panel, window, sections, folds and name are the suite's, whatever these say.
    data
        Folder of the dataset, or one that holds it under its name; default ``$HISTOWEAVE_DATA``.
    protocol
        Default: that of the suite.
    dry_run
        On a phantom with the patients, sections and folds of the suite, of `spots` lattice rows and columns each, with
        recipe ``tiny``, small windows, two values of what is searched and no controls but mean and ridge: it shows that all
        works, and its values mean nothing.

    Raises
    ------
    DatasetNotFound, SuiteIncomplete, TooLong
        No data, and how to get it; not the whole data; longer than ``settings.max_hours``.
    """
    chosen = suite(name)
    settings = _suite_settings(chosen, settings or BenchSettings(), protocol)
    if dry_run:
        say(DRY)
        settings = _dry(settings, Path(out))
    train, test = chosen.stand_in(spots) if dry_run else chosen.load(data)
    if test is None:
        cohort, splits, genes = train, chosen.splits(train), train.genes("common")
    else:
        test = prefixed(test, "test-") if dry_run else test  # phantoms share names, but not people
        cohort, splits, missing = external_split(train, test, same=chosen.same_patients)
        genes = tuple(gene for gene in train.genes("common") if gene not in set(missing))
    panel = fewer(chosen.panel, len(genes)) if dry_run else chosen.panel
    if panel != chosen.panel:
        say(f"gene panel {panel} instead of {chosen.panel}: the phantom has {len(genes)} genes")
    if test is not None:  # as a list, so that not even protocol `paper` looks at the test sections for it
        panel = f"list:{','.join(select_panel(train, panel, candidates=genes).genes)}"
    settings, sides = replace(settings, panel=panel), bool(chosen.val_patients)
    if sides:  # the validation patients choose the settings that the paper searched
        set_up(settings.threads, settings.device)
        plain, hours = make_benchmark(cohort, settings, splits=splits, all_sides=True), settings.max_hours
        searches = tune(
            plain, shortened(chosen.search) if dry_run else chosen.search, Path(out), settings.open_store(),
            device=settings.device, max_hours=hours, say=say, progress=progress,
        )  # fmt: skip
        models = [searches[model].best if model in searches else model for model in plain.models]
        settings = replace(settings, models=",".join(models))
    report = bench(cohort, out, settings, splits=splits, all_sides=sides, say=say, progress=progress)
    if sides:
        made = conclude(chosen, report, searches, out, dry_run=dry_run, say=say)
        return SuiteRun(chosen, report, cohort, made.table, made.files)
    table = suite_table.comparison(chosen, report.rows, note=DRY if dry_run else "")
    files = suite_table.write(chosen, table, suite_table.remarks(chosen, report, dry_run=dry_run), out)
    return SuiteRun(chosen, report, cohort, table, files)


def _suite_settings(
    chosen: Suite, settings: BenchSettings, protocol: Literal["strict", "paper"] | None
) -> BenchSettings:
    """The settings with what a suite fixes, and its own models where none are named."""
    if chosen.models and settings.models == "auto":
        settings = replace(settings, models=",".join(chosen.models))
    settings = settings.named()
    return replace(
        settings,
        target=chosen.target,
        panel=chosen.panel,
        window_px=chosen.window_px,
        sections="all",  # those with an image were chosen on reading
        protocol=protocol or chosen.protocol,
        models=",".join(chosen.spec(model) for model in split_specs(settings.models)),
        name=chosen.name,
    )


def _dry(settings: BenchSettings, out: Path) -> BenchSettings:
    """The settings of a dry run: seconds of training, windows of the phantom's tile, and nothing left in the user's store."""
    card = encoder_card(settings.encoder)
    return replace(
        settings,
        recipe="tiny",
        controls=",".join(name for name in split_specs(settings.controls) if name in DRY_CONTROLS),
        window_px=PHANTOM_WINDOW_PX,
        out_px=card.px if card.fixed else min(card.px, 64),
        store=settings.store or str(out / "store"),
        name=f"{settings.name}: {DRY}",
    )


def fit(
    cohort: Cohort,
    out: str | Path | None = None,
    settings: FitSettings | None = None,
    *,
    say: Say = _quiet,
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
