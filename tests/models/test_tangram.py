"""Tangram against a toy case worked by hand, plain loops, automatic gradients and a plain account of the method."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import Tensor

from histoweave.models.impute._placement import Terms, objective, place
from histoweave.models.impute.tangram import Tangram

ALL = Terms(gene=0.7, spot=0.4, density=0.9, entropy=0.02)
N, C, M, H = 14, 9, 6, 4
GROUPS = np.array(["b", "a", "c"])[np.arange(N) % 3]
COUNTS, SEEN = (
    sparse.csr_matrix(np.random.default_rng(seed).poisson(1.5, shape).astype(np.float32))
    for seed, shape in ((0, (N, M + H)), (1, (C, M)))
)


def problem(n: int = 5, c: int = 7, m: int = 4) -> tuple[Tensor, ...]:
    """Logits, sources, target and density in float64."""
    rng = np.random.default_rng(2)
    share = rng.dirichlet(np.ones(n))
    source = np.hstack([rng.gamma(1.0, size=(n, m)) * share[:, None], share[:, None]])
    parts = rng.normal(size=(n, c)), source, rng.gamma(1.0, size=(c, m)), rng.dirichlet(np.ones(c))
    return tuple(torch.from_numpy(part) for part in parts)


def by_autograd(logits: Tensor, source: Tensor, target: Tensor, density: Tensor, terms: Terms) -> Tensor:
    """The objective from torch's own pieces."""
    p = logits.softmax(1)
    mixed = p.T @ source
    cosine = torch.nn.functional.cosine_similarity
    loss = -terms.gene * cosine(mixed[:, :-1], target, dim=0).mean()
    loss = loss - terms.spot * cosine(mixed[:, :-1], target, dim=1).mean()
    loss = loss + terms.density * torch.nn.functional.kl_div(mixed[:, -1].log(), density, reduction="sum")
    return loss + terms.entropy * torch.distributions.Categorical(probs=p).entropy().sum()


def test_the_loss_equals_a_plain_loop() -> None:
    logits, source, target, density = problem()
    p = logits.softmax(1)
    n, c = p.shape
    made = [[sum(float(p[i, j] * source[i, g]) for i in range(n)) for g in range(4)] for j in range(c)]

    def cosine(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True)) / np.sqrt(sum(x * x for x in a) * sum(y * y for y in b))

    goal = target.tolist()
    loss = -0.7 * np.mean([cosine([row[g] for row in made], [row[g] for row in goal]) for g in range(4)])
    loss -= 0.4 * np.mean([cosine(made[j], goal[j]) for j in range(c)])
    for j in range(c):
        lies = sum(float(p[i, j] * source[i, -1]) for i in range(n))
        loss += 0.9 * float(density[j]) * np.log(float(density[j]) / lies)
    loss -= 0.02 * sum(float(x) * np.log(float(x)) for x in p.flatten())
    assert float(objective(p, source, target, density, ALL)[0]) == pytest.approx(loss, abs=1e-12)


@pytest.mark.parametrize("terms", [ALL, Terms(), Terms(gene=0, spot=1, density=0), Terms(density=0)])
def test_loss_and_slope_equal_automatic_ones(terms: Terms) -> None:
    logits, source, target, density = problem()
    loss, slope = objective(logits.softmax(1), source, target, density, terms)
    free = logits.clone().requires_grad_()
    expected = by_autograd(free, source, target, density, terms)
    expected.backward()
    p = logits.softmax(1)
    torch.testing.assert_close(loss, expected.detach(), atol=1e-12, rtol=0)
    torch.testing.assert_close(p * (slope - (p * slope).sum(1, keepdim=True)), free.grad, atol=1e-12, rtol=0)


def test_the_descent_equals_adam_on_automatic_gradients() -> None:
    _, source, target, density = (part.float() for part in problem())
    found, loss = place(source, target, density, ALL, epochs=20, lr=0.1, generator=torch.Generator().manual_seed(3))
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(3)).requires_grad_()
    adam = torch.optim.Adam([logits], lr=0.1)
    for _ in range(20):
        adam.zero_grad()
        by_autograd(logits, source, target, density, ALL).backward()
        adam.step()
    torch.testing.assert_close(found, logits.detach(), atol=1e-3, rtol=0)
    assert loss == pytest.approx(float(by_autograd(logits, source, target, density, ALL).detach()), abs=1e-5)


