"""Stain normalisation: known stains are found again, and two stainings of one tissue come out alike."""

from __future__ import annotations

import numpy as np
import pytest

from histoweave.embed.stain import WHITE, Macenko, Reinhard, _from_lab, _measure, _to_lab

STAINS = np.array([[0.65, 0.70, 0.29], [0.27, 0.85, 0.45]])
STAINS /= np.linalg.norm(STAINS, axis=1, keepdims=True)
OTHER = np.array([[0.55, 0.76, 0.35], [0.30, 0.90, 0.30]])
OTHER /= np.linalg.norm(OTHER, axis=1, keepdims=True)


def tissue(stains: np.ndarray = STAINS, strength: tuple[float, float] = (1.0, 1.0), seed: int = 0) -> np.ndarray:
    """Paint 100 x 100 pixels: some pure in either stain, most mixed, a fifth of them glass."""
    rng = np.random.default_rng(seed)
    amount = rng.uniform(0.2, 1.5, (10_000, 2)) * rng.choice([[1, 0], [0, 1], [1, 1]], 10_000, p=[0.2, 0.2, 0.6])
    amount[rng.random(10_000) < 0.2] = 0
    light = WHITE * np.exp(-(amount * strength) @ stains)
    return np.clip(np.rint(light), 0, 255).astype(np.uint8).reshape(100, 100, 3)


def test_the_stains_that_were_painted_are_found():
    found, _ = _measure(tissue(OTHER).reshape(-1, 3))
    cosines = (found * OTHER).sum(axis=1)
    assert (cosines > 0.995).all()


def test_two_stainings_of_one_tissue_come_out_alike():
    one, two = tissue(), tissue(OTHER, (0.7, 1.3))
    target = Macenko.fit(tissue(seed=5))
    left, right = target.for_pixels(one)(one), target.for_pixels(two)(two)
    before = np.abs(one.astype(float) - two).mean()
    assert np.abs(left.astype(float) - right).mean() < 0.35 * before
    assert left.dtype == np.uint8
    assert left.shape == one.shape


def test_reinhard_gives_tissue_the_colours_of_the_target():
    one, target = tissue(OTHER, (0.9, 1.1)), Reinhard.fit(tissue(seed=5))
    stained = (one < 200).all(axis=2)
    lab = _to_lab(target.for_pixels(one)(one)[stained])
    before = _to_lab(one[stained])
    assert np.abs(lab.mean(axis=0) - target.mean).max() < 0.03
    hue = [
        np.abs(colours.mean(axis=0) - target.mean)[1:].sum() for colours in (lab, before)
    ]  # the axes beside lightness
    assert hue[0] < 0.3 * hue[1]
    assert np.abs(lab.std(axis=0) / target.sd - 1).max() < 0.2


@pytest.mark.parametrize("method", [Macenko, Reinhard])
def test_a_slide_normalised_to_itself_hardly_changes(method):
    one = tissue()
    stained = one.min(axis=2) < 200
    moved = np.abs(method.fit(one).for_pixels(one)(one).astype(float) - one)[stained]
    assert np.median(moved) <= 2


@pytest.mark.parametrize("method", [Macenko, Reinhard])
def test_a_window_is_treated_alike_whatever_lies_beside_it(method):
    transform = method.fit(tissue(seed=5)).for_pixels(tissue(OTHER))
    batch = tissue(OTHER).reshape(4, 25, 100, 3)
    np.testing.assert_array_equal(transform(batch)[2:3], transform(batch[2:3]))


@pytest.mark.parametrize("method", [Macenko, Reinhard])
def test_a_slide_of_glass_is_left_as_it_is(method):
    glass = np.full((50, 50, 3), 245, np.uint8)
    np.testing.assert_array_equal(method.fit(tissue()).for_pixels(glass)(glass), glass)
    with pytest.raises(ValueError, match="tissue"):
        method.fit(glass)


def test_a_slide_of_one_colour_is_left_as_it_is():
    flat = np.full((50, 50, 3), (120, 60, 140), np.uint8)
    np.testing.assert_array_equal(Macenko().for_pixels(flat)(flat), flat)


def test_digests_tell_methods_and_targets_apart():
    targets = [
        Macenko(),
        Macenko.fit(tissue()),
        Macenko.fit(tissue(OTHER)),
        Reinhard.fit(tissue()),
        Reinhard.fit(tissue(OTHER)),
    ]
    assert len({target.digest for target in targets}) == 5
    assert Macenko.fit(tissue()).digest == targets[1].digest


def test_the_colour_space_is_turned_back_exactly():
    pixels = np.random.default_rng(0).integers(1, 256, (500, 3)).astype(np.uint8)
    np.testing.assert_allclose(_from_lab(_to_lab(pixels)), pixels, atol=1e-6)


def test_other_pixels_are_refused():
    with pytest.raises(ValueError, match="uint8 RGB"):
        Macenko.fit(np.zeros((4, 4, 4), np.uint8))
