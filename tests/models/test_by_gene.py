"""Ridge, lasso and least squares with a Gram matrix per gene, against scikit-learn on the spots of each gene."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso as SkLasso
from sklearn.linear_model import LinearRegression
from sklearn.linear_model import Ridge as SkRidge
from tests.models.measured_feed import FEW, NONE, ONE, THERE, D, G, Gaps

from histoweave.models import _by_gene
from histoweave.models._by_gene import GeneMoments, by_gene, ridge_by_gene, squared_error_by_gene
from histoweave.models._lasso import lasso_path
from histoweave.models._linear import Moments, ridge_path, squared_error

ALPHAS = (0.0, 0.01, 1.0, 100.0)


def penalties(*alphas: float) -> torch.Tensor:
    return torch.tensor(alphas, dtype=torch.float64)


def total(feed: Gaps) -> GeneMoments:
    return GeneMoments.stream(feed.entries(), 4, slice(None)).total()


def test_ridge_is_that_of_scikit_learn_on_the_spots_of_each_gene() -> None:
    feed = Gaps()
    path, relative = (ridge_by_gene(total(feed), penalties(*ALPHAS), relative=how) for how in (False, True))
    for j in (0, 1, 2, FEW, THERE):
        x, y, _ = feed.of(j)
        mean_eigenvalue = ((x - x.mean(0)) ** 2).sum() / min(D, len(x) - 1)
        for i, alpha in enumerate(ALPHAS):
            for found, penalty in ((path, alpha), (relative, alpha * mean_eigenvalue)):
                theirs = (SkRidge(alpha=penalty, solver="svd") if alpha else LinearRegression()).fit(x, y)
                if alpha or j != FEW:
                    np.testing.assert_allclose(found.coef[i, :, j], theirs.coef_, atol=1e-6)
                    np.testing.assert_allclose(found.intercept[i, j], theirs.intercept_, atol=1e-6)
    x, y, _ = feed.of(FEW)  # where many coefficients do equally well they are those of the shared solver
    shared = ridge_path(Moments.of(torch.from_numpy(x), torch.from_numpy(y[:, None])), penalties(0.0))
    torch.testing.assert_close(path.coef[0, :, FEW], shared.coef[0, :, 0])
    np.testing.assert_allclose(x @ path.coef[0, :, FEW].numpy() + float(path.intercept[0, FEW]), y, atol=1e-8)


def test_lasso_is_that_of_scikit_learn_on_the_spots_of_each_gene() -> None:
    feed, alphas = Gaps(), (1e-3, 0.03, 0.3)
    path = lasso_path(total(feed), penalties(*alphas))
    assert path.converged.all()
    for j in (0, 1, 2, FEW, THERE):
        x, y, _ = feed.of(j)
        for i, alpha in enumerate(alphas):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it says that it did not converge at the least penalty
                theirs = SkLasso(alpha=alpha, tol=1e-10, max_iter=100_000).fit(x, y)
            made, least = (
                ((y - x @ coef - b) ** 2).mean() / 2 + alpha * np.abs(coef).sum()
                for coef, b in ((path.coef[i, :, j].numpy(), float(path.intercept[i, j])), (theirs.coef_, theirs.intercept_))
            )  # fmt: skip
            assert made <= least * (1 + 1e-4)


def test_a_gene_of_one_spot_is_that_spot_and_a_gene_of_none_is_0() -> None:
    feed = Gaps()
    for path in (ridge_by_gene(total(feed), penalties(*ALPHAS)), lasso_path(total(feed), penalties(*ALPHAS))):
        assert (path.coef[:, :, [ONE, NONE]] == 0).all() and (path.intercept[:, NONE] == 0).all()
        np.testing.assert_allclose(path.intercept[:, ONE], feed.of(ONE)[1][0])
        assert torch.isfinite(path.coef).all() and torch.isfinite(path.intercept).all()


def test_errors_are_those_of_the_held_out_entries() -> None:
    feed = Gaps()
    sums = GeneMoments.stream(feed.entries(), 4, slice(None))
    path = ridge_by_gene(sums.without(1), penalties(*ALPHAS))
    error, r = squared_error_by_gene(path, sums.only(1)), _by_gene.correlation_by_gene(path, sums.only(1))
    for j in (0, 1, 2, FEW, THERE):
        x, y, fold = feed.of(j)
        for i in range(len(ALPHAS)):
            made = x[fold == 1] @ path.coef[i, :, j].numpy() + float(path.intercept[i, j])
            assert float(error[i, j]) == pytest.approx(((made - y[fold == 1]) ** 2).sum(), rel=1e-8, abs=1e-9)
            if j < ONE:
                assert float(r[i, j]) == pytest.approx(np.corrcoef(made, y[fold == 1])[0, 1], abs=1e-8)


def test_without_gaps_they_are_the_shared_solvers() -> None:
    feed = Gaps(whole=True)
    x, y, fold = (torch.from_numpy(table[5:]) for table in (feed.x, feed.y, feed.fold))
    own, shared = GeneMoments.stream(feed.entries(), 4, slice(None)), Moments.of(x, y, fold, 4)
    alphas = penalties(*ALPHAS)
    path, expected = ridge_by_gene(own.without(2), alphas), ridge_path(shared.without(2), alphas)
    torch.testing.assert_close(path, expected, atol=1e-9, rtol=1e-9)
    wrong = squared_error(expected, shared.only(2))
    torch.testing.assert_close(squared_error_by_gene(path, own.only(2)), wrong, atol=1e-8, rtol=1e-8)
    found = (lasso_path(sums.total(), alphas, tol=1e-10) for sums in (own, shared))
    torch.testing.assert_close(*(path.coef for path in found), atol=1e-6, rtol=1e-6)


def test_few_genes_at_a_time_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    feed = Gaps()
    whole = GeneMoments.stream(feed.entries(), 4, slice(None))
    monkeypatch.setattr(_by_gene, "_HELD", 2 * 4 * 36)
    monkeypatch.setattr(_by_gene, "_PRODUCTS", 100)
    parts = list(by_gene(feed.entries, 4, D, G))
    assert [part for part, _ in parts] == [slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 7)]
    for field in GeneMoments._fields:
        made = torch.cat([getattr(sums, field) for _, sums in parts], 1)
        torch.testing.assert_close(made, getattr(whole, field), atol=1e-9, rtol=1e-9)
    feed.y[9, 0], feed.mask[9, 0] = np.inf, True
    with pytest.raises(ValueError, match="targets hold NaN"):
        total(feed)
