"""The linear and count models: what is fitted is what the solvers and scikit-learn give; choices; arguments; flags."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import Lasso as SkLasso
from sklearn.linear_model import LinearRegression
from sklearn.linear_model import Ridge as SkRidge
from sklearn.model_selection import PredefinedSplit, cross_val_predict

from histoweave.batch import Batch, Dims, Needs
from histoweave.data.phantom import Phantom
from histoweave.data.store import Store
from histoweave.models import create, list_models, parse
from histoweave.models._glm import BOUND, fit_counts
from histoweave.models._pca import ADJACENCY_WIDTH
from histoweave.models.predict.counts import NB, Poisson
from histoweave.models.predict.linear import LASSO_GRID, OLS, RIDGE_GRID, Lasso, RidgePerGene
from histoweave.train import Learner, load_recipe
from histoweave.view import View

N, D, G, P = 240, 12, 4, 6
NAMES = ["ols", "lasso", "ridge-gene", "poisson", "nb"]


class Rows:
    """A feed of plain arrays whose first spots may be told not to count."""

    def __init__(self, skip: int = 0) -> None:
        rng = np.random.default_rng(0)
        self.x = (rng.normal(size=(N, D)) @ rng.normal(size=(D, D)) * 0.5 + 1).astype(np.float32)
        self.adjacency = rng.normal(size=(N, ADJACENCY_WIDTH)).astype(np.float32) * 0.1
        self.library = rng.lognormal(8, 0.3, size=N).astype(np.float32)
        signal = (self.x - 1) @ rng.normal(size=(D, G)) * 0.15 * np.array([1, 1, 0.3, 0])
        self.counts = rng.poisson(np.exp(signal + 1) * (self.library / np.median(self.library))[:, None])
        self.counts = self.counts.astype(np.float32)
        self.y = np.log1p(self.counts / (self.library / np.median(self.library))[:, None]).astype(np.float32)
        self.fold, self.skip = torch.arange(N) % 4, skip

    @property
    def n(self) -> int:
        return N

    def batches(self, size: int, /) -> Iterator[Batch]:
        tables = {key: torch.from_numpy(getattr(self, key)) for key in ("y", "adjacency", "library", "counts")}
        for rows in torch.arange(N).split(min(size, 53)):
            found = {key: table[rows] for key, table in tables.items()}
            mask = (rows >= self.skip)[:, None].expand(-1, G)
            emb = torch.from_numpy(self.x)[rows]
            yield Batch(spot=rows, section=rows * 0, y_mask=mask, emb=emb, pooled=emb.flip(1), **found)

    def y_mean(self) -> torch.Tensor:
        return torch.from_numpy(self.y).mean(dim=0)

    def inner_fold(self) -> torch.Tensor:
        return self.fold

    def inner_unit(self) -> torch.Tensor:
        return self.fold

    def reading(self, _: Needs, /) -> Rows:
        return self


def fitted(cls: type[Any], feed: Rows | None = None, **arguments: Any) -> tuple[Any, np.ndarray]:
    """The model after `index`, and its predictions (n, g)."""
    model, feed = cls(Dims(genes=G, emb=D), components=P, **arguments), feed or Rows()
    model.index(feed)
    model.eval()
    return model, torch.cat([model(batch) for batch in feed.batches(100)]).numpy()


def scores(feed: Rows, *, joined: bool = False) -> np.ndarray:
    made = PCA(P, svd_solver="full").fit_transform(feed.x.astype(np.float64))
    return np.column_stack([made, feed.adjacency]) if joined else made


def test_components_are_those_of_scikit_learn_up_to_sign() -> None:
    feed = Rows()
    model, _ = fitted(OLS, feed)
    made, theirs = model.inputs(next(feed.batches(53))).numpy(), scores(feed)[:53]
    np.testing.assert_allclose(np.abs(made), np.abs(theirs), atol=1e-4)
    sign = np.sign((made * theirs).sum(axis=0))
    np.testing.assert_allclose(made * sign, theirs, atol=1e-4)


@pytest.mark.parametrize("adjacency", ["none", "sign"])
def test_ols_is_that_of_scikit_learn(adjacency: str) -> None:
    feed = Rows()
    x = scores(feed, joined=adjacency == "sign")
    expected = LinearRegression().fit(x, feed.y).predict(x)
    np.testing.assert_allclose(fitted(OLS, feed, adjacency=adjacency)[1], expected, atol=1e-4)


@pytest.mark.parametrize("cls", [RidgePerGene, Lasso])
def test_every_gene_has_the_penalty_of_least_error_over_the_inner_folds(cls: type[Any]) -> None:
    feed, alphas = Rows(), (1e-3, 0.05, 30.0, 1000.0) if cls is RidgePerGene else (1e-4, 0.03, 0.3)
    theirs = SkRidge if cls is RidgePerGene else SkLasso
    model, made = fitted(cls, feed, alphas=alphas)
    x, split = scores(feed), PredefinedSplit(feed.fold.numpy())
    for j in range(G):
        errors = [
            ((cross_val_predict(theirs(alpha=alpha), x, feed.y[:, j], cv=split) - feed.y[:, j]) ** 2).sum()
            for alpha in alphas
        ]
        best = alphas[int(np.argmin(errors))]
        assert float(model.alpha[j]) == pytest.approx(best)
        np.testing.assert_allclose(made[:, j], theirs(alpha=best).fit(x, feed.y[:, j]).predict(x), atol=1e-3)
    assert len(model.alpha.unique()) > 1 and model.converged.all()


def test_the_grids_are_those_of_the_paper() -> None:
    np.testing.assert_allclose(RIDGE_GRID, [0, *np.logspace(-3, 2, 11)])
    np.testing.assert_allclose(LASSO_GRID, np.logspace(-7, 1, 9))


@pytest.mark.parametrize("cls", [OLS, RidgePerGene, Lasso, Poisson, NB])
def test_spots_without_counts_teach_nothing_but_the_components(cls: type[Any]) -> None:
    for table in ((garbage := Rows(skip=40)).y, garbage.counts, garbage.library):
        table[:40] = np.nan
    made, same = fitted(cls, Rows(skip=40))[0].state_dict(), fitted(cls, garbage)[0].state_dict()
    assert all(torch.equal(made[key], same[key]) for key in made)
    assert not torch.equal(made["coef"], fitted(cls)[0].coef)


@pytest.mark.parametrize("cls", [OLS, RidgePerGene, Lasso, Poisson, NB])
def test_inputs_are_those_asked_for(cls: type[Any]) -> None:
    with torch.device("meta"):
        dims = Dims(genes=G, emb=D)
        counts = Needs.COUNTS if cls in (Poisson, NB) else Needs.NONE
        assert cls(dims).needs == Needs.EMB | counts
        assert cls(dims, input="pooled", adjacency="sign").needs == Needs.POOLED | Needs.ADJACENCY | counts
        assert cls(dims, adjacency="paper").needs == Needs.EMB | Needs.ADJACENCY_RAW | counts
        assert cls(dims, adjacency="sign", components=5).coef.shape == (5 + ADJACENCY_WIDTH, G)
        assert sum(p.numel() for p in cls(dims).parameters()) == 0
    with pytest.raises(ValueError, match="input='pool' is not one of 'spot', 'pooled'; did you mean 'pooled'"):
        cls(dims, input="pool")
    with pytest.raises(ValueError, match=r"components=0; expected a whole number of 1 or more"):
        cls(dims, components=0)
    pooled, spot = (fitted(cls, input=input)[1] for input in ("pooled", "spot"))  # the same columns, turned round
    np.testing.assert_allclose(pooled, spot, atol=2e-3)


# -- counts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", ["library", "none"])
def test_a_count_model_is_the_solver_on_components_at_the_median_library(offset: str) -> None:
    feed = Rows()
    _, made = fitted(NB, feed, offset=offset, scale="counts")
    x, counts = torch.from_numpy(scores(feed)), torch.from_numpy(feed.counts)
    mean, var = counts.double().mean(dim=0), counts.double().var(dim=0)
    alpha = ((var - mean) / mean**2).clamp(min=1e-6)
    size = torch.from_numpy(np.log(feed.library / np.median(feed.library))) if offset == "library" else None
    fit = fit_counts(lambda: [(x, counts, size)], alpha=alpha)
    np.testing.assert_allclose(made, (x @ fit.coef + fit.intercept).exp(), rtol=2e-2)  # the median of an even number
    np.testing.assert_allclose(made / made.mean(0), (x @ fit.coef).exp() / (x @ fit.coef).exp().mean(0), rtol=1e-3)


def test_the_target_is_a_straight_line_in_log_counts_that_never_falls() -> None:
    feed = Rows()
    model, made = fitted(Poisson, feed)
    mean = fitted(Poisson, feed, scale="counts")[1]
    for j in range(G):
        line = np.polyfit(np.log1p(mean[:, j]), feed.y[:, j], 1)
        assert line[0] > 0
        np.testing.assert_allclose(made[:, j], np.polyval(line, np.log1p(mean[:, j])), atol=1e-3)
    turned = Rows()
    turned.y = -turned.y
    model, made = fitted(Poisson, turned)
    assert (model.slope == 0).all()
    np.testing.assert_allclose(made, np.broadcast_to(turned.y.mean(axis=0), made.shape), atol=1e-4)


def test_dispersion_is_a_number_or_comes_from_moments() -> None:
    feed = Rows()
    poisson = fitted(Poisson, feed)[0].coef
    assert torch.allclose(fitted(NB, feed, alpha=1e-6)[0].coef, poisson, atol=1e-3)
    one, moments = fitted(NB, feed, alpha=1.0)[0].coef, fitted(NB, feed)[0].coef
    assert not torch.allclose(one, moments, atol=1e-3) and not torch.allclose(poisson, moments, atol=1e-3)
    assert parse("nb[alpha=1]")[1] == {"alpha": 1} and parse("nb[alpha=moments,input=pooled]")[0] == "nb"
    for bad in ("moment", 0.0, -1.0, math.nan, True):
        with pytest.raises(ValueError, match="expected 'moments' or a finite number above 0"):
            NB(Dims(genes=G, emb=D), alpha=bad)


def test_predictions_far_from_the_training_spots_are_bounded() -> None:
    feed = Rows()
    far = next(feed.batches(53))
    assert far.emb is not None
    far.emb = far.emb * 1000
    clipped, seen = fitted(Poisson, feed, scale="counts")
    assert (clipped(far).amax(dim=0) <= torch.from_numpy(seen.max(axis=0)) * 10.01).all()
    free = fitted(Poisson, feed, scale="counts", clip=False)[0]
    assert math.exp(BOUND) * 1.01 > float(free(far).max()) > 1e6 * float(clipped(far).max())
    assert torch.isfinite(free(far)).all()


def test_genes_that_cannot_be_fitted_get_their_mean_and_a_flag() -> None:
    feed = Rows()
    feed.counts[:, 1] = feed.y[:, 1] = 0
    feed.library[:5] = 0  # empty spots, which have no size
    model, made = fitted(NB, feed)
    assert model.converged.tolist() == [True, False, True, True]
    assert np.isfinite(made).all() and (made[:, 1] == 0).all()


def test_reports_compare_on_one_scale() -> None:
    feed = Rows()
    model, made = fitted(Poisson, feed, scale="counts")
    value = float(model.loss(next(feed.batches(53)))[0])
    assert value == pytest.approx(float(((made[:53] - feed.counts[:53]) ** 2).mean()), rel=1e-4)


# -- in the house -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_not_needed(name: str) -> None:
    assert name in list_models()
    for recipe in ("cpu", "paper", "tiny"):
        assert load_recipe(name, recipe).args == {}
    assert create(name, Dims(genes=3, emb=40)).inputs.width == 32  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", NAMES)
def test_a_phantom_is_learnt(name: str, small: Phantom, view: View, shared_store: Store) -> None:
    learner = Learner(f"{name}[components=8,input=pooled]", view, shared_store).fit(small.cohort)
    made = np.asarray(learner.predict(small.cohort).X)
    assert learner.fitted is not None
    truth = np.concatenate([learner.fitted.truth(section)[0] for section in small.cohort])
    r = [np.corrcoef(a, b)[0, 1] for a, b in zip(made.T, truth.T, strict=True) if min(a.std(), b.std()) > 1e-5]
    assert np.isfinite(made).all() and np.median(r) > 0.1


def test_too_few_spots_and_broken_embeddings_are_named() -> None:
    for cls in (OLS, Poisson):
        with pytest.raises(ValueError, match=r"fewer than 2 training spots|no spot to fit on"):
            fitted(cls, Rows(skip=N - 1))
        broken = Rows()
        broken.x[3, 2] = np.nan
        with pytest.raises(ValueError, match="NaN"):
            fitted(cls, broken)
