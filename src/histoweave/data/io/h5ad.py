"""An ``.h5ad`` file, with or without an image. AnnData files are HDF5: nothing in them is unpickled."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import anndata
import numpy as np
import pandas as pd

from histoweave import _keys as K
from histoweave.data.image import SlideImage
from histoweave.data.io import _lattice
from histoweave.data.io._features import Kinds, control_totals, name_controls
from histoweave.data.section import Platform, Section, SectionError, make_section

log = logging.getLogger(__name__)

SCALE_KEYS = ("um_per_px", "microns_per_pixel", "pixel_size_um_estimated", "pixel_size_um_embedded", "pixel_size")


def read_h5ad(
    path: str | Path,
    image: str | Path | None = None,
    *,
    id: str | None = None,
    patient: str | None = None,
    platform: Platform | None = None,
    um_per_px: float | None = None,
    layer: str | None = None,
    spatial: str | tuple[str, str] = K.SPATIAL,
) -> Section:
    """One section from an ``.h5ad`` file.

    Parameters
    ----------
    image
        Full-resolution image to which the positions refer.
    id, patient
        Default: the file's stem; ``uns["patient"]``, else the id.
    platform
        Default: ``uns["platform"]``; else by what is there: no positions → ``"reference"``, ``array_row`` and
        ``array_col`` in ``obs`` → ``"visium"`` where row + column is always even (a hexagonal lattice), else ``"st"``;
        other positions → ``"xenium"`` (cells).
    um_per_px
        Default: ``uns``, its ``spatial/<library>/scalefactors`` or ``metadata``, the spot lattice, the image. Unknown
        is an error where there is an image, and allowed where there is none.
    layer
        Where the raw counts are: a layer, or ``"raw"`` for ``.raw``; default ``X``.
    spatial
        Name in ``obsm``, or two columns of ``obs`` as (x, y): centres in px of the full-resolution image.

    Returns
    -------
    Section
        With the file's ``obs``. A ``reference`` without positions has all its rows at (0, 0). Where
        ``var["feature_types"]`` says what features are, only those of type ``Gene Expression`` are genes: the total of
        the negative controls is ``obs["control_counts"]``, their names are in ``uns["controls"]``, and what is neither
        is dropped and counted in the log.

    Raises
    ------
    SectionError
        A file that is no AnnData, an unknown layer, missing positions, and everything `make_section` refuses.
    """
    path = Path(path)
    return section_from_anndata(
        open_h5ad(path),
        id=id or path.stem,
        source=str(path),
        patient=patient,
        platform=platform,
        um_per_px=um_per_px,
        layer=layer,
        spatial=spatial,
        image=image,
    )


def open_h5ad(path: Path) -> anndata.AnnData:
    """The AnnData object of a file; a missing or broken file is named."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file '{path}'")
    try:
        return anndata.read_h5ad(path)
    except (OSError, KeyError, ValueError) as error:
        raise SectionError(f"'{path}' is truncated or not an AnnData file ({error}); write it again") from error


def section_from_anndata(
    table: anndata.AnnData,
    *,
    id: str,
    source: str,
    patient: str | None = None,
    platform: Platform | None = None,
    um_per_px: float | None = None,
    layer: str | None = None,
    spatial: str | tuple[str, str] = K.SPATIAL,
    image: str | Path | None = None,
) -> Section:
    """A `Section` from an AnnData object; ``source`` names it in messages. See `read_h5ad`."""
    xy = _positions(table, spatial, source=source, required=image is not None)
    lattice = _lattice_columns(table)
    kind = _platform(table, platform, xy, lattice, source=source)
    if kind not in ("st", "visium", "visium_hd") or not table.n_obs:  # an empty table is refused below
        lattice = None
    if patient is None:
        stored = table.uns.get(K.PATIENT)
        patient = str(stored) if isinstance(stored, str) else id
        if not isinstance(stored, str):
            log.warning("section %r: no patient was given, so its id stands for one", id)
    scale = um_per_px if um_per_px is not None else stored_scale(table.uns)
    if xy is not None and lattice is not None and kind in ("st", "visium") and (scale is not None or image is not None):
        scale = _lattice.resolve(scale, lattice[:, ::-1], xy, kind, id=id)
    counts, genes, controls = _counts(table, layer, source=source)
    slide = None if image is None else SlideImage.open(image, um_per_px=scale)
    obs = _obs(table)
    if controls is not None:
        obs = obs.assign(**{K.CONTROL_COUNTS: controls.totals})
    section = make_section(
        id=id,
        patient=patient,
        counts=counts,
        genes=genes,
        xy=np.zeros((table.n_obs, 2)) if xy is None else xy,
        platform=kind,
        um_per_px=scale,
        image=slide,
        array_rc=lattice,
        names=table.obs_names.tolist(),
        obs=obs,
    )
    stored = table.uns.get(K.CONTROLS) if controls is None else controls.names
    return section if stored is None else name_controls(section, list(stored))


