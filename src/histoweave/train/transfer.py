"""`Transfer`: a pure function from a reference and what is visible of a target to the genes the target lacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData, concat
from scipy import sparse

from histoweave import _keys as K
from histoweave.data.section import Cohort

Impute = Callable[[sparse.csr_matrix, sparse.csr_matrix], np.ndarray]


class Transfer:
    """A predictor around ``impute(reference (n, G), seen (m, g)) -> (m, G - g)``.

    The first g columns of the reference are the genes seen in the target, in the same order; nothing is learnt before
    the target is there, so `fit` only keeps the reference.
    """

    def __init__(self, impute: Impute) -> None:
        self.impute = impute
        self._train: Cohort | None = None

    def fit(self, train: Cohort, val: Cohort | None = None) -> Transfer:
        """Keeps the reference sections; `val` is not used."""
        self._train = train
        return self

    def predict(self, cohort: Cohort) -> AnnData:
        """The genes of the reference that each section lacks, in the scale that the function states.

        Raises
        ------
        ValueError
            Not fitted, no gene in common, or nothing to impute.
        """
        if self._train is None:
            raise ValueError("this imputer was not fitted; call fit(reference cohort) first")
        known = self._train.genes("common")
        tables = []
        for section in cohort:
            shared = [gene for gene in section.genes if gene in set(known)]
            missing = [gene for gene in known if gene not in set(section.genes)]
            if not shared or not missing:
                raise ValueError(
                    f"section {section.id!r} shares {len(shared)} genes with the reference and lacks "
                    f"{len(missing)}; an imputation needs at least one of each"
                )
            reference = sparse.vstack([s.counts([*shared, *missing]) for s in self._train], format="csr")
            made = np.asarray(self.impute(reference, section.counts(shared)), dtype=np.float32)
            obs = pd.DataFrame(
                {K.SECTION: section.id, K.PATIENT: section.patient}, index=section.id + "/" + section.spots.obs_names
            )
            tables.append(
                AnnData(X=made, obs=obs, var=pd.DataFrame(index=pd.Index(missing)), obsm={K.SPATIAL: section.xy})
            )
        return concat(tables, join="inner")

    def save(self, dir: Any) -> None:
        """There is nothing to save: a transfer is refitted from its reference."""
        raise ValueError("a transfer imputer keeps no weights; save the reference cohort and fit again")
