"""gimVI: its loss against torch.distributions, scipy and plain loops; training, drawing and cells without counts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse, stats
from torch import Tensor
from torch.distributions import NegativeBinomial, Normal, kl_divergence

from histoweave.models.impute import gimvi
from histoweave.models.impute._imputed import Pair
from histoweave.models.impute._joint import Joint, drawn_spread, kl_normal, log_nb, log_zinb
from histoweave.models.impute.gimvi import GimVI

N, C, M, H = 40, 23, 6, 3
COUNTS, SEEN = (
    sparse.csr_matrix(np.random.default_rng(seed).poisson(1.5, shape).astype(np.float32))
    for seed, shape in ((0, (N, M + H)), (1, (C, M)))
)
SMALL = GimVI(latent=3, width=8, epochs=2, batch=16)


def terms(b: int = 5, g: int = 7) -> tuple[Tensor, ...]:
    """Counts, log means, log sizes and zero logits in float64."""
    rng = np.random.default_rng(3)
    parts = rng.poisson(2.0, (b, g)), rng.normal(0.5, 1, (b, g)), rng.normal(size=g), rng.normal(size=(b, g))
    return tuple(torch.from_numpy(part).double() for part in parts)


def test_negative_binomial_equals_torch_and_scipy() -> None:
    x, log_mean, log_size, _ = terms()
    found = log_nb(x, log_mean, log_size)
    theirs = NegativeBinomial(log_size.exp(), logits=log_mean - log_size).log_prob(x).sum(1)
    torch.testing.assert_close(found, theirs, atol=1e-12, rtol=0)
    size, mean = log_size.exp().numpy(), log_mean.exp().numpy()
    scipys = stats.nbinom.logpmf(x.numpy(), size, size / (size + mean)).sum(1)
    np.testing.assert_allclose(found.numpy(), scipys, atol=1e-10)


def test_zero_inflation_equals_a_plain_loop() -> None:
    x, log_mean, log_size, logits = terms()
    expected = []
    for i in range(len(x)):
        total = 0.0
        for j in range(x.shape[1]):
            size, mean = math.exp(log_size[j]), math.exp(log_mean[i, j])
            drawn = stats.nbinom.pmf(float(x[i, j]), size, size / (size + mean))
            share = 1 / (1 + math.exp(-logits[i, j]))
            total += math.log((share if x[i, j] == 0 else 0.0) + (1 - share) * drawn)
        expected.append(total)
    np.testing.assert_allclose(log_zinb(x, log_mean, log_size, logits).numpy(), expected, atol=1e-10)


def test_likelihoods_have_the_right_gradients_and_stay_finite() -> None:
    x, *rest = terms(3, 4)
    free = [part.requires_grad_() for part in rest]
    assert torch.autograd.gradcheck(lambda *given: log_nb(x, *given), free[:2])
    assert torch.autograd.gradcheck(lambda *given: log_zinb(x, *given), free)
    x = torch.tensor([[0.0, 0.0, 1e5, 1.0]])
    far = [torch.tensor(v).requires_grad_() for v in ([[-80.0, 20, 11, -80]], [80.0, -30, 0, 0], [[-90.0, 90, 0, 50]])]
    loss = log_zinb(x, *far).sum()
    loss.backward()
    assert torch.isfinite(loss) and all(torch.isfinite(part.grad).all() for part in far if part.grad is not None)


def test_divergences_equal_those_of_torch() -> None:
    rng = np.random.default_rng(4)
    mean, var = (torch.from_numpy(part) for part in (rng.normal(size=(5, 3)), rng.gamma(1.0, size=(5, 3))))
    for a, v in ((0.0, 1.0), (1.5, 0.3)):
        prior = Normal(torch.tensor(a, dtype=mean.dtype), torch.tensor(v, dtype=mean.dtype).sqrt())
        theirs = kl_divergence(Normal(mean, var.sqrt()), prior).sum(1)
        torch.testing.assert_close(kl_normal(mean, var, a, v), theirs, atol=1e-10, rtol=0)


def test_loss_terms_equal_those_of_scvi_tools() -> None:
    theirs = pytest.importorskip("scvi.distributions", reason="scvi-tools is not installed")
    x, log_mean, log_size, logits = terms()
    given = {"mu": log_mean.exp(), "theta": log_size.exp()}
    found = theirs.NegativeBinomial(**given).log_prob(x).sum(1)
    torch.testing.assert_close(log_nb(x, log_mean, log_size), found, atol=1e-4, rtol=0)
    found = theirs.ZeroInflatedNegativeBinomial(**given, zi_logits=logits).log_prob(x).sum(1)
    torch.testing.assert_close(log_zinb(x, log_mean, log_size, logits), found, atol=1e-4, rtol=0)


def network() -> Joint:
    torch.manual_seed(0)
    return Joint(Pair.of(COUNTS, SEEN), latent=3, width=8, dropout=0.5).eval()


@pytest.mark.parametrize("side", [0, 1])
@torch.no_grad()
def test_the_loss_of_a_side_from_its_parts(side: int) -> None:
    model, x = network(), torch.from_numpy((COUNTS, SEEN)[side].toarray())
    torch.manual_seed(1)
    loss, z = model(x, side, 0.25)
    torch.manual_seed(1)
    noise, size_noise = torch.randn(len(x), 3), torch.randn(len(x), 1)
    hidden = model.both(model.own[side](torch.log(1 + x)))
    latent = Normal(model.mean(hidden), model.log_var(hidden).div(2).exp())
    torch.testing.assert_close(z, latent.mean + latent.stddev * noise)
    apart = kl_divergence(latent, Normal(0.0, 1.0)).sum(1)
    share = model.share(z).softmax(1)
    size = model.log_sizes[side].exp()
    if side == 1:
        mean = share[:, :M] / share[:, :M].sum(1, keepdim=True) * x.sum(1, keepdim=True)
        drawn = NegativeBinomial(size, logits=mean.log() - size.log()).log_prob(x)
    else:
        totals = np.log(COUNTS.toarray().sum(1))
        middle, log_var = model.size(torch.log(1 + x)).T
        log_size = Normal(middle, (log_var.exp() + 1e-4).sqrt())
        apart = apart + kl_divergence(log_size, Normal(torch.tensor(totals.mean()), torch.tensor(totals.std())))
        mean = share * (log_size.mean + log_size.stddev * size_noise[:, 0]).exp()[:, None]
        drawn = NegativeBinomial(size, logits=mean.log() - size.log()).log_prob(x).exp()
        zero = model.inflation(z).sigmoid()
        drawn = (zero * (x == 0) + (1 - zero) * drawn).log()
    torch.testing.assert_close(loss, 0.25 * apart - drawn.sum(1), atol=1e-3, rtol=1e-5)


def test_it_learns_which_genes_go_together() -> None:
    """Two types of cells with different sizes: an imputed gene of one type goes where its shared genes are."""
    rng = np.random.default_rng(5)
    profile = np.array([[8, 8, 8, 1, 1, 1, 6, 0.3], [1, 1, 1, 8, 8, 8, 0.3, 6]])
    kind, where = rng.integers(0, 2, 300), rng.integers(0, 2, 200)
    ref = rng.poisson(profile[kind] * rng.uniform(0.5, 2, 300)[:, None])
    seen = rng.poisson(profile[where][:, :6] * rng.uniform(0.2, 0.5, 200)[:, None])
    made = GimVI(latent=4, width=16, epochs=25, batch=64, lr=1e-2)(sparse.csr_matrix(ref), sparse.csr_matrix(seen))
    assert np.corrcoef(made.values[:, 0], 1 - where)[0, 1] > 0.8 and np.corrcoef(made.values[:, 1], where)[0, 1] > 0.8
    total = (profile / profile.sum(1, keepdims=True))[where][:, 6:].sum(1)
    np.testing.assert_allclose(made.values.sum(1).mean(), total.mean(), rtol=0.2)
    assert made.notes["discriminated"] < 0.9


def test_a_last_batch_of_one_cell_joins_another() -> None:
    for c in (33, 17, 2):
        made = SMALL(sparse.vstack([COUNTS[:33]]), sparse.vstack([SEEN, SEEN])[:c])
        assert np.isfinite(made.values).all() and ((made.values > 0) & (made.values < 1)).all()
    rng = np.random.default_rng(0)
    assert [len(part) for part in gimvi._dealt(33, 16, rng)] == [16, 17]
    assert [len(part) for part in gimvi._dealt(34, 16, rng)] == [16, 16, 2]
    assert [len(part) for part in gimvi._dealt(5, 16, rng)] == [5]


def test_the_smaller_side_is_walked_again_and_again() -> None:
    large, small = (sparse.csr_matrix(np.arange(1.0, n + 1)[:, None]) for n in (21, 6))
    steps = list(GimVI(batch=5)._batches((large, small), np.random.default_rng(0)))
    assert [len(part[0]) for part in steps] == [6, 5, 5, 5]
    assert sorted(torch.cat([part[0] for part in steps]).flatten().tolist()) == list(range(1, 22))
    assert sorted(torch.cat([part[1] for part in steps]).flatten().tolist()) == sorted([*range(1, 7)] * 4)


def test_divergences_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Watched(Joint):
        weights: list[float] = []  # noqa: RUF012 - collected over all calls

        def forward(self, x: Tensor, side: int, weight: float) -> tuple[Tensor, Tensor]:
            self.weights.append(weight)
            return super().forward(x, side, weight)

    monkeypatch.setattr(gimvi, "Joint", Watched)
    GimVI(latent=2, width=4, epochs=4, warmup=2)(COUNTS, SEEN)
    assert Watched.weights == [0.0, 0.0, 0.5, 0.5, 1.0, 1.0, 1.0, 1.0]
    Watched.weights.clear()
    GimVI(latent=2, width=4, epochs=1, warmup=0)(COUNTS, SEEN)
    assert Watched.weights == [1.0, 1.0]


def test_the_discriminator_learns_without_moving_the_network() -> None:
    model = network()
    judge = torch.nn.Linear(3, 2)
    before, before_judge = [p.clone() for p in model.parameters()], judge.weight.clone()
    batch = [torch.from_numpy(COUNTS.toarray()), torch.from_numpy(SEEN.toarray())]
    SMALL._judge(model, judge, torch.optim.Adam(judge.parameters()), batch, torch.tensor([0] * N + [1] * C))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not torch.equal(judge.weight, before_judge)
    assert "discriminated" not in GimVI(latent=2, width=4, epochs=1, kappa=0.0)(COUNTS, SEEN).notes


def test_cells_without_counts_take_no_part_and_stay_finite() -> None:
    whole = SMALL(COUNTS, SEEN)
    ref = sparse.vstack([COUNTS[:7], sparse.csr_matrix((1, M + H)), COUNTS[7:]]).tocsr()
    seen = sparse.vstack([sparse.csr_matrix((1, M)), SEEN, sparse.csr_matrix((1, M))]).tocsr()
    made = SMALL(ref, seen)
    np.testing.assert_array_equal(made.values[1:-1], whole.values)
    np.testing.assert_array_equal(made.values[0], made.values[-1])
    assert np.isfinite(made.values).all() and (made.values > 0).all()
    assert made.notes["target cells without counts"] == 2


def test_a_spread_comes_from_draws_and_leaves_the_values() -> None:
    mean, var = torch.randn(4, 3), torch.rand(4, 3)
    model = network()
    with torch.no_grad():
        torch.manual_seed(6)
        found = drawn_spread(model, mean, var, 5)
        torch.manual_seed(6)
        draws = [model.share(mean + var.sqrt() * torch.randn(4, 3)).softmax(1)[:, M:] for _ in range(5)]
    np.testing.assert_allclose(found.numpy(), np.std([d.numpy() for d in draws], axis=0), atol=1e-6)
    none, some = SMALL(COUNTS, SEEN), GimVI(latent=3, width=8, epochs=2, batch=16, samples=4)(COUNTS, SEEN)
    assert none.spread is None and some.spread is not None
    np.testing.assert_array_equal(none.values, some.values)
    assert some.spread.shape == (C, H) and (some.spread > 0).all()


def test_nothing_outside_is_changed_and_seeds_decide() -> None:
    ref, seen, state = COUNTS.copy(), SEEN.copy(), torch.get_rng_state()
    first, again, other = (SMALL(ref, seen, seed=seed).values for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert (ref != COUNTS).nnz == 0 and (seen != SEEN).nnz == 0 and torch.equal(state, torch.get_rng_state())


def test_constant_and_silent_genes_do_no_harm() -> None:
    ref, seen = COUNTS.toarray(), SEEN.toarray()
    ref[:, 0], seen[:, 1], ref[:, 2], seen[:, 2], ref[:, M] = 0, 0, 3, 3, 0
    made = SMALL(sparse.csr_matrix(ref), sparse.csr_matrix(seen))
    assert np.isfinite(made.values).all() and np.isfinite(made.notes["loss"])
    same = sparse.csr_matrix(np.ones((N, M + H)))  # all cells alike and of one size
    assert np.isfinite(SMALL(same, same[:C, :M]).values).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "epochs=0; expected a whole number of 1 or more"),
        ({"batch": 1}, "batch=1; expected a whole number of 2 or more"),
        ({"samples": 1}, "samples=1; a spread needs 2 or more draws"),
        ({"dropout": 1.0}, "dropout=1.0; expected a number from 0 to below 1"),
        ({"kappa": -1.0}, "kappa=-1.0; expected a finite number of 0 or more"),
        ({"lr": math.nan}, "lr=nan; expected a finite number above 0"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GimVI(**arguments)


def test_what_cannot_be_trained_is_refused() -> None:
    with pytest.raises(ValueError, match="only one target cell has counts; a batch norm needs 2 or more"):
        SMALL(COUNTS, SEEN[:1])
    with pytest.raises(ValueError, match="no gene of the reference"):
        SMALL(COUNTS, SEEN[:, :0])
    with pytest.raises(FloatingPointError, match=r"the loss became .* in epoch .* of 3: give a lower lr than 1e\+30"):
        GimVI(latent=2, width=4, epochs=3, lr=1e30)(COUNTS, SEEN)
