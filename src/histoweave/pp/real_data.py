"""SpaRED's filters: spots and genes by their totals, then as many genes as leave enough of the matrix measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

SPOT_COUNTS = (10.0, 1e6)  # of the published configurations; human small intestine has 800 for the lower one
GENE_COUNTS = (10.0, 1e6)
REAL_DATA = 0.7  # the share of the matrix that should be measured


@dataclass(frozen=True, slots=True)
class Detection:
    """How often genes are seen, over tables of counts.

    Attributes
    ----------
    least
        Least fraction of the spots of one section with a count above 0, (g,).
    overall
        The same over the spots of all sections, (g,).
    total
        Sum of counts (g,).
    """

    least: np.ndarray
    overall: np.ndarray
    total: np.ndarray


@dataclass(frozen=True, slots=True)
class Filtered:
    """What passes the filters, and how much each step took.

    Attributes
    ----------
    spots
        One mask (n,) per table.
    genes
        Mask (g,).
    detection
        Of all genes, over the spots within bounds.
    dropped
        Step → number of spots or genes that it took.
    """

    spots: tuple[np.ndarray, ...]
    genes: np.ndarray
    detection: Detection
    dropped: dict[str, int]


def within(total: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    """Which totals lie strictly between two bounds.

    Raises
    ------
    ValueError
        Bounds between which nothing lies, or totals that are not known.
    """
    low, high = bounds
    if not low < high:
        raise ValueError(f"bounds {bounds} were given; expected (low, high) with low below high")
    if np.isnan(total).any():
        raise ValueError("totals are NaN, so counts are hidden here; leave these sections out")
    return (total > low) & (total < high)


def detection(tables: Iterable[sparse.csr_matrix]) -> Detection:
    """How often each gene is seen in tables (n, g), one per section.

    Raises
    ------
    ValueError
        No table, or one without spots.
    """
    parts = [
        (np.asarray((table > 0).sum(axis=0)).ravel(), table.shape[0], np.asarray(table.sum(axis=0, dtype=np.float64)))
        for table in tables
    ]
    if not parts or min(n for _, n, _ in parts) == 0:
        raise ValueError("genes are filtered over sections with spots; there is none, or one without spots")
    least = np.min([found / n for found, n, _ in parts], axis=0)
    overall = np.sum([found for found, _, _ in parts], axis=0) / sum(n for _, n, _ in parts)
    return Detection(least, overall, np.sum([total.ravel() for _, _, total in parts], axis=0))


def real_data_genes(least: np.ndarray, overall: np.ndarray, share: float = REAL_DATA) -> np.ndarray:
    """The genes that keep at least about `share` of the matrix measured.

    Genes are sorted by `least`, largest first, ties in their order. All are kept up to the last at which the mean of
    `overall` so far is `share` or more.

    Parameters
    ----------
    least, overall
        Fractions (g,) of `Detection`.

    Returns
    -------
    (g,) bool, at least one of them True.

    Raises
    ------
    ValueError
        No number of genes leaves that much measured, or `share` is not between 0 and 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"real-data share {share!r} was given; expected a fraction between 0 and 1")
    order = np.argsort(-least, kind="stable")
    running = np.cumsum(overall[order]) / np.arange(1, len(order) + 1)
    enough = np.flatnonzero(running >= share)
    if not len(enough):
        best = f"at most {running.max():.3f} is" if len(running) else "there are no genes"
        raise ValueError(
            f"no set of genes leaves {share:g} of the matrix measured: {best}. Lower the real-data share, or drop sparse sections"
        )
    keep = np.zeros(len(order), dtype=bool)
    keep[order[: enough[-1] + 1]] = True
    return keep


def spared_filter(
    tables: Sequence[sparse.csr_matrix],
    libraries: Sequence[np.ndarray],
    *,
    spot_counts: tuple[float, float] = SPOT_COUNTS,
    gene_counts: tuple[float, float] = GENE_COUNTS,
    share: float = REAL_DATA,
    genes: np.ndarray | None = None,
    ids: Sequence[str] | None = None,
) -> Filtered:
    """All filters in the order of SpaRED.

    Spots by their totals; genes by their totals over the spots left; genes by the real-data rule; spots without a
    count in the genes left. All bounds are strict.

    Parameters
    ----------
    tables
        Raw counts (n, g), one per section, the same genes in all.
    libraries
        Total counts of the spots (n,) over all genes of their section.
    genes
        Mask (g,) that takes the place of both filters of genes.
    ids
        Names of the sections, for errors.

    Raises
    ------
    ValueError
        A section without a spot or a set without a gene after a step, with the step.
    """
    ids = [str(i) for i in range(1, len(tables) + 1)] if ids is None else ids
    inside = [within(library, spot_counts) for library in libraries]
    _some_left(ids, inside, f"has no spot with more than {spot_counts[0]:g} and fewer than {spot_counts[1]:g} counts")
    kept = [table[mask] for table, mask in zip(tables, inside, strict=True)]
    seen = detection(kept)
    bounded = within(seen.total, gene_counts) if genes is None else genes
    if not bounded.any():
        raise ValueError(f"no gene has more than {gene_counts[0]:g} and fewer than {gene_counts[1]:g} counts")
    real = bounded.copy()
    if genes is None:
        real[bounded] = real_data_genes(seen.least[bounded], seen.overall[bounded], share)
    filled = [mask & in_genes(table, real) for table, mask in zip(tables, inside, strict=True)]
    _some_left(ids, filled, "has no spot with a count in the genes that are kept")
    before, between, after = (
        sum(int(m.sum()) for m in masks) for masks in ([x >= 0 for x in libraries], inside, filled)
    )
    return Filtered(
        tuple(filled),
        real,
        seen,
        {
            "spots out of bounds": before - between,
            "spots empty in the genes": between - after,
            "genes out of bounds": int((~bounded).sum()),
            "genes by real data": int((bounded & ~real).sum()),
        },
    )


def in_genes(table: sparse.csr_matrix, genes: np.ndarray) -> np.ndarray:
    """Which spots (n,) have a count in the genes of a mask (g,)."""
    return (table @ genes.astype(table.dtype)) > 0


def _some_left(ids: Sequence[str], masks: Sequence[np.ndarray], what: str) -> None:
    for id, mask in zip(ids, masks, strict=True):
        if not mask.any():
            raise ValueError(f"section {id!r} {what}; leave it out or loosen the filter")
