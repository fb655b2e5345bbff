"""Writers of tiny files in the published layouts, with the truth they hold, for the tests of the readers."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
from PIL import Image
from scipy import io as scipy_io
from scipy import sparse

ST_PITCH_PX = 10.0  # 200 µm: 20 µm per px
ST_SIZE = (90, 110)  # width and height that hold the lattice of `st_truth`
VISIUM_PX_PER_UM = 0.1  # 10 µm per px


@dataclass
class Truth:
    """What a written section holds: counts (n, G) in the order of ``keys``, lattice (x, y) and pixel positions."""

    genes: list[str]
    keys: list[str]
    counts: np.ndarray
    array_xy: np.ndarray
    xy: np.ndarray


def write_image(path: Path, size: tuple[int, int]) -> Path:
    """A grey RGB image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 180, 200)).save(path)
    return path


def st_truth(seed: int = 0, genes: tuple[str, ...] = ("GNAS", "gnas", "C1orf159", "MT-CO1", "HLA-A", "ERBB2")) -> Truth:
    """A 6 × 8 lattice, shuffled, with positions that are off the lattice by fractions, as on real slides."""
    rng = np.random.default_rng(seed)
    array_xy = np.stack(np.meshgrid(np.arange(2, 8), np.arange(3, 11)), axis=-1).reshape(-1, 2)
    array_xy = array_xy[rng.permutation(len(array_xy))]
    fine = array_xy + rng.uniform(-0.2, 0.2, array_xy.shape)
    counts = rng.poisson(rng.gamma(0.4, 8.0, (len(array_xy), len(genes))))
    return Truth(list(genes), [f"{x}x{y}" for x, y in array_xy], counts, fine, fine * ST_PITCH_PX)


def write_counts(path: Path, truth: Truth, drop: int = 0) -> Path:
    """The count table of all spots but the last ``drop``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    n = len(truth.keys) - drop
    pd.DataFrame(truth.counts[:n], index=truth.keys[:n], columns=truth.genes).to_csv(path, sep="\t")
    return path


def write_selection(path: Path, truth: Truth, drop: int = 0) -> Path:
    """A spot file with new_x, new_y, pixel_x, pixel_y, of all spots but the first ``drop``, in reverse order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rounded = np.rint(truth.array_xy).astype(int)
    table = pd.DataFrame({
        "x": rounded[:, 0], "y": rounded[:, 1], "new_x": truth.array_xy[:, 0], "new_y": truth.array_xy[:, 1],
        "pixel_x": truth.xy[:, 0], "pixel_y": truth.xy[:, 1], "selected": 1,
    })
    table.iloc[drop:].iloc[::-1].to_csv(path, sep="\t", index=False)
    return path


def write_st_folder(folder: Path, ids: dict[str, bool], layout: str = "her2st") -> dict[str, Truth]:
    """Sections (id → has an image) as her2st, as its repository, as its Zenodo record, or as GEO has them."""
    truths = {}
    for number, (id, has_image) in enumerate(ids.items()):
        truth = truths[id] = st_truth(number)
        counts, spots, image = {
            "her2st": (f"ST-cnts/{id}.tsv.gz", f"ST-spotfiles/{id}_selection.tsv", f"ST-imgs/{id}.png"),
            "github": (f"data/ST-cnts/{id}.tsv.gz", f"data/ST-spotfiles/{id}_selection.tsv",
                       f"data/ST-imgs/{id[0]}/{id}/1234_HE_small.png"),
            "zenodo": (f"count-matrices/{id}.tsv", f"spot-selections/{id}_selection.tsv.gz", f"images/HE/{id}.png"),
            "geo": (f"GSM12{number}_{id}_stdata.tsv.gz", f"GSM12{number}_spot_data-selection-{id}.tsv.gz",
                    f"GSM12{number}_{id}.png"),
        }[layout]
        write_counts(folder / counts, truth, drop=1)
        write_selection(folder / spots, truth, drop=1)
        if has_image:
            write_image(folder / image, ST_SIZE)
            if layout == "zenodo":
                write_image(folder / "images/annotation" / f"{id}.png", ST_SIZE)
    return truths


def write_st_net(folder: Path) -> Truth:
    """One section as ST-Net publishes it: prefixes that differ, carriage returns, a header that is one name short."""
    truth = st_truth(3)
    write_counts(folder / "BC1_C1_stdata.tsv.gz", truth)
    spots = pd.DataFrame({"X": truth.xy[:, 0], "Y": truth.xy[:, 1]}, index=truth.keys)
    spots.iloc[5:].to_csv(folder / "spots_BT1_C1.csv.gz")
    write_image(folder / "HE_BT1_C1.png", ST_SIZE)
    at = np.rint(truth.array_xy).astype(int)
    lines = [f"C1_{x}_{y}\t{fx:.3f}\t{fy:.3f}\tL1\t{'tumor' if x < 5 else 'non'}"
             for (x, y), (fx, fy) in zip(at, truth.array_xy, strict=True)]
    with gzip.open(folder / "BC1_C1_Coords.tsv.gz", "wb") as sink:
        sink.write("\r".join(["xcoord\tycoord\tlab\ttumor", *lines]).encode())
    (folder / "metadata.csv").write_text(
        "type,patient,replicate,histology_image,spot_coordinates,count_matrix,tumor_annotation\n"
        "TNBC,BC1,C1,HE_BT1_C1.png,spots_BT1_C1.csv.gz,BC1_C1_stdata.tsv.gz,BC1_C1_Coords.tsv.gz\n"
    )
    return truth


