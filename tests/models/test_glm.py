"""Poisson and negative binomial regression against statsmodels and scikit-learn; flags; bad input."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import statsmodels.api as sm
import torch
from sklearn.linear_model import PoissonRegressor

from histoweave.models import _glm
from histoweave.models._glm import ALPHA_LEAST, BOUND, CountFit, alpha_from_moments, fit_counts

N, D, G = 400, 8, 6


def tables() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Correlated features (n, d) of falling variance, negative binomial counts (n, g), offset (n,), dispersions (g,)."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, D)) * np.geomspace(5, 0.2, D) @ (np.eye(D) + 0.2 * rng.normal(size=(D, D))) + 2
    offset = rng.normal(size=N) * 0.4
    alpha = np.geomspace(0.05, 4, G)
    eta = (x - 2) @ rng.normal(size=(D, G)) * 0.1 + rng.normal(size=G) + offset[:, None]
    counts = rng.poisson(rng.gamma(1 / alpha, alpha * np.exp(eta)))
    return x, counts.astype(np.float32), offset, alpha


def fit(
    x: np.ndarray, y: np.ndarray, offset: np.ndarray | None = None, *, size: int = 128, **arguments: object
) -> CountFit:
    a, b = torch.from_numpy(x), torch.from_numpy(y)
    c = None if offset is None else torch.from_numpy(offset)

    def walk() -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]:
        for rows in torch.arange(len(a)).split(size):
            yield a[rows], b[rows], None if c is None else c[rows]

    return fit_counts(walk, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("with_offset", [False, True])
@pytest.mark.parametrize("family", ["poisson", "nb", "nb-1"])
def test_coefficients_are_those_of_statsmodels(family: str, with_offset: bool) -> None:
    x, y, offset, alpha = tables()
    given = {"poisson": None, "nb": torch.from_numpy(alpha), "nb-1": 1.0}[family]
    made = fit(x, y, offset if with_offset else None, alpha=given)
    assert made.converged.all() and not made.separated.any()
    for j in range(G):
        a = {"nb": alpha[j], "nb-1": 1.0}.get(family)
        kind = sm.families.Poisson() if a is None else sm.families.NegativeBinomial(alpha=a)
        theirs = sm.GLM(y[:, j].astype(float), sm.add_constant(x), kind, offset=offset if with_offset else None)
        found = theirs.fit(tol=1e-12, maxiter=200)
        assert found.converged
        np.testing.assert_allclose(made.intercept[j], found.params[0], atol=1e-4)
        np.testing.assert_allclose(made.coef[:, j], found.params[1:], atol=1e-4)


@pytest.mark.parametrize("penalty", [1e-3, 0.1, 10.0])
def test_the_penalty_is_that_of_scikit_learn(penalty: float) -> None:
    x, y, _, _ = tables()
    made = fit(x, y, penalty=penalty)
    assert made.converged.all()
    for j in range(G):
        theirs = PoissonRegressor(alpha=penalty, solver="newton-cholesky", tol=1e-10, max_iter=500).fit(x, y[:, j])
        np.testing.assert_allclose(made.coef[:, j], theirs.coef_, atol=1e-5)
        np.testing.assert_allclose(made.intercept[j], theirs.intercept_, atol=1e-4)


def test_genes_that_steps_leave_are_solved_by_newton(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, offset, alpha = tables()
    whole = fit(x, y, offset, alpha=torch.from_numpy(alpha))
    solved: list[int] = []
    plain = _glm._Newton.direction

    def counted(self: _glm._Newton, *given: torch.Tensor) -> torch.Tensor:
        solved.append(len(given[1]))
        return plain(self, *given)

    monkeypatch.setattr(_glm._Newton, "direction", counted)
    monkeypatch.setattr(_glm.Memory, "direction", lambda self, theta, genes, gradient, scale: -0.05 * gradient / scale)
    monkeypatch.setattr(_glm, "_HELD", 1000)  # Hessians of few spots at a time
    made = fit(x, y, offset, alpha=torch.from_numpy(alpha), passes=15)
    assert made.converged.all() and max(solved) == G
    torch.testing.assert_close(made.coef, whole.coef, atol=1e-5, rtol=0)


def test_chunks_give_the_fit_of_the_whole() -> None:
    x, y, offset, alpha = tables()
    whole, chunks = (fit(x, y, offset, alpha=torch.from_numpy(alpha), size=size, tol=1e-9) for size in (N, 37))
    torch.testing.assert_close(whole.coef, chunks.coef, atol=1e-8, rtol=0)
    torch.testing.assert_close(whole.intercept, chunks.intercept, atol=1e-8, rtol=0)


def test_float32_features_are_as_good() -> None:
    x, y, offset, _ = tables()
    single, double = fit(x.astype(np.float32), y, offset.astype(np.float32)), fit(x, y, offset)
    torch.testing.assert_close(single.coef, double.coef, atol=1e-5, rtol=0)


def test_dispersion_from_moments() -> None:
    mean, var = torch.tensor([2.0, 2.0, 0.0, 4.0]), torch.tensor([6.0, 1.0, 0.0, 4.0])
    made = alpha_from_moments(mean, var)
    torch.testing.assert_close(made, torch.tensor([1.0, ALPHA_LEAST, ALPHA_LEAST, ALPHA_LEAST]))


def test_a_negative_binomial_of_the_least_dispersion_is_poisson() -> None:
    x, y, offset, _ = tables()
    torch.testing.assert_close(fit(x, y, offset, alpha=1e-12).coef, fit(x, y, offset).coef, atol=1e-4, rtol=0)


# -- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [None, 1.0, 1e-6])
def test_genes_without_a_maximum_are_flagged_and_finite(alpha: float | None) -> None:
    x, y, _, _ = tables()
    y[:, 0] = 0  # all zero
    y[:, 1] = 4  # constant
    y[:, 2] = np.where(x[:, 0] > 2, 3, 0)
    y[:, 3] = 0
    y[7, 3] = 1  # one count
    wall = np.column_stack([x, np.where(x[:, 0] > 2, 1.0, 0.0)])  # which separates gene 2
    made = fit(wall, y, alpha=alpha)
    assert made.converged.tolist() == [False, True, False, False, True, True]
    assert made.separated.tolist() == [True, False, True, True, False, False]
    assert torch.isfinite(made.coef).all() and torch.isfinite(made.intercept).all()
    assert (made.coef[:, 0] == 0).all() and float(made.intercept[0]) == -BOUND
    assert (made.coef[:, 1].abs() < 1e-9).all() and float(made.intercept[1]) == pytest.approx(math.log(4))
    # a gene that converges is not disturbed by those that do not
    torch.testing.assert_close(made.coef[:, 4], fit(wall, y[:, 4:], alpha=alpha).coef[:, 0], atol=1e-5, rtol=0)


def test_collinear_and_constant_features_share() -> None:
    x, y, offset, _ = tables()
    wide = np.column_stack([x, x[:, 0] - x[:, 1], np.full(N, 3.0), x[:, 2]])
    made, plain = fit(wide, y, offset, alpha=1.0), fit(x, y, offset, alpha=1.0)
    assert made.converged.all() and (made.coef[-2] == 0).all()
    np.testing.assert_allclose(wide @ made.coef.numpy() + made.intercept.numpy(),
                               x @ plain.coef.numpy() + plain.intercept.numpy(), atol=1e-4)  # fmt: skip


def test_features_in_other_units_change_nothing_but_the_coefficients() -> None:
    x, y, offset, _ = tables()
    units = np.logspace(-4, 4, D)
    plain, made = fit(x, y, offset, alpha=1.0), fit(x * units, y, offset, alpha=1.0)
    np.testing.assert_allclose(made.coef.numpy() * units[:, None], plain.coef, atol=1e-5)


def test_one_spot_and_fewer_spots_than_features() -> None:
    x, y, _, _ = tables()
    one = fit(x[:1], np.array([[0.0, 3.0]], dtype=np.float32))
    assert (one.coef == 0).all() and one.converged.tolist() == [False, True]
    assert float(one.intercept[1]) == pytest.approx(math.log(3))
    few = fit(x[:5], y[:5])
    assert torch.isfinite(few.coef).all() and torch.isfinite(few.intercept).all()


def test_what_cannot_be_counts_is_refused() -> None:
    x, y, offset, _ = tables()
    broken = x.copy()
    broken[3, 5] = np.nan
    with pytest.raises(ValueError, match=r"features hold NaN or infinite values in 1 columns \(first: \[5\]\)"):
        fit(broken, y)
    with pytest.raises(ValueError, match="targets hold NaN"):
        fit(x, np.where(y > 2, np.nan, y))
    with pytest.raises(ValueError, match="counts as low as -1; expected 0 or more"):
        fit(x, y - 1)
    for size in (0.0, np.nan):
        with np.errstate(divide="ignore"), pytest.raises(ValueError, match="offsets hold NaN or infinite"):
            fit(x, y, np.log(np.where(np.arange(N) == 5, size, np.exp(offset))))
    with pytest.raises(ValueError, match="no spot to fit on"):
        fit(x[:0], y[:0])
    for bad in (0.0, -1.0, math.nan, torch.tensor([1.0, 0.0, 1, 1, 1, 1])):
        with pytest.raises(ValueError, match="expected finite dispersions above 0"):
            fit(x, y, alpha=bad)
    with pytest.raises(ValueError, match=r"penalty=-1.*0 or more"):
        fit(x, y, penalty=-1.0)
