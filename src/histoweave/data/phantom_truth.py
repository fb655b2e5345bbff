"""What drives a phantom's expression: geometry, genes' rules, latents of the tissue, counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from scipy import sparse

from histoweave.data.phantom_tissue import MARGIN, PARTS, Frame, Tissue
from histoweave.data.section import PITCH_UM, Platform

Layout = Literal["st", "visium", "cells"]
Family = Literal["local", "neighbourhood", "global", "noise"]

FACTORS: dict[str, tuple[str, ...]] = {
    "local": ("gland", "tumour", "lymphocyte", "fat", "stroma", "nuclei"),
    "neighbourhood": ("immune_ring",),
    "global": ("margin", "axis"),
}
# Fixed centre and scale of every factor (areas as fractions of a tile; nuclei per 1000 um²; margin and axis in half
# sides of the section), so that a gene follows the same rule in every section, cohort and seed.
SCALES: dict[str, tuple[float, float]] = {
    "gland": (0.10, 0.16),
    "tumour": (0.12, 0.20),
    "lymphocyte": (0.07, 0.15),
    "fat": (0.10, 0.20),
    "stroma": (0.65, 0.24),
    "nuclei": (2.6, 2.0),
    "immune_ring": (0.07, 0.030),
    "margin": (0.45, 0.30),
    "axis": (0.0, 0.60),
}
GAIN = 0.85  # largest relative change of a structured gene: means stay positive, and clearly above the noise
STRUCTURED_MEAN, NOISE_MEAN = 14.0, 3.0  # median counts per spot at size factor 1
DISPERSION = 0.06  # negative binomial: variance = mean + DISPERSION * mean²
PLATFORM: dict[str, Platform] = {"st": "st", "visium": "visium", "cells": "xenium"}
PITCH: dict[str, float] = {**PITCH_UM, "cells": 50.0}
UM_PER_PX = {"st": 200 / 112, "visium": 100 / 112, "cells": 0.5}
GENES: dict[Family, int] = {"local": 24, "neighbourhood": 16, "global": 16, "noise": 100}
PANEL, STAIN, LIBRARY, TISSUE, PIXELS, COUNTS = range(6)  # random streams: changing one knob leaves the rest as is


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """Arguments of one cohort, checked."""

    layout: Layout
    spots: tuple[int, int]
    um_per_px: float
    pitch_um: float
    tile_um: float
    stain_shift: float
    library_shift: float
    dropout: float
    seed: int

    def __post_init__(self) -> None:
        rows, cols = self.spots
        if min(rows, cols) < 4:
            raise ValueError(f"spots={self.spots!r}; expected two numbers (rows, columns), each at least 4")
        for name in ("um_per_px", "pitch_um", "tile_um"):
            if not 0 < getattr(self, name) < np.inf:
                raise ValueError(f"{name}={getattr(self, name)!r}; expected a positive length")
        if self.um_per_px > self.tile_um / 16:
            raise ValueError(
                f"um_per_px={self.um_per_px:g} leaves {self.tile_um / self.um_per_px:.1f} pixels per tile "
                f"of {self.tile_um:g} um, at least 16 are needed; give at most {self.tile_um / 16:g}"
            )
        for name in ("stain_shift", "library_shift", "seed"):
            at_least(name, getattr(self, name), 0)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout!r}; expected a probability below 1")

    def rng(self, stream: int, *which: int) -> np.random.Generator:
        """The generator of one stream, for one patient or section."""
        return np.random.default_rng([self.seed, stream, *which])


def at_least(name: str, value: float, least: float) -> None:
    """`ValueError` naming the argument where a value is too small."""
    if value < least:
        raise ValueError(f"{name}={value!r}; expected at least {least}")


def gene_panel(genes: Mapping[Family, int], seed: int) -> pd.DataFrame:
    """The genes and their rules. Members of a pair share factor and mean and differ in sign."""
    unknown = sorted(set(genes) - set(GENES))
    if unknown:
        raise ValueError(f"gene family {unknown[0]!r} is unknown; expected {tuple(GENES)}")
    frames = []
    for family, number in genes.items():
        rng = np.random.default_rng([seed, PANEL, list(GENES).index(family)])  # a family's rules are its own
        if number < 0 or (number % 2 and family != "noise"):
            raise ValueError(
                f"{number} genes of family {family!r}; structured genes come in up/down pairs, give an "
                "even number, 0 or more"
            )
        pair = np.arange(number) // 2
        name = [f"{family.upper()}{i + 1:03d}" for i in range(number)]
        if family == "noise":
            rule = {"factor": "none", "gain": 0.0, "mean": NOISE_MEAN * rng.lognormal(0, 0.9, number), "pair": -1}
        else:
            kinds = np.array(FACTORS[family])
            level = STRUCTURED_MEAN * rng.lognormal(0, 0.35, (number + 1) // 2)[pair]
            gain = GAIN * (1.0 - 2.0 * (np.arange(number) % 2))
            rule = {"factor": kinds[pair % len(kinds)], "gain": gain, "mean": level, "pair": pair}
        frames.append(pd.DataFrame({"family": family, **rule}, index=pd.Index(name, dtype=object)))
    return pd.concat(frames)


def geometry(spec: Spec, at: int) -> tuple[Frame, np.ndarray, np.ndarray, np.ndarray | None]:
    """Canvas, structure sites (m, 2), candidate spots (n, 2) in um, and their array coordinates."""
    rows, cols = spec.spots
    pad = 2  # even, so that staggered rows keep their parity; covers the canvas beyond the outermost spots
    jitter = spec.rng(TISSUE, at, 1)
    grid, rc = _lattice(spec, rows + 2 * pad, cols + 2 * pad, spec.pitch_um, jitter)
    r, c = np.divmod(np.arange(len(grid)), cols + 2 * pad)
    spot = (r >= pad) & (r < rows + pad) & (c >= pad) & (c < cols + pad)
    low, high = grid[spot].min(axis=0), grid[spot].max(axis=0)
    origin = low - (0.5 + MARGIN) * spec.tile_um
    inner = high - low + spec.tile_um
    frame = Frame(
        size_um=tuple(inner + 2 * MARGIN * spec.tile_um),
        inner_um=tuple(inner),
        tile_um=spec.tile_um,
        um_per_px=spec.um_per_px,
    )
    sites = grid - origin
    if spec.tile_um != spec.pitch_um:
        wide, tall = (int(np.ceil(side / spec.tile_um)) + 3 for side in frame.size_um)
        sites = _lattice(spec, 2 * tall, wide, spec.tile_um, jitter)[0] - 0.5 * spec.tile_um
    sites = sites[((sites > 0) & (sites < np.array(frame.size_um))).all(axis=1)]
    return frame, sites, grid[spot] - origin, None if rc is None else rc[spot] - [pad, rc[spot][:, 1].min()]


def _lattice(
    spec: Spec, rows: int, cols: int, pitch: float, jitter: np.random.Generator
) -> tuple[np.ndarray, np.ndarray | None]:
    """Positions (m, 2) as (x, y) in um, row by row, and (row, column) array coordinates where there is a lattice."""
    row, col = np.divmod(np.arange(rows * cols), cols)
    if spec.layout == "visium":  # 10x convention: columns count by two, odd rows are shifted by one
        col = 2 * col + row % 2
        return np.c_[col * pitch / 2, row * pitch * np.sqrt(3) / 2], np.c_[row, col]
    xy = np.c_[col, row] * pitch
    if spec.layout == "cells":
        return xy + jitter.uniform(-0.28, 0.28, xy.shape) * pitch, None
    return xy, np.c_[row, col]


def _rings(tiles: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Own tile, mean of the 8 around it, mean of the 16 beyond: each (n, parts)."""
    n = len(tiles)
    inner = tiles[:, 1:4, 1:4].reshape(n, 9, -1).sum(axis=1) - tiles[:, 2, 2]
    outer = tiles.reshape(n, 25, -1).sum(axis=1) - inner - tiles[:, 2, 2]
    return tiles[:, 2, 2], inner / 8, outer / 16