def stored_scale(uns: Mapping[str, Any]) -> float | None:
    """µm per px as an AnnData file may carry it; None where it does not.

    Looked for at the top of ``uns``, under ``uns["histoweave"]``, and in the ``scalefactors`` and ``metadata`` of each
    library of ``uns["spatial"]``; two libraries with different values count as unknown.
    """
    places: list[Any] = [uns, uns.get(K.UNS)]
    libraries = uns.get("spatial")
    if isinstance(libraries, Mapping):
        for library in libraries.values():
            if isinstance(library, Mapping):
                places += [library.get("scalefactors"), library.get("metadata")]
    if isinstance(uns.get(K.UNS), str):
        places[1] = json.loads(uns[K.UNS])
    for key in SCALE_KEYS:
        values = [
            float(place[key])
            for place in places
            if isinstance(place, Mapping) and isinstance(place.get(key), int | float | np.number)
        ]
        if values:
            return values[0] if np.allclose(values, values[0], rtol=1e-3) else None
    return None


def _positions(
    table: anndata.AnnData, spatial: str | tuple[str, str], *, source: str, required: bool
) -> np.ndarray | None:
    if isinstance(spatial, tuple):
        missing = [name for name in spatial if name not in table.obs]
        if missing:
            raise SectionError(f"'{source}': obs has no column {missing}; it has {list(table.obs.columns)}")
        return table.obs[list(spatial)].to_numpy(dtype=np.float64)
    if spatial in table.obsm:
        return np.asarray(table.obsm[spatial], dtype=np.float64)[:, :2]
    if required or spatial != K.SPATIAL:
        raise SectionError(
            f"'{source}': obsm has no {spatial!r}, only {list(table.obsm)}; give `spatial` the name of the pixel "
            "centres in obsm, or two columns of obs"
        )
    return None


def _lattice_columns(table: anndata.AnnData) -> np.ndarray | None:
    if not {K.ROW, K.COL} <= set(table.obs.columns):
        return None
    given = table.obs[[K.ROW, K.COL]].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
    return given.astype(np.int64) if np.isfinite(given).all() and (given == np.rint(given)).all() else None


def _platform(
    table: anndata.AnnData, given: str | None, xy: np.ndarray | None, lattice: np.ndarray | None, *, source: str
) -> Platform:
    stored = table.uns.get("platform")
    if given is None and isinstance(stored, str) and stored in get_args(Platform):
        given = stored
    if given is None:
        hexagonal = lattice is not None and bool((lattice.sum(axis=1) % 2 == 0).all())
        given = "reference" if xy is None else "xenium" if lattice is None else "visium" if hexagonal else "st"
        log.info("'%s' is taken for platform %r", source, given)
    if xy is None and given != "reference":
        raise SectionError(f"'{source}' has no positions, which platform {given!r} needs; expected obsm['{K.SPATIAL}']")
    return cast(Platform, given)


@dataclass(frozen=True, slots=True)
class _Controls:
    """Names of the negative controls, and their total per spot (n,)."""

    names: list[str]
    totals: np.ndarray


def _counts(table: anndata.AnnData, layer: str | None, *, source: str) -> tuple[Any, list[str], _Controls | None]:
    """Raw counts of the genes, their names, and the negative controls; None where features are not told apart."""
    values, var = table.X, table.var
    if layer == "raw":
        if table.raw is None:
            raise SectionError(f"'{source}' has no `.raw`; its layers are {list(table.layers)}")
        values, var = table.raw.X, table.raw.var
    elif layer is not None:
        if layer not in table.layers:
            raise SectionError(f"'{source}' has no layer {layer!r}; its layers are {list(table.layers)}")
        values = table.layers[layer]
    if values is None:
        return None, var.index.astype(str).tolist(), None
    controls = None
    if "feature_types" in var:
        kinds = Kinds.of(var["feature_types"].astype(str).tolist(), where=f"'{source}'")
        if len(kinds.controls):
            totals = control_totals(values, kinds.controls)
            controls = _Controls(var.index[kinds.controls].astype(str).tolist(), totals)
        if len(kinds.genes) < len(var):
            values, var = values[:, kinds.genes], var.iloc[kinds.genes]
    return values, var.index.astype(str).tolist(), controls


def _obs(table: anndata.AnnData) -> pd.DataFrame:
    """The file's columns; a ``library`` that histoweave did not write is something else and gets another name."""
    obs = table.obs.drop(columns=[name for name in (K.ROW, K.COL) if name in table.obs])
    return obs if K.UNS in table.uns else obs.rename(columns={K.LIBRARY: f"{K.LIBRARY}_in_file"})
