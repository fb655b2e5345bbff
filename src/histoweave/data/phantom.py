"""A synthetic H&E and expression cohort with known truth: the data of tests, docs, demo and speed benchmarks.

Four gene families. *local*: what lies under the spot decides. *neighbourhood*: the density of lymphocyte clusters in the
24 tiles around the spot's own. *global*: the distance to the tumour margin, and the place along an axis on which fat grows
denser over the whole section. *noise*: nothing decides. See `phantom` and, for what can be reached, `phantom_oracle`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pandas as pd
from scipy import sparse

from histoweave import _keys as K
from histoweave.data.image import SlideImage, Window
from histoweave.data.phantom_oracle import View, oracle_pcc
from histoweave.data.phantom_render import draw_stain, render
from histoweave.data.phantom_tissue import MARGIN, PARTS, Frame, Tissue, composition, make_tissue
from histoweave.data.section import Cohort, Platform, Section, make_section

Layout = Literal["st", "visium", "cells"]
Family = Literal["local", "neighbourhood", "global", "noise"]

FACTORS: dict[str, tuple[str, ...]] = {
    "local": ("gland", "tumour", "lymphocyte", "fat", "stroma", "nuclei"),
    "neighbourhood": ("immune_ring",),
    "global": ("margin", "axis"),
}
# Fixed centre and scale of every factor (areas as fractions of a tile; nuclei per 1000 um²; margin and axis in half sides
# of the section), so that a gene follows the same rule in every section, cohort and seed.
SCALES: dict[str, tuple[float, float]] = {
    "gland": (0.10, 0.16), "tumour": (0.12, 0.20), "lymphocyte": (0.07, 0.15), "fat": (0.15, 0.26),
    "stroma": (0.55, 0.28), "nuclei": (2.6, 2.0), "immune_ring": (0.07, 0.030), "margin": (0.42, 0.27), "axis": (0.0, 0.60),
}
GAIN = 0.85  # largest relative change of a structured gene: means stay positive, and clearly above the noise
STRUCTURED_MEAN, NOISE_MEAN = 14.0, 3.0  # median counts per spot at size factor 1
DISPERSION = 0.06  # negative binomial: variance = mean + DISPERSION * mean²
_PLATFORM: dict[str, Platform] = {"st": "st", "visium": "visium", "cells": "xenium"}
_PITCH_UM = {"st": 200.0, "visium": 100.0, "cells": 50.0}
_UM_PER_PX = {"st": 200 / 112, "visium": 100 / 112, "cells": 0.5}
_GENES: dict[Family, int] = {"local": 24, "neighbourhood": 16, "global": 16, "noise": 100}
_PANEL, _STAIN, _LIBRARY, _TISSUE, _PIXELS, _COUNTS = range(6)  # random streams: changing one knob leaves the rest as is


@dataclass(frozen=True, slots=True, kw_only=True)
class Phantom:
    """A cohort and its truth.

    Attributes
    ----------
    cohort
        Sections with images; ``obs["size_factor"]`` holds the given size factors.
    genes
        One row per gene: family, factor, gain, mean (counts at size factor 1) and pair (-1 for noise); a gene's expected
        count is mean * (1 + gain * factor).
    mean
        Per section, the expected counts at size factor 1 and without dropout (n, g). Rows of one phantom share one sum:
        structured genes come in pairs whose sum is constant.
    factors
        Per section, what drives the structured genes (n, factors), each within [-1, 1].
    size_factor
        Per section (n,): drawn independently of the tissue.
    own, context
        Per section, what the spot's tile and its 5 x 5 tiles hold: the latents of the oracle's views.
    window
        The tile: side in um of the square under a spot; the neighbourhood is 5 x 5 of them.
    """

    cohort: Cohort
    genes: pd.DataFrame
    mean: dict[str, np.ndarray]
    factors: dict[str, pd.DataFrame]
    size_factor: dict[str, np.ndarray]
    own: dict[str, pd.DataFrame]
    context: dict[str, pd.DataFrame]
    window: Window

    @property
    def families(self) -> pd.Series:
        """Family of each gene."""
        return self.genes["family"]

    def target(self) -> dict[str, np.ndarray]:
        """log1p(counts / given size factor) per section (n, g): the unsmoothed target on which the claims hold."""
        return {
            s.id: np.log1p(s.counts(self.genes.index).toarray() / self.size_factor[s.id][:, None]) for s in self.cohort
        }

    def oracle(
        self,
        target_values: Mapping[str, np.ndarray] | None = None,
        view: View = "section",
        genes: Sequence[str] | None = None,
    ) -> pd.DataFrame:
        """Pearson correlation that full knowledge of a view reaches, per gene.

        The predictor is the conditional mean of the expression given the latents of the view; it never sees counts.
        What is decided inside the view is known exactly: *local* genes under every view, *neighbourhood* genes from
        "context" on, *global* genes under "section". What lies outside is its conditional mean given the view's latents,
        fitted by quadratic ridge regression on the other sections (on the other half of a lone section), so that chance
        agreement does not count: close to a constant, hence close to 0, for *neighbourhood* and *global* genes given the
        spot. The context view knows the composition of all 25 tiles by ring, whether the margin crosses the view, and
        if so how far away it is. Noise genes have a constant predictor and score 0.

        Correlations are with the realised, noisy target: Pearson within a section, then the mean over the sections of a
        patient, then over patients. The predictor is on the scale log1p(expected counts); for a monotone transform of
        unsmoothed counts that is the conditional mean but for a slight bend. For smoothed targets it is no upper bound.

        Parameters
        ----------
        target_values
            Per section id, values (n, g); default `target()`. Rows with missing values are left out.
        view
            "spot": the tile under the spot; "context": 5 x 5 tiles; "section": everything.
        genes
            Names of the columns of `target_values`; default all genes.

        Returns
        -------
        Indexed by gene: family, factor, pcc (NaN where the target is constant in every section).

        Examples
        --------
        >>> from histoweave.data.phantom import phantom
        >>> truth = phantom(n_patients=2, spots=(6, 6), um_per_px=5.0)
        >>> table = truth.oracle(view="section").groupby("family")["pcc"].mean()
        >>> bool(table["local"] > 0.4 and table["noise"] == 0.0)
        True
        """
        return oracle_pcc(self, self.target() if target_values is None else target_values, view, genes)

    def oracle_table(
        self, target_values: Mapping[str, np.ndarray] | None = None, genes: Sequence[str] | None = None
    ) -> pd.DataFrame:
        """Mean oracle correlation: one row per family, one column per view."""
        values = self.target() if target_values is None else target_values
        columns = {v: self.oracle(values, v, genes).groupby("family", sort=False)["pcc"].mean() for v in get_args(View)}
        return pd.DataFrame(columns)


def phantom(
    n_patients: int = 4,
    sections_per_patient: int = 1,
    layout: Layout = "st",
    *,
    spots: tuple[int, int] = (14, 14),
    genes: Mapping[Family, int] | None = None,
    um_per_px: float | None = None,
    pitch_um: float | None = None,
    tile_um: float | None = None,
    stain_shift: float = 1.0,
    library_shift: float = 1.0,
    dropout: float = 0.01,
    seed: int = 0,
    gene_seed: int = 0,
) -> Phantom:
    """A synthetic cohort: H&E-like images, negative-binomial counts with dropout, and the truth behind them.

    The same arguments give the same bytes. Every section has its own orientation of margin and adipose axis. Each tile's
    structure is drawn independently, so what lies around a spot does not show in the spot; what is left of a link is
    removed by regressing the neighbourhood and global factors on the composition of the spot's own tile, per section.

    Parameters
    ----------
    layout
        "st": square lattice; "visium": staggered lattice with doubled columns; "cells": irregular, no lattice.
    spots
        Lattice rows and columns, before positions off the tissue are dropped.
    genes
        Genes per family, by default 24 local, 16 neighbourhood, 16 global, 100 noise; structured numbers are even.
    um_per_px
        Default 200/112 (st), 100/112 (visium), 0.5 (cells).
    pitch_um
        Distance of neighbouring spots; default 200 (st), 100 (visium), 50 (cells).
    tile_um
        Side of the tile that decides a spot's expression, and size of the structures; default the pitch. Two cohorts
        follow the same biology where this and `gene_seed` agree, whatever their layouts and pixel sizes.
    stain_shift
        Strength of the colour differences between patients; 0 for none. Geometry and counts do not depend on it.
    library_shift
        Strength of the differences in library size between patients and sections (sd of the log about 0.35).
    dropout
        Probability with which a count is lost, for every entry alike.
    seed, gene_seed
        Seed of tissue, colours and counts; seed of the genes' rules.

    Raises
    ------
    ValueError
        An unknown layout or family, an odd number of structured genes, sizes or strengths out of range.

    Examples
    --------
    >>> from histoweave.data.phantom import phantom
    >>> truth = phantom(n_patients=2, spots=(6, 6), um_per_px=5.0)
    >>> [section.id for section in truth.cohort]
    ['P1-1', 'P2-1']
    """
    _at_least("n_patients", n_patients, 1)
    _at_least("sections_per_patient", sections_per_patient, 1)
    names = {f"P{p}": [f"P{p}-{s}" for s in range(1, sections_per_patient + 1)] for p in range(1, n_patients + 1)}
    if layout not in _PLATFORM:
        raise ValueError(f"layout {layout!r} is unknown; expected one of {tuple(_PLATFORM)}")
    pitch = _PITCH_UM[layout] if pitch_um is None else pitch_um
    spec = _Spec(
        layout=layout, spots=spots, um_per_px=_UM_PER_PX[layout] if um_per_px is None else um_per_px, pitch_um=pitch,
        tile_um=pitch if tile_um is None else tile_um, stain_shift=stain_shift, library_shift=library_shift,
        dropout=dropout, seed=seed,
    )  # fmt: skip
    return _build(names, spec, _panel({**_GENES, **(genes or {})}, gene_seed))


def phantom_like(name: str, *, spots: tuple[int, int] = (7, 7), um_per_px: float = 5.0, seed: int = 0) -> Phantom:
    """A tiny phantom with the patients and sections of a published suite, for its dry run.

    Parameters
    ----------
    name
        "triplex-bc1" (8 patients, 36 sections), "triplex-bc2" (23 patients, 68 sections; which patient has two sections
        instead of three is not modelled: the last one) or "triplex-scc" (4 patients, 12 sections).

    Raises
    ------
    ValueError
        An unknown name.
    """
    if name == "triplex-bc1":
        names = {p: [f"{p}{i}" for i in range(1, 7 if p in "ABCD" else 4)] for p in "ABCDEFGH"}
    elif name == "triplex-bc2":
        ids = ("23209 23270 23803 24105 24220 23268 23269 23272 23277 23287 23288 23377 "
               "23450 23506 23508 23567 23810 23895 23901 23903 23944 24044 24223").split()
        names = {f"BC{p}": [f"BC{p}-{i}" for i in (1, 2, 3)] for p in ids}
        names[f"BC{ids[-1]}"].pop()
    elif name == "triplex-scc":
        names = {p: [f"{p}-{i}" for i in (1, 2, 3)] for p in ("P2", "P5", "P9", "P10")}
    else:
        raise ValueError(f"phantom {name!r} is unknown; expected 'triplex-bc1', 'triplex-bc2' or 'triplex-scc'")
    spec = _Spec(layout="st", spots=spots, um_per_px=um_per_px, pitch_um=200.0, tile_um=200.0, stain_shift=1.0,
                 library_shift=1.0, dropout=0.01, seed=seed)
    return _build(names, spec, _panel(_GENES, 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Spec:
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
        if len(self.spots) != 2 or min(self.spots) < 4:
            raise ValueError(f"spots={self.spots!r}; expected two numbers (rows, columns), each at least 4")
        for name in ("um_per_px", "pitch_um", "tile_um"):
            if not 0 < getattr(self, name) < np.inf:
                raise ValueError(f"{name}={getattr(self, name)!r}; expected a positive length")
        if self.um_per_px > self.tile_um / 16:
            raise ValueError(f"um_per_px={self.um_per_px:g} leaves {self.tile_um / self.um_per_px:.1f} pixels per tile of "
                             f"{self.tile_um:g} um; at least 16 are needed to draw it: at most {self.tile_um / 16:g}")
        for name in ("stain_shift", "library_shift", "seed"):
            _at_least(name, getattr(self, name), 0)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout!r}; expected a probability below 1")

    def rng(self, stream: int, *which: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, stream, *which])


def _at_least(name: str, value: float, least: float) -> None:
    if value < least:
        raise ValueError(f"{name}={value!r}; expected at least {least}")


def _panel(genes: Mapping[Family, int], seed: int) -> pd.DataFrame:
    """The genes and their rules. Members of a pair share factor and mean and differ in sign."""
    unknown = sorted(set(genes) - set(_GENES))
    if unknown:
        raise ValueError(f"gene family {unknown[0]!r} is unknown; expected {tuple(_GENES)}")
    rng = np.random.default_rng([seed, _PANEL])
    frames = []
    for family, number in genes.items():
        if number < 0 or (number % 2 and family != "noise"):
            raise ValueError(f"{number} genes of family {family!r}: structured genes come in up/down pairs; give an even number")
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


def _build(names: Mapping[str, Sequence[str]], spec: _Spec, genes: pd.DataFrame) -> Phantom:
    sections: list[Section] = []
    mean, factors, size, own, context = {}, {}, {}, {}, {}
    for p, (patient, ids) in enumerate(names.items()):
        for id in ids:
            at = len(sections)
            frame, sites, xy, rc = _geometry(spec, at)
            tissue = make_tissue(spec.rng(_TISSUE, at), frame, sites)
            tiles = composition(tissue, xy)  # (n, 5, 5, parts)
            on = tiles[:, 2, 2, PARTS.index("tissue")] >= 0.93
            xy, tiles, rc = xy[on], tiles[on], None if rc is None else rc[on]
            own[id], context[id] = _latents(tissue, tiles, xy)
            factors[id] = _factors(tissue, tiles, xy)
            drive = factors[id].reindex(columns=genes["factor"]).fillna(0.0).to_numpy()  # (n, g); 0 for noise genes
            mean[id] = genes["mean"].to_numpy() * (1 + genes["gain"].to_numpy() * drive)
            size[id] = _size_factors(spec, p, at, len(xy))
            stain = draw_stain(spec.rng(_STAIN, 0, p), spec.rng(_STAIN, 1, at), spec.stain_shift)
            pixels = render(spec.rng(_PIXELS, at), tissue, stain)
            sections.append(make_section(
                id=id, patient=patient, counts=_counts(spec, at, mean[id] * size[id][:, None]), genes=list(genes.index),
                xy=np.round(xy / spec.um_per_px, 6), platform=_PLATFORM[spec.layout], um_per_px=spec.um_per_px,
                image=SlideImage.from_array(pixels, um_per_px=spec.um_per_px), array_rc=rc,
                obs={K.SIZE_FACTOR: size[id]},
            ))  # fmt: skip
    return Phantom(cohort=Cohort(sections), genes=genes, mean=mean, factors=factors, size_factor=size, own=own,
                   context=context, window=Window(um=spec.tile_um, out=112))


def _geometry(spec: _Spec, at: int) -> tuple[Frame, np.ndarray, np.ndarray, np.ndarray | None]:
    """Canvas, structure sites (m, 2), candidate spots (n, 2) in um, and their array coordinates."""
    rows, cols = spec.spots
    pad = 2  # even, so that staggered rows keep their parity; covers the canvas beyond the outermost spots
    jitter = spec.rng(_TISSUE, at, 1)
    grid, rc = _lattice(spec, rows + 2 * pad, cols + 2 * pad, spec.pitch_um, jitter)
    r, c = np.divmod(np.arange(len(grid)), cols + 2 * pad)
    spot = (r >= pad) & (r < rows + pad) & (c >= pad) & (c < cols + pad)
    low, high = grid[spot].min(axis=0), grid[spot].max(axis=0)
    origin = low - (0.5 + MARGIN) * spec.tile_um
    inner = high - low + spec.tile_um
    frame = Frame(size_um=tuple(inner + 2 * MARGIN * spec.tile_um), inner_um=tuple(inner), tile_um=spec.tile_um,
                  um_per_px=spec.um_per_px)
    sites = grid - origin
    if spec.tile_um != spec.pitch_um:
        wide, tall = (int(np.ceil(side / spec.tile_um)) + 3 for side in frame.size_um)
        sites = _lattice(spec, 2 * tall, wide, spec.tile_um, jitter)[0] - 0.5 * spec.tile_um
    sites = sites[((sites > 0) & (sites < np.array(frame.size_um))).all(axis=1)]
    return frame, sites, grid[spot] - origin, None if rc is None else rc[spot] - [pad, rc[spot][:, 1].min()]


def _lattice(
    spec: _Spec, rows: int, cols: int, pitch: float, jitter: np.random.Generator
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


def _latents(tissue: Tissue, tiles: np.ndarray, xy: np.ndarray) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What the spot's tile holds (n, parts), and what its 5 x 5 view shows (n, 3 parts + 2)."""
    own, inner, outer = _rings(tiles)
    here = pd.DataFrame(own, columns=list(PARTS))
    seen = tissue.at(tissue.margin_box_um, xy) <= 2.5 * tissue.frame.tile_um
    margin = np.where(seen, tissue.at(tissue.margin_um, xy) / tissue.frame.tile_um, 0.0)
    around = {f"inner_{p}": inner[:, i] for i, p in enumerate(PARTS)}
    around |= {f"outer_{p}": outer[:, i] for i, p in enumerate(PARTS)}
    return here, here.assign(**around, margin_seen=seen.astype(float), margin_tiles=margin)


