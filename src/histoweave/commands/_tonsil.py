"""The suite `xmint-tonsil`: imputation of two Xenium sections, and whether what the paper says of it holds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from histoweave import _keys as K
from histoweave.bench import xmint_tonsil as tonsil
from histoweave.bench.markdown import pipe
from histoweave.bench.suites import DRY
from histoweave.bench.summary import Report
from histoweave.commands._bench import Progress, Say, bench, quiet
from histoweave.data import catalog
from histoweave.data._atomic import writing
from histoweave.data.catalog import DatasetNotFound
from histoweave.data.phantom import phantom
from histoweave.data.section import Cohort, Section
from histoweave.data.split import Split
from histoweave.models import split_specs
from histoweave.pl.imputation import boxes_by_m
from histoweave.settings import BenchSettings
from histoweave.train.transfer import is_imputer

CONTROLS = "gene-mean,knn-expression,ridge-expression"  # from the section that xMINT learns from
_DRY_SHARED, _DRY_SPOTS = (10, 20, 30, 40), (12, 12)
_DRY_MODELS = "xmint[image=off],gimvi[epochs=2],anchors[k_weight=5],spage[n_pv=5]"


@dataclass(frozen=True, slots=True)
class TonsilRun:
    """What the suite found: the statements of the paper, medians over genes (models × m), and where all of it is."""

    statements: tuple[tonsil.Statement, ...]
    medians: pd.DataFrame
    folder: Path


def run_tonsil(
    out: str | Path,
    settings: BenchSettings | None = None,
    *,
    data: str | Path | None = None,
    dry_run: bool = False,
    say: Say = quiet,
    progress: Progress | None = None,
) -> TonsilRun:
    """Runs the suite into a folder, or goes on with it.

    Parameters
    ----------
    settings
        Models, recipe, seeds and so on. Imputers take the atlas as reference, models of the table learn from the section;
        what is hidden, target, panel, sections and folds are the suite's, whatever these say.
    data
        Folder that holds both datasets under their names; default ``$HISTOWEAVE_DATA``.
    dry_run
        On a phantom, with fewer shared genes and tiny models: it shows that all works, and its values mean nothing.

    Raises
    ------
    DatasetNotFound
        Data that are not here, and how to get them; every statement is said to need a network before.
    """
    out, settings = Path(out), _settings(settings or BenchSettings(), Path(out), dry_run=dry_run)
    try:
        sections, atlas = _phantoms() if dry_run else _load(data)
    except DatasetNotFound:
        for statement in tonsil.statements(None):
            say(str(statement))
        raise
    sections = tonsil.with_atlas(sections, atlas)
    given = split_specs(settings.models)
    learnt, referenced = ([m for m in given if is_imputer(m) == from_atlas] for from_atlas in (False, True))
    reports: dict[int, tuple[Report, ...]] = {}
    for m in _DRY_SHARED if dry_run else tonsil.SHARED:
        how = replace(settings, hide=f"genes:first:{m}", name=f"{tonsil.NAME}, {m} shared genes")
        made = []
        for kind, models, source, controls in (
            ("section", learnt, sections[0], settings.controls), ("atlas", referenced, atlas, "gene-mean"),
        ):  # fmt: skip
            if models:
                cohort = Cohort([source, sections[1]])
                split = Split(train=(source.id,), test=(sections[1].id,), name="reactive")
                how = replace(how, models=",".join(models), controls=controls)
                made.append(bench(cohort, out / f"m{m}-{kind}", how, splits=(split,), say=say, progress=progress))
        reports[m] = tuple(made)
    return _conclude(out, reports, dry_run=dry_run, say=say)


def _settings(settings: BenchSettings, out: Path, *, dry_run: bool) -> BenchSettings:
    models = _DRY_MODELS if dry_run else f"{tonsil.LEARNT},{tonsil.REFERENCED}"
    given = replace(
        settings,
        models=models if settings.models == "auto" else settings.models,
        controls=CONTROLS if settings.controls == "auto" else settings.controls,
        sections="all",
        protocol="strict",
        target_layer="raw",
    )
    return replace(given, recipe="tiny", store=given.store or str(out / "store")) if dry_run else given


def _load(data: str | Path | None) -> tuple[Cohort, Section]:
    """The section to learn from and that to fill in, and at most 20,000 cells of the atlas."""
    atlas = catalog.load(tonsil.ATLAS, data)[0]
    return _ordered(catalog.load(tonsil.SECTIONS, data)), tonsil.thinned(atlas)


def _ordered(cohort: Cohort) -> Cohort:
    return Cohort(cohort[id] for id in (tonsil.TRAIN, tonsil.TEST))


def _phantoms() -> tuple[Cohort, Section]:
    """Two sections of cells, and a third as single cells with types."""
    train, test, cells = phantom(n_patients=3, layout="cells", spots=_DRY_SPOTS, pitch_um=14).cohort
    table = cells.spots.copy()
    table.obs[K.GROUP] = pd.Categorical(np.where(np.arange(cells.n) % 2, "A", "B"))
    atlas = replace(cells.with_spots(table), id=tonsil.ATLAS, platform="reference", image=None)
    return Cohort([replace(train, id=tonsil.TRAIN), replace(test, id=tonsil.TEST)]), atlas


def _conclude(out: Path, reports: dict[int, tuple[Report, ...]], *, dry_run: bool, say: Say) -> TonsilRun:
    """The statements, written with the table and the boxes."""
    table = tonsil.per_gene(reports)
    medians = tonsil.medians_of(table)
    found = tonsil.statements(medians)
    controls = {c["model"] for made in reports.values() for report in made for c in report.cells if c["control"]}
    if table["value"].notna().any():
        with writing(out / f"{tonsil.NAME}-genes.svg") as file:
            boxes_by_m(table, controls=controls).savefig(file, format="svg", metadata={"Date": None})
    with writing(out / f"{tonsil.NAME}.parquet") as file:
        table.to_parquet(file, index=False)
    lines = [f"# {tonsil.NAME}" + (f" ({DRY})" if dry_run else ""), ""]
    lines += [f"- {statement}" for statement in found]
    lines += [
        "",
        "Median over genes of Spearman's correlation over bins of 54 µm with 10 cells or more, of shares of the imputed "
        f"genes; the {table['gene'].nunique()} genes that are imputed at every m and stand in the atlas too. The paper prints no "
        "numbers, and does not say how many cells of the atlas it took. Controls are of the section that xMINT learns from.",
        "",
        pipe(medians.round(4).rename_axis("model")),
        "",
        f"![boxes]({tonsil.NAME}-genes.svg)",
        "",
    ]
    with writing(out / f"{tonsil.NAME}.md") as file:
        file.write("\n".join(lines).encode())
    for statement in found:
        say(f"{statement}" + (f" [{DRY}]" if dry_run else ""))
    return TonsilRun(found, medians, out)
