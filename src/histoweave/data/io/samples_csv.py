"""``samples.csv``: a cohort of any mixture of formats, one section per line."""

from __future__ import annotations

import difflib
import logging
from dataclasses import replace
from pathlib import Path
from typing import cast, get_args

import pandas as pd

from histoweave.data.io.h5ad import read_h5ad
from histoweave.data.io.st_legacy import find_sections, read_st_section
from histoweave.data.io.visium import is_outs, read_visium
from histoweave.data.io.xenium import IDENTITY, is_xenium, read_xenium
from histoweave.data.section import Cohort, Platform, Section, SectionError
from histoweave.data.stains import StainedImage

log = logging.getLogger(__name__)

NEEDED = ("id", "patient", "path")
COLUMNS = ("id", "patient", "platform", "path", "spots", "image", "stains", "alignment", "mpp")


def read_samples(path: str | Path) -> Cohort:
    """The sections that a csv lists, in its order.

    Columns
    -------
    id, patient
        Name of the section; the patient, who never straddles a split.
    platform
        Optional or empty: found from the data. One of the platforms of `Section`.
    path
        An ``.h5ad`` file, a Space Ranger or Xenium folder, or a text table of counts (legacy ST); relative paths start
        at the folder of the csv.
    spots
        Only for legacy ST, optional: the spot file; default: the one that belongs to the count table by its name, in
        its folder or a neighbouring one.
    image
        Optional: the full-resolution image.
    stains
        Optional: pictures of further stains, of the size of the image, separated by semicolons; each is a channel more
        for models that read regions, see `StainedImage`.
    alignment
        Only for Xenium folders, optional: the file of the matrix or landmarks that place the image, or ``identity``;
        default: the one that belongs to the image, see `read_xenium`.
    mpp
        Optional: µm per px of that image.

    Raises
    ------
    SectionError
        Missing or unknown columns (with the nearest match), an empty table, an empty cell that is needed, a format that
        is not recognised, a platform that the format cannot have; `FileNotFoundError` names the line and the column.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file '{path}'")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True, encoding="utf-8-sig")
    except (ValueError, pd.errors.ParserError) as error:  # also undecodable bytes, and a file without a line
        raise SectionError(
            f"'{path}' is not a readable csv ({error}); save it as UTF-8, comma-separated text"
        ) from error
    table.columns = pd.Index([str(name).strip() for name in table.columns])
    _check_columns(path, list(table.columns))
    if table.empty:
        raise SectionError(f"'{path}' lists no sections; expected one line per section with {', '.join(NEEDED)}")
    rows = [{str(name): str(value).strip() for name, value in row.items()} for row in table.to_dict("records")]
    return Cohort(_read_row(path, line, row) for line, row in enumerate(rows, start=2))


def is_samples(path: Path) -> bool:
    """Whether the first line of a csv names the columns that are needed."""
    if not path.is_file():
        return False
    with path.open(encoding="utf-8-sig", errors="replace") as lines:
        return set(NEEDED) <= {name.strip().strip('"') for name in lines.readline().split(",")}


def _check_columns(path: Path, names: list[str]) -> None:
    unknown = [name for name in names if name not in COLUMNS]
    missing = [name for name in NEEDED if name not in names]
    nearest = {name: difflib.get_close_matches(name.lower(), COLUMNS, n=1) for name in unknown}
    hints = [f"{name!r}" + (f" (did you mean {near[0]!r}?)" if near else "") for name, near in nearest.items()]
    if unknown or missing:
        raise SectionError(
            f"'{path}': "
            + "; ".join(
                ([f"unknown columns {', '.join(hints)}"] if unknown else [])
                + ([f"missing columns {', '.join(map(repr, missing))}"] if missing else [])
            )
            + f"; expected {', '.join(COLUMNS)}, of which {', '.join(NEEDED)} are needed"
        )


def _read_row(csv: Path, line: int, row: dict[str, str]) -> Section:
    section = _read_section(csv, line, row)
    if not row.get("stains"):
        return section
    if section.image is None:
        raise SectionError(f"'{csv}' line {line}: 'stains' are further pictures of an image, and there is none; give the image")
    paths = [_resolve(csv, line, "stains", name.strip()) for name in row["stains"].split(";") if name.strip()]
    return replace(section, image=StainedImage.read(section.image, paths))


def _read_section(csv: Path, line: int, row: dict[str, str]) -> Section:
    where = f"'{csv}' line {line}"
    for name in NEEDED:
        if not row[name]:
            slide = name == "path" and row.get("image")
            hint = "; a slide without counts is no section: predict on it directly" if slide else ""
            raise SectionError(f"{where}: {name!r} is empty{hint}")
    platform = row.get("platform") or None
    if platform is not None and platform not in get_args(Platform):
        near = difflib.get_close_matches(platform.lower().replace(" ", "_"), get_args(Platform), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise SectionError(f"{where}: platform {platform!r} is unknown{hint}; expected one of {get_args(Platform)}")
    data = _resolve(csv, line, "path", row["path"])
    image = _resolve(csv, line, "image", row["image"]) if row.get("image") else None
    mpp = _mpp(where, row.get("mpp", ""))
    id, patient = row["id"], row["patient"]
    if data.is_dir() and (is_xenium(data) or is_xenium(data / "outs")):
        _only(where, platform, "xenium", data)
        given = row.get("alignment") or None
        alignment = given if given in (None, IDENTITY) else _resolve(csv, line, "alignment", given)
        return read_xenium(data, image, alignment=alignment, id=id, patient=patient, um_per_px=mpp)
    if row.get("alignment"):
        raise SectionError(
            f"{where}: 'alignment' is for Xenium folders, which '{data}' is not; its positions are in px of the image "
            "already: leave it empty"
        )
    if data.suffix == ".h5ad":
        return read_h5ad(data, image, id=id, patient=patient, platform=cast("Platform | None", platform), um_per_px=mpp)
    if data.is_dir() and (is_outs(data) or is_outs(data / "outs")):
        _only(where, platform, "visium", data)
        return read_visium(data, image, id=id, patient=patient, um_per_px=mpp)
    if data.is_file() and data.name.removesuffix(".gz").endswith((".tsv", ".csv")):
        _only(where, platform, "st", data)
        spots = _resolve(csv, line, "spots", row["spots"]) if row.get("spots") else _spot_file(where, data)
        return read_st_section(data, spots, image, id=id, patient=patient, um_per_px=mpp)
    raise SectionError(
        f"{where}: '{data}' is not recognised; expected an .h5ad file, a Space Ranger folder (with "
        "'filtered_feature_bc_matrix.h5' and 'spatial'), a Xenium folder (with 'cell_feature_matrix.h5' and "
        "'cells.parquet'), or a count table .tsv or .tsv.gz"
    )


def _resolve(csv: Path, line: int, column: str, given: str) -> Path:
    path = csv.parent / given
    if not path.exists():
        raise FileNotFoundError(f"'{csv}' line {line}: column {column!r} names '{given}', and there is no '{path}'")
    return path


def _mpp(where: str, given: str) -> float | None:
    if not given:
        return None
    try:
        mpp = float(given)
    except ValueError:
        mpp = 0.0
    if not 0 < mpp < float("inf"):
        raise SectionError(f"{where}: mpp is {given!r}; expected a number of µm per px above 0, such as 0.5")
    return mpp


def _only(where: str, platform: str | None, expected: str, data: Path) -> None:
    if platform not in (None, expected):
        raise SectionError(f"{where}: '{data}' is of platform {expected!r}, but {platform!r} is given; leave it empty")


def _spot_file(where: str, counts: Path) -> Path:
    """The spot file that belongs to a count table by its name."""
    for folder in (counts.parent, counts.parent.parent):
        for id, files in find_sections(folder).items():
            if counts in files.counts and files.spots:
                found = files.one("spots", id)
                if found is not None:
                    return found
    raise FileNotFoundError(
        f"{where}: no spot file for '{counts}' in '{counts.parent}' or beside it; give it in a column 'spots'"
    )
