"""Sign-flip test, Holm, comparison over patients, intervals and the permutation null."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as sps
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import DescrStatsW

from histoweave.bench import stats
from histoweave.bench.metrics import ROWS, section_metrics
from histoweave.bench.stats import compare, holm, mean_interval, permutation_null, sign_flip


def brute_force(d: np.ndarray) -> float:
    sums = [abs(np.dot(signs, d)) for signs in itertools.product([1, -1], repeat=len(d))]
    return float(np.mean(np.array(sums) >= abs(d.sum()) * (1 - 1e-12)))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-20, 20).map(lambda i: i / 10), min_size=6, max_size=9))
def test_sign_flip_is_the_exact_test(values):
    d = np.array(values)  # tenths: sums tie often, and not exactly in floating point
    found = sign_flip(d)
    assert found.exact
    assert found.testable
    sums = [abs(sum(s * v for s, v in zip(signs, np.rint(d * 10).astype(int), strict=True)))
            for signs in itertools.product([1, -1], repeat=len(d))]  # fmt: skip
    assert found.p == np.mean(np.array(sums) >= abs(np.rint(d * 10).astype(int).sum()))


@pytest.mark.parametrize("n", [6, 8, 11])
def test_sign_flip_agrees_with_scipy(n):
    d = np.random.default_rng(n).normal(0.4, 1, n)
    reference = sps.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip(d).p == pytest.approx(reference.pvalue, abs=1e-12)
    assert sign_flip(d).p == pytest.approx(brute_force(d), abs=1e-12)


def test_unanimous_patients_reach_the_smallest_p():
    found = sign_flip(np.full(8, 0.1))
    assert found.p == found.p_min == 2 / 2**8
    assert sign_flip(np.zeros(8)).p == 1.0
    assert sign_flip(-np.full(8, 0.1)).p == found.p


def test_sixteen_patients_are_exact_and_more_are_drawn():
    d = np.random.default_rng(0).normal(0.5, 1, 17)
    exact = sign_flip(d[:16])
    assert exact.exact
    assert exact.p == pytest.approx(brute_force(d[:16]), abs=1e-12)
    drawn, again, other = sign_flip(d), sign_flip(d), sign_flip(d, seed=1)
    assert not drawn.exact
    assert drawn == again
    assert drawn.p != other.p
    assert drawn.p == pytest.approx(brute_force(d), abs=5 * np.sqrt(0.25 / 100_000))
    assert drawn.p_min == 2 / 2**17
    assert sign_flip(np.ones(40)).p == 1 / 100_001 == sign_flip(np.ones(40)).p_min


def test_chunks_of_random_signs_do_not_lose_draws(monkeypatch):
    monkeypatch.setattr(stats, "_CHUNK", 1000)
    assert sign_flip(np.zeros(20), draws=777).p == 1.0


@pytest.mark.parametrize("n", [0, 1, 5])
def test_too_few_patients_are_not_testable(n):
    found = sign_flip(np.ones(n))
    assert not found.testable
    assert np.isnan(found.p)
    assert str(found).startswith(f"not testable (n = {n} patients")


def test_sentence_of_a_tested_difference():
    assert (
        str(sign_flip(np.full(6, 0.25))) == "+0.2500, p = 0.03125 (exact sign flip, n = 6 patients, smallest p 0.031)"
    )


def test_sign_flip_refuses_missing_differences():
    with pytest.raises(ValueError, match="finite, one per patient"):
        sign_flip([0.1, np.nan, 0.2])


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_agrees_with_statsmodels(p):
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1], atol=1e-12)


def test_holm_does_not_count_what_was_not_tested():
    np.testing.assert_allclose(holm([0.02, np.nan, 0.01]), [0.02, np.nan, 0.02])


def table(scores: dict[str, list[float]], metric: str = "pcc", seeds: int = 1, sections: int = 1) -> pd.DataFrame:
    """Rows whose patient value is the score; sections and seeds scatter around it without moving it."""
    lines = [
        ("b", model, seed, i, f"p{i}", f"p{i}s{k}", gene, metric, value + shift + 0.01 * (seed - (seeds - 1) / 2))
        for model, values in scores.items()
        for i, value in enumerate(values)
        for seed in range(seeds)
        for k in range(sections)
        for gene, shift in [("A", 0.1), ("B", -0.1)]
    ]
    return pd.DataFrame(lines, columns=list(ROWS))


RIDGE = [0.1, 0.2, 0.15, 0.3, 0.25, 0.2, 0.1]
SCORES = {
    "better": [v + 0.05 for v in RIDGE],
    "ridge": RIDGE,
    "worse": [v - 0.02 * (i + 1) for i, v in enumerate(RIDGE)],
    "alike": [v + s for v, s in zip(RIDGE, [0.01, -0.01, 0.02, -0.02, 0.01, 0.0, -0.01], strict=True)],
}


def test_compare_pairs_patients_after_averaging_seeds_and_sections():
    found = compare(table(SCORES, seeds=3, sections=2))
    assert found["model"].tolist() == ["better", "alike", "worse"]
    assert found["n_patients"].unique().tolist() == [7]
    expected = {m: np.array(v) - np.array(RIDGE) for m, v in SCORES.items() if m != "ridge"}
    for line in found.itertuples():
        assert line.difference == pytest.approx(expected[line.model].mean())
        assert line.p == pytest.approx(brute_force(np.round(expected[line.model], 9)))
        assert line.p_min == 2 / 2**7
    np.testing.assert_allclose(found["p_holm"], multipletests(found["p"], method="holm")[1])


def test_lower_error_comes_first():
    assert compare(table(SCORES, "mse"), "mse")["model"].tolist() == ["worse", "alike", "better"]


def test_few_patients_are_not_ranked():
    few = {model: values[:5] for model, values in SCORES.items()}
    found = compare(table(few))
    assert found["model"].tolist() == ["alike", "better", "worse"]  # by name
    assert not found["testable"].any()
    assert found[["p", "p_holm", "p_min"]].isna().all(axis=None)
    assert found["note"].str.startswith("not testable (n = 5").all()


def test_benchmarks_are_compared_apart():
    both = pd.concat([table(SCORES), table({m: SCORES[m] for m in ("ridge", "alike")}).assign(benchmark="c")])
    found = compare(both).set_index(["benchmark", "model"])
    assert len(found) == 4
    assert found.loc[("c", "alike"), "p_holm"] == found.loc[("c", "alike"), "p"]


def test_compare_refuses_uneven_data_and_unknown_names():
    rows = table(SCORES)
    with pytest.raises(ValueError, match=r"'lasso'.*'better'"):
        compare(rows, reference="lasso")
    with pytest.raises(ValueError, match="'ssim'"):
        compare(rows, "ssim")
    gone = (rows["model"] == "worse") & (rows["patient"] == "p3") & (rows["gene"] == "A")
    with pytest.raises(ValueError, match=r"different data.*'p3'.*\['worse'\]"):
        compare(rows[~gone])
    rows.loc[gone, "value"] = np.nan  # dropped for one model only
    with pytest.raises(ValueError, match="different data"):
        compare(rows)
    rows.loc[(rows["patient"] == "p3") & (rows["gene"] == "A"), "value"] = np.nan  # dropped for all
    assert compare(rows)["n_patients"].unique().tolist() == [7]


def test_mean_interval_agrees_with_statsmodels():
    x = np.array([0.1, 0.4, 0.2, 0.35])
    assert mean_interval(np.append(x, np.nan)) == pytest.approx((x.mean(), *DescrStatsW(x).tconfint_mean()))
    assert np.isnan(mean_interval([0.3])[1:]).all()
    with pytest.raises(ValueError, match="level"):
        mean_interval(x, level=95)


def two_sections(signal: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    section = np.repeat([0, 1, 2], [40, 30, 50])
    truth = rng.normal(size=(120, 12)) + 5 * section[:, None]  # large offsets between sections
    pred = signal * truth + rng.normal(size=truth.shape) + 5 * section[:, None]
    truth[section == 1, 0] = 1.0
    pred[:, 1] = 0.0
    return truth, pred, section


def test_null_holds_noise_and_not_signal():
    noise = permutation_null(*two_sections(0.0))
    assert noise.inside
    assert noise.low < 0 < noise.high
    assert "inside the 99% null" in str(noise)
    assert not permutation_null(*two_sections(0.5)).inside


def test_observed_value_is_the_strict_average():
    truth, pred, section = two_sections(0.3)
    per_section = [section_metrics(truth[section == s], pred[section == s])[0]["pcc"].mean() for s in range(3)]
    assert permutation_null(truth, pred, section, draws=5).observed == pytest.approx(np.mean(per_section), abs=1e-12)
    patient = np.where(section < 2, "P", "Q")
    expected = np.mean([np.mean(per_section[:2]), per_section[2]])
    found = permutation_null(truth, pred, section, patient_index=patient, draws=5)
    assert found.observed == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("chunk", [64, 2**22])
def test_null_is_that_of_shuffled_rows(chunk, monkeypatch):
    monkeypatch.setattr(stats, "_CHUNK", chunk)
    truth, pred, _ = two_sections(0.3)
    few, many = (stats._null_of_section(truth[:40], pred[:40], draws, np.random.default_rng(3)) for draws in (9, 30))
    for draws, found in ((9, few), (30, many)):  # 40 spots: shuffled directly for 9 draws, through the product for 30
        order = np.tile(np.arange(40, dtype=np.int32), (draws, 1))
        np.random.default_rng(3).permuted(order, axis=1, out=order)
        expected = [section_metrics(truth[:40][o], pred[:40])[0]["pcc"].mean() for o in order]
        np.testing.assert_allclose(found[1:], expected, atol=1e-12)


def test_null_covers_what_it_claims():
    rng = np.random.default_rng(5)
    section = np.repeat([0, 1], 30)
    inside = [
        permutation_null(*rng.normal(size=(2, 60, 4)), section, draws=300, seed=i, level=0.8).inside for i in range(200)
    ]
    assert sps.binomtest(sum(inside), 200, 0.8).pvalue > 0.001


def test_null_width_is_that_of_independent_correlations():
    rng = np.random.default_rng(0)
    found = permutation_null(*rng.normal(size=(2, 200, 50)), np.zeros(200, int), draws=4000, level=0.95)
    width = 2 * 1.96 / np.sqrt(199 * 50)
    assert found.high - found.low == pytest.approx(width, rel=0.1)


def test_null_refuses_what_it_cannot_answer():
    truth, pred, section = two_sections(0.0)
    with pytest.raises(ValueError, match="agree on spots"):
        permutation_null(truth, pred, section[:-1])
    with pytest.raises(ValueError, match="finite"):
        permutation_null(truth, np.where(pred == 0, np.nan, pred), section)
    with pytest.raises(ValueError, match="nothing to correlate"):
        permutation_null(np.ones_like(truth), pred, section)
    with pytest.raises(ValueError, match="more than one patient"):
        permutation_null(truth, pred, section, patient_index=np.arange(len(section)))
    with pytest.raises(ValueError, match="level"):
        permutation_null(truth, pred, section, level=99)
