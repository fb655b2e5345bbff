"""Writer of a tiny Xenium folder, with the truth it holds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from scipy import sparse

PIXEL = 0.2125  # µm per px of the instrument
SYMBOLS = ["ACE2", "TBCE", "TBCE", "NegControlProbe_1", "BLANK_2", "UnassignedCodeword_3", "CD3"]
IDS = ["ENSG1", "ENSG2", "ENSG3", "NegControlProbe_1", "BLANK_2", "UnassignedCodeword_3", "CD3"]
TYPES = ["Gene Expression"] * 3 + [
    "Negative Control Probe", "Blank Codeword", "Unassigned Codeword", "Protein Expression",
]  # fmt: skip


@dataclass
class Outs:
    """Counts (cells, features) and centroids (cells, 2) in µm, in the order of ``cells``."""

    folder: Path
    cells: list[str]
    counts: np.ndarray
    um: np.ndarray

    @property
    def px(self) -> np.ndarray:
        """Centroids in px of the morphology image."""
        return self.um / PIXEL


def write_xenium(folder: Path, n: int = 30, table: str = "parquet", prefix: str = "", size_um: float = 20.0) -> Outs:
    """The three files that are read: the matrix, the cells (in reverse order, one more), and the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(4)
    cells = [f"aaaa{''.join(rng.choice(list('bcdefghij'), 4))}-{i}" for i in range(n)]
    counts = rng.poisson(1.0, (n, len(SYMBOLS)))
    counts[3, :3] = 0  # a cell without a transcript
    truth = Outs(folder, cells, counts, rng.uniform(0.5, size_um - 0.5, (n, 2)))
    write_matrix(folder / f"{prefix}cell_feature_matrix.h5", truth)
    rows = pd.DataFrame({
        "cell_id": cells, "x_centroid": truth.um[:, 0], "y_centroid": truth.um[:, 1],
        "transcript_counts": counts[:, :3].sum(axis=1), "cell_area": rng.uniform(20, 90, n),
    }).iloc[::-1]  # fmt: skip
    write_cells(folder / f"{prefix}cells.{table}", pd.concat([rows, rows.iloc[:1].assign(cell_id="zzzz-1")]))
    (folder / f"{prefix}experiment.xenium").write_text(json.dumps({"pixel_size": PIXEL, "num_cells": n}))
    return truth


def write_cells(path: Path, table: pd.DataFrame) -> None:
    """The table of cells, in the form its suffix says."""
    table.to_parquet(path) if path.suffix == ".parquet" else table.to_csv(path, index=False)


def write_matrix(path: Path, truth: Outs, types: list[str] = TYPES) -> None:
    """The matrix (features, cells) in the HDF5 layout of 10x, version 3."""
    counts = sparse.csc_matrix(truth.counts.T)
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        for name, values in (("data", counts.data), ("indices", counts.indices), ("indptr", counts.indptr),
                             ("shape", np.array(counts.shape)), ("barcodes", np.array(truth.cells, dtype="S"))):  # fmt: skip
            group.create_dataset(name, data=values)
        features = group.create_group("features")
        for name, values in (("id", IDS), ("name", SYMBOLS), ("feature_type", types)):
            features.create_dataset(name, data=np.array(values, dtype="S"))
