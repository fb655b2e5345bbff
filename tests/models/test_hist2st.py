"""Hist2ST: its size, the contracts of a model, and its copies."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.models.section_batch import DIMS, Sections, close, count, make_batch, reached, take, without

from histoweave.batch import Dims, Needs
from histoweave.models.predict.hist2st import Hist2ST, altered

TINY = Hist2ST.tiny() | {"positions": 16, "dropout": 0.0}


@pytest.fixture(autouse=True)
def _fixed() -> None:
    torch.manual_seed(0)


def model(**arguments: object) -> Hist2ST:
    return Hist2ST(DIMS, **(TINY | arguments))


# -- size and contract ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("genes", "arguments", "expected"),
    [
        (250, {}, 73_596_333),
        (785, {}, 75_789_833),
        (250, {"counts": "nb"}, 73_596_333 - 256_250),
        (250, {"counts": "none"}, 73_596_333 - 3 * 256_250),
        (250, {"copies": 0}, 73_596_333 - 1_050_625),
    ],
)
def test_parameter_counts_are_the_published_ones(genes: int, arguments: dict[str, object], expected: int) -> None:
    with torch.device("meta"):
        assert count(Hist2ST(Dims(genes=genes), **arguments)) == expected


VARIANTS = [
    {}, {"counts": "nb"}, {"counts": "none"}, {"copies": 0}, {"trunk": "frozen"}, {"reach": None},
    {"legacy": "raw-pixels"}, {"trunk": "frozen", "counts": "none"}, {"start": "mean"}, {"dropout": 0.2},
]  # fmt: skip


@pytest.mark.parametrize("arguments", VARIANTS, ids=str)
def test_reads_its_needs_only_and_trains_every_parameter(arguments: dict[str, object]) -> None:
    made, frozen = model(**arguments), arguments.get("trunk") == "frozen"
    needs = (Needs.EMB if frozen else Needs.WINDOW) | Needs.ARRAY_XY | Needs.WHOLE_SECTION
    assert made.needs == (needs if arguments.get("counts") == "none" else needs | Needs.COUNTS)
    batch = without(make_batch(), "window" if frozen else "emb", "library")
    batch = batch if Needs.COUNTS in made.needs else without(batch, "counts")
    assert reached(made, batch) == {name for name, _ in made.named_parameters()}
    assert made.eval()(without(batch, "counts")).shape == batch.y.shape


def test_class_needs_are_those_of_the_defaults() -> None:
    with torch.device("meta"):
        assert Hist2ST.needs == Hist2ST(Dims(genes=5)).needs


def test_without_images_there_are_no_copies() -> None:
    made = model(trunk="frozen")
    assert made.trust is None and set(made.loss(make_batch())[1]) == {"mse", "counts"}


def test_evaluation_has_no_chance_and_no_truth() -> None:
    made, batch = model(dropout=0.3), make_batch()
    made.loss(batch)[0].backward()
    made.eval()
    state = torch.get_rng_state()
    before, (value, parts) = made(batch), made.loss(batch)
    assert set(parts) == {"mse", "counts"} and torch.equal(made.loss(batch)[0], value)
    assert torch.equal(torch.get_rng_state(), state)
    nan = torch.full_like(batch.y, torch.nan)
    assert torch.equal(made(replace(batch, y=nan, counts=nan)), before)
    order = torch.randperm(len(batch))
    close(made(take(batch, order)), before[order])


def test_each_pass_has_its_own_batch_statistics() -> None:
    made, batch = model(copies=3), make_batch()
    norm = made.token.mixers[0].depthwise[1]
    made.loss(batch)
    assert int(norm.num_batches_tracked) == 4
    made.eval()
    made.loss(batch)
    assert int(norm.num_batches_tracked) == 4


def test_index_lengthens_the_tables_and_starts_at_the_mean() -> None:
    made, batch = model(positions=2, start="mean"), make_batch()
    made.index(Sections(batch))
    assert [len(made.positions.row), len(made.positions.column)] == (batch.array_xy.amax(0) + 1).tolist()
    close(made.head.bias, batch.y.mean(0))


# -- copies -----------------------------------------------------------------------------------------------------------


def draw(monkeypatch: pytest.MonkeyPatch, grey: float, flip: float, turn: float) -> None:
    monkeypatch.setattr(torch, "rand", lambda n: torch.tensor([grey, flip, turn]))


def test_altered_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.rand(5, 3, 9, 9) * 255
    draw(monkeypatch, 0.5, 0.5, 0.5)
    close(altered(x), x)
    for turn, by in ((0.0, -1), (1.0, 1)):
        draw(monkeypatch, 0.5, 0.5, turn)
        turned = altered(x)
        assert any(torch.allclose(turned, x.rot90(k, (-2, -1)), atol=1e-2) for k in (by, -by))
    draw(monkeypatch, 0.5, 0.1, 0.5)
    close(altered(x), x.flip(-1))
    draw(monkeypatch, 0.05, 0.5, 0.5)
    close(altered(x), x.mul(torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True).expand(5, 3, 9, 9))
    draw(monkeypatch, 0.5, 0.5, 0.75)
    turned = altered(torch.full_like(x, 255.0))
    assert float(turned[:, :, 0, 0].max()) == 0 and torch.allclose(turned[:, :, 4, 4], torch.tensor(255.0))


def test_a_copy_alters_all_windows_alike() -> None:
    x = (torch.rand(1, 3, 9, 9) * 255).expand(6, -1, -1, -1)
    made = [altered(x) for _ in range(3)]
    assert all(torch.equal(copy, copy[:1].expand_as(copy)) for copy in made)
    assert not torch.allclose(made[0], made[1])


def test_copies_are_averaged_by_what_is_trusted() -> None:
    made, batch = model(copies=3).eval(), make_batch()
    seen, lattice = made._seen(batch), made._lattice(batch)
    torch.manual_seed(5)
    views = [made._spots(altered(seen), *lattice) for _ in range(3)]
    trust = torch.cat([made.trust(view) for view in views], 1).softmax(1)  # (b, copies)
    together = sum(trust[:, i : i + 1] * made.head(made.norm(view)) for i, view in enumerate(views))
    made.training = True  # of the model only: its parts keep their evaluation
    torch.manual_seed(5)
    close(made.loss(batch)[1]["copies"], 0.5 * (made(batch) - together).square().mean())


def test_both_sides_of_the_agreement_learn() -> None:
    """As in the authors' code: without the way through the copies their weights would learn nothing."""
    made, batch = model(counts="none"), make_batch()
    made.copies_weight = 1e3  # so that the agreement outweighs the error
    made.loss(batch)[0].backward()
    assert (made.trust[0].weight.grad != 0).any()
    alone = model(counts="none", copies=0)
    alone.load_state_dict(made.state_dict(), strict=False)
    alone.loss(batch)[0].backward()
    assert not torch.allclose(alone.head.weight.grad, made.head.weight.grad)


