"""The command line: thin. Every flag is a field of a settings dataclass; errors are one sentence without a traceback."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from histoweave.cli._data import data
from histoweave.cli._terminal import Bar, Cohorts, console, print_table, say, show, with_settings
from histoweave.settings import (
    BenchSettings,
    CompleteSettings,
    FitSettings,
    ImputeSettings,
    PredictSettings,
    RunSettings,
    choose_sections,
    set_up,
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Spatial gene expression from histology: predict it, and know how far to trust it.",
)
app.add_typer(data, name="data")
_DEBUG = "HISTOWEAVE_DEBUG"  # set to anything, errors come with their traceback


def main() -> None:
    """Runs the command line; an expected error is printed as one message, with exit status 1."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        app()
    except (ValueError, OSError, KeyError, ImportError, FloatingPointError) as error:
        if os.environ.get(_DEBUG):
            raise
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        Console(stderr=True).print(f"error: {text}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise SystemExit(1) from None


def _which(sections: str) -> Any:
    """What a reader needs to open: it leaves the other sections alone."""
    return sections if sections in ("all", "with-image") else [part.strip() for part in sections.split(",")]


_BENCH_OUT = Path("runs/bench")
_SHOWN = ("pcc", "pcc_50", "spearman_bins", "mse", "mse_entries", "mse_pattern", "deviance_explained")


@app.command()
@with_settings(BenchSettings)
def bench(
    cohort: Annotated[str | None, typer.Argument(help="folder, samples.csv or .h5ad of the cohort")] = None,
    out: Annotated[Path, typer.Option(help="folder of the run")] = _BENCH_OUT,
    train: Annotated[str | None, typer.Option(help="train on this cohort …")] = None,
    test: Annotated[str | None, typer.Option(help="… and test on this one")] = None,
    same_patient: Annotated[
        bool, typer.Option("--same-patient", help="with --train and --test: one patient may be in both")
    ] = False,
    suite: Annotated[str | None, typer.Option(help="a published suite instead, as `histoweave suite`")] = None,
    *,
    settings: BenchSettings,
) -> None:
    """Benchmark models on a cohort by patient, and write tables and an HTML report."""
    if suite is not None:
        if cohort or train or test or same_patient:
            raise ValueError(
                "a suite brings its own data; leave COHORT, --train and --test out (see `histoweave suite`)"
            )
        return _run_suite(suite, Path("runs") / suite if out == _BENCH_OUT else out, settings)
    from histoweave import commands
    from histoweave.bench.external import external_split
    from histoweave.data.io import read_cohort
    from histoweave.report import write_html

    splits = None
    if train and test and not cohort:
        joined, splits, missing = external_split(read_cohort(train), read_cohort(test), same_patient=same_patient)
        for note in splits[0].notes:
            say(f"WARNING: {note}")
        if missing:
            say(f"{len(missing)} training genes are not in the test cohort: {', '.join(missing[:8])} …")
    elif cohort and not (train or test or same_patient):
        joined = read_cohort(cohort, sections=_which(settings.sections))
    else:
        raise ValueError(
            "give either one COHORT, or both --train and --test" + ", which --same-patient goes with" * same_patient
        )
    with Bar() as bar:
        report = commands.bench(joined, out, settings, splits=splits, say=say, progress=bar)
    show(report.table().filter(_SHOWN), report.card["benchmark"])
    say(f"report: {write_html(report, joined)}")


_SUITE_FIXES = (
    *("target", "panel", "window_um", "window_px", "sections", "split", "protocol", "name"),
    *("hide", "rates", "target_layer", "measured"),
)


@app.command()
@with_settings(BenchSettings, _SUITE_FIXES)
def suite(
    name: Annotated[str | None, typer.Argument(help="name of the suite")] = None,
    out: Annotated[Path | None, typer.Option(help="folder of the run; default runs/NAME")] = None,
    data: Annotated[Path | None, typer.Option(help="folder of the dataset; default $HISTOWEAVE_DATA")] = None,
    protocol: Annotated[Literal["strict", "paper"] | None, typer.Option(help="default: as published")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="on a phantom of the same shape")] = False,
    only: Annotated[str | None, typer.Option(help="datasets of the suite spared, joined by commas")] = None,
    as_list: Annotated[bool, typer.Option("--list", help="list the suites")] = False,
    *,
    settings: BenchSettings,
) -> None:
    """Run a published benchmark and print its values beside ours."""
    from histoweave.bench import suites

    if as_list or name is None:
        return show(suites.overview(), "suites")
    out = out or Path("runs") / (f"{name}-dry-run" if dry_run else name)
    _run_suite(name, out, settings, data=data, protocol=protocol, dry_run=dry_run, only=only)