def latents(tissue: Tissue, tiles: np.ndarray, xy: np.ndarray) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What the spot's tile holds (n, parts), and what its 5 x 5 view shows (n, 3 parts + 2)."""
    own, inner, outer = _rings(tiles)
    here = pd.DataFrame(own, columns=list(PARTS))
    seen = tissue.at(tissue.margin_box_um, xy) <= 2.5 * tissue.frame.tile_um
    margin = np.where(seen, tissue.at(tissue.margin_um, xy) / tissue.frame.tile_um, 0.0)
    around = {f"inner_{p}": inner[:, i] for i, p in enumerate(PARTS)}
    around |= {f"outer_{p}": outer[:, i] for i, p in enumerate(PARTS)}
    return here, here.assign(**around, margin_seen=seen.astype(float), margin_tiles=margin)


def factor_values(tissue: Tissue, tiles: np.ndarray, xy: np.ndarray) -> pd.DataFrame:
    """What drives the structured genes (n, factors), each within [-1, 1]."""
    own, inner, outer = _rings(tiles)
    part = {name: own[:, i] for i, name in enumerate(PARTS)}
    raw = {name: part[name] for name in ("gland", "tumour", "lymphocyte", "fat", "nuclei")}
    raw["stroma"] = part["tissue"] - part["gland"] - part["tumour"] - part["lymphocyte"] - part["fat"]
    ring = (inner + 2 * outer) / 3
    raw["immune_ring"] = ring[:, PARTS.index("lymphocyte")] / np.maximum(ring[:, PARTS.index("tissue")], 0.1)
    raw["margin"] = tissue.at(tissue.margin_um, xy) / tissue.frame.half_um
    raw["axis"] = tissue.at(tissue.axis, xy)
    squashed = {name: np.tanh((raw[name] - centre) / scale) for name, (centre, scale) in SCALES.items()}
    kinds = own[:, [PARTS.index(name) for name in ("gland", "tumour", "lymphocyte", "fat")]]
    # whether a structure is there, how much of it, and how many nuclei: the forms in which surroundings could show here
    here = np.column_stack([np.ones(len(own)), np.tanh(kinds / 0.05), kinds, part["tissue"], squashed["nuclei"]])
    for name in (*FACTORS["neighbourhood"], *FACTORS["global"]):
        told = here @ np.linalg.lstsq(here, squashed[name], rcond=None)[0]  # what the spot's own tile says about it
        squashed[name] = np.clip(squashed[name] - told, -1, 1)
    return pd.DataFrame(squashed)


def size_factors(spec: Spec, patient: int, at: int, n: int) -> np.ndarray:
    """Size factors (n,): patient and section shifts, and a spread over spots; the tissue has no part in them."""
    rng = spec.rng(LIBRARY, 1, at)
    shift = 0.35 * spec.rng(LIBRARY, 0, patient).standard_normal() + 0.1 * rng.standard_normal()
    return np.exp(spec.library_shift * shift + 0.2 * rng.standard_normal(n))


def draw_counts(spec: Spec, at: int, mean: np.ndarray) -> sparse.csr_matrix:
    """Negative-binomial counts (n, g) as gamma-Poisson, with entries lost at random."""
    rng = spec.rng(COUNTS, at)
    counts = rng.poisson(rng.gamma(1 / DISPERSION, DISPERSION * mean))
    return sparse.csr_matrix((counts * (rng.random(mean.shape) >= spec.dropout)).astype(np.float32))
