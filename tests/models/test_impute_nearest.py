"""Exact neighbours, means over them, and z-scores in chunks, each against a dense computation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from histoweave.models.impute import _nearest as home
from histoweave.models.impute._imputed import moments
from histoweave.models.impute._nearest import as_weights, nearest, weighted_mean
from histoweave.models.impute._scaled import Scaled


@pytest.mark.parametrize(
    ("metric", "spread"), [("cosine", 1.0), ("cosine", 1e-6), ("euclidean", 1.0), ("euclidean", 1e-9)]
)
def test_nearest_is_exact_where_float32_is_not(metric: str, spread: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a small spread float32 takes all keys for one; the answer is that of float64, whatever the chunks."""
    rng = np.random.default_rng(0)
    keys = rng.normal(size=6) + spread * rng.normal(size=(200, 6))
    queries = keys[:31] + 0.1 * spread * rng.normal(size=(31, 6))
    x, y = queries.copy(), keys.copy()
    if metric == "cosine":
        x, y = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (x, y))
    exact = ((x[:, None] - y[None]) ** 2).sum(2)
    expected = np.argsort(exact, axis=1, kind="stable")[:, :5]
    distance, index = nearest(queries, keys, 5, metric=metric)  # type: ignore[arg-type]
    np.testing.assert_array_equal(index, expected)
    values = np.take_along_axis(exact, expected, axis=1)
    np.testing.assert_allclose(distance, values / 2 if metric == "cosine" else np.sqrt(values), rtol=1e-6, atol=1e-15)
    monkeypatch.setattr(home, "_CELLS", 200 * 10)  # chunks of 10, and a last one of a single cell
    again = nearest(queries, keys, 5, metric=metric)  # type: ignore[arg-type]
    np.testing.assert_array_equal(again[1], index)
    np.testing.assert_array_equal(again[0], distance)


def test_ties_are_broken_by_row() -> None:
    keys = np.zeros((100, 3))
    keys[40] = 1.0
    distance, index = nearest(np.zeros((2, 3)), keys, 6, metric="euclidean")
    np.testing.assert_array_equal(index, [[0, 1, 2, 3, 4, 5]] * 2)
    np.testing.assert_array_equal(distance, 0)
    assert nearest(np.ones((1, 3)), np.zeros((4, 3)), 9, metric="cosine")[0].tolist() == [[1.0] * 4]


def test_weighted_mean_over_blocks_of_genes(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    values = rng.random((9, 7)) * (rng.random((9, 7)) < 0.6)
    index, weight = rng.integers(0, 9, (5, 4)), rng.dirichlet(np.ones(4), 5)
    monkeypatch.setattr(home, "_GENES", 3)
    monkeypatch.setattr(home, "_CELLS", 4 * 3 * 2)  # two cells at a time, a last one of one
    mean, sd = weighted_mean(as_weights(index, weight, 9), sparse.csr_matrix(values))
    expected = (weight[:, :, None] * values[index]).sum(1)
    np.testing.assert_allclose(mean, expected, rtol=1e-6)
    variance = (weight[:, :, None] * (values[index] - expected[:, None]) ** 2).sum(1)
    np.testing.assert_allclose(sd, np.sqrt(variance), atol=1e-6)


def test_scaled_in_chunks_of_sparse_values() -> None:
    """The last chunk is a single cell."""
    rng = np.random.default_rng(0)
    table = rng.poisson(1.0, (2 * 4096 + 1, 5)).astype(float)
    table[:, 3] = 2.0
    values = sparse.csr_matrix(table)
    mean, sd = moments(values)
    np.testing.assert_allclose(mean, table.mean(0))
    np.testing.assert_allclose(sd, table.std(0), atol=1e-12)
    scaled = Scaled(values)
    z = (table - table.mean(0)) / np.where(table.std(0) > 0, table.std(0), 1)
    np.testing.assert_allclose(scaled.project(np.eye(5)), z, atol=1e-12)
    np.testing.assert_allclose(scaled.gram(), z.T @ z, atol=1e-8)
    assert scaled.constant == 1 and scaled.components(5).shape == (5, 4)
