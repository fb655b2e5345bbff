"""Differential expression and signatures: against scipy, under masks, and on a phantom whose labels are known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import (
    combine_pvalues,
    false_discovery_control,
    hypergeom,
    mannwhitneyu,
    ranksums,
    spearmanr,
    ttest_ind,
)
from sklearn.metrics import roc_auc_score
from tests.bio.made import of_phantom

from histoweave.bio import (
    agreement,
    auc,
    combined,
    contrast,
    differential,
    differential_of,
    parts,
)
from histoweave.data.phantom import Phantom, phantom


@pytest.fixture
def spots() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Counts with many ties (90, 12), the two sets and a mask."""
    rng = np.random.default_rng(0)
    values = rng.poisson(np.linspace(0.5, 6, 12), (90, 12)).astype(float)
    kind = rng.integers(0, 3, 90)
    values[kind == 0, :4] += 1
    return values, kind == 0, kind == 1, rng.random((90, 12)) < 0.85


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("test", ["welch", "wilcoxon"])
def test_statistics_are_scipys(spots: tuple[np.ndarray, ...], test: str, masked: bool) -> None:
    values, a, b, mask = spots
    seen = mask if masked else np.ones_like(mask)
    table = differential(np.where(seen, values, np.nan), a, b, test=test)  # type: ignore[arg-type]
    for g in range(values.shape[1]):
        x, y = values[a & seen[:, g], g], values[b & seen[:, g], g]
        if test == "welch":
            found = ttest_ind(x, y, equal_var=False)
            np.testing.assert_allclose(table.loc[g, ["statistic", "p"]].to_numpy(float), found, rtol=1e-9)
        else:
            found = mannwhitneyu(x, y, use_continuity=False, method="asymptotic")
            assert table["p"][g] == pytest.approx(found.pvalue, rel=1e-9)
            assert np.sign(table["statistic"][g]) == np.sign(found.statistic - len(x) * len(y) / 2)
        assert table["effect"][g] == pytest.approx(x.mean() - y.mean(), abs=1e-12)
    np.testing.assert_allclose(table["q"], false_discovery_control(table["p"]), rtol=1e-12)


def test_without_ties_it_is_scipys_rank_sum(spots: tuple[np.ndarray, ...]) -> None:
    values, a, b, _ = spots
    distinct = values + np.random.default_rng(1).random(values.shape)
    table = differential(distinct, a, b, test="wilcoxon")
    np.testing.assert_allclose(table[["statistic", "p"]].to_numpy().T, ranksums(distinct[a], distinct[b]), rtol=1e-9)


@pytest.mark.parametrize("test", ["welch", "wilcoxon"])
def test_what_cannot_be_tested_is_not(test: str) -> None:
    values = np.random.default_rng(2).normal(size=(20, 4))
    values[:, 1] = np.float32(0.1)
    values[:, 2] = np.arange(20) < 8
    values[3:, 3] = np.nan
    a = np.arange(20) < 8
    table = differential(values, a, ~a, test=test)  # type: ignore[arg-type]
    assert list(table["p"].isna()) == [False, True, False, True]
    assert table["effect"][1] == 0
    assert table["p"][2] < 0.001
    assert np.isnan(table["effect"][3])
    with pytest.raises(ValueError, match="8 common spots"):
        differential(values, a, a)


def test_auc_is_sklearns() -> None:
    rng = np.random.default_rng(3)
    scores, a = rng.integers(0, 5, 60).astype(float), rng.random(60) < 0.4
    assert auc(scores, a, ~a) == pytest.approx(roc_auc_score(a, scores))
    scores[:3] = np.nan
    assert auc(scores, a, ~a) == pytest.approx(roc_auc_score(a[3:], scores[3:]))
    assert np.isnan(auc(scores, a, np.zeros(60, dtype=bool)))


def test_labels_choose_two_sets() -> None:
    labels = pd.Series(["t", "t", "s", None, "f", "t"], name="label")
    found = contrast(labels)
    assert (found.a, found.b, found.testable) == ("t", "all others", False)
    assert list(found.is_a) == [True, True, False, False, False, True]
    assert list(found.is_b) == [False, False, True, False, True, False]
    assert list(contrast(labels, "s", "t").is_b) == [True, True, False, False, False, True]
    assert contrast(labels[:3]).b == "s"
    with pytest.raises(ValueError, match=r"no spot is labelled 'T'; the labels are 't'"):
        contrast(labels, "T")
    with pytest.raises(ValueError, match="column 'label' labels none of the 2 spots"):
        contrast(pd.Series([None, None], name="label"))


