"""Stain normalisation of H&E windows: Macenko (optical density) and Reinhard (colour statistics), once per slide.

Sources: Macenko et al. 2009, A method for normalizing histology slides for quantitative analysis, ISBI; Reinhard et al.
2001, Color transfer between images, IEEE CG&A 21(5); Ruderman et al. 1998, J Opt Soc Am A 15(8) for the colour space.

A slide is measured on its thumbnail (at most `SAMPLE_PX` pixels a side) and every window of it is treated alike, so
that a window's result does not depend on the windows beside it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

SAMPLE_PX = 1024
WHITE = 240.0  # intensity of unstained glass (Macenko et al.)
_MIN_DENSITY = 0.15  # optical density below which a pixel counts as glass (Macenko et al.)
_TAIL = 1.0  # per cent cut off on either side of the stain angles, and above the concentrations (Macenko et al.)
_MIN_TISSUE = 100  # pixels: fewer give no stable estimate, and the slide is left as it is
_TOO_LITTLE = f"the reference image shows fewer than {_MIN_TISSUE} pixels of stained tissue; choose another"

# The customary target, after the reference slide of Macenko et al., rounded: optical densities of haematoxylin and
# eosin over R, G, B, and the 99th percentile of their concentrations.
_TARGET_STAINS = ((0.56, 0.72, 0.41), (0.21, 0.80, 0.56))
_TARGET_REACH = (1.9, 1.0)

# RGB -> cone responses (Reinhard et al., eq. 4), and their logarithms -> decorrelated axes l, alpha, beta (eq. 6)
_LMS = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
_LAB = np.diag([3**-0.5, 6**-0.5, 2**-0.5]) @ np.array([[1.0, 1, 1], [1, 1, -2], [1, -1, 0]])


class _HasThumbnail(Protocol):
    def thumbnail(self, max_px: int = ...) -> np.ndarray: ...


Transform = Callable[[np.ndarray], np.ndarray]


class StainNormalizer(Protocol):
    """What `embed` takes: a target, from which every slide gets its own transform of windows (b, h, w, 3) uint8."""

    @property
    def digest(self) -> str: ...
    def for_slide(self, image: _HasThumbnail) -> Transform: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Macenko:
    """Brings the two stains of a slide to the colours and the strength of a target.

    `stains` (2, 3) are unit optical densities over R, G, B, haematoxylin first; `reach` (2,) their 99th percentiles.
    """

    stains: tuple[tuple[float, ...], ...] = _TARGET_STAINS
    reach: tuple[float, ...] = _TARGET_REACH

    @classmethod
    def fit(cls, pixels: np.ndarray) -> Macenko:
        """Take the target from a reference image (…, 3) uint8; ValueError if it shows too little tissue."""
        found = _measure(_rgb(pixels))
        if found is None:
            raise ValueError(_TOO_LITTLE)
        stains, reach = found
        return cls(stains=tuple(tuple(map(float, row)) for row in stains), reach=tuple(map(float, reach)))

    @property
    def digest(self) -> str:
        """Hash of method and target."""
        return _digest(self)

    def for_slide(self, image: _HasThumbnail) -> Transform:
        """Measure a slide and give its transform; a slide with next to no tissue is left as it is."""
        return self.for_pixels(image.thumbnail(SAMPLE_PX))

    def for_pixels(self, sample: np.ndarray) -> Transform:
        """Give the transform of a slide that `sample` (…, 3) uint8 stands for."""
        found = _measure(_rgb(sample))
        if found is None:
            return np.asarray
        stains, reach = found
        target = np.asarray(self.stains, dtype=np.float64)
        target /= np.linalg.norm(target, axis=1, keepdims=True)
        # density -> concentrations -> scaled -> density of the target, in one 3 x 3 matrix
        through = np.linalg.pinv(stains) @ np.diag(np.asarray(self.reach) / reach) @ target
        table = _density(np.arange(256.0)).astype(np.float32)
        matrix = through.astype(np.float32)

        def transform(pixels: np.ndarray) -> np.ndarray:
            light = np.float32(WHITE) * np.exp(-(table[pixels] @ matrix))
            return np.clip(np.rint(light), 0, 255).astype(np.uint8)

        return transform


@dataclass(frozen=True, slots=True, kw_only=True)
class Reinhard:
    """Brings mean and spread of a slide's tissue colours to a target, in the space of Ruderman et al."""

    mean: tuple[float, ...]
    sd: tuple[float, ...]

    @classmethod
    def fit(cls, pixels: np.ndarray) -> Reinhard:
        """Take the target from a reference image (…, 3) uint8; ValueError if it shows too little tissue."""
        found = _statistics(_rgb(pixels))
        if found is None:
            raise ValueError(_TOO_LITTLE)
        return cls(mean=tuple(map(float, found[0])), sd=tuple(map(float, found[1])))

    @property
    def digest(self) -> str:
        """Hash of method and target."""
        return _digest(self)

    def for_slide(self, image: _HasThumbnail) -> Transform:
        """Measure a slide and give its transform; a slide with next to no tissue is left as it is."""
        return self.for_pixels(image.thumbnail(SAMPLE_PX))

    def for_pixels(self, sample: np.ndarray) -> Transform:
        """Give the transform of a slide that `sample` (…, 3) uint8 stands for."""
        found = _statistics(_rgb(sample))
        if found is None:
            return np.asarray
        mean, sd = found
        gain = np.asarray(self.sd) / np.maximum(sd, 1e-6)

        def transform(pixels: np.ndarray) -> np.ndarray:
            moved = (_to_lab(pixels) - mean) * gain + np.asarray(self.mean)
            return np.clip(np.rint(_from_lab(moved)), 0, 255).astype(np.uint8)

        return transform


