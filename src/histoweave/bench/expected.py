"""The accuracy per gene to expect of a fitted model, from a benchmark that looked at its sections in the same way."""

from __future__ import annotations

import pandas as pd

from histoweave import _keys as K
from histoweave.bench.summary import Report
from histoweave.view import View


def check_same(report: Report, view: View, recipe: str) -> None:
    """`ValueError` if the benchmark's models saw or learnt otherwise than a fit with this view and recipe will.

    The panel may differ: accuracies are per gene.
    """
    ours = view.to_dict() | {"recipe": recipe}
    theirs = report.card["view"] | {"recipe": report.card["recipe"]}
    other = [key for key in ours if key != "panel" and ours[key] != theirs.get(key)]
    if other:
        told = "; ".join(f"{key}: {theirs.get(key)!r} there, {ours[key]!r} here" for key in other)
        raise ValueError(
            f"benchmark '{report.folder}' differs from this fit in {told}; its accuracy is not that of this model. "
            "Give both the same options"
        )


def expected_accuracy(report: Report, model: str) -> pd.DataFrame:
    """Per gene: mean over patients of the within-section PCC of a model, its sd over patients, and their number."""
    rows = report.rows[(report.rows["metric"] == "pcc") & (report.rows["model"] == model)]
    if rows.empty:
        raise ValueError(f"the benchmark has no model {model!r}; it has {', '.join(report.models)}")
    patient = rows.groupby(["gene", "patient"], sort=False)["value"].mean().groupby("gene", sort=False)
    return pd.DataFrame({K.CV_PCC: patient.mean(), K.CV_PCC_SD: patient.std(ddof=0), K.CV_PCC_N: patient.count()})
