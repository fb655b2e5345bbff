"""Single-cell references: cells with counts and no place, whose genes the panel of a section lacks."""

from __future__ import annotations

import difflib
import logging
from pathlib import Path

import pandas as pd

from histoweave import _keys as K
from histoweave.data.io.h5ad import open_h5ad, section_from_anndata
from histoweave.data.section import Section, SectionError

log = logging.getLogger(__name__)


def read_reference(
    path: str | Path,
    groups: str | None = "cell_type",
    *,
    id: str | None = None,
    patient: str | None = None,
    layer: str | None = None,
) -> Section:
    """A single-cell reference from an ``.h5ad`` file.

    Parameters
    ----------
    path
        Raw counts of cells; positions are not needed.
    groups
        Column of ``obs`` with the type or cluster of each cell; None where no method asks for it.
    id, patient
        Default: the file's stem; ``uns["patient"]``, else the id.
    layer
        Where the raw counts are: a layer, or ``"raw"`` for ``.raw``; default ``X``.

    Returns
    -------
    Section
        With platform ``"reference"``, all columns of ``obs``, and the groups once more as the categorical
        ``obs["group"]``. Positions are those of the file, else (0, 0); nothing looks at them.

    Raises
    ------
    SectionError
        No such column (with the nearest match), cells without a group, a single group, and everything that `read_h5ad`
        refuses.
    """
    path = Path(path)
    table = open_h5ad(path)
    name = id or path.stem
    stored = table.uns.get(K.PATIENT)
    group = None if groups is None else _groups(table.obs, groups, source=str(path))
    section = section_from_anndata(
        table,
        id=name,
        source=str(path),
        patient=patient or (stored if isinstance(stored, str) else name),
        platform="reference",
        layer=layer,
    )
    if group is not None:
        section.spots.obs[K.GROUP] = group
    return section


def _groups(obs: pd.DataFrame, column: str, *, source: str) -> pd.Categorical:
    if column not in obs:
        names = [str(name) for name in obs.columns]
        near = difflib.get_close_matches(column, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {names}"
        raise SectionError(
            f"'{source}': obs has no column {column!r}; {hint} Give `groups` the column with the type of each cell, or None"
        )
    given = obs[column]
    without = int(given.isna().sum())
    if without:
        raise SectionError(
            f"'{source}': {without} of {len(given)} cells have no {column!r}; drop them, or name their group 'unknown'"
        )
    found = pd.Categorical(given.astype(str))
    if len(found.categories) < 2:
        raise SectionError(
            f"'{source}': all cells have the {column!r} {found[0]!r}; give another column, or groups=None"
        )
    log.info("'%s': %d cells in %d groups of %r", source, len(found), len(found.categories), column)
    return found