def test_legacy_raw_pixels_reach_the_convolution_as_they_are() -> None:
    batch = make_batch()
    for legacy in ((), "raw-pixels"):
        made, given = model(legacy=legacy).eval(), []
        made.token.register_forward_pre_hook(lambda _, x, given=given: given.append(x[0]))
        made(batch)
        assert float(given[0].max()) > 100 if legacy else float(given[0].abs().max()) < 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"trunk": "resnet18"}, "is not one of 'trainable', 'frozen'"),
        ({"counts": "zimb"}, "did you mean 'zinb'"),
        ({"legacy": "raw_pixels"}, "did you mean 'raw-pixels'"),
        ({"start": "zero"}, "is not one of"),
        ({"side": 15}, "side=15, patch=4"),
        ({"width": 40}, r"number of patches \(4 × 4\)"),
        ({"patch": 0}, "patch=0"),
        ({"rounds": 1}, "rounds=1; expected a whole number of 2 or more"),
        ({"copies": 1}, "copies=1"),
        ({"copies_weight": 0}, "copies=0"),
        ({"counts_weight": -1}, "counts='none'"),
        ({"neighbors": 0}, "neighbors=0"),
        ({"reach": -1.0}, "reach=None"),
        ({"heads": 5}, "cannot be split into 5 heads"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(**arguments)


def test_batches_are_checked() -> None:
    with pytest.raises(ValueError, match=r"dims\.emb is 0"):
        Hist2ST(Dims(genes=5), trunk="frozen")
    for field in ("window", "array_xy", "counts"):
        with pytest.raises(ValueError, match=f"no '{field}'"):
            model().loss(without(make_batch(), field))
