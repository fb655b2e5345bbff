"""TRIPLEX: published sizes, invariances, the loss, the position generator, ablations, and the reproduced defects."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from histoweave.batch import Batch, Dims, Needs
from histoweave.models._layers import Attention, Block, GridConv, Stack, grid_offsets, square_packing
from histoweave.models.predict.triplex import Triplex

DIMS = Dims(genes=6, emb=12)
SIZES = (7, 9, 4)  # spots of the three sections of the test pool
TINY = Triplex.tiny()
STILL = TINY | {"dropout": 0.0, "augment": False}
FROZEN = STILL | {"trunk": "frozen"}


@pytest.fixture(autouse=True)
def _fixed() -> None:
    torch.manual_seed(0)


def make_batch(rows: Tensor | None = None, *, sizes: tuple[int, ...] = SIZES) -> Batch:
    """Every field of every spot of a small cohort, or the given rows of it, with a pool of the sections present."""
    g = torch.Generator().manual_seed(1)
    n, longest = sum(sizes), max(sizes)
    section = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    within = torch.cat([torch.arange(size) for size in sizes])
    mask = torch.arange(longest) < torch.tensor(sizes)[:, None]
    emb = torch.randn(n, DIMS.emb, generator=g)
    pool = torch.zeros(len(sizes), longest, DIMS.emb)
    pool[section, within] = emb
    rc = torch.zeros(len(sizes), longest, 2, dtype=torch.long)
    for s, size in enumerate(sizes):  # distinct cells of a 5 × 4 lattice, at another origin in each section
        cells = torch.randperm(20, generator=g)[:size]
        rc[s, :size] = torch.stack([cells // 4 + 10 * s, cells % 4 + 3], -1)
    ctx_mask = torch.rand(n, 25, generator=g) < 0.8
    ctx_mask[:, 12] = True
    made = Batch(
        spot=torch.arange(n), section=section,
        y=torch.randn(n, DIMS.genes, generator=g), y_mask=torch.ones(n, DIMS.genes, dtype=torch.bool),
        window=torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=g), emb=emb,
        ctx_emb=torch.randn(n, 25, DIMS.emb, generator=g), ctx_mask=ctx_mask,
        pool_emb=pool, pool_rc=rc, pool_mask=mask, pool_row=section * longest + within,
    )  # fmt: skip
    return made if rows is None else take(made, rows)


def take(batch: Batch, rows: Tensor) -> Batch:
    """Rows of a batch, with only the sections that are still present in its pool, cut to the longest of them."""
    longest = batch.pool_mask.shape[1]
    of, within = batch.pool_row[rows] // longest, batch.pool_row[rows] % longest
    present, where = torch.unique(of, return_inverse=True)
    keep = int(batch.pool_mask[present].sum(1).max())
    spots = ("spot", "section", "y", "y_mask", "window", "emb", "ctx_emb", "ctx_mask")
    return replace(
        batch, **{name: getattr(batch, name)[rows] for name in spots},
        **{name: getattr(batch, name)[present, :keep] for name in ("pool_emb", "pool_rc", "pool_mask")},
        pool_row=where * keep + within,
    )  # fmt: skip


def model(**arguments: object) -> Triplex:
    return Triplex(DIMS, **(FROZEN | arguments))


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# -- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"preset": "bc1"}, 29_031_640),
        ({"preset": "bc2"}, 40_058_184),
        ({"preset": "scc"}, 27_459_688),
        ({"preset": "bc1", "legacy": "ffn-width"}, 27_460_315),
        ({"preset": "bc2", "legacy": "ffn-width"}, 31_677_784),
        ({"preset": "scc", "legacy": "ffn-width"}, 25_364_588),
        ({"depth": (1, 5, 4), "heads": (4, 8, 4), "ratio": 4}, 43_206_584),  # the configuration of April 2024
        ({"depth": 2, "heads": 8, "ratio": 2}, 24_305_592),  # the defaults of the authors' class
        ({"neighbor": False, "global_": False}, 11_304_762),  # TEM
        ({"target": False, "global_": False}, 4_859_818),  # NEM
        ({"target": False, "neighbor": False}, 9_586_938),  # GEM
    ],
)
def test_parameter_counts_are_the_published_ones(arguments: dict[str, object], expected: int) -> None:
    with torch.device("meta"):
        assert count(Triplex(Dims(genes=250, emb=512), **arguments)) == expected


def test_component_counts_of_bc1() -> None:
    with torch.device("meta"):
        made = Triplex(Dims(genes=250, emb=512))
    assert count(made.trunk) == 11_176_512
    assert count(made.neighbor) == 4_731_568
    assert count(made.global_) + count(made.peg) == 9_458_688
    assert count(made.fusion) == 3_151_872
    assert count(made.heads) == 513_000
    assert count(made.adapt) == count(made.trunk_adapt) == 0  # all are 512 wide


def test_wider_model_on_wider_embeddings_has_the_published_size() -> None:
    arguments = {"width": 1024, "depth": (1, 2, 2), "heads": (8, 16, 16), "ratio": 2}
    with torch.device("meta"):
        assert count(Triplex(Dims(genes=300, emb=1024), **arguments)) == 54_933_008


def test_one_linear_serves_all_frozen_embeddings() -> None:
    with torch.device("meta"):
        narrow, wide = (Triplex(Dims(genes=250, emb=d), trunk="frozen") for d in (512, 1280))
    assert count(wide) - count(narrow) == 1280 * 512 + 512


# -- contracts --------------------------------------------------------------------------------------------------------

NEEDS = {"window": Needs.WINDOW, "emb": Needs.EMB, "ctx_emb": Needs.CTX_EMB, "ctx_mask": Needs.CTX_EMB}
NEEDS |= dict.fromkeys(("pool_emb", "pool_rc", "pool_mask", "pool_row"), Needs.POOL)
ABLATIONS = [
    {}, {"trunk": "test_resnet"}, {"fusion": "sum"}, {"fusion": "concat"}, {"fusion": "attention"}, {"peg": "peg"},
    {"peg": "none"}, {"residual": False}, {"target": False}, {"neighbor": False, "trunk": "test_resnet"},
    {"global_": False}, {"global_": False, "query": "learned"}, {"neighbor": False, "global_": False},
    {"target": False, "global_": False}, {"target": False, "neighbor": False}, {"auxiliary": False}, {"alpha": 0.0},
    {"detach": False}, {"preset": "scc"}, {"neighbor": False, "global_": False, "trunk": "test_resnet"},
]  # fmt: skip


@pytest.mark.parametrize("arguments", ABLATIONS, ids=lambda a: ",".join(f"{k}={v}" for k, v in a.items()) or "full")
def test_reads_its_needs_only_and_trains_every_parameter(arguments: dict[str, object]) -> None:
    made, batch = model(**arguments), make_batch()
    for name, need in NEEDS.items():
        if need not in made.needs:
            setattr(batch, name, None)
    optimiser, reached = torch.optim.Adam(made.parameters(), lr=1e-3), set()
    for _ in range(2):
        optimiser.zero_grad()
        loss, parts = made.loss(batch)
        loss.backward()
        reached |= {name for name, p in made.named_parameters() if p.grad is not None and bool(p.grad.abs().sum() > 0)}
        optimiser.step()
    assert {name for name, _ in made.named_parameters()} == reached
    close(sum(parts.values()), loss.detach())
    assert made.eval()(batch).shape == (sum(SIZES), DIMS.genes)


def test_needs_follow_the_arguments() -> None:
    assert Triplex(DIMS, **TINY).needs == Needs.WINDOW | Needs.CTX_EMB | Needs.POOL == Triplex.needs
    assert model().needs == Needs.EMB | Needs.CTX_EMB | Needs.POOL
    assert model(target=False, neighbor=False).needs == Needs.POOL


@pytest.mark.parametrize("peg", ["apeg", "peg"])
@pytest.mark.parametrize("trunk", ["test_resnet", "frozen"])
def test_padding_and_batch_mates_change_nothing(peg: str, trunk: str) -> None:
    made, whole = model(peg=peg, trunk=trunk).eval(), make_batch()
    expected = made(whole)
    s, n = whole.pool_mask.shape
    grown = replace(
        whole,
        pool_emb=torch.cat([whole.pool_emb, torch.full((s, 3, DIMS.emb), torch.nan)], 1),
        pool_rc=torch.cat([whole.pool_rc, torch.full((s, 3, 2), -99)], 1),
        pool_mask=torch.cat([whole.pool_mask, torch.zeros(s, 3, dtype=torch.bool)], 1),
        pool_row=whole.pool_row // n * (n + 3) + whole.pool_row % n,
        ctx_emb=whole.ctx_emb.masked_fill(~whole.ctx_mask[..., None], torch.nan),
    )
    close(made(grown), expected)
    for rows in (torch.tensor([3]), torch.tensor([8, 1, 19, 8]), torch.arange(16, 20)):
        close(made(take(whole, rows)), expected[rows])


@pytest.mark.parametrize("peg", ["apeg", "peg", "none"])
def test_order_of_spots_does_not_matter(peg: str) -> None:
    made, batch = model(peg=peg).eval(), make_batch()
    order = torch.randperm(sum(SIZES))
    close(made(take(batch, order)), made(batch)[order])
    turned = replace(  # the pool itself in another order, padding first
        batch, **{name: getattr(batch, name).flip(1) for name in ("pool_emb", "pool_rc", "pool_mask")},
        pool_row=batch.pool_row // 9 * 9 + 8 - batch.pool_row % 9,
    )  # fmt: skip
    close(made(turned), made(batch))


def test_evaluation_repeats_itself_and_training_does_not() -> None:
    made, batch = Triplex(DIMS, **(TINY | {"dropout": 0.4})), make_batch()
    assert not torch.equal(made(batch), made(batch))
    made.eval()
    assert torch.equal(made(batch), made(batch))


def test_state_makes_the_same_model() -> None:
    a, b, batch = model(trunk="test_resnet").eval(), model(trunk="test_resnet").eval(), make_batch()
    assert not torch.equal(a(batch), b(batch))
    b.load_state_dict(a.state_dict())
    assert torch.equal(a(batch), b(batch))


@pytest.mark.parametrize("trunk", ["frozen", "test_resnet"])
def test_sixteen_spots_can_be_learnt_by_heart(trunk: str) -> None:
    made, batch = model(trunk=trunk), make_batch(torch.arange(16))
    optimiser = torch.optim.Adam(made.parameters(), lr=5e-3)
    for _ in range(150):
        optimiser.zero_grad()
        made.loss(batch)[0].backward()
        optimiser.step()
    assert (made.eval()(batch) - batch.y).square().mean() < 0.02 * batch.y.var()


def test_runs_in_bfloat16() -> None:
    made, batch = model(trunk="test_resnet"), make_batch()
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = made.loss(batch)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in made.parameters())


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


# -- layers -----------------------------------------------------------------------------------------------------------


def test_attention_equals_torch() -> None:
    ours = Attention(12, 3)
    theirs = nn.MultiheadAttention(12, 3, batch_first=True, bias=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.q.weight, ours.kv.weight]))
        theirs.in_proj_bias.zero_()
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    query, keys, mask = torch.randn(4, 2, 12), torch.randn(4, 5, 12), torch.rand(4, 5) < 0.6
    mask[:, 0] = True
    close(ours(query, keys, mask), theirs(query, keys, keys, key_padding_mask=~mask)[0])


def test_grid_bias_is_looked_up_by_unsigned_offset() -> None:
    offsets = grid_offsets(3)
    for i in range(9):
        for j in range(9):
            assert offsets[i, j] == abs(i // 3 - j // 3) * 3 + abs(i % 3 - j % 3)
    layer, x = Attention(8, 2, grid=3), torch.randn(2, 9, 8)
    nn.init.normal_(layer.bias)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, 4:] = False
    q, (k, v) = layer.q(x), layer.kv(x).chunk(2, -1)
    heads = []
    for h in range(2):
        part = slice(4 * h, 4 * h + 4)
        logits = q[..., part] @ k[..., part].transpose(1, 2) / 2 + layer.bias[h][offsets]
        heads.append(logits.masked_fill(~mask[:, None], -torch.inf).softmax(-1) @ v[..., part])
    close(layer(x, x, mask), layer.out(torch.cat(heads, -1)))


@pytest.mark.parametrize("grid", [None, 2])
def test_no_key_at_all_is_not_nan(grid: int | None) -> None:
    block, x = Block(8, 2, 8, grid=grid), torch.randn(2, 4, 8, requires_grad=True)
    mask = torch.tensor([[True] * 4, [False] * 4])
    out = block(x, mask)
    out.sum().backward()
    assert torch.isfinite(out).all()
    assert torch.isfinite(x.grad).all()
    close(block.attention(x, x, mask)[1], block.attention.out.bias.expand(4, 8))


def test_context_of_a_block_is_only_read() -> None:
    stack, x, context = Stack(2, 8, 2, 8), torch.randn(3, 1, 8), torch.randn(3, 5, 8)
    step = x
    for block in stack.blocks:
        step = block(step, None, context)
    close(stack(x, None, context), stack.norm(step))
    close(stack(x, None, context[:, torch.randperm(5)]), stack(x, None, context))  # a set, not a sequence


def brute_force_apeg(layer: GridConv, x: Tensor, rc: Tensor) -> Tensor:
    """Depthwise convolution of one section, cell by cell."""
    cells: dict[tuple[int, int], list[Tensor]] = {}
    for token, (r, c) in zip(x, rc.tolist(), strict=True):
        cells.setdefault((r, c), []).append(token)
    out = []
    for token, (r, c) in zip(x, rc.tolist(), strict=True):
        total = layer.conv.bias.clone()
        for i in range(3):
            for j in range(3):
                if (r + i - 1, c + j - 1) in cells:
                    near = torch.stack(cells[r + i - 1, c + j - 1]).mean(0)
                    total = total + layer.conv.weight[:, 0, i, j] * near
        out.append(token + total if layer.residual else total)
    return torch.stack(out)


@pytest.mark.parametrize("residual", [True, False])
def test_apeg_equals_brute_force_on_every_section(residual: bool) -> None:
    """Void cells, spots that share a cell, grids of different size and origin, padding."""
    layer, x = GridConv(5, residual=residual), torch.randn(3, 8, 5)
    rc = torch.randint(0, 4, (3, 8, 2)) * torch.tensor([1, 2]) + torch.tensor([[[0, 0]], [[9, -4]], [[100, 7]]])
    rc[0, 1] = rc[0, 0]
    mask = torch.arange(8) < torch.tensor([8, 5, 1])[:, None]
    out = layer(x, rc, mask)
    for s in range(3):
        close(out[s][mask[s]], brute_force_apeg(layer, x[s][mask[s]], rc[s][mask[s]]))
        close(out[s : s + 1][:, mask[s]], layer(x[s : s + 1], rc[s : s + 1], mask[s : s + 1])[:, mask[s]])
    order = torch.randperm(8)
    close(layer(x[:, order], rc[:, order], mask[:, order])[mask[:, order]], out[:, order][mask[:, order]])


def test_apeg_keeps_every_spot_of_a_shared_cell() -> None:
    x, rc = torch.randn(1, 3, 4), torch.tensor([[[2, 2], [2, 2], [2, 4]]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    plain, added = GridConv(4, residual=False), GridConv(4)
    out = plain(x, rc, mask)
    assert out.shape == x.shape
    assert torch.equal(out[0, 0], out[0, 1])
    added.load_state_dict(plain.state_dict())
    close(added(x, rc, mask), x + out)
    zero = x.clone()
    zero[0, 2] = 0  # a token that sums to 0 is still a spot: it gets the bias, at least
    close(plain(zero, rc, mask)[0, 2], plain.conv.bias)


def test_square_packing_follows_rows_then_columns() -> None:
    rc = torch.tensor([[[5, 9], [5, 8], [0, 3], [7, 0], [5, 1]], [[1, 1], [0, 0], [0, 0], [0, 0], [0, 0]]])
    mask = torch.tensor([[True] * 5, [True] + [False] * 4])
    packed = square_packing(rc, mask)
    assert packed[0].tolist() == [[1, 0], [0, 2], [0, 0], [1, 1], [0, 1]]  # five spots in a square of three
    assert packed[1, 0].tolist() == [0, 0]


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
