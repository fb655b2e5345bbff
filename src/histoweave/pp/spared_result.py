"""What the SpaRED pipeline gives: tables with named layers, and what was learnt for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.stats import spearmanr

from histoweave import _keys as K
from histoweave.data.split import Split
from histoweave.pp.combat import Combat
from histoweave.pp.genes import GenePanel
from histoweave.pp.real_data import GENE_COUNTS, REAL_DATA, SPOT_COUNTS

D_LOG1P = K.FILLED + K.LOG1P


@dataclass(frozen=True, slots=True, kw_only=True)
class SparedSettings:
    """What was asked of `spared`, which says what each entry means."""

    leak_free: bool = True
    combat_key: Literal["section", "patient"] | None = "section"
    held_out: Literal["complete", "predict"] = "predict"
    n_genes: int | Literal["auto"] = "auto"
    genes: tuple[str, ...] | None = None
    spot_counts: tuple[float, float] = SPOT_COUNTS
    gene_counts: tuple[float, float] = GENE_COUNTS
    real_data: float = REAL_DATA

    def __post_init__(self) -> None:
        choices = {"combat_key": ("section", "patient", None), "held_out": ("complete", "predict")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}; expected one of {allowed}")
        whole = isinstance(self.n_genes, int) and not isinstance(self.n_genes, bool) and self.n_genes >= 1
        if self.n_genes != "auto" and not whole:
            raise ValueError(f"n_genes={self.n_genes!r}; expected a whole number of 1 or more, or 'auto'")


@dataclass(frozen=True, slots=True, eq=False)
class SparedResult:
    """The sections of a split after the SpaRED pipeline.

    Attributes
    ----------
    sections
        Section id → table of the spots and genes that are kept. ``X`` and ``layers["counts"]``: raw counts; further
        layers as `spared` lists them; ``var``: Moran's I, how often genes are seen, means over training spots.
    panel
        The genes, best first.
    ranking
        Mean Moran's I of all genes that passed the filters, best first.
    split, settings
        As given.
    unit
        ``"tpm"``, or ``"cpm"`` where there were no lengths.
    combat
        Layer that was adjusted → what ComBat learnt; empty without ComBat.
    means
        Layer → mean over training spots (g,): what its deltas are from.
    dropped
        Step of a filter → number of spots or genes that it took. Spots are those of all sections.
    """

    sections: dict[str, AnnData]
    panel: GenePanel
    ranking: pd.Series
    split: Split
    settings: SparedSettings
    unit: str
    combat: dict[str, Combat]
    means: dict[str, np.ndarray]
    dropped: dict[str, int]

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know of it, in sentences: of ComBat, where it had nothing to learn from."""
        return tuple(dict.fromkeys(combat.note for combat in self.combat.values() if combat.note))

    @property
    def filled(self) -> str:
        """The layer that is predicted and completed: ``c_d_log1p``, or ``d_log1p`` without ComBat.

        Errors against the two are in different units; a table should hold one of them.
        """
        return K.ADJUSTED * bool(self.combat) + D_LOG1P

    @property
    def completed(self) -> str:
        """The layer that `add_completed` writes: ``c_t_log1p``, or ``t_log1p`` without ComBat."""
        return K.ADJUSTED * bool(self.combat) + K.COMPLETED + K.LOG1P


class SharedRanking(NamedTuple):
    """How much two rankings of genes have in common."""

    top: int
    overlap: float  # share of the best `top` genes of one that are among those of the other
    spearman: float  # of Moran's I over the genes that both rank
    genes: int  # that both rank

    def __str__(self) -> str:
        return (
            f"{self.overlap:.0%} of the best {self.top} genes are the same; Spearman {self.spearman:.2f} over "
            f"{self.genes} genes"
        )


def add_completed(result: SparedResult, completed: Mapping[str, np.ndarray]) -> SparedResult:
    """The result with what a completer gave: ``c_t_log1p``, its deltas, and both with the gaps put back.

    Parameters
    ----------
    completed
        Section id → values (n, g) in units of the layer `SparedResult.filled`, for every section. Measured entries
        are taken from that layer, bit for bit.

    Raises
    ------
    ValueError
        Sections that are missing or unknown, other shapes, values that are not finite.
    """
    if set(completed) != set(result.sections):
        raise ValueError(f"completed sections are {sorted(completed)}; expected {sorted(result.sections)}")
    tables = {id: table.copy() for id, table in result.sections.items()}
    for id, table in tables.items():
        values = np.asarray(completed[id], dtype=np.float32)
        if values.shape != table.shape or not np.isfinite(values).all():
            raise ValueError(
                f"section {id!r}: completed values have shape {values.shape}, or are not finite; expected finite "
                f"numbers {table.shape}"
            )
        table.layers[result.completed] = np.where(table.layers[K.MASK], table.layers[result.filled], values)
    mean = train_mean(tables, result.completed, set(result.split.train))
    means = {**result.means, result.completed: mean}
    for table in tables.values():
        add_deltas(table, result.completed, mean)
        add_noisy(table, result.completed, means)
    return replace(result, sections=tables, means=means)


def shared_ranking(a: pd.Series, b: pd.Series, top: int) -> SharedRanking:
    """How much two rankings of genes (`SparedResult.ranking`) have in common, best genes first in both.

    Raises
    ------
    ValueError
        A ranking of fewer than `top` genes, or `top` below 1.
    """
    if not 1 <= top <= min(len(a), len(b)):
        raise ValueError(f"the best {top} genes were asked for; expected 1 to {min(len(a), len(b))}")
    overlap = len(set(a.index[:top]) & set(b.index[:top])) / top
    both = a.index.intersection(b.index)
    rho = float(spearmanr(a[both], b[both]).statistic) if len(both) > 1 else float("nan")
    return SharedRanking(top, overlap, rho, len(both))


def train_mean(tables: Mapping[str, AnnData], layer: str, train: set[str]) -> np.ndarray:
    """Mean over the training spots, gaps as they stand in the layer: float32 (g,)."""
    values = [table.layers[layer] for id, table in tables.items() if id in train]
    return np.concatenate(values).mean(axis=0, dtype=np.float64).astype(np.float32)


def _deltas(layer: str) -> str:
    return layer.removesuffix(K.LOG1P) + K.DELTAS


def add_deltas(table: AnnData, layer: str, mean: np.ndarray) -> None:
    table.var[layer + K.AVERAGE] = mean
    table.layers[_deltas(layer)] = table.layers[layer] - mean


def add_noisy(table: AnnData, layer: str, means: Mapping[str, np.ndarray]) -> None:
    """A layer and its deltas with the gaps put back, as 0 and as minus the gene's mean."""
    mask = table.layers[K.MASK]
    table.layers[K.NOISY + layer] = np.where(mask, table.layers[layer], np.float32(0))
    table.layers[K.NOISY + _deltas(layer)] = np.where(mask, table.layers[_deltas(layer)], -means[layer])