def test_two_cells_and_two_spots_by_hand() -> None:
    """Each cell has a gene of its own and each spot one of them: cells belong to the spot of their gene, at cosine 1.

    Where both cells lie half and half, each gene is made alike at both spots: (1, 1) · (1, 0) / √2 = 0.7071.
    """
    source, target = torch.tensor([[0.5, 0.0, 0.5], [0.0, 0.5, 0.5]]), torch.eye(2)
    even = torch.tensor([0.5, 0.5])
    assert float(objective(torch.full((2, 2), 0.5), source, target, even, Terms())[0]) == pytest.approx(-(0.5**0.5))
    assert float(objective(torch.eye(2), source, target, even, Terms())[0]) == pytest.approx(-1)
    crossed = objective(torch.eye(2).flip(0), source, target, even, Terms())[0]
    assert float(crossed) == pytest.approx(0, abs=1e-6)  # every gene lies where it was not measured
    counts = sparse.csr_matrix([[5.0, 0, 5, 0], [0, 8, 0, 8]])  # each with an imputed gene of its own
    for seed in range(3):
        made = Tangram(epochs=300)(counts, sparse.csr_matrix([[3.0, 0], [0, 3]]), seed=seed)
        np.testing.assert_allclose(made.values, [[5000, 0], [0, 5000]], atol=150)
        assert made.notes["loss"] == pytest.approx(-1, abs=1e-2)


