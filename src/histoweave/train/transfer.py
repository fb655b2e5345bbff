"""`Transfer`: an imputer as a `Predictor`, from reference sections and what is visible of a target to what it lacks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData, concat
from scipy import sparse

from histoweave import _keys as K
from histoweave.batch import Card, Needs
from histoweave.data.section import Cohort, Section
from histoweave.models.impute import Imputer, create_imputer, list_imputers
from histoweave.train.loop import History
from histoweave.train.matching import match_genes
from histoweave.train.recipe import Recipe
from histoweave.view import FittedView, View


def is_imputer(text: str) -> bool:
    """Whether the text of a model names an imputer."""
    return text.partition("[")[0].strip() in list_imputers()


@dataclass(frozen=True, slots=True)
class TransferSpec:
    """What a benchmark asks of a model before it is fitted, for an imputer: it reads no image and has no recipe."""

    text: str
    card: Card
    recipe: Recipe = Recipe(name="none")  # noqa: RUF009  (immutable)
    first: None = None
    filler: None = None
    needs: Needs = Needs.NONE
    sees: Needs = Needs.NONE
    embeds: bool = False
    counts: bool = False
    completes: bool = False
    hops: int = 1

    @property
    def trains(self) -> bool:
        """Whether anything in it is drawn at random, so that seeds differ."""
        return self.card.learns == "gradient"


class Transfer:
    """An imputer around reference sections; nothing is learnt before the target is there.

    Parameters
    ----------
    imputer
        Its text, such as ``spage[n_pv=30]``, or an `Imputer`.
    view
        Where given, imputed values are brought to the scale that all models of a table share: expression of the genes of
        the view's panel over their sum; what the imputer gave is kept in ``layers["own"]``. Without one they are as the
        imputer gives them, of all genes that a target lacks.
    seed
        Of whatever the imputer draws.
    genes
        What to impute where there is no view; by default all that a target lacks. Totals are over all genes of the
        reference either way, so a value does not depend on what else is imputed.
    """

    def __init__(
        self, imputer: str | Imputer, view: View | None = None, *, seed: int = 0, genes: Sequence[str] | None = None
    ) -> None:
        self.wanted = None if genes is None else tuple(genes)
        self.model = imputer if isinstance(imputer, str) else type(imputer).__name__
        self.imputer = create_imputer(imputer) if isinstance(imputer, str) else imputer
        self.view, self.seed = view, seed
        self.fitted: FittedView | None = None
        self.history = History()
        self.module = None
        self.notes: dict[str, dict[str, float]] = {}  # per target section
        self._train: Cohort | None = None

    def fit(self, train: Cohort, val: Cohort | None = None) -> Transfer:
        """Keeps the reference sections; `val` is not used."""
        self._train = train
        self.fitted = None if self.view is None else self.view.fit(train)
        return self

    def predict(self, cohort: Cohort) -> AnnData:
        """What each section lacks: ``X`` (c, h) float32; ``layers["spread"]`` where the imputer tells it.

        Raises
        ------
        ValueError
            Not fitted, no gene in common, or nothing to impute.
        """
        if self._train is None:
            raise ValueError("this imputer was not fitted; call fit(reference cohort) first")
        made = [self._impute(self._train, section) for section in cohort]
        joined = concat(made, join="inner", merge="same")
        joined.uns[K.UNS] = {"units": self.units, "card": json.dumps(self.describe(), sort_keys=True)}
        return joined

    @property
    def units(self) -> str:
        """What a value is, in words."""
        return self.imputer.scale if self.fitted is None else self.fitted.view.target.units

    def describe(self) -> dict[str, Any]:
        """What made these values: imputer with its arguments, reference, shared and imputed genes."""
        card = self.imputer.card
        fitted = self.fitted
        return {
            "model": self.model,
            "name": self.model.partition("[")[0],
            "args": asdict(self.imputer),  # type: ignore[call-overload]
            "task": card.task,
            "layer": "raw",
            "first": None,
            "recipe": Recipe(name="none").to_dict(),
            "seed": self.seed,
            "citation": card.citation,
            "control": card.control,
            "view": None if fitted is None else fitted.view.to_dict(),
            "panel": None if fitted is None else fitted.genes.to_dict(),
            "panel_digest": None if fitted is None else fitted.genes.digest,
            "trained_on": list(self._train.patients) if self._train is not None else [],
            "inner_split": "none",
            "encoder": None,
            "trunk": None,
            "parameters": None if card.learns == "gradient" else 0,  # what is trained is gone after a target
            "expected_accuracy": "not measured",
            "scale_of_imputer": self.imputer.scale,
            "notes": self.notes,
            "units": self.units,
        }

    def _impute(self, train: Cohort, section: Section) -> AnnData:
        shared, missing = self.genes(train, section)
        reference = _reference(train, [*shared, *missing])
        found = self.imputer(reference, section.counts(shared), seed=self.seed, groups=_groups(train))
        self.notes[section.id] = found.notes
        values, spread = (v if v is None else v[:, : len(missing)] for v in (found.values, found.spread))
        assert values is not None
        own = values
        if self.fitted is not None:
            values, spread = _shares(values, logarithmic=self.imputer.logarithmic), None
        obs = pd.DataFrame(
            {K.SECTION: section.id, K.PATIENT: section.patient}, index=section.id + "/" + section.spots.obs_names
        )
        table = AnnData(X=values, obs=obs, var=pd.DataFrame(index=pd.Index(missing)), obsm={K.SPATIAL: section.xy})
        if self.fitted is not None:
            table.layers[K.OWN] = own.astype(np.float32)
        if spread is not None:
            table.layers[K.SPREAD] = spread
        return table

    def genes(self, train: Cohort, section: Section) -> tuple[list[str], list[str]]:
        """Genes that a target shares with the reference, and those to impute: names are matched as they are written.

        Raises
        ------
        ValueError
            No shared gene, or nothing to impute.
        """
        if self.view is not None and self.fitted is not None:
            return list(self.view.shared), list(self.fitted.genes.genes)
        found = match_genes(train, Cohort([section]))
        there = set(found.imputed)
        return list(found.shared), [gene for gene in self.wanted or found.imputed if gene in there]

    def save(self, dir: Any) -> None:
        """There is nothing to save: a transfer is refitted from its reference."""
        raise ValueError("a transfer imputer keeps no weights; save the reference cohort and fit again")


def _shares(values: np.ndarray, *, logarithmic: bool) -> np.ndarray:
    """Expression over its sum over the imputed genes (c, h), float32: the scale on which methods are compared."""
    plain = np.expm1(values.astype(np.float64)) if logarithmic else values.astype(np.float64)
    plain = np.maximum(plain, 0.0)
    total = plain.sum(axis=1, keepdims=True)
    return (plain / np.where(total > 0, total, 1.0)).astype(np.float32)


def _reference(train: Cohort, genes: list[str]) -> sparse.csr_matrix:
    """Counts of the genes in all cells, CSR (n, g); where cells have counts of others, these together as a last column.

    So totals stay those over all genes of the reference, whichever of them are imputed.
    """
    counts = sparse.vstack([section.counts(genes) for section in train], format="csr")
    total = np.concatenate([np.asarray(s.spots.X.sum(axis=1, dtype=np.float64)).ravel() for s in train])
    rest = total - np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    return sparse.hstack([counts, sparse.csr_matrix(rest[:, None])], format="csr") if rest.any() else counts


def _groups(train: Cohort) -> np.ndarray | None:
    """Cell type of every reference cell (n,), where all sections name them."""
    if not all(K.GROUP in section.spots.obs for section in train):
        return None
    return np.concatenate([section.spots.obs[K.GROUP].astype(str).to_numpy() for section in train])
