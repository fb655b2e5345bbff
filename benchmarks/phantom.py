"""What the phantom shows: context models on context genes, the permutation null of noise genes, stain shift, another platform.

    python -m benchmarks.phantom [--quick] [--only main,noise,paper,stain,external,labels]

Writes ``benchmarks/results/phantom.md`` and ``phantom.json``.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from histoweave._repro import fingerprint
from histoweave.bench.external import external_split, prefixed
from histoweave.bench.metrics import pearson
from histoweave.bench.stats import permutation_null
from histoweave.bench.summary import Report
from histoweave.bio import Contrast, agreement, differential_of, parts
from histoweave.commands import bench
from histoweave.data.holdout import Holdout
from histoweave.data.phantom import Phantom, phantom
from histoweave.data.section import Cohort
from histoweave.data.split import Split
from histoweave.demo import FAMILIES, fraction_of_oracle
from histoweave.settings import BenchSettings
from histoweave.train import Learner

RESULTS = Path(__file__).parent / "results"
MODELS = "mean,ridge,knn,position,density,colour,stnet,triplex"
WINDOW_UM = 200.0


def settings(truth: Phantom, store: Path, **changes: Any) -> BenchSettings:
    """A benchmark over all genes of the phantom on the target that its claims are made for."""
    base = BenchSettings(
        target="log1p-given", panel=f"list:{','.join(truth.genes.index)}", window_um=WINDOW_UM, out_px=112,
        models=MODELS, store=str(store), recipe="cpu", name="phantom",
    )  # fmt: skip
    return replace(base, **changes)


def noise_null(runs: Mapping[str, Report], truth: Phantom) -> pd.DataFrame:
    """Per model: mean PCC on noise genes, and the 99 % interval under permutation of spots within sections.

    Runs are those of one or several phantoms with the genes of `truth`; their sections are pooled.
    """
    rows = []
    noise = list(truth.genes.index[truth.families == "noise"])
    for model in next(iter(runs.values())).models:
        parts = {
            f"{name} {card['fold']}": report.prediction(model, card["fold"])[:, noise]
            for name, report in runs.items()
            for card in report.cells
            if card["model"] == model
        }
        pred = np.concatenate([np.asarray(p.X) for p in parts.values()])
        real = np.concatenate([np.asarray(p.layers["truth"]) for p in parts.values()])
        section = np.concatenate([key + " " + p.obs["section"].astype(str).to_numpy() for key, p in parts.items()])
        null = permutation_null(real, pred, section, draws=2000, level=0.99)
        rows.append(
            {"model": model, "noise PCC": null.observed, "low": null.low, "high": null.high, "inside": null.inside}
        )
    return pd.DataFrame(rows).set_index("model")


def main_table(folder: Path, *, quick: bool) -> Iterator[tuple[str, pd.DataFrame]]:
    """Eight patients, leave one out: fraction of the oracle, and the null of the noise genes."""
    truth = phantom(n_patients=4 if quick else 8, spots=(16, 16), seed=11)
    report = bench(truth.cohort, folder / "main", settings(truth, folder / "store"), say=print)
    yield (
        "Leave one patient out, log1p of counts over given size factors: PCC (fraction of the section oracle)",
        (fraction_of_oracle(report, truth)),
    )
    yield "Oracle: what spot, 5 × 5 view and section tell", truth.oracle_table().round(3)
    yield (
        "Noise genes: mean PCC and the 99 % interval under permutation of spots within sections",
        noise_null({"": report}, truth),
    )
    yield (
        "Against ridge, all genes",
        report.tests.set_index("model")[["difference", "n_patients", "p", "p_holm", "note"]],
    )


def noise_seeds(folder: Path, *, quick: bool) -> Iterator[tuple[str, pd.DataFrame]]:
    """The null of the noise genes on several phantoms at once, and on each: does a model leave the interval again?

    Size factors are shared by all genes of a spot, so the genes of one phantom rise and fall together, and so do the
    models' agreements with them: one phantom is one draw for all models. Several are needed to tell chance from skill.
    """
    runs: dict[str, Report] = {}
    for seed in (11, 12) if quick else (11, 12, 13, 14, 15):
        truth = phantom(n_patients=8, spots=(16, 16), seed=seed)
        chosen = settings(truth, folder / "store", split="k-fold:2")
        runs[f"seed {seed}"] = bench(truth.cohort, folder / f"noise-{seed}", chosen, say=print)
    yield (
        f"All {len(runs)} phantoms together: mean PCC of noise genes, 99 % interval under permutation within sections",
        noise_null(runs, truth),
    )
    for name, report in runs.items():
        yield f"Phantom of {name} alone", noise_null({name: report}, truth)


def paper_table(folder: Path, *, quick: bool) -> Iterator[tuple[str, pd.DataFrame]]:
    """The same cohort under the papers' target: what panel normalisation and smoothing do to the families."""
    truth = phantom(n_patients=4 if quick else 8, spots=(16, 16), seed=11)
    chosen = settings(truth, folder / "store", target="triplex-paper", models="ridge,triplex", name="triplex-paper")
    report = bench(truth.cohort, folder / "paper", chosen, say=print)
    yield (
        "Target triplex-paper (panel library, log10, 3 × 3 smoothing): PCC; the oracle does not bound smoothed values",
        (fraction_of_oracle(report, truth)),
    )