def _factors(tissue: Tissue, tiles: np.ndarray, xy: np.ndarray) -> pd.DataFrame:
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
    # squashed, a part tells what kind of structure the tile holds: the form in which the surroundings could show in it
    here = np.column_stack([np.ones(len(own)), part["tissue"], *(squashed[name] for name in FACTORS["local"])])
    for name in (*FACTORS["neighbourhood"], *FACTORS["global"]):
        told = here @ np.linalg.lstsq(here, squashed[name], rcond=None)[0]  # what the spot's own tile says about it
        squashed[name] = np.clip(squashed[name] - told, -1, 1)
    return pd.DataFrame(squashed)


def _size_factors(spec: _Spec, patient: int, at: int, n: int) -> np.ndarray:
    """Size factors (n,): patient and section shifts, and a spread over spots; the tissue has no part in them."""
    rng = spec.rng(_LIBRARY, 1, at)
    shift = 0.35 * spec.rng(_LIBRARY, 0, patient).standard_normal() + 0.1 * rng.standard_normal()
    return np.exp(spec.library_shift * shift + 0.2 * rng.standard_normal(n))


def _counts(spec: _Spec, at: int, mean: np.ndarray) -> sparse.csr_matrix:
    """Negative-binomial counts (n, g) as gamma-Poisson, with entries lost at random."""
    rng = spec.rng(_COUNTS, at)
    counts = rng.poisson(rng.gamma(1 / DISPERSION, DISPERSION * mean))
    return sparse.csr_matrix((counts * (rng.random(mean.shape) >= spec.dropout)).astype(np.float32))
