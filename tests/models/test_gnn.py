"""The graph network of Anand et al.: who is whose neighbour, how layers mix, and sections of any size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tests.models.section_batch import DIMS, Sections, close, count, make_batch, reached, take
from torch import Tensor

from histoweave.batch import Batch, Dims, Needs
from histoweave.models.predict import gnn
from histoweave.models.predict.gnn import GNN, TIE_UM, nearest_spots
from histoweave.pp.adjacency import nearest
from histoweave.train import load_recipe


@pytest.fixture(autouse=True)
def _fixed() -> None:
    torch.manual_seed(0)


def located(n: int = 20, *, pitch: float = 200.0) -> Batch:
    """A section of n spots on a lattice, in µm."""
    g = torch.Generator().manual_seed(2)
    made = make_batch(n)
    assert made.array_xy is not None
    return replace(
        made, xy=made.array_xy.flip(1) * pitch, pooled=torch.randn(n, DIMS.emb, generator=g),
        adjacency=torch.randn(n, 32, generator=g),
    )  # fmt: skip


def made(batch: Batch, **arguments: Any) -> GNN:
    model = GNN(DIMS, **(GNN.tiny() | arguments))
    model.index(Sections(batch))
    return model


def lattice(rows: int, columns: int) -> Tensor:
    r, c = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([c, r], -1).reshape(-1, 2) * 200.0


def brute(xy: np.ndarray, k: int) -> np.ndarray:
    """Spot by spot: others sorted by distance, then y, then x."""
    made = np.full((len(xy), k), -1)
    for i, spot in enumerate(xy):
        offset = np.delete(xy - spot, i, axis=0)
        order = np.lexsort((offset[:, 0], offset[:, 1], np.round(np.hypot(*offset.T), 6)))[:k]
        made[i, : len(order)] = np.delete(np.arange(len(xy)), i)[order]
    return made


@pytest.mark.parametrize("n", [1, 2, 5, 16, 17, 60])
@pytest.mark.parametrize("even", [True, False])
def test_nearest_spots_equal_a_search_by_hand(n: int, even: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(n)
    xy = lattice(8, 8).numpy()[rng.permutation(64)[:n]].astype(float) if even else rng.uniform(0, 3000, (n, 2)).round()
    found = nearest_spots(torch.from_numpy(xy), 15)
    assert np.array_equal(found.numpy(), brute(xy, 15))
    monkeypatch.setattr(gnn, "_CHUNK", 3 * n)
    assert torch.equal(nearest_spots(torch.from_numpy(xy), 15), found)


def test_ties_fall_as_in_the_pooled_embedding() -> None:
    """The feed's nearest spots count the spot itself; on a lattice 3 of 8 spots at one distance are taken."""
    xy = lattice(7, 9)[torch.randperm(63, generator=torch.Generator().manual_seed(0))]
    assert np.array_equal(nearest_spots(xy, 15), nearest(xy.numpy().astype(float), 16)[:, 1:])


def test_the_order_of_spots_does_not_decide_a_tie() -> None:
    xy = lattice(6, 6) - 517.3  # in float32, where equal distances are no longer equal
    order = torch.randperm(36, generator=torch.Generator().manual_seed(1))
    straight, moved = nearest_spots(xy, 15), nearest_spots(xy[order], 15)
    assert torch.equal(straight[order], order[moved])
    shaken = xy + (torch.rand(xy.shape, generator=torch.Generator().manual_seed(2)) - 0.5) * TIE_UM / 100
    assert torch.equal(nearest_spots(shaken, 15), straight)


def test_a_section_may_be_as_wide_as_one_likes() -> None:
    """Beyond 10 cm distances are told more coarsely, and keys still fit."""
    xy = torch.tensor([[0.0, 0], [50, 0], [0, 90], [3e6, 3e6], [3e6, 3e6 - 400], [-4e6, 1e6]], dtype=torch.float64)
    assert np.array_equal(nearest_spots(xy, 2), brute(xy.numpy(), 2))