def stain_curve(folder: Path, *, quick: bool) -> Iterator[tuple[str, pd.DataFrame]]:
    """Train at stain shift 1, test on cohorts whose shift grows; embeddings standardized by train or by section."""
    train = phantom(n_patients=4, spots=(16, 16), seed=21)
    shifts = (0.0, 1.0, 3.0) if quick else (0.0, 1.0, 2.0, 3.0, 4.0)
    tests = {shift: phantom(n_patients=3, spots=(16, 16), seed=22, stain_shift=shift) for shift in shifts}
    rows = []
    for how, model in product(("train", "section"), ("ridge", "triplex")):
        chosen = settings(train, folder / "store", standardize=how)
        learner = Learner(model, chosen.view(), chosen.open_store(), recipe=chosen.recipe).fit(train.cohort)
        for shift, test in tests.items():
            rows.append({"model": model, "standardize": how, "stain shift": shift, **by_family(learner, test)})
    table = pd.DataFrame(rows)
    for family in ("local", "neighbourhood"):
        wide = table.pivot_table(index=["model", "standardize"], columns="stain shift", values=family)
        yield (
            f"Test cohort of growing stain shift (training at 1): PCC on {family} genes",
            wide.reset_index().set_index("model"),
        )


def by_family(learner: Learner, test: Phantom) -> dict[str, float]:
    """Within-section PCC of a fitted model on a cohort it has not seen, mean per gene family."""
    assert learner.fitted is not None
    prediction = learner.predict(Holdout(Split((), test.cohort.ids)).shown(test.cohort))
    scores = []
    for section in test.cohort:
        truth, mask = learner.fitted.truth(section)
        here = (prediction.obs["section"] == section.id).to_numpy()
        scores.append(pearson(truth, prediction.X[here], mask))
    mean = pd.Series(np.mean(scores, axis=0), index=prediction.var_names).groupby(test.families).mean()
    return {str(family): float(value) for family, value in mean.items()}


def across_platforms(folder: Path, *, quick: bool) -> Iterator[tuple[str, pd.DataFrame]]:
    """Train on phantom-ST, test on phantom-Visium at another µm per px; physical windows against native pixels."""
    train = phantom(n_patients=4, spots=(16, 16), seed=31)
    test = phantom(n_patients=3, layout="visium", spots=(20, 20), um_per_px=1.0, pitch_um=200.0, tile_um=200.0, seed=32)
    rows = {}
    for name, changes in {"rescaled (200 µm)": {}, "native pixels (112 px)": {"window_px": 112}}.items():
        chosen = settings(train, folder / "store", models="ridge,triplex", controls="mean,ridge", **changes)
        for model, score in external(train.cohort, test, chosen, folder / f"external-{len(rows)}").items():
            rows[f"{model}, {name}"] = score
    yield "Trained on phantom-ST (1.79 µm/px), tested on phantom-Visium (1.0 µm/px): PCC", pd.DataFrame(rows).T.round(3)


