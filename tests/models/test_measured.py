"""What is not measured teaches nothing: every gene on its own spots, against scikit-learn and plain loops."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import Lasso as SkLasso
from sklearn.linear_model import LinearRegression
from sklearn.linear_model import Ridge as SkRidge
from tests.models.measured_feed import NONE, ONE, D, G, Gaps, N

from histoweave.batch import Dims
from histoweave.data.phantom import Phantom
from histoweave.data.store import Store
from histoweave.feed import Feed
from histoweave.models import _bank, _per_gene, card_of, create, list_models, model_class
from histoweave.models._by_gene import partly
from histoweave.models._linear import Moments, ridge_path
from histoweave.models.predict import ridge as ridge_module
from histoweave.models.predict.bleep import BLEEP
from histoweave.models.predict.knn import KNN
from histoweave.models.predict.linear import OLS, Lasso, RidgePerGene
from histoweave.models.predict.ridge import Ridge, Shuffled
from histoweave.pp.counts import Target
from histoweave.train import Learner, Recipe, load_predictor, resolve
from histoweave.view import View

PREDICT = [name for name in list_models() if card_of(name).task == "predict"]
COUNTS = [name for name in PREDICT if getattr(model_class(name), "needs_zeros", False)]


@torch.no_grad()
def predicted(model: Any, feed: Gaps) -> np.ndarray:
    """Predictions (n, g) after `index`."""
    model.index(feed)
    return torch.cat([model.eval()(batch) for batch in feed.batches(60)]).numpy()


def fit(theirs: Any, x: np.ndarray, y: np.ndarray) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it did not converge at the least penalties
        return theirs.fit(x, y)


# -- the models -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("components", [4, D])
def test_ridge_chooses_one_penalty_over_measured_entries(components: int) -> None:
    feed, alphas = Gaps(), (1e-3, 0.1, 10.0)
    model = Ridge(Dims(genes=G, emb=D), components=components, alphas=alphas)
    made = predicted(model, feed)
    scores = PCA(components, svd_solver="full").fit(feed.x[feed.mask.any(1)]).transform(feed.x)
    errors, r = np.zeros(3), np.zeros((3, G))
    for j in range(G):
        at = feed.mask[:, j]
        for a, alpha in enumerate(alphas):
            folds = [k for k in range(4) if (at & (feed.fold == k)).sum() >= 2]
            for k in range(4):
                fitted, out = at & (feed.fold != k), at & (feed.fold == k)
                if out.any():
                    p = _sk_ridge(scores[fitted], feed.y[fitted, j], alpha)(scores[out])
                    errors[a] += ((p - feed.y[out, j]) ** 2).sum()
                    if k in folds and p.std() > 1e-9:
                        r[a, j] += np.corrcoef(p, feed.y[out, j])[0, 1] / len(folds)
    best = int(errors.argmin())
    assert float(model.alpha) == pytest.approx(alphas[best])
    np.testing.assert_allclose(model.cv_pcc, r[best], atol=1e-4)
    for j in range(G):
        expected = _sk_ridge(scores[feed.mask[:, j]], feed.y[feed.mask[:, j], j], alphas[best])(scores)
        np.testing.assert_allclose(made[:, j], expected, atol=1e-4)


def _sk_ridge(x: np.ndarray, y: np.ndarray, alpha: float) -> Any:
    """Scikit-learn's ridge with a penalty relative to the mean eigenvalue; the mean of fewer than 2 spots, 0 of none."""
    if len(x) < 2:
        return lambda at: np.full(len(at), y.mean() if len(y) else 0.0)
    mean_eigenvalue = ((x - x.mean(0)) ** 2).sum() / min(x.shape[1], len(x) - 1)
    return SkRidge(alpha=alpha * mean_eigenvalue).fit(x, y).predict


