"""EGN: exemplars, the bridging block, and what the authors' code does otherwise."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.models.exemplar_batch import DIMS, close, count, found, indexed, make_batch, reached, take

from histoweave.batch import Dims, Needs
from histoweave.models._layers import Attention
from histoweave.models._losses import masked_mse
from histoweave.models.predict.egn import COLOUR_MEAN, COLOUR_STD, EGN, _Alone, _Bridge, _pool


@pytest.fixture(autouse=True)
def _fixed() -> None:
    torch.manual_seed(0)


def model(**arguments: object) -> EGN:
    return EGN(DIMS, **(EGN.tiny() | arguments))


def test_parameter_counts() -> None:
    dims, d, inner = Dims(genes=250, emb=2048), 1024, 8 * 64
    with torch.device("meta"):
        assert count(EGN(dims, preset="readme", legacy="unused-layer")) == 133_356_794  # as measured
        lean = count(EGN(dims, preset="readme"))
        paper = count(EGN(dims))
    outputs = 4 * (inner * d + d)
    last_update = 2 * d + 256 * d + d  # the norm of the last exemplars, and half of the last layer of their gates
    assert 133_356_794 - lean == outputs + d + last_update
    # twice the heads widen the maps to the gates of 64 cells, of the tokens, and both ways back
    assert paper - lean == 4 * (2 * (inner * d + inner) + 2 * inner * d)


def test_presets() -> None:
    with torch.device("meta"):
        paper, readme = EGN(DIMS), EGN(DIMS, preset="readme")
        assert (paper.k, paper.layers[1].bridge.heads, paper.weight) == (9, 16, 1)
        assert (readme.k, readme.layers[1].bridge.heads, readme.weight) == (6, 8, 0.5)
        assert [layer.bridge is not None for layer in paper.layers] == [False, True] * 4
        assert EGN(DIMS, k=2, weight=0.0).k == 2


@pytest.mark.parametrize("trunk", ["trainable", "frozen"])
def test_reads_its_needs_only_and_trains_every_parameter(trunk: str) -> None:
    made, batch = indexed(model(trunk=trunk)).train(), make_batch()
    batch.array_xy = None
    if trunk == "frozen":
        batch.window = None
    assert made.needs == (Needs.EMB if trunk == "frozen" else Needs.WINDOW | Needs.EMB)
    assert reached(made, batch) == {name for name, _ in made.named_parameters()}


def test_unused_layers_change_no_prediction_and_never_learn() -> None:
    lean, full, batch = indexed(model()), indexed(model(legacy="unused-layer")), make_batch()
    state = full.state_dict()
    for name, own in lean.state_dict().items():
        state[name][tuple(slice(size) for size in own.shape)] = own
    full.load_state_dict(state)
    close(full.eval()(batch), lean.eval()(batch))
    idle = {name for name, _ in full.named_parameters()} - reached(full.train(), batch)
    assert idle == {f"layers.{i}.bridge.unused.{part}" for i in (1, 3) for part in ("weight", "bias")} | {
        f"layers.3.bridge.key_norm.{part}" for part in ("weight", "bias")
    }


@pytest.mark.parametrize("training", [True, False])
def test_exemplars_are_the_nearest_of_other_patients(training: bool) -> None:
    made, batch = indexed(model()).train(training), make_batch()
    near = made.exemplars(batch)
    assert torch.equal(near, found(made, batch, 2.0))
    own = made.bank.unit[near] == batch.section[:, None]
    assert not own.any() if training else own[:, 0].all()  # the bank's own spots find themselves outside training


def test_the_expression_of_the_exemplars_is_used() -> None:
    made, batch = indexed(model()).eval(), make_batch()
    before = made(batch)
    near = made.exemplars(batch)[0]
    for row, matters in ((near[-1], True), (next(i for i in range(len(made.bank)) if i not in near), False)):
        made.bank.values[row] += 1
        assert torch.allclose(made(batch)[0], before[0], atol=1e-6) != matters
        made.bank.values[row] -= 1


def test_both_places_of_the_expression_matter() -> None:
    batch = make_batch()
    for name in ("exemplar", "value"):  # as part of the exemplar, and as what it answers
        made = indexed(model()).eval()
        before = made(batch)
        getattr(made, name).weight.data[:, -DIMS.genes :] = 0
        assert not torch.allclose(made(batch), before, atol=1e-6)


def test_a_gene_that_an_exemplar_lacks_counts_as_its_training_mean() -> None:
    batch = make_batch()
    batch.y_mask[3, 2], batch.y[3, 2], batch.y_mask[5], batch.y[5] = False, torch.nan, False, torch.nan
    made = indexed(model(), batch).eval()
    assert len(made.bank) == len(batch) - 1  # without the spot that has none
    filled = replace(batch, y=batch.y.clone(), y_mask=batch.y_mask.clone())
    filled.y[3, 2], filled.y_mask[3, 2] = batch.y[batch.y_mask[:, 2], 2].mean(), True
    whole = indexed(model(), filled).eval()
    whole.load_state_dict(made.state_dict() | {"bank.values": filled.y[filled.y_mask.all(1)]})
    assert torch.isfinite(made(batch)).all() and made.bank.values.isnan().any()
    close(made(batch), whole(batch))


def test_bridging_block_spot_by_spot() -> None:
    b, t, k, d, heads = 2, 9, 3, 8, 2
    block = _Bridge(d, heads, 4, t, updates=True, unused=False)
    x, own, keys, values = (torch.randn(b, n, d) for n in (t, 1, k, k))
    got_x, got_own, got_keys = block(x, own, keys, values)
    for i in range(b):
        answered = own[i, 0].clone()
        for j in range(k):
            gates = block.gates(torch.cat([own[i, 0] - keys[i, j], keys[i, j]])).sigmoid()
            value = block.value(values[i, j])
            answered += gates[:d] * value / k
            close(got_keys[i, j], block.key_norm(keys[i, j] + gates[d:] * value))
        cells = block.map(answered).sigmoid().view(heads, t)
        passed = []
        for patch in range(t):
            token = block.tokens(x[i, patch]).view(heads, 4)
            passed.append(torch.cat([token[head] * cells[head, patch] for head in range(heads)]))
            close(got_x[i, patch], x[i, patch] + block.to_patches(passed[-1]))
        close(got_own[i, 0], own[i, 0] + block.to_own(torch.stack(passed).mean(0)))


def test_attention_of_a_single_token_is_attention() -> None:
    alone, full, x = _Alone(8, 0.0), Attention(8, 2), torch.randn(3, 1, 8)
    full.kv.weight.data[8:] = alone.value.weight.data
    full.out.load_state_dict(alone.out[0].state_dict())
    close(alone(x, x), full(x, x))
    assert model(trunk="frozen").position.shape[0] == model(side=8, patch=8).position.shape[0] == 1


def test_pool() -> None:
    score = torch.randn(2, 5, 3)
    weight = (0.1 * score).exp()
    close(_pool(score), score.mean(1) + 0.5 * (score * weight).sum(1) / weight.sum(1))


def test_patches_are_row_major_and_in_the_authors_colours() -> None:
    made, batch = model(), make_batch()
    x = (batch.window[0] / 255 - torch.tensor(COLOUR_MEAN).view(3, 1, 1)) / torch.tensor(COLOUR_STD).view(3, 1, 1)
    token = (made.patches.conv.weight * x[:, 8:16, 16:24]).sum((1, 2, 3)) + made.patches.conv.bias
    close(made.patches(batch.window)[0, 1 * 4 + 2], token)


def test_windows_of_another_side_are_resized() -> None:
    made, batch = indexed(model()).eval(), make_batch()
    large = replace(batch, window=batch.window.repeat_interleave(2, -1).repeat_interleave(2, -2))
    plain = [replace(batch, window=torch.full((len(batch), 3, side, side), 90, dtype=torch.uint8)) for side in (32, 57)]
    assert made(large).shape == made(batch).shape
    close(made(plain[0]), made(plain[1]))


def test_batch_mates_and_order_change_nothing() -> None:
    made, batch = indexed(model()).eval(), make_batch()
    rows = torch.tensor([9, 2, 2, 15])
    close(made(take(batch, rows)), made(batch)[rows])


def test_loss_adds_one_minus_the_correlation() -> None:
    made, batch = indexed(model(weight=0.25)).eval(), make_batch()
    value, parts = made.loss(batch)
    pred = made(batch)
    pcc = torch.stack(
        [torch.corrcoef(torch.stack([pred[:, i], batch.y[:, i]]))[0, 1] for i in range(DIMS.genes)]
    ).mean()
    close(value, masked_mse(pred, batch.y, batch.y_mask) + 0.25 * (1 - pcc))
    close(parts["pcc"], pcc)


def test_a_hidden_target_reaches_nothing() -> None:
    made, batch = indexed(model()).train(), make_batch()
    batch.y_mask[::2, 1] = False
    value = made.loss(batch)[0]
    batch.y[::2, 1] = torch.nan
    torch.testing.assert_close(made.loss(batch)[0], value)


def test_start_at_the_mean() -> None:
    batch = make_batch()
    made = indexed(model(start="mean"))
    close(made.head.bias, batch.y.mean(0))
    assert not torch.allclose(indexed(model()).head.bias, batch.y.mean(0))


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="did you mean 'readme'"):
        model(preset="readm")
    with pytest.raises(ValueError, match="trunk='resnet18' is not one of"):
        model(trunk="resnet18")
    with pytest.raises(ValueError, match="legacy='unused' is not one of"):
        model(legacy=("unused",))
    with pytest.raises(ValueError, match=r"dims\.emb is 0"):
        EGN(Dims(genes=5))
    with pytest.raises(ValueError, match=r"every=9, depth=4.*expected every <= depth"):
        model(every=9)
    with pytest.raises(ValueError, match="side=30 is not a multiple of patch=8"):
        model(side=30)
    with pytest.raises(ValueError, match=r"k=0; expected a whole number of 1 or more"):
        model(k=0)
    with pytest.raises(ValueError, match="no 'window'"):
        indexed(model())(replace(make_batch(), window=None))
    with pytest.raises(ValueError, match="no 'emb'"):
        indexed(model())(replace(make_batch(), emb=None))