@dataclass
class VisiumTruth:
    """What a written Space Ranger folder holds; ``counts`` (barcodes, features) with the order of ``barcodes``."""

    barcodes: list[str]
    ids: list[str]
    symbols: list[str]
    types: list[str]
    counts: np.ndarray
    array_rc: np.ndarray
    xy: np.ndarray
    in_tissue: np.ndarray


def write_visium(folder: Path, version: int = 2, matrix: str = "h5", prefix: str = "") -> VisiumTruth:
    """A Space Ranger folder with 8 × 6 spots of a hexagonal lattice, one of them off tissue, and one antibody."""
    rng = np.random.default_rng(5)
    rc = np.array([(row, column) for row in range(8) for column in range(row % 2, 12, 2)])
    um = np.column_stack([rc[:, 1] * 50.0, rc[:, 0] * 50.0 * np.sqrt(3)])
    turn = np.array([[np.cos(0.1), -np.sin(0.1)], [np.sin(0.1), np.cos(0.1)]])
    xy = um @ turn.T * VISIUM_PX_PER_UM + 15.0
    barcodes = [f"{''.join(rng.choice(list('ACGT'), 16))}-1" for _ in rc]
    symbols, types = ["SAMD11", "TBCE", "TBCE", "AbC", "CD3"], ["Gene Expression"] * 4 + ["Antibody Capture"]
    ids = ["ENSG1", "ENSG2", "ENSG3", "ENSG4", "CD3"]
    truth = VisiumTruth(barcodes, ids, symbols, types, rng.poisson(1.5, (len(rc), 5)), rc, xy, np.arange(len(rc)) != 7)
    _write_positions(folder / "spatial", truth, version)
    if matrix == "h5":
        _write_matrix_h5(folder / f"{prefix}filtered_feature_bc_matrix.h5", truth)
    else:
        _write_matrix_mtx(folder / "filtered_feature_bc_matrix", truth)
    return truth


def _write_positions(spatial: Path, truth: VisiumTruth, version: int) -> None:
    spatial.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame({
        "barcode": truth.barcodes, "in_tissue": truth.in_tissue.astype(int), "array_row": truth.array_rc[:, 0],
        "array_col": truth.array_rc[:, 1], "pxl_row_in_fullres": truth.xy[:, 1], "pxl_col_in_fullres": truth.xy[:, 0],
    }).iloc[::-1]
    name = "tissue_positions.csv" if version == 2 else "tissue_positions_list.csv"
    table.to_csv(spatial / name, index=False, header=version == 2)
    (spatial / "scalefactors_json.json").write_text(json.dumps({
        "spot_diameter_fullres": 6.5, "tissue_hires_scalef": 0.5, "tissue_lowres_scalef": 0.1,
        "fiducial_diameter_fullres": 9.0,
    }))


def _write_matrix_h5(path: Path, truth: VisiumTruth) -> None:
    counts = sparse.csc_matrix(truth.counts.T)
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        for name, values in (("data", counts.data), ("indices", counts.indices), ("indptr", counts.indptr),
                             ("shape", np.array(counts.shape)), ("barcodes", np.array(truth.barcodes, dtype="S"))):
            group.create_dataset(name, data=values)
        features = group.create_group("features")
        for name, values in (("id", truth.ids), ("name", truth.symbols), ("feature_type", truth.types)):
            features.create_dataset(name, data=np.array(values, dtype="S"))


def _write_matrix_mtx(folder: Path, truth: VisiumTruth) -> None:
    folder.mkdir()
    with gzip.open(folder / "matrix.mtx.gz", "wb") as sink:
        scipy_io.mmwrite(sink, sparse.coo_matrix(truth.counts.T))
    pd.DataFrame([truth.ids, truth.symbols, truth.types]).T.to_csv(folder / "features.tsv.gz", sep="\t", header=False,
                                                                   index=False)
    pd.Series(truth.barcodes).to_csv(folder / "barcodes.tsv.gz", sep="\t", header=False, index=False)


def visium_adata(um_per_px: float = 10.0) -> anndata.AnnData:
    """A hexagonal lattice as AnnData, with raw counts, lattice and pixel positions."""
    rng = np.random.default_rng(8)
    rc = np.array([(row, column) for row in range(6) for column in range(row % 2, 10, 2)])
    um = np.column_stack([rc[:, 1] * 50.0, rc[:, 0] * 50.0 * np.sqrt(3)])
    obs = pd.DataFrame({"array_row": rc[:, 0], "array_col": rc[:, 1]}, index=[f"S{i}" for i in range(len(rc))])
    counts = sparse.csr_matrix(rng.poisson(1.0, (len(rc), 4)).astype(np.float32))
    return anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=["A", "a", "B", "C"]),
                           obsm={"spatial": um / um_per_px + 5.0})


def write_hest(folder: Path, patients: dict[str, str | None], titles: dict[str, str] | None = None) -> None:
    """Sections (id → patient) in the layout of HEST-1k, the last one without an image."""
    (folder / "st").mkdir(parents=True)
    (folder / "metadata").mkdir()
    rows = []
    for number, (id, patient) in enumerate(patients.items()):
        visium_adata().write_h5ad(folder / "st" / f"{id}.h5ad")
        known = {"pixel_size_um_estimated": 10.0, "pixel_size_um_embedded": None, "st_technology": "Visium"}
        (folder / "metadata" / f"{id}.json").write_text(json.dumps(known))
        if number < len(patients) - 1:
            write_image(folder / "wsis" / f"{id}.tif", (70, 70))
        rows.append({"id": id, "patient": patient, "dataset_title": (titles or {}).get(id, "One study")})
    pd.DataFrame(rows).to_csv(folder / "HEST_v1_1_0.csv", index=False)