def _run_suite(
    name: str,
    out: Path,
    settings: BenchSettings,
    *,
    data: Path | None = None,
    protocol: Literal["strict", "paper"] | None = None,
    dry_run: bool = False,
    only: str | None = None,
) -> None:
    from histoweave.bench import suite_table
    from histoweave.commands import run_spared, run_suite, run_tonsil
    from histoweave.report import write_html

    if name == "spared":
        which = [part.strip() for part in only.split(",")] if only else ()
        settings = replace(settings, protocol=protocol or settings.protocol)
        with Bar() as bar:
            found = run_spared(out, settings, data=data, only=which, dry_run=dry_run, say=say, progress=bar)
        show(found.standing.round(3), f"{name}: error over that of the best model")
        return say(f"tables and figures: {found.folder / 'spared.md'}")
    if only:
        raise ValueError("--only names datasets of the suite 'spared'; other suites have one")
    if name == "xmint-tonsil":
        with Bar() as bar:
            told = run_tonsil(out, settings, data=data, dry_run=dry_run, say=say, progress=bar)
        show(told.medians.round(3), f"{name}: median over genes of Spearman of bins, by number of shared genes")
        return say(f"statements, table and figure: {told.folder / 'xmint-tonsil.md'}")
    with Bar() as bar:
        made = run_suite(name, out, settings, data=data, protocol=protocol, dry_run=dry_run, say=say, progress=bar)
    show(suite_table.shown(made.table), made.report.card["benchmark"])
    say(f"with the published models that were not run: {made.files[1]}; report: {write_html(made.report, made.cohort)}")


@app.command()
@with_settings(FitSettings)
def fit(
    cohort: Cohorts, out: Annotated[Path, typer.Option(help="folder of the model")], *, settings: FitSettings
) -> None:
    """Fit a model on all sections of a cohort and save it."""
    from histoweave import commands
    from histoweave.data.io import read_cohort

    with Bar() as bar:
        commands.fit(read_cohort(cohort, sections=_which(settings.sections)), out, settings, say=say, progress=bar)


@app.command()
@with_settings(PredictSettings)
def predict(
    model: Annotated[Path, typer.Argument(help="folder of a saved model")],
    slide: Annotated[Path, typer.Argument(help="image of the slide; no counts needed")],
    out: Annotated[Path, typer.Option(help=".h5ad to write")],
    *,
    settings: PredictSettings,
) -> None:
    """Predict expression at every tile of a slide that has no counts."""
    from histoweave import commands

    with Bar() as bar:
        made = commands.predict(model, slide, out, settings, progress=bar)
    say(f"{made.n_obs} tiles × {made.n_vars} genes, in {made.uns['histoweave']['units']}: {out}")


@app.command()
@with_settings(CompleteSettings)
def complete(
    cohort: Cohorts, out: Annotated[Path, typer.Option(help=".h5ad to write")], *, settings: CompleteSettings
) -> None:
    """Fill in what an assay dropped: fit a model on a cohort and complete its sections; measured values stay."""
    from histoweave.data.io import read_cohort
    from histoweave.filling import complete as run

    with Bar() as bar:
        found = read_cohort(cohort, sections=_which(settings.sections))
        made = run(found, out, settings, progress=bar)
    measured = made.layers["measured"].nnz / (made.n_obs * made.n_vars)
    say(f"{made.n_obs} spots × {made.n_vars} genes, {measured:.0%} measured and kept, the others filled in: {out}")


