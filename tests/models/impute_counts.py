"""Counts of a reference and a target that tests of imputers share."""

from __future__ import annotations

import numpy as np
from scipy import sparse


def counts(
    n: int = 120, c: int = 40, m: int = 15, h: int = 6, *, types: int = 4, seed: int = 0
) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Reference (n, m + h) and target (c, m) of the same cell types, caught by assays that differ by gene."""
    rng = np.random.default_rng(seed)
    profiles = rng.gamma(0.5, 4, (types, m + h)) + 0.3
    drift = rng.gamma(5, 0.2, m + h)
    return (
        sparse.csr_matrix(rng.poisson(profiles[rng.integers(0, types, n)] * rng.gamma(3, 1 / 3, (n, 1)) + 0.1)),
        sparse.csr_matrix(rng.poisson((profiles * drift)[rng.integers(0, types, c), :m] + 0.1)),
    )
