"""10x Xenium: the ``outs`` folder of one region, with its morphology image or an aligned stained image (H&E).

Written after the published description of the files; not yet tried on a vendor folder.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from histoweave import _keys as K
from histoweave.data.image import ImageReadError, SlideImage
from histoweave.data.io import _alignment
from histoweave.data.io._alignment import IDENTITY, Alignment
from histoweave.data.io._features import Kinds, control_totals, name_controls
from histoweave.data.io.visium import FeatureMatrix, gene_names, read_matrix_h5
from histoweave.data.section import Section, SectionError, make_section

log = logging.getLogger(__name__)

MATRIX, MANIFEST, CELLS = "cell_feature_matrix.h5", "experiment.xenium", ("cells.parquet", "cells.csv.gz", "cells.csv")
NEEDED = ("cell_id", "x_centroid", "y_centroid")
STAINED = tuple(f"*he_image*.{end}" for end in ("tif", "tiff", "btf", "svs", "ndpi", "jpg", "jpeg", "png"))
MORPHOLOGY = ("*morphology_focus.ome.tif", "*morphology_focus/*.ome.tif", "*morphology_mip.ome.tif")
BESIDE = ("alignment.csv", "alignment.json", "_matrix.csv", "_keypoints.csv")  # after the image's name, as 10x has them
_APART = 0.1  # two values of the µm per px that differ by more are of two images


@dataclass(frozen=True, slots=True)
class _Placed:
    """The image, its µm per px, where the cells lie on it (n, 2), and where they would lie after common mistakes."""

    image: SlideImage | None
    um_per_px: float
    xy: np.ndarray
    otherwise: dict[str, np.ndarray] = field(default_factory=dict)


def read_xenium(
    outs: str | Path,
    image: str | Path | None = None,
    *,
    alignment: Alignment | None = None,
    id: str | None = None,
    patient: str | None = None,
    um_per_px: float | None = None,
    pixel_size: float | None = None,
    genes: Literal["symbol", "id"] = "symbol",
    drop_outside: bool = False,
) -> Section:
    """One Xenium section, a cell per row.

    Parameters
    ----------
    outs
        The folder with ``cell_feature_matrix.h5``, ``cells.parquet`` (or ``cells.csv.gz``) and ``experiment.xenium``,
        or the one that holds it as ``outs``. Names may carry a prefix, as in downloads.
    image
        An aligned image, usually H&E, at full resolution. Default: the one ``*he_image*`` in the folder or beside it,
        else the morphology image where it is one picture that can be read, else none.
    alignment
        How the image lies on the Xenium run: see `read_alignment`. The matrix takes pixels of the *image* to Xenium
        pixels, the direction in which 10x exports it; cells are placed by its inverse. Default: the file that belongs
        to the image by its name (``he_image.ome.tif`` and ``he_imagealignment.csv``), else the one
        ``*imagealignment.csv`` (or json) of the folder, else ``"identity"``: same field, same corner, and then a cell
        lies at its µm over the image's µm per px.
    id, patient
        Default: the folder's name, and the id.
    um_per_px
        Of the image. Default: what follows from the alignment; under ``"identity"`` what the image says, else
        `pixel_size`.
    pixel_size
        µm per px of the morphology image. Default: that of ``experiment.xenium``.
    genes
        Symbols, or ids: see `read_visium`.
    drop_outside
        Leave out cells that the image does not cover, with their number in the log, instead of refusing.

    Returns
    -------
    Section
        With platform ``"xenium"``, all cells of the matrix in its order (those without a count too), and the further
        columns of the cell table in ``obs``. Only features of type ``Gene Expression`` are genes. The total of the
        negative controls is ``obs["control_counts"]``, their names are in ``uns["controls"]``. Without an image,
        positions are in px of `pixel_size`.

    Raises
    ------
    SectionError
        No gene; cells of the matrix that the table lacks; a matrix that is no affine map (3, 3); an image that does not
        cover the cells, or whose µm per px the alignment contradicts; and everything `make_section` refuses. Missing
        files are a `FileNotFoundError` that lists what was looked for.
    """
    folder = find_xenium(outs)
    id = id or (folder.resolve().parent.name if folder.name == "outs" else folder.resolve().name)
    if patient is None:
        log.warning("section %r: no patient was given, so its id stands for one", id)
    matrix = read_matrix_h5(_one(folder, (MATRIX,)))
    table = _cells(_one(folder, CELLS), matrix.barcodes, id=id)
    unit = pixel_size if pixel_size is not None else _pixel_size(folder)
    um = table[["x_centroid", "y_centroid"]].to_numpy(dtype=np.float64)
    if not np.isfinite(um).all():
        bad = table.index[~np.isfinite(um).all(axis=1)]
        raise SectionError(
            f"section {id!r}: {len(bad)} cells have no centroid (first {bad[0]!r}); drop or correct them"
        )
    placed = _place(folder, image, alignment, um, unit, um_per_px, id=id)
    kept = _covered(placed, drop_outside=drop_outside, id=id)
    kinds = Kinds.of(matrix.types, where=f"section {id!r}")
    pick = [[names[i] for i in kinds.genes] for names in (matrix.ids, matrix.symbols, matrix.types)]
    counts = matrix.counts[kept]
    obs = table.drop(columns=[*NEEDED[1:], K.LIBRARY], errors="ignore").iloc[kept]
    section = make_section(
        id=id,
        patient=patient or id,
        counts=counts[:, kinds.genes],
        genes=gene_names(FeatureMatrix(matrix.counts, matrix.barcodes, *pick), genes, id=id),
        xy=placed.xy[kept],
        platform="xenium",
        um_per_px=placed.um_per_px,
        image=placed.image,
        names=[matrix.barcodes[i] for i in kept],
        obs=obs.assign(**{K.CONTROL_COUNTS: control_totals(counts, kinds.controls)}),
    )
    return name_controls(section, [matrix.symbols[i] for i in kinds.controls])


def is_xenium(folder: Path) -> bool:
    """Whether a folder looks like that of a Xenium region: its manifest or its matrix is there."""
    return any(next(folder.glob(f"*{name}"), None) is not None for name in (MANIFEST, MATRIX))


def find_xenium(folder: str | Path) -> Path:
    """The folder itself, or its ``outs``."""
    folder = Path(folder)
    for candidate in (folder, folder / "outs"):
        if is_xenium(candidate):
            return candidate
    raise FileNotFoundError(
        f"'{folder}' is no Xenium output: expected '{MATRIX}', {_listed(CELLS)}, and '{MANIFEST}' in it or in its 'outs'"
    )


def has_image(folder: Path, *, id: str) -> bool:
    """Whether an image lies in the folder or beside it; a morphology image may still be one that is not read."""
    return _find_stained(folder, id=id) is not None or _find_morphology(folder) is not None


def _one(folder: Path, names: tuple[str, ...]) -> Path:
    """The first of these files that is there, with or without a prefix; several with one name are an error."""
    for name in names:
        found = [folder / name] if (folder / name).is_file() else sorted(folder.glob(f"*{name}"))
        if len(found) > 1:
            raise SectionError(f"'{folder}' has several: {_listed([path.name for path in found])}; keep one region")
        if found:
            return found[0]
    raise FileNotFoundError(f"there is no {_listed(names)} in '{folder}', which has {_listed(_names(folder))}")


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())[:12]


def _listed(names: Any) -> str:
    return " or ".join(f"'{name}'" for name in names)


def _pixel_size(folder: Path) -> float:
    try:
        path = _one(folder, (MANIFEST,))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}; without it give `pixel_size`, the µm per px of the morphology image"
        ) from error
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        size = float(content["pixel_size"])
    except (ValueError, KeyError, TypeError) as error:
        raise SectionError(f"'{path}' does not say 'pixel_size' ({error!r}); give `pixel_size`, in µm") from error
    if not (np.isfinite(size) and size > 0):
        raise SectionError(f"'{path}' says pixel_size {size!r}; expected µm per px above 0")
    return size


def _cells(path: Path, barcodes: list[str], *, id: str) -> pd.DataFrame:
    """The table of cells in the order of the matrix, indexed by cell id."""
    try:
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except (ValueError, OSError, EOFError) as error:  # pyarrow's errors are ValueErrors and OSErrors
        raise SectionError(f"'{path}' is truncated or no table of cells ({error}); copy it again") from error
    missing = [name for name in NEEDED if name not in table.columns]
    if missing:
        raise SectionError(f"'{path}' lacks the columns {missing}; it has {list(table.columns)}")
    names = [value.decode("utf-8") if isinstance(value, bytes) else str(value) for value in table["cell_id"]]
    table = table.drop(columns="cell_id").set_axis(pd.Index(names, dtype=object), axis=0)
    if not table.index.is_unique:
        raise SectionError(f"'{path}' names cells twice: {table.index[table.index.duplicated()][:3].tolist()}")
    at = table.index.get_indexer(pd.Index(barcodes, dtype=object))
    if (at < 0).any():
        lost = [barcode for barcode, i in zip(barcodes, at, strict=True) if i < 0]
        raise SectionError(
            f"section {id!r}: {len(lost)} of {len(barcodes)} cells of the matrix are not in '{path.name}' (first "
            f"{lost[:2]}; the table has {table.index[:2].tolist()}); do both come from one run and one segmentation?"
        )
    if len(table) > len(barcodes):
        log.info("section %r: %d cells of the table are not in the matrix", id, len(table) - len(barcodes))
    return table.iloc[at]


# -- the image --------------------------------------------------------------------------------------------------------


def _place(
    folder: Path,
    given: str | Path | None,
    alignment: Alignment | None,
    um: np.ndarray,
    unit: float,
    um_per_px: float | None,
    *,
    id: str,
) -> _Placed:
    """Cells (n, 2) in µm on the image that is given or found."""
    path = Path(given) if given is not None else _find_stained(folder, id=id)
    if path is None and (alignment is None or _same_field(alignment)):
        return _on_morphology(folder, um, um_per_px or unit, id=id)
    if path is None:
        raise SectionError(f"section {id!r}: an alignment was given, but no image; give the image it belongs to")
    if alignment is None:
        alignment = _find_alignment(folder, path, id=id)
    if _same_field(alignment):
        return _unaligned(path, um, unit, um_per_px, id=id)
    matrix = _alignment.read_alignment(alignment, pixel_size=unit, id=id)
    scale = _alignment.stretch(matrix) * unit
    own = SlideImage.open(path).um_per_px
    advice = "is it of another image, of a downsampled copy, or inverted? It has to take px of the image to Xenium px"
    if um_per_px is not None and abs(um_per_px / scale - 1) > _APART:
        raise SectionError(
            f"section {id!r}: {um_per_px:g} µm per px was given for '{path}', but its alignment says {scale:.4g}; {advice}"
        )
    if own is not None and abs(own / scale - 1) > _APART:
        log.warning("section %r: '%s' says %.4g µm per px, its alignment %.4g; %s", id, path, own, scale, advice)
    scale = um_per_px or scale
    otherwise = {
        "With the alignment inverted": _alignment.to_xenium(matrix, um / unit),
        'Without an alignment (`alignment="identity"`)': um / scale,
    }
    image = SlideImage.open(path, um_per_px=scale)
    return _Placed(image, scale, _alignment.to_image(matrix, um / unit), otherwise)


def _same_field(alignment: Alignment) -> bool:
    return isinstance(alignment, str) and alignment == IDENTITY


def _on_morphology(folder: Path, um: np.ndarray, scale: float, *, id: str) -> _Placed:
    """On the morphology image, where one is there that can be shown; positions on its grid in any case."""
    path, image = _find_morphology(folder), None
    if path is None:
        log.info("section %r: no image in '%s'", id, folder)
    else:
        try:
            image = SlideImage.open(path, um_per_px=scale)
        except ImageReadError as error:
            log.warning("section %r: read without its morphology image (%s)", id, error)
    return _Placed(image, scale, um / scale)


def _find_morphology(folder: Path) -> Path | None:
    """The first morphology image: of a folder of stains, that of the nuclei."""
    return next((path for pattern in MORPHOLOGY for path in sorted(folder.glob(pattern))), None)


def _unaligned(path: Path, um: np.ndarray, unit: float, um_per_px: float | None, *, id: str) -> _Placed:
    """The image shows the field of the Xenium image from the same corner, at its own µm per px."""
    scale = SlideImage.open(path, um_per_px=um_per_px).um_per_px or unit
    if abs(scale / unit - 1) > _APART:
        log.warning(
            "section %r: the image has %.4g µm per px and the Xenium run %.4g, and no alignment is given; taken for the "
            "same field at another resolution. Look at it with `pl.overlay`", id, scale, unit,
        )  # fmt: skip
    otherwise = {f"At the {unit:g} µm per px of the run": um / unit}
    return _Placed(SlideImage.open(path, um_per_px=scale), scale, um / scale, otherwise)


def _find_stained(folder: Path, *, id: str) -> Path | None:
    found = sorted({path for place in _places(folder) for pattern in STAINED for path in place.glob(pattern)})
    if len(found) > 1:
        raise SectionError(f"section {id!r} has {len(found)} images: {_listed(found)}; give one of them as `image`")
    return found[0] if found else None


def _find_alignment(folder: Path, image: Path, *, id: str) -> Alignment:
    """The file that belongs to an image by its name, else the one of the folder, else the identity."""
    stem = image.name.rsplit(".", 1)[0].removesuffix(".ome")
    found = [image.parent / f"{stem}{end}" for end in BESIDE if (image.parent / f"{stem}{end}").is_file()]
    if not found and not any(image.match(pattern) for pattern in (*MORPHOLOGY, "*morphology.ome.tif")):
        ends = ("csv", "json")
        found = sorted({p for place in _places(folder) for end in ends for p in place.glob(f"*imagealignment.{end}")})
    if len(found) > 1:
        raise SectionError(f"section {id!r} has {len(found)} alignments: {_listed(found)}; give one as `alignment`")
    log.info("section %r: '%s' is placed by %s", id, image.name, f"'{found[0]}'" if found else "the identity")
    return found[0] if found else IDENTITY


def _places(folder: Path) -> list[Path]:
    return [folder, folder.parent] if folder.name == "outs" else [folder]


def _inside(xy: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(((xy >= 0) & (xy < np.asarray(size))).all(axis=1))


def _covered(placed: _Placed, *, drop_outside: bool, id: str) -> np.ndarray:
    """Rows of the cells that the image covers: all of them, unless the others are to be dropped."""
    n = len(placed.xy)
    if placed.image is None:
        return np.arange(n)
    size = placed.image.size
    kept = np.flatnonzero(_inside(placed.xy, size))
    outside = n - len(kept)
    if outside and drop_outside and len(kept):
        log.info("section %r: %d of %d cells lie outside the image and are left out", id, outside, n)
    elif outside:
        counted = {how: int(_inside(xy, size).sum()) for how, xy in placed.otherwise.items()}
        better = [f"{how} it would cover {found} of {n}." for how, found in counted.items() if found > len(kept)]
        low, high = placed.xy.min(axis=0), placed.xy.max(axis=0)
        raise SectionError(
            f"section {id!r}: {outside} of {n} cells lie outside the image '{placed.image.path}' of {size[0]} × {size[1]} "
            f"px (they span x {low[0]:.0f} to {high[0]:.0f}, y {low[1]:.0f} to {high[1]:.0f}). {' '.join(better)} "
            "Typical causes: the alignment is of another image or inverted (it has to take px of the image to Xenium "
            "px), the image is a downsampled copy, or it shows less tissue than was measured (then `drop_outside=True`)"
        )
    return kept