@app.command()
@with_settings(ImputeSettings, fixed=("target", "panel"))
def impute(
    target: Annotated[str, typer.Argument(help="folder, samples.csv or .h5ad of the cells to impute for")],
    out: Annotated[Path, typer.Option(help=".h5ad to write")],
    origin: Annotated[str | None, typer.Option(help="cohort in which the missing genes are measured")] = None,
    reference: Annotated[Path | None, typer.Option(help=".h5ad of single cells in which they are")] = None,
    *,
    settings: ImputeSettings,
) -> None:
    """Impute genes that a panel never measured, from other sections or single cells."""
    from histoweave import filling
    from histoweave.data.io import read_cohort

    if (origin is None) == (reference is None):
        raise ValueError(
            "give either --origin or --reference: sections or single cells with the genes that are missing"
        )
    if origin is not None and settings.groups is not None:
        raise ValueError(
            "--groups names a column of a --reference, and --origin was given; its sections have types in obs['group']"
        )
    known = read_cohort(origin) if origin else filling.reference(reference or "", settings.groups)
    found = read_cohort(target, sections=_which(settings.sections))
    with Bar() as bar:
        made, matched = filling.impute(found, known, out, settings, progress=bar)
    say(f"{matched}; {made.n_obs} cells × {made.n_vars} genes, in {made.uns['histoweave']['units']}: {out}")


@app.command()
@with_settings(RunSettings)
def embed(
    cohort: Cohorts,
    context: Annotated[bool, typer.Option(help="also the 5 × 5 tiles around each spot")] = False,
    *,
    settings: RunSettings,
) -> None:
    """Embed a cohort into the store, so that later commands find it there."""
    from histoweave.batch import Needs
    from histoweave.data.io import read_cohort

    set_up(settings.threads, settings.device)
    chosen = choose_sections(read_cohort(cohort, sections=_which(settings.sections)), settings.sections)
    needs = Needs.EMB | (Needs.CTX_EMB if context else Needs.NONE)
    with Bar() as bar:
        features = settings.view().embed(chosen, needs, settings.open_store(), device=settings.device, progress=bar)
    for id, found in features.items():
        say(
            f"{id}: {found.emb.shape[0]} spots × {found.emb.shape[1]}"
            + (f", {len(found.ctx)} further tiles" if found.ctx is not None else "")
        )


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="folder of a finished run")],
    cohort: Annotated[str | None, typer.Option(help="the cohort, for maps over its images")] = None,
    genes: Annotated[str | None, typer.Option(help="genes to draw, joined by commas")] = None,
    labels: Annotated[str | None, typer.Option(help="obs column to compare in: COLUMN, COLUMN=A or COLUMN=A:B")] = None,
    signatures: Annotated[Path | None, typer.Option(help="gene signatures to score: .toml or .gmt")] = None,
) -> None:
    """Write the HTML report of a run again, for chosen genes, labels and signatures."""
    from histoweave.bench.summary import Report
    from histoweave.data.io import read_cohort
    from histoweave.report import write_html

    chosen = [gene.strip() for gene in genes.split(",")] if genes else None
    found = Report.read(run)
    path = write_html(
        found, read_cohort(cohort) if cohort else None, genes=chosen, labels=labels, signatures=signatures
    )
    say(f"report: {path}")


@app.command()
def models(as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False) -> None:
    """List the models."""
    from histoweave.models import describe, list_models

    columns = ("name", "title", "learns", "needs", "parameters")  # citations and licences are in the JSON
    print_table([describe(name) for name in list_models()], as_json, "models", columns)


@app.command()
def encoders(as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False) -> None:
    """List the encoders, with licence and gating of their weights."""
    from histoweave.embed import list_encoders

    columns = ("name", "dim", "px", "um_per_px", "init", "licence", "commercial", "gated")
    print_table([card.to_dict() for card in list_encoders()], as_json, "encoders", columns)


@app.command()
def doctor() -> None:
    """Check the installation: versions, threads, device, encoder, store."""
    from histoweave.doctor import examine

    rows = examine()
    for row in rows:
        console.print(f"[{'green' if row.ok else 'red'}]{'ok' if row.ok else 'no'}[/]  {row.what}: {row.found}")
    if not all(row.ok for row in rows):
        raise SystemExit(1)


@app.command()
def demo(out: Annotated[Path, typer.Option(help="folder of the run")] = Path("runs/demo")) -> None:
    """Run the main job on the embedded phantom cohort: benchmark, fit, predict without counts, report."""
    from histoweave.demo import run_demo

    with Bar() as bar:
        found = run_demo(out, say=say, progress=bar)
    show(found.table, "phantom cohort: PCC as a fraction of what the tissue tells (oracle)")
    say(f"prediction without counts: {found.prediction}")
    say(f"report: {found.report}")
