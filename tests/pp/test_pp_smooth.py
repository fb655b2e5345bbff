"""Smoothing against a loop over spots."""

import numpy as np
import pytest

from histoweave.pp import grid8, knn, mean_operator, smooth


def brute(values, nbr, use):
    out = np.zeros(values.shape)
    for i in range(len(values)):
        members = [j for j in [i, *nbr[i]] if j >= 0 and use[j]]
        if members:
            out[i] = np.mean([values[j] for j in members], axis=0)
    return out


@pytest.mark.parametrize("drop", [0.0, 0.3, 1.0])
def test_smoothing_equals_a_loop(drop):
    rng = np.random.default_rng(3)
    rc = np.array([(r, c) for r in range(9) for c in range(7) if rng.random() < 0.8])
    nbr = grid8(rc)
    values = rng.normal(size=(len(rc), 5))
    use = rng.random(len(rc)) >= drop
    np.testing.assert_allclose(smooth(values, nbr, use=use), brute(values, nbr, use), atol=1e-12)
    if use.all():
        np.testing.assert_array_equal(smooth(values, nbr), smooth(values, nbr, use=use))


def test_constant_values_stay_and_types_are_kept():
    nbr = knn(np.random.default_rng(0).normal(size=(40, 2)), 5)
    np.testing.assert_allclose(smooth(np.full((40, 2), 3.0), nbr), 3.0)
    assert smooth(np.ones((40, 2), dtype=np.float32), nbr).dtype == np.float32
    assert smooth(np.ones((40, 2), dtype=np.int64), nbr).dtype == np.float64


def test_operator_without_self_leaves_lonely_spots_empty():
    weights = mean_operator(np.array([[1, -1], [0, -1], [-1, -1]]), include_self=False).toarray()
    np.testing.assert_array_equal(weights, [[0, 1, 0], [1, 0, 0], [0, 0, 0]])


def test_bad_input():
    with pytest.raises(ValueError, match="one row per spot"):
        smooth(np.zeros((3, 2)), np.zeros((4, 1), dtype=int))
    with pytest.raises(ValueError, match="points to rows"):
        smooth(np.zeros((3, 2)), np.full((3, 1), 3))
    with pytest.raises(ValueError, match="points to rows"):
        smooth(np.zeros((3, 2)), np.full((3, 1), -2))
    with pytest.raises(ValueError, match="expected integers"):
        smooth(np.zeros((3, 2)), np.zeros((3, 1)))
    with pytest.raises(ValueError, match="expected bool"):
        mean_operator(np.zeros((3, 1), dtype=int), use=np.ones(3))
