"""Nearest spots do not depend on the order of the spots; the fuzzy graph is scanpy's; the basis spans it."""

from __future__ import annotations

import anndata
import numpy as np
import pytest
from scipy import sparse

from histoweave.pp.adjacency import adjacency_basis, connectivities, nearest


def lattice(rows: int, columns: int) -> np.ndarray:
    return np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), -1).reshape(-1, 2) * 100.0


def scattered(n: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 1000, (n, 2))


def test_the_order_of_spots_has_no_part_in_the_nearest() -> None:
    xy = lattice(6, 7)  # full of ties
    order = np.random.default_rng(1).permutation(len(xy))
    table, moved = nearest(xy), nearest(xy[order])
    assert np.array_equal(order[moved], table[order])
    assert np.array_equal(table[:, 0], np.arange(len(xy)))


def test_nearest_is_brute_force_and_short_sections_are_filled_up() -> None:
    xy = scattered(60)
    far = np.linalg.norm(xy[:, None] - xy, axis=-1)
    assert np.array_equal(nearest(xy, 9), far.argsort(axis=1)[:, :9])
    few = nearest(xy[:4], 9)
    assert (few[:, :4] >= 0).all() and (few[:, 4:] == -1).all()


@pytest.mark.filterwarnings("ignore")
def test_the_fuzzy_graph_is_that_of_scanpy() -> None:
    scanpy = pytest.importorskip("scanpy")
    data = anndata.AnnData(np.zeros((80, 1), np.float32), obsm={"spatial": scattered(80)})
    scanpy.pp.neighbors(data, n_neighbors=15, use_rep="spatial")
    expected = data.obsp["connectivities"].toarray()
    np.testing.assert_allclose(connectivities(data.obsm["spatial"]).toarray(), expected, atol=1e-4)


def test_the_basis_is_the_best_of_its_rank() -> None:
    xy = scattered(90)
    graph = connectivities(xy)
    basis = adjacency_basis(xy).astype(np.float64)
    assert basis.shape == (90, 32)
    values = np.linalg.svd(graph.toarray(), compute_uv=False)
    np.testing.assert_allclose(np.linalg.norm(basis, axis=0), values[:32], rtol=1e-4)
    assert (basis[np.abs(basis).argmax(axis=0), np.arange(32)] > 0).all()
    raw = adjacency_basis(xy, signed=False)
    np.testing.assert_allclose(np.abs(raw), np.abs(basis), atol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 5, 33])
def test_small_sections(n: int) -> None:
    basis = adjacency_basis(scattered(n))
    assert basis.shape == (n, 32) and np.isfinite(basis).all()
    graph = connectivities(scattered(n))
    assert sparse.issparse(graph) and np.isfinite(graph.toarray()).all()
