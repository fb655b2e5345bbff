"""The lasso path against scikit-learn: objective, predictions, coefficients; gaps; bad input."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso

from histoweave.models import _lasso
from histoweave.models._lasso import lasso_path
from histoweave.models._linear import Moments, ridge_path

ALPHAS = (1e-7, 1e-4, 1e-2, 0.1, 1.0, 10.0)


def tables(*, collinear: bool = False, n: int = 120, d: int = 16, g: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Features whose variances fall like those of principal components; collinear ones repeat and add up."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(n, d)) * np.geomspace(4, 0.1, d) @ (np.eye(d) + 0.1 * rng.normal(size=(d, d))) + 1
    if collinear:
        x[:, 1], x[:, 3] = x[:, 0], x[:, 2] - x[:, 4]
    beta = rng.normal(size=(d, g)) * (rng.random((d, g)) < 0.3)
    return x, x @ beta + rng.normal(size=(n, g)) + 2


def moments(x: np.ndarray, y: np.ndarray) -> Moments:
    return Moments.of(torch.from_numpy(x), torch.from_numpy(y))


def penalties(*alphas: float) -> torch.Tensor:
    return torch.tensor(alphas, dtype=torch.float64)


def objective(x: np.ndarray, y: np.ndarray, coef: np.ndarray, intercept: float, alpha: float) -> float:
    return float(((y - x @ coef - intercept) ** 2).sum() / (2 * len(x)) + alpha * np.abs(coef).sum())


def sklearn_lasso(x: np.ndarray, y: np.ndarray, alpha: float) -> Lasso:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it did not converge at the least penalties
        return Lasso(alpha=alpha, tol=1e-10, max_iter=200_000).fit(x, y)


@pytest.mark.parametrize("collinear", [False, True])
def test_the_path_is_that_of_scikit_learn_for_every_penalty_and_gene(collinear: bool) -> None:
    x, y = tables(collinear=collinear)
    path = lasso_path(moments(x, y), penalties(*ALPHAS), tol=1e-8)
    assert path.converged.all()
    for i, alpha in enumerate(ALPHAS):
        for j in range(y.shape[1]):
            theirs = sklearn_lasso(x, y[:, j], alpha)
            coef, intercept = path.coef[i, :, j].numpy(), float(path.intercept[i, j])
            least = objective(x, y[:, j], theirs.coef_, float(theirs.intercept_), alpha)
            assert objective(x, y[:, j], coef, intercept, alpha) <= least * (1 + 1e-6)
            np.testing.assert_allclose(x @ coef + intercept, theirs.predict(x), atol=2e-4)
            if not collinear:
                np.testing.assert_allclose(coef, theirs.coef_, atol=1e-3)


def test_the_gap_is_an_upper_bound_of_what_is_missing() -> None:
    x, y = tables()
    exact = lasso_path(moments(x, y), penalties(0.01), tol=1e-12)
    for steps in (1, 3, 7):
        path = lasso_path(moments(x, y), penalties(0.01), steps=steps)
        for j in range(y.shape[1]):
            reached, least = (
                objective(x, y[:, j], p.coef[0, :, j].numpy(), float(p.intercept[0, j]), 0.01) for p in (path, exact)
            )
            assert -1e-10 <= reached - least <= float(path.gap[0, j]) + 1e-10


def test_what_is_not_done_is_flagged_and_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_lasso, "EXACT", 0)
    x, y = tables(collinear=True)
    path = lasso_path(moments(x, y), penalties(1e-4), tol=1e-10, steps=5)
    assert not path.converged.any()
    assert torch.isfinite(path.coef).all() and torch.isfinite(path.gap).all()


def test_steps_alone_reach_what_exact_solutions_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = tables()
    exact = lasso_path(moments(x, y), penalties(0.1, 0.01), tol=1e-9)
    monkeypatch.setattr(_lasso, "EXACT", 0)
    steps = lasso_path(moments(x, y), penalties(0.1, 0.01), tol=1e-9, steps=20_000)
    assert steps.converged.all()
    torch.testing.assert_close(exact.coef, steps.coef, atol=1e-4, rtol=1e-4)


def test_penalties_come_back_in_the_order_given() -> None:
    x, y = tables()
    down, up = (lasso_path(moments(x, y), penalties(*alphas)) for alphas in (ALPHAS[::-1], ALPHAS))
    assert torch.equal(down.coef.flip(0), up.coef)


def test_chunks_give_the_path_of_the_whole() -> None:
    x, y = (torch.from_numpy(part) for part in tables())
    whole = lasso_path(Moments.of(x, y), penalties(*ALPHAS), tol=1e-10)
    chunks = lasso_path(Moments.stream(zip(x.split(13), y.split(13), strict=True)), penalties(*ALPHAS), tol=1e-10)
    torch.testing.assert_close(whole.coef, chunks.coef, atol=1e-7, rtol=1e-7)


def test_bad_input_gives_numbers() -> None:
    x, y = tables()
    x[:, 2], x[:, 3] = 0.0, 5.0
    y[:, 0], y[:, 1] = 0.0, 3.3
    path = lasso_path(moments(x, y), penalties(0.0, 0.01, 1e9))
    assert path.converged.all()
    assert torch.isfinite(path.coef).all() and torch.isfinite(path.intercept).all()
    assert (path.coef[:, :, :2] == 0).all() and (path.coef[:, 2:4] == 0).all() and (path.coef[2] == 0).all()
    np.testing.assert_allclose(path.intercept[:, 1], 3.3)
    torch.testing.assert_close(path.coef[0], ridge_path(moments(x, y), penalties(0.0)).coef[0])
    one = lasso_path(moments(x[:1], y[:1]), penalties(0.0, 0.1))
    assert (one.coef == 0).all() and one.converged.all()
    np.testing.assert_allclose(one.intercept, np.tile(y[:1], (2, 1)))
