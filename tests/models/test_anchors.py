"""Anchors: toy cases worked by hand, singular vectors against a dense matrix, and the whole against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse
from tests.models.impute_counts import counts

from histoweave.models.impute import _anchors as parts
from histoweave.models.impute import create_imputer
from histoweave.models.impute._anchors import anchor_weights, mutual, overlap, rescaled
from histoweave.models.impute._imputed import log_normalised
from histoweave.models.impute._scaled import Scaled
from histoweave.models.impute.anchors import Anchors, canonical


def zscored(values: np.ndarray) -> np.ndarray:
    """Genes, then cells, at mean 0 and deviation 1."""
    z = (values - values.mean(0)) / values.std(0)
    return (z - z.mean(1, keepdims=True)) / z.std(1, keepdims=True)


def logs(table: np.ndarray) -> np.ndarray:
    """ln(1 + counts per 10,000)."""
    return np.log1p(1e4 * table / table.sum(1, keepdims=True))


def row_of(table: np.ndarray, to: np.ndarray, k: int) -> list[list[int]]:
    """The k nearest rows of `to` for each of `table`."""
    return [np.argsort(((to - x) ** 2).sum(1), kind="stable")[:k].tolist() for x in table]


def plain(reference: np.ndarray, seen: np.ndarray, dims: int, k_anchor: int, k_score: int, k_weight: int) -> np.ndarray:
    """Every step of the published method with dense matrices and sets, cell by cell."""
    m = seen.shape[1]
    r, s = logs(reference), logs(seen)
    left, _, right = np.linalg.svd(zscored(r[:, :m]) @ zscored(s).T)
    left, right = left[:, :dims], right[:dims].T
    left, right = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (left, right))
    there, back = row_of(left, right, k_score), row_of(right, left, k_score)
    within_r, within_s = row_of(left, left, k_score), row_of(right, right, k_score)
    anchors = [(i, j) for i in range(len(r)) for j in there[i][:k_anchor] if i in back[j][:k_anchor]]
    shared = []
    for i, j in anchors:
        one = {("r", x) for x in within_r[i]} | {("s", x) for x in there[i]}
        two = {("r", x) for x in back[j]} | {("s", x) for x in within_s[j]}
        shared.append(len(one & two))
    low, high = np.quantile(shared, [0.01, 0.9])
    score = np.clip((np.array(shared) - low) / (high - low), 0, 1)
    z = (s - s.mean(0)) / s.std(0)
    places = z @ np.linalg.svd(z)[2][:dims].T
    members = sorted({j for _, j in anchors})
    out = np.zeros((len(seen), reference.shape[1] - m))
    for cell in range(len(seen)):
        distance = np.linalg.norm(places[members] - places[cell], axis=1)
        near = np.argsort(distance, kind="stable")[:k_weight]
        total = used = 0.0
        for q in near:
            closeness = 1 - distance[q] / distance[near[-1]]
            for (i, j), quality in zip(anchors, score, strict=True):
                if j == members[q] and used < k_weight:
                    weight = 1 - np.exp(-closeness * quality / 4)
                    out[cell] += weight * r[i, m:]
                    total, used = total + weight, used + 1
        out[cell] /= total
    return out


def test_equals_plain_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    reference, seen = counts(n=60, c=50)
    made = create_imputer("anchors[components=5,k_anchor=4,k_score=12,k_weight=10]")(reference, seen)
    expected = plain(reference.toarray(), seen.toarray(), 5, 4, 12, 10)
    np.testing.assert_allclose(made.values, expected, rtol=1e-5)
    assert made.notes["target cells with even weights"] == 0
    assert 10 <= made.notes["target cells in anchors"] <= 50
    monkeypatch.setattr(parts, "_CHUNK", 7)  # a last chunk of a single target cell
    again = create_imputer("anchors[components=5,k_anchor=4,k_score=12,k_weight=10]")(reference, seen)
    np.testing.assert_array_equal(again.values, made.values)


def test_singular_vectors_of_the_matrix_that_is_never_made() -> None:
    reference, seen = counts(n=70, c=30)
    r, s = log_normalised(reference[:, :15]), log_normalised(seen)
    left, right, loadings = canonical(Scaled(r, cells=True), Scaled(s, cells=True), 6)
    x, y = zscored(r.toarray()), zscored(s.toarray())
    u, _, v = np.linalg.svd(x @ y.T)
    turn = np.sign((u[:, :6] / np.linalg.norm(u[:, :6], axis=1, keepdims=True) * left).sum(0))
    np.testing.assert_allclose(left, turn * u[:, :6] / np.linalg.norm(u[:, :6], axis=1, keepdims=True), atol=1e-8)
    np.testing.assert_allclose(right, turn * v[:6].T / np.linalg.norm(v[:6].T, axis=1, keepdims=True), atol=1e-8)
    np.testing.assert_allclose(loadings, turn * (x.T @ u[:, :6] + y.T @ v[:6].T), atol=1e-8)


def test_toy_by_hand_mutual() -> None:
    """Reference a, b, c and target p, q: a-p and b-q name each other; c names q, which names b and a; q's a is not mutual."""
    there = np.array([[0], [1], [1]])
    back = np.array([[0, 1], [1, 0]])
    np.testing.assert_array_equal(mutual(there, back), [[0, 0], [1, 1]])
    assert mutual(np.array([[1]]), np.array([[0], [0]])).tolist() == [[0, 1]]
    assert mutual(np.array([[0], [0]]), np.array([[1]])).tolist() == [[1, 0]]


