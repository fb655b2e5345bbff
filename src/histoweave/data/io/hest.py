"""The HEST-1k layout: ``st/<id>.h5ad``, ``wsis/<id>.tif``, ``metadata/<id>.json`` and one table of all samples.

``obsm["spatial"]`` are spot **centres** in px of the image; the ``coords`` of the patch files of HEST are top-left
corners and are not read. Written after the published description; not yet tried on the files themselves.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, cast

import pandas as pd

from histoweave.data.io.h5ad import read_h5ad
from histoweave.data.io.st_legacy import wanted
from histoweave.data.section import Cohort, Platform, SectionError

log = logging.getLogger(__name__)

TECHNOLOGY = {"Spatial Transcriptomics": "st", "Visium": "visium", "Visium HD": "visium_hd", "Xenium": "xenium"}
PIXEL_SIZE = ("pixel_size_um_estimated", "pixel_size_um_embedded")


def read_hest(
    folder: str | Path,
    *,
    sections: Iterable[str] | Literal["all", "with-image"] = "all",
    um_per_px: float | None = None,
) -> Cohort:
    """Sections of a HEST-1k download, ordered by id.

    Parameters
    ----------
    folder
        Holds ``st``, ``metadata``, and, where images were fetched, ``wsis``; the table ``HEST_*.csv`` in or beside it.
    sections
        Ids to read, or only those with an image.
    um_per_px
        For all sections; default: ``pixel_size_um_estimated`` of the metadata, else ``pixel_size_um_embedded``.

    Returns
    -------
    Cohort
        The patient is the column ``patient`` of the table, or that entry of the metadata. Names like ``"Patient 1"``
        recur between studies: where several studies are read, the study's title is put before it. Without any, the id
        stands for a patient and this is logged.

    Raises
    ------
    SectionError
        No section, an unknown technology, an unknown µm per px of a section with an image, and all of `make_section`.
    """
    folder = Path(folder)
    files = {path.stem: path for path in sorted((folder / "st").glob("*.h5ad"))}
    images = {path.stem: path for path in sorted((folder / "wsis").glob("*.tif*"))}
    ids = wanted(files, set(images) & set(files), sections, where=str(folder / "st"))
    table = _table(folder)
    metadata = {id: _metadata(folder, id, table) for id in ids}
    patients = _patients(metadata)
    read = []
    for id in ids:
        known = metadata[id]
        stored = next((float(known[key]) for key in PIXEL_SIZE if _number(known.get(key))), None)
        scale = stored if um_per_px is None else um_per_px
        if scale is None and id in images:
            raise SectionError(f"section {id!r}: metadata has no {' or '.join(PIXEL_SIZE)}; give `um_per_px`")
        read.append(
            read_h5ad(
                files[id], images.get(id), id=id, patient=patients[id], platform=_platform(id, known), um_per_px=scale
            )
        )
    return Cohort(read)


def is_hest(folder: Path) -> bool:
    """Whether a folder has the parts of this layout."""
    return any((folder / "st").glob("*.h5ad")) and ((folder / "metadata").is_dir() or (folder / "wsis").is_dir())


def _table(folder: Path) -> pd.DataFrame:
    found = sorted(folder.glob("HEST_*.csv")) or sorted(folder.parent.glob("HEST_*.csv"))
    if not found:
        return pd.DataFrame()
    table = pd.read_csv(found[-1], dtype=str, encoding="utf-8-sig")
    return table.set_index("id") if "id" in table.columns else pd.DataFrame()


def _metadata(folder: Path, id: str, table: pd.DataFrame) -> dict[str, Any]:
    """The section's json; the table's entries fill what it lacks."""
    path = folder / "metadata" / f"{id}.json"
    known: dict[str, Any] = {}
    if id in table.index:
        known.update({str(key): value for key, value in table.loc[id].items() if isinstance(value, str)})
        known.update({key: float(known[key]) for key in PIXEL_SIZE if key in known})
    if path.is_file():
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise SectionError(f"section {id!r}: '{path}' is no JSON ({error}); fetch it again") from error
        known.update({key: value for key, value in content.items() if value is not None and value == value})
    return known


def _patients(metadata: dict[str, dict[str, Any]]) -> dict[str, str]:
    titles = {str(known.get("dataset_title", "")) for known in metadata.values()}
    names = {}
    for id, known in metadata.items():
        name = known.get("patient")
        if not isinstance(name, str | int) or str(name).strip() == "":
            log.warning("section %r: no patient in the metadata, so its id stands for one", id)
            names[id] = id
        else:
            names[id] = f"{known.get('dataset_title', '')}: {name}" if len(titles) > 1 else str(name)
    return names


def _platform(id: str, known: dict[str, Any]) -> Platform | None:
    technology = known.get("st_technology")
    if technology is None:
        return None
    if technology not in TECHNOLOGY:
        raise SectionError(f"section {id!r}: technology {technology!r} is unknown; expected {sorted(TECHNOLOGY)}")
    return cast(Platform, TECHNOLOGY[technology])


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and value > 0
