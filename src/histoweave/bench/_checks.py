"""What would fail in the first cell of a benchmark, or pass in silence, is refused before anything is written."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from histoweave import _keys as K
from histoweave.bench.scoring import at_rate
from histoweave.data.holdout import Entries, Everything, Genes, Thin
from histoweave.models.impute import create_imputer
from histoweave.pp.genes import check_recipe
from histoweave.train.transfer import is_imputer
from histoweave.view import MIN_SPOTS

if TYPE_CHECKING:
    from histoweave.bench.benchmark import Benchmark


def check_settings(benchmark: Benchmark) -> None:
    """`ValueError` for settings that cannot be run on the cohort; no counts are looked at."""
    if not benchmark.seeds or not (benchmark.models or benchmark.controls):
        raise ValueError(
            f"{len(benchmark.seeds)} seeds and {len(benchmark.models) + len(benchmark.controls)} models: nothing to run; "
            "give at least one of each (`--seeds 1 --models ridge`)"
        )
    counting = [model for model in benchmark.all_models() if benchmark.spec(model).counts]
    if counting:
        raise ValueError(
            f"{', '.join(counting)} predict counts, and every model of a table is scored on its target; leave out "
            "scale=counts, or fit and predict without a benchmark"
        )
    _check_hide(benchmark)
    if isinstance(benchmark.view.panel, str):
        check_recipe(benchmark.view.panel, benchmark.view.among or benchmark.cohort.genes("common"))
    if benchmark.ensemble:
        _check_ensemble(benchmark)
    few = [section.id for section in benchmark.cohort if section.n < MIN_SPOTS]
    if (
        few
        and benchmark.view.standardize in ("section", "both")
        and any(benchmark.spec(model).embeds for model in benchmark.all_models())
    ):
        raise ValueError(
            f"standardize={benchmark.view.standardize!r} needs at least {MIN_SPOTS} spots in every section; "
            f"{len(few)} have fewer ({', '.join(few[:8])}). Use standardize='train', or leave them out (`--sections`)"
        )


def _check_hide(benchmark: Benchmark) -> None:
    completing = [model for model in benchmark.all_models() if benchmark.spec(model).completes]
    if completing and isinstance(benchmark.hide, Everything | Genes):
        raise ValueError(
            f"{', '.join(completing)} complete what is visible of a gene, and all of it is hidden; hide a share of the "
            "entries, `--hide entries:0.3`"
        )
    if isinstance(benchmark.hide, Genes) and not benchmark.view.shared:
        raise ValueError(
            "genes are hidden, and none is named that stays; leave some to be seen (`--hide genes:first:200`), in Python as "
            "`View(shared=…)`"
        )
    if isinstance(benchmark.hide, Genes):
        _check_imputation(benchmark)
    if isinstance(benchmark.hide, Entries | Thin) and benchmark.view.target.library == "panel":
        raise ValueError(
            f"part of the counts is hidden, and target '{benchmark.view.target}' divides by their sum over the panel; use "
            "a target that divides by all counts of a spot, such as `--target log1p-cpm`"
        )
    if isinstance(benchmark.hide, Thin):
        _check_thinning(benchmark)
    if benchmark.rates:
        _check_rates(benchmark)


def _check_thinning(benchmark: Benchmark) -> None:
    target = benchmark.view.target
    if target.smooth != "none" or target.library == "given":
        raise ValueError(
            f"transcripts are hidden, and from target '{target}' no expected counts can be told: it smooths, or divides by "
            "size factors of the whole spot. Use one without, such as `--target log1p-cpm`"
        )
    if benchmark.measured:
        raise ValueError("measured=True leaves counts of 0 out, and hidden transcripts are scored as counts; drop it")


def _check_rates(benchmark: Benchmark) -> None:
    if not isinstance(benchmark.hide, Entries):
        raise ValueError(f"rates={benchmark.rates} are rates of hidden entries; hide entries, `--hide entries:0.3`")
    for rate in benchmark.rates:
        replace(benchmark.hide, rate=rate)
    if len({at_rate("", rate) for rate in benchmark.rates}) < len(benchmark.rates):
        raise ValueError(f"rates={benchmark.rates} name a rate twice; name each once")


def _check_imputation(benchmark: Benchmark) -> None:
    if benchmark.view.target.library == "panel" and len(benchmark.hide.names) < 2:  # type: ignore[union-attr]
        raise ValueError(
            f"only {benchmark.hide.names[0]!r} is hidden, and methods are compared by shares of the hidden genes, which "  # type: ignore[union-attr]
            "are 1 for a single one; hide two or more"
        )
    grouped = all(
        K.GROUP in benchmark.cohort[id].spots.obs for split in benchmark.splits for id in (*split.train, *split.val)
    )
    for model in filter(is_imputer, benchmark.all_models()):
        imputer = create_imputer(model)
        if hasattr(imputer, "check"):
            try:
                imputer.check(len(benchmark.view.shared), grouped=grouped)
            except ValueError as error:
                raise ValueError(f"{model}: {error}") from None


def _check_ensemble(benchmark: Benchmark) -> None:
    if sided := [split.name for split in benchmark.splits if split.val]:
        raise ValueError(
            f"ensemble={benchmark.ensemble}: every member stops on training patients of its own, and {len(sided)} of "
            f"{len(benchmark.splits)} folds name validation sections to stop on ({', '.join(map(repr, sided[:8]))}); "
            "leave the ensemble out, or these sections"
        )
    fewest = min(len(benchmark.cohort.subset(split.train).patients) for split in benchmark.splits)
    if not 2 <= benchmark.ensemble <= fewest:
        raise ValueError(
            f"ensemble={benchmark.ensemble}; expected 0 (one fit), or 2 to {fewest}: every member stops on patients of "
            "its own, and the smallest training side has that many"
        )
    if benchmark.protocol == "paper":
        raise ValueError("an ensemble stops on training patients, protocol='paper' on the test fold; drop one")