def test_toy_by_hand_scores() -> None:
    one, two = np.array([[0, 1, 2], [3, 4, 5]]), np.array([[2, 1, 9], [6, 7, 8]])
    np.testing.assert_array_equal(overlap(one, two), [2, 0])
    scores = np.array([0, 10, 10, 10, 4, 2])
    low, high = (
        0 + 0.05 * 2,
        10.0,
    )  # 5 gaps: the 1 % quantile lies 0.05 on from the least, the 90 % one between two tens
    expected = [0, 1, 1, 1, (4 - low) / (high - low), (2 - low) / (high - low)]
    np.testing.assert_allclose(rescaled(scores), expected)
    np.testing.assert_array_equal(rescaled(np.array([7, 7, 7])), [1, 1, 1])


def test_toy_by_hand_weights() -> None:
    """Two target cells; the first sees members 0 and 1 at distances 1 and 2, the second members 1 and 0 at 0 and 5.

    Member 0 is in two anchors, with reference cells 2 (score 1) and 0 (score 0.5); member 1 in one, with cell 1 (score 1).
    """
    distance, near = np.array([[1.0, 2.0], [0.0, 5.0]]), np.array([[0, 1], [1, 0]])
    source, which, score = np.array([0, 1, 2]), np.array([0, 1, 0]), np.array([0.5, 1.0, 1.0])
    weights, even = anchor_weights(distance, near, source, which, score, 4, 1.0)
    a, b = 1 - np.exp(-0.5 * 0.5 / 4), 1 - np.exp(-0.5 * 1.0 / 4)
    np.testing.assert_allclose(weights.toarray(), [[a / (a + b), 0, b / (a + b), 0], [0, 1, 0, 0]])
    assert even == 0
    # A wider sd: (2 / 4)² = 1 / 4 in the place of 4.
    wide, _ = anchor_weights(distance, near, source, which, score, 4, 4.0)
    a, b = 1 - np.exp(-0.5 * 0.5 * 4), 1 - np.exp(-0.5 * 1.0 * 4)
    np.testing.assert_allclose(wide.toarray()[0], [a / (a + b), 0, b / (a + b), 0])


def test_toy_by_hand_as_many_anchors_as_neighbours() -> None:
    """Members 0, 1, 2 at 1, 2 and 4; members 0 and 1 are in two anchors each, and only the nearest three of five count."""
    distance, near = np.array([[1.0, 2.0, 4.0]]), np.array([[0, 1, 2]])
    source, which = np.array([0, 1, 2, 3, 4]), np.array([0, 1, 0, 1, 2])
    weights, _ = anchor_weights(distance, near, source, which, np.ones(5), 5, 1.0)
    a, b = 1 - np.exp(-0.75 / 4), 1 - np.exp(-0.5 / 4)
    np.testing.assert_allclose(weights.toarray(), [np.array([a, b, a, 0, 0]) / (2 * a + b)])


def test_weights_that_are_all_0_become_even() -> None:
    distance, near = np.array([[1.0, 2.0], [1.0, 1.0], [0.0, 0.0]]), np.array([[0, 1]] * 3)
    weights, even = anchor_weights(distance, near, np.array([0, 1]), np.array([0, 1]), np.array([0.0, 1.0]), 2, 1.0)
    quarter = 1 - np.exp(-1 / 4)
    np.testing.assert_allclose(weights.toarray(), [[0.5, 0.5], [0.5, 0.5], [0, quarter / quarter]])
    assert even == 2


def test_cells_of_two_kinds_find_their_own() -> None:
    """Two kinds that share no gene: what a target cell gets is the mean of its own kind."""
    rng = np.random.default_rng(1)
    kind = np.repeat([0, 1], 20)
    blocks = np.kron(np.eye(2), np.ones(4))[kind]
    own = np.stack([1 - kind, kind], 1) * 30
    reference = sparse.csr_matrix(np.hstack([rng.poisson(20 * blocks + 1), own]))
    made = Anchors(components=1, k_anchor=3, k_score=5, k_weight=4)(
        reference, sparse.csr_matrix(rng.poisson(20 * blocks + 1))
    )
    assert (made.values[kind == 0, 1] == 0).all() and (made.values[kind == 1, 0] == 0).all()
    assert (made.values[kind == 0, 0] > 6).all() and (made.values[kind == 1, 1] > 6).all()


def test_filter_drops_anchors_and_a_wide_one_none() -> None:
    reference, seen = counts(n=60, c=50)
    kept = {k: Anchors(components=5, k_weight=5, k_filter=k)(reference, seen) for k in (None, 50, 6)}
    np.testing.assert_array_equal(kept[None].values, kept[50].values)
    assert kept[50].notes["anchors filtered out"] == 0
    found = kept[6].notes
    assert found["anchors filtered out"] > 0
    assert found["anchors"] + found["anchors filtered out"] == kept[None].notes["anchors"]


def test_too_few_anchors_for_the_weights() -> None:
    reference, seen = counts(n=60, c=20)
    with pytest.raises(
        ValueError, match=r"k_weight=50, but only \d+ of 20 target cells are in anchors \(\d+ anchors\); give"
    ):
        Anchors(components=5)(reference, seen)


def test_genes_that_do_not_vary_together() -> None:
    reference, seen = counts()
    with pytest.raises(ValueError, match="do not vary together"):
        Anchors()(reference, sparse.csr_matrix(np.full(seen.shape, 3)))


@pytest.mark.parametrize(
    ("text", "says"), [("k_weight=1", "2 or more"), ("sd=0.0", "above 0"), ("k_filter=0", "1 or more")]
)
def test_wrong_arguments(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        create_imputer(f"anchors[{text}]")
