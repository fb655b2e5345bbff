"""Reliability against simulated counts whose signal and noise are known."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from histoweave.bench.metrics import pearson
from histoweave.bench.trust import relative_accuracy, reliability, split_half


def identity(x: np.ndarray) -> np.ndarray:
    return x


def poisson_section(n: int = 4000, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts, their rates and the true reliability: variance of the rate over variance of the count."""
    rng = np.random.default_rng(seed)
    mean, spread = np.array([0.5, 2.0, 5.0, 20.0, 3.0]), np.array([0.5, 0.5, 0.6, 0.3, 0.0])
    shape = 1 / np.maximum(spread, 1e-6) ** 2
    rates = np.where(spread > 0, rng.gamma(shape, mean / shape, size=(n, 5)), mean)
    variance = (spread * mean) ** 2
    return rng.poisson(rates), rates, variance / (variance + mean)


def test_recovers_the_known_reliability():
    counts, _, truth = poisson_section()
    found = split_half(counts, identity, repeats=5)
    np.testing.assert_allclose(found, truth, atol=0.05)
    assert abs(found[4]) < 0.06  # pure Poisson noise has none


def test_ceiling_is_what_the_true_rates_reach():
    counts, rates, _ = poisson_section(seed=1)
    found = reliability([counts], identity, list("ABCDE"), repeats=5)
    np.testing.assert_allclose(found["ceiling"][1:4], pearson(counts, rates)[1:4], atol=0.04)
    relative = relative_accuracy(pearson(counts, rates)[1:4], found["reliability"][1:4])
    np.testing.assert_allclose(relative, 1.0, atol=0.06)


def test_log_target_and_library_size_of_the_halves():
    def log_cpm(x: np.ndarray) -> np.ndarray:
        return np.log1p(100 * x / np.maximum(x.sum(axis=1, keepdims=True), 1))

    counts, rates, _ = poisson_section(seed=2)
    found = np.sqrt(np.clip(split_half(counts, log_cpm, repeats=5), 0, 1))
    reached = pearson(log_cpm(counts), log_cpm(rates))
    np.testing.assert_allclose(found[2:4], reached[2:4], atol=0.08)  # approximate: the target is not linear


def test_sparse_dense_and_integer_counts_agree_and_seeds_decide():
    counts, _, _ = poisson_section(n=200)
    dense = split_half(counts, identity, seed=3)
    for form in (sp.csr_matrix(counts), sp.csc_array(counts.astype(np.float32))):
        np.testing.assert_allclose(split_half(form, identity, seed=3), dense, rtol=1e-6)
    assert not np.array_equal(split_half(counts, identity, seed=4), dense)


def test_input_is_left_alone_and_halves_add_up():
    counts = sp.csr_matrix(poisson_section(n=50)[0].astype(np.float32))
    before, seen = counts.copy(), []

    def watch(x: np.ndarray) -> np.ndarray:
        seen.append(x.copy())
        return x

    split_half(counts, watch, repeats=2)
    assert (counts != before).nnz == 0
    whole, a, b, c, d = seen
    np.testing.assert_array_equal(a + b, whole)
    np.testing.assert_array_equal(c + d, whole)
    assert not np.array_equal(a, c)
    assert a.sum() == pytest.approx(whole.sum() / 2, rel=0.15)


def test_average_over_sections_flags_and_dropped_genes():
    one, two = poisson_section(seed=1, n=500)[0], poisson_section(seed=2, n=500)[0]
    one[:, 2] = 0  # absent from one section, measured in the other
    one[:, 1] = two[:, 1] = 0  # never seen
    found = reliability([one, two], identity, list("ABCDE"), repeats=3, seed=7)
    assert found["n_sections"].tolist() == [2, 0, 1, 2, 2]
    alone = split_half(two, identity, repeats=3, seed=[7, 1])
    assert found.loc["C", "reliability"] == pytest.approx(alone[2])
    both = np.mean([split_half(one, identity, repeats=3, seed=[7, 0])[3], alone[3]])
    assert found.loc["D", "reliability"] == pytest.approx(both)
    assert found.loc["B", ["reliability", "ceiling"]].isna().all()
    assert found["reliable"].tolist() == [v >= 0.3 for v in found["reliability"]]
    assert found["reliable"].tolist() == [False, False, True, True, False]


def test_a_gene_with_one_count_is_unreliable_not_unknown():
    counts = np.zeros((30, 2), int)
    counts[4, 0] = 1
    counts[:, 1] = np.arange(30)
    found = reliability([counts], identity, ["rare", "plain"])
    assert found.loc["rare", "reliability"] == 0.0
    assert not found.loc["rare", "reliable"]
    assert found.loc["plain", "reliability"] > 0.7


def test_each_section_may_have_its_own_transform_and_undefined_entries_are_left_out():
    counts, _, _ = poisson_section(n=300)
    empty = np.zeros((20, 5), int)

    def share(x: np.ndarray) -> np.ndarray:
        total = x.sum(axis=1, keepdims=True)
        return np.divide(x, total, out=np.full(x.shape, np.nan), where=total > 0)

    together = split_half(np.vstack([counts, empty]), share)
    assert np.isfinite(together).all()
    genes = list("ABCDE")
    found = reliability([counts, counts], [identity, np.log1p], genes)
    first, second = split_half(counts, identity, seed=[0, 0]), split_half(counts, np.log1p, seed=[0, 1])
    np.testing.assert_allclose(found["reliability"], np.clip((first + second) / 2, 0, 1))


def test_small_sections_cannot_diverge():
    rng = np.random.default_rng(0)
    values = [split_half(rng.poisson(1, (4, 20)), identity, repeats=1, seed=i) for i in range(20)]
    assert np.nanmin(values) >= -1
    assert np.nanmax(values) <= 1


def test_relative_accuracy():
    np.testing.assert_allclose(relative_accuracy([0.3, 0.3, 0.3], [0.25, 0.0, np.nan]), [0.6, np.nan, np.nan])
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        relative_accuracy([0.3], [1.5])


@pytest.mark.parametrize("bad", [np.array([[0.5, 1]]), np.array([[-1, 2]]), np.array([[np.nan, 2]])])
def test_only_raw_counts(bad):
    with pytest.raises(ValueError, match="raw counts"):
        split_half(bad, identity)


def test_bad_arguments():
    counts = np.ones((3, 2), int)
    with pytest.raises(ValueError, match="keep"):
        split_half(counts, lambda x: x[:, :1])
    with pytest.raises(ValueError, match="repeats"):
        split_half(counts, identity, repeats=0)
    with pytest.raises(ValueError, match="2 genes, but 3"):
        reliability([counts], identity, list("ABC"))
    with pytest.raises(ValueError, match="one transform for each"):
        reliability([counts], [identity, identity], list("AB"))