def plain(mode: str, density: str, epochs: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Imputed values, divided and not, and their spread, one step after the other on dense tables."""
    ref, seen = COUNTS.toarray().astype(float), SEEN.toarray().astype(float)
    cells, goal = 1e4 * ref / ref.sum(1, keepdims=True), 1e4 * seen / seen.sum(1, keepdims=True)
    names = sorted(set(GROUPS)) if mode == "clusters" else list(range(N))
    labels = list(GROUPS) if mode == "clusters" else names
    members = [[i for i in range(N) if labels[i] == name] for name in names]
    mean = np.array([cells[rows].mean(0) for rows in members])
    share = np.array([len(rows) / N for rows in members])
    prior = seen.sum(1) / seen.sum() if density == "rna_count" else np.full(C, 1 / C)
    source = torch.from_numpy(np.hstack([mean[:, :M] * share[:, None], share[:, None]]))
    logits = torch.randn(len(names), C, generator=torch.Generator().manual_seed(seed)).double().requires_grad_()
    adam = torch.optim.Adam([logits], lr=0.1)
    for _ in range(epochs):
        adam.zero_grad()
        by_autograd(logits, source, torch.from_numpy(goal), torch.from_numpy(prior), Terms()).backward()
        adam.step()
    p = logits.softmax(1).detach().numpy()
    values, total, spread = np.zeros((C, H)), np.zeros((C, H)), np.zeros((C, H))
    for j in range(C):
        mass = [p[k, j] / len(rows) * share[k] * N for k, rows in enumerate(members) for _ in rows]  # of each cell
        lies = [cells[i, M:] for rows in members for i in rows]
        total[j] = sum(w * x for w, x in zip(mass, lies, strict=True))
        values[j] = total[j] / sum(mass)
        spread[j] = np.sqrt(sum(w * (x - values[j]) ** 2 for w, x in zip(mass, lies, strict=True)) / sum(mass))
    return values, total, spread


@pytest.mark.parametrize("mode", ["cells", "clusters"])
@pytest.mark.parametrize("density", ["rna_count", "uniform"])
def test_equals_a_plain_account_of_the_method(mode: Any, density: Any) -> None:
    divided, total, spread = plain(mode, density, 15, seed=4)
    made = Tangram(mode=mode, density=density, epochs=15)(COUNTS, SEEN, seed=4, groups=GROUPS)
    np.testing.assert_allclose(made.values, divided, rtol=2e-3)
    assert made.spread is not None
    np.testing.assert_allclose(made.spread, spread, rtol=2e-3)
    public = Tangram(mode=mode, density=density, epochs=15, legacy="undivided")(COUNTS, SEEN, seed=4, groups=GROUPS)
    np.testing.assert_allclose(public.values, total, rtol=2e-3)
    assert public.spread is None


def test_undivided_values_grow_with_what_lies_at_a_cell() -> None:
    """A gene that every reference cell expresses alike is imputed alike, but for the defect, by mass."""
    ref = sparse.hstack([COUNTS[:, :M], (COUNTS[:, :M].sum(1))]).tocsr()  # half of each cell's counts
    few = SEEN.multiply(np.where(np.arange(C) < 4, 1, 20)[:, None]).tocsr()
    flat = Tangram(epochs=300)(ref, few)
    np.testing.assert_allclose(flat.values, 5000, rtol=1e-5)
    assert flat.spread is not None and flat.spread.max() < 1
    grown = Tangram(epochs=300, legacy="undivided")(ref, few).values[:, 0]
    assert grown[4:].min() > 2 * grown[:4].max()
    assert grown.sum() == pytest.approx(5000 * N, rel=1e-4)


def test_a_bag_is_solved_by_itself() -> None:
    made = Tangram(epochs=10, bag=4)(COUNTS, SEEN, seed=5)
    first = np.sort(np.random.default_rng(5).permutation(C)[:3])
    assert made.notes["bags"] == 3
    np.testing.assert_array_equal(made.values[first], Tangram(epochs=10)(COUNTS, SEEN[first], seed=5).values)
    assert len(np.unique(made.values[:, 0])) == C  # every cell was placed
    one = Tangram(epochs=10, mode="clusters", bag=4)(COUNTS, SEEN, groups=GROUPS)
    assert one.notes["bags"] == 1


@pytest.mark.parametrize("mode", ["cells", "clusters"])
def test_cells_without_counts_take_no_part_and_get_the_mean(mode: Any) -> None:
    whole = Tangram(mode=mode, epochs=10)(COUNTS, SEEN, groups=GROUPS)
    blank = sparse.csr_matrix((1, M + H))
    only = sparse.csr_matrix(([7.0], ([0], [M + 1])), shape=(1, M + H))  # counts, but none of a shared gene
    ref = sparse.vstack([blank, COUNTS, only]).tocsr()
    seen = sparse.vstack([SEEN[:2], blank[:, :M], SEEN[2:]]).tocsr()
    groups = np.array(["b", *GROUPS, "z"])
    made = Tangram(mode=mode, epochs=10)(ref, seen, groups=groups)
    assert (Tangram(mode=mode, epochs=1, legacy="undivided")(ref, seen, groups=groups).values[2] == 0).all()
    np.testing.assert_array_equal(np.delete(made.values, 2, axis=0), whole.values)
    cells = COUNTS.toarray() / COUNTS.toarray().sum(1, keepdims=True) * 1e4
    assert made.spread is not None
    np.testing.assert_allclose(made.values[2], cells[:, M:].mean(0), rtol=1e-5)
    np.testing.assert_allclose(made.spread[2], cells[:, M:].std(0), rtol=1e-5)
    assert made.notes["target cells without counts"] == 1 and made.notes["reference cells left out"] == 2


def test_genes_without_counts_take_no_part_and_constant_ones_do_no_harm() -> None:
    ref, seen = COUNTS.toarray(), SEEN.toarray()
    ref[:, 0], seen[:, 1], ref[:, 2], seen[:, 2] = 0, 0, 3, 3
    made = Tangram(epochs=20, spot_weight=1.0, entropy_weight=0.1)(sparse.csr_matrix(ref), sparse.csr_matrix(seen))
    assert made.notes["genes left out"] == 2
    assert np.isfinite(made.values).all() and np.isfinite(made.spread).all()  # type: ignore[arg-type]
    ref[:, 1:M] = 0
    with pytest.raises(ValueError, match="none of 6 shared genes has counts both in"):
        Tangram(epochs=1)(sparse.csr_matrix(ref + np.eye(1, M + H)), sparse.csr_matrix(seen * (np.arange(M) > 0)))


def test_the_order_of_genes_and_long_descents_do_no_harm() -> None:
    order = np.array([3, 0, 5, 1, 4, 2])
    made = Tangram(epochs=10)(COUNTS, SEEN)
    turned = Tangram(epochs=10)(COUNTS[:, [*order, 9, 8, 7, 6]], SEEN[:, order])
    np.testing.assert_allclose(turned.values, made.values[:, ::-1], rtol=1e-3)
    # Probabilities that fall to 0 in float32 leave columns without mass, which still have a mean.
    far = Tangram(epochs=100, lr=20.0)(COUNTS, SEEN)
    assert np.isfinite(far.values).all() and np.isfinite(far.notes["loss"])
    assert np.isfinite(Tangram(epochs=5)(COUNTS, SEEN[:1]).values).all()


def test_nothing_outside_is_changed_and_seeds_decide() -> None:
    ref, seen, state = COUNTS.copy(), SEEN.copy(), torch.get_rng_state()
    first, again, other = (Tangram(epochs=5, bag=4)(ref, seen, seed=seed).values for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert (ref != COUNTS).nnz == 0 and (seen != SEEN).nnz == 0
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "cell"}, "mode='cell' is not one of.*did you mean 'cells'"),
        ({"density": "flat"}, "density='flat' is not one of 'rna_count', 'uniform'"),
        ({"legacy": ("undivided", "lower")}, "legacy='lower' is not one of 'undivided'"),
        ({"epochs": 0}, "epochs=0; expected a whole number of 1 or more"),
        ({"bag": 1}, "bag=1; expected a whole number of 2 or more"),
        ({"lr": 0.0}, "lr=0.0; expected a finite number above 0"),
        ({"spot_weight": -1.0}, "spot_weight=-1.0; expected a finite number of 0 or more"),
        ({"gene_weight": 0.0}, "gene_weight and spot_weight are both 0"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tangram(**arguments)


def test_what_cannot_be_placed_is_refused() -> None:
    with pytest.raises(ValueError, match="None was given; mode='clusters' expects the cell type of each of 14"):
        Tangram(mode="clusters")(COUNTS, SEEN)
    with pytest.raises(ValueError, match=r"shape \(3,\) was given; mode='clusters' expects"):
        Tangram(mode="clusters")(COUNTS, SEEN, groups=GROUPS[:3])
    with pytest.raises(ValueError, match="no gene of the reference"):
        Tangram()(COUNTS, SEEN[:, :0])
    with pytest.raises(FloatingPointError, match="the loss became nan in epoch 2 of 5: give a lower lr than 1e\\+39"):
        Tangram(epochs=5, lr=1e39)(COUNTS, SEEN)
