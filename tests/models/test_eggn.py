"""EGGN: the graph against brute force, its layers edge by edge, and what the authors' code does otherwise."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.models.exemplar_batch import DIMS, SIZES, close, count, found, indexed, make_batch, reached, take
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from histoweave.batch import Dims, Needs
from histoweave.models._losses import masked_mse
from histoweave.models.predict.eggn import EGGN, _Bridge, _Sage, lattice_neighbours, nearest_others, nodes


@pytest.fixture(autouse=True)
def _fixed() -> None:
    torch.manual_seed(0)


def model(**arguments: object) -> EGGN:
    return EGGN(DIMS, **(EGGN.tiny() | arguments))


def test_parameter_count() -> None:
    g, d, gates = 250, 512, 128
    inputs = d * d + (d + g) * d + d * d + g * d  # windows, exemplars, both, expression
    sage = 2 * d * d + d
    bridge = 3 * d * d + d * gates + gates * 2 * gates + 2 * gates + 2 * d + 2 * (d * d + d)
    end = d * d + d + 1 + d * g + g  # pool, its share, head
    with torch.device("meta"):
        assert count(EGGN(Dims(genes=g, emb=d))) == inputs + 4 * (2 * sage + bridge) + end == 11_277_051


@pytest.mark.parametrize("legacy", [(), "hidden-slice", ("hidden-slice", "value-decay")])
def test_reads_its_needs_only_and_trains_every_parameter(legacy: str | tuple[str, ...]) -> None:
    made, batch = indexed(model(legacy=legacy)).train(), make_batch()
    batch.window = None
    assert made.needs == Needs.EMB | Needs.ARRAY_XY | Needs.WHOLE_SECTION
    assert reached(made, batch) == {name for name, _ in made.named_parameters()}


# -- the graph ----------------------------------------------------------------------------------------------------


def test_lattice_neighbours_are_the_nearest_five() -> None:
    rc = torch.cartesian_prod(torch.arange(6), torch.arange(-3, 4))
    rc = torch.cat([rc[torch.randperm(len(rc))[:30]] for _ in range(2)])
    section = torch.arange(2).repeat_interleave(30)
    near = lattice_neighbours(rc, section)
    for i in range(len(rc)):
        steps = [(rc[j] - rc[i]).tolist() for j in range(len(rc))]
        close_by = [
            (r * r + c * c, r, c, j)
            for j, (r, c) in enumerate(steps)
            if 0 < r * r + c * c <= 2 and section[j] == section[i]
        ]
        expected = [j for *_, j in sorted(close_by)[:5]]
        assert near[i].tolist() == expected + [-1] * (5 - len(expected))
    assert lattice_neighbours(rc[:1], section[:1]).tolist() == [[-1] * 5]


def test_nodes_are_distinct_and_their_order_is_that_of_the_bank() -> None:
    near, section = torch.randint(0, 7, (12, 3)), torch.arange(2).repeat_interleave(6)
    refer, rows, of = nodes(near, section, 7)
    assert torch.equal(rows[refer], near) and torch.equal(of[refer], section[:, None].expand(-1, 3))
    assert len(rows) == len({(s, r) for s, some in zip(section.tolist(), near.tolist(), strict=True) for r in some})
    order = torch.randperm(12)
    again = nodes(near[order], section[order], 7)
    assert torch.equal(again[0], refer[order]) and torch.equal(again[1], rows) and torch.equal(again[2], of)


def test_nearest_others_are_those_of_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("histoweave.models.predict.eggn.ROWS", 4)  # several parts
    x, of = torch.randn(11, 5), torch.tensor([0] * 8 + [1] * 2 + [2])
    near = nearest_others(x, of, 3)
    for i in range(len(x)):
        others = [j for j in range(len(x)) if j != i and of[j] == of[i]]
        expected = sorted(others, key=lambda j: float((x[i] - x[j]).norm()))[:3]
        assert near[i].tolist() == expected + [-1] * (3 - len(expected))
    assert nearest_others(x[:1], of[:1], 3).shape == (1, 0)


def test_one_spot_with_one_exemplar() -> None:
    made, batch = indexed(model(k=1)).eval(), take(make_batch(), torch.tensor([4]))
    assert torch.isfinite(made(batch)).all()


# -- the layers ---------------------------------------------------------------------------------------------------


def test_sage_neighbour_by_neighbour() -> None:
    made, x = _Sage(4), torch.randn(3, 4)
    out = made(x, torch.tensor([[1, 2], [0, -1], [-1, -1]]))
    close(out[0], made.others((x[1] + x[2]) / 2) + made.own(x[0]))
    close(out[1], made.others(x[0]) + made.own(x[1]))
    close(out[2], made.others.bias + made.own(x[2]))


def test_bridge_edge_by_edge() -> None:
    d, gates, run = 8, 6, 4
    made = _Bridge(d, gates)
    for p in made.parameters():
        nn.init.normal_(p)
    x, e, v, refer = torch.randn(3, d), torch.randn(4, d), torch.randn(4, d), torch.tensor([[0, 1], [1, 3], [1, 2]])
    to_x, to_e = made(x, e, v, refer)
    xs, es, vs = made.window(x), made.exemplar(e), made.value(v)
    heard_x, heard_e = [[] for _ in x], [[] for _ in e]  # type: tuple[list[list[Tensor]], list[list[Tensor]]]
    for i, row in enumerate(refer.tolist()):
        for j in row:
            differ = made.ask(leaky_relu(es[j], 0.2)) - made.ask(leaky_relu(xs[i], 0.2))
            gate = made.gate(leaky_relu(differ, 0.2)).sigmoid()
            spread = [torch.stack([half[c // run] for c in range(3 * d)]) for half in (gate[:gates], gate[gates:])]
            message = [spread[0] * torch.cat([es[j], vs[j], xs[i]]), spread[1] * torch.cat([xs[i], es[j], vs[j]])]
            heard_x[i].append(sum(message[0].split(d)) / 3)
            heard_e[j].append(sum(message[1].split(d)) / 3)
    close(to_x, torch.stack([made.to_window(sum(m) / len(m) + made.window_bias) for m in heard_x]))
    close(to_e, torch.stack([made.to_exemplar(sum(m) / len(m) + made.exemplar_bias) for m in heard_e]))


def test_pool_leaves_out_what_cancels() -> None:
    """The authors' weights are a softmax of 0.1 · (exemplar - window) over the exemplars of a window."""
    made, batch = indexed(model()).eval(), make_batch()
    seen: list[tuple[Tensor, Tensor]] = []
    made.layers[-1].register_forward_hook(lambda _, given, out: seen.append((out, given[-1])))
    got = made(batch)
    (x, e), refer = seen[0]
    pooled = made.pool(x)
    weight = (0.1 * (e[refer] - pooled[:, None])).softmax(1)
    close(got, made.head(pooled + 0.1 * (weight * e[refer]).sum(1)))


