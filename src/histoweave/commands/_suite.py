"""Published benchmarks: their data, folds and genes, and their values beside ours."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pandas as pd

from histoweave.bench import suite_table
from histoweave.bench.anand import conclude
from histoweave.bench.external import external_split, prefixed
from histoweave.bench.search import tune
from histoweave.bench.suites import DRY, PHANTOM_WINDOW_PX, Suite, fewer, shortened, suite
from histoweave.bench.summary import Report
from histoweave.commands._bench import Progress, Say, bench, make_benchmark, quiet
from histoweave.data.section import Cohort
from histoweave.embed import encoder_card
from histoweave.models import split_specs
from histoweave.pp.genes import select_panel
from histoweave.settings import BenchSettings, set_up

DRY_CONTROLS = ("mean", "ridge")  # what the tables are made with; the others only cost time where values mean nothing


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
    say: Say = quiet,
    progress: Progress | None = None,
) -> SuiteRun:
    """Runs a published suite into a folder, or goes on with it, and puts its values beside the published ones.

    Parameters
    ----------
    settings
        Models, encoder, recipe and so on. Target, panel, window, sections, folds, what is hidden and name are the suite's,
        whatever these say.
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
    settings = replace(settings, hide="everything", rates="").named()
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
