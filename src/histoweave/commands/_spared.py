"""The suite `spared`: models and layers on all datasets of SpaRED, and what they are worth over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from histoweave.bench.search import Search, search
from histoweave.bench.suites import DRY, PHANTOM_UM_PER_PX, PHANTOM_WINDOW_PX
from histoweave.bench.summary import Report
from histoweave.commands._bench import Progress, Say, bench, quiet
from histoweave.commands._spared_conclusion import NAME, RATES, SEARCHED, SparedRun, conclude
from histoweave.data import catalog
from histoweave.data.dataset import Dataset
from histoweave.data.phantom import phantom_like
from histoweave.data.section import Cohort
from histoweave.data.spared import rows
from histoweave.data.split import Split
from histoweave.embed import encoder_card
from histoweave.models import blank, card_of, nearest, parse, split_specs, with_argument
from histoweave.pp.real_data import SPOT_COUNTS, within
from histoweave.pp.spared import spared_ranking
from histoweave.pp.spared_result import shared_ranking
from histoweave.settings import BenchSettings
from histoweave.train import Recipe, resolve

MODELS = "ridge,stnet,shufflenet,vitb,vitb[delta=on],histogene,hist2st,egn,eggn,bleep,sepal,triplex"
LAYERS = ("raw", "measured", "gene-mean", "median", "spackle")
TARGET = "log1p-cpm[log=2]"  # log2(1 + counts per million), before any batch is adjusted
FIXED: dict[str, Any] = {  # settings that are the suite's; panel, sides and name are those of each dataset
    "target": TARGET,
    "hide": "everything",
    "rates": "",
    "target_layer": "raw",
    "measured": True,
    "sections": "all",
    "protocol": "strict",
    "ensemble": 0,
}
_DRY_SPOTS, _DRY_GENES = (6, 6), 16


def run_spared(
    out: str | Path,
    settings: BenchSettings | None = None,
    *,
    data: str | Path | None = None,
    only: Sequence[str] = (),
    layers: Sequence[str] = LAYERS,
    tune: bool = True,
    dry_run: bool = False,
    say: Say = quiet,
    progress: Progress | None = None,
) -> SparedRun:
    """Runs every model on every layer of every dataset, or goes on with it, and compares over datasets.

    Parameters
    ----------
    settings
        Models, encoder, recipe and so on; default models `MODELS`, recipe ``spared``: 1,000 steps of 256 spots, the lowest
        error on validation spots. ``max_hours`` is for each dataset by itself. Target, panel, sides, protocol and
        what is hidden and scored are the suite's.
    data
        Folder that holds the datasets by name; default ``$HISTOWEAVE_DATA``.
    only
        Names of datasets, without ``spared-``; default all 26.
    layers
        Which arms, written as for ``--target-layer``.
    tune
        Search the learning rate of every model that is trained step by step, on the first dataset with validation
        sections and the layer `SEARCHED`; where no dataset has any, the recipe's is taken.
    dry_run
        On phantoms of the same sections, with recipe ``tiny``: it shows that all works, and its values mean nothing.

    Notes
    -----
    As in SpaRED, spots outside the dataset's bounds of total counts are left out of all sections before anything else.
    Hist2ST also fits raw counts, which it can on layer ``raw`` alone: its other arms have ``counts=none``, and there is
    one more on raw counts with it, so that arms that are compared differ in the layer alone.

    Raises
    ------
    DatasetNotFound, SectionError, ValueError, TooLong
        Data that are not here, and how to get them, before anything is trained; other sections than those of the
        published sides; settings that are the suite's; a dataset that takes longer than ``settings.max_hours``.
    """
    out, chosen = Path(out), _chosen(only)
    settings = _settings(settings or BenchSettings(), out, dry_run=dry_run)
    models, rates = split_specs(settings.models), dict[str, float]()
    for text in _arms(models, layers, settings.recipe):
        resolve(text, settings.recipe)
    if dry_run:
        say(DRY)
    else:
        for row in chosen:
            catalog.find(row.name, data)
        if tune:
            models, rates = _tuned(chosen, models, settings, out, data, say=say, progress=progress)
    arms = _arms(models, layers, settings.recipe)
    reports, notes = dict[str, Report](), list[str]()
    for row in chosen:
        say(f"{row.name}: {', '.join(row.flags)}")
        cohort, lost = _cohort(row, data, dry_run=dry_run)
        how = replace(settings, models=",".join(arms), panel=_panel(row, dry_run=dry_run), name=row.name)
        sides = row.published_split(cohort)
        reports[row.name] = bench(cohort, out / row.name, how, splits=(sides,), say=say, progress=progress)
        told = [*reports[row.name].card.get("split_notes", []), lost, _shared(cohort, sides, how.panel)]
        notes += [f"{row.name}: {note}" for note in told]
    return conclude(out, reports, rates, notes, dry_run=dry_run)


def _chosen(only: Sequence[str]) -> list[Dataset]:
    known = {row.name.removeprefix("spared-"): row for row in rows()}
    if unknown := [name for name in only if name not in known]:
        raise ValueError(f"suite 'spared' has no dataset {unknown[0]!r}{nearest(unknown[0], list(known))}")
    return [known[name] for name in only] if only else list(known.values())


def _settings(settings: BenchSettings, out: Path, *, dry_run: bool) -> BenchSettings:
    usual = BenchSettings()
    if other := [
        f"{key}={getattr(settings, key)!r}"
        for key in (*FIXED, "panel", "split", "name")
        if getattr(settings, key) not in (getattr(usual, key), FIXED.get(key, getattr(usual, key)))
    ]:
        raise ValueError(
            f"suite {NAME!r} has its own {', '.join([*FIXED, 'panel', 'split', 'name'])}, and {', '.join(other)} was "
            "given; leave that out, or run `histoweave bench` on a dataset"
        )
    given = replace(
        settings,
        models=MODELS if settings.models == "auto" else settings.models,
        controls="mean" if settings.controls == "auto" else settings.controls,
        recipe="spared" if settings.recipe == "cpu" else settings.recipe,
        **FIXED,
    )
    if not dry_run:
        return given
    card = encoder_card(settings.encoder)
    return replace(
        given,
        models="ridge,stnet" if settings.models == "auto" else settings.models,
        recipe="tiny",
        window_px=PHANTOM_WINDOW_PX,
        out_px=card.px if card.fixed else min(card.px, 64),
        store=settings.store or str(out / "store"),
    )


def _arms(models: Sequence[str], layers: Sequence[str], recipe: str | Recipe) -> list[str]:
    """Every model on every layer; one that also fits raw counts on ``raw`` with and without that, else without."""
    made = list[str]()
    for model in models:
        plain = _without_counts(model, recipe)
        for layer in layers:
            both = (model, plain) if set(layers) != {"raw"} else (model,)
            made += [with_argument(text, "layer", layer) for text in (both if layer == "raw" else (plain,))]
    return list(dict.fromkeys(made))


def _without_counts(model: str, recipe: str | Recipe) -> str:
    """A model's text with the argument that turns off what it fits to raw counts, where it has one."""
    spec = resolve(model, recipe)
    switch = getattr(blank(spec.name, spec.args), "needs_zeros", False)
    return with_argument(model, *switch.split("=")) if isinstance(switch, str) and switch else model


