"""The benchmark of imputers: held-out genes are imputed over the totals of the whole reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from benchmarks import imputers
from scipy import sparse


def test_totals_are_over_all_genes_of_the_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    common, alone = [f"g{i}" for i in range(12)], ["x", "y", "z"]
    counts = {"scrna": rng.poisson(4, (20, 15)).astype(np.float32), "st": rng.poisson(4, (9, 12)).astype(np.float32)}
    for name, table in counts.items():
        obs = pd.DataFrame({"cell_type": "A"}, index=[f"c{i}" for i in range(len(table))])
        var = pd.DataFrame(index=[*common, *alone][: table.shape[1]])
        anndata.AnnData(sparse.csr_matrix(table), obs=obs, var=var).write_h5ad(tmp_path / f"{name}.h5ad")
    kept: dict[str, np.ndarray] = {}
    plain = imputers._scores

    def scores(truth: np.ndarray, made: np.ndarray, fold: np.ndarray) -> dict[str, Any]:
        kept["made"] = made
        return plain(truth, made, fold)

    monkeypatch.setattr(imputers, "RESULTS", tmp_path)
    monkeypatch.setattr(imputers, "_scores", scores)
    assert "`gene-mean`" in imputers.pdac(tmp_path, ["gene-mean"], "test")
    cells = counts["scrna"]
    expected = np.log1p(1e4 * cells / cells.sum(axis=1, keepdims=True)).mean(axis=0)[:12]
    np.testing.assert_allclose(kept["made"], np.broadcast_to(expected, (9, 12)), rtol=1e-5)
