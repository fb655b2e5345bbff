"""Genes divided by their deviation without a dense matrix: products, scatter and principal components of z-scores.

Letters: n cells, m shared genes, p directions that are kept, b cells of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import linalg, sparse

from histoweave.models.impute._imputed import moments

_CHUNK = 4096  # cells that are made dense at a time
_RANK = 1e-10  # share of the largest eigenvalue below which a direction of a scatter matrix is rounding


class Scaled:
    """z-scores (n, m) of sparse values, and optionally of each cell over its genes afterwards; made in chunks.

    A gene without spread is 0 in all cells, and so is a cell without spread.

    Parameters
    ----------
    values
        (n, m) CSR.
    cells
        Whether each cell is afterwards brought to mean 0 and deviation 1 over its genes.
    """

    def __init__(self, values: sparse.csr_matrix, *, cells: bool = False) -> None:
        self.values, self.cells = values, cells
        self.mean, sd = moments(values)
        flat = sd <= 1e-9 * np.abs(self.mean)  # rounding of equal numbers is no spread
        self.factor = np.where(flat, 0.0, 1 / np.where(flat, 1.0, sd))
        self.constant = int(flat.sum())

    def __len__(self) -> int:
        return self.values.shape[0]

    def chunks(self) -> Iterator[np.ndarray]:
        """z-scores (b, m) in order."""
        for start in range(0, len(self), _CHUNK):
            z = (self.values[start : start + _CHUNK].toarray() - self.mean) * self.factor
            if self.cells:
                z -= z.mean(axis=1, keepdims=True)
                sd = z.std(axis=1, keepdims=True)
                z /= np.where(sd > 1e-12, sd, 1.0)
            yield z

    def gram(self) -> np.ndarray:
        """Scatter (m, m): the z-scores' inner products over cells."""
        total = np.zeros((self.values.shape[1],) * 2)
        for z in self.chunks():
            total += z.T @ z
        return total

    def project(self, basis: np.ndarray) -> np.ndarray:
        """z-scores times a basis (m, p): (n, p)."""
        return np.concatenate([z @ basis for z in self.chunks()])

    def components(self, p: int) -> np.ndarray:
        """Orthonormal basis (m, p) of the directions of most variance; fewer where the cells do not determine p."""
        return leading(self.gram(), p)[1]


def leading(gram: np.ndarray, p: int) -> tuple[np.ndarray, np.ndarray]:
    """The p largest eigenvalues (p,) of a scatter matrix, largest first, and their vectors (m, p); fewer at low rank."""
    m = len(gram)
    values, vectors = linalg.eigh(gram, subset_by_index=(max(0, m - p), m - 1))
    keep = np.flatnonzero(values > _RANK * max(values[-1], np.finfo(float).tiny))[::-1]
    return values[keep], vectors[:, keep]
