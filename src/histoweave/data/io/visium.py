"""10x Visium: the ``outs`` folder of Space Ranger, position files of version 1 and 2, and a full-resolution image.

Written after the published description of the files; not yet tried on a vendor file.
"""

from __future__ import annotations

import gzip
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import pandas as pd
from scipy import io as scipy_io
from scipy import sparse

from histoweave.data.image import SlideImage
from histoweave.data.io import _lattice
from histoweave.data.section import Section, SectionError, make_section

log = logging.getLogger(__name__)

GENES = "Gene Expression"
MATRIX = "filtered_feature_bc_matrix"
POSITION_COLUMNS = ["barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres"]
FULL_RESOLUTION = (*(f"*image.{end}" for end in ("tif", "tiff", "btf", "jpg", "jpeg", "png")), "*.svs", "*.ndpi")
DOWNSAMPLED = ("hires", "lowres", "aligned", "detected", "cytassist")


@dataclass(frozen=True, slots=True)
class FeatureMatrix:
    """Counts (barcodes, features) as CSR with the features' ids, symbols and types."""

    counts: sparse.csr_matrix
    barcodes: list[str]
    ids: list[str]
    symbols: list[str]
    types: list[str]


def read_visium(
    outs: str | Path,
    image: str | Path | None = None,
    *,
    id: str | None = None,
    patient: str | None = None,
    um_per_px: float | None = None,
    genes: Literal["symbol", "id"] = "symbol",
    in_tissue: bool = True,
) -> Section:
    """One Visium section from a Space Ranger folder.

    Parameters
    ----------
    outs
        The folder with ``filtered_feature_bc_matrix.h5`` (or the folder of that name) and ``spatial/``; or the one
        that holds it as ``outs``. Names may carry a prefix, as in 10x downloads.
    image
        The **full-resolution** image given to Space Ranger. Default: the one image beside the matrix, else none.
    id, patient
        Default: the folder's name, and the id.
    um_per_px
        Default: inferred from the 100 µm pitch. The ``spot_diameter_fullres`` of the scale factors is not used: its
        physical size differs between versions of Space Ranger.
    genes
        Symbols, or the ids of the reference. One symbol can belong to several genes of the reference: these few keep
        their ids (logged), so that no gene is lost or merged.
    in_tissue
        Keep only spots under tissue.

    Raises
    ------
    SectionError
        A matrix and positions that do not join, a downsampled image in place of the full one, a Visium HD folder, and
        everything `make_section` refuses; missing files are a `FileNotFoundError` that lists what was looked for.
    """
    folder = find_outs(outs)
    id = id or (folder.parent.name if folder.name == "outs" else folder.name)
    if patient is None:
        log.warning("section %r: no patient was given, so its id stands for one", id)
    matrix = _gene_expression(read_matrix(folder), id=id)
    kept, positions = _join(id, matrix.barcodes, read_positions(folder / "spatial"), in_tissue=in_tissue)
    xy = positions[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy(dtype=np.float64)
    array_xy = positions[["array_col", "array_row"]].to_numpy(dtype=np.int64)
    scale = _lattice.resolve(um_per_px, array_xy, xy, "visium", id=id)
    path = Path(image) if image is not None else find_image(folder, id=id)
    slide = None if path is None else SlideImage.open(path, um_per_px=scale)
    if slide is not None:
        _check_full_resolution(id, xy, slide.size, path, scale_factors(folder))
    return make_section(
        id=id,
        patient=patient or id,
        counts=matrix.counts[kept],
        genes=gene_names(matrix, genes, id=id),
        xy=xy,
        platform="visium",
        um_per_px=scale,
        image=slide,
        array_rc=array_xy[:, ::-1],
        names=[matrix.barcodes[i] for i in kept],
    )


def is_outs(folder: Path) -> bool:
    """Whether a folder has the two parts of Space Ranger output."""
    return (folder / "spatial").is_dir() and (_matrix_h5(folder) is not None or (folder / MATRIX).is_dir())


def find_outs(folder: str | Path) -> Path:
    """The folder itself, or its ``outs``."""
    folder = Path(folder)
    for candidate in (folder, folder / "outs"):
        if is_outs(candidate):
            return candidate
    raise FileNotFoundError(
        f"'{folder}' is no Space Ranger output: expected '{MATRIX}.h5' (or the folder '{MATRIX}') "
        "and the folder 'spatial' in it or in its 'outs'"
    )


def read_matrix(folder: Path) -> FeatureMatrix:
    """The filtered matrix, from HDF5 where there is one, else from the matrix-market folder."""
    path = _matrix_h5(folder)
    return _read_mtx(folder / MATRIX) if path is None else read_matrix_h5(path)


def read_matrix_h5(path: Path) -> FeatureMatrix:
    """A feature matrix in the HDF5 layout of 10x, version 3 (Space Ranger, Xenium)."""
    try:
        with h5py.File(path, "r") as file:
            if "matrix" not in file:
                raise SectionError(f"'{path}' has the groups {list(file)}; expected 'matrix' (10x, version 3)")
            group: Any = file["matrix"]
            features = group["features"]
            shape = tuple(int(side) for side in group["shape"][()])
            counts = sparse.csc_matrix((group["data"][()], group["indices"][()], group["indptr"][()]), shape=shape)
            names = [_text(features[name]) for name in ("id", "name", "feature_type")]
            barcodes = _text(group["barcodes"])
    except (OSError, KeyError, RuntimeError) as error:
        raise SectionError(f"'{path}' is truncated or not a 10x matrix ({error}); fetch or copy it again") from error
    return FeatureMatrix(sparse.csr_matrix(counts.T), barcodes, *names)


def read_positions(spatial: Path) -> pd.DataFrame:
    """Positions by barcode, from ``tissue_positions.csv`` (with header) or ``tissue_positions_list.csv`` (without)."""
    for name in ("tissue_positions.csv", "tissue_positions_list.csv"):
        path = spatial / name
        if path.is_file():
            with path.open(encoding="utf-8") as lines:
                header = lines.readline().split(",")[0].strip().strip('"') == "barcode"
            table = pd.read_csv(path, header=0 if header else None, names=None if header else POSITION_COLUMNS)
            missing = [column for column in POSITION_COLUMNS if column not in table.columns]
            if missing:
                raise SectionError(f"'{path}' lacks the columns {missing}; it has {list(table.columns)}")
            table = table.set_index("barcode")
            if not table.index.is_unique:
                twice = table.index[table.index.duplicated()].tolist()[:3]
                raise SectionError(f"'{path}' names barcodes twice ({', '.join(map(repr, twice))})")
            return table
    if (spatial / "tissue_positions.parquet").is_file():
        raise SectionError(f"'{spatial}' is of Visium HD; this reader is for Visium. Convert it to .h5ad first")
    raise FileNotFoundError(f"there is neither 'tissue_positions.csv' nor 'tissue_positions_list.csv' in '{spatial}'")


def scale_factors(folder: Path) -> dict[str, float]:
    """The numbers of ``scalefactors_json.json``; empty where there is no such file."""
    path = folder / "spatial" / "scalefactors_json.json"
    if not path.is_file():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    return {name: float(value) for name, value in content.items() if isinstance(value, int | float)}


def find_image(folder: Path, *, id: str) -> Path | None:
    """The one full-resolution image in the folder, or beside a folder named ``outs``; several are an error."""
    places = [folder, folder.parent] if folder.name == "outs" else [folder]
    found = sorted(
        {
            path
            for place in places
            for pattern in FULL_RESOLUTION
            for path in place.glob(pattern)
            if not any(word in path.name.lower() for word in DOWNSAMPLED)
        }
    )
    if len(found) > 1:
        names = ", ".join(f"'{path}'" for path in found)
        raise SectionError(f"section {id!r} has {len(found)} images: {names}; give one of them as `image`")
    if not found:
        log.info("section %r: no full-resolution image in '%s'", id, folder)
    return found[0] if found else None


def _matrix_h5(folder: Path) -> Path | None:
    exact = folder / f"{MATRIX}.h5"
    if exact.is_file():
        return exact
    prefixed = sorted(folder.glob(f"*{MATRIX}.h5"))
    if len(prefixed) > 1:
        raise SectionError(f"'{folder}' has several matrices: {', '.join(path.name for path in prefixed)}; keep one")
    return prefixed[0] if prefixed else None


def _read_mtx(folder: Path) -> FeatureMatrix:
    def one(name: str) -> Path:
        for path in (folder / f"{name}.gz", folder / name):
            if path.is_file():
                return path
        raise FileNotFoundError(f"there is no '{name}' or '{name}.gz' in '{folder}'")

    path = one("matrix.mtx")
    try:
        if path.suffix == ".gz":
            with gzip.open(path, "rb") as stream:
                counts = scipy_io.mmread(stream)
        else:
            counts = scipy_io.mmread(str(path))
    except (EOFError, OSError, ValueError) as error:
        raise SectionError(f"'{path}' is truncated or no matrix-market file ({error}); fetch it again") from error
    features = pd.read_csv(one("features.tsv"), sep="\t", header=None, dtype=str)
    barcodes = pd.read_csv(one("barcodes.tsv"), sep="\t", header=None, dtype=str)[0].tolist()
    types = features[2].tolist() if features.shape[1] > 2 else [GENES] * len(features)
    return FeatureMatrix(sparse.csr_matrix(counts.T), barcodes, features[0].tolist(), features[1].tolist(), types)


def _text(dataset: Any) -> list[str]:
    return [value.decode("utf-8") if isinstance(value, bytes) else str(value) for value in dataset[()]]


def _gene_expression(matrix: FeatureMatrix, *, id: str) -> FeatureMatrix:
    """Only genes; what else was in the matrix is counted in the log."""
    kinds = pd.Series(matrix.types, dtype=object)
    if (kinds == GENES).all():
        return matrix
    keep = np.flatnonzero(kinds == GENES)
    dropped = kinds[kinds != GENES].value_counts()
    log.info("section %r: features dropped: %s", id, ", ".join(f"{n} × {kind}" for kind, n in dropped.items()))
    if len(keep) == 0:
        raise SectionError(f"section {id!r}: no feature is of type {GENES!r}, only {dropped.index.tolist()}")
    pick = [[names[i] for i in keep] for names in (matrix.ids, matrix.symbols, matrix.types)]
    return FeatureMatrix(matrix.counts[:, keep], matrix.barcodes, *pick)


def gene_names(matrix: FeatureMatrix, genes: str, *, id: str) -> list[str]:
    """Names of the features as ``genes`` asks: symbols, of which those that several features share stay ids, or ids."""
    if genes == "id":
        return matrix.ids
    if genes != "symbol":
        raise ValueError(f"genes={genes!r}; expected 'symbol' or 'id'")
    symbols = pd.Series(matrix.symbols, dtype=object)
    shared = symbols.duplicated(keep=False)
    if shared.any():
        log.info("section %r: symbols of several genes, named by id: %s", id, ", ".join(symbols[shared].unique()))
    return symbols.where(~shared, pd.Series(matrix.ids, dtype=object)).tolist()


def _join(id: str, barcodes: list[str], positions: pd.DataFrame, *, in_tissue: bool) -> tuple[np.ndarray, pd.DataFrame]:
    """Rows of the matrix that have a position, and those positions in the same order."""
    where = " under tissue" if in_tissue else ""
    if in_tissue:
        positions = positions[positions["in_tissue"] == 1]
    at = positions.index.get_indexer(pd.Index(barcodes))
    if not (at >= 0).any():
        raise SectionError(
            f"section {id!r}: none of the {len(at)} barcodes of the matrix is among the {len(positions)} positions{where}; "
            f"the matrix has {barcodes[:2]}, the positions {positions.index[:2].tolist()}. Do both come from one run?"
        )
    if (at < 0).any():
        log.info("section %r: %d of %d barcodes have no position%s", id, int((at < 0).sum()), len(at), where)
    return np.flatnonzero(at >= 0), positions.iloc[at[at >= 0]]


def _check_full_resolution(
    id: str, xy: np.ndarray, size: tuple[int, int], path: Path | None, factors: dict[str, float]
) -> None:
    """Positions beyond the image are most often those of the full image beside a downsampled one: say which."""
    reach = xy.max(axis=0)
    if (reach < size).all():
        return
    for kind in ("hires", "lowres"):
        name, key = f"tissue_{kind}_image.png", f"tissue_{kind}_scalef"
        if key in factors and (reach * factors[key] < size).all():
            raise SectionError(
                f"section {id!r}: '{path}' has {size[0]} × {size[1]} px, but spots lie at up to x {reach[0]:.0f}, "
                f"y {reach[1]:.0f}. It looks like '{name}' (scale factor {factors[key]:g}); give the full-resolution "
                "image that Space Ranger was run on"
            )