# -- exemplars ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_exemplars_are_the_nearest_of_other_patients(training: bool) -> None:
    made, batch = indexed(model()).train(training), make_batch()
    rows = torch.tensor([20, 3, 3, 11])
    near = made.exemplars(take(batch, rows))
    assert torch.equal(near, found(made, batch, 1.0)[rows])
    own = made.bank.unit[near] == batch.section[rows, None]
    assert not own.any() if training else own[:, 0].all()
    assert not torch.equal(found(made, batch, 1.0), found(made, batch, 2.0))  # or the metric were not tested


def test_exemplars_are_cut_to_what_every_spot_may_find() -> None:
    made = indexed(model(k=50)).train()
    assert made.exemplars(make_batch()).shape == (sum(SIZES), sum(SIZES) - max(SIZES))


def test_the_expression_of_the_exemplars_is_used() -> None:
    made, batch = indexed(model()).eval(), make_batch()
    before = made(batch)
    made.bank.values[made.exemplars(batch)[0, -1]] += 1
    assert not torch.allclose(made(batch), before, atol=1e-6)


def given_to_layers(made: EGGN) -> tuple[list[Tensor], Tensor]:
    """The expression as each layer gets it, and that of the section's exemplars."""
    seen: list[Tensor] = []
    rows: list[Tensor] = []
    for layer in made.layers:
        layer.register_forward_hook(lambda _, given, out: seen.append(given[2]))
    made.value.register_forward_hook(lambda _, given, out: rows.append(given[0]))
    made(make_batch())
    return seen, rows[0]


