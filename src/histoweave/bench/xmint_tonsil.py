"""The suite `xmint-tonsil`: what the xMINT paper says of two Xenium sections of tonsil, each told to hold or not.

xMINT learns from one section; gimVI, Seurat's anchors and SpaGE take the single cells of the tonsil atlas as reference.
All fill in the genes of the other section that stay after the first m of the panel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from histoweave import _keys as K
from histoweave.bench.summary import Report
from histoweave.data.section import Cohort, Section

NAME = "xmint-tonsil"
SECTIONS, ATLAS = "xenium-tonsil", "tonsil-atlas"  # of the catalog
TRAIN = "Xenium_V1_hTonsil_follicular_lymphoid_hyperplasia_section_FFPE"
TEST = "Xenium_V1_hTonsil_reactive_follicular_hyperplasia_section_FFPE"
SHARED = (50, 100, 150, 200)
METRIC = "spearman_bins"
LEARNT, REFERENCED = "xmint", "gimvi,anchors,spage"
CELLS = 20_000  # of the atlas; the paper does not say how many it took
TITLES = {"xmint": "xMINT", "gimvi": "gimVI", "anchors": "Seurat", "spage": "SpaGE"}
SLIGHTLY = 0.05  # the paper gives no number; more than this is no slight help

Verdict = Literal["holds", "does not", "no value", "needs network"]


@dataclass(frozen=True, slots=True)
class Statement:
    """A sentence of the paper, whether it holds here, and the numbers that say so."""

    text: str
    verdict: Verdict
    numbers: str = ""

    def __str__(self) -> str:
        return f"{self.text}: {self.verdict}" + (f" ({self.numbers})" if self.numbers else "")


def statements(medians: pd.DataFrame | None) -> tuple[Statement, ...]:
    """The statements of the paper, in its order.

    Parameters
    ----------
    medians
        Models × numbers m of shared genes, ascending: median over genes. None without data. Of several texts with one
        of the names in `TITLES`, such as ``xmint`` and ``xmint[image=off]``, the first is told of.
    """
    made = [_compared(medians, "xmint", other) for other in ("gimvi", "anchors", "spage")]
    made += [_rising(medians, model, rises=model != "gimvi") for model in ("anchors", "spage", "gimvi")]
    return (*made, _slight(medians))


def _row(medians: pd.DataFrame, model: str) -> np.ndarray:
    """Medians (m,) of the first text with the name of a model; NaN where it was not run."""
    text = next((text for text in medians.index if text.partition("[")[0] == model), model)
    return medians.reindex([text]).to_numpy(dtype=np.float64)[0]


def _told(text: str, values: Mapping[str, np.ndarray], *, holds: bool) -> Statement:
    """The statement with its numbers; no verdict where one of them is missing."""
    shown = "; ".join(f"{TITLES[model]} {', '.join(f'{v:.3f}' for v in row)}" for model, row in values.items())
    known = all(np.isfinite(row).all() for row in values.values())
    return Statement(text, ("holds" if holds else "does not") if known else "no value", shown)


def _compared(medians: pd.DataFrame | None, model: str, other: str) -> Statement:
    text = f"{TITLES[model]} is above {TITLES[other]} at every m"
    if medians is None:
        return Statement(text, "needs network")
    ours, theirs = _row(medians, model), _row(medians, other)
    return _told(text, {model: ours, other: theirs}, holds=bool((ours > theirs).all()))


def _rising(medians: pd.DataFrame | None, model: str, *, rises: bool) -> Statement:
    """Rising is: higher at every m than at the one before."""
    text = f"{TITLES[model]} {'rises' if rises else 'does not rise'} with m"
    if medians is None:
        return Statement(text, "needs network")
    values = _row(medians, model)
    return _told(text, {model: values}, holds=bool((np.diff(values) > 0).all()) == rises)


def _slight(medians: pd.DataFrame | None) -> Statement:
    text = f"50 → 100 shared genes help xMINT slightly (by more than 0, by {SLIGHTLY:g} at most)"
    if medians is None:
        return Statement(text, "needs network")
    values = _row(medians, "xmint")[:2]
    return _told(text, {"xmint": values}, holds=bool(0 < values[1] - values[0] <= SLIGHTLY))


def with_atlas(sections: Cohort, atlas: Section) -> Cohort:
    """The sections with the genes of the panel that the atlas has too, so that shares are over the same genes for all.

    Raises
    ------
    ValueError
        No more genes in common than are shared at most.
    """
    known = set(atlas.genes)
    common = [gene for gene in sections.genes("common") if gene in known]
    if not common:
        raise ValueError(
            f"the atlas ({', '.join(atlas.genes[:3])}, …) has no gene of the panel ({', '.join(sections[0].genes[:3])}, "
            "…); write it with symbols as names, as the panel has them"
        )
    return Cohort(_with_genes(section, common) for section in sections)


def _with_genes(section: Section, genes: list[str]) -> Section:
    spots = section.spots[:, genes].copy()
    spots.obs[K.LIBRARY] = np.asarray(spots.X.sum(axis=1), dtype=np.float64).ravel()
    return section.with_spots(spots)


def thinned(atlas: Section, cells: int = CELLS) -> Section:
    """At most so many cells of the atlas, of every type its share; always the same ones."""
    if atlas.n <= cells:
        return atlas
    rng = np.random.default_rng(0)
    order = rng.permutation(atlas.n)
    if K.GROUP in atlas.spots.obs:  # dealt round by round: every k-th cell of the cells sorted by type
        types = atlas.spots.obs[K.GROUP].astype(str).to_numpy()
        order = order[np.argsort(types[order], kind="stable")]
    kept = np.sort(order[np.linspace(0, atlas.n - 1, cells).round().astype(np.int64)])
    return atlas.with_spots(atlas.spots[kept].copy())


def per_gene(reports: Mapping[int, tuple[Report, ...]]) -> pd.DataFrame:
    """Columns model, gene, m, value: means over seeds of `METRIC`, of the genes that are imputed at every m.

    A model that stands in several reports of one m is taken from the first.
    """
    parts = []
    for m, made in reports.items():
        seen: set[str] = set()
        for report in made:
            rows = report.rows[(report.rows["metric"] == METRIC) & ~report.rows["model"].isin(seen)]
            value = rows.groupby(["model", "gene"], sort=False, observed=True)["value"].mean().reset_index()
            parts.append(value.assign(m=m))
            seen |= set(report.models)
    table = pd.concat(parts, ignore_index=True)
    always = set.intersection(*(set(part["gene"]) for _, part in table.groupby("m")))
    return table[table["gene"].isin(always)].reset_index(drop=True)


def medians_of(table: pd.DataFrame) -> pd.DataFrame:
    """Models, by their texts and in the order of the table, × m: median over genes."""
    named = table.assign(model=table["model"].astype(str))
    return named.groupby(["model", "m"])["value"].median().unstack("m").reindex(named["model"].unique())
