"""Least squares and the ridge path against scikit-learn; moments in chunks; bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression, Ridge

from histoweave.models._linear import Centred as Scatter
from histoweave.models._linear import Moments, least_squares, ridge_path, squared_error

ALPHAS = (0.0, 1e-3, 0.5, 100.0)


def tables(n: int = 150, d: int = 12, g: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) * np.linspace(0.01, 10, d) + 3
    return x, x @ rng.normal(size=(d, g)) * 0.2 + rng.normal(size=(n, g)) + 2


def moments(x: np.ndarray, y: np.ndarray) -> Moments:
    return Moments.of(torch.from_numpy(x), torch.from_numpy(y))


def penalties(*alphas: float) -> torch.Tensor:
    return torch.tensor(alphas, dtype=torch.float64)


def test_the_path_is_that_of_scikit_learn_for_every_penalty_and_gene() -> None:
    x, y = tables()
    path = ridge_path(moments(x, y), penalties(*ALPHAS))
    for i, alpha in enumerate(ALPHAS):
        for j in range(y.shape[1]):
            theirs = (Ridge(alpha=alpha, solver="svd") if alpha else LinearRegression()).fit(x, y[:, j])
            np.testing.assert_allclose(path.coef[i, :, j], theirs.coef_, atol=1e-6, rtol=1e-6)
            np.testing.assert_allclose(path.intercept[i, j], theirs.intercept_, atol=1e-6, rtol=1e-6)


def test_least_squares_does_not_mind_the_units_of_features() -> None:
    x, y = tables()
    units = np.logspace(-6, 6, x.shape[1])
    path = ridge_path(moments((x - 3) * units, y), penalties(0.0))
    theirs = LinearRegression().fit(x, y).predict(x)
    np.testing.assert_allclose(((x - 3) * units) @ path.coef[0].numpy() + path.intercept[0].numpy(), theirs, atol=1e-6)


def test_chunks_give_the_moments_of_the_whole() -> None:
    x, y = (torch.from_numpy(part) for part in tables())
    fold = torch.arange(len(x)) % 3
    whole = Moments.of(x, y, fold, 3)
    chunks = Moments.stream(zip(x.split(17), y.split(17), fold.split(17), strict=True), 3)
    for a, b in zip(whole, chunks, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-9)
    out = fold != 1
    for a, b in zip(whole.without(1), Moments.of(x[out], y[out]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-8)
    for a, b in zip(whole.only(1), Moments.of(x[~out], y[~out]), strict=True):
        torch.testing.assert_close(a, b)


def test_float32_features_are_summed_in_float64() -> None:
    x, y = tables()
    single = Moments.of(torch.from_numpy(x).float(), torch.from_numpy(y).float())
    same = moments(x.astype(np.float32).astype(np.float64), y.astype(np.float32).astype(np.float64))
    for a, b in zip(single, same, strict=True):
        assert a.dtype == torch.float64
        assert torch.equal(a, b)


def test_squared_error_needs_no_second_look_at_the_spots() -> None:
    x, y = tables()
    path = ridge_path(moments(x[:100], y[:100]), penalties(*ALPHAS))
    made = np.einsum("nd,adg->ang", x[100:], path.coef.numpy()) + path.intercept.numpy()[:, None]
    expected = ((made - y[100:]) ** 2).sum(axis=1)
    np.testing.assert_allclose(squared_error(path, moments(x[100:], y[100:])), expected, rtol=1e-8)


def test_a_gene_takes_the_coefficients_of_its_own_penalty() -> None:
    x, y = tables()
    path = ridge_path(moments(x, y), penalties(*ALPHAS))
    best = torch.tensor([0, 3, 1, 1, 2, 0])
    coef, intercept = path.pick(best)
    for j, i in enumerate(best.tolist()):
        assert torch.equal(coef[:, j], path.coef[i, :, j])
        assert intercept[j] == path.intercept[i, j]


# -- bad input ----------------------------------------------------------------------------------------------------


def test_collinear_and_constant_features_without_penalty() -> None:
    x, y = tables()
    wide = np.column_stack([x, x[:, 0] + x[:, 1], x[:, 2], np.full(len(x), 7.0), np.zeros(len(x))])
    path = ridge_path(moments(wide, y), penalties(0.0, 1.0))
    assert torch.isfinite(path.coef).all()
    assert (path.coef[:, -2:] == 0).all()
    made = wide @ path.coef[0].numpy() + path.intercept[0].numpy()
    np.testing.assert_allclose(made, LinearRegression().fit(x, y).predict(x), atol=1e-6)
    assert float(path.coef.abs().max()) < 100  # collinear features share, they do not fight


def test_collinear_features_far_from_zero_do_not_blow_up() -> None:
    x, y = tables()
    wide = np.column_stack([x, x[:, 0] + x[:, 1]]) + 1e3
    path = ridge_path(moments(wide, y), penalties(0.0))
    assert float(path.coef.abs().max()) < 100


def test_more_features_than_spots() -> None:
    x, y = tables(n=8)
    path = ridge_path(moments(x, y), penalties(0.0))
    np.testing.assert_allclose(x @ path.coef[0].numpy() + path.intercept[0].numpy(), y, atol=1e-6)


def test_constant_genes_and_one_spot_give_the_mean() -> None:
    x, y = tables()
    y[:, 0], y[:, 1] = 0.0, 0.1
    path = ridge_path(moments(x, y), penalties(*ALPHAS))
    assert (path.coef[:, :, :2] == 0).all()
    np.testing.assert_allclose(path.intercept[:, :2], np.tile([0.0, 0.1], (4, 1)), atol=1e-12)
    one = ridge_path(moments(x[:1], y[:1]), penalties(0.0, 1.0))
    assert (one.coef == 0).all()
    np.testing.assert_allclose(one.intercept, np.tile(y[:1], (2, 1)))


def test_what_is_not_finite_is_named() -> None:
    x, y = (torch.from_numpy(part) for part in tables())
    broken = x.clone()
    broken[3, 5] = torch.nan
    with pytest.raises(ValueError, match=r"features hold NaN or infinite values in 1 columns \(first: \[5\]\)"):
        Moments.stream([(broken, y)])
    broken = y.clone()
    broken[3, 2] = torch.inf
    with pytest.raises(ValueError, match=r"targets hold NaN .*\[2\]"):
        Moments.stream([(x, broken)])


def test_nothing_to_fit_on_and_bad_penalties() -> None:
    x, y = (torch.from_numpy(part) for part in tables())
    for chunks in ([], [(x[:0], y[:0])]):
        with pytest.raises(ValueError, match="no spot to fit on"):
            Moments.stream(chunks)
    for bad in (torch.tensor([-1.0]), torch.tensor([torch.nan]), torch.tensor([])):
        with pytest.raises(ValueError, match="expected one or more finite numbers of 0 or more"):
            ridge_path(Moments.of(x, y), bad)
    with pytest.raises(ValueError, match=r"use total\(\) or without\(\)"):
        ridge_path(Moments.of(x, y, torch.arange(len(x)) % 2, 2), penalties(1.0))
    assert least_squares(Scatter.of(Moments.of(x, y))).shape == (12, 6)
