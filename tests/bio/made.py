"""Predictions with known biology: maps on a lattice, stored as a benchmark stores them."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter

from histoweave import _keys as K
from histoweave.data.phantom import Phantom


def smooth_maps(count: int, side: int, seed: int, *, wrap: bool = True) -> np.ndarray:
    """Independent smooth random maps (side · side, count); `wrap` closes them to a torus."""
    noise = np.random.default_rng(seed).normal(size=(count, side, side))
    maps = np.stack([gaussian_filter(one, 1.5, mode="wrap" if wrap else "reflect") for one in noise])
    return maps.reshape(count, -1).T / maps.std()


def grid_cells(side: int) -> np.ndarray:
    """Lattice coordinates (side · side, 2)."""
    return np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), axis=-1).reshape(-1, 2)


def stored(
    truth: np.ndarray,
    pred: np.ndarray,
    cells: np.ndarray,
    *,
    section: str = "S1",
    patient: str = "P1",
    genes: list[str] | None = None,
) -> anndata.AnnData:
    """A prediction of one section as a cell of a benchmark stores it."""
    names = genes or [f"G{i}" for i in range(truth.shape[1])]
    obs = pd.DataFrame(
        {K.ROW: cells[:, 0], K.COL: cells[:, 1], K.SECTION: section, K.PATIENT: patient},
        index=[f"{section}/{i}" for i in range(len(truth))],
    )
    return anndata.AnnData(
        X=pred.astype(np.float32),
        obs=obs,
        var=pd.DataFrame(index=names),
        obsm={K.SPATIAL: cells[:, ::-1] * 100.0},
        layers={"truth": truth.astype(np.float32)},
    )


def of_phantom(made: Phantom, share: float, seed: int = 0) -> anndata.AnnData:
    """A prediction of a whole phantom: `share` of what is known of each spot, the rest noise of the same spread."""
    rng = np.random.default_rng(seed)
    parts = []
    for section in made.cohort:
        truth = made.target()[section.id]
        known = np.log1p(made.mean[section.id])
        noise = rng.normal(0, known.std(axis=0), known.shape)
        pred = known.mean(axis=0) + share * (known - known.mean(axis=0)) + (1 - share) * noise
        assert section.array_rc is not None
        part = stored(
            truth, pred, section.array_rc, section=section.id, patient=section.patient, genes=list(made.genes.index)
        )
        part.obsm[K.SPATIAL] = section.xy
        parts.append(part)
    return anndata.concat(parts)
