"""Filling in what is not there: entries that an assay dropped, and genes that a panel never measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from histoweave import _keys as K
from histoweave.data._atomic import replacing
from histoweave.data.io import read_reference
from histoweave.data.section import Cohort, Section
from histoweave.inference import check_out
from histoweave.models import card_of, list_models, nearest, read_spec
from histoweave.models.impute import list_imputers
from histoweave.pp.counts import Target
from histoweave.pp.genes import GenePanel
from histoweave.settings import CompleteSettings, ImputeSettings, choose_sections, set_up
from histoweave.train import Learner, Transfer, layers
from histoweave.train.matching import Matched, match_genes
from histoweave.train.transfer import is_imputer

Progress = Callable[[int, int, str], None]


def complete(
    cohort: Cohort,
    out: str | Path | None = None,
    settings: CompleteSettings | None = None,
    *,
    progress: Progress | None = None,
) -> AnnData:
    """Fits a model that completes on a cohort, and fills in what its assay dropped; the file appears whole or not at all."""
    settings = settings or CompleteSettings()
    check_out(out)
    set_up(settings.threads, settings.device)
    chosen = choose_sections(cohort, settings.sections)
    learner = Learner(
        settings.method,
        settings.view(),
        settings.open_store(),
        recipe=settings.recipe,
        seed=settings.seed,
        device=settings.device,
        progress=progress,
    )
    if not learner.spec.completes:
        raise ValueError(
            f"method {settings.method!r} does not complete; those that do: {', '.join(layers.completers())}"
        )
    made = layers.complete(learner.fit(chosen), chosen)
    return _written(made, out)


def impute(
    target: Cohort,
    origin: Cohort,
    out: str | Path | None = None,
    settings: ImputeSettings | None = None,
    *,
    progress: Progress | None = None,
) -> tuple[AnnData, Matched]:
    """Genes that a target's panel lacks, from sections or single cells in which they are measured.

    Parameters
    ----------
    origin
        Sections with all genes, with images for models that look at them; or a single-cell reference
        (`histoweave.data.io.read_reference`).
    out
        ``.h5ad`` to write; it appears whole or not at all.

    Returns
    -------
    AnnData of the target's cells × imputed genes, in the unit of ``uns["histoweave"]["units"]``, with the method's
    ``layers["spread"]`` where it tells one; and which genes were matched.
    """
    settings = settings or ImputeSettings()
    check_out(out)
    name = read_spec(settings.method)[0]
    if name not in (methods := [*list_imputers(), *imputing()]):
        raise ValueError(f"method {name!r} does not impute{nearest(name, methods)}")
    set_up(settings.threads, settings.device)
    target = choose_sections(target, settings.sections)
    found = match_genes(origin, target, settings.genes)
    shared = Cohort(_only(section, found.shared) for section in target)
    if is_imputer(settings.method):
        made = Transfer(settings.method, seed=settings.seed, genes=found.imputed).fit(origin).predict(shared)
    else:
        if len(found.imputed) < 2:
            raise ValueError(
                f"{settings.method} gives shares of the imputed genes, and with {found.imputed[0]!r} alone every share is "
                "1; impute two genes or more (`--genes`), or use an imputer such as ridge-expression"
            )
        learner = _learner(settings, found, progress)
        layers.check_sections(learner.spec, shared)  # before an hour of training, not after it
        made = learner.fit(origin).predict(shared)
    made.uns[K.UNS] |= {name: list(getattr(found, name)) for name in ("shared", "unknown")}
    return _written(made, out), found


def imputing() -> list[str]:
    """Names of the models of the table that impute."""
    return [name for name in list_models() if card_of(name).task == "impute"]


def reference(path: str | Path, groups: str | None = None) -> Cohort:
    """Single cells to impute from.

    Parameters
    ----------
    groups
        Column with the type of each cell; ``""``: none. By default ``cell_type``, where the file has it and every cell has
        one of at least two types.
    """
    if groups:
        return Cohort([read_reference(path, groups)])
    found = read_reference(path, None)
    types = found.spots.obs.get("cell_type")
    if groups is None and types is not None and types.notna().all() and types.nunique() > 1:
        found.spots.obs[K.GROUP] = pd.Categorical(types.astype(str))
    return Cohort([found])


def _learner(settings: ImputeSettings, found: Matched, progress: Progress | None) -> Learner:
    """The model of the table that imputes, from the shared genes and the image."""
    panel = GenePanel(found.imputed, "imputed")
    view = replace(settings.view(), target=Target.preset("share"), panel=panel, shared=found.shared)
    return Learner(
        settings.method,
        view,
        settings.open_store(),
        recipe=settings.recipe,
        seed=settings.seed,
        device=settings.device,
        progress=progress,
    )


def _only(section: Section, genes: tuple[str, ...]) -> Section:
    """The section with these genes; its library is their sum."""
    spots = section.spots[:, list(genes)].copy()
    spots.obs[K.LIBRARY] = np.asarray(spots.X.sum(axis=1)).ravel()
    return section.with_spots(spots)


def _written(made: AnnData, out: str | Path | None) -> AnnData:
    if out is not None:
        with replacing(Path(out)) as temporary:
            made.write_h5ad(temporary)
    return made
