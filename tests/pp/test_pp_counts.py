"""Targets: against the formulas of the papers written out, and back to counts."""

import json

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import sparse

from histoweave.pp import PRESETS, NotInvertible, Target, grid8

RC = np.array([(r, c) for r in range(5) for c in range(6)])


@pytest.fixture
def counts():
    table = np.random.default_rng(0).negative_binomial(2, 0.3, size=(len(RC), 7)).astype(np.float32)
    table[4] = 0  # silent in the panel
    return table


@pytest.fixture
def library(counts):
    total = counts.sum(axis=1).astype(float) + 11.0
    total[9] = 0  # nothing measured at all
    counts[9] = 0
    return total


def by_hand(counts, log, smoothed):
    """Library size 10,000 over the panel, pseudo count, logarithm, then 3 x 3 means: spot by spot."""
    values = np.zeros(counts.shape)
    for i, row in enumerate(counts.astype(float)):
        if row.sum() > 0:
            values[i] = log(row / row.sum() * 10_000 + 1)
    if not smoothed:
        return values
    out = np.empty_like(values)
    for i, (r, c) in enumerate(RC):
        window = [j for j, (r2, c2) in enumerate(RC) if abs(r - r2) <= 1 and abs(c - c2) <= 1]
        out[i] = values[window].mean(axis=0)
    return out


@pytest.mark.parametrize(
    ("name", "log", "smoothed"),
    [("triplex-paper", np.log10, True), ("triplex-2025", np.log, True), ("histogene", np.log10, False)],
)
def test_panel_presets_follow_the_papers(counts, library, name, log, smoothed):
    target = Target.preset(name)
    y, ok = target.transform(counts, library, target.neighbors(RC))
    expected = by_hand(counts, log, smoothed)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y[ok], expected[ok], rtol=1e-6, atol=1e-6)
    assert list(np.flatnonzero(~ok)) == [9]  # the silent spot counts as 0, the empty one does not count


def test_masked_spots_enter_no_mean(counts, library):
    target = Target.parse("triplex-paper[empty=mask]")
    y, ok = target.transform(counts, library, target.neighbors(RC))
    assert list(np.flatnonzero(~ok)) == [4, 9]
    assert (y[~ok] == 0).all()
    values = by_hand(counts, np.log10, False)
    for i, (r, c) in enumerate(RC):
        window = [j for j, (r2, c2) in enumerate(RC) if abs(r - r2) <= 1 and abs(c - c2) <= 1 and ok[j]]
        if ok[i]:
            np.testing.assert_allclose(y[i], values[window].mean(axis=0), rtol=1e-6)


def test_stnet_formula_and_its_number_of_genes(counts, library):
    target = Target.preset("stnet")
    with pytest.raises(ValueError, match=r"bind\(n_genes\)"):
        target.transform(counts, library)
    y, ok = target.bind(1200).transform(counts, library)
    expected = np.log((counts + 1) / (library + 1200)[:, None])
    np.testing.assert_allclose(y[ok], expected[ok], rtol=1e-6)
    assert not ok[9]
    assert ok[4]
    assert (y[9] == 0).all()
    assert Target.preset("log1p-cpm").bind(1200).n_genes is None
    assert target.bind(1200).bind(5).n_genes == 1200


def test_cpm_and_given_size_factors(counts, library):
    y, ok = Target.preset("log1p-cpm").transform(counts, library)
    np.testing.assert_allclose(y[ok], np.log1p(counts[ok] / library[ok, None] * 1e6), rtol=1e-6)
    factor = np.linspace(0.5, 2.0, len(counts))
    y, ok = Target.preset("log1p-given").transform(counts, factor)
    assert ok.all()  # the size factor says that the spot was measured
    np.testing.assert_allclose(y, np.log1p(counts / factor[:, None]), rtol=1e-6)


def test_counts_may_stay_undivided(counts, library):
    target = Target.preset("log1p-counts")
    y, ok = target.transform(counts, library)
    np.testing.assert_array_equal(ok, library > 0)  # where nothing was measured there is nothing to predict
    np.testing.assert_allclose(y[ok], np.log1p(counts[ok]), rtol=1e-6)
    np.testing.assert_allclose(target.inverse(y, library * np.nan)[ok], counts[ok], atol=2e-4)
    assert target.units == "ln(count + 1)"
    assert Target.parse("log1p-counts[scale=10,log=none,pseudo=0]").units == "10 × count"
    with pytest.raises(ValueError, match="library='none' has none"):
        Target(library="none", form="additive")


def test_sparse_and_dense_give_the_same_and_inputs_are_left_alone(counts, library):
    target = Target.preset("triplex-paper")
    before = counts.copy()
    dense = target.transform(counts, library, grid8(RC))
    for form in (sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array):
        np.testing.assert_array_equal(target.transform(form(counts), library, grid8(RC))[0], dense[0])
    as_float64 = counts.astype(np.float64)
    target.transform(as_float64, library, grid8(RC))
    np.testing.assert_array_equal(as_float64, before)
    np.testing.assert_array_equal(counts, before)


