"""BLEEP: what it looks up and when, and which heads take part in it."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from tests.models.bleep_batch import DIMS, FakeFeed, close, make_batch, model, take
from torch import nn


@pytest.fixture(autouse=True)
def _fixed() -> None:
    torch.manual_seed(0)


@torch.no_grad()
@pytest.mark.parametrize("trunk", ["frozen", "test_resnet"])
@pytest.mark.parametrize("retrieval", ["simple", "average", "weighted"])
def test_retrieval_by_hand(trunk: str, retrieval: str) -> None:
    reference, batch = make_batch(20), make_batch(23)
    batch = take(batch, torch.arange(20, 23))
    made = model(reference, retrieval=retrieval, trunk=trunk)
    image = batch.emb if trunk == "frozen" else made.trunk.pooled(batch.window)
    query, keys = made.image_head(image), made.spot_head(reference.y)
    for i, out in enumerate(made(batch)):
        cosine = [float(nn.functional.cosine_similarity(query[i], key, dim=0)) for key in keys]
        best = sorted(range(20), key=lambda j: -cosine[j])[: 1 if retrieval == "simple" else 4]
        d = [float((query[i] - keys[j]).square().sum()) for j in best]
        weight = torch.tensor([-(x - d[0] + 1) for x in d]).exp() if retrieval == "weighted" else torch.ones(len(best))
        close(out, (reference.y[best] * weight[:, None]).sum(0) / weight.sum())


def test_k_is_cut_to_what_is_there() -> None:
    reference = make_batch(5)
    close(model(reference, k=50)(make_batch(3)), reference.y.mean(0).expand(3, -1))


@pytest.mark.parametrize("head", ["image_head", "spot_head"])
def test_both_heads_are_used_at_inference(head: str) -> None:
    batch = make_batch()
    made = model(batch)
    before = made(batch)
    state = made.state_dict()
    made.load_state_dict({key: torch.randn_like(v) if key.startswith(head) else v for key, v in state.items()})
    assert not torch.allclose(made(batch), before, atol=1e-2)


def test_prediction_is_training_expression_and_changes_with_it() -> None:
    reference, batch = make_batch(), make_batch(4)
    made = model(reference, retrieval="simple")
    before = made(batch)
    assert all((reference.y == row).all(1).any() for row in before)
    made.index(FakeFeed(replace(reference, y=reference.y.flip(1) + 3)))
    assert not torch.allclose(made(batch), before)


def test_evaluation_reads_no_expression_of_the_batch() -> None:
    made, batch = model(make_batch()), make_batch(4)
    blind = replace(batch, y=torch.full_like(batch.y, torch.nan), y_mask=torch.zeros_like(batch.y_mask))
    assert torch.equal(made(batch), made(blind))


def test_in_training_a_spot_finds_other_patients_only() -> None:
    batch = make_batch(16)
    batch.y = batch.section[:, None] * torch.ones(16, DIMS.genes)
    made = model(batch, retrieval="average", k=50).train()
    close(
        made(batch), (6 - batch.section[:, None]).expand(-1, DIMS.genes) / 3
    )  # the mean of the other three of 0, 1, 2, 3
    close(made.eval()(batch), torch.full_like(batch.y, 1.5))
    alone = model(replace(batch, section=torch.zeros_like(batch.section))).train()
    with pytest.raises(ValueError, match="no other patient"):
        alone(batch)


def test_references_are_projected_once_and_never_outdated() -> None:
    reference, batch = make_batch(), make_batch(5)
    made, calls = model(reference, retrieval="weighted"), []
    made.spot_head.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        first = made(batch)
    made(take(batch, torch.tensor([2]))).sum().backward()  # made without a graph, used with one
    assert len(calls) == 1

    made.train()
    torch.nn.init.normal_(made.spot_head.linear.weight)
    trained = made.eval()(batch)
    fresh = model(reference, retrieval="weighted")
    fresh.load_state_dict(made.state_dict())
    assert torch.equal(trained, fresh(batch)) and not torch.allclose(trained, first)

    other = model(reference, retrieval="weighted")
    expected = other(batch)
    made.load_state_dict(other.state_dict())  # no call of train() between
    assert torch.equal(made(batch), expected)
    copied = copy.deepcopy(made)
    copied.load_state_dict(fresh.state_dict())  # forgets its own references and not those of what it is a copy of
    assert torch.equal(copied(batch), trained) and torch.equal(made(batch), expected)


def test_projected_references_are_not_saved() -> None:
    made = model(make_batch())
    before = set(made.state_dict())
    made(make_batch(3))
    assert len(made.reference) == 20
    assert set(made.state_dict()) == before and not any("reference" in key for key in before)


def test_skipping_the_image_head_at_inference() -> None:
    reference, batch = make_batch(), make_batch(6)
    made = model(reference, width=DIMS.emb, legacy="skip-image-head", retrieval="simple")
    cosine = nn.functional.cosine_similarity(batch.emb[:, None], made.spot_head(reference.y)[None], dim=2)
    close(made(batch), reference.y[cosine.argmax(1)])
    sound = model(width=DIMS.emb, retrieval="simple")
    sound.index(FakeFeed(reference))
    sound.load_state_dict(made.state_dict())
    close(sound.loss(batch)[0], made.loss(batch)[0])  # it is trained all the same
    assert not torch.allclose(sound(batch), made(batch))
    torch.nn.init.normal_(made.image_head.linear.weight)
    close(made(batch), reference.y[cosine.argmax(1)])  # nothing that the head learns matters
    with pytest.raises(ValueError, match=r"12 wide, with projected expression, width=8; .*give width=12"):
        model(legacy="skip-image-head")


def test_runs_on_autocast() -> None:
    made, batch = model(make_batch(), retrieval="weighted"), make_batch(3)
    with torch.autocast("cpu", torch.bfloat16):
        assert made(batch).dtype == torch.float32 and torch.isfinite(made.loss(batch)[0])
