"""Metrics against scipy and scikit-learn, by hand, and under masks; the order of averaging."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

from histoweave.bench import _genewise, metrics
from histoweave.bench.metrics import METRICS, ROWS, average, pcc_50, pcc_h_paper, per_unit, pooled_pcc, section_metrics


def example(n: int = 60, g: int = 7, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = np.round(rng.normal(2, 1, (n, g)), 1)  # rounded: many ties
    pred = 0.5 * truth + rng.normal(1, 1, (n, g))
    pred[:, 0] = np.round(pred[:, 0])
    return truth, pred, rng.random((n, g)) < 0.7


def rows_of(values: dict[tuple, float], metric: str = "pcc") -> pd.DataFrame:
    """Rows from {(model, seed, fold, patient, section, gene): value}."""
    table = pd.DataFrame([(*key, value) for key, value in values.items()])
    table.columns = ["model", "seed", "fold", "patient", "section", "gene", "value"]
    return table.assign(benchmark="b", metric=metric)[list(ROWS)]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("block", [1, 150, 2**16])
def test_agrees_with_scipy_and_sklearn(masked, block, monkeypatch):
    monkeypatch.setattr(_genewise, "_BLOCK", block)  # one gene, a few, or all genes at a time
    truth, pred, mask = example()
    frame, dropped = section_metrics(truth, pred, mask if masked else None)
    assert len(dropped) == 0
    assert tuple(frame.columns) == METRICS
    for j in range(truth.shape[1]):
        seen = mask[:, j] if masked else slice(None)
        t, p = truth[seen, j], pred[seen, j]
        expected = {
            "pcc": stats.pearsonr(t, p)[0],
            "spearman": stats.spearmanr(t, p)[0],
            "mse": mean_squared_error(t, p),
            "mse_offset": (t.mean() - p.mean()) ** 2,
            "mse_pattern": np.var(t - p),
            "mae": mean_absolute_error(t, p),
            "r2": r2_score(t, p),
        }
        np.testing.assert_allclose(
            frame.loc[j, list(expected)].to_numpy(float), list(expected.values()), atol=1e-10, rtol=0
        )


def test_single_functions_are_the_columns():
    truth, pred, mask = example()
    frame, _ = section_metrics(truth, pred, mask)
    names = {"pcc": "pearson"}
    for column in METRICS:
        np.testing.assert_array_equal(getattr(metrics, names.get(column, column))(truth, pred, mask), frame[column])


def test_float32_input_is_computed_in_float64():
    truth, pred, _ = example(n=400)
    single = (truth + 1000).astype(np.float32), (pred + 1000).astype(np.float32)
    expected = [
        stats.pearsonr(a.astype(float), b.astype(float))[0] for a, b in zip(single[0].T, single[1].T, strict=True)
    ]
    np.testing.assert_allclose(metrics.pearson(*single), expected, atol=1e-10, rtol=0)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_hidden_entries_never_matter(data):
    shape = data.draw(st.tuples(st.integers(2, 12), st.integers(1, 4)))
    number = st.integers(-50, 50).map(lambda i: i / 8)
    truth, pred = (data.draw(hnp.arrays(np.float64, shape, elements=number)) for _ in range(2))
    mask = data.draw(hnp.arrays(np.bool_, shape))
    garbage = st.sampled_from([np.nan, np.inf, -np.inf, 1e300, 0.0, -7.0])
    spoilt = [np.where(mask, x, data.draw(hnp.arrays(np.float64, shape, elements=garbage))) for x in (truth, pred)]
    clean, dropped = section_metrics(truth, pred, mask)
    dirty, dropped_too = section_metrics(*spoilt, mask)
    pd.testing.assert_frame_equal(clean, dirty, check_exact=True)
    np.testing.assert_array_equal(dropped, dropped_too)
    for j in range(shape[1]):  # and the value is that of the measured spots alone
        seen = mask[:, j]
        if seen.any():
            alone, _ = section_metrics(truth[seen, j : j + 1], pred[seen, j : j + 1])
            np.testing.assert_allclose(clean.iloc[j], alone.iloc[0], atol=1e-10)
        else:
            assert clean.iloc[j].isna().all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 10), st.floats(-100, 100))
def test_offset_and_pattern_add_up_and_a_shift_is_all_offset(seed, scale, shift):
    truth, pred, mask = example(n=20, g=3, seed=seed)
    a, _ = section_metrics(truth, pred * scale, mask)
    np.testing.assert_allclose(a["mse_offset"] + a["mse_pattern"], a["mse"], rtol=1e-10)
    b, _ = section_metrics(truth, pred * scale + shift, mask)
    np.testing.assert_allclose(a[["pcc", "mse_pattern"]], b[["pcc", "mse_pattern"]], rtol=1e-7, atol=1e-9)


def test_constant_truth_is_dropped_and_constant_prediction_scores_zero():
    truth = np.array([[1.0, 1.0, 0.0], [2.0, 1.0, 1.0], [4.0, 1.0, 3.0]])
    pred = np.array([[5.0, 1.0, 0.0], [5.0, 2.0, 1.0], [5.0, 3.0, 3.0]])
    frame, dropped = section_metrics(truth, pred, genes=["A", "B", "C"])
    assert list(dropped) == ["B"]
    assert frame.loc["A", ["pcc", "spearman"]].tolist() == [0.0, 0.0]
    assert frame.loc["A", "r2"] == pytest.approx(r2_score(truth[:, 0], pred[:, 0]))
    assert frame.loc["B", ["pcc", "spearman", "r2"]].isna().all()
    assert frame.loc["B", ["mse", "mae", "mse_offset"]].tolist() == pytest.approx([5 / 3, 1.0, 1.0])
    assert frame.loc["C", ["pcc", "spearman", "r2"]].tolist() == pytest.approx([1, 1, 1])


def test_rounding_noise_counts_as_constant():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(50, 1)).astype(np.float32)
    wobble = np.float32(3.0) + rng.integers(0, 3, (50, 1)).astype(np.float32) * np.spacing(np.float32(3.0))
    assert np.ptp(wobble) > 0
    assert metrics.pearson(truth, wobble)[0] == 0.0
    assert np.isnan(metrics.spearman(wobble, truth)[0])
    assert metrics.pearson(truth.astype(float), wobble.astype(float))[0] != 0.0  # float64 can hold such a spread


def test_a_gene_seen_in_one_spot_is_dropped():
    truth, pred, mask = example(n=5, g=2)
    mask[:] = False
    mask[2] = True
    frame, dropped = section_metrics(truth, pred, mask)
    assert list(dropped) == [0, 1]
    assert frame["pcc"].isna().all()
    np.testing.assert_allclose(frame["mse"], (truth[2] - pred[2]) ** 2)


def test_pooled_against_within_section_by_hand():
    # Gene 0: the section means are right, nothing inside is. Gene 1: right inside, offsets reversed. Gene 2: perfect.
    truth = [
        np.array([[0, 0, 1], [2, 1, 2], [0, 2, 3], [2, 3, 4.0]]),
        np.array([[10, 10, 5], [12, 11, 6], [10, 12, 7], [12, 13, 8.0]]),
    ]
    pred = [
        np.array([[0, 10, 1], [0, 11, 2], [2, 12, 3], [2, 13, 4.0]]),
        np.array([[10, 0, 5], [10, 1, 6], [12, 2, 7], [12, 3, 8.0]]),
    ]
    within = np.array([section_metrics(t, p)[0]["pcc"] for t, p in zip(truth, pred, strict=True)])
    np.testing.assert_allclose(within, [[0, 1, 1], [0, 1, 1]], atol=1e-12)
    pooled = pooled_pcc(truth, pred)
    # within-section sum of squares 4 per section of gene 0, between 8 * 5**2: r = 200 / 208; gene 1: (10 - 200) / 210
    np.testing.assert_allclose(pooled, [200 / 208, -190 / 210, 1.0], atol=1e-12)


def test_pooled_takes_masks_and_refuses_uneven_lists():
    truth, pred, mask = example()
    halves = [slice(0, 25), slice(25, None)]
    found = pooled_pcc([truth[h] for h in halves], [pred[h] for h in halves], [mask[h] for h in halves])
    np.testing.assert_allclose(found, metrics.pearson(truth, pred, mask), atol=1e-12)
    with pytest.raises(ValueError, match="2 truths, 1 predictions"):
        pooled_pcc([truth, truth], [pred])


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t, p, m: (t[:, :2], p, None), "must both be"),
        (lambda t, p, m: (t[:0], p[:0], None), "at least one spot"),
        (lambda t, p, m: (t, p, m.astype(int)), "must be boolean"),
        (lambda t, p, m: (t, p, m[:, :2]), "must be boolean of shape"),
        (lambda t, p, m: (t, p * np.nan, m), "prediction has a measured entry that is NaN"),
        (lambda t, p, m: (t + np.inf, p, None), "truth has a measured entry"),
        (lambda t, p, m: (t, p * 1e200, None), "beyond"),
        (lambda t, p, m: (t.astype(str), p, None), "real numbers"),
    ],
)
def test_bad_arrays(change, message):
    with pytest.raises(ValueError, match=message):
        section_metrics(*change(*example()))


def test_gene_names_must_fit():
    truth, pred, _ = example(g=3)
    with pytest.raises(ValueError, match="need 3 distinct gene names"):
        section_metrics(truth, pred, genes=["A", "A", "B"])


def test_to_rows_has_one_value_per_gene_and_metric():
    truth, pred, _ = example(g=3)
    frame, _ = section_metrics(truth, pred, genes=["A", "B", "C"])
    rows = metrics.to_rows(frame, benchmark="b", model="m", seed=1, fold=0, patient="P", section="P1")
    assert list(rows.columns) == list(ROWS)
    assert len(rows) == 3 * len(METRICS)
    back = rows.pivot(index="gene", columns="metric", values="value")[list(METRICS)]
    np.testing.assert_array_equal(back, frame)


UNEVEN = {  # patient P has two sections, one with a dropped gene; patient Q has one
    ("m", 0, "f", "P", "P1", "A"): 0.2,
    ("m", 0, "f", "P", "P1", "B"): 0.4,
    ("m", 0, "f", "P", "P2", "A"): 0.8,
    ("m", 0, "f", "P", "P2", "B"): np.nan,
    ("m", 0, "f", "Q", "Q1", "A"): 0.0,
    ("m", 0, "f", "Q", "Q1", "B"): 0.2,
}


def test_strict_order_of_averaging_by_hand():
    line = average(rows_of(UNEVEN)).iloc[0]
    # sections 0.3, 0.8, 0.1; patients 0.55, 0.1
    assert line["mean"] == pytest.approx(0.325)
    assert line["sd"] == pytest.approx(0.225)
    assert (line["n"], line["n_seeds"], line["sd_seeds"]) == (2, 1, 0.0)


def test_paper_order_of_averaging_by_hand():
    line = average(rows_of(UNEVEN), protocol="paper").iloc[0]
    # one fold: gene A (0.2 + 0.8 + 0) / 3, gene B (0.4 + 0.2) / 2
    assert line["mean"] == pytest.approx((1 / 3 + 0.3) / 2)
    assert (line["sd"], line["n"]) == (0.0, 1)


def test_paper_spread_is_over_folds():
    values = {("m", 0, f, f"p{f}", f"s{f}", "A"): v for f, v in enumerate([0.1, 0.3, 0.8])}
    line = average(rows_of(values), "pcc", protocol="paper").iloc[0]
    assert line["mean"] == pytest.approx(0.4)
    assert line["sd"] == pytest.approx(np.std([0.1, 0.3, 0.8]))
    assert line["n"] == 3


def test_seeds_are_averaged_before_the_spread_over_patients():
    values = {("m", s, 0, p, p, "A"): v for s, p, v in [(0, "P", 0.1), (0, "Q", 0.5), (1, "P", 0.5), (1, "Q", 0.3)]}
    line = average(rows_of(values)).iloc[0]
    assert line["mean"] == pytest.approx(0.35)
    assert line["sd"] == pytest.approx(np.std([0.3, 0.4]))
    assert (line["n"], line["n_seeds"]) == (2, 2)
    assert line["sd_seeds"] == pytest.approx(np.std([0.3, 0.4]))
    assert len(per_unit(rows_of(values))) == 4


def test_models_and_metrics_keep_apart():
    rows = pd.concat(
        [
            rows_of({("a", 0, 0, "P", "P", "A"): 0.1}),
            rows_of({("a", 0, 0, "P", "P", "A"): 2.0}, "mse"),
            rows_of({("b", 0, 0, "P", "P", "A"): 0.3}),
        ]
    )
    table = average(rows).set_index(["model", "metric"])["mean"]
    assert table.to_dict() == {("a", "pcc"): 0.1, ("a", "mse"): 2.0, ("b", "pcc"): 0.3}
    assert len(average(rows, "mse")) == 1


def test_average_refuses_tables_that_would_mislead():
    rows = rows_of(UNEVEN)
    with pytest.raises(ValueError, match="holds a value twice"):
        average(pd.concat([rows, rows.tail(1)]))
    with pytest.raises(ValueError, match="'patient'"):
        average(rows.assign(patient=None))
    with pytest.raises(ValueError, match="lacks"):
        average(rows.drop(columns="fold"))
    with pytest.raises(ValueError, match="'psnr'"):
        average(rows, "psnr")
    with pytest.raises(ValueError, match="'pooled'"):
        average(rows, protocol="pooled")


def two_folds() -> pd.DataFrame:
    table = {
        "m": {0: [0.9, 0.1, 0.5, np.nan], 1: [0.0, 0.6, 0.5, 0.7]},
        "k": {0: [0.1, 0.2, 0.3, np.nan], 1: [0.4, 0.3, 0.2, 0.1]},
    }
    return rows_of(
        {
            (model, 0, fold, f"p{fold}", f"s{fold}", gene): value
            for model, folds in table.items()
            for fold, values in folds.items()
            for gene, value in zip("ABCD", values, strict=True)
        }
    )


def test_pcc_50_scores_all_models_on_the_same_genes():
    found = pcc_50(two_folds(), {0: ["A", "C"], 1: ["B", "C"]}).set_index("model")
    assert found["metric"].unique().tolist() == ["pcc_50"]
    assert found.loc["m", "mean"] == pytest.approx(np.mean([0.7, 0.55]))
    assert found.loc["m", "sd"] == pytest.approx(np.std([0.7, 0.55]))
    assert found.loc["k", "mean"] == pytest.approx(np.mean([0.2, 0.25]))


@pytest.mark.parametrize(
    "lists, message",
    [
        ({0: ["A"]}, r"no gene list for fold\(s\) \[1\]"),
        ({0: ["A", "A"], 1: ["B"]}, "twice"),
        ({0: ["A"], 1: ["Z"]}, "have no row.*'Z'"),
    ],
)
def test_pcc_50_bad_lists(lists, message):
    with pytest.raises(ValueError, match=message):
        pcc_50(two_folds(), lists)


def test_pcc_h_paper_by_hand():
    # Model m, ranks in fold 0: A 4, B 2, C 3, D 1 (NaN); fold 1: A 1, B 3, C 2, D 4. Means 2.5 each: the first two win.
    # Model k, fold 0: 2 3 4 1; fold 1: 4 3 2 1. Means 3, 3, 3, 1: again A and B.
    found = pcc_h_paper(two_folds(), top=2).set_index("model")
    assert found["metric"].unique().tolist() == ["pcc_h_paper"]
    assert found.loc["m", "mean"] == pytest.approx(np.mean([0.5, 0.3]))
    assert found.loc["m", "sd"] == pytest.approx(np.std([0.5, 0.3]))
    assert found.loc["k", "mean"] == pytest.approx(np.mean([0.15, 0.35]))
    assert found.loc["k", "n"] == 2


def test_pcc_h_paper_chooses_per_model_and_averages_sections_first():
    values = {
        ("m", 0, 0, "P", s, g): v for s, g, v in [("1", "A", 0.9), ("2", "A", 0.1), ("1", "B", 0.6), ("2", "B", 0.6)]
    }
    values |= {("k", 0, 0, "P", s, g): v for s in "12" for g, v in [("A", 0.3), ("B", 0.2)]}
    found = pcc_h_paper(rows_of(values), top=1).set_index("model")["mean"]
    assert found.to_dict() == pytest.approx({"m": 0.6, "k": 0.3})  # B for m, A for k


def test_pcc_h_paper_with_fewer_genes_than_asked_uses_all():
    rows = two_folds()
    all_genes = average(rows, "pcc", protocol="paper").set_index("model")["mean"]
    pd.testing.assert_series_equal(pcc_h_paper(rows).set_index("model")["mean"], all_genes)
