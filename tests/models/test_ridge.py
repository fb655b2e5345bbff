"""PCA + ridge against scikit-learn, and how the penalty is chosen."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge as SkRidge
from sklearn.preprocessing import StandardScaler

from histoweave.batch import Batch, Dims, Needs
from histoweave.models.predict.ridge import Moments, Ridge, solve


class Rows:
    """A feed of plain arrays."""

    def __init__(self, x: np.ndarray, y: np.ndarray, fold: np.ndarray) -> None:
        self.x, self.y, self.fold = torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(fold)

    @property
    def n(self) -> int:
        return len(self.x)

    def batches(self, size: int, /) -> Iterator[Batch]:
        for rows in torch.arange(self.n).split(min(size, 37)):
            yield Batch(spot=rows, section=rows * 0, y=self.y[rows], y_mask=torch.ones_like(self.y[rows], dtype=torch.bool),
                        emb=self.x[rows])  # fmt: skip

    def y_mean(self) -> torch.Tensor:
        return self.y.mean(dim=0)

    def inner_fold(self) -> torch.Tensor:
        return self.fold

    def reading(self, _: Needs, /) -> Rows:
        return self


def data(n: int = 200, d: int = 30, g: int = 7) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, d)) * np.linspace(0.1, 3, d) + 5
    y = x @ rng.normal(size=(d, g)) * 0.3 + rng.normal(size=(n, g)) + 2
    return x, y, np.arange(n) % 4


def sums(x: np.ndarray, y: np.ndarray) -> Moments:
    a, b = torch.from_numpy(x), torch.from_numpy(y)
    n = torch.tensor([float(len(a))], dtype=torch.float64)
    return Moments(n, a.sum(0)[None], b.sum(0)[None], (a.T @ a)[None], (a.T @ b)[None])


@pytest.mark.parametrize("components", [5, 30])
@pytest.mark.parametrize("scale", [False, True])
def test_equals_scikit_learn(components: int, scale: bool) -> None:
    """Float64 and scikit-learn's full solver; our penalty is a multiple of the mean eigenvalue that is kept."""
    x, y, _ = data()
    used = StandardScaler().fit_transform(x) if scale else x
    pca = PCA(components, svd_solver="full").fit(used)
    scores = pca.transform(used)
    relative = np.array([1e-3, 0.1, 10.0])
    coef, intercept = solve(sums(x, y), torch.from_numpy(relative), components, scale=scale)
    mean_eigenvalue = (scores**2).sum(axis=0).mean()
    for i, alpha in enumerate(relative):
        theirs = SkRidge(alpha=alpha * mean_eigenvalue, solver="svd").fit(scores, y).predict(scores)
        ours = x @ coef[i].numpy() + intercept[i].numpy()
        np.testing.assert_allclose(ours, theirs, atol=1e-6, rtol=0)


def test_penalty_and_gene_ranks_come_from_the_inner_folds() -> None:
    x, y, fold = data()
    y[:, -1] = np.random.default_rng(1).normal(size=len(y))  # a gene that nothing predicts
    alphas = (1e-4, 1e-2, 1.0, 100.0)
    model = Ridge(Dims(genes=7, emb=30), components=30, alphas=alphas).double()
    model.index(Rows(x, y, fold))
    errors, scores = [], []
    for alpha in alphas:
        error, r = 0.0, []
        for k in range(4):
            inside, out = fold != k, fold == k
            coef, intercept = solve(sums(x[inside], y[inside]), torch.tensor([alpha], dtype=torch.float64), 30)
            made = x[out] @ coef[0].numpy() + intercept[0].numpy()
            error += ((made - y[out]) ** 2).sum()
            r.append([np.corrcoef(a, b)[0, 1] for a, b in zip(made.T, y[out].T, strict=True)])
        errors.append(error)
        scores.append(np.mean(r, axis=0))
    best = int(np.argmin(errors))
    assert float(model.alpha) == pytest.approx(alphas[best])
    np.testing.assert_allclose(model.cv_pcc, scores[best], atol=1e-6)
    assert abs(float(model.cv_pcc[-1])) < 0.2 < float(model.cv_pcc[:-1].min())


def test_spots_without_counts_do_not_teach() -> None:
    x, y, fold = data()
    whole = Ridge(Dims(genes=7, emb=30))
    whole.index(Rows(x[10:], y[10:], fold[10:]))
    part, feed = Ridge(Dims(genes=7, emb=30)), Rows(x, y, fold)
    plain = feed.batches

    def masked(size: int, /) -> Iterator[Batch]:
        for batch in plain(size):
            batch.y_mask = batch.y_mask & (batch.spot >= 10)[:, None]
            yield batch

    feed.batches = masked  # type: ignore[method-assign]
    part.index(feed)
    torch.testing.assert_close(whole.coef, part.coef)