def test_agreement_counts_the_common_top_against_chance() -> None:
    genes = pd.Index([f"G{i}" for i in range(40)])
    rng = np.random.default_rng(4)
    statistic = rng.normal(size=40)
    table = pd.DataFrame({"effect": statistic / 2, "statistic": statistic, "p": 0.5, "q": 0.5}, index=genes)
    same = agreement(table, table, top=10)
    assert (same.common, same.by_chance, same.same_sign, same.effect_spearman) == (10, 2.5, 1.0, pytest.approx(1.0))
    assert same.p == pytest.approx(hypergeom.pmf(10, 40, 10, 10))
    other = table.assign(statistic=rng.permutation(statistic), effect=rng.permutation(statistic))
    found = agreement(table, other, top=10)
    best = [set(genes[np.argsort(-t["statistic"].abs().to_numpy())[:10]]) for t in (table, other)]
    assert found.common == len(best[0] & best[1])
    assert found.effect_spearman == pytest.approx(spearmanr(table["effect"], other["effect"])[0])
    assert agreement(table, table, top=30).top == 20  # half of the genes
    silent = table.assign(effect=0.0, statistic=np.nan, p=np.nan)
    assert (agreement(table, silent).common, np.isnan(agreement(table, silent).effect_spearman)) == (0, True)
    with pytest.raises(ValueError, match="in different order"):
        agreement(table, table[::-1])


@pytest.fixture(scope="module")
def labelled() -> Phantom:
    """Sections large enough for a contrast."""
    genes = {"local": 12, "neighbourhood": 4, "global": 4, "noise": 40}
    return phantom(n_patients=2, spots=(12, 12), genes=genes, um_per_px=200 / 16, seed=5)  # type: ignore[arg-type]


@pytest.mark.parametrize("test", ["welch", "wilcoxon"])
def test_differences_of_a_phantom_are_found_on_truth_and_kept_by_a_good_prediction(
    labelled: Phantom, test: str
) -> None:
    genes = labelled.genes
    factor = genes["factor"][genes["family"] == "local"].iloc[0]
    driven = genes.index[genes["factor"] == factor]
    good, bad = of_phantom(labelled, 0.9), of_phantom(labelled, 0.0)
    for part, poor in zip(parts(good), parts(bad), strict=True):
        values = labelled.factors[part.section][factor]
        label = pd.Series(np.where(values > values.median(), "high", "low"), name="label")
        sets = contrast(label, "high", "low")
        truth, pred = differential_of(part, sets, test=test)  # type: ignore[arg-type]
        found = truth.index[truth["q"] < 0.05]
        assert len(driven.intersection(found)) >= 0.75 * len(driven)
        noise = genes.index[genes["family"] == "noise"]
        assert (truth.loc[noise, "p"] < 0.05).mean() < 0.2
        signs = np.sign(genes.loc[driven, "gain"])
        assert (np.sign(truth.loc[driven, "effect"]) == signs).mean() > 0.9
        kept = agreement(truth, pred, top=len(driven))
        assert kept.common > 2 * kept.by_chance
        assert kept.p < 0.01
        assert kept.same_sign == 1.0
        chance = agreement(*differential_of(poor, sets, test=test), top=len(driven))  # type: ignore[arg-type]
        assert chance.common < kept.common
        assert abs(chance.effect_spearman) < 0.5


# -- signatures -------------------------------------------------------------------------------------------------------


def test_sections_are_combined_as_stouffer_does(spots: tuple[np.ndarray, ...]) -> None:
    """Three sections, of which the last lacks a gene and cannot test another."""
    values, a, b, _ = spots
    names = pd.Index([f"G{g}" for g in range(12)])
    third = values[60:].copy()
    third[:, 1] = 3.0  # constant: not tested
    rows = (slice(0, 45), slice(45, 90), slice(60, 90))
    tables = {
        str(i): differential(third if i == 2 else values[at], a[at], b[at], genes=names) for i, at in enumerate(rows)
    }
    tables["2"] = tables["2"].drop(index="G0")
    found = combined(tables)
    assert found.index.tolist() == names.tolist()
    assert found["sections"].tolist() == [2, 2] + [3] * 10
    for gene in names:
        told = [t.loc[gene] for t in tables.values() if gene in t.index and np.isfinite(t.loc[gene, "p"])]
        one_sided = [row["p"] / 2 if row["statistic"] > 0 else 1 - row["p"] / 2 for row in told]
        expected = combine_pvalues(one_sided, method="stouffer")
        assert found.loc[gene, "statistic"] == pytest.approx(expected.statistic, rel=1e-9)
        effect = np.mean([row["effect"] for row in told])
        assert found.loc[gene, "effect"] == pytest.approx(effect, rel=1e-12)
        assert found.loc[gene, "p"] == pytest.approx(2 * min(expected.pvalue, 1 - expected.pvalue), rel=1e-6)
        assert found.loc[gene, "same_sign"] == np.mean([np.sign(row["effect"]) == np.sign(effect) for row in told])
    np.testing.assert_allclose(found["q"], false_discovery_control(found["p"]), rtol=1e-12)


def test_combining_nothing_is_an_error_and_what_was_never_tested_stays_open() -> None:
    flat = differential(np.ones((20, 2)), np.arange(20) < 10, np.arange(20) >= 10)
    found = combined({"a": flat, "b": flat})
    assert found[["effect", "statistic", "p", "q", "same_sign"]].isna().all(axis=None)
    assert found["sections"].eq(0).all()
    sure = flat.assign(effect=1.0, statistic=np.inf, p=0.0)
    assert np.isfinite(combined({"a": sure})["statistic"]).all()  # an exact separation is no infinite deviate
    with pytest.raises(ValueError, match="no table"):
        combined({})
