"""Clusters: found where they are, the same for the same seed, compared as sklearn compares them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from histoweave import _optional
from histoweave.bio import (
    adjusted_rand,
    cluster_error,
    cluster_means,
    leiden,
    log_normalised,
    normalised_mutual_information,
)
from histoweave.bio.clusters import principal_components, shared_neighbours


@pytest.fixture(scope="module")
def counts() -> tuple[np.ndarray, np.ndarray]:
    """Counts (200, 300) of three kinds of spots with depths of their own, and the kinds."""
    rng = np.random.default_rng(0)
    kind = rng.permutation(np.repeat([0, 1, 2], [100, 60, 40]))
    rate = np.full((3, 300), 2.0)
    for k in range(3):
        rate[k, 40 * k : 40 * k + 40] = 8.0
    return rng.poisson(rate[kind] * rng.lognormal(0, 0.4, (200, 1))), kind


@pytest.mark.parametrize("seed", range(5))
def test_ari_and_nmi_are_sklearns(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 4, 70), rng.choice(["x", "y", "z"], 70)
    assert adjusted_rand(a, b) == pytest.approx(adjusted_rand_score(a, b), abs=1e-12)
    assert normalised_mutual_information(a, b) == pytest.approx(normalized_mutual_info_score(a, b), abs=1e-12)
    assert (adjusted_rand(a, a + 5), normalised_mutual_information(a, a + 5)) == pytest.approx((1.0, 1.0))


def test_edge_cases_of_ari_and_nmi_are_sklearns() -> None:
    one, every = np.zeros(6, dtype=int), np.arange(6)
    for a, b in ((one, one), (one, every), (every, every), (one, every % 2), (one[:1], one[:1])):
        assert adjusted_rand(a, b) == pytest.approx(adjusted_rand_score(a, b))
        assert normalised_mutual_information(a, b) == pytest.approx(normalized_mutual_info_score(a, b))
    with pytest.raises(ValueError, match="one label per spot in both"):
        adjusted_rand(one, every[:3])


def test_components_are_sklearns_up_to_sign() -> None:
    rng = np.random.default_rng(1)
    for shape in ((50, 20), (20, 50)):
        x = rng.normal(size=shape) * np.linspace(1, 4, shape[1])
        mine, theirs = principal_components(x, 5), PCA(5).fit_transform(x)
        np.testing.assert_allclose(np.abs(mine), np.abs(theirs), atol=1e-9)
    assert principal_components(np.ones((10, 3)), 5).shape == (10, 0)


def test_graph_weighs_by_shared_neighbours() -> None:
    points = np.random.default_rng(2).normal(size=(25, 3))
    graph = shared_neighbours(points, 4).toarray()
    apart = np.linalg.norm(points[:, None] - points, axis=2)
    near = [set(np.argsort(row)[:5].tolist()) for row in apart]
    for i in range(25):
        for j in range(25):
            joined = i != j and (j in near[i] or i in near[j])
            expected = len(near[i] & near[j]) / len(near[i] | near[j]) if joined else 0.0
            assert graph[i, j] == pytest.approx(expected)


def test_kinds_of_spots_are_found_and_numbered_by_size(counts: tuple[np.ndarray, np.ndarray]) -> None:
    values, kind = counts
    found = leiden(log_normalised(values))
    assert adjusted_rand(found, kind) > 0.95
    assert list(np.bincount(found)) == sorted(np.bincount(found), reverse=True)
    np.testing.assert_array_equal(found, leiden(log_normalised(sparse.csr_matrix(values)).toarray()))
    np.testing.assert_array_equal(found, leiden(log_normalised(values), seed=0))
    assert leiden(log_normalised(values), resolution=0.01).max() < found.max() + 1


def test_log_normalised_is_per_ten_thousand(counts: tuple[np.ndarray, np.ndarray]) -> None:
    values = counts[0].copy()
    values[3] = 0
    made = log_normalised(values).toarray()
    total = np.maximum(values.sum(axis=1, keepdims=True), 1)
    np.testing.assert_allclose(made, np.log1p(1e4 * values / total), rtol=1e-12)
    assert not made[3].any()


def test_what_cannot_be_clustered_is_said(
    counts: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = counts[0].astype(float)
    assert not leiden(np.ones((40, 3))).any()
    with pytest.raises(ValueError, match="29 spots are too few"):
        leiden(values[:29])
    values[0, 0] = np.nan
    with pytest.raises(ValueError, match="1 genes have missing values"):
        leiden(values)

    def absent(name: str) -> None:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(_optional.importlib, "import_module", absent)
    with pytest.raises(ImportError, match=r"pip install 'histoweave\[clusters\]'"):
        leiden(values)


def test_means_in_clusters_are_pandas(counts: tuple[np.ndarray, np.ndarray]) -> None:
    rng = np.random.default_rng(3)
    labels = counts[1]
    truth = np.log1p(counts[0][:, :6])
    pred = truth + rng.normal(0.3, 1, truth.shape)
    mask = rng.random(truth.shape) < 0.8
    mask[labels == 2, 5] = False
    genes = pd.Index(list("ABCDEF"))
    table = cluster_means(truth, pred, labels, genes, mask).set_index(["cluster", "gene"])
    frame = pd.DataFrame(np.where(mask, truth, np.nan), columns=genes).groupby(labels)
    other = pd.DataFrame(np.where(mask, pred, np.nan), columns=genes).groupby(labels)
    np.testing.assert_allclose(table["truth"].unstack(), frame.mean(), rtol=1e-12)
    np.testing.assert_allclose(table["prediction"].unstack(), other.mean(), rtol=1e-12)
    np.testing.assert_allclose(table["truth_se"].unstack(), frame.sem(), rtol=1e-10)
    np.testing.assert_array_equal(table["spots"].unstack(), frame.count())
    error = cluster_error(table.reset_index())
    gap = other.mean() - frame.mean()
    np.testing.assert_allclose(error["mae"], gap.abs().mean(), rtol=1e-12)
    np.testing.assert_allclose(error["rmse"], np.sqrt((gap**2).mean()), rtol=1e-12)
    np.testing.assert_allclose(error["spread"], frame.mean().std(ddof=0), rtol=1e-12)
    over_genes = cluster_error(table.reset_index(), by="cluster")
    np.testing.assert_allclose(over_genes["bias"], gap.mean(axis=1), rtol=1e-12)
