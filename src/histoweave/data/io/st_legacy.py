"""Legacy Spatial Transcriptomics: a text table of counts, a table of spot positions, and an H&E image per section.

Two published layouts are read: her2st (``ST-cnts``, ``ST-spotfiles``, ``ST-imgs``; on Zenodo ``count-matrices``,
``spot-selections``, ``images``) and GEO (``*_stdata.tsv.gz``, ``*_spot_data-selection-*.tsv.gz``, one image per
section). Only the first has been tried on the authors' files. For that of ST-Net see `st_metadata`.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from histoweave import _keys as K
from histoweave.data.image import SlideImage
from histoweave.data.io import _lattice
from histoweave.data.io._tsv import CountTable, read_count_table
from histoweave.data.section import Cohort, Section, SectionError, make_section

log = logging.getLogger(__name__)

PatientRule = str | Callable[[str], str] | Mapping[str, str]
LEADING = r"^(?:([^_]+)_|([A-Za-z]+))"  # "P2_ST_rep1" → P2, "A1" → A
KEY = re.compile(r"^\s*([0-9.]+)x([0-9.]+)\s*$")
COUNTS = re.compile(r"^(?:GSM\d+_)?(.+)_stdata\.tsv(?:\.gz)?$")
PLAIN_COUNTS = re.compile(r"^(.+?)\.tsv(?:\.gz)?$")  # only in a folder named for counts
SPOTS = (
    re.compile(r"^(.+)_selection\.tsv(?:\.gz)?$"),
    re.compile(r"^(?:GSM\d+_)?spot_data-selection-(.+)\.tsv(?:\.gz)?$"),
    re.compile(r"^spots_(.+)\.csv(?:\.gz)?$"),
)
LABELS = re.compile(r"^(.+)_labeled_coordinates\.tsv(?:\.gz)?$")
CLUSTERS = re.compile(r"^(.+)-cluster-annotation\.tsv(?:\.gz)?$")
IMAGES = re.compile(r"^(?:GSM\d+_)?(?:HE_)?(.+)\.(?:jpe?g|png|tiff?|svs|ndpi|mrxs|scn|bif|vms)$", re.IGNORECASE)
COUNT_FOLDERS = {"st-cnts", "count-matrices", "counts"}
NOT_HISTOLOGY = {"annotation", "annotations", "st-pat", "st-cluster", "res", "masks"}
MIN_JOINED = 0.5  # of the smaller table; below it the two files are taken for files of different sections


@dataclass(slots=True)
class SectionFiles:
    """The files of one section, as found in a folder."""

    counts: list[Path] = field(default_factory=list)
    spots: list[Path] = field(default_factory=list)
    labels: list[Path] = field(default_factory=list)
    clusters: list[Path] = field(default_factory=list)
    image: list[Path] = field(default_factory=list)

    def one(self, kind: str, id: str) -> Path | None:
        """The file of that kind, or None; two are an error."""
        found: list[Path] = getattr(self, kind)
        if len(found) > 1:
            raise SectionError(
                f"section {id!r} has {len(found)} files of kind {kind!r}: " + ", ".join(f"'{path}'" for path in found)
                + "; keep one of them, or list the sections in a samples.csv"
            )
        return found[0] if found else None


def read_st_section(
    counts: str | Path,
    spots: str | Path,
    image: str | Path | None = None,
    *,
    id: str | None = None,
    patient: str | None = None,
    um_per_px: float | None = None,
    labels: str | Path | None = None,
    clusters: str | Path | None = None,
) -> Section:
    """One section of legacy Spatial Transcriptomics.

    Parameters
    ----------
    counts
        Spots × genes as text, rows named ``"XxY"``; tabs, or commas in a ``.csv``; ``.gz`` or not.
    spots
        Either columns ``new_x``, ``new_y`` (or ``x``, ``y``), ``pixel_x``, ``pixel_y``, and optionally ``selected``; or
        rows named ``"XxY"`` with columns ``X``, ``Y`` in px.
    image
        Full-resolution image the pixel positions refer to; opened, not decoded.
    id, patient
        Default: the stem of the count table, and its part before an underscore or its leading letters.
    um_per_px
        Default: inferred from the 200 µm pitch (least squares of pixel against lattice positions).
    labels, clusters
        Tables with ``x``, ``y`` (lattice) and ``label``: they become ``obs["label"]`` and ``obs["cluster"]``, missing
        where a spot has no entry.

    Returns
    -------
    Section
        The spots found in both tables, in the order of the count table; ``obs["array_row"]`` is the rounded y and
        ``obs["array_col"]`` the rounded x of the spot file.

    Raises
    ------
    SectionError
        Tables that do not join, and everything `make_section` refuses.
    """
    counts = Path(counts)
    id = id or _stem(counts)
    patient = patient or patient_of(id, LEADING)
    table, where = read_count_table(counts), read_spots(spots, id=id)
    row, at = _join(id, table, where, counts, Path(spots))
    xy = where[["pixel_x", "pixel_y"]].to_numpy(dtype=np.float64)[at]
    fine = where[["fine_x", "fine_y"]].to_numpy(dtype=np.float64)[at]
    rc = where[["row", "col"]].to_numpy(dtype=np.int64)[at]
    scale = _lattice.resolve(um_per_px, fine, xy, "st", id=id)
    obs: dict[str, pd.Categorical] = {}
    for name, path in ((K.LABEL, labels), ("cluster", clusters)):
        if path is not None:
            obs[name] = _by_lattice(Path(path), rc, id=id)
    return make_section(
        id=id, patient=patient, counts=table.counts[row], genes=table.columns, xy=xy, platform="st", um_per_px=scale,
        image=None if image is None else SlideImage.open(image, um_per_px=scale), array_rc=rc,
        names=[table.rows[i] for i in row], obs=obs,
    )


def read_st_folder(
    folder: str | Path,
    *,
    patient: PatientRule | None = None,
    um_per_px: float | None = None,
    sections: Iterable[str] | Literal["all", "with-image"] = "all",
) -> Cohort:
    """All sections of a folder in one of the layouts of this module, ordered by id.

    Parameters
    ----------
    patient
        A regular expression whose first non-empty group is the patient (searched in the section id), a function of the
        id, or a table id → patient. Default: the part before the first underscore, else the leading letters. What it
        gives is logged: check it, because a split is only as good as its patients.
    sections
        Ids to read, or only those with an image.

    Raises
    ------
    SectionError
        Count tables without a spot file, two files for one purpose, an unknown section id, all of `read_st_section`.
    """
    folder = Path(folder)
    files = find_sections(folder)
    ids = wanted(files, {id for id, found in files.items() if found.image}, sections, where=str(folder))
    rule = LEADING if patient is None else patient
    read = []
    for id in ids:
        found = files[id]
        counts, spots = found.one("counts", id), found.one("spots", id)
        if counts is None or spots is None:
            raise SectionError(f"section {id!r}: no spot file; expected '{id}_selection.tsv' below '{folder}'")
        read.append(read_st_section(
            counts, spots, found.one("image", id), id=id, patient=patient_of(id, rule), um_per_px=um_per_px,
            labels=found.one("labels", id), clusters=found.one("clusters", id),
        ))
    cohort = Cohort(read)
    log.info("%d sections of %d patients in '%s': %s", len(cohort), len(cohort.patients), folder,
             ", ".join(f"{section.id} → {section.patient}" for section in cohort))
    return cohort


def find_sections(folder: str | Path) -> dict[str, SectionFiles]:
    """The files of each section that has a count table, sorted by id; spot files without counts are logged."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder '{folder}'")
    found: dict[str, SectionFiles] = {}
    images: list[Path] = []
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        kind, id = _kind(path)
        if kind is None and path.suffix == ".gz" and IMAGES.match(path.stem):
            log.warning("'%s' is a compressed image and is not read; unpack it with gunzip", path)
        if kind == "image":
            images.append(path)
        elif kind is not None:
            getattr(found.setdefault(id, SectionFiles()), kind).append(path)
    for path in images:
        if NOT_HISTOLOGY.isdisjoint(part.lower() for part in path.relative_to(folder).parts[:-1]):
            names = [name for name in (_kind(path)[1], path.parent.name) if name in found]
            if names:
                found[names[0]].image.append(path)
    loose = [id for id, files in found.items() if files.spots and not files.counts]
    if loose:
        log.warning("spot files without a count table are left out: %s", ", ".join(loose))
    return {id: files for id, files in sorted(found.items()) if files.counts}


