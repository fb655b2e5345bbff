"""Spatial structure: against plain loops, under masks, and a null that holds under independence."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import false_discovery_control, kstest, pearsonr
from tests.bio.made import grid_cells, smooth_maps, stored

from histoweave.bio import (
    autocorrelation,
    fdr,
    parts,
    rv_coefficient,
    spatial_summary,
    spatial_table,
    spotwise,
    ssim,
    structure,
    toroidal_test,
    variance_ratio,
)
from histoweave.pp.genes import morans_i
from histoweave.pp.neighbors import grid8, grid_hops, hex_hops, knn


@pytest.fixture
def sides() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Truth, prediction, mask (40, 3) and cells of a lattice with holes."""
    rng = np.random.default_rng(0)
    cells = grid_cells(8)[rng.permutation(64)[:40]]
    truth = rng.normal(2, 1, (40, 3))
    mask = rng.random((40, 3)) < 0.8
    return truth, truth * 0.5 + rng.normal(0, 0.5, (40, 3)), mask, cells


def _autocorrelation_by_loops(x: np.ndarray, nbr: np.ndarray, seen: np.ndarray) -> tuple[float, float]:
    here = np.flatnonzero(seen)
    mean = x[here].mean()
    cross = apart = total = 0.0
    for i in here:
        near = [j for j in nbr[i] if j >= 0 and seen[j]]
        for j in near:
            weight = 1 / len(near)
            total += weight
            cross += weight * (x[i] - mean) * (x[j] - mean)
            apart += weight * (x[i] - x[j]) ** 2
    spread = ((x[here] - mean) ** 2).sum()
    return len(here) / total * cross / spread, (len(here) - 1) / (2 * total) * apart / spread


@pytest.mark.parametrize("table", ["grid", "knn"])
def test_moran_and_geary_are_those_of_loops(sides: tuple[np.ndarray, ...], table: str) -> None:
    truth, _, mask, cells = sides
    nbr = grid8(cells) if table == "grid" else knn(cells.astype(float), 5)
    moran, geary = autocorrelation(truth, nbr, mask)
    for g in range(3):
        np.testing.assert_allclose(
            (moran[g], geary[g]), _autocorrelation_by_loops(truth[:, g], nbr, mask[:, g]), rtol=1e-11
        )
    np.testing.assert_allclose(autocorrelation(truth, nbr)[0], morans_i(truth, nbr), rtol=1e-11)


def test_what_is_hidden_never_matters(sides: tuple[np.ndarray, ...]) -> None:
    truth, pred, mask, cells = sides
    garbled = np.where(mask, truth, 1e6)
    nbr = grid8(cells)
    for compute in (
        lambda t: autocorrelation(t, nbr, mask),
        lambda t: (ssim(t, pred, nbr, mask), variance_ratio(t, pred, mask)),
        lambda t: toroidal_test(t, pred, cells, mask).to_numpy().T,
        lambda t: spotwise(t, pred, mask).to_numpy().T,
    ):
        for first, second in zip(compute(truth), compute(garbled), strict=True):
            np.testing.assert_array_equal(first, second)
    missing = np.where(mask, truth, np.nan)
    np.testing.assert_array_equal(ssim(missing, pred, nbr), ssim(truth, pred, nbr, mask))


def test_constant_genes_have_no_value(sides: tuple[np.ndarray, ...]) -> None:
    _, pred, _, cells = sides
    flat = np.full((40, 3), np.float32(0.1))
    nbr = grid8(cells)
    assert np.isnan(autocorrelation(flat, nbr)).all()
    assert np.isnan(variance_ratio(flat, pred)).all()
    assert np.isnan(ssim(flat, pred, nbr)).all()
    assert np.isnan(toroidal_test(flat, pred, cells)[["pcc", "p", "q"]]).all(axis=None)
    nobody = np.full((40, 4), -1, dtype=np.int32)
    assert np.isnan(autocorrelation(pred, nobody)).all()
    with pytest.raises(ValueError, match="NaN or infinite"):
        variance_ratio(pred, np.where(np.arange(3) == 1, np.nan, pred))


def test_variance_ratio_is_numpys(sides: tuple[np.ndarray, ...]) -> None:
    truth, pred, mask, _ = sides
    expected = [pred[mask[:, g], g].var() / truth[mask[:, g], g].var() for g in range(3)]
    np.testing.assert_allclose(variance_ratio(truth, pred, mask), expected, rtol=1e-12)


def _ssim_by_loops(x: np.ndarray, y: np.ndarray, cells: np.ndarray, seen: np.ndarray, reach: int) -> float:
    span = x[seen].max() - x[seen].min()
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    found = []
    for i in np.flatnonzero(seen):
        window = seen & (np.abs(cells - cells[i]).max(axis=1) <= reach)
        a, b = x[window], y[window]
        both = np.mean((a - a.mean()) * (b - b.mean()))
        found.append(
            (2 * a.mean() * b.mean() + c1)
            * (2 * both + c2)
            / ((a.mean() ** 2 + b.mean() ** 2 + c1) * (a.var() + b.var() + c2))
        )
    return float(np.mean(found))