def external(train: Cohort, test: Phantom, chosen: BenchSettings, folder: Path) -> dict[str, dict[str, float]]:
    """PCC per model and family of an external test."""
    joined, splits, _ = external_split(train, prefixed(test.cohort, "test-"))
    report = bench(joined, folder, chosen, splits=splits, say=print)
    rows = report.rows[report.rows["metric"] == "pcc"].assign(family=lambda r: r["gene"].map(test.families))
    mean = rows.groupby(["model", "family"])["value"].mean()
    return {model: {family: float(mean[model, family]) for family in (*FAMILIES, "noise")} for model in report.models}


def tumour_labels(folder: Path, *, quick: bool) -> Iterator[tuple[str, pd.DataFrame]]:
    """Spots on tumour against all others: the genes that differ in truth, and those that differ in the prediction."""
    truth = phantom(n_patients=4, spots=(16, 16), seed=41)
    chosen = settings(truth, folder / "store", models="ridge,stnet,triplex", split="k-fold:2", name="labels")
    if quick:
        chosen = replace(chosen, models="ridge")
    report = bench(truth.cohort, folder / "labels", chosen, say=print)
    rows = []
    for model in report.models:
        for fold in dict.fromkeys(card["fold"] for card in report.cells):
            for part in parts(report.prediction(model, fold)):
                on = truth.factors[part.section]["tumour"].to_numpy() > 0
                sets = Contrast("tumour", "other", on, ~on)
                found = agreement(*differential_of(part, sets), top=4)  # as many genes as tumour drives
                rows.append({"model": model, "tumour spots": int(on.sum()), **asdict(found)})
    table = pd.DataFrame(rows).groupby("model", sort=False).mean(numeric_only=True)
    yield (
        "Spots on tumour against all others, mean over the sections: of the 4 genes that differ most, how many are shared",
        table[["tumour spots", "genes", "top", "common", "by_chance", "same_sign", "effect_spearman"]].round(3),
    )


PARTS = {
    "main": main_table,
    "noise": noise_seeds,
    "paper": paper_table,
    "stain": stain_curve,
    "external": across_platforms,
    "labels": tumour_labels,
}


def run() -> None:
    """Runs the parts asked for and writes their tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer patients and points")
    parser.add_argument("--only", default=",".join(PARTS), help="parts joined by commas")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, default=None, help="folder of the runs; default: temporary")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        for part in given.only.split(","):
            tables = list(PARTS[part](given.work or Path(temporary), quick=given.quick))
            write(given.out, part, tables, quick=given.quick)


def write(out: Path, part: str, tables: list[tuple[str, pd.DataFrame]], *, quick: bool) -> None:
    """Markdown and JSON of one part, with command, machine and date."""
    card = fingerprint(part=part, quick=quick)
    command = f"python -m benchmarks.phantom --only {part}" + (" --quick" if quick else "")
    lines = [
        f"# Phantom: {part}",
        "",
        f"`{command}`, {date.today()}, {platform.processor() or platform.machine()}, "
        f"{card['threads']} threads, {card['device']}, torch {card['versions']['torch']}. Recipe `cpu`, seed 0.",
        "",
    ]
    for title, table in tables:
        lines += [f"## {title}", "", markdown(table), ""]
    (out / f"phantom-{part}.md").write_text("\n".join(lines), encoding="utf-8")
    values = {title: json.loads(table.reset_index().to_json(orient="records")) for title, table in tables}
    (out / f"phantom-{part}.json").write_text(
        json.dumps({"command": command, "card": card, "tables": values}, indent=1) + "\n"
    )


def markdown(table: pd.DataFrame) -> str:
    """A table in Markdown."""
    rows = [[table.index.name or "", *map(str, table.columns)], ["---"] * (len(table.columns) + 1)]
    for index, row in zip(table.index, table.itertuples(index=False), strict=True):
        rows.append([str(index), *(f"{v:.4f}" if isinstance(v, float) else str(v) for v in row)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


if __name__ == "__main__":
    run()
