"""ST-Net, and the masked losses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from histoweave.batch import Batch, Dims, Needs
from histoweave.models._losses import masked_mse, spot_mse
from histoweave.models._trunk import symmetries
from histoweave.models.predict.stnet import STNet

DIMS = Dims(genes=5, emb=12)
STILL = STNet.tiny() | {"augment": False}


@pytest.fixture(autouse=True)
def _fixed() -> None:
    torch.manual_seed(0)


def make_batch(n: int = 16) -> Batch:
    g = torch.Generator().manual_seed(1)
    return Batch(
        spot=torch.arange(n), section=torch.zeros(n, dtype=torch.long), y=torch.randn(n, DIMS.genes, generator=g) - 3,
        y_mask=torch.ones(n, DIMS.genes, dtype=torch.bool), emb=torch.randn(n, DIMS.emb, generator=g),
        window=torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=g),
    )  # fmt: skip


class FakeFeed:
    """The rows of one batch, walked in order."""

    def __init__(self, batch: Batch) -> None:
        self.batch, self.n = batch, len(batch)

    def batches(self, size: int, /) -> Iterator[Batch]:
        for rows in torch.arange(self.n).split(size):
            yield Batch(**{name: value[rows] for name, value in self.batch.items()})

    def y_mean(self) -> Tensor:
        return self.batch.y.mean(0)

    def inner_fold(self) -> Tensor:
        return self.batch.spot % 2


def awake(arguments: dict[str, object] | None = None) -> STNet:
    """A model whose head is not zero, in evaluation."""
    made = STNet(DIMS, **(STILL | (arguments or {})))
    torch.nn.init.normal_(made.head.weight)
    return made.eval()


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_parameter_count_is_the_published_one() -> None:
    with torch.device("meta"):
        made = STNet(Dims(genes=250))
        assert sum(p.numel() for p in made.trunk.parameters()) == 6_953_856
        assert sum(p.numel() for p in made.parameters()) == 7_210_106


def test_index_starts_at_the_mean_and_takes_the_colour() -> None:
    made, batch = STNet(DIMS, **STILL), make_batch()
    made.index(FakeFeed(batch))
    close(made.eval()(batch), batch.y.mean(0).expand(16, -1))
    x = batch.window.double() / 255
    close(made.trunk.mean.flatten(), x.mean((0, 2, 3)).float())
    close(made.trunk.std.flatten(), x.std((0, 2, 3), correction=0).float())
    assert torch.equal(made.state_dict()["trunk.mean"], made.trunk.mean)  # saved with the model


def test_colour_comes_from_all_over_the_training_spots() -> None:
    batch = make_batch(32 * 48)
    batch.window = torch.arange(48, dtype=torch.uint8).repeat_interleave(32)[:, None, None, None].expand(-1, 3, 4, 4)
    made = STNet(DIMS, **STILL)
    made.index(FakeFeed(batch))
    expected = torch.arange(0, 48, 4).double().mean() / 255  # 12 of 48 batches, evenly spread
    close(made.trunk.mean.flatten(), expected.float().expand(3))


def test_plain_windows_do_not_divide_by_zero() -> None:
    made, batch = awake(), make_batch()
    batch.window = torch.full_like(batch.window, 255)
    made.index(FakeFeed(batch))
    assert torch.isfinite(made(batch)).all()


@pytest.mark.parametrize("arguments", [{}, {"trunk": "frozen"}, {"reduction": "mean"}, {"eight": False}])
def test_reads_its_needs_only_and_trains_every_parameter(arguments: dict[str, object]) -> None:
    made, batch = STNet(DIMS, **(STILL | arguments)), make_batch()
    frozen = made.trunk is None
    assert made.needs == (Needs.EMB if frozen else Needs.WINDOW)
    setattr(batch, "window" if frozen else "emb", None)
    optimiser, reached = torch.optim.SGD(made.parameters(), lr=1e-3), set()
    for step in range(2):
        optimiser.zero_grad()
        made.loss(batch)[0].backward()
        now = {name for name, p in made.named_parameters() if p.grad is not None and bool(p.grad.abs().sum() > 0)}
        if step == 0:
            assert now == {"head.weight", "head.bias"}  # nothing passes a head of zeros at first
        reached |= now
        optimiser.step()
    assert reached == {name for name, _ in made.named_parameters()}


def test_evaluation_averages_the_eight_symmetries() -> None:
    made, batch = awake(), make_batch()
    one = awake()
    one.load_state_dict(made.state_dict())
    one.eight = False
    views = [one(replace(batch, window=view)) for view in symmetries(batch.window)]
    close(made(batch), torch.stack(views).mean(0))
    assert not torch.allclose(made(batch), views[0], atol=1e-3)
    for view in (batch.window.flip(-1), batch.window.flip(-2), batch.window.rot90(1, (-2, -1))):
        close(made(replace(batch, window=view)), made(batch))


def test_augments_in_training_only() -> None:
    made, batch = STNet(DIMS, **(STILL | {"augment": True, "eight": False})), make_batch()
    torch.nn.init.normal_(made.head.weight)
    assert not torch.equal(made(batch), made(batch))
    made.eval()
    assert torch.equal(made(batch), made(batch))


@pytest.mark.parametrize("trunk", ["test_resnet", "test_efficientnet", "frozen"])
def test_batch_mates_and_order_change_nothing(trunk: str) -> None:
    made, batch = awake({"trunk": trunk}), make_batch()
    rows = torch.tensor([9, 2, 2, 15])
    part = Batch(**{name: value[rows] for name, value in batch.items()})
    close(made(part), made(batch)[rows])


@pytest.mark.parametrize(("trunk", "n"), [("test_efficientnet", 16), ("frozen", 12)])  # a linear head learns d spots
def test_spots_can_be_learnt_by_heart(trunk: str, n: int) -> None:
    made, batch = STNet(DIMS, **(STILL | {"trunk": trunk, "eight": False})), make_batch(n)
    made.index(FakeFeed(batch))
    optimiser = torch.optim.Adam(made.parameters(), lr=3e-2 if trunk == "frozen" else 3e-3)
    for _ in range(1000 if trunk == "frozen" else 100):
        optimiser.zero_grad()
        made.loss(batch)[0].backward()
        optimiser.step()
    assert (made.eval()(batch) - batch.y).square().mean() < 0.02 * batch.y.var()


def test_loss_is_a_sum_over_spots_of_means_over_genes() -> None:
    made, batch = awake(), make_batch()
    error = (made(batch) - batch.y).square()
    close(made.loss(batch)[0], error.mean(1).sum())
    made.reduction = "mean"
    close(made.loss(batch)[0], error.mean())


def test_masked_losses() -> None:
    pred, y = torch.randn(6, 4, requires_grad=True), torch.randn(6, 4)
    mask = torch.rand(6, 4) < 0.5
    mask[0], mask[1] = False, True
    holes = y.masked_fill(~mask, torch.nan)
    close(masked_mse(pred, holes, mask), torch.nn.functional.mse_loss(pred[mask], y[mask]))
    expected = [(pred[i] - y[i]).square()[mask[i]].mean() if mask[i].any() else torch.tensor(0.0) for i in range(6)]
    close(spot_mse(pred, holes, mask), torch.stack(expected))
    (masked_mse(pred, holes, mask) + spot_mse(pred, holes, mask).sum()).backward()
    assert torch.equal(pred.grad != 0, mask)
    assert masked_mse(pred, holes, torch.zeros_like(mask)) == 0


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="did you mean 'densenet121'"):
        STNet(DIMS, trunk="densnet121")
    with pytest.raises(ValueError, match="reduction='total' is not one of"):
        STNet(DIMS, trunk="frozen", reduction="total")
    with pytest.raises(ValueError, match=r"dims\.emb is 0"):
        STNet(Dims(genes=5), trunk="frozen")
    with pytest.raises(ValueError, match="no 'window'"):
        awake()(replace(make_batch(), window=None))
    with pytest.raises(ValueError, match="'vit_tiny_patch16_224' does not take windows of 32 × 32 px"):
        awake({"trunk": "vit_tiny_patch16_224"})(make_batch(2))
    with pytest.raises(ValueError, match="expected squares"):
        awake()(replace(make_batch(), window=torch.zeros(2, 3, 32, 16, dtype=torch.uint8)))
