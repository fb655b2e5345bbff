"""What a model learns in the place of counts of 0: nothing, or what another model fills in there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from anndata import AnnData
from scipy import sparse

from histoweave import _keys as K
from histoweave.data.section import Cohort, Section
from histoweave.models import card_of, list_models
from histoweave.pp.counts import Target
from histoweave.pp.genes import candidate_counts
from histoweave.train.spec import Spec
from histoweave.view import FittedView

if TYPE_CHECKING:
    from histoweave.train.predictor import Learner

HIDE = 0.3  # of the measured entries are hidden where training decides when to stop (SpaCKLE's rate)


def check_sections(spec: Spec, cohort: Cohort) -> None:
    """`ValueError` if sections lack what a model looks at: an image, or counts to complete."""
    if spec.looks and (bare := [section.id for section in cohort if section.image is None]):
        raise ValueError(
            f"model {spec.name!r} looks at images, and {len(bare)} of {len(cohort)} sections have none "
            f"({', '.join(bare[:8])}). Use the others only: `--sections with-image`, or `cohort.with_image()`"
        )
    if spec.completes and (bare := [section.id for section in cohort if not section.spots.n_vars]):
        raise ValueError(
            f"model {spec.name!r} completes measured counts, and {len(bare)} of {len(cohort)} sections have none "
            f"({', '.join(bare[:8])}). Models that predict from the image alone are listed by `histoweave models`"
        )


def check_target(spec: Spec, target: Target) -> None:
    """`ValueError` if 0 does not mean "missing" in the target, for a model to which it does."""
    at_zero = 0.0 if target.log == "none" else target.pseudo - 1  # below, at or above 0 as the value of a count of 0 is
    if spec.zeros or ((target.form, target.smooth) == ("scaled", "none") and at_zero == 0):
        return
    what = "completes" if spec.completes else f"learns from layer {spec.layer!r}"
    raise ValueError(
        f"model {spec.name!r} {what}, where a value of 0 is an entry that is missing; with target '{target}' it is not. "
        "Use a target without smoothing or other pseudo counts than 1, such as 'log1p-cpm'"
    )


def completers() -> list[str]:
    """Names of the models that complete."""
    return [name for name in list_models() if card_of(name).task == "complete"]


def filled_values(filler: Learner, train: Cohort) -> dict[str, np.ndarray]:
    """The training sections as the fitted `filler` completes them: per section id (n, g), float32."""
    return {section.id: completed(filler, section, filler.predict(Cohort([section])).X)[0] for section in train}


def completed(filler: Learner, section: Section, made: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the `filler` `made` of a section (n, g), float32, where it is not measured, and which entries are (n, g).

    What is measured is kept to the bit.
    """
    assert filler.fitted is not None
    values, measured = filler.fitted.truth(section, zeros=False)
    return np.where(measured, values, made).astype(np.float32), measured


def center_of(fitted: FittedView, train: Cohort, spec: Spec, filled: Mapping[str, np.ndarray] | None) -> np.ndarray:
    """Mean per gene of what the model learns (g,), float32: over measured entries only where it learns these alone."""
    if filled is None:
        return fitted.mean_of(train, zeros=spec.zeros)
    return np.concatenate([filled[id] for id in train.ids]).mean(axis=0, dtype=np.float64).astype(np.float32)


def complete(filler: Learner, cohort: Cohort) -> AnnData:
    """What an assay dropped of the panel's genes, filled in; what it measured stays as it is, to the bit.

    Returns
    -------
    AnnData
        ``X`` (n, g) float32 in the units of the target; ``layers["measured"]`` (n, g) bool, CSR;
        ``layers["counts"]``: raw counts; section and patient in ``obs``; the model's card in ``uns["histoweave"]``.

    Raises
    ------
    ValueError
        A model that does not complete, or sections without counts.
    """
    if not filler.spec.completes:
        raise ValueError(f"model {filler.name!r} does not complete; those that do: {', '.join(completers())}")
    check_sections(filler.spec, cohort)
    made = filler.predict(cohort)
    ends = np.cumsum([section.n for section in cohort])[:-1]
    parts = [completed(filler, *pair) for pair in zip(cohort, np.split(np.asarray(made.X), ends), strict=True)]
    made.X = np.concatenate([values for values, _ in parts])
    made.layers[K.MEASURED] = sparse.csr_matrix(np.concatenate([measured for _, measured in parts]))
    counts = [candidate_counts(section, list(made.var_names), union=True) for section in cohort]
    made.layers[K.COUNTS] = sparse.vstack(counts, format="csr")
    return made
