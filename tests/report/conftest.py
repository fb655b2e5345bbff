"""A finished run without any training: predictions of graded quality on a small phantom cohort."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest

from histoweave import _keys as K
from histoweave.bench.metrics import average, section_metrics, to_rows
from histoweave.bench.stats import compare
from histoweave.bench.summary import Report
from histoweave.bench.trust import reliability
from histoweave.data.phantom import Phantom, phantom

MODELS = {"mean": 0.0, "ridge": 0.5, "net[depth=2]": 0.7}  # share of the truth in the prediction
CONTROLS = ("mean", "ridge")
MakeRun = Callable[..., Report]


@pytest.fixture(scope="session")
def six() -> Phantom:
    """Six patients: enough for the test against ridge."""
    genes = {"local": 4, "neighbourhood": 2, "global": 2, "noise": 3}
    return phantom(n_patients=6, spots=(5, 5), genes=genes, um_per_px=200 / 16, seed=1)


def _cell(model: str, fold: str, seed: int, genes: Sequence[str], truth: Phantom) -> dict[str, Any]:
    method = model not in CONTROLS
    test = truth.cohort[fold]
    return {
        "model": model, "fold": fold, "seed": seed, "folder": f"{abs(hash((model, fold, seed)))}",
        "citation": "Doe 2020" if method else "control", "control": not method, "args": {"trunk": "frozen"} if method else {},
        "encoder": {"name": "efficientnet-lite0", "init": "ImageNet", "licence": "Apache-2.0", "citation": "Tan 2019"},
        "trunk": None, "parameters": 29_031_640 if method else 0, "recipe": {"name": "tiny"}, "inner_split": "patients",
        "first": None, "view": {"standardize": "train"}, "units": "ln(count / given size factor + 1)", "spots": test.n,
        "panel": {"genes": list(genes)}, "panel_digest": "abc123", "best_epoch": 1 if method else -1,
        "history": [{"loss": 1.0}] * 4 if method else [], "test": [fold],
        "trained_on": [p for p in truth.cohort.patients if p != test.patient],
    }  # fmt: skip


def _prediction(model: str, share: float, seed: int, truth: Phantom, fold: str, genes: Sequence[str]) -> anndata.AnnData:
    section = truth.cohort[fold]
    names = {given: i for i, given in enumerate(truth.genes.index)}
    y = truth.target()[fold][:, list(names.values())].astype(np.float32)
    noise = np.random.default_rng([seed, len(model)]).normal(0, y.std(axis=0), y.shape)
    made = y.mean(axis=0) + share * (y - y.mean(axis=0)) + (share > 0) * (1 - share) * noise
    obs = pd.DataFrame({K.SECTION: fold, K.PATIENT: section.patient}, index=fold + "/" + section.spots.obs_names)
    return anndata.AnnData(X=made.astype(np.float32), obs=obs, var=pd.DataFrame(index=list(genes)),
                           obsm={K.SPATIAL: section.xy}, layers={"truth": y})


def build_run(folder: Path, truth: Phantom, *, rename: dict[str, str] | None = None, name: str = "phantom") -> Report:
    """A run of `MODELS` on every patient of a phantom; `rename` gives models and genes other names."""
    rename = rename or {}
    genes = [rename.get(gene, gene) for gene in truth.genes.index]
    rows, cells = [], []
    for model, share in MODELS.items():
        called = rename.get(model, model)
        for fold in truth.cohort.ids:
            cell = _cell(model, fold, 0, genes, truth) | {"model": called, "folder": f"{len(cells)}"}
            made = _prediction(model, share, 0, truth, fold, genes)
            (folder / "cells" / cell["folder"]).mkdir(parents=True)
            made.write_h5ad(folder / "cells" / cell["folder"] / "prediction.h5ad")
            frame, _ = section_metrics(made.layers["truth"], made.X, genes=genes)
            rows.append(to_rows(frame, benchmark=name, model=called, seed=0, fold=fold,
                                patient=truth.cohort[fold].patient, section=fold))
            cells.append(cell)
    table = pd.concat(rows, ignore_index=True)
    card = {
        "benchmark": name, "protocol": "strict", "view": {"encoder": "efficientnet-lite0"}, "recipe": "tiny", "seeds": [0],
        "controls_left_out": [], "ensemble": 0, "folds": {s.id: [s.id] for s in truth.cohort}, "hide": "Everything()",
        "patients": {s.id: s.patient for s in truth.cohort}, "versions": {"python": "3.11"}, "threads": 1, "device": "CPU",
        "machine": "x86_64", "digest": "0123abcd",
    }  # fmt: skip
    counts = [section.counts(list(truth.genes.index)) for section in truth.cohort]
    return Report(folder=folder, rows=table, summary=average(table), tests=compare(table, "pcc", "ridge"), cells=cells,
                  genes=reliability(counts, np.log1p, genes), card=card)


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Builds a run below the test's folder."""
    return lambda truth, **how: build_run(tmp_path / "run", truth, **how)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, six: Phantom) -> Report:
    """The run on six patients; its page may be written again and again."""
    return build_run(tmp_path_factory.mktemp("run"), six)
