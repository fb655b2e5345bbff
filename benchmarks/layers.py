"""Raw against completed: what predictors learn from zeros, from measured entries alone, and from what was filled in.

    python -m benchmarks.layers [--work DIR] [--quick] [--real]

On a phantom that loses a fifth of its counts, eight patients in two folds, so that a sign can be concluded; with ``--real``
on the six sections of her2st with an image as well, where two patients conclude nothing. Writes
``benchmarks/results/layers.md``.
"""

from __future__ import annotations

import argparse
import os
from datetime import date
from pathlib import Path

import pandas as pd

from histoweave._repro import fingerprint
from histoweave.bench.markdown import pipe
from histoweave.bench.over_datasets import arm
from histoweave.bench.stats import compare
from histoweave.bench.summary import Report
from histoweave.commands import bench
from histoweave.data.io import read_cohort
from histoweave.data.phantom import phantom
from histoweave.data.section import Cohort
from histoweave.models import with_argument
from histoweave.settings import BenchSettings

RESULTS = Path(__file__).parent / "results"
MODELS = ("ridge", "stnet", "triplex")
SMALL = "spackle[width=32,hidden=256]"  # of a size that is trained in a minute
LAYERS = ("raw", "measured", "gene-mean", "median", SMALL)
METRICS = ("mse_measured", "mse", "pcc_measured", "pcc")
DROPOUT = 0.2  # of the counts, in a gene-wise way: a third of the entries ends at 0


def arms(models: tuple[str, ...]) -> str:
    """Every model on every layer."""
    return ",".join(with_argument(model, "layer", layer) for model in models for layer in LAYERS)


def made_up(work: Path, *, quick: bool) -> Report:
    """The phantom."""
    truth = phantom(
        n_patients=3 if quick else 8, spots=(8, 8) if quick else (16, 16), layout="visium", dropout=DROPOUT, seed=21
    )
    how = BenchSettings(
        models=arms(MODELS[:1] if quick else MODELS), controls="mean", target="log1p-cpm[log=2]", panel="spared:60",
        measured=True, split="k-fold:2", recipe="tiny", store=str(work / "store"), threads=1, max_hours=1000,
        window_um=200, out_px=64, name="phantom, raw and completed",
    )  # fmt: skip
    return bench(truth.cohort, work / "phantom", how, say=print)


def real(work: Path, store: str | None) -> Report:
    """The sections of her2st that have an image."""
    root = Path(os.environ.get("HISTOWEAVE_DATA", "../shared/data"))
    cohort: Cohort = read_cohort(str(root / "her2st"), sections="with-image")
    how = BenchSettings(
        models=arms(MODELS), controls="mean", target="log1p-cpm[log=2]", panel="spared:32", measured=True,
        recipe="tiny", store=store or str(work / "store"), threads=1, max_hours=1000, window_px=224,
        name="her2st, six images, raw and completed",
    )  # fmt: skip
    return bench(cohort, work / "her2st", how, say=print)


def table(report: Report) -> pd.DataFrame:
    """Models and layers: mean ± sd over patients."""
    wide = report.summary.pivot(index="model", columns="metric", values=["mean", "sd"]).reindex(report.models)
    made = pd.DataFrame(index=pd.Index(report.models, name="model"))
    for metric in METRICS:
        pairs = zip(wide[("mean", metric)], wide[("sd", metric)], strict=True)
        made[metric] = [f"{mean:.4f} ± {sd:.4f}" for mean, sd in pairs]
    return made


def gains(report: Report) -> pd.DataFrame:
    """Every layer against the loss on measured entries, patients paired."""
    rows = []
    for base in dict.fromkeys(arm(model)[0] for model in report.models):
        reference = with_argument(base, "layer", "measured")
        if reference not in report.models:
            continue
        part = report.rows[[arm(model)[0] == base for model in report.rows["model"]]]
        for metric in METRICS:
            rows.append(compare(part, metric, reference))
    made = pd.concat(rows, ignore_index=True).set_index("model")
    return made[["metric", "difference", "n_patients", "p", "p_holm", "note"]]


def page(reports: list[Report], *, command: str) -> str:
    """The page."""
    lines = [
        "# Raw against completed",
        "",
        f"`{command}`, {date.today()}, {os.cpu_count()} cores, torch {fingerprint()['versions']['torch']}.",
        "",
        "What counts of 0 are in training: `raw`: zeros; `measured`: left out of the loss; else filled in by the model named. "
        "All are scored on the same truth: over measured entries (`_measured`), and over all entries with zeros as "
        "observations. A gain of completion is a gain over `measured`. Recipe `tiny`: no model's best. The phantom's panel is "
        "chosen by Moran's I, which prefers genes that follow the tissue at large and hardly show in a window, so correlations "
        "are low.",
    ]
    for report in reports:
        lines += ["", f"## {report.card['benchmark']}", "", pipe(table(report)), ""]
        lines += [
            "Against the loss on measured entries (a negative difference of an error is better):",
            "",
            pipe(gains(report)),
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/layers"))
    parser.add_argument("--store", default=None, help="embeddings of her2st that are there already")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--real", action="store_true")
    given = parser.parse_args()
    reports = [made_up(given.work, quick=given.quick)] + ([real(given.work, given.store)] if given.real else [])
    command = "python -m benchmarks.layers" + " --real" * given.real + " --quick" * given.quick
    text = page(reports, command=command)
    if not given.quick:
        (RESULTS / "layers.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
