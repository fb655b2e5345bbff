"""The public datasets that histoweave knows: where they are, under which licence, how they are read and split.

``catalog.toml`` holds the rows, ``spared.toml`` those of SpaRED. Nothing is downloaded unless `fetch` is called.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import logging
import os
import shutil
import tarfile
import tomllib
import zipfile
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Any

from histoweave.data import spared
from histoweave.data.dataset import Dataset, RemoteFile
from histoweave.data.io import Which, read_cohort, read_reference, recognise
from histoweave.data.io.st_legacy import LEADING, find_sections, patient_of
from histoweave.data.section import Cohort, SectionError

log = logging.getLogger(__name__)

ROOT_VARIABLE = "HISTOWEAVE_DATA"
PARTIAL = ".partial"  # suffix of a folder that is being filled


class UnknownDataset(ValueError):
    """A name that is not in the catalog."""


class DatasetNotFound(FileNotFoundError):
    """A dataset of the catalog that is not on this machine; the message says how to get it."""


def datasets() -> tuple[Dataset, ...]:
    """All rows, in the order of the files; those of SpaRED last.

    Raises
    ------
    ValueError
        A row with an unknown entry.
    """
    text = resources.files("histoweave.data").joinpath("catalog.toml").read_text(encoding="utf-8")
    return (*(_dataset(name, row) for name, row in tomllib.loads(text).items()), *spared.rows())


def dataset(name: str) -> Dataset:
    """The row of that name; an unknown name is an error with the nearest match."""
    rows = {row.name: row for row in datasets()}
    if name not in rows:
        near = difflib.get_close_matches(name, rows, n=1)
        few = [other for other in rows if not other.startswith(spared.PREFIX)]
        hint = (
            f"did you mean {near[0]!r}?"
            if near
            else f"there are {', '.join(map(repr, few))}, and {len(rows) - len(few)} that begin with {spared.PREFIX!r}"
        )
        raise UnknownDataset(f"dataset {name!r} is not in the catalog; {hint}")
    return rows[name]


def find(name: str, root: str | Path | None = None) -> Path:
    """The folder of a dataset on this machine.

    Parameters
    ----------
    root
        The dataset's own folder, or a folder that holds it under its name; default: ``$HISTOWEAVE_DATA/<name>``.

    Raises
    ------
    UnknownDataset, DatasetNotFound
        Not in the catalog; not on this machine, with what to do.
    """
    row = dataset(name)
    base = root or os.environ.get(ROOT_VARIABLE)
    if base and _filled(Path(base) / name):
        return Path(base) / name
    if root is not None and _filled(Path(root)) and _holds(row, Path(root)):
        return Path(root)
    looked = f"in '{base}'" if base else f"nowhere: ${ROOT_VARIABLE} is not set"
    missing = f"dataset {name!r} is not on this machine (looked {looked})."
    if not row.files:
        raise DatasetNotFound(f"{missing} {_by_hand(row)}")
    raise DatasetNotFound(
        f"{missing} With a network: `histoweave data fetch {name}`. "
        f"Without: get it from {row.homepage}, and set ${ROOT_VARIABLE} to the folder that holds '{name}', or give its "
        "path"
    )


def load(name: str, root: str | Path | None = None, *, sections: Which = "all") -> Cohort:
    """The sections of a dataset that is on this machine, with the patients of the catalog (or of its samples.csv).

    Raises
    ------
    UnknownDataset, DatasetNotFound
        As `find`; and everything that `read_cohort` raises.
    """
    row, content = dataset(name), _content(find(name, root))
    if row.platform == "reference":
        return _reference(row, content)
    rule = None if recognise(content) == "samples" else row.rule  # a samples.csv names its patients
    cohort = read_cohort(content, patient=rule, sections=sections)
    others = [id for id in cohort.ids if row.section_ids and id not in row.section_ids]
    if others and len(others) < len(cohort):
        log.info("dataset %r: sections %s are not of it and are left out", name, others)
        cohort = cohort.subset([id for id in cohort.ids if id not in others])
    strange = sorted(set(cohort.patients) - set(row.patients))
    if strange:
        log.warning("dataset %r: patients %s are not those of the catalog", name, strange)
    return cohort


def fetch(name: str, root: str | Path | None = None, *, download: bool = True, progress: bool = True) -> Path:
    """The folder of a dataset, downloaded first where it is not on this machine.

    Files are put into a folder with the suffix ``.partial``, which gets its final name when all are there: what an
    interrupted download left is used by the next one, and is never taken for the dataset.

    Parameters
    ----------
    root
        Folder that will hold ``<name>``; default: ``$HISTOWEAVE_DATA``.
    download
        False: only look, as `find`.

    Raises
    ------
    DatasetNotFound
        Not there and not to be downloaded (some sources have no files that can be read as they are: the message says
        what to do by hand), no place to put it, or a download that failed.
    """
    row = dataset(name)
    try:
        return find(name, root)
    except DatasetNotFound:
        if not download or not row.files:
            raise
    base = root or os.environ.get(ROOT_VARIABLE)
    if not base:
        raise DatasetNotFound(f"there is no place for dataset {name!r}: set ${ROOT_VARIABLE}, or give `root`")
    target = Path(base) / name
    partial = target.with_name(name + PARTIAL)
    for remote in row.files:
        _get(row, remote, partial, progress=progress)
    shutil.rmtree(partial / "downloads", ignore_errors=True)
    if target.is_dir():
        target.rmdir()  # an empty one, else `find` would have taken it
    partial.rename(target)
    return target


def _dataset(name: str, row: dict[str, Any]) -> Dataset:
    unknown = sorted(set(row) - {item.name for item in fields(Dataset)})
    if unknown:
        raise ValueError(f"catalog row {name!r} has unknown entries {unknown}")
    files = tuple(RemoteFile(**file) for file in row.pop("files"))
    folds = tuple(tuple(fold) for fold in row.pop("folds", ()))
    return Dataset(name=name, files=files, folds=folds, patients=tuple(row.pop("patients")), **row)


def _reference(row: Dataset, content: Path) -> Cohort:
    """The single cells of a reference, one section; with their types where every cell has one."""
    found = sorted(content.glob("*.h5ad"))
    if len(found) != 1:
        raise SectionError(f"'{content}' has {len(found)} .h5ad files; dataset {row.name!r} is one, with all cells")
    return Cohort([read_reference(found[0], id=row.name, patient=row.patients[0])])


def _by_hand(row: Dataset) -> str:
    """What to do where nothing can be downloaded as it is."""
    if not row.section_ids:
        return (
            f"It cannot be fetched as it is read: get it from {row.homepage} (licence: {row.licence}). {row.by_hand} Then "
            f"set ${ROOT_VARIABLE} to the folder that holds '{row.name}'"
        )
    return (
        f"It cannot be fetched, because its archive needs work by hand: get it from {row.homepage} (licence: "
        f"{row.licence}). {row.by_hand} Make one folder per section, '{row.name}/{row.section_ids[0]}' and so on for "
        f"{', '.join(row.section_ids[1:])}, each with filtered_feature_bc_matrix.h5, the folder spatial and image.jpg "
        f"or image.tif; or list the sections in '{row.name}/samples.csv' under these ids. Then set ${ROOT_VARIABLE} to "
        f"the folder that holds '{row.name}'"
    )


def _filled(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _holds(row: Dataset, folder: Path) -> bool:
    """Whether a folder is the dataset itself, and not one that holds this and others."""
    content = _content(folder)
    try:
        kind = recognise(content)
        if kind == "samples" and row.section_ids:
            with (content / "samples.csv").open(encoding="utf-8-sig", newline="") as lines:
                return any(line.get("id") in row.section_ids for line in csv.DictReader(lines))
        if kind != row.format:
            return False
        if row.section_ids:
            return any((content / id).is_dir() for id in row.section_ids)
        if row.format != "st":
            return True
        return {patient_of(id, row.rule or LEADING) for id in find_sections(content)} <= set(row.patients)
    except (SectionError, OSError):
        return False


def _content(folder: Path) -> Path:
    """The folder itself, or the one that an archive wrapped everything in."""
    inside = [path for path in folder.iterdir() if not path.name.startswith(".") and path.suffix != PARTIAL]
    return _content(inside[0]) if len(inside) == 1 and inside[0].is_dir() else folder


def _get(row: Dataset, remote: RemoteFile, folder: Path, *, progress: bool) -> None:
    """One file into its place. A marker says that it is complete, so that it is not fetched twice."""
    downloads = folder / "downloads" / remote.into  # files of several sections can have one name
    done = downloads / f"{remote.filename}.done"
    if done.is_file():
        return
    import pooch

    log.info("dataset %r: %s (licence: %s)", row.name, remote.url, row.licence)
    known = None if remote.sha256 is None else f"sha256:{remote.sha256}"
    try:
        got = Path(
            pooch.retrieve(
                remote.url,
                known_hash=known,
                fname=remote.filename,
                path=downloads,
                progressbar=progress and _has_tqdm(),
            )
        )
    except (OSError, ValueError) as error:
        raise DatasetNotFound(
            f"dataset {row.name!r}: '{remote.url}' could not be fetched ({error}). Fetch it by other means from "
            f"{row.homepage} and give its folder, or set ${ROOT_VARIABLE}"
        ) from error
    place = folder / remote.into
    place.mkdir(parents=True, exist_ok=True)
    if remote.unpack:
        _unpack(got, place, remote.unpack)
        got.unlink()
    else:
        got.replace(place / remote.filename)
    done.touch()


def _has_tqdm() -> bool:
    """Whether pooch can draw its progress bar."""
    from importlib.util import find_spec

    return find_spec("tqdm") is not None


def _unpack(archive: Path, folder: Path, kind: str) -> None:
    """Archive members below the folder, none outside it; compressed images are unpacked too."""
    if kind == "zip":
        with zipfile.ZipFile(archive) as content:
            content.extractall(folder)
    else:
        with tarfile.open(archive) as content:
            content.extractall(folder, filter="data")
    for packed in folder.rglob("*.gz"):
        if packed.stem.lower().endswith((".jpg", ".jpeg", ".tif", ".tiff", ".png")):
            with gzip.open(packed, "rb") as source, packed.with_suffix("").open("wb") as sink:
                shutil.copyfileobj(source, sink)
            packed.unlink()
