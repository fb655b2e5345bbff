"""The main job on the phantom cohort: benchmark by patient, report, fit, and prediction on a slide without counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from histoweave.bench.summary import Report
from histoweave.commands import bench, fit
from histoweave.data.phantom import Phantom, phantom
from histoweave.inference import predict_slide
from histoweave.report import write_html
from histoweave.settings import BenchSettings, FitSettings

# The phantom's claims hold for an unsmoothed target with given size factors; all genes are in the panel.
TARGET = "log1p-given"
MODELS = "mean,ridge,knn,stnet,triplex"
WINDOW_UM = 200.0  # the phantom's tile, which is also its pitch: neighbour tiles of one spot are spot tiles of another


@dataclass(frozen=True, slots=True)
class Demo:
    """What the demo made: a table per model and gene family, and where report and prediction lie."""

    table: pd.DataFrame
    report: Path
    prediction: Path


def demo_phantom(*, patients: int = 5, seed: int = 0) -> Phantom:
    """The embedded cohort: one Spatial Transcriptomics section per patient."""
    return phantom(n_patients=patients, layout="st", spots=(14, 14), seed=seed)


def run_demo(
    out: str | Path, *, say: Callable[[str], None], progress: Callable[[int, int, str], None] | None = None
) -> Demo:
    """Runs everything into a folder; about two minutes on two cores, and nothing is downloaded."""
    out = Path(out)
    say("drawing the phantom cohort")
    truth = demo_phantom()
    shared: dict[str, Any] = {
        "target": TARGET,
        "panel": f"list:{','.join(truth.genes.index)}",
        "window_um": WINDOW_UM,
        "out_px": 112,
        "recipe": "tiny",
        "standardize": "section",  # the phantom's patients differ in stain; uses test images, but no expression
        "store": str(out / "store"),
    }
    report = bench(
        truth.cohort, out, BenchSettings(models=MODELS, name="phantom", **shared), say=say, progress=progress
    )
    genes = [truth.genes.index[(truth.families == family).to_numpy()][0] for family in FAMILIES]
    page = write_html(report, truth.cohort, genes=genes)
    say("fitting triplex on all patients, and predicting a new slide without counts")
    learner = fit(
        truth.cohort, out / "model", FitSettings(model="triplex", from_bench=str(out), **shared), progress=progress
    )
    slide = demo_phantom(patients=1, seed=1).cohort[0].image
    assert slide is not None
    path = out / "new_slide.h5ad"
    predict_slide(learner, slide, path, id="new-slide", progress=progress).file.close()
    return Demo(fraction_of_oracle(report, truth), page, path)


FAMILIES = ("local", "neighbourhood", "global")


def fraction_of_oracle(report: Report, truth: Phantom) -> pd.DataFrame:
    """Per model and gene family: mean PCC, and in brackets the fraction of what the tissue tells (the section oracle)."""
    oracle = truth.oracle(view="section").groupby("family")["pcc"].mean()
    rows = report.rows[report.rows["metric"] == "pcc"].assign(family=lambda r: r["gene"].map(truth.families))
    steps = [["model", "family", "patient", "section", "fold"], ["model", "family", "patient"], ["model", "family"]]
    mean = rows
    for keys in steps:
        mean = mean.groupby(keys, sort=False)["value"].mean().reset_index()
    wide = mean.pivot(index="model", columns="family", values="value").reindex(report.models)
    shown = pd.DataFrame(index=wide.index)
    for family in FAMILIES:
        shown[family] = [f"{v:.3f} ({v / oracle[family]:.0%})" if np.isfinite(v) else "–" for v in wide[family]]
    shown["noise"] = [f"{v:.3f}" for v in wide["noise"]]
    shown.loc["oracle"] = [f"{oracle[family]:.3f}" for family in FAMILIES] + ["0.000"]
    return shown
