"""Legacy Spatial Transcriptomics listed by a ``metadata.csv``: the published layout of the ST-Net breast data.

Written after the published description of the files; not yet tried on the authors' files.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from histoweave import _keys as K
from histoweave.data.io._tsv import read_bytes
from histoweave.data.io.st_legacy import read_st_section, split_keys, wanted
from histoweave.data.section import Cohort, Section, SectionError

log = logging.getLogger(__name__)

NEEDED = ("patient", "replicate", "histology_image", "spot_coordinates", "count_matrix")


def is_metadata(path: Path) -> bool:
    """Whether a csv file has the columns of this layout."""
    if not path.is_file():
        return False
    with path.open(encoding="utf-8", errors="replace") as lines:
        return set(NEEDED) <= {name.strip().strip('"') for name in lines.readline().strip().split(",")}


def read_st_metadata(
    metadata: str | Path,
    *,
    um_per_px: float | None = None,
    sections: Iterable[str] | Literal["all", "with-image"] = "all",
) -> Cohort:
    """All sections that a ``metadata.csv`` lists, in its order.

    Parameters
    ----------
    metadata
        Columns ``patient``, ``replicate``, ``histology_image``, ``spot_coordinates``, ``count_matrix``, and optionally
        ``type`` and ``tumor_annotation``; files relative to the table, compressed or not.

    Returns
    -------
    Cohort
        Ids are ``PATIENT_REPLICATE``; ``obs["label"]`` is the tumour annotation where there is one, ``obs["subtype"]``
        the ``type`` of the table.

    Raises
    ------
    SectionError
        Missing columns, and all of `read_st_section`; a listed file that is not there is a `FileNotFoundError`.
    """
    metadata = Path(metadata)
    table = pd.read_csv(metadata, dtype=str)
    missing = [name for name in NEEDED if name not in table.columns]
    if missing:
        raise SectionError(f"'{metadata}' lacks the columns {missing}; it has {list(table.columns)}")
    table.index = pd.Index(table["patient"] + "_" + table["replicate"])
    images = {
        str(id)
        for id, name in table["histology_image"].items()
        if isinstance(name, str) and _locate(metadata.parent, name) is not None
    }
    ids = wanted([str(id) for id in table.index], images, sections, where=str(metadata))
    return Cohort(_read_row(id, table.loc[id], metadata.parent, um_per_px) for id in ids)


def _read_row(id: str, row: pd.Series, folder: Path, um_per_px: float | None) -> Section:
    paths = {}
    for column in ("count_matrix", "spot_coordinates"):
        path = _locate(folder, str(row[column]))
        if path is None:
            raise FileNotFoundError(f"section {id!r}: {column} names '{row[column]}', which is not in '{folder}'")
        paths[column] = path
    image = _locate(folder, str(row["histology_image"]))
    if image is None:
        log.warning("section %r: its image '%s' is not in '%s'", id, row["histology_image"], folder)
    section = read_st_section(
        paths["count_matrix"], paths["spot_coordinates"], image, id=id, patient=str(row["patient"]), um_per_px=um_per_px
    )
    annotation = row.get("tumor_annotation")
    tumour = _locate(folder, annotation) if isinstance(annotation, str) else None
    if tumour is not None:
        section.spots.obs[K.LABEL] = _tumour(tumour, section.spots.obs_names.tolist(), id=id)
    if isinstance(row.get("type"), str):
        section.spots.obs["subtype"] = pd.Categorical([row["type"]] * section.n)
    return section


def _locate(folder: Path, name: str) -> Path | None:
    """A listed file, with or without ``.gz``."""
    for candidate in (name, name + ".gz", name.removesuffix(".gz")):
        if (folder / candidate).is_file():
            return folder / candidate
    return None


def _tumour(path: Path, spots: list[str], *, id: str) -> pd.Categorical:
    """Annotation per spot. The first line names four of the five columns: name, x, y, annotation id, annotation."""
    text = read_bytes(path).decode("utf-8", errors="replace").replace("\r\n", "\n").replace("\r", "\n")
    table = pd.read_csv(io.StringIO(text), sep="\t", skiprows=1, header=None)
    if table.shape[1] < 5:
        raise SectionError(f"section {id!r}: '{path}' has {table.shape[1]} columns; expected name, x, y, id, label")
    table = table.dropna(subset=[1, 2, 4])
    at = np.rint(table[[1, 2]].to_numpy(dtype=np.float64)).astype(np.int64)
    known = pd.Series(table[4].astype(str).str.strip().to_numpy(dtype=object), index=pd.MultiIndex.from_arrays(at.T))
    known = known[~known.index.duplicated()]
    x, y = split_keys(spots, where=f"section {id!r}")
    asked = pd.MultiIndex.from_arrays([np.rint(x).astype(np.int64), np.rint(y).astype(np.int64)])
    return pd.Categorical(known.reindex(asked).to_numpy(dtype=object))