@pytest.mark.parametrize("cls", [OLS, RidgePerGene, Lasso])
@pytest.mark.parametrize("chosen", ["folds", "given"])
def test_every_gene_has_the_penalty_of_least_error_on_its_own_spots(cls: type[Any], chosen: str) -> None:
    feed, other = Gaps(), Gaps()
    other.mask = np.roll(other.mask, 8, axis=0)
    other.y = np.roll(other.y, 8, axis=0)
    grid = {OLS: (0.0,), RidgePerGene: (1e-3, 1.0, 300.0), Lasso: (1e-4, 0.03, 0.3)}[cls]
    model = cls(Dims(genes=G, emb=D), components=D, **({} if cls is OLS else {"alphas": grid}))
    made = predicted(model, feed)
    if chosen == "given":
        model.choose(other)
        made = torch.cat([model(batch) for batch in feed.batches(60)]).numpy()
    theirs, scores = SkLasso if cls is Lasso else SkRidge, PCA(D, svd_solver="full").fit(feed.x)
    for j in (0, 1, 2):
        x, y, fold = feed.of(j, scores.transform(feed.x))
        tests = [((x[fold != k], y[fold != k]), (x[fold == k], y[fold == k])) for k in range(4)]
        tests = tests if chosen == "folds" else [((x, y), other.of(j, scores.transform(feed.x))[:2])]
        errors = [
            sum(((fit(theirs(alpha=a), *inside).predict(out[0]) - out[1]) ** 2).sum() for inside, out in tests)
            for a in (grid if len(grid) > 1 else ())
        ]
        best = grid[int(np.argmin(errors))] if errors else 0.0
        assert float(model.alpha[j]) == pytest.approx(best)
        expected = fit(theirs(alpha=best) if best else LinearRegression(), x, y).predict(scores.transform(feed.x))
        np.testing.assert_allclose(made[:, j], expected, atol=2e-3)
    np.testing.assert_allclose(made[:, ONE], feed.of(ONE)[1][0], rtol=1e-5)
    assert (made[:, NONE] == 0).all() and np.isfinite(made).all() and model.converged.all()


def test_without_gaps_all_genes_share_one_gram_matrix_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    feed = Gaps(whole=True)
    assert partly(Gaps()) and not partly(feed)
    gapped = Ridge(Dims(genes=G, emb=D))
    gapped._index_by_gene(feed, feed.inner_fold(), 4, torch.tensor(gapped.alphas, dtype=torch.float64))

    def refuse(*_: object) -> None:
        raise AssertionError("a Gram matrix per gene")

    monkeypatch.setattr(_per_gene, "by_gene", refuse)
    monkeypatch.setattr(ridge_module, "by_gene", refuse)
    model, linear = Ridge(Dims(genes=G, emb=D)), RidgePerGene(Dims(genes=G, emb=D), alphas=(1.0,))
    predicted(model, feed), predicted(linear, feed)
    chunks = [(b.emb, b.y, b.spot >= 5) for b in feed.batches(4096)]
    sums = Moments.stream((linear.inputs.pca(x)[keep], y[keep]) for x, y, keep in chunks)
    assert torch.equal(linear.coef, ridge_path(sums, torch.ones(1, dtype=torch.float64)).coef[0].float())
    sums = Moments.stream(
        ((x[keep].double(), y[keep].double(), torch.from_numpy(feed.fold)[b.spot][keep])
         for b, (x, y, keep) in zip(feed.batches(4096), chunks, strict=True)), 4
    )  # fmt: skip
    coef, _ = ridge_module.solve(sums.total(), model.alpha.double()[None], 256)
    torch.testing.assert_close(model.coef, coef[0].float(), atol=1e-6, rtol=1e-6)  # the penalty was rounded
    assert model.alpha == gapped.alpha
    for name in ("coef", "intercept", "cv_pcc"):
        torch.testing.assert_close(getattr(gapped, name), getattr(model, name), atol=1e-5, rtol=1e-4)


def test_shuffling_moves_what_is_measured_with_the_values() -> None:
    batch = next(Gaps(garbage=0.0).batches(60))
    y, measured = Shuffled(Dims(genes=G, emb=D)).target(batch)
    pairs = [torch.cat([a[5:], b[5:].float()], 1) for a, b in ((batch.y, batch.y_mask), (y, measured))]
    order = [sorted(part.tolist()) for part in pairs]
    assert order[0] == order[1] and not torch.equal(*pairs) and not measured[:5].any()


