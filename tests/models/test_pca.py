"""Principal components against scikit-learn, however the spots come, and what the models that use them read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from tests.models.section_batch import DIMS, Sections, make_batch
from torch import Tensor

from histoweave.batch import Batch, Dims, Needs
from histoweave.models._checks import given
from histoweave.models._pca import ADJACENCY_WIDTH, Inputs, Pca
from histoweave.pp.adjacency import WIDTH


class Rows:
    """A feed of the rows of one table, `step` at a time."""

    def __init__(self, x: Tensor, step: int) -> None:
        self.x, self.step, self.n = x, step, len(x)

    def batches(self, size: int, /) -> Iterator[Batch]:
        for rows in torch.arange(self.n).split(self.step):
            none = torch.zeros(len(rows), 1)
            yield Batch(spot=rows, section=rows * 0, y=none, y_mask=none > 0, emb=self.x[rows])


def emb(batch: Batch) -> Tensor:
    return given(batch.emb, "emb")


def table(n: int = 150, d: int = 24, *, far: float = 5.0) -> Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) * np.linspace(0.1, 3, d) + far)


def fitted(x: Tensor, components: int, step: int = 4096) -> Pca:
    made = Pca(x.shape[1], components).double()
    made.fit(Rows(x, step), emb)  # type: ignore[arg-type]
    return made


@pytest.mark.parametrize("components", [1, 8, 24])
def test_equals_scikit_learn(components: int) -> None:
    x = table()
    theirs, ours = PCA(components, svd_solver="full").fit(x.numpy()), fitted(x, components)
    sign = torch.from_numpy(np.sign((theirs.components_ * ours.loadings.numpy()).sum(1)))
    torch.testing.assert_close(ours.mean, torch.from_numpy(theirs.mean_), atol=1e-9, rtol=0)
    torch.testing.assert_close(ours.loadings, torch.from_numpy(theirs.components_) * sign[:, None], atol=1e-8, rtol=0)
    torch.testing.assert_close(ours(x), torch.from_numpy(theirs.transform(x.numpy())) * sign, atol=1e-7, rtol=0)


@pytest.mark.parametrize("step", [1, 7, 149])
@pytest.mark.parametrize("far", [0.0, 1e5])
def test_spots_may_come_in_pieces(step: int, far: float) -> None:
    """Far from 0, sums of raw squares would lose what matters."""
    x = table(far=far)
    whole, pieces = fitted(x, 8), fitted(x, 8, step)
    torch.testing.assert_close(whole.mean, pieces.mean, atol=1e-9 * (1 + far), rtol=0)
    torch.testing.assert_close(whole.loadings, pieces.loadings, atol=1e-8, rtol=0)


def test_the_largest_loading_is_positive_whatever_the_direction() -> None:
    x = table()
    straight, turned = fitted(x, 8), fitted(-x, 8)
    largest = straight.loadings.gather(1, straight.loadings.abs().argmax(1, keepdim=True))
    assert (largest > 0).all()
    torch.testing.assert_close(straight.loadings, turned.loadings, atol=1e-9, rtol=0)


def test_components_that_the_spots_do_not_determine_are_zero() -> None:
    few = fitted(table(5), 8)
    assert few.loadings[:4].abs().amax(1).gt(0.1).all() and (few.loadings[4:] == 0).all()
    flat = fitted(torch.full((20, 6), 3.0, dtype=torch.float64), 4)
    assert (flat.loadings == 0).all() and (flat.mean == 3).all()
    assert torch.isfinite(flat(table(4, 6))).all()
    assert Pca(6, 32).width == 6


@pytest.mark.parametrize(("x", "says"), [(table(1), "1 training spots"), (table(0), "0 training spots")])
def test_too_few_spots(x: Tensor, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        fitted(x, 4)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_embeddings_that_are_not_finite_are_named(bad: float) -> None:
    x = table()
    x[3, 2] = bad
    with pytest.raises(ValueError, match="NaN or infinity; embed these sections again"):
        fitted(x, 4)


def test_a_second_fit_leaves_nothing_of_the_first() -> None:
    x, made = table(), fitted(table(far=2.0) * 3, 8)
    made.fit(Rows(x[:4], 4096), emb)  # type: ignore[arg-type]
    assert torch.equal(made.loadings, fitted(x[:4], 8).loadings)


def located(n: int = 20) -> Batch:
    """A section with everything that the inputs may be made of."""
    g = torch.Generator().manual_seed(2)
    made = make_batch(n)
    return replace(
        made, pooled=torch.randn(n, DIMS.emb, generator=g),
        adjacency=torch.randn(n, WIDTH, generator=g), adjacency_raw=torch.randn(n, WIDTH, generator=g),
    )  # fmt: skip


@pytest.mark.parametrize(("input", "image"), [("spot", "emb"), ("pooled", "pooled")])
@pytest.mark.parametrize(("adjacency", "place"), [("none", None), ("sign", "adjacency"), ("paper", "adjacency_raw")])
def test_inputs_are_scores_and_then_the_adjacency(input: Any, image: str, adjacency: Any, place: str | None) -> None:
    batch = located()
    made = Inputs(DIMS, input=input, adjacency=adjacency, components=5)
    made.fit(Sections(batch))
    names = [Needs[name.upper()] for name in ("emb" if image == "emb" else "pooled", place) if name]
    assert set(made.needs) == set(names)
    read = {name: getattr(batch, name) for name in (image, place) if name}
    out = made(Batch(spot=batch.spot, section=batch.section, y=batch.y, y_mask=batch.y_mask, **read))
    assert out.shape == (20, made.width) and made.width == 5 + (0 if place is None else ADJACENCY_WIDTH)
    theirs = PCA(5, svd_solver="full").fit_transform(read[image].double().numpy())
    np.testing.assert_allclose(out[:, :5].abs(), np.abs(theirs), atol=1e-4)
    assert place is None or torch.equal(out[:, 5:], read[place])


def test_the_width_of_the_adjacency_is_that_of_the_feed() -> None:
    assert ADJACENCY_WIDTH == WIDTH


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"input": "spots"}, "input='spots' is not one of 'spot', 'pooled'; did you mean 'spot'"),
        ({"adjacency": "signs"}, "adjacency='signs' is not one of .*; did you mean 'sign'"),
        ({"components": 0}, "components=0; expected a whole number of 1 or more"),
    ],
)
def test_bad_arguments(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Inputs(DIMS, **({"input": "spot", "adjacency": "none", "components": 4} | changes))


def test_embeddings_are_needed() -> None:
    with pytest.raises(ValueError, match=r"dims\.emb is 0: give an encoder"):
        Inputs(Dims(genes=3), input="spot", adjacency="none", components=4)
    made = Inputs(DIMS, input="pooled", adjacency="none", components=4)
    with pytest.raises(ValueError, match="the batch has no 'pooled'"):
        made(make_batch())
