"""TRIPLEX: its loss, how its branches are joined, the reproduced defects, and bad input."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.models.triplex_batch import SIZES, TINY, close, count, make_batch, model, take
from torch import Tensor, nn

from histoweave.batch import Batch, Dims
from histoweave.models import blank
from histoweave.models.predict.triplex import Triplex


@pytest.fixture(autouse=True)
def _fixed() -> None:
    torch.manual_seed(0)


# -- loss -------------------------------------------------------------------------------------------------------------


def heads_of(made: Triplex, batch: Batch) -> dict[str, Tensor]:
    return {name: made.heads[name](view) for name, view in made._views(batch).items()}


def test_loss_is_the_formula() -> None:
    made, batch = model(alpha=0.3).eval(), make_batch()
    p = heads_of(made, batch)
    expected = (p["fused"] - batch.y).square().mean()
    for name in ("target", "neighbor", "global"):
        expected = expected + 0.7 * (p[name] - batch.y).square().mean() + 0.3 * (p[name] - p["fused"]).square().mean()
    close(made.loss(batch)[0], expected)
    alone, parts = model(auxiliary=False).loss(batch)
    assert list(parts) == ["fused"]
    assert alone.detach() == parts["fused"]


@pytest.mark.parametrize("detach", [True, False])
def test_detach_keeps_the_branches_from_teaching_the_fused_head(detach: bool) -> None:
    made, batch = model(detach=detach).eval(), make_batch()
    weight = made.heads["fused"].weight
    (full,) = torch.autograd.grad(made.loss(batch)[0], weight)
    (alone,) = torch.autograd.grad((made(batch) - batch.y).square().mean(), weight)
    assert torch.allclose(full, alone, atol=1e-6) is detach


def test_unmeasured_entries_do_not_count() -> None:
    made, batch = model().eval(), make_batch()
    batch.y_mask = torch.rand(batch.y.shape) < 0.6
    batch.y_mask[4] = False
    loss, _ = made.loss(batch)
    spoilt = replace(batch, y=batch.y.masked_fill(~batch.y_mask, torch.nan))
    again, _ = made.loss(spoilt)
    assert torch.equal(loss, again)
    again.backward()
    assert all(torch.isfinite(p.grad).all() for p in made.parameters())
    without = take(batch, torch.tensor([i for i in range(sum(SIZES)) if i != 4]))
    close(made.loss(without)[0], loss)  # a spot without any measurement weighs nothing
    assert made.loss(replace(batch, y_mask=torch.zeros_like(batch.y_mask)))[0] == 0


def test_parts_are_joined_as_in_the_paper() -> None:
    """One block, positions, the other blocks; then one global token asks both sets of tokens through shared layers."""
    made, batch = model(depth=2).eval(), make_batch()
    first, second = made.global_.blocks
    x = made.adapt(batch.pool_emb)
    x = made.peg(first(x, batch.pool_mask), batch.pool_rc, batch.pool_mask)
    x = made.global_.norm(second(x, batch.pool_mask)).flatten(0, 1)[batch.pool_row]
    near = made.neighbor(made.adapt(batch.ctx_emb), batch.ctx_mask)
    answers = []
    for context, mask in ((made.adapt(batch.emb)[:, None], None), (near, batch.ctx_mask)):
        z = x[:, None]
        for block in made.fusion.ask.blocks:
            z = block(z, mask, context)
        answers.append(z[:, 0])
    close(made(batch), made.heads["fused"](made.fusion.norm(answers[0] + answers[1])))
    views = made._views(batch)
    close(views["target"], made.adapt(batch.emb))
    close(views["global"], x)
    close(views["neighbor"][3], near[3][batch.ctx_mask[3]].mean(0))


@pytest.mark.parametrize("fusion", ["sum", "concat", "attention"])
def test_other_fusions_combine_the_pooled_branches(fusion: str) -> None:
    made, batch = model(fusion=fusion).eval(), make_batch()
    views = made._views(batch)
    x = torch.stack([views[name] for name in ("target", "neighbor", "global")], 1)
    if fusion == "attention":
        joined = (x * torch.softmax(made.fusion.score(x), 1)).sum(1)
    else:
        joined = x.sum(1) if fusion == "sum" else torch.cat(list(x.unbind(1)), 1)
    close(views["fused"], made.fusion.norm(joined))
    assert made.heads["fused"].in_features == joined.shape[1]


# -- branches ---------------------------------------------------------------------------------------------------------


def test_global_branch_sees_its_own_section_only() -> None:
    made, batch = model(target=False, neighbor=False).eval(), make_batch()
    before = made(batch)
    pool = batch.pool_emb.clone()
    pool[0, 6] += 1  # the last spot of section 0
    after = made(replace(batch, pool_emb=pool))
    assert (after[:7] - before[:7]).abs().amax(1).min() > 1e-6
    assert torch.equal(after[7:], before[7:])


@pytest.mark.parametrize(("peg", "matters"), [("apeg", True), ("peg", True), ("none", False)])
def test_lattice_matters_to_position_generators_only(peg: str, matters: bool) -> None:
    made, batch = model(peg=peg, target=False, neighbor=False).eval(), make_batch()
    moved = replace(batch, pool_rc=batch.pool_rc.flip(1).masked_fill(~batch.pool_mask[..., None], 0))
    shifted = replace(batch, pool_rc=batch.pool_rc + torch.tensor([5, 40]))
    assert torch.allclose(made(moved), made(batch), atol=1e-6) is not matters
    close(made(shifted), made(batch))


def test_place_of_a_tile_matters_once_the_bias_is_not_zero() -> None:
    made, batch = model(target=False, global_=False).eval(), make_batch()
    batch.ctx_mask = torch.ones_like(batch.ctx_mask)
    turned = replace(batch, ctx_emb=batch.ctx_emb[:, torch.randperm(25)])
    close(made(turned), made(batch))
    nn.init.normal_(made.neighbor.blocks[0].attention.bias)
    assert not torch.allclose(made(turned), made(batch), atol=1e-4)


def test_query_without_global_branch() -> None:
    batch = make_batch()
    learned, mean = model(global_=False, query="learned"), model(global_=False)
    assert count(learned) - count(mean) == TINY["width"]
    assert learned(batch).shape == mean(batch).shape == batch.y.shape
    assert model(query="learned").fusion.query is None  # the global token asks where there is one


# -- defects of the authors' code -------------------------------------------------------------------------------------


def test_legacy_ffn_width() -> None:
    for ratio in (1, 4):
        right, wrong = (model(ratio=ratio, legacy=legacy) for legacy in ((), "ffn-width"))
        assert right.neighbor.blocks[0].feed_forward[0].out_features == ratio * TINY["width"]
        assert wrong.neighbor.blocks[0].feed_forward[0].out_features == ratio
        assert wrong.global_.blocks[0].feed_forward[0].out_features == ratio * TINY["width"]


def test_legacy_eval_dropout() -> None:
    batch = make_batch()
    wrong = model(dropout=0.3, legacy="eval-dropout").eval()
    assert not torch.equal(wrong(batch), wrong(batch))
    local = model(dropout=0.3, legacy="eval-dropout", global_=False).eval()  # neighbours and fusion were not affected
    assert torch.equal(local(batch), local(batch))


def test_legacy_aux_mean_masked() -> None:
    batch = make_batch()
    other = replace(batch, ctx_emb=batch.ctx_emb + (~batch.ctx_mask)[..., None] * 3.0)  # outside the image only
    for legacy, same in (((), True), (("aux-mean-masked",), False)):
        made = model(legacy=legacy).eval()
        a, b = made.loss(batch)[1], made.loss(other)[1]
        assert torch.equal(a["neighbor"], b["neighbor"]) is same
        close(a["fused"], b["fused"])


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fusion": "sun"}, "did you mean 'sum'"),
        ({"peg": "apg"}, "did you mean 'apeg'"),
        ({"preset": "bc3"}, "'bc1', 'bc2', 'scc'"),
        ({"legacy": "ffn_width"}, "did you mean 'ffn-width'"),
        ({"query": "mean"}, "is not one of"),
        ({"heads": 3}, "width 16 cannot be split into 3 heads"),
        ({"depth": (1, 2)}, "depth=.*three"),
        ({"depth": 0}, "at least one block"),
        ({"alpha": 1.5}, "alpha=1.5"),
        ({"target": False, "neighbor": False, "global_": False}, "expected a branch"),
        ({"trunk": "resnet81"}, "did you mean 'resnet"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(**arguments)


def test_batches_are_checked() -> None:
    made, batch = model(), make_batch()
    with pytest.raises(ValueError, match="no 'ctx_emb'"):
        made(replace(batch, ctx_emb=None))
    with pytest.raises(ValueError, match="9 tiles a spot, but context=5 is 25"):
        made(replace(batch, ctx_emb=batch.ctx_emb[:, :9], ctx_mask=batch.ctx_mask[:, :9]))
    with pytest.raises(TypeError, match="expected integers"):
        made(replace(batch, pool_rc=batch.pool_rc.float()))
    with pytest.raises(ValueError, match="divide positions"):
        made(replace(batch, pool_rc=batch.pool_rc * 5000))
    with pytest.raises(ValueError, match="give an encoder"):
        Triplex(Dims(genes=6), **TINY)


@pytest.mark.parametrize(("name", "number"), [("tem", 11_304_762), ("nem", 4_859_818), ("gem", 9_586_938)])
def test_a_branch_alone_has_the_published_size(name: str, number: int) -> None:
    model = blank(name, {}, Dims(genes=250, emb=512))
    assert sum(p.numel() for p in model.parameters()) == number  # type: ignore[attr-defined]
