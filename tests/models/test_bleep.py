"""BLEEP: its size, its loss by hand, and its arguments."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.models.bleep_batch import FakeFeed, close, make_batch, model, take
from torch import nn

from histoweave.batch import Dims, Needs
from histoweave.models.predict.bleep import BLEEP


@pytest.fixture(autouse=True)
def _fixed() -> None:
    torch.manual_seed(0)


def test_parameter_counts_are_the_published_ones() -> None:
    with torch.device("meta"):
        made = BLEEP(Dims(genes=3467))
        assert sum(p.numel() for p in made.parameters()) == 25_052_992
        assert sum(p.numel() for p in made.trunk.parameters()) == 23_508_032
        port = BLEEP(Dims(genes=250), trunk="resnet18", width=512)
        assert sum(p.numel() for p in port.parameters()) == 12_095_040


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("normalize", [False, True])
def test_loss_by_hand(temperature: float, normalize: bool) -> None:
    made, batch = model(temperature=temperature, normalize=normalize), make_batch(5)
    value, parts = made.loss(batch)
    image, spot = made.image_head(batch.emb).detach(), made.spot_head(batch.y).detach()
    if normalize:
        image, spot = image / image.norm(dim=1, keepdim=True), spot / spot.norm(dim=1, keepdim=True)
    s = [[float(spot[i] @ image[j]) / temperature for j in range(5)] for i in range(5)]
    alike = [[float(image[i] @ image[j] + spot[i] @ spot[j]) / 2 / temperature for j in range(5)] for i in range(5)]
    target = [torch.tensor(row).softmax(0).tolist() for row in alike]
    by_spot = by_image = 0.0
    for i in range(5):
        row, column = torch.tensor(s[i]).log_softmax(0), torch.tensor([r[i] for r in s]).log_softmax(0)
        by_spot -= sum(target[i][j] * float(row[j]) for j in range(5)) / 5
        by_image -= sum(target[j][i] * float(column[j]) for j in range(5)) / 5
    close(value, torch.tensor((by_spot + by_image) / 2))
    close(parts["spot"], torch.tensor(by_spot))
    close(parts["image"], torch.tensor(by_image))
    assert not any(part.requires_grad for part in parts.values())


def test_soft_targets_are_one_hot_as_published_and_soft_when_normalised() -> None:
    """Why `normalize` is there: projections of length √256 make a spot similar to itself by 256."""
    batch = make_batch(8)
    for normalize, hard in ((False, True), (True, False)):
        made = model(width=256, normalize=normalize)
        soft = made.loss(batch)[0]
        image, spot = made.image_head(batch.emb), made.spot_head(batch.y)
        if normalize:
            image, spot = nn.functional.normalize(image), nn.functional.normalize(spot)
        logits, own = spot @ image.T, torch.arange(8)
        clip = (nn.functional.cross_entropy(logits, own) + nn.functional.cross_entropy(logits.T, own)) / 2
        assert torch.allclose(soft, clip, rtol=1e-3) is hard


def test_gradient_flows_through_the_targets_unless_detached() -> None:
    batch = make_batch(6)
    flowing, detached = model(normalize=True), model(normalize=True, detach=True)
    detached.load_state_dict(flowing.state_dict())
    values = [made.loss(batch)[0] for made in (flowing, detached)]
    close(*values)
    grads = [torch.autograd.grad(v, m.spot_head.linear.weight)[0] for v, m in zip(values, (flowing, detached))]  # noqa: B905
    assert not torch.allclose(*grads, atol=1e-4)


def test_spots_with_a_gene_take_part_and_what_is_missing_counts_as_its_mean() -> None:
    made, batch = model(), make_batch(6)
    batch.y_mask[1, 2], batch.y_mask[4:] = False, False
    batch.y[~batch.y_mask] = torch.nan
    made.index(FakeFeed(batch))
    filled = take(batch, torch.arange(4))
    filled.y[1, 2], filled.y_mask[1, 2] = batch.y[[0, 2, 3], 2].mean(), True
    close(made.loss(batch)[0], made.loss(filled)[0])
    close(made.bank.expression(), filled.y)
    close(made._references(), made.spot_head(filled.y))


@pytest.mark.parametrize("whole", [0, 1])
def test_loss_is_finite_when_there_is_nobody_to_compare_with(whole: int) -> None:
    made, batch = model(), make_batch(4)
    batch.y_mask[whole:] = False
    batch.y[whole:] = torch.nan
    value, parts = made.loss(batch)
    assert value == 0 and all(torch.isfinite(part) for part in parts.values())
    value.backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in made.parameters())


def test_temperature_of_the_targets_in_the_wrong_direction() -> None:
    batch = make_batch(6)
    for temperature, same in ((1.0, True), (2.0, False)):
        sound = model(temperature=temperature, normalize=True)
        wrong = model(temperature=temperature, normalize=True, legacy=("target-temperature",))
        wrong.load_state_dict(sound.state_dict())
        assert torch.allclose(sound.loss(batch)[0], wrong.loss(batch)[0]) is same
    image, spot = (nn.functional.normalize(x) for x in (wrong.image_head(batch.emb), wrong.spot_head(batch.y)))
    target, logits = ((image @ image.T + spot @ spot.T) / 2 * 2.0).softmax(1), spot @ image.T / 2.0
    by_spot, by_image = -(target * logits.log_softmax(1)).sum() / 6, -(target * logits.log_softmax(0)).sum() / 6
    close(wrong.loss(batch)[0], (by_spot + by_image) / 2)


@pytest.mark.parametrize("frozen", [True, False])
def test_reads_its_needs_only(frozen: bool) -> None:
    batch = make_batch()
    made = model(batch, trunk="frozen" if frozen else "test_resnet")
    assert made.needs == (Needs.EMB if frozen else Needs.WINDOW)
    field = "window" if frozen else "emb"
    assert made(replace(batch, **{field: None})).shape == batch.y.shape
    with pytest.raises(ValueError, match=f"no '{'emb' if frozen else 'window'}'"):
        made(replace(batch, **{"emb" if frozen else "window": None}))


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"retrieval='averages' is not one of .*did you mean 'average'"):
        model(retrieval="averages")
    with pytest.raises(ValueError, match="legacy='skip-head' is not one of"):
        model(legacy=("skip-head",))
    with pytest.raises(ValueError, match="temperature=0; expected a number above 0"):
        model(temperature=0)
    with pytest.raises(ValueError, match="k=0; expected a whole number"):
        model(k=0)
    with pytest.raises(ValueError, match=r"dims\.emb is 0"):
        BLEEP(Dims(genes=5), trunk="frozen")
