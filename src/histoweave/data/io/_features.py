"""Genes, negative controls and the rest among the features of a 10x matrix."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from histoweave import _keys as K
from histoweave.data.section import Section, SectionError

log = logging.getLogger(__name__)

GENES = "Gene Expression"
# Xenium: Negative Control Probe, Negative Control Codeword, Genomic Control, and Blank, Unassigned and Deprecated
# Codeword, none of which stands for a transcript of the sample.
_CONTROL = re.compile("control|codeword|blank", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Kinds:
    """Columns of a matrix that are genes, and those that are negative controls."""

    genes: np.ndarray
    controls: np.ndarray

    @classmethod
    def of(cls, types: Sequence[str], *, where: str) -> Kinds:
        """Sorted by ``feature_types``; what is neither gene nor control (proteins, guides) is counted in the log.

        Raises
        ------
        SectionError
            Not one feature is of type ``Gene Expression``.
        """
        kinds = pd.Series([str(kind) for kind in types], dtype=object)
        is_gene = (kinds == GENES).to_numpy()
        is_control = kinds.map(lambda kind: _CONTROL.search(kind) is not None).to_numpy(dtype=bool) & ~is_gene
        if not is_gene.any():
            raise SectionError(
                f"{where}: no feature is of type {GENES!r}, only {sorted(set(kinds))}; is this the matrix of the genes?"
            )
        if is_control.any():
            counted = _counted(kinds[is_control])
            log.info("%s: negative controls kept apart, as obs[%r]: %s", where, K.CONTROL_COUNTS, counted)
        if not (is_gene | is_control).all():
            log.info("%s: features dropped: %s", where, _counted(kinds[~(is_gene | is_control)]))
        return cls(np.flatnonzero(is_gene), np.flatnonzero(is_control))


def control_totals(counts: Any, controls: np.ndarray) -> np.ndarray:
    """Total counts of the negative controls per spot (n,), float64, from all counts (n, features)."""
    return np.asarray(sparse.csr_matrix(counts)[:, controls].sum(axis=1), dtype=np.float64).ravel()


def name_controls(section: Section, names: Sequence[str]) -> Section:
    """The section with the names of its negative controls in ``uns``."""
    section.spots.uns[K.CONTROLS] = np.asarray([str(name) for name in names], dtype=object)
    return section


def _counted(kinds: pd.Series) -> str:
    return ", ".join(f"{n} × {kind}" for kind, n in kinds.value_counts().items())
