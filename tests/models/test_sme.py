"""SME against a loop over pairs of spots with dense matrices, and its unit, its ties and the defects of the code."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from tests.models.complete_feed import CompleteFeed

from histoweave.batch import Batch, Dims, Needs
from histoweave.models.complete.sme import SME, components

DIMS = Dims(genes=6, emb=5)


def lattice(rows: int, columns: int, *, hexagonal: bool, step: float = 100.0, genes: int = 6) -> Batch:
    """A section with random expression on a lattice, a share of 0.3 missing, without gaps."""
    g = torch.Generator().manual_seed(0)
    rc = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
    x, y = rc[:, 1] + (0.5 * (rc[:, 0] % 2) if hexagonal else 0.0), rc[:, 0] * (3**0.5 / 2 if hexagonal else 1.0)
    n = len(rc)
    seen = torch.rand(n, genes, generator=g) < 0.7
    expr = 4 * torch.rand(n, genes, generator=g) * seen
    return Batch(
        spot=torch.arange(n), section=torch.zeros(n, dtype=torch.long), y=expr, y_mask=seen, expr=expr, seen=seen,
        xy=step * torch.stack([x, y], 1), emb=torch.randn(n, 5, generator=g),
    )  # fmt: skip


def dense(
    batch: Batch, kind: str, reach: float, *, top: int = 3, alone: bool = True, step: float = 100.0
) -> np.ndarray:
    """The method with dense matrices, spot by spot."""
    assert batch.expr is not None and batch.emb is not None and batch.xy is not None
    x, xy = batch.expr.double().numpy(), batch.xy.double().numpy()
    away = np.hypot(*(xy[:, None] - xy[None]).transpose(2, 0, 1))
    w = (away < reach * step - 1e-3).astype(float)
    if kind in ("all", "ge"):
        w = w * np.corrcoef(PCA(svd_solver="full").fit_transform(x))
    if kind in ("all", "image"):
        image = PCA(svd_solver="full").fit_transform(batch.emb.double().numpy())
        image /= np.linalg.norm(image, axis=1, keepdims=True)
        w = w * np.maximum(image @ image.T, 0)
    if alone:
        np.fill_diagonal(w, 0)
    made = np.zeros_like(x)
    for i, row in enumerate(np.maximum(w, 0)):
        best = np.argsort(-row, kind="stable")[:top]
        if row[best].sum() > 0:
            made[i] = row[best] @ x[best] / row[best].sum()
    return made


@pytest.mark.parametrize("hexagonal", [True, False])
@pytest.mark.parametrize("kind", ["all", "ge", "image"])
def test_it_is_the_dense_method(kind: str, hexagonal: bool) -> None:
    batch = lattice(9, 10, hexagonal=hexagonal)
    made = SME(DIMS, weights=kind)(batch)  # type: ignore[arg-type]
    np.testing.assert_allclose(made, dense(batch, kind, 3.0 if hexagonal else 1.5), rtol=1e-5, atol=1e-5)


def test_distance_alone_takes_the_six_nearest() -> None:
    batch = lattice(9, 10, hexagonal=True)
    assert batch.expr is not None and batch.xy is not None
    made = SME(DIMS, weights="physical")(batch)
    for spot in (44, 55):  # inside: the first ring
        away = torch.linalg.vector_norm(batch.xy - batch.xy[spot], dim=1)
        ring = (away > 0) & (away < 110)
        assert int(ring.sum()) == 6
        torch.testing.assert_close(made[spot], batch.expr[ring].mean(0))


@pytest.mark.parametrize("hexagonal, expected", [(True, (30, 18)), (False, (8, 12))])
def test_radius_is_in_pitches_and_the_legacy_unit_is_not(hexagonal: bool, expected: tuple[int, int]) -> None:
    batch = lattice(15, 15, hexagonal=hexagonal, step=37.0)
    assert batch.xy is not None
    jitter = torch.randn(batch.xy.shape, generator=torch.Generator().manual_seed(1))
    jitter = jitter * 37 * (0.02 if hexagonal else 0.07)  # hand-aligned squares lie as far off as that
    turn = torch.tensor([[0.8, -0.6], [0.6, 0.8]])
    places = [(batch.xy, (), expected[0]), (batch.xy @ turn + jitter, (), expected[0]), (batch.xy, "unit", expected[1])]
    for xy, legacy, count in places:
        near = SME(DIMS, legacy=legacy)._near(xy.double().numpy())
        assert int((near[7 * 15 + 7] >= 0).sum()) == count
    made = SME(DIMS, weights="ge", legacy="unit")(batch)
    np.testing.assert_allclose(made, dense(batch, "ge", 1.5 * 2**0.5, step=37.0), rtol=1e-5, atol=1e-5)


def test_off_lattices_the_radius_is_the_radius() -> None:
    xy = np.random.default_rng(0).random((300, 2))
    step = np.median(np.sort(np.hypot(*(xy[:, None] - xy[None]).transpose(2, 0, 1)), axis=1)[:, 1])
    near = SME(DIMS)._near(xy)
    for spot in (0, 7):
        away = np.hypot(*(xy - xy[spot]).T)
        assert set(near[spot].tolist()) - {-1} == set(np.flatnonzero((away > 0) & (away <= 3 * step)).tolist())


def test_legacy_averages_the_missing_zero_itself() -> None:
    batch = lattice(9, 10, hexagonal=True)
    assert batch.expr is not None and batch.seen is not None
    made = SME(DIMS, weights="ge")(batch)
    legacy = SME(DIMS, weights="ge", legacy="self-neighbour")(batch)
    np.testing.assert_allclose(legacy, dense(batch, "ge", 3.0, alone=False), rtol=1e-5, atol=1e-5)
    missing = ~batch.seen
    assert float(legacy[missing].mean()) < 0.8 * float(made[missing].mean())
    only = replace(batch, expr=torch.zeros_like(batch.expr), seen=torch.zeros_like(batch.seen))
    only.expr[44], only.seen[44] = 1.0, True
    assert float(SME(DIMS, weights="physical", neighbours=1, legacy="self-neighbour")(only)[44, 0]) == 1
    assert float(SME(DIMS, weights="physical", neighbours=1)(only)[44, 0]) == 0


def test_unseen_neighbours_count_as_zero_unless_they_are_skipped() -> None:
    batch = lattice(3, 3, hexagonal=False)
    batch.expr, batch.seen = torch.zeros(9, 6), torch.zeros(9, 6, dtype=torch.bool)
    batch.expr[1], batch.seen[1] = 2.0, True
    counted = SME(DIMS, weights="physical", neighbours=8)(batch)
    skipped = SME(DIMS, weights="physical", neighbours=8, unseen="skip")(batch)
    torch.testing.assert_close(counted[4], torch.full((6,), 2 / 8))
    torch.testing.assert_close(skipped[4], torch.full((6,), 2.0))
    assert not skipped[1].any()  # of which no neighbour shows anything


def test_spots_without_weight_get_zeros() -> None:
    batch = lattice(2, 2, hexagonal=False)
    assert batch.xy is not None
    one = Batch(**{name: value[:1] for name, value in batch.items()})
    assert not SME(DIMS)(one).any()
    far = replace(batch, xy=batch.xy + torch.tensor([[0.0, 0], [0, 0], [0, 0], [900.0, 900]]))
    assert not SME(DIMS, weights="physical", radius=0.5)(far).any()
    flat = replace(batch, expr=torch.ones(4, 6), seen=torch.ones(4, 6, dtype=torch.bool))
    assert not SME(DIMS, weights="ge")(flat).any()  # no component, so no correlation


def test_the_order_of_spots_does_not_matter() -> None:
    batch = lattice(7, 6, hexagonal=False)
    order = torch.randperm(42, generator=torch.Generator().manual_seed(2))
    moved = Batch(**{name: value[order] for name, value in batch.items()})
    for kind in ("all", "physical"):
        model = SME(DIMS, weights=kind)  # type: ignore[arg-type]
        assert torch.equal(model(batch)[order], model(moved))


def test_spots_on_one_line_and_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    line = lattice(1, 12, hexagonal=False)
    near = SME(DIMS)._near(line.xy.double().numpy())  # type: ignore[union-attr]
    assert near.shape == (12, 2) and set(near[5].tolist()) == {4, 6}
    batch = CompleteFeed(hidden=0.3).batch()
    whole = SME(DIMS)(batch)
    monkeypatch.setattr("histoweave.models.complete.sme._CHUNK", 7)
    torch.testing.assert_close(SME(DIMS)(batch), whole)


@pytest.mark.parametrize("shape", [(40, 6), (5, 9)])
def test_components_are_sklearns(shape: tuple[int, int]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    made, sklearn = components(x, 4).numpy(), PCA(4, svd_solver="full").fit_transform(x.numpy())
    np.testing.assert_allclose(np.abs(made), np.abs(sklearn), atol=1e-8)
    wide = torch.cat([x, x], dim=1)  # half of its components are rounding
    assert components(wide, 50).shape[1] == min(shape[0] - 1, shape[1])


def test_the_image_is_asked_for_only_where_it_is_used() -> None:
    assert Needs.EMB in SME(DIMS).needs and Needs.EMB not in SME(Dims(genes=6), weights="ge").needs
    for arguments, message in [
        ({"dims": Dims(genes=6)}, "no embedding"),
        ({"weights": "gd"}, r"weights='gd'.*'ge'"),
        ({"legacy": "self"}, "legacy='self'"),
        ({"radius": -1.0}, r"radius=-1\.0"),
        ({"neighbours": -1}, "neighbours=-1"),
    ]:
        with pytest.raises(ValueError, match=message):
            SME(**({"dims": DIMS} | arguments))  # type: ignore[arg-type]
