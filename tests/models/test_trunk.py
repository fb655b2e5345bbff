"""Trainable trunks: tokens, weights, symmetries."""

from __future__ import annotations

import pytest
import torch

from histoweave.models._trunk import Trunk, random_symmetry, symmetries


@pytest.fixture(autouse=True)
def _fixed() -> None:
    torch.manual_seed(0)


def test_symmetries_are_the_eight_of_the_square() -> None:
    window = torch.arange(9, dtype=torch.uint8).view(1, 1, 3, 3)
    expected = {tuple(m.rot90(k).flatten().tolist()) for k in range(4) for m in (window[0, 0], window[0, 0].T)}
    assert len(expected) == 8
    assert {tuple(view.flatten().tolist()) for view in symmetries(window)} == expected
    drawn = random_symmetry(window.expand(4000, -1, -1, -1))
    seen, counts = drawn.flatten(1).unique(dim=0, return_counts=True)
    assert {tuple(row.tolist()) for row in seen} == expected
    assert (counts - 500).abs().max() < 5 * 21  # five binomial standard deviations


@pytest.mark.parametrize(
    ("name", "px", "tokens"), [("test_resnet", 64, 4), ("test_vit", 160, 100), ("test_mambaout", 64, 4)]
)
def test_trunk_gives_tokens_of_the_map(name: str, px: int, tokens: int) -> None:
    trunk = Trunk(name).eval()
    out = trunk(torch.zeros(2, 3, px, px, dtype=torch.uint8))
    assert out.shape == (2, tokens, trunk.width)


def test_trunk_tokens_are_in_raster_order_and_normalised() -> None:
    trunk, window = Trunk("test_resnet").eval(), torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    x = (window.float() / 255 - trunk.mean) / trunk.std
    torch.testing.assert_close(trunk.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))
    features = trunk.net.forward_features(x)  # (2, c, 2, 2)
    torch.testing.assert_close(trunk(window), torch.stack([features[:, :, r, c] for r in (0, 1) for c in (0, 1)], 1))


@pytest.mark.parametrize("prefix", ["", "model.", "module.model.resnet."])
def test_trunk_takes_weights_under_a_prefix(prefix: str) -> None:
    source = Trunk("test_resnet").net.state_dict()
    wrapped = {prefix + key: value for key, value in source.items()} | {prefix + "fc.weight": torch.zeros(2, 2)}
    trunk = Trunk("test_resnet", init=wrapped)
    assert trunk.init == "given"
    assert all(torch.equal(value, source[key]) for key, value in trunk.net.state_dict().items())
    assert Trunk("test_resnet").init == "random"
    assert not torch.equal(next(Trunk("test_resnet").net.parameters()), next(iter(source.values())))


def test_trunk_takes_the_spelling_of_the_densenet_file() -> None:
    trunk = Trunk("densenet121")
    own = trunk.net.state_dict()
    state = {key.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): own[key] + 1 for key in own}
    assert any(".norm.1." in key for key in state)
    trunk.load(state)
    assert torch.equal(trunk.net.features.denseblock1.denselayer1.norm1.weight, torch.full((64,), 2.0))


def test_trunk_refuses_weights_that_do_not_fit() -> None:
    trunk = Trunk("test_resnet")
    before = {key: value.clone() for key, value in trunk.net.state_dict().items()}
    first = next(iter(before))
    for state in ({key: value for key, value in before.items() if key != first}, before | {first: torch.zeros(1)}):
        with pytest.raises(ValueError, match=f"do not fit trunk 'test_resnet': 1 of .*{first}"):
            trunk.load({key: value + 1 for key, value in state.items()})
    assert all(torch.equal(value, before[key]) for key, value in trunk.net.state_dict().items())
    assert trunk.init == "random"
