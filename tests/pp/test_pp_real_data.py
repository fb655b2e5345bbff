"""SpaRED's filters and counts per million, against plain calculations."""

import numpy as np
import pytest
from scipy import sparse
from tests.pp.spared_data import make_cohort

from histoweave.pp import log2p1, per_million, real_data_genes, spared_filter
from histoweave.pp.genes import auto_count
from histoweave.pp.real_data import detection


def test_the_real_data_rule_against_a_loop():
    rng = np.random.default_rng(0)
    for _ in range(50):
        g = int(rng.integers(1, 30))
        overall = rng.random(g)
        least = overall * rng.random(g).round(1)  # with ties
        order = sorted(range(g), key=lambda j: (-least[j], j))
        last = max((k for k in range(1, g + 1) if np.mean(overall[order[:k]]) >= 0.5), default=0)
        if last == 0:
            with pytest.raises(ValueError, match=r"no set of genes leaves 0\.5"):
                real_data_genes(least, overall, 0.5)
            continue
        assert set(np.flatnonzero(real_data_genes(least, overall, 0.5))) == set(order[:last])


def test_the_rule_goes_to_the_last_gene_not_the_first_failure():
    least, overall = np.array([0.9, 0.8, 0.7, 0.1]), np.array([0.9, 0.3, 1.0, 0.1])
    np.testing.assert_array_equal(real_data_genes(least, overall, 0.7), [True, True, True, False])


def test_filters_in_their_order():
    rng = np.random.default_rng(2)
    tables = [
        sparse.csr_matrix(rng.poisson(rng.uniform(0, 3, 12), (n, 12)) * (np.arange(n) != 4)[:, None]) for n in (30, 20)
    ]
    library = [np.asarray(t.sum(axis=1)).ravel() + 5.0 for t in tables]
    library[1][3] = 10.0  # bounds are strict
    got = spared_filter(tables, library, spot_counts=(10, 40), gene_counts=(10, 120), share=0.85)
    inside = [(x > 10) & (x < 40) for x in library]
    dense = [t.toarray()[m] for t, m in zip(tables, inside, strict=True)]
    least = np.min([(d > 0).mean(axis=0) for d in dense], axis=0)
    overall = (np.concatenate(dense) > 0).mean(axis=0)
    total = np.concatenate(dense).sum(axis=0)
    bounded = np.flatnonzero((total > 10) & (total < 120))
    real = bounded[real_data_genes(least[bounded], overall[bounded], 0.85)]
    assert 0 < len(real) < len(bounded) < 12
    np.testing.assert_array_equal(np.flatnonzero(got.genes), real)
    for mask, m, t in zip(got.spots, inside, tables, strict=True):
        np.testing.assert_array_equal(mask, m & (t.toarray()[:, real].sum(axis=1) > 0))
    np.testing.assert_allclose(got.detection.least, least)
    np.testing.assert_allclose(got.detection.overall, overall)
    assert got.dropped["spots out of bounds"] == 50 - sum(m.sum() for m in inside) >= 2
    assert got.dropped["genes by real data"] == len(bounded) - len(real)


def test_per_million():
    counts = make_cohort()[0].spots.X.toarray().astype(np.float64)
    counts[3] = 0
    base_pairs = np.random.default_rng(1).integers(100, 5000, 40)
    rate = counts / base_pairs
    expected = np.divide(rate * 1e6, rate.sum(axis=1, keepdims=True), out=np.zeros_like(rate), where=rate > 0)
    got = per_million(sparse.csr_matrix(counts), base_pairs)
    np.testing.assert_allclose(got.toarray(), expected, rtol=1e-12)
    np.testing.assert_allclose(log2p1(got).toarray(), np.log2(expected + 1), atol=1e-12)
    np.testing.assert_allclose(per_million(counts).toarray()[0], counts[0] / counts[0].sum() * 1e6)
    for bad, match in ((-counts, "negative"), (counts * np.nan, "NaN"), (counts[0], "1 dimensions")):
        with pytest.raises(ValueError, match=match):
            per_million(bad)
    for wrong in (base_pairs[1:], base_pairs * 0, base_pairs * np.nan):
        with pytest.raises(ValueError, match="lengths have shape"):
            per_million(counts, wrong)


def test_how_many_genes():
    assert [auto_count(n) for n in (5, 32, 320, 321, 5000)] == [5, 32, 32, 128, 128]


def test_nothing_to_filter():
    with pytest.raises(ValueError, match="there is none"):
        detection([])
    with pytest.raises(ValueError, match="totals are NaN"):
        spared_filter([sparse.csr_matrix(np.ones((2, 2)))], [np.array([np.nan, 1])])