def _cohort(row: Dataset, data: str | Path | None, *, dry_run: bool) -> tuple[Cohort, str]:
    """The sections of a dataset without the spots out of its bounds, and how many these are in a sentence."""
    if dry_run:
        made = phantom_like(row.name, spots=_DRY_SPOTS, um_per_px=PHANTOM_UM_PER_PX)
        return _bounded(made.cohort, row.name, SPOT_COUNTS)
    low = SPOT_COUNTS[0] if row.min_spot_counts is None else float(row.min_spot_counts)
    return _bounded(catalog.load(row.name, data, sections="with-image"), row.name, (low, SPOT_COUNTS[1]))


def _bounded(cohort: Cohort, name: str, bounds: tuple[float, float]) -> tuple[Cohort, str]:
    keep = [within(section.library, bounds) for section in cohort]
    says = f"more than {bounds[0]:g} and fewer than {bounds[1]:g} counts"
    if empty := [section.id for section, mask in zip(cohort, keep, strict=True) if not mask.any()]:
        raise ValueError(f"dataset {name!r}: sections {empty} have no spot with {says}; expected raw counts")
    made = Cohort(
        section if mask.all() else section.with_spots(section.spots[mask].copy())
        for section, mask in zip(cohort, keep, strict=True)
    )
    return made, f"spots have {says}, which leaves {cohort.n - made.n} of {cohort.n} out"


def _shared(cohort: Cohort, sides: Split, panel: str) -> str:
    """How much the ranking of genes from training sections shares with the published one, from all, in a sentence."""
    says = "genes ranked without held-out sections, as here, and as published"
    try:
        here, published = (spared_ranking(cohort, sides, leak_free=leak_free) for leak_free in (True, False))
        return f"{says}: {shared_ranking(here, published, top=int(panel.partition(':')[2]))}"
    except ValueError as error:  # the filters leave too few genes of all sections
        return f"{says}, cannot be compared: {error}"


def _panel(row: Dataset, *, dry_run: bool) -> str:
    return f"spared:{_DRY_GENES if dry_run else row.n_genes}"


def _tuned(
    chosen: Sequence[Dataset],
    models: Sequence[str],
    settings: BenchSettings,
    out: Path,
    data: str | Path | None,
    *,
    say: Say,
    progress: Progress | None,
) -> tuple[list[str], dict[str, float]]:
    """The models, each with the learning rate that validation sections chose; and these rates."""
    row = next((row for row in chosen if row.sides is not None and row.sides.val), None)
    if row is None:
        return list(models), {}
    cohort, _ = _cohort(row, data, dry_run=False)
    sides = row.published_split(cohort)
    train, val = cohort.subset(sides.train), cohort.subset(sides.val)
    view = replace(settings.view(), panel=_panel(row, dry_run=False), among=cohort.genes("common"))
    made, rates = list[str](), dict[str, float]()
    for model in models:
        if card_of(parse(model)[0]).learns != "gradient" or "lr" in parse(model)[1]:
            made.append(model)
            continue
        found: Search = search(
            with_argument(_without_counts(model, settings.recipe), "layer", SEARCHED),
            {"lr": RATES}, train, val, view=view, store=settings.open_store(),
            recipe=settings.recipe, device=settings.device, folder=out / "search", progress=progress,
        )  # fmt: skip
        rates[model] = float(parse(found.best)[1]["lr"])
        say(f"{model}: learning rate {rates[model]:g} of {RATES}, on {row.name}, layer {SEARCHED}")
        made.append(with_argument(model, "lr", f"{rates[model]:g}"))
    return made, rates