def read_spots(path: str | Path, *, id: str) -> pd.DataFrame:
    """Spot positions: ``row``, ``col`` (lattice), ``fine_x``, ``fine_y`` (its fractions), ``pixel_x``, ``pixel_y``.

    Rows with ``selected`` other than 1 are dropped and counted in the log; a repeated spot is an error naming it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"section {id!r}: there is no spot file '{path}'")
    comma = path.name.removesuffix(".gz").endswith(".csv")
    given = pd.read_csv(path, sep="," if comma else "\t")
    if {"X", "Y"} <= set(given.columns) and "pixel_x" not in given:
        x, y = split_keys(given.iloc[:, 0].astype(str).tolist(), where=f"spot file '{path}'")
        px, py = given["X"], given["Y"]
    else:
        names = next((pair for pair in (("new_x", "new_y"), ("x", "y")) if set(pair) <= set(given.columns)), None)
        if names is None or not {"pixel_x", "pixel_y"} <= set(given.columns):
            raise SectionError(
                f"section {id!r}: spot file '{path}' has columns {list(given.columns)}; expected new_x, new_y "
                "(or x, y), pixel_x, pixel_y — or spot names with columns X, Y"
            )
        if "selected" in given:
            kept = given["selected"].astype(float) == 1
            if not kept.all():
                log.info("section %r: %d of %d spots are not selected in '%s'", id, int((~kept).sum()), len(kept), path)
            given = given[kept]
        x, y = (given[name].to_numpy(dtype=np.float64) for name in names)
        px, py = given["pixel_x"], given["pixel_y"]
    table = pd.DataFrame({"row": np.rint(y), "col": np.rint(x), "fine_x": x, "fine_y": y,
                          "pixel_x": np.asarray(px, dtype=np.float64), "pixel_y": np.asarray(py, dtype=np.float64)})
    nowhere = ~np.isfinite(table[["row", "col"]].to_numpy()).all(axis=1)
    if nowhere.any():
        raise SectionError(f"section {id!r}: {int(nowhere.sum())} lines of '{path}' have no lattice "
                           f"position (first: line {int(np.flatnonzero(nowhere)[0]) + 2}); drop them")
    repeated = table.duplicated(["row", "col"])
    if repeated.any():
        twice = [f"{int(c)}x{int(r)}" for r, c in table.loc[repeated, ["row", "col"]].to_numpy()[:5]]
        raise SectionError(f"section {id!r}: spot file '{path}' names {int(repeated.sum())} spots twice "
                           f"({', '.join(twice)}); keep one line of each")
    return table


def split_keys(keys: list[str], *, where: str) -> tuple[np.ndarray, np.ndarray]:
    """``"XxY"`` names as x (n,) and y (n,)."""
    parts = pd.Series(keys, dtype=object).str.extract(KEY)
    bad = parts.isna().any(axis=1)
    if bad.any():
        raise SectionError(f"{where}: {int(bad.sum())} spot names are not of the form '12x34' (for example "
                           f"{keys[int(np.flatnonzero(bad)[0])]!r})")
    return parts[0].to_numpy(dtype=np.float64), parts[1].to_numpy(dtype=np.float64)


def patient_of(id: str, rule: PatientRule) -> str:
    """The patient of a section under a rule; a section that the rule does not cover is an error."""
    if callable(rule):
        return str(rule(id))
    if isinstance(rule, Mapping):
        if id not in rule:
            raise SectionError(f"section {id!r} is not in the table of patients, which names {sorted(rule)[:5]} …")
        return str(rule[id])
    match = re.search(rule, id)
    if match is None or not any(match.groups()):
        raise SectionError(f"section {id!r}: no patient found by the rule {rule!r}; give `patient=` a regular "
                           "expression with a group, a function or a table, or list the sections in a samples.csv")
    return next(group for group in match.groups() if group)


def wanted(ids: Iterable[str], with_image: set[str], sections: Iterable[str] | str, *, where: str) -> list[str]:
    """The ids asked for, in the order of the folder; an unknown one is an error with the nearest match."""
    known = list(ids)
    if not known:
        raise SectionError(f"no section was found in '{where}'")
    if sections == "all":
        return known
    if sections == "with-image":
        if not with_image:
            raise SectionError(f"none of the {len(known)} sections in '{where}' has an image")
        return [id for id in known if id in with_image]
    asked = [sections] if isinstance(sections, str) else list(sections)
    for id in asked:
        if id not in known:
            near = difflib.get_close_matches(id, known, n=1)
            raise SectionError(f"there is no section {id!r} in '{where}'" + (f"; did you mean {near[0]!r}?" if near else
                               f"; there are {', '.join(known[:8])} …"))
    return [id for id in known if id in set(asked)]


def _stem(path: Path) -> str:
    for pattern in (COUNTS, PLAIN_COUNTS):
        if match := pattern.match(path.name):
            return match[1]
    return path.name.split(".")[0]


def _kind(path: Path) -> tuple[str | None, str]:
    """What a file is, by its name, and the id of its section."""
    name = path.name
    for kind, patterns in (("labels", (LABELS,)), ("clusters", (CLUSTERS,)), ("spots", SPOTS), ("counts", (COUNTS,)),
                           ("image", (IMAGES,))):
        for pattern in patterns:
            if match := pattern.match(name):
                return kind, match[1]
    plain = PLAIN_COUNTS.match(name)
    if plain and path.parent.name.lower() in COUNT_FOLDERS:
        return "counts", plain[1]
    return None, ""


def _join(id: str, table: CountTable, where: pd.DataFrame, counts: Path, spots: Path) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the count table and of the spot table that are the same spot, in the order of the former."""
    x, y = split_keys(table.rows, where=f"count table '{counts}'")
    left = pd.MultiIndex.from_arrays([np.rint(y).astype(np.int64), np.rint(x).astype(np.int64)])
    right = pd.MultiIndex.from_arrays([where["row"].astype(np.int64), where["col"].astype(np.int64)])
    at = right.get_indexer(left)
    joined = int((at >= 0).sum())
    if joined < MIN_JOINED * min(len(left), len(right)) or joined == 0:
        raise SectionError(
            f"section {id!r}: only {joined} of {len(left)} rows of '{counts}' and {len(right)} spots of '{spots}' "
            f"join; counts have {', '.join(repr(key) for key in table.rows[:3])} …, the spot file "
            + ", ".join(f"'{c}x{r}'" for r, c in right[:3]) + " …. Do both belong to this section?"
        )
    log.info("section %r: %d spots (counts %d, spot file %d)", id, joined, len(left), len(right))
    return np.flatnonzero(at >= 0), at[at >= 0]


