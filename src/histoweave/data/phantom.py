"""A synthetic H&E and expression cohort with known truth: the data of tests, docs, demo and speed benchmarks.

Four gene families. *local*: what lies under the spot decides. *neighbourhood*: the density of lymphocyte clusters in
the 24 tiles around the spot's own. *global*: the distance to the tumour margin, and the place along an axis on which
fat grows denser over the whole section. *noise*: nothing decides. See `phantom`, and `Phantom.oracle` for what can be
reached.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import pandas as pd

from histoweave import _keys as K
from histoweave.data import phantom_truth as rules
from histoweave.data.catalog import dataset
from histoweave.data.image import SlideImage, Window
from histoweave.data.io.st_legacy import LEADING, patient_of
from histoweave.data.phantom_oracle import View, oracle_pcc
from histoweave.data.phantom_render import draw_stain, render
from histoweave.data.phantom_tissue import PARTS, composition, make_tissue
from histoweave.data.phantom_truth import Family, Layout, Spec
from histoweave.data.section import Cohort, Section, make_section
from histoweave.data.spared import PREFIX

# In the order from which the suite draws its folds.
BC2_PATIENTS = (
    23209,
    23270,
    23803,
    24105,
    24220,
    23268,
    23269,
    23272,
    23277,
    23287,
    23288,
    23377,
    23450,
    23506,
    23508,
    23567,
    23810,
    23895,
    23901,
    23903,
    23944,
    24044,
    24223,
)

# More genes than the largest panel of SpaRED (128), and counts for its strictest filter of spots (800). With the counts
# that are lost 30 % of the matrix is missing, as in its processed sets (7 to 37 %).
SPARED_GENES: dict[Family, int] = {"local": 50, "neighbourhood": 30, "global": 30, "noise": 110}
SPARED_DROPOUT = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Phantom:
    """A cohort and its truth.

    Attributes
    ----------
    cohort
        Sections with images; ``obs["size_factor"]`` holds the given size factors.
    genes
        One row per gene: family, factor, gain, mean (counts at size factor 1) and pair (-1 for noise); a gene's
        expected count is mean * (1 + gain * factor).
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
        "context" on, *global* genes under "section". What lies outside is replaced by its conditional mean given the
        view's latents, fitted by quadratic ridge regression on the other sections (on the other half of a lone
        section), so that chance agreement does not count: close to a constant, hence close to 0, for *neighbourhood*
        and *global* genes given the spot. The context view knows what each ring of tiles holds, whether the margin
        crosses the view, and if so how far away it is. Noise genes have a constant predictor and score 0.

        Correlations are with the realised, noisy target: Pearson within a section, then the mean over the sections of
        a patient, then over patients. The predictor is on the scale log1p(expected count); for other monotone
        transforms of unsmoothed counts it is the conditional mean but for a slight bend. For smoothed targets it is no
        upper bound.

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

    The same arguments give the same bytes. Margin and adipose axis are turned and mirrored at random in every section.
    Each tile's structure is drawn independently, so what lies around a spot hardly shows in it; what is left of a link
    is removed by regressing neighbourhood and global factors on the spot's own composition, within each section.

    Parameters
    ----------
    layout
        "st": square lattice; "visium": staggered lattice with doubled columns; "cells": irregular, no lattice.
    spots
        Lattice rows and columns, before positions off the tissue are dropped.
    genes
        Genes per family, by default 24 local, 16 neighbourhood, 16 global, 100 noise; structured numbers are even.
    um_per_px, pitch_um
        Default 200/112 and 200 (st), 100/112 and 100 (visium), 0.5 and 50 (cells).
    tile_um
        Side of the tile that decides a spot's expression, and size of the structures; default the pitch. Cohorts in
        which this, `gene_seed` and the sections' extent agree follow the same rules, at any layout and pixel size.
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
    for name, number in (("n_patients", n_patients), ("sections_per_patient", sections_per_patient)):
        rules.at_least(name, number, 1)
    names = {f"P{p}": [f"P{p}-{s}" for s in range(1, sections_per_patient + 1)] for p in range(1, n_patients + 1)}
    if layout not in rules.PLATFORM:
        raise ValueError(f"layout {layout!r} is unknown; expected one of {tuple(rules.PLATFORM)}")
    px = rules.UM_PER_PX[layout] if um_per_px is None else um_per_px
    pitch = rules.PITCH[layout] if pitch_um is None else pitch_um
    spec = Spec(
        layout=layout,
        spots=spots,
        um_per_px=px,
        pitch_um=pitch,
        tile_um=pitch if tile_um is None else tile_um,
        stain_shift=stain_shift,
        library_shift=library_shift,
        dropout=dropout,
        seed=seed,
    )
    return _build(names, spec, rules.gene_panel({**rules.GENES, **(genes or {})}, gene_seed))


