"""Pixels of a phantom section: haematoxylin and eosin concentrations, then Beer-Lambert.

Stain vectors start from the reference of [Macenko2009] (M. Macenko et al., ISBI 2009).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from scipy import ndimage

from histoweave.data.phantom_tissue import Frame, Tissue, interpolate

STAINS = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]])  # optical density of H and E in R, G, B
STRIP = 64  # rows of pixels painted at a time
DENSITY = np.array([1.05, 0.62])  # optical density (base 10) of concentration one of H and E


@dataclass(frozen=True, slots=True)
class Stain:
    """Colours of one slide: unit stain vectors (2, 3), concentration factors (2,), colour of the lamp (3,)."""

    vectors: np.ndarray
    strength: np.ndarray
    lamp: np.ndarray


def draw_stain(rng: Generator, section: Generator, shift: float) -> Stain:
    """A slide's colours: a patient's deviation (`rng`) and a smaller one of the section.

    `shift` multiplies both, so that a stress curve over it moves the same slides further in the same direction;
    at 0 every slide has the reference colours.
    """
    turn = 0.045 * (rng.standard_normal((2, 3)) + 0.3 * section.standard_normal((2, 3)))
    gain = 0.18 * (rng.standard_normal(2) + 0.3 * section.standard_normal(2))
    tint = 0.012 * np.abs(rng.standard_normal(3))
    vectors = np.clip(STAINS + shift * turn, 0.02, None)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Stain(vectors, DENSITY * np.exp(shift * gain), np.clip(0.965 - shift * tint, 0.6, 1.0))


def render(rng: Generator, tissue: Tissue, stain: Stain) -> np.ndarray:
    """The H&E image, uint8 (height, width, 3).

    Painted in strips of rows, so that the layers of a strip stay in the processor's cache.
    """
    frame = tissue.frame
    half = (frame.shape[0] // 2 + 2, frame.shape[1] // 2 + 2)
    fibres, specks = _fibres(rng, half, 2 * frame.um_per_px), _specks(rng, half)
    nuclei = _draw_nuclei(tissue)
    density = (stain.vectors * stain.strength[:, None] * np.log(10)).astype(np.float32)
    out = np.empty((*frame.shape, 3), dtype=np.uint8)
    for start in range(0, frame.shape[0], STRIP):
        rows = np.arange(start, min(start + STRIP, frame.shape[0]))
        haematoxylin, eosin = _concentrations(tissue, fibres, specks, rows)
        grain = rng.standard_normal(eosin.shape, dtype=np.float32)
        inside = nuclei[rows[0] : rows[-1] + 1] * (1 + np.float32(0.16) * grain)  # chromatin
        eosin *= 1 - np.float32(0.5) * np.minimum(inside, 1)
        haematoxylin += inside
        for c in range(3):
            light = np.exp(-density[0, c] * haematoxylin - density[1, c] * eosin)  # Beer-Lambert
            light = light * np.float32(255 * stain.lamp[c]) + grain  # the camera is not free of noise
            out[rows[0] : rows[-1] + 1, :, c] = np.clip(light, 0, 255)
    return out


def _concentrations(
    tissue: Tissue, fibres: np.ndarray, specks: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Haematoxylin and eosin of everything but nuclei, float32 (rows, width), for some rows of pixels."""
    frame, fields = tissue.frame, tissue.fields
    cover = {k: _mask(frame, fields[k], rows) for k in ("tissue", "gland", "tumour", "lymphocyte", "lumen", "fat")}
    cols = np.arange(frame.shape[1])
    fibre, speck = (interpolate(half, 0.5 * rows, 0.5 * cols) for half in (fibres, specks))
    wall = np.exp(-((_upsample(frame, fields["septum"], rows) / np.float32(2.2)) ** 2))
    eosin, haematoxylin = 0.50 + 0.13 * fibre, 0.07 + 0.03 * fibre
    _blend(eosin, 0.02 + 0.62 * wall, cover["fat"])
    _blend(haematoxylin, 0.06 * wall, cover["fat"])
    _blend(eosin, 0.52 + speck, cover["gland"])
    _blend(haematoxylin, 0.24 + 0.3 * speck, cover["gland"])
    _blend(eosin, 0.50 + speck, cover["tumour"])
    _blend(haematoxylin, 0.36 + 0.5 * speck, cover["tumour"])
    _blend(eosin, np.float32(0.03), cover["lumen"])
    _blend(haematoxylin, np.float32(0.0), cover["lumen"])
    _blend(eosin, 0.40 + speck, 0.8 * cover["lymphocyte"])
    _blend(haematoxylin, 0.26 + speck, 0.8 * cover["lymphocyte"])
    eosin *= cover["tissue"]
    haematoxylin *= cover["tissue"]
    return np.maximum(haematoxylin, 0), np.maximum(eosin, 0)