def test_legacy_hidden_slice_passes_hidden_channels_for_expression() -> None:
    _, given = given_to_layers(indexed(model()).eval())
    made, batch = indexed(model(legacy="hidden-slice")).eval(), make_batch()
    _, rows, _ = nodes(made.exemplars(batch), batch.section, len(made.bank))
    close(given, made.bank.values[rows])
    _, instead = given_to_layers(made)
    shown = torch.cat([made.bank.keys[rows], made.bank.values[rows]], -1)
    hidden = leaky_relu(made.both(leaky_relu(made.exemplar(shown), 0.2)), 0.2)
    close(instead, hidden[:, -DIMS.genes :])


def test_legacy_value_decay_shrinks_what_is_negative() -> None:
    (first, second), _ = given_to_layers(indexed(model()).eval())
    assert torch.equal(first, second)
    (first, second), _ = given_to_layers(indexed(model(legacy="value-decay")).eval())
    close(second, torch.where(first < 0, first / 5, first))


# -- the whole ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_permuting_spots_permutes_predictions(training: bool) -> None:
    made, batch = indexed(model()).train(training), make_batch()
    order = torch.randperm(len(batch))
    torch.testing.assert_close(made(take(batch, order)), made(batch)[order], atol=2e-5, rtol=0)


def test_sections_of_a_batch_do_not_see_each_other() -> None:
    made, batch = indexed(model()).eval(), make_batch()
    for s in range(len(SIZES)):
        rows = torch.nonzero(batch.section == s).flatten()
        close(made(take(batch, rows)), made(batch)[rows])


def test_spots_of_a_section_do_see_each_other() -> None:
    made, batch = indexed(model()).eval(), make_batch()
    moved = replace(batch, emb=batch.emb.clone())
    moved.emb[0] += 1
    changed = (made(moved) - made(batch)).abs().amax(1) > 1e-6
    assert changed[1 : SIZES[0]].any() and not changed[SIZES[0] :].any()


def test_loss_adds_one_minus_the_correlation() -> None:
    made, batch = indexed(model()).eval(), make_batch()
    value, parts = made.loss(batch)
    pred = made(batch)
    pcc = torch.stack(
        [torch.corrcoef(torch.stack([pred[:, i], batch.y[:, i]]))[0, 1] for i in range(DIMS.genes)]
    ).mean()
    close(value, masked_mse(pred, batch.y, batch.y_mask) + 0.5 * (1 - pcc))
    close(parts["pcc"], pcc)


def test_start_at_the_mean() -> None:
    close(indexed(model(start="mean")).head.bias, make_batch().y.mean(0))


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="did you mean 'hidden-slice'"):
        model(legacy="hidden-slise")
    with pytest.raises(ValueError, match="start='zero' is not one of"):
        model(start="zero")
    with pytest.raises(ValueError, match=r"dims\.emb is 0"):
        EGGN(Dims(genes=5))
    with pytest.raises(ValueError, match=r"gates=7.*divisor of 3 · width = 96"):
        model(gates=7)
    with pytest.raises(ValueError, match="takes 40 of 32 channels"):
        EGGN(Dims(genes=40, emb=4), width=32, gates=8, legacy="hidden-slice")
    with pytest.raises(ValueError, match=r"k=0; expected a whole number of 1 or more"):
        model(k=0)
    with pytest.raises(ValueError, match="no 'array_xy'"):
        indexed(model())(replace(make_batch(), array_xy=None))
