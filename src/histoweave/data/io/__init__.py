"""Readers: one file per format, and `read_cohort`, which recognises what lies at a path.

Every reader returns checked sections: raw counts, positions in px of the full-resolution image, µm per px known or an
error that says how to give it. Images are opened, not decoded.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from histoweave.data.io.h5ad import read_h5ad, section_from_anndata
from histoweave.data.io.hest import is_hest, read_hest
from histoweave.data.io.reference import read_reference
from histoweave.data.io.samples_csv import is_samples, read_samples
from histoweave.data.io.st_legacy import (
    PatientRule,
    find_sections,
    patient_of,
    read_st_folder,
    read_st_section,
    wanted,
)
from histoweave.data.io.st_metadata import is_metadata, read_st_metadata
from histoweave.data.io.visium import find_image, find_outs, is_outs, read_visium
from histoweave.data.io.xenium import find_xenium, has_image, is_xenium, read_xenium
from histoweave.data.section import Cohort, Section, SectionError

__all__ = [
    "read_cohort",
    "read_h5ad",
    "read_hest",
    "read_reference",
    "read_samples",
    "read_st_folder",
    "read_st_metadata",
    "read_st_section",
    "read_visium",
    "read_xenium",
    "recognise",
    "section_from_anndata",
]

log = logging.getLogger(__name__)

Format = Literal[
    "samples", "st", "st-metadata", "hest", "visium", "visium-folder", "xenium", "xenium-folder", "h5ad", "h5ad-folder"
]
Which = Iterable[str] | Literal["all", "with-image"]


def recognise(path: str | Path) -> Format:
    """The format of what lies at a path.

    Raises
    ------
    FileNotFoundError, SectionError
        Nothing there; nothing known there, with what was looked for.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is nothing at '{path}'")
    if path.is_file():
        if path.suffix == ".h5ad":
            return "h5ad"
        if path.suffix == ".csv":
            return "st-metadata" if is_metadata(path) and not is_samples(path) else "samples"
    elif is_samples(path / "samples.csv"):
        return "samples"
    elif is_metadata(path / "metadata.csv"):
        return "st-metadata"
    elif is_outs(path) or is_outs(path / "outs"):
        return "visium"
    elif is_xenium(path) or is_xenium(path / "outs"):
        return "xenium"
    elif is_hest(path):
        return "hest"
    elif any(path.glob("*.h5ad")):
        return "h5ad-folder"
    elif any(is_outs(child) or is_outs(child / "outs") for child in path.iterdir() if child.is_dir()):
        return "visium-folder"
    elif any(is_xenium(child) or is_xenium(child / "outs") for child in path.iterdir() if child.is_dir()):
        return "xenium-folder"
    elif find_sections(path):
        return "st"
    raise SectionError(
        f"'{path}' is not recognised. Expected a samples.csv; an .h5ad file or a folder of them; a Space Ranger or "
        "Xenium folder or one per section; the HEST layout (st/, wsis/, metadata/); legacy ST (ST-cnts/ and ST-spotfiles/, or "
        "*_stdata.tsv.gz beside *_spot_data-selection-*.tsv.gz); or the metadata.csv of ST-Net"
    )


def read_cohort(
    path: str | Path,
    *,
    patient: PatientRule | None = None,
    um_per_px: float | None = None,
    sections: Which = "all",
) -> Cohort:
    """The sections at a path, whatever their format.

    Parameters
    ----------
    path
        See `recognise`.
    patient
        How the patient follows from a section id, where the format does not say (legacy ST, folders of Visium,
        Xenium or ``.h5ad``): see `read_st_folder`. But for legacy ST the default takes each section for a patient, and
        logs it.
    um_per_px
        For all sections; default: what the files say. Not with a samples.csv, whose ``mpp`` says it per section.
    sections
        Ids, or ``"with-image"``.

    Raises
    ------
    FileNotFoundError, SectionError
        As `recognise` and the reader of the format.
    """
    path = Path(path)
    kind = recognise(path)
    if kind in ("samples", "hest", "st-metadata") and patient is not None:
        raise SectionError(f"'{path}' is of format {kind!r}, which names its patients; leave `patient` out")
    if kind == "st":
        return read_st_folder(path, patient=patient, um_per_px=um_per_px, sections=sections)
    if kind == "st-metadata":
        table = path if path.is_file() else path / "metadata.csv"
        return read_st_metadata(table, um_per_px=um_per_px, sections=sections)
    if kind == "hest":
        return read_hest(path, sections=sections, um_per_px=um_per_px)
    if kind == "samples":
        if um_per_px is not None:
            raise SectionError(f"'{path}' has a column 'mpp' per section; write the µm per px there")
        cohort = read_samples(path if path.is_file() else path / "samples.csv")
        having = {section.id for section in cohort if section.image is not None}
        return cohort.subset(wanted(cohort.ids, having, sections, where=str(path)))
    if kind in ("xenium", "xenium-folder"):
        return _read_regions(path, kind, patient, um_per_px, sections)
    return _read_each(path, kind, patient, um_per_px, sections)


def _read_each(path: Path, kind: str, patient: PatientRule | None, um_per_px: float | None, sections: Which) -> Cohort:
    """One ``.h5ad`` or Space Ranger folder, or a folder of them."""
    if kind in ("h5ad", "h5ad-folder"):
        files = {file.stem: file for file in ([path] if kind == "h5ad" else sorted(path.glob("*.h5ad")))}
        images: dict[str, Path | None] = {id: _sibling_image(file) for id, file in files.items()}
    else:
        parents = [path] if kind == "visium" else sorted(p for p in path.iterdir() if p.is_dir())
        files = {_outs_id(p): p for p in parents if is_outs(p) or is_outs(p / "outs")}
        images = {id: find_image(find_outs(p), id=id) for id, p in files.items()}
    ids = wanted(files, {id for id, image in images.items() if image is not None}, sections, where=str(path))
    read: list[Section] = []
    for id in ids:
        who = None if patient is None else patient_of(id, patient)
        if kind.startswith("h5ad"):
            read.append(read_h5ad(files[id], images[id], id=id, patient=who, um_per_px=um_per_px))
        else:
            read.append(read_visium(files[id], images[id], id=id, patient=who, um_per_px=um_per_px))
    return Cohort(read)


def _read_regions(
    path: Path, kind: str, patient: PatientRule | None, um_per_px: float | None, sections: Which
) -> Cohort:
    """One Xenium region, or a folder of them."""
    parents = [path] if kind == "xenium" else sorted(p for p in path.iterdir() if p.is_dir())
    folders = {_outs_id(p): p for p in parents if is_xenium(p) or is_xenium(p / "outs")}
    having = {id for id, folder in folders.items() if has_image(find_xenium(folder), id=id)}
    read = Cohort(
        read_xenium(
            folders[id], id=id, patient=None if patient is None else patient_of(id, patient), um_per_px=um_per_px
        )
        for id in wanted(folders, having, sections, where=str(path))
    )
    return read.with_image() if sections == "with-image" else read  # a morphology image may turn out not to be readable


def _outs_id(path: Path) -> str:
    return path.resolve().parent.name if path.name == "outs" else path.resolve().name


def _sibling_image(file: Path) -> Path | None:
    """The image beside an ``.h5ad`` file that has its name."""
    for suffix in (".tif", ".tiff", ".svs", ".ndpi", ".jpg", ".jpeg", ".png"):
        if file.with_suffix(suffix).is_file():
            return file.with_suffix(suffix)
    return None