def _by_lattice(path: Path, rc: np.ndarray, *, id: str) -> pd.Categorical:
    """The ``label`` of each spot, missing where the table has no entry.

    Joined on the rounded lattice position: the pixel positions of the published labels are those of another image,
    smaller and upside down.
    """
    table = pd.read_csv(path, sep="\t")
    if not {"x", "y", "label"} <= set(table.columns):
        raise SectionError(f"section {id!r}: '{path}' has columns {list(table.columns)}; expected x, y, label")
    table = table.dropna(subset=["x", "y", "label"])
    at = np.rint(table[["y", "x"]].to_numpy(dtype=np.float64)).astype(np.int64)
    known = pd.Series(table["label"].astype(str).to_numpy(dtype=object), index=pd.MultiIndex.from_arrays(at.T))
    if known.index.has_duplicates:
        twice = known.index[known.index.duplicated()][0]
        raise SectionError(f"section {id!r}: '{path}' labels spot '{twice[1]}x{twice[0]}' twice; keep one line of each")
    joined = known.reindex(pd.MultiIndex.from_arrays(rc.T)).to_numpy(dtype=object)
    found = ~pd.isna(joined)
    if len(known) and found.sum() < MIN_JOINED * min(len(known), len(rc)):
        raise SectionError(f"section {id!r}: only {int(found.sum())} of {len(rc)} spots are among the {len(known)} "
                           f"entries of '{path}'. Do both belong to this section?")
    return pd.Categorical(joined)
