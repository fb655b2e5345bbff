"""Prediction on a slide without counts: tissue → tile centres at the training pitch → embeddings → AnnData.

The result is written region by region, so that memory does not grow with the slide.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.io import write_elem

from histoweave import _keys as K
from histoweave.data.image import SlideImage
from histoweave.data.section import Section, make_section
from histoweave.pp.tissue import tile_centres, tissue_mask
from histoweave.train import Learner

_MASK_PX = 2048  # longer side of the thumbnail that tissue is found on


def tile_slide(
    image: SlideImage,
    *,
    id: str,
    um_per_px: float | None = None,
    pitch_um: float,
    platform: str = "st",
    min_tissue: float = 0.5,
) -> Section:
    """A section of tile centres on the tissue of a slide, without counts.

    Parameters
    ----------
    pitch_um
        Distance between centres; the training pitch keeps neighbourhoods as they were learnt.
    platform
        ``visium`` tiles on its hexagonal lattice, anything else on a square one.
    """
    lattice: Any = "hex" if platform == "visium" else "square"
    scale = um_per_px if um_per_px is not None else image.um_per_px
    if scale is None:
        raise ValueError(f"the µm per px of slide {id!r} is unknown and the file does not say; give it: `--mpp 0.5`")
    xy, rc = tile_centres(
        tissue_mask(image.thumbnail(_MASK_PX)), image.size, scale, pitch_um, lattice=lattice, min_tissue=min_tissue
    )
    return make_section(
        id=id,
        patient=id,
        counts=None,
        genes=(),
        xy=xy,
        array_rc=rc,
        um_per_px=scale,
        image=image,
        platform="visium" if lattice == "hex" else "st",
        names=[f"tile-{i}" for i in range(len(xy))],
    )


def predict_slide(
    learner: Learner,
    image: str | Path | SlideImage,
    out: str | Path | None = None,
    *,
    um_per_px: float | None = None,
    pitch_um: float | None = None,
    min_tissue: float = 0.5,
    id: str | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> AnnData:
    """Expression predicted at every tile of a slide that has no counts.

    Parameters
    ----------
    learner
        A fitted or loaded predictor.
    out
        Where to write the ``.h5ad``; the result is then opened from disk (backed), else it is in memory.
    um_per_px
        Where the slide's file does not say.
    pitch_um
        Distance between tiles; default: as in training.

    Returns
    -------
    ``X`` (n, g) in the units of ``uns["histoweave"]["units"]``; ``obsm["spatial"]`` level-0 px; ``var["cv_pcc"]``, its sd
    over patients and their number, NaN with the reason in ``uns`` where the accuracy was not measured.
    """
    check_out(out)
    slide = image if isinstance(image, SlideImage) else SlideImage.open(image, um_per_px)
    name = id or (Path(image).stem if isinstance(image, (str, Path)) else "slide")
    spacing = learner.spacing
    pitch = pitch_um if pitch_um is not None else spacing.get("pitch_um")
    if pitch is None:
        raise ValueError("the model does not know the distance between its training spots; give it: `--pitch 100`")
    section = tile_slide(
        slide,
        id=name,
        um_per_px=um_per_px,
        pitch_um=pitch,
        platform=spacing.get("platform", "st"),
        min_tissue=min_tissue,
    )
    return predict_section(learner, section, out, progress=progress)


def predict_section(
    learner: Learner,
    section: Section,
    out: str | Path | None = None,
    *,
    progress: Callable[[int, int, str], None] | None = None,
) -> AnnData:
    """Expression predicted at the spots of a section, in memory or written to `out` region by region."""
    check_out(out)
    parts = _counted(learner.stream(section), section.n, progress)
    if out is None:
        return _in_order(section, list(parts))
    out, parts = Path(out), chain([next(parts)], parts)  # what fails, fails before anything is made
    out.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{out.name}-", dir=out.parent)
    os.close(handle)
    try:
        _write(Path(temporary), section, parts)
        os.replace(temporary, out)
    finally:
        Path(temporary).unlink(missing_ok=True)
    out.chmod(0o644)
    return anndata.read_h5ad(out, backed="r")


def check_out(out: str | Path | None) -> None:
    """`ValueError` if the output is not the path of a file in the format that is written."""
    if out is not None and (Path(out).suffix != ".h5ad" or Path(out).is_dir()):
        raise ValueError(f"the output '{out}' is not a .h5ad file; write for example 'prediction.h5ad'")


def _counted(parts: Iterator[AnnData], n: int, progress: Any) -> Iterator[AnnData]:
    done = 0
    for part in parts:
        yield part
        done += part.n_obs
        if progress is not None:
            progress(done, n, "predict")


def _positions(section: Section) -> pd.Index:
    return pd.Index(section.id + "/" + section.spots.obs_names.astype(str))


def _in_order(section: Section, parts: list[AnnData]) -> AnnData:
    made = anndata.concat(parts, join="inner")[_positions(section)].copy() if len(parts) > 1 else parts[0]
    made.uns[K.UNS], made.var = _about(section, parts[0]), parts[0].var
    return made


def _about(section: Section, part: AnnData) -> dict[str, Any]:
    note = json.loads(part.uns[K.UNS]["card"])["expected_accuracy"]
    return dict(part.uns[K.UNS]) | {"um_per_px": float(section.um_per_px or np.nan), "expected_accuracy": note}


def _write(path: Path, section: Section, parts: Iterator[AnnData]) -> None:
    """An .h5ad whose matrix is filled region by region; the tables, small beside it, come at the end."""
    order, obs, first = _positions(section), [], None
    with h5py.File(path, "w") as file:
        for part in parts:
            if first is None:
                first = part
                shape = (section.n, part.n_vars)
                matrix = file.create_dataset(
                    "X", shape=shape, dtype="float32", chunks=(min(1024, shape[0]), shape[1]), compression="gzip"
                )
                matrix.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
            rows = order.get_indexer(part.obs_names)
            for run in np.split(np.argsort(rows), np.flatnonzero(np.diff(np.sort(rows)) > 1) + 1):
                matrix[rows[run[0]] : rows[run[-1]] + 1] = np.asarray(part.X)[run]
            obs.append(part.obs)
        assert first is not None
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        write_elem(file, "obs", pd.concat(obs).loc[order])
        write_elem(file, "var", first.var)
        write_elem(file, "obsm", {K.SPATIAL: section.xy})
        write_elem(file, "uns", {K.UNS: _about(section, first)})
