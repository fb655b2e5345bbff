"""SpaGE against its formula, one cell at a time, and where the formula has no answer."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse
from sklearn.decomposition import PCA
from tests.models.impute_counts import counts

from histoweave.models.impute import create_imputer
from histoweave.models.impute._imputed import EMPTY
from histoweave.models.impute.spage import SpaGE, principal_vectors, spage_weights


def plain(reference: np.ndarray, seen: np.ndarray, n_pv: int, k: int = 50) -> np.ndarray:
    """The published formula, cell by cell."""
    m = seen.shape[1]
    rna = np.log(reference / reference.sum(1, keepdims=True) * 1e6 + 1)
    spatial = np.log(seen / seen.sum(1, keepdims=True) * np.median(seen.sum(1)) + 1)
    zr = (rna[:, :m] - rna[:, :m].mean(0)) / rna[:, :m].std(0)
    zs = (spatial - spatial.mean(0)) / spatial.std(0)
    ps = PCA(n_pv, svd_solver="full").fit(zr).components_
    pt = PCA(n_pv, svd_solver="full").fit(zs).components_
    u, cosine, _ = np.linalg.svd(ps @ pt.T)
    vectors = (u.T @ ps)[cosine > 0.3]
    a, b = zr @ vectors.T, zs @ vectors.T
    out = np.zeros((len(seen), reference.shape[1] - m))
    for cell in range(len(seen)):
        distance = np.array([1 - b[cell] @ x / np.linalg.norm(b[cell]) / np.linalg.norm(x) for x in a])
        near = np.argsort(distance)[:k]
        near = near[distance[near] < 1]
        d = distance[near]
        weight = (1 - d / d.sum()) / (len(near) - 1)
        assert np.isclose(weight.sum(), 1)
        for i, w in zip(near, weight, strict=True):
            out[cell] += w * rna[i, m:]
    return out


@pytest.mark.parametrize(("n_pv", "k"), [(8, 50), (15, 7), (3, 50)])
def test_equals_the_formula(n_pv: int, k: int) -> None:
    reference, seen = counts()
    made = create_imputer(f"spage[n_pv={n_pv},k={k}]")(reference, seen)
    expected = plain(reference.toarray().astype(float), seen.toarray().astype(float), n_pv, k)
    np.testing.assert_allclose(made.values, expected, rtol=1e-6, atol=1e-6)
    assert made.values.dtype == np.float32 and made.spread is not None
    assert made.notes["target cells without neighbour"] == 0


def test_spread_is_the_weighted_deviation_over_neighbours() -> None:
    reference = sparse.csr_matrix([[8, 1, 3], [7, 1, 9], [1, 8, 0]])
    made = SpaGE(n_pv=1)(reference, sparse.csr_matrix([[9, 1], [1, 9]]))
    rna = np.log1p(1e6 * reference.toarray() / reference.toarray().sum(1, keepdims=True))[:2, 2]
    # With one vector both neighbours lie at distance 0, so they weigh alike.
    np.testing.assert_allclose(made.values[0], rna.mean(), rtol=1e-6)
    np.testing.assert_allclose(made.spread[0], abs(rna[0] - rna[1]) / 2, rtol=1e-6)  # type: ignore[index]


def test_weights() -> None:
    weight = spage_weights(
        np.array([[0.1, 0.3, 0.6], [0.2, 1.0, 1.4], [1.0, 1.2, 2.0], [0.0, 0.0, 0.0], [0.0, 0.5, 1.0]])
    )
    np.testing.assert_allclose(
        weight,
        [
            [0.45, 0.35, 0.2],  # (1 - d / 1.0) / 2
            [1, 0, 0],  # a single neighbour below 1: its own values
            [0, 0, 0],
            [1 / 3, 1 / 3, 1 / 3],  # all at distance 0
            [1, 0, 0],  # the formula itself: (1 - 0 / 0.5) / 1 and (1 - 0.5 / 0.5) / 1
        ],
    )  # fmt: skip


def test_principal_vectors_of_planes_with_a_common_axis() -> None:
    source = np.eye(3)[:, :2]  # x and y
    target = np.array([[0, 0], [1, 0], [0, 1]], dtype=float)  # y and z
    vectors, cosine = principal_vectors(source, target)
    np.testing.assert_allclose(cosine, [1, 0], atol=1e-12)
    np.testing.assert_allclose(np.abs(vectors), [[0, 1], [1, 0], [0, 0]], atol=1e-12)


def test_a_cell_without_neighbour_gets_the_mean_and_one_with_a_single_its_values() -> None:
    """One principal vector: reference cells lie on two sides of 0, so a cell has those of its side or none."""
    reference = sparse.csr_matrix([[8, 1, 3, 0], [1, 8, 0, 5], [2, 9, 1, 7]])
    seen = sparse.csr_matrix([[9, 1], [9, 1], [1, 9]])
    rna = np.log1p(1e6 * reference.toarray() / reference.toarray().sum(1, keepdims=True))[:, 2:]
    made = SpaGE(n_pv=1)(reference, seen)
    np.testing.assert_allclose(made.values[:2], rna[[0, 0]], rtol=1e-6)
    np.testing.assert_array_equal(made.spread[:2], 0)  # type: ignore[index]
    np.testing.assert_allclose(made.values[2], rna[1:].mean(0), rtol=1e-6)  # both at distance 0
    # A target whose shared genes are all constant spans nothing that could be shared.
    flat = SpaGE(n_pv=1)(reference, sparse.csr_matrix([[3, 3], [5, 5]]))
    np.testing.assert_allclose(flat.values, [rna.mean(0)] * 2, rtol=1e-6)
    np.testing.assert_allclose(flat.spread, [rna.std(0)] * 2, rtol=1e-6)
    assert flat.notes["target cells without neighbour"] == 2 and flat.notes["principal vectors kept"] == 0


def test_constant_genes_change_nothing() -> None:
    reference, seen = counts()
    blank_r, blank_s = sparse.csr_matrix((reference.shape[0], 2)), sparse.csr_matrix((seen.shape[0], 2))
    made = SpaGE(n_pv=8)(
        sparse.hstack([blank_r, reference], format="csr"), sparse.hstack([blank_s, seen], format="csr")
    )
    np.testing.assert_allclose(made.values, SpaGE(n_pv=8)(reference, seen).values, rtol=1e-6)
    assert made.notes["shared genes without spread"] == 2


def test_an_empty_cell_gets_the_mean_and_changes_no_other() -> None:
    reference, seen = counts()
    with_empty = sparse.vstack([seen[:3], sparse.csr_matrix((1, 15)), seen[3:]], format="csr")
    made, without = SpaGE(n_pv=8)(reference, with_empty), SpaGE(n_pv=8)(reference, seen)
    np.testing.assert_array_equal(np.delete(made.values, 3, axis=0), without.values)
    rna = np.log1p(1e6 * reference.toarray() / reference.toarray().sum(1, keepdims=True))[:, 15:]
    np.testing.assert_allclose(made.values[3], rna.mean(0), rtol=1e-6)
    assert made.notes[EMPTY] == 1


def test_more_vectors_than_shared_genes() -> None:
    reference, seen = counts()
    with pytest.raises(ValueError, match="n_pv=16 principal vectors, but 15 genes are shared; give n_pv of at most 15"):
        SpaGE(n_pv=16)(reference, seen)
