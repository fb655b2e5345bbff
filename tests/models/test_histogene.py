"""HisToGene, and the parts that models of whole sections share."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.models.section_batch import DIMS, Sections, close, count, make_batch, reached, take, without

from histoweave.batch import Dims, Needs
from histoweave.models._section import Positions, normalised, resized
from histoweave.models.predict.histogene import HisToGene
from histoweave.train.saved import restore

TINY = HisToGene.tiny() | {"positions": 16, "dropout": 0.0}


@pytest.fixture(autouse=True)
def _fixed() -> None:
    torch.manual_seed(0)


def model(**arguments: object) -> HisToGene:
    return HisToGene(DIMS, **(TINY | arguments))


@pytest.mark.parametrize(
    ("genes", "depth", "expected"), [(250, 8, 106_099_962), (785, 8, 106_648_337), (1000, 4, 73_281_512)]
)
def test_parameter_counts_are_the_published_ones(genes: int, depth: int, expected: int) -> None:
    with torch.device("meta"):
        assert count(HisToGene(Dims(genes=genes), depth=depth)) == expected
        assert HisToGene.needs == HisToGene(Dims(genes=genes)).needs


@pytest.mark.parametrize("arguments", [{}, {"trunk": "frozen"}, {"legacy": "raw-pixels"}, {"start": "mean"}])
def test_reads_its_needs_only_and_trains_every_parameter(arguments: dict[str, object]) -> None:
    made = model(**arguments)
    frozen = arguments.get("trunk") == "frozen"
    assert made.needs == (Needs.EMB if frozen else Needs.WINDOW) | Needs.ARRAY_XY | Needs.WHOLE_SECTION
    batch = without(make_batch(), "window" if frozen else "emb", "counts", "library")
    assert reached(made, batch) == {name for name, _ in made.named_parameters()}
    assert made.eval()(batch).shape == batch.y.shape


def test_a_token_is_all_pixels_and_two_positions() -> None:
    made, batch = model(), make_batch()
    seen: list[torch.Tensor] = []
    made.transformer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    made.eval()(batch)
    pixels = normalised(resized(batch.window, 8))[4].flatten()
    row, column = batch.array_xy[4].tolist()
    close(seen[0][0, 4], made.token(pixels) + made.positions.row[row] + made.positions.column[column])


def test_spots_of_a_section_see_one_another_in_any_order() -> None:
    made, batch = model().eval(), make_batch()
    before = made(batch)
    order = torch.randperm(len(batch))
    close(made(take(batch, order)), before[order])
    window = batch.window.clone()
    window[7] = 255 - window[7]
    assert (made(replace(batch, window=window)) - before).abs().amax(1).min() > 1e-6
    hidden = replace(batch, y=torch.full_like(batch.y, torch.nan), y_mask=torch.zeros_like(batch.y_mask))
    assert torch.equal(made(hidden), before)
    assert made(take(batch, torch.tensor([3]))).shape == (1, DIMS.genes)


def test_unmeasured_entries_do_not_count() -> None:
    made, batch = model(), make_batch()
    batch.y_mask = torch.rand(batch.y.shape) < 0.6
    loss, _ = made.loss(replace(batch, y=batch.y.masked_fill(~batch.y_mask, torch.nan)))
    close(loss, (made(batch) - batch.y).square()[batch.y_mask].mean())
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in made.parameters())


def test_index_lengthens_the_tables_and_starts_at_the_mean() -> None:
    batch = make_batch()
    far = replace(batch, array_xy=batch.array_xy + torch.tensor([80, 0]))
    made = HisToGene(DIMS, **(HisToGene.tiny() | {"start": "mean", "positions": 5}))
    first = made.positions.row[:5].clone()
    made.index(Sections(batch, far))
    rows, columns = (int(n) + 1 for n in far.array_xy.amax(0))
    assert (len(made.positions.row), len(made.positions.column)) == (rows, columns)
    assert torch.equal(made.positions.row[:5], first)
    assert {"positions.row", "positions.column"} <= {name for name, _ in made.named_parameters()}
    close(made.head.bias, batch.y.mean(0))
    kept = made.positions.row.clone()
    made.index(Sections(batch))
    assert torch.equal(made.positions.row, kept)
    other = HisToGene(DIMS, **(HisToGene.tiny() | {"start": "mean", "positions": 5}))
    restore(other, made.state_dict(), where="here")
    assert torch.equal(other.eval()(far), made.eval()(far))


def test_positions_beyond_the_tables_take_the_entry_at_that_end() -> None:
    made = Positions(4, 10)
    rc = torch.tensor([[9, 9], [500, 9], [9, 70], [0, 3], [-2, 3]])
    out = made(rc)
    assert torch.equal(out[1], out[0]) and torch.equal(out[2], out[0]) and torch.equal(out[4], out[3])


def test_windows_are_resized_and_normalised() -> None:
    window = torch.full((2, 3, 32, 32), 255, dtype=torch.uint8)
    window[1, :, :, :16] = 0
    assert torch.equal(resized(window, 32), window.float())
    small = resized(window, 8)
    assert small.shape == (2, 3, 8, 8)
    close(small[1].mean(), torch.tensor(127.5))
    white = normalised(small)[0].mean((1, 2))
    close(white, torch.tensor([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]))


def test_legacy_raw_pixels_drown_the_positions() -> None:
    batch = make_batch()
    share = {}
    for legacy in ((), ("raw-pixels",)):
        made = model(legacy=legacy)
        with torch.no_grad():
            share[legacy] = float(made.token(made._seen(batch)).std() / made.positions(batch.array_xy).std())
        assert float(made._seen(batch).max()) > 100 if legacy else float(made._seen(batch).abs().max()) < 3
    assert share[()] < 2 < 10 < share[("raw-pixels",)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"trunk": "frosen"}, "did you mean 'frozen'"),
        ({"start": "average"}, "is not one of 'random', 'mean'"),
        ({"legacy": "raw_pixels"}, "did you mean 'raw-pixels'"),
        ({"heads": 3}, "width 32 cannot be split into 3 heads"),
        ({"depth": 0}, "at least one block"),
        ({"side": 0}, "side=0"),
        ({"ratio": 0}, "ratio=0"),
        ({"positions": 0}, "positions=0"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(**arguments)


def test_batches_are_checked() -> None:
    with pytest.raises(ValueError, match=r"dims\.emb is 0"):
        HisToGene(Dims(genes=5), trunk="frozen")
    for field in ("window", "array_xy"):
        with pytest.raises(ValueError, match=f"no '{field}'"):
            model()(without(make_batch(), field))