def test_parameter_count() -> None:
    with torch.device("meta"):
        model = GNN(Dims(genes=250, emb=2048))
        assert count(GNN(Dims(genes=250, emb=2048), adjacency="paper")) == 12_474 + 2 * 32 * 32
    assert count(model) == (64 * 32 + 2 * 32) * 2 + 33 * 250 == 12_474
    assert model.needs == Needs.WHOLE_SECTION | Needs.POOLED | Needs.XY == GNN.needs
    assert (model.neighbours, model.layers[0].dropout.p) == (15, 0.8)


def test_the_recipe_of_the_paper() -> None:
    recipe = load_recipe("gnn", "paper")
    assert (recipe.optimizer, recipe.lr, recipe.epochs, recipe.patience) == ("nadam", 1e-3, 360, 54)
    assert (recipe.args, recipe.monitor) == ({}, "mse")


def test_layers_mix_a_spot_with_the_mean_of_its_neighbours() -> None:
    """Against a loop over spots, at evaluation with statistics that are not those of the start."""
    batch = located()
    model = made(batch)
    for _ in range(3):
        model.train()(batch)
    model.eval()
    x, near = model.inputs(batch), brute(batch.xy.double().numpy(), 6)
    for layer in model.layers:
        around = torch.stack([x[row].mean(0) for row in torch.from_numpy(near)])
        z = torch.cat([x, around], 1) @ layer.dense.weight.T
        z = (z - layer.norm.running_mean) / (layer.norm.running_var + layer.norm.eps).sqrt()
        x = torch.relu(z * layer.norm.weight + layer.norm.bias)
    close(model(batch), x @ model.head.weight.T + model.head.bias)
    assert float(model.layers[0].norm.running_mean.abs().max()) > 0.01


def test_spots_of_other_sections_are_no_neighbours() -> None:
    """Two sections at the same place in one batch are predicted as one after the other."""
    one = located()
    other = replace(located(), section=torch.ones(20, dtype=torch.long), pooled=one.pooled.flip(0))
    both = Batch(**{name: torch.cat([value, getattr(other, name)]) for name, value in one.items()})
    model = made(one).eval()
    mixed = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    close(model(take(both, mixed)), torch.cat([model(one), model(other)])[mixed])


@pytest.mark.parametrize("n", [1, 2, 4])
def test_small_sections_are_trained_on_and_predicted(n: int) -> None:
    model, part = made(located()), take(located(), torch.arange(n))
    value, _ = model.train().loss(part)
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(model.eval()(part)).all()
    assert torch.isfinite(model.layers[1].norm.running_var).all()


def test_graphs_are_remembered_but_never_mistaken(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = located()
    model, searches = made(batch).eval(), []

    def counted(xy: Tensor, k: int) -> Tensor:
        searches.append(len(xy))
        return nearest_spots(xy, k)

    monkeypatch.setattr(gnn, "nearest_spots", counted)
    monkeypatch.setattr(gnn, "_KEPT", 2)
    first = model(batch)
    assert torch.equal(model(batch), first) and searches == [20]
    moved = replace(batch, xy=batch.xy.roll(3, 0))  # the same section number and size, elsewhere
    fresh = made(batch).eval()
    fresh.load_state_dict(model.state_dict())
    close(model(moved), fresh(moved))
    assert not torch.allclose(model(moved), first)
    for section in range(5):
        model(replace(batch, section=batch.section + section))
    assert len(model._graphs) == 2


def test_a_gradient_reaches_every_parameter_and_hidden_values_do_not_matter() -> None:
    batch = located()
    model = made(batch)
    assert reached(model, batch) == {name for name, _ in model.named_parameters()}
    model.eval()
    mask = batch.y_mask.clone()
    mask[::3, 1] = False
    hidden = replace(batch, y=batch.y.masked_fill(~mask, torch.nan), y_mask=mask)
    close(model.loss(hidden)[0], ((model(batch) - batch.y)[mask] ** 2).mean())


def test_it_may_start_at_the_mean() -> None:
    batch = located()
    close(made(batch, start="mean").head.bias, batch.y.mean(0))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"start": "means"}, "start='means' is not one of 'random', 'mean'; did you mean 'mean'"),
        ({"hidden": 0}, "hidden=0; expected a whole number of 1 or more"),
        ({"neighbours": 0}, "neighbours=0; expected a whole number of 1 or more"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        GNN(DIMS, **arguments)