def _rgb(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype != np.uint8 or pixels.shape[-1] != 3:
        raise ValueError(f"expected uint8 RGB pixels (…, 3), got {pixels.dtype} {pixels.shape}")
    return pixels.reshape(-1, 3)


def _density(intensity: np.ndarray) -> np.ndarray:
    return -np.log(np.maximum(intensity, 1.0) / WHITE)


def _tissue(pixels: np.ndarray) -> np.ndarray:
    """Select the pixels (m, 3) that every channel says are stained."""
    return pixels[(_density(pixels.astype(np.float64)) >= _MIN_DENSITY).all(axis=1)]


def _measure(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Give stain vectors (2, 3) and their 99th percentiles (2,), or None if there is too little tissue."""
    density = _density(_tissue(pixels).astype(np.float64))  # (m, 3)
    if len(density) < _MIN_TISSUE:
        return None
    _, axes = np.linalg.eigh(np.cov(density, rowvar=False))
    plane = axes[:, :0:-1]  # (3, 2): the two directions of greatest variance
    plane = plane * np.where(plane.sum(axis=0) < 0, -1.0, 1.0)  # densities are positive
    flat = density @ plane
    angle = np.arctan2(flat[:, 1], flat[:, 0])
    ends = np.percentile(angle, [_TAIL, 100 - _TAIL])
    stains = np.stack([np.cos(ends), np.sin(ends)], axis=1) @ plane.T  # (2, 3)
    stains = np.maximum(stains, 0.0)
    stains /= np.linalg.norm(stains, axis=1, keepdims=True)
    if stains[0, 0] < stains[1, 0]:  # haematoxylin absorbs red, eosin hardly does
        stains = stains[::-1]
    if np.linalg.cond(stains) > 1e3:  # one colour only: two stains cannot be told apart
        return None
    reach = np.percentile(density @ np.linalg.pinv(stains), 100 - _TAIL, axis=0)
    return (stains, reach) if (reach > 0).all() else None


def _statistics(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    tissue = _tissue(pixels)
    if len(tissue) < _MIN_TISSUE:
        return None
    lab = _to_lab(tissue)
    return lab.mean(axis=0), lab.std(axis=0)


def _to_lab(pixels: np.ndarray) -> np.ndarray:
    cones = np.maximum(pixels.astype(np.float64), 1.0) / 255.0 @ _LMS.T
    return np.log10(cones) @ _LAB.T


def _from_lab(lab: np.ndarray) -> np.ndarray:
    return 255.0 * (10.0 ** (lab @ np.linalg.inv(_LAB).T)) @ np.linalg.inv(_LMS).T


def _digest(normalizer: Any) -> str:
    text = json.dumps([type(normalizer).__name__, WHITE, SAMPLE_PX, asdict(normalizer)], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=20).hexdigest()
