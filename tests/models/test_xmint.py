"""xMINT: what a cell sees, what its defects in published code do, and its objectives."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.models.section_batch import Sections, close, count, reached, take, without
from torch import Tensor

from histoweave.batch import Batch, Dims, Needs
from histoweave.feed import Sequencing
from histoweave.models import create, needs_of
from histoweave.models.impute.xmint import XMINT
from histoweave.train import load_recipe
from histoweave.train.saved import restore

DIMS = Dims(genes=7, shared=5)
SIDE, SEQUENCES, LENGTH = 4, 3, 6  # patches in a region, sequences, cells in each


@pytest.fixture(autouse=True)
def _fixed() -> None:
    torch.manual_seed(0)


def model(**arguments: object) -> XMINT:
    return create("xmint", DIMS, **(XMINT.tiny() | {"dropout": 0.0} | arguments))  # type: ignore[return-value]


def make_batch(sequences: int = SEQUENCES, length: int = LENGTH, *, channels: int = 3) -> Batch:
    """Sequences of cells, all in the first region but for the last one, no cell on the diagonal of its region."""
    g = torch.Generator().manual_seed(1)
    n = sequences * length
    expected = torch.tensor([1.0, 2, 1, 3, 2, 40, 5])  # the imputed genes differ
    counts, shared = torch.poisson(expected.repeat(n, 1), generator=g), torch.rand(n, DIMS.shared, generator=g)
    row = torch.randint(0, SIDE, (n,), generator=g)
    col = (row + torch.randint(1, SIDE, (n,), generator=g)) % SIDE
    seq = torch.arange(sequences).repeat_interleave(length)
    return Batch(
        spot=torch.arange(n), section=torch.zeros(n, dtype=torch.long), y=counts / counts.sum(1, keepdim=True),
        y_mask=torch.ones(n, DIMS.genes, dtype=torch.bool), shared=shared / shared.sum(1, keepdim=True),
        region=torch.randn(2, channels, 16 * SIDE, 16 * SIDE, generator=g), region_of=(seq == sequences - 1).long(),
        patch_rc=torch.stack([row, col], 1), seq=seq + 4, counts=counts, library=counts.sum(1),
    )  # fmt: skip


def rows_of(batch: Batch, rows: Tensor) -> Batch:
    """These cells of a batch, over the same regions."""
    return replace(take(without(batch, "region"), rows), region=batch.region)


@pytest.mark.parametrize(
    ("width", "expansion", "layers", "shared", "expected"),
    [
        (256, 4, 4, 200, 16_799_760), (256, 8, 8, 200, 53_564_432), (128, 4, 4, 200, 4_338_064),
        (128, 8, 8, 200, 13_545_360), (256, 8, 4, 150, 27_310_658), (256, 8, 4, 100, 27_323_508),
        (256, 8, 4, 50, 27_336_358),
    ],
)  # fmt: skip
def test_parameter_counts_are_the_published_ones(
    width: int, expansion: int, layers: int, shared: int, expected: int
) -> None:
    with torch.device("meta"):
        made = XMINT(Dims(genes=376 - shared, shared=shared), width=width, expansion=expansion, layers=layers)
        assert count(made) == expected


def test_defaults_are_those_of_the_results() -> None:
    with torch.device("meta"):
        assert count(XMINT(Dims(genes=176, shared=200))) == 27_297_808
        assert XMINT(Dims(genes=176, shared=200)).needs == XMINT.needs
        assert Sequencing(*XMINT(DIMS).sequencing) == Sequencing(length=1024, repeats=5, rule="code")
    assert load_recipe("xmint", "paper").args == {}
    assert create("xmint", DIMS, **load_recipe("xmint", "cpu").args).needs == XMINT.needs


@pytest.mark.parametrize(
    "arguments",
    [
        {}, {"image": False}, {"objective": "kl"}, {"objective": "poisson"}, {"scale": "log"}, {"unit": False},
        {"tokenizer": "dense"}, {"start": "mean"}, {"legacy": ("batch-axis", "transposed")}, {"checkpoint": False},
    ],
)  # fmt: skip
def test_reads_its_needs_only_and_trains_every_parameter(arguments: dict[str, object]) -> None:
    made, unread = model(**arguments), {"library", "counts", "region", "region_of", "patch_rc"}
    needs = Needs.SHARED | Needs.SEQ
    if arguments.get("image", True):
        needs, unread = needs | Needs.REGION, unread - {"region", "region_of", "patch_rc"}
    if arguments.get("objective") == "poisson":
        needs, unread = needs | Needs.COUNTS, unread - {"counts"}
    assert made.needs == needs == needs_of("xmint", arguments)
    batch = without(make_batch(), *unread)
    assert reached(made, batch) == {name for name, _ in made.named_parameters()}
    out = made.eval()(without(batch, "counts"))
    assert out.shape == batch.y.shape and out.dtype == torch.float32
    close(out.sum(1), torch.ones(len(batch)))


def test_cells_of_a_sequence_see_one_another_in_any_order() -> None:
    made, batch = model().eval(), make_batch()
    before = made(batch)
    assert torch.equal(made(batch), before)
    within = torch.cat([torch.randperm(LENGTH) + s * LENGTH for s in (1, 0, 2)])  # order of sequences too
    close(made(rows_of(batch, within)), before[within])
    moved = batch.shared.clone()
    moved[7] = moved[7].flip(0)
    change = (made(replace(batch, shared=moved)) - before).abs().amax(1).view(SEQUENCES, LENGTH)
    assert change[1].min() > 1e-7 and not change[[0, 2]].any()
    alone = rows_of(batch, torch.arange(LENGTH, 2 * LENGTH))
    close(made(alone), before[LENGTH : 2 * LENGTH])


def test_legacy_batch_axis_shows_a_cell_other_sequences_and_none_of_its_own() -> None:
    made, batch = model(legacy="batch-axis").eval(), make_batch()
    moved = batch.shared.clone()
    moved[7] = moved[7].flip(0)  # the second cell of the second sequence
    change = (made(replace(batch, shared=moved)) - made(batch)).abs().amax(1).view(SEQUENCES, LENGTH)
    assert change[:, 1].min() > 1e-7 and not change[:, [0, 2, 3, 4, 5]].any()
    one = make_batch(sequences=1)
    moved = one.shared.clone()
    moved[1:] = moved[1:].flip(1)
    assert torch.equal(made(replace(one, shared=moved))[0], made(one)[0])


def test_legacy_transposed_looks_at_the_mirrored_patch() -> None:
    batch = make_batch()
    (row, col), seen = batch.patch_rc[2].tolist(), {}
    for legacy in ((), ("transposed",)):
        torch.manual_seed(0)
        made, region = model(legacy=legacy).eval(), batch.region.clone().requires_grad_()
        made._image(replace(batch, region=region), made.tokenizer)[2].sum().backward()
        weight = region.grad[0].abs().sum(0).unflatten(0, (SIDE, 16)).unflatten(-1, (SIDE, 16)).sum((1, 3))
        seen[legacy] = tuple(divmod(int(weight.argmax()), SIDE))
    assert row != col and seen == {(): (row, col), ("transposed",): (col, row)}


def test_the_image_moves_the_output_and_the_ablation_has_all_but_the_tokenizer() -> None:
    batch, made, without_image = make_batch(), model().eval(), model(image=False).eval()
    other = replace(batch, region=batch.region.flip(-1))
    assert (made(other) - made(batch)).abs().amax(1).min() > 1e-7
    assert torch.equal(without_image(other), without_image(batch))
    assert count(made) - count(without_image) == count(made.tokenizer)
    dense = model(tokenizer="dense").eval()
    dense.load_state_dict(made.state_dict())
    assert (dense(batch) - made(batch)).abs().max() <= 1e-5


@pytest.mark.parametrize("arguments", [{"scale": "log"}, {"unit": False}, {"legacy": "transposed"}, {"skip": False}])
def test_each_variant_changes_the_output(arguments: dict[str, object]) -> None:
    batch, made = make_batch(), model().eval()
    before = made._logits(batch)
    torch.nn.init.normal_(made.skip.weight)  # zero until it is trained
    close(made._logits(batch) - before, torch.log1p(1e4 * batch.shared) @ made.skip.weight.T)
    other = model(**arguments).eval()
    other.load_state_dict(made.state_dict(), strict=False)
    assert (other(batch) - made(batch)).abs().max() > 1e-4


def test_empty_cells_and_a_last_batch_of_one_cell_are_finite() -> None:
    batch, made = make_batch(), model(objective="kl")
    batch.shared[[0, 8]] = 0
    batch.y[[0, 8]], batch.y_mask[[0, 8]] = torch.nan, False
    assert torch.isfinite(made(batch)).all()
    for part in (batch, rows_of(batch, torch.tensor([4])), rows_of(batch, torch.tensor([0]))):
        made.zero_grad()
        value, _ = made.loss(part)
        value.backward()
        assert torch.isfinite(value) and all(torch.isfinite(p.grad).all() for p in made.parameters())
    assert not value.any()  # nothing is measured in that cell
    with torch.no_grad():  # an image vector of length 0
        made.tokenizer.blocks[2].norm2.bias.fill_(-1e4)
        assert float(made._image(batch, made.tokenizer).abs().max()) == 0
    made.loss(batch)[0].backward()
    assert all(torch.isfinite(p.grad).all() for p in made.parameters())


def test_objectives_are_those_of_plain_loops() -> None:
    batch = make_batch()
    batch.y_mask[5], batch.y[3, 2] = False, 0
    cells = [i for i in range(len(batch)) if i != 5]
    p = model().eval()(batch).double()
    y, counts = batch.y.double(), batch.counts.double()
    counts[3, 2] = 0
    y = counts / counts.sum(1, keepdim=True)
    batch = replace(batch, counts=counts.float(), y=y.float().index_fill(0, torch.tensor(5), torch.nan))
    mse = sum((p[i, g] - y[i, g]) ** 2 for i in cells for g in range(7)) / (len(cells) * 7) * 49
    kl = sum(y[i, g] * (y[i, g] / p[i, g]).log() for i in cells for g in range(7) if y[i, g] > 0) / len(cells)
    rate = counts.sum(1, keepdim=True) * p
    terms = [counts[i, g] * (counts[i, g] / rate[i, g]).log() for i in cells for g in range(7) if counts[i, g] > 0]
    poisson = (sum(terms) - sum(counts[i].sum() - rate[i].sum() for i in cells)) / counts[cells].sum()
    for name, expected in {"mse": mse, "kl": kl, "poisson": poisson}.items():
        torch.manual_seed(0)
        value, parts = model(objective=name).eval().loss(batch)
        close(value, expected.float())
        assert set(parts) == {name}


def test_a_mean_start_predicts_the_training_mean_and_is_kept() -> None:
    batch, made = make_batch(), model(start="mean", image=False)
    made.index(Sections(batch))
    torch.nn.init.zeros_(made.head.weight)
    close(made.eval()(batch)[3], batch.y.mean(0))
    other = model(start="mean", image=False)
    restore(other, made.state_dict(), where="here")
    assert torch.equal(other.eval()(batch), made(batch))


def test_dropout_is_of_training_only_and_half_precision_trains() -> None:
    batch, made = make_batch(), model(dropout=0.5)
    assert not torch.equal(made(batch), made(batch))
    with torch.autocast("cpu", torch.bfloat16):
        value, _ = made.loss(batch)
    value.backward()
    assert all(torch.isfinite(p.grad).all() for p in made.parameters())
    full = made.eval()(batch)
    with torch.autocast("cpu", torch.bfloat16):
        assert (made(batch) - full).abs().max() < 0.02


def test_bad_input_is_named() -> None:
    batch = make_batch()
    assert model(channels=4)(make_batch(channels=4)).shape == batch.y.shape
    with pytest.raises(ValueError, match=r"expected \(r, 4, h, w\)"):
        model(channels=4)(batch)
    with pytest.raises(ValueError, match=r"has 5 shared genes, and the model was made for 4 \(dims.shared\)"):
        XMINT(Dims(genes=7, shared=4), **XMINT.tiny())(batch)
    with pytest.raises(ValueError, match="has 0 shared genes, and the model was made for 0"):
        XMINT(Dims(genes=7), **XMINT.tiny())(replace(batch, shared=batch.shared[:, :0]))
    with pytest.raises(ValueError, match="3 sequences of the batch have 5 to 6 spots"):
        model()(rows_of(batch, torch.arange(17)))
    for field in ("shared", "region", "region_of", "patch_rc", "seq"):
        with pytest.raises(ValueError, match=f"no '{field}'"):
            model()(without(batch, field))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"legacy": "batch_axis"}, "did you mean 'batch-axis'"), ({"scale": "logs"}, "did you mean 'log'"),
        ({"objective": "ml"}, "is not one of 'mse', 'kl', 'poisson'"), ({"start": "average"}, "'random', 'mean'"),
        ({"tokenizer": "all"}, "'restricted', 'dense'"), ({"heads": 3}, "width 16 cannot be split into 3 heads"),
        ({"heads": 0}, "heads=0"), ({"layers": 0}, "layers=0"), ({"expansion": 0}, "expansion=0"),
        ({"width": 0}, "width=0"), ({"length": 0}, "length=0"), ({"rule": "papers"}, "did you mean 'paper'"),
    ],
)  # fmt: skip
def test_arguments_are_checked(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(**arguments)