def phantom_like(name: str, *, spots: tuple[int, int] = (7, 7), um_per_px: float = 5.0, seed: int = 0) -> Phantom:
    """A tiny phantom with the patients and sections of a published suite or dataset, for its dry run.

    Parameters
    ----------
    name
        "triplex-bc1" (8 patients, 36 sections), "triplex-bc2" (23 patients, 68 sections; which patient has two sections
        instead of three is not modelled: the last one), "triplex-scc" (4 patients, 12 sections) or "anand" (as
        "triplex-bc2", but the patient with two sections is BC23901, as in the dataset). Or a dataset of SpaRED,
        "spared-…": its sections and "patients" on the Visium lattice, 220 genes, a fifth of the counts lost.

    Raises
    ------
    ValueError
        An unknown name.
    """
    visium = name.startswith(PREFIX)
    spec = Spec(
        layout="visium" if visium else "st",
        spots=spots,
        um_per_px=um_per_px,
        pitch_um=100.0 if visium else 200.0,
        tile_um=200.0,
        stain_shift=1.0,
        library_shift=1.0,
        dropout=SPARED_DROPOUT if visium else 0.01,
        seed=seed,
    )
    return _build(_suite_sections(name), spec, rules.gene_panel(SPARED_GENES if visium else rules.GENES, 0))


def _suite_sections(name: str) -> dict[str, list[str]]:
    """Section ids of each patient of a published suite or dataset."""
    if name.startswith(PREFIX):
        row = dataset(name)
        rule = row.rule or LEADING
        return {who: [id for id in row.section_ids if patient_of(id, rule) == who] for who in row.patients}
    if name == "triplex-bc1":
        return {p: [f"{p}{i}" for i in range(1, 7 if p in "ABCD" else 4)] for p in "ABCDEFGH"}
    if name == "triplex-bc2":
        names = {f"BC{p}": [f"BC{p}-{i}" for i in (1, 2, 3)] for p in BC2_PATIENTS}
        names[f"BC{BC2_PATIENTS[-1]}"].pop()
        return names
    if name == "anand":
        return {f"BC{p}": [f"BC{p}-{i}" for i in range(1, 3 if p == 23901 else 4)] for p in BC2_PATIENTS}
    if name == "triplex-scc":
        return {p: [f"{p}-{i}" for i in (1, 2, 3)] for p in ("P2", "P5", "P9", "P10")}
    raise ValueError(
        f"phantom {name!r} is unknown; expected 'triplex-bc1', 'triplex-bc2', 'triplex-scc', 'anand' or "
        "a dataset 'spared-…'"
    )


def _build(names: Mapping[str, Sequence[str]], spec: Spec, genes: pd.DataFrame) -> Phantom:
    sections: list[Section] = []
    mean, factors, size, own, context = {}, {}, {}, {}, {}
    for p, (patient, ids) in enumerate(names.items()):
        for id in ids:
            at = len(sections)
            frame, sites, xy, rc = rules.geometry(spec, at)
            tissue = make_tissue(spec.rng(rules.TISSUE, at), frame, sites)
            tiles = composition(tissue, xy)  # (n, 5, 5, parts)
            on = tiles[:, 2, 2, PARTS.index("tissue")] >= 0.93
            xy, tiles, rc = xy[on], tiles[on], None if rc is None else rc[on]
            own[id], context[id] = rules.latents(tissue, tiles, xy)
            factors[id] = rules.factor_values(tissue, tiles, xy)
            drive = factors[id].reindex(columns=genes["factor"]).fillna(0.0).to_numpy()  # (n, g); 0 for noise genes
            mean[id] = genes["mean"].to_numpy() * (1 + genes["gain"].to_numpy() * drive)
            size[id] = rules.size_factors(spec, p, at, len(xy))
            stain = draw_stain(spec.rng(rules.STAIN, 0, p), spec.rng(rules.STAIN, 1, at), spec.stain_shift)
            pixels = render(spec.rng(rules.PIXELS, at), tissue, stain)
            sections.append(
                make_section(
                    id=id,
                    patient=patient,
                    genes=list(genes.index),
                    counts=rules.draw_counts(spec, at, mean[id] * size[id][:, None]),
                    xy=np.round(xy / spec.um_per_px, 6),
                    platform=rules.PLATFORM[spec.layout],
                    um_per_px=spec.um_per_px,
                    image=SlideImage.from_array(pixels, um_per_px=spec.um_per_px),
                    array_rc=rc,
                    obs={K.SIZE_FACTOR: size[id]},
                )
            )
    return Phantom(
        cohort=Cohort(sections),
        genes=genes,
        mean=mean,
        factors=factors,
        size_factor=size,
        own=own,
        context=context,
        window=Window(um=spec.tile_um, out=112),
    )