def test_ssim_is_that_of_loops(sides: tuple[np.ndarray, ...]) -> None:
    truth, pred, mask, cells = sides
    found = ssim(truth, pred, grid_hops(cells, 2), mask)
    expected = [_ssim_by_loops(truth[:, g], pred[:, g], cells, mask[:, g], 2) for g in range(3)]
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    np.testing.assert_allclose(ssim(truth, truth, grid_hops(cells, 2), mask), 1.0, rtol=1e-12)


@pytest.mark.parametrize("shape", [(50, 8), (12, 30)])
def test_rv_is_that_of_the_matrices(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    truth = rng.normal(size=shape) @ rng.normal(size=(shape[1], shape[1]))
    pred = truth + rng.normal(0, 3, shape)
    pred[:, 2] = 1.5  # predicted constant: correlates with none
    r, s = np.corrcoef(truth.T), np.corrcoef(np.where(np.arange(shape[1]) == 2, rng.normal(size=shape), pred).T)
    s[2], s[:, 2] = 0, 0
    whole = np.trace(r @ s) / np.sqrt(np.trace(r @ r) * np.trace(s @ s))
    assert rv_coefficient(truth, pred, diagonal=True) == pytest.approx(whole, rel=1e-10)
    np.fill_diagonal(r, 0)
    np.fill_diagonal(s, 0)
    assert rv_coefficient(truth, pred) == pytest.approx((r * s).sum() / np.sqrt((r**2).sum() * (s**2).sum()), rel=1e-10)
    assert np.isnan(rv_coefficient(truth, np.zeros(shape)))
    assert rv_coefficient(truth, truth) == pytest.approx(1.0)


def test_spotwise_shows_what_the_mean_profile_reaches() -> None:
    rng = np.random.default_rng(2)
    truth = rng.normal(np.arange(20) * 2.0, 1, (30, 20))
    table = spotwise(truth, np.broadcast_to(truth.mean(axis=0), truth.shape))
    np.testing.assert_allclose(table["pcc"], table["pcc_mean_profile"], rtol=1e-12)
    assert table["pcc"].mean() > 0.98
    assert spotwise(truth, truth[::-1])["pcc"][3] == pytest.approx(pearsonr(truth[3], truth[-4])[0])


# -- toroidal shift ---------------------------------------------------------------------------------------------------


def test_shifts_are_those_of_numpy_roll() -> None:
    truth, pred = smooth_maps(4, 7, 0), smooth_maps(4, 7, 1)
    table = toroidal_test(truth, pred, grid_cells(7))
    for g in range(4):
        t, p = truth[:, g].reshape(7, 7), pred[:, g].reshape(7, 7)
        every = [np.corrcoef(t.ravel(), np.roll(p, (-i, -j), (0, 1)).ravel())[0, 1] for i in range(7) for j in range(7)]
        assert table["pcc"][g] == pytest.approx(every[0], abs=1e-9)
        assert table["p"][g] == pytest.approx(np.mean(np.array(every) >= every[0] - 1e-9))
    assert (table["shifts"] == 49).all()


def test_shifts_over_holes_are_those_of_loops(sides: tuple[np.ndarray, ...]) -> None:
    truth, pred, mask, cells = sides
    where = {tuple(cell): i for i, cell in enumerate(cells)}
    height, width = cells.max(axis=0) + 1
    table = toroidal_test(truth, pred, cells, mask)
    for g in range(3):
        found = []
        for shift in np.ndindex(int(height), int(width)):
            pairs = [(i, where.get(tuple((cells[i] + shift) % (height, width)))) for i in np.flatnonzero(mask[:, g])]
            met = [(i, j) for i, j in pairs if j is not None]
            if len(met) >= max(0.5 * mask[:, g].sum(), 2):
                i, j = np.array(met).T
                found.append(np.corrcoef(truth[i, g], pred[j, g])[0, 1])
        assert table["shifts"][g] == len(found)
        assert table["p"][g] == pytest.approx(np.mean(np.array(found) >= found[0] - 1e-9))


def test_p_is_uniform_for_independent_smooth_maps_and_small_for_the_truth() -> None:
    side, genes = 16, 400
    truth = smooth_maps(genes, side, 3)
    chance = toroidal_test(truth, smooth_maps(genes, side, 4), grid_cells(side))
    assert kstest(chance["p"], "uniform").pvalue > 0.01
    plain = np.mean([pearsonr(truth[:, g], smooth_maps(genes, side, 4)[:, g])[1] < 0.05 for g in range(20)])
    assert plain > 0.2  # what a p-value over "independent" spots would claim
    own = toroidal_test(truth, 0.3 * truth + smooth_maps(genes, side, 5) * 0.2, grid_cells(side))
    assert (own["p"] < 0.05).mean() > 0.95
    assert own["p"].min() == pytest.approx(1 / 256)
    assert (own["q"] <= 0.05).mean() > 0.9
    assert (chance["q"] <= 0.05).mean() < 0.02


def test_p_holds_where_maps_do_not_wrap() -> None:
    p = toroidal_test(smooth_maps(400, 16, 6, wrap=False), smooth_maps(400, 16, 7, wrap=False), grid_cells(16))["p"]
    assert (p <= 0.05).mean() < 0.08


def test_doubled_columns_keep_their_lattice() -> None:
    rows, columns = np.meshgrid(np.arange(9), np.arange(9), indexing="ij")
    cells = np.stack([rows, 2 * columns + rows % 2], axis=-1).reshape(-1, 2)
    truth = np.random.default_rng(8).normal(size=(81, 2))
    table = toroidal_test(truth, truth, cells, doubled=True)
    assert (table["shifts"] > 40).all()
    assert (table["p"] == 1 / table["shifts"]).all()
    part = next(parts(stored(truth, truth, cells)))
    assert part.kind == "hex"
    np.testing.assert_array_equal(part.neighbours(), hex_hops(cells, 1))


def test_constant_prediction_finds_nothing_and_bad_cells_are_an_error() -> None:
    truth = smooth_maps(2, 5, 0)
    assert (toroidal_test(truth, np.ones_like(truth), grid_cells(5))["p"] == 1).all()
    with pytest.raises(ValueError, match=r"cells have shape \(24, 2\)"):
        toroidal_test(truth, truth, grid_cells(5)[1:])


def test_fdr_is_scipys() -> None:
    p = np.random.default_rng(9).random(50) ** 2
    np.testing.assert_allclose(fdr(p), false_discovery_control(p), rtol=1e-12)
    holes = np.insert(p, [3, 20], np.nan)
    np.testing.assert_allclose(fdr(holes)[~np.isnan(holes)], fdr(p))
    assert np.isnan(fdr(holes)[[3, 21]]).all()


# -- a whole prediction -----------------------------------------------------------------------------------------------


def test_table_has_every_gene_of_every_section_and_is_that_of_the_parts() -> None:
    import anndata

    first, second = (smooth_maps(3, 8, s) for s in (0, 1))
    second[:5, 1] = np.nan
    made = anndata.concat(
        [
            stored(first, first * 0.5, grid_cells(8), section="A"),
            stored(second, np.nan_to_num(second), grid_cells(8), section="B", patient="P2"),
        ]
    )
    table = spatial_table(made)
    assert list(table["section"]) == ["A"] * 3 + ["B"] * 3
    assert list(table["patient"]) == ["P1"] * 3 + ["P2"] * 3
    part = list(parts(made))[1]
    pd.testing.assert_frame_equal(table[3:].set_index("gene").drop(columns=["patient", "section"]), structure(part))
    np.testing.assert_allclose(table["variance_ratio"][:3], 0.25, rtol=1e-5)
    np.testing.assert_allclose(table["moran_truth"], table["moran_pred"], rtol=1e-4)
    short = spatial_summary(part)
    assert short["tested"] == 3
    assert short["ssim"] == pytest.approx(1.0, abs=1e-6)


def test_off_lattices_there_is_no_ssim_but_a_test() -> None:
    made = stored(smooth_maps(3, 9, 0), smooth_maps(3, 9, 0), grid_cells(9))
    made.obs = made.obs.drop(columns=["array_row", "array_col"])
    table = spatial_table(made)
    assert table["ssim"].isna().all()
    assert (table["p"] < 0.2).all()
    assert table["moran_truth"].notna().all()


def test_what_is_no_prediction_is_an_error() -> None:
    made = stored(smooth_maps(2, 4, 0), smooth_maps(2, 4, 0), grid_cells(4))
    del made.layers["truth"]
    with pytest.raises(ValueError, match=r"lacks layers\['truth'\]; give a stored prediction"):
        spatial_table(made)


def test_a_gene_or_a_spot_without_measurement_and_a_lone_spot_have_no_value() -> None:
    truth = smooth_maps(4, 6, 0)
    truth[:, 2], truth[7] = np.nan, np.nan
    part = next(parts(stored(truth, np.nan_to_num(truth) * 0.5, grid_cells(6))))
    table = structure(part)
    assert table.iloc[2].drop("shifts").isna().all()
    assert table.iloc[[0, 1, 3]].notna().all(axis=None)
    spots = spotwise(part.truth, part.pred)
    assert np.isnan(spots["pcc"][7])
    assert spots["pcc"].drop(7).notna().all()
    assert rv_coefficient(part.truth, part.pred) == pytest.approx(1.0, abs=1e-6)
    lone = structure(next(parts(stored(truth[:1], np.ones((1, 4)), grid_cells(1)))))[["p", "pcc", "ssim"]]
    assert lone.isna().all(axis=None)
