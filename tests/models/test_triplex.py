"""TRIPLEX: published sizes and the contracts of a model, for every ablation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.models.triplex_batch import DIMS, SIZES, TINY, close, count, make_batch, model, take

from histoweave.batch import Dims, Needs
from histoweave.models.predict.triplex import Triplex


@pytest.fixture(autouse=True)
def _fixed() -> None:
    torch.manual_seed(0)


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
    for _ in range(80):
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


def test_heads_may_start_at_the_training_mean() -> None:
    class Feed:
        def y_mean(self) -> torch.Tensor:
            return torch.arange(5.0)

    for start, expected in (("mean", torch.arange(5.0)), ("random", None)):
        model = Triplex(Dims(genes=5, emb=8), width=16, depth=1, heads=2, trunk="frozen", start=start)
        before = model.heads["fused"].bias.detach().clone()
        model.index(Feed())
        assert torch.equal(model.heads["fused"].bias, before if expected is None else expected)