@pytest.mark.parametrize("k", [1, 5])
def test_knn_averages_the_neighbours_that_have_the_gene(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_bank, "_VALUES", 100)  # several pieces
    feed = Gaps()
    made = predicted(KNN(Dims(genes=G, emb=D), k=k), feed)
    unit, some = feed.x / np.linalg.norm(feed.x, axis=1, keepdims=True), np.flatnonzero(feed.mask.any(1))
    for i in range(0, N, 9):
        near = some[np.argsort(-(unit[some] @ unit[i]), kind="stable")[:k]]
        for j in range(G):
            has = near[feed.mask[near, j]]
            every = feed.of(j)[1]
            expected = feed.y[has, j].mean() if len(has) else every.mean() if len(every) else 0.0
            assert made[i, j] == pytest.approx(expected, abs=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("retrieval", ["average", "weighted"])
def test_bleep_averages_those_found_that_have_the_gene(retrieval: Any) -> None:
    feed = Gaps()
    torch.manual_seed(0)
    made = BLEEP(Dims(genes=G, emb=D), trunk="frozen", width=6, k=4, retrieval=retrieval)
    out = torch.from_numpy(predicted(made, feed))
    batch, reference, bank = next(feed.batches(60)), made._references(), made.bank.values
    query = made.image_head(batch.emb)
    for i in range(len(batch)):
        near = torch.cosine_similarity(query[i], reference, dim=1).argsort(descending=True)[:4]
        weight = (
            (-(query[i] - reference[near]).square().sum(1)).softmax(0) if retrieval == "weighted" else torch.ones(4)
        )
        for j in range(G):
            has = ~bank[near, j].isnan()
            mean = (weight[has] * bank[near, j][has]).sum() / weight[has].sum() if has.any() else feed.y_mean()[j]
            assert float(out[i, j]) == pytest.approx(float(mean), abs=2e-5)


# -- every model ----------------------------------------------------------------------------------------------------


@pytest.fixture
def cpm(view: View) -> View:
    return replace(view, target=Target.preset("log1p-cpm"))


@pytest.mark.parametrize("name", [name for name in PREDICT if name not in COUNTS])
def test_models_learn_from_measured_entries_alone(
    name: str, small: Phantom, cpm: View, shared_store: Store, tmp_path: Path
) -> None:
    args = model_class(name).tiny() | ({"counts": "none"} if name == "hist2st" else {})
    recipe = Recipe(name="quick", args=args, epochs=1, batch=64, lr=1e-3)
    learner = Learner(f"{name}[layer=measured]", cpm, shared_store, recipe=recipe).fit(small.cohort)
    made = np.asarray(learner.predict(small.cohort).X)
    assert np.isfinite(made).all()
    if card_of(name).learns != "gradient":
        learner.save(tmp_path / "model")
        again = load_predictor(tmp_path / "model", shared_store).predict(small.cohort).X
        np.testing.assert_array_equal(made, np.asarray(again))
    states, losses = [], []
    for garbage in (0.0, 1e6):
        feed = learner._feed(small.cohort)
        assert partly(feed)
        feed._y = torch.where(feed._mask, feed._y, garbage)
        torch.manual_seed(0)
        model: Any = create(name, Dims(genes=len(feed.view.genes), emb=feed.width), **args)
        if hasattr(model, "index"):
            model.index(feed)
        states.append(model.eval().state_dict())
        losses.append(model.loss(_batch(feed))[0])
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(*(s.values() for s in states), strict=True))
    assert torch.equal(*losses) and torch.isfinite(losses[0])


def _batch(feed: Feed) -> Any:
    return next(feed.batches(64))


@pytest.mark.parametrize("layer", ["measured", "median", "spackle[rate=0.5]"])
@pytest.mark.parametrize("name", COUNTS)
def test_a_distribution_of_counts_is_fitted_to_raw_counts_alone(
    name: str, layer: str, cpm: View, shared_store: Store
) -> None:
    with pytest.raises(ValueError, match=rf"'{name}' .* raw counts, to which zeros belong.* Use {name}\[layer=raw"):
        Learner(f"{name}[layer={layer}]", cpm, shared_store)
    Learner(f"{name}[layer=raw]", cpm, shared_store)


@pytest.mark.parametrize("layer", ["measured", "median"])
def test_a_likelihood_of_counts_beside_the_prediction_has_to_be_off(layer: str) -> None:
    for counts in ("", ",counts=nb"):
        with pytest.raises(ValueError, match=rf"layer='{layer}' .* Give it the argument counts=none"):
            resolve(f"hist2st[layer={layer}{counts}]", "cpu")
    assert resolve(f"hist2st[layer={layer},counts=none]", "cpu").layer == layer
    assert resolve("hist2st", "cpu").layer == resolve("hist2st[layer=raw]", "paper").layer == "raw"


def test_the_models_of_counts_are_told_apart() -> None:
    assert COUNTS == ["poisson", "nb"]
