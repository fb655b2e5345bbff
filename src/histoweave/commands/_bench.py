"""A benchmark from settings: what is run, where it is kept, what it says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from histoweave.bench.benchmark import Benchmark
from histoweave.bench.plan import plan
from histoweave.bench.sides import SidedBenchmark
from histoweave.bench.summary import Report, summarise
from histoweave.data.holdout import Genes, Hide, parse_hide
from histoweave.data.section import Cohort
from histoweave.data.split import Split, make_splits
from histoweave.models import split_specs, with_argument
from histoweave.pp.counts import Target
from histoweave.pp.genes import select_panel
from histoweave.settings import BenchSettings, choose_sections, set_up
from histoweave.train.transfer import is_imputer

Progress = Callable[[int, int, str], None]
Say = Callable[[str], None]


def quiet(_: str) -> None:
    """Says nothing."""
    return None


def make_benchmark(
    cohort: Cohort, settings: BenchSettings, *, splits: tuple[Split, ...] | None = None, all_sides: bool = False
) -> Benchmark:
    """The benchmark that the settings describe; `splits` wins over ``settings.split``. See `SidedBenchmark` for all sides."""
    chosen = choose_sections(cohort, settings.sections)
    if splits is not None:
        splits = tuple(_among(split, set(chosen.ids)) for split in splits)
    splits = splits or tuple(make_splits(chosen, settings.split))
    settings = settings.named()
    genes = _panel_order(chosen, splits[0])
    if not genes and settings.hide.startswith("genes:"):
        alike = _but_for_case(chosen)
        hint = f" {len(alike)} names agree if case is ignored, such as {alike[0]!r}: rename them." if alike else ""
        raise ValueError(
            f"the {len(chosen)} sections share no gene name ({', '.join(chosen[0].genes[:3])}, … and "
            f"{', '.join(chosen[-1].genes[:3])}, …). Are all symbols, or all Ensembl ids?{hint}"
        )
    view, hide = settings.view(), parse_hide(settings.hide, genes)
    if isinstance(hide, Genes):  # panel and target are what is asked for, whatever the settings say of them
        hidden = set(hide.names)
        shared = tuple(gene for gene in genes if gene not in hidden)
        panel = select_panel(chosen, f"list:{','.join(hide.names)}", candidates=hide.names)
        view = replace(view, shared=shared, panel=panel, target=Target.preset("share"))
    return (SidedBenchmark if all_sides else Benchmark)(
        name=settings.name or "benchmark",
        cohort=chosen,
        splits=splits,
        view=view,
        models=_layered(settings.models, settings.target_layer, imputers=isinstance(hide, Genes)),
        controls=_layered(settings.controls, settings.target_layer, imputers=isinstance(hide, Genes)),
        hide=hide,
        rates=_rates(settings.rates, hide),
        measured=settings.measured,
        recipe=settings.recipe,
        seeds=tuple(range(settings.seeds)),
        protocol=settings.protocol,
        ensemble=settings.ensemble,
        trunk_weights=settings.trunk_weights,
    )


def _layered(models: str, layer: str, *, imputers: bool) -> tuple[str, ...]:
    """The models, each with the layer that it learns, where that is not raw counts; `imputers` learn from counts alone."""
    return tuple(
        model if layer == "raw" or (imputers and is_imputer(model)) else with_argument(model, "layer", layer)
        for model in split_specs(models)
    )


def _rates(text: str, hide: Hide) -> tuple[float, ...]:
    """Further rates of hidden entries, each once and without that of the run itself."""
    try:
        given = [float(rate) for rate in text.split(",") if rate.strip()]
    except ValueError:
        raise ValueError(f"rates {text!r}; expected numbers joined by commas, such as 0.1,0.5") from None
    return tuple(rate for rate in dict.fromkeys(given) if rate != getattr(hide, "rate", None))


def _panel_order(cohort: Cohort, split: Split) -> tuple[str, ...]:
    """Genes common to all sections, in the order of the panel of the first test section."""
    common = set(cohort.genes("common"))
    tested = [section for section in cohort if section.id in set(split.test)]
    return tuple(gene for gene in tested[0].genes if gene in common) if tested else cohort.genes("common")


def _but_for_case(cohort: Cohort) -> list[str]:
    """Names in lower case that stand for several of the genes that not all sections have: probably the same gene."""
    common = set(cohort.genes("common"))
    written = Counter(gene.lower() for gene in cohort.genes("union") if gene not in common)
    return sorted(name for name, times in written.items() if times > 1)


def _genes_left_out(cohort: Cohort, split: Split) -> str:
    """How many genes of either side not all sections have; nothing where all do."""
    common = set(cohort.genes("common"))
    sides = (split.train + split.val, split.test)
    train, test = (len(set(cohort.subset(ids).genes("union")) - common) for ids in sides)
    if not train + test:
        return ""
    text = f"genes that not all sections have are left out: {train} of the training side, {test} of the test side"
    if alike := _but_for_case(cohort):
        text += f" (WARNING: {len(alike)} names agree but for case, such as {alike[0]!r}: rename them)"
    return text


def _among(split: Split, ids: set[str]) -> Split:
    """The split without the sections that were not chosen; `ValueError` if those are all of its validation sections."""
    train, test, val = (tuple(id for id in side if id in ids) for side in (split.train, split.test, split.val))
    if split.val and not val:
        raise ValueError(
            f"fold {split.name!r} stops and chooses on validation sections ({', '.join(split.val[:8])}), and none of "
            "them was chosen; name one or more in `--sections` too, or give a split without them"
        )
    return replace(split, train=train, test=test, val=val)


def bench(
    cohort: Cohort,
    out: str | Path,
    settings: BenchSettings | None = None,
    *,
    splits: tuple[Split, ...] | None = None,
    all_sides: bool = False,
    say: Say = quiet,
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
    if isinstance(benchmark.hide, Genes) and (told := _genes_left_out(benchmark.cohort, benchmark.splits[0])):
        say(told)
    if not settings.resume and any(cell.done for cell in benchmark.cells(Path(out))):
        raise FileExistsError(f"{out} holds finished cells of this benchmark; use --resume, or another --out")
    planned = plan(benchmark, out, device=settings.device)
    say(str(planned))
    planned.check(settings.max_hours)
    cells = benchmark.run(out, settings.open_store(), device=settings.device, progress=progress)
    return summarise(benchmark, cells, out)