def _blend(base: np.ndarray, value: np.ndarray | np.float32, weight: np.ndarray) -> None:
    """Move `base` towards `value` by `weight`, in place."""
    base += (value - base) * weight


def _upsample(frame: Frame, field: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """A coarse field at the centres of some rows of pixels, float32 (rows, width)."""
    scale = frame.um_per_px / frame.step
    return interpolate(field, (rows + 0.5) * scale, (np.arange(frame.shape[1]) + 0.5) * scale)


def _mask(frame: Frame, depth: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Anti-aliased cover (rows, width) of a depth field: the outline is about 1.5 pixels wide."""
    cover = _upsample(frame, depth, rows)
    cover *= np.float32(1 / (1.5 * frame.um_per_px))
    cover += np.float32(0.5)
    return np.clip(cover, 0, 1, out=cover)


def _specks(rng: Generator, shape: tuple[int, int]) -> np.ndarray:
    """Granular cytoplasm, float32, sd 0.1."""
    small = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), 1.0, truncate=2.5)
    return small * np.float32(0.1 / small.std())


def _fibres(rng: Generator, shape: tuple[int, int], px: float) -> np.ndarray:
    """Wavy collagen, about unit variance: streaks, bent by a smooth displacement, in two directions; px in um."""
    side = max(shape)
    streak = rng.standard_normal((side, side), dtype=np.float32)
    streak = ndimage.gaussian_filter(streak, (2.6 / px, 30 / px), mode="wrap", truncate=2.5)
    streak /= streak.std()
    layers = []
    for turned in (False, True):
        size = shape[::-1] if turned else shape
        bend = _waves(rng, size, 75 / px) * (13 / px)
        row = (np.arange(size[0])[:, None] + turned * side // 2 + np.rint(bend).astype(np.int32)) % side
        layer = np.take_along_axis(streak[:, : size[1]], row, axis=0)
        layers.append(layer.T if turned else layer)
    mix = np.clip(0.5 + 2.5 * _waves(rng, shape, 110 / px), 0, 1)
    return (layers[0] + (layers[1] - layers[0]) * mix).astype(np.float32)


def _waves(rng: Generator, shape: tuple[int, int], scale: float) -> np.ndarray:
    """Smooth unit-variance noise on a large grid: cubic interpolation of one random value per `scale` pixels."""
    count = tuple(int(side / scale) + 4 for side in shape)
    out = rng.standard_normal(count).astype(np.float32)
    for axis in (1, 0):
        at = np.arange(shape[axis]) / scale
        base = at.astype(int)
        t = (at - base).astype(np.float32)
        weights = ((1 - t) ** 3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6, t**3 / 6)
        out = sum(out.take(base + i, axis=axis) * (w[:, None] if axis == 0 else w) for i, w in enumerate(weights))
    return out / (out.std() + 1e-6)


def _draw_nuclei(tissue: Tissue) -> np.ndarray:
    """Haematoxylin of the nuclei (height, width), float32; where nuclei overlap the darker one shows."""
    frame = tissue.frame
    height, width = frame.shape
    out = np.zeros(height * width, dtype=np.float32)
    for kind in np.unique(tissue.nuclei[:, 6]):
        x, y, long, short, turn, dark, _ = tissue.nuclei[tissue.nuclei[:, 6] == kind].T
        x, y, long, short = (v / np.float32(frame.um_per_px) for v in (x, y, long, short))
        reach = int(np.ceil(np.quantile(long, 0.98) + 0.5))
        step = np.arange(-reach, reach + 1)
        col = x.astype(np.int32)[:, None, None] + step[None, None, :]
        row = y.astype(np.int32)[:, None, None] + step[None, :, None]
        dx = col.astype(np.float32) + (np.float32(0.5) - x[:, None, None])
        dy = row.astype(np.float32) + (np.float32(0.5) - y[:, None, None])
        cos, sin = np.cos(turn)[:, None, None], np.sin(turn)[:, None, None]
        rho = np.hypot((dx * cos + dy * sin) / long[:, None, None], (dy * cos - dx * sin) / short[:, None, None])
        soft = np.clip((1 - rho) * short[:, None, None] + 0.5, 0, 1)  # anti-aliased rim
        value = soft * (0.78 + 0.22 * np.minimum(rho, 1)) * dark[:, None, None]  # chromatin gathers at the membrane
        ok = (soft > 0) & (col >= 0) & (col < width) & (row >= 0) & (row < height)
        np.maximum.at(out, (row * width + col)[ok], value[ok])
    return out.reshape(height, width)
