"""SEPAL's graph stage: graphs by brute force, every switch, and the public code's bound on corrections."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from histoweave.batch import Batch, Dims
from histoweave.models import blank
from histoweave.models.predict.sepal import CHOICES, Sepal

DIMS = Dims(genes=5, emb=8)


def line(n: int = 6) -> Batch:
    """Spots in a row, each with the spots beside it as neighbours."""
    draw = torch.Generator().manual_seed(0)
    rows = torch.arange(n)
    nbr = torch.stack([rows - 1, torch.where(rows + 1 < n, rows + 1, -1)], 1)
    return Batch(
        spot=rows, section=torch.zeros(n, dtype=torch.long), y=torch.randn(n, 5, generator=draw),
        y_mask=torch.ones(n, 5, dtype=torch.bool), emb=torch.randn(n, 8, generator=draw), nbr=nbr,
        array_xy=torch.stack([torch.zeros_like(rows), rows], 1), prior=torch.randn(n, 5, generator=draw),
    )  # fmt: skip


def small(**arguments: object) -> Sepal:
    torch.manual_seed(0)
    return Sepal(DIMS, **({"pre": (6,), "graph": (6, 4)} | arguments)).eval()  # type: ignore[arg-type]


def test_graphs_are_those_of_a_loop() -> None:
    batch, model = line(), small()
    node, linked = model._graphs(batch)
    assert batch.nbr is not None
    for b in range(6):
        members = [b, *batch.nbr[b].tolist()]
        for i, u in enumerate(members):
            for j, v in enumerate(members):
                expected = u >= 0 and v >= 0 and (u == v or v in batch.nbr[u].tolist())
                assert bool(linked[b, i, j]) == expected
        assert [m for m in node[b].tolist() if m in members] and node.min() >= 0


def test_a_spot_beyond_the_graph_does_not_matter() -> None:
    batch, model = line(), small(pooling="centre")
    before = model(batch)
    assert batch.emb is not None
    batch.emb[5] += 1.0
    changed = (model(batch) != before).any(1)
    assert changed.tolist() == [False] * 4 + [True] * 2


@pytest.mark.parametrize("operator", CHOICES["operator"])
@pytest.mark.parametrize("position", CHOICES["position"])
@pytest.mark.parametrize("pooling", CHOICES["pooling"])
def test_every_switch_learns(operator: str, position: str, pooling: str) -> None:
    model = small(operator=operator, position=position, pooling=pooling).train()
    value, _ = model.loss(line())
    value.backward()
    silent = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert torch.isfinite(value) and not {name for name in silent if not name.startswith("score")}


def test_both_presets_and_widths_of_the_paper() -> None:
    visium, stnet = (blank("sepal", {"preset": p}, Dims(genes=256, emb=768)) for p in ("visium", "stnet"))
    pre, graph, head, score = 1536 * 512 + 512, 512 * 256 + 256 + 256 * 128 + 128, 128 * 256 + 256, 2 * 128 + 1
    assert count(visium) == pre + graph + head + score
    assert count(stnet) == 2 * 768 * 256 + 256 + 2 * 256 + 1


def count(model: object) -> int:
    return sum(p.numel() for p in model.parameters())  # type: ignore[attr-defined]


def test_legacy_elu_bounds_the_correction() -> None:
    batch = replace(line(), prior=torch.zeros(6, 5))
    for legacy, bounded in (("elu-output", True), ((), False)):
        model = small(legacy=legacy)
        assert model.head is not None
        with torch.no_grad():
            model.head.bias.fill_(-50.0)
        assert bool((model(batch) >= -1.0).all()) == bounded


def test_without_neighbours_a_spot_stands_for_itself() -> None:
    batch, model = line(), small()
    batch.nbr = torch.full_like(batch.nbr, -1)  # type: ignore[arg-type]
    assert torch.isfinite(model(batch)).all()


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="did you mean 'gat'"):
        small(operator="gta")
    with pytest.raises(ValueError, match="multiple of 4"):
        Sepal(Dims(genes=5, emb=10))
    with pytest.raises(ValueError, match="hops=0"):
        small(hops=0)
