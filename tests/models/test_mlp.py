"""The dense network of Anand et al.: sizes, order of its layers, what it starts from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.models.section_batch import DIMS, Sections, close, count, make_batch, reached
from torch import nn

from histoweave.batch import Batch, Dims, Needs
from histoweave.models.predict.mlp import MLP
from histoweave.train import load_recipe


@pytest.fixture(autouse=True)
def _fixed() -> None:
    torch.manual_seed(0)


def located() -> Batch:
    g = torch.Generator().manual_seed(2)
    made = make_batch()
    return replace(
        made, adjacency=torch.randn(len(made), 32, generator=g), pooled=torch.randn(len(made), DIMS.emb, generator=g)
    )


def made(**arguments: Any) -> tuple[MLP, Batch]:
    model, batch = MLP(DIMS, **(MLP.tiny() | arguments)), located()
    model.index(Sections(batch))
    return model, batch


@pytest.mark.parametrize(
    ("arguments", "parameters", "needs"),
    [
        ({"adjacency": "paper"}, 28_730, Needs.EMB | Needs.ADJACENCY_RAW),  # the published count
        ({"adjacency": "sign"}, 28_730, Needs.EMB | Needs.ADJACENCY),
        ({}, 28_730 - 32 * 64, Needs.EMB),
        ({"input": "pooled"}, 28_730 - 32 * 64, Needs.POOLED),
    ],
)
def test_parameter_count(arguments: dict[str, Any], parameters: int, needs: Needs) -> None:
    with torch.device("meta"):
        model = MLP(Dims(genes=250, emb=2048), **arguments)
    assert count(model) == parameters and model.needs == needs


def test_the_recipe_of_the_paper_builds_the_network_of_the_paper() -> None:
    recipe = load_recipe("mlp", "paper")
    with torch.device("meta"):
        assert count(MLP(Dims(genes=250, emb=2048), **recipe.args)) == 28_730
    assert (recipe.optimizer, recipe.lr, recipe.batch, recipe.epochs) == ("adam", 1e-3, 32, 1000)
    assert (recipe.patience, recipe.monitor) == (30, "mse")


def test_layers_stand_in_the_order_of_the_paper() -> None:
    model, batch = made()
    assert [type(part).__name__ for part in model.layers] == ["Linear", "ReLU", *["Linear", "ReLU", "Dropout"] * 2]
    x = model.inputs(batch)
    dense = [part for part in model.layers if isinstance(part, nn.Linear)]
    for part in dense:
        x = torch.relu(x @ part.weight.T + part.bias)
    close(model.eval()(batch), x @ model.head.weight.T + model.head.bias)


def test_dropout_is_random_in_training_only() -> None:
    model, batch = made()
    assert not torch.equal(model.train()(batch), model(batch))
    assert torch.equal(model.eval()(batch), model(batch))


def test_a_gradient_reaches_every_parameter_and_hidden_values_do_not_matter() -> None:
    model, batch = made()
    assert reached(model, batch) == {name for name, _ in model.named_parameters()}
    model.eval()
    mask = batch.y_mask.clone()
    mask[::3, 1] = False
    hidden = replace(batch, y=batch.y.masked_fill(~mask, torch.nan), y_mask=mask)
    close(model.loss(hidden)[0], ((model(batch) - batch.y)[mask] ** 2).mean())


def test_it_may_start_at_the_mean() -> None:
    model, batch = made(start="mean")
    close(model.head.bias, batch.y.mean(0))
    assert not torch.equal(made(start="random")[0].head.bias, model.head.bias)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"start": "means"}, "start='means' is not one of 'random', 'mean'; did you mean 'mean'"),
        ({"hidden": 0}, "hidden=0; expected a whole number of 1 or more"),
        ({"dropout": 1.5}, "dropout probability has to be between 0 and 1, but got 1.5"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        MLP(DIMS, **arguments)
