"""Controls of completion: each against a plain calculation, on what is visible and nothing else."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from tests.models.complete_feed import CompleteFeed, garbled, hard

from histoweave.batch import Dims, Needs
from histoweave.models import create, needs_of
from histoweave.models.complete._masked import HIDDEN, Normal, Pairs, walk
from histoweave.models.complete.controls import SlideMedian, SpotGene
from histoweave.models.complete.low_rank import LowRank
from histoweave.models.complete.ridge_visible import RidgeVisible

DIMS = Dims(genes=6, emb=5)
NAMES = ["zero", "gene-mean", "slide-median", "spot-gene", "low-rank", "ridge-visible", "sme"]


def fitted(name: str, feed: CompleteFeed | None = None, **arguments: object) -> torch.nn.Module:
    model = create(name, DIMS, **arguments)
    feed = CompleteFeed() if feed is None else feed
    model.index(feed.reading(model.needs))  # type: ignore[attr-defined]
    assert isinstance(model, torch.nn.Module)
    return model


@pytest.mark.parametrize("name", NAMES)
def test_only_what_is_seen_is_read(name: str) -> None:
    model, batch = fitted(name), CompleteFeed(hidden=0.3).batch()
    made = model(batch)
    assert made.shape == batch.y.shape and made.dtype == torch.float32
    assert torch.equal(made, model(garbled(batch)))


@pytest.mark.parametrize("name", NAMES)
def test_sections_never_mix(name: str) -> None:
    model, feed = fitted(name), CompleteFeed(hidden=0.3)
    together = model(feed.batch())
    alone = torch.cat([model(feed.batch(torch.nonzero(feed.section == s)[:, 0])) for s in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    feed.expr = torch.where((feed.section == 0)[:, None], feed.expr, feed.expr * 3 + feed.seen)
    changed = model(feed.batch())
    torch.testing.assert_close(changed[feed.section == 0], together[feed.section == 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("learnt", [True, False])
def test_the_result_is_finite(name: str, learnt: bool) -> None:
    """A missing gene, a missing spot, an isolated spot, five spots; also when nothing was measured in training."""
    feed = CompleteFeed(missing=0.25 if learnt else 1.0)
    if learnt:
        feed.measured[:, 4] = feed.seen[:, 4] = False
        feed.y, feed.expr = feed.y * feed.measured, feed.expr * feed.seen
    model, batch = fitted(name, feed), hard()
    assert torch.isfinite(model(batch)).all()
    value, parts = model.loss(batch)  # type: ignore[operator]
    assert torch.isfinite(value) and torch.equal(value, parts["mse"])


@pytest.mark.parametrize("name", NAMES)
def test_a_fit_is_repeated_exactly(name: str) -> None:
    batch = CompleteFeed(hidden=0.3).batch()
    assert torch.equal(fitted(name)(batch), fitted(name)(batch))


def test_zero_and_gene_mean() -> None:
    feed = CompleteFeed()
    y = np.where(feed.measured, feed.y, np.nan)
    np.testing.assert_allclose(fitted("gene-mean")(feed.batch())[5], np.nanmean(y, axis=0), rtol=1e-5)
    assert not fitted("zero")(feed.batch()).any()


def test_slide_median_is_numpys() -> None:
    feed = CompleteFeed(hidden=0.3)
    feed.seen[feed.section == 1, 3] = False
    model = fitted("slide-median")
    assert isinstance(model, SlideMedian)
    made = model(feed.batch())
    for s in range(4):
        here = feed.section == s
        for g in range(6):
            values = feed.expr[here, g][feed.seen[here, g]].numpy()
            expected = np.median(values) if len(values) else float(model.mean[g])
            np.testing.assert_allclose(made[here, g], expected, rtol=1e-6)


def test_median_gives_what_the_feed_filled() -> None:
    batch = CompleteFeed().batch()
    batch.fill = torch.arange(batch.y.numel()).view(batch.y.shape).float()
    assert needs_of("median", {}) == Needs.FILL
    made = create("median", DIMS)(batch)  # type: ignore[operator]
    assert torch.equal(made, batch.fill) and made is not batch.fill
    with pytest.raises(ValueError, match="fill"):
        create("median", DIMS)(CompleteFeed().batch())  # type: ignore[operator]


def test_spot_gene_is_the_unbalanced_analysis_of_variance() -> None:
    feed = CompleteFeed()
    model = fitted("spot-gene")
    assert isinstance(model, SpotGene)
    mean = np.nanmean(np.where(feed.measured, feed.y, np.nan), axis=0)
    groups = [feed.y[s][feed.measured[s]].numpy() - mean[feed.measured[s]] for s in range(feed.n)]
    groups = [group for group in groups if len(group)]
    size = np.array([len(group) for group in groups])
    means, grand = np.array([group.mean() for group in groups]), np.concatenate(groups).mean()
    within = sum(((group - group.mean()) ** 2).sum() for group in groups) / (size.sum() - len(size))
    between = (size * (means - grand) ** 2).sum() - (len(size) - 1) * within
    between /= size.sum() - (size**2).sum() / size.sum()
    assert float(model.within) == pytest.approx(within, rel=1e-4)
    assert float(model.between) == pytest.approx(between, rel=1e-3) and between > 0
    test = CompleteFeed(hidden=0.3)
    made = model(test.batch())
    for s in (0, 40, 100):
        r = [float(test.expr[s, g]) - mean[g] for g in range(6) if test.seen[s, g]]
        np.testing.assert_allclose(made[s], mean + sum(r) / (len(r) + within / between), rtol=1e-3)


def test_moments_of_pairs_are_those_of_pandas() -> None:
    feed = CompleteFeed(missing=0.4)
    pairs = Pairs.sum(Pairs.of(b.y, b.y_mask, feed.inner_fold()[b.spot], 2) for b in feed.batches(17))
    frame = pd.DataFrame(np.where(feed.measured, feed.y.double(), np.nan))
    n = feed.measured.float().T @ feed.measured.float()
    normal = Normal.of(pairs.total())
    np.testing.assert_allclose(normal.mean, frame.mean(), rtol=1e-6)
    np.testing.assert_allclose(normal.sd, frame.std(ddof=0), rtol=1e-6)
    shrunk = frame.corr().to_numpy() * (n / (n + 20)).numpy()
    np.fill_diagonal(shrunk, 1.0)
    assert np.linalg.eigvalsh(shrunk).min() > 0  # so nothing was clipped
    np.testing.assert_allclose(normal.correlation, shrunk, atol=1e-6)
    half = frame[(feed.inner_fold() == 0).numpy()]
    np.testing.assert_allclose(Normal.of(pairs.without(1)).mean, half.mean(), rtol=1e-6)


def test_correlations_that_contradict_each_other_are_made_consistent() -> None:
    r = torch.tensor([[1, 0.9, -0.9], [0.9, 1, 0.9], [-0.9, 0.9, 1]], dtype=torch.float64)
    n = torch.full((1, 3, 3), 1e6, dtype=torch.float64)
    assert torch.linalg.eigvalsh(r).min() < -0.5
    normal = Normal.of(Pairs(n, 0 * n, n, r * n).total())
    assert torch.linalg.eigvalsh(normal.correlation).min() > -1e-9
    torch.testing.assert_close(normal.correlation.diagonal(), torch.ones(3, dtype=torch.float64))


def test_choosing_hides_the_same_share_each_time() -> None:
    feed = CompleteFeed(hidden=0.0)
    first, second = (torch.cat([hide for *_, hide in walk(feed, Needs.NONE)]) for _ in range(2))
    assert torch.equal(first, second) and first.shape == (feed.n, 25, 6)
    assert float(first.float().mean()) == pytest.approx(HIDDEN, abs=0.02)


def test_a_conditional_mean_is_the_textbooks() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=(5, 5))
    cov = a @ a.T + np.eye(5)
    sd, mean = np.sqrt(np.diag(cov)), rng.normal(size=5)
    normal = Normal(*(torch.from_numpy(v) for v in (mean, sd, cov / np.outer(sd, sd))))
    values, seen = rng.normal(size=(7, 5)), rng.random((7, 5)) < 0.6
    seen[3] = False
    made = normal.given(torch.from_numpy(values), torch.from_numpy(seen), 1e-9).numpy()
    for x, s, got in zip(values, seen, made, strict=True):
        expected = mean + cov[:, s] @ np.linalg.solve(cov[np.ix_(s, s)], (x - mean)[s])
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_low_rank_scores_are_ridge_on_what_is_seen() -> None:
    model, feed = fitted("low-rank", ranks=(2,), alphas=(1.0,)), CompleteFeed(hidden=0.3)
    assert isinstance(model, LowRank)
    made = model(feed.batch()).numpy()
    axes, mean, ridge = model.axes.numpy(), model.mean.numpy(), float(model.ridge)
    for s in range(0, feed.n, 7):
        seen = feed.seen[s].numpy()
        a, x = axes[seen], (feed.expr[s].numpy() - mean)[seen]
        z = np.linalg.solve(a.T @ a + ridge * np.eye(2), a.T @ x)
        np.testing.assert_allclose(made[s], mean + axes @ z, rtol=1e-4, atol=1e-4)


def test_low_rank_finds_rank_and_axes() -> None:
    g = torch.Generator().manual_seed(0)
    feed = CompleteFeed(6, missing=0.2)
    truth = torch.randn(feed.n, 1, generator=g) @ torch.tensor([[1.0, -2.0, 3.0, 1.0, 2.0, -1.0]])
    feed.y = (truth + 0.05 * torch.randn(truth.shape, generator=g)) * feed.measured
    model = fitted("low-rank", feed, ranks=(1, 4), alphas=(1.0,))
    assert isinstance(model, LowRank) and model.axes.shape[1] == 1
    axis = model.axes[:, 0] / model.axes[:, 0].norm()
    assert abs(float(axis @ torch.tensor([1.0, -2, 3, 1, 2, -1]))) > 0.98 * np.sqrt(20)


def test_ridge_visible_against_a_loop_over_spots() -> None:
    model, feed = fitted("ridge-visible", components=(2,)), CompleteFeed(hidden=0.3)
    assert isinstance(model, RidgeVisible)
    a, made = model.around, model(feed.batch())
    for s in range(0, feed.n, 9):
        level = torch.zeros(6)
        own, shared = torch.zeros(6), torch.zeros(6)
        for g in range(6):
            here = feed.expr[(feed.section == feed.section[s]) & feed.seen[:, g], g]
            level[g] = a.mean[g] + (here - a.mean[g]).sum() / (len(here) + 5)
            near = [n for n in feed.near[s].tolist()[1:] if n >= 0 and feed.seen[n, g]]
            values = [(feed.expr[n, g] - level[g]) / a.sd[g] for n in near]
            own[g] = sum(values) / (len(values) + a.shrink[g])
        shared = own @ a.axes
        first = torch.stack([
            a.coef[g] @ (torch.tensor([own[g], 1.0, *shared.tolist()]) / a.scale) for g in range(6)
        ])  # fmt: skip
        seen, r, sd = feed.seen[s], model.correlation, model.sd
        left = ((feed.expr[s] - level) / a.sd - first).double()
        z = ((left - model.mean) / sd)[seen]
        ridge = r[seen][:, seen] + float(model.alpha) * torch.eye(int(seen.sum()))
        second = model.mean + sd * (r[:, seen] @ torch.linalg.solve(ridge, z))
        torch.testing.assert_close(made[s], ((first + second) * a.sd + level).float(), rtol=1e-4, atol=1e-4)


def test_ridge_visible_solves_the_normal_equations_of_each_gene() -> None:
    model, feed = fitted("ridge-visible", components=(2,), ridges=(30.0,)), CompleteFeed()
    assert isinstance(model, RidgeVisible)
    a, pieces = model.around, list(model.around.walk(feed.reading(model.needs)))
    x = torch.cat([a._inputs(piece) for piece in pieces]).double() / a.scale
    y, measured = torch.cat([piece.y for piece in pieces]).double(), torch.cat([piece.measured for piece in pieces])
    for g in range(6):
        mine, truth = x[measured[:, g], g], y[measured[:, g], g]
        penalty = torch.diag(torch.tensor([30.0, 1e-3, 30.0, 30.0]))
        expected = torch.linalg.solve(mine.T @ mine + penalty, mine.T @ truth)
        torch.testing.assert_close(a.coef[g].double(), expected, rtol=1e-4, atol=1e-5)


def test_ridge_visible_uses_genes_neighbours_and_section() -> None:
    """On expression that follows place, spot and section it beats every control that knows less."""
    train, test = CompleteFeed(sides=(12, 12, 12, 12)), CompleteFeed(sides=(12, 12, 12, 12), hidden=0.3, seed=4)
    hidden = test.measured & ~test.seen
    error = {}
    for name in ("gene-mean", "slide-median", "spot-gene", "low-rank", "ridge-visible"):
        made = fitted(name, train)(test.batch())
        error[name] = float(((made - test.y)[hidden] ** 2).mean())
    assert min(error, key=error.__getitem__) == "ridge-visible"
    assert error["ridge-visible"] < 0.8 * error["low-rank"] < 0.8 * error["gene-mean"]


def test_penalties_and_sizes_are_checked() -> None:
    for name, arguments, message in [
        ("ridge-visible", {"alphas": (0.0, 1.0)}, r"alphas=.*above 0"),
        ("ridge-visible", {"ridges": ()}, r"ridges=\(\)"),
        ("ridge-visible", {"hops": 0}, r"hops=0"),
        ("low-rank", {"ranks": (0,)}, r"ranks=0"),
        ("low-rank", {"ranks": ()}, r"ranks=\(\)"),
        ("low-rank", {"alphas": (float("nan"),)}, r"alphas="),
    ]:
        with pytest.raises(ValueError, match=message):
            create(name, DIMS, **arguments)