@pytest.mark.parametrize(
    "text",
    ["triplex-paper[smooth=none]", "triplex-2025[smooth=none,library=all]", "histogene[log=2]", "stnet[n_genes=90]",
     "log1p-cpm", "log1p-given", "log1p-cpm[log=none,pseudo=0]", "stnet[n_genes=90,pseudo=0.5,scale=100]"],
)
def test_inverse_gives_the_counts_back(counts, library, text):
    target = Target.parse(text)
    base = counts.sum(axis=1) if target.library == "panel" else library
    y, ok = target.transform(counts, library)
    back = target.inverse(y, base)
    np.testing.assert_allclose(back[ok], counts[ok], atol=2e-4)
    assert (back >= 0).all()


def test_inverse_of_a_smoothed_target_says_why_not(counts, library):
    with pytest.raises(NotInvertible, match="mean over neighbouring spots"):
        Target.preset("triplex-paper").inverse(counts, library)
    with pytest.raises(ValueError, match=r"library \(3,\)"):
        Target.preset("histogene").inverse(counts, library[:3])


@settings(max_examples=60, deadline=None)
@given(
    library=st.sampled_from(["panel", "all", "given", "none"]), log=st.sampled_from(["10", "e", "2"]),
    form=st.sampled_from(["scaled", "additive"]), scale=st.floats(1e-3, 1e7), pseudo=st.floats(1e-3, 10),
    smooth=st.sampled_from(["none", "grid8", "hex1"]), empty=st.sampled_from(["mask", "zero"]),
    n_genes=st.one_of(st.none(), st.integers(1, 10**5)),
)
def test_text_and_json_hold_the_whole_target(library, log, form, scale, pseudo, smooth, empty, n_genes):
    assume(library != "none" or form == "scaled")
    target = Target(library=library, log=log, form=form, scale=scale, pseudo=pseudo, smooth=smooth, empty=empty,
                    n_genes=n_genes)
    assert Target.parse(str(target)) == target
    assert Target.from_dict(json.loads(json.dumps(target.to_dict()))) == target
    assert target.units


def test_presets_print_as_their_names():
    assert {str(target) for target in PRESETS.values()} == set(PRESETS)
    assert Target.preset("triplex-paper").units == "log10(10000 × count / panel total + 1), mean over 3 × 3 spots"
    assert Target.preset("stnet").bind(10).units == "ln((count + 1) / (total over all genes + 10))"
    assert Target.parse(" triplex-paper[ smooth = none ] ") == Target.parse("triplex-paper[smooth=none]")
    assert Target.parse("triplex-paper[]") == Target.preset("triplex-paper")


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(len(RC))), name=st.sampled_from(["triplex-paper", "triplex-paper[empty=mask]"]))
def test_order_of_spots_does_not_matter(order, name):
    rng = np.random.default_rng(1)
    counts = rng.poisson(0.3, size=(len(RC), 4))
    library = counts.sum(axis=1) + rng.integers(0, 2, len(RC))
    target, order = Target.parse(name), np.array(order)
    y, ok = target.transform(counts, library, grid8(RC))
    y2, ok2 = target.transform(counts[order], library[order], grid8(RC[order]))
    np.testing.assert_allclose(y2, y[order], atol=1e-6)
    np.testing.assert_array_equal(ok2, ok[order])
    assert np.isfinite(y).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("triplex-papr", "did you mean 'triplex-paper'"),
        ("triplex-paper[smoth=none]", "did you mean 'smooth'"),
        ("triplex-paper[smooth=no]", "smooth='no'; expected one of"),
        ("triplex-paper[smooth=none", "does not end"),
        ("triplex-paper[smooth]", "not a first field=value"),
        ("triplex-paper[log=e,log=2]", "not a first field=value"),
        ("triplex-paper[scale=many]", "is not a number"),
        ("triplex-paper[scale=-1]", "above 0"),
        ("triplex-paper[pseudo=0]", "minus infinity"),
        ("triplex-paper[log=none]", "only shifts"),
        ("stnet[n_genes=0]", "1 or more"),
    ],
)
def test_unreadable_targets(text, message):
    with pytest.raises(ValueError, match=message):
        Target.parse(text)


def test_bad_input(counts, library):
    target = Target.preset("triplex-paper")
    with pytest.raises(ValueError, match="needs a neighbour table"):
        target.transform(counts, library)
    with pytest.raises(ValueError, match="derive_array"):
        target.neighbors(None)
    assert Target.preset("histogene").neighbors(None) is None
    with pytest.raises(ValueError, match="raw counts"):
        target.transform(counts - 1, library, grid8(RC))
    with pytest.raises(ValueError, match="raw counts"):
        target.transform(np.where(counts > 3, np.nan, counts), library, grid8(RC))
    with pytest.raises(ValueError, match="missing or negative for 1 of 30"):
        target.transform(counts, np.where(np.arange(30) == 2, np.nan, library), grid8(RC))
    with pytest.raises(ValueError, match=r"library \(29,\)"):
        target.transform(counts, library[1:], grid8(RC))
    with pytest.raises(ValueError, match="no field 'lg'"):
        Target.from_dict({"lg": "e"})
