"""Every predictor under one protocol: what each finds on the phantom, and what an epoch of it costs.

    python -m benchmarks.models [--quick] [--only accuracy,cost] [--models NAMES] [--work DIR]

Writes ``benchmarks/results/models-*.json`` and, from both, the page ``docs/models.md``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.phantom import settings
from histoweave._repro import fingerprint
from histoweave.batch import Card, Dims, Needs
from histoweave.bench.plan import zeros
from histoweave.bench.stats import mean_interval
from histoweave.bench.summary import Report
from histoweave.commands import bench
from histoweave.data.phantom import Phantom, phantom
from histoweave.feed import Feed
from histoweave.models import blank, card_of, create, list_models, split_specs
from histoweave.train import resolve
from histoweave.train.loop import fit

RESULTS, PAGE = Path(__file__).parent / "results", Path(__file__).parents[1] / "docs" / "models.md"
FAMILIES = ("local", "neighbourhood", "global", "noise")
SPOT_ONLY = Needs.EMB | Needs.WINDOW | Needs.PATIENT | Needs.COUNTS
WIDTH = 512  # of embeddings, for counts of parameters and for costs


def models() -> list[str]:
    """Every predictor of the table, and the one that is a model with another target."""
    names = [name for name in list_models() if card_of(name).task == "predict"]
    return [*names, "vitb[delta=on]"]


# -- accuracy on the phantom ------------------------------------------------------------------------------------------


def accuracy(folder: Path, chosen: list[str], *, quick: bool) -> list[dict[str, Any]]:
    """One row per model: correlation per gene family with its interval over patients, and pattern error."""
    truth = phantom(n_patients=4, spots=(10, 10) if quick else (16, 16), seed=11)
    if not quick:
        truth = phantom(n_patients=8, spots=(16, 16), seed=11)
    how = settings(
        truth, folder / "store", models=",".join(chosen), split="k-fold:2" if quick else "k-fold:4",
        recipe="tiny" if quick else "cpu",
    )  # fmt: skip
    report = bench(truth.cohort, folder / "models", how, say=print)
    return [row(report, truth, model, how.recipe) for model in chosen]


def row(report: Report, truth: Phantom, model: str, recipe: str) -> dict[str, Any]:
    """What one model reached."""
    own = report.rows[report.rows["model"] == model]
    own = own.assign(family=own["gene"].map(truth.families))
    spec, card = resolve(model, recipe), next(card for card in report.cells if card["model"] == model)
    made: dict[str, Any] = {
        "model": model,
        "context": bool(spec.needs & ~SPOT_ONLY),
        "init": card["trunk"] or ("frozen encoder: ImageNet" if spec.embeds else "–"),
    }
    for family in FAMILIES:
        part = own[(own["metric"] == "pcc") & (own["family"] == family)]
        made[family] = mean_interval(part.groupby("patient")["value"].mean().to_numpy())
    pattern = own[(own["metric"] == "mse_pattern") & (own["family"] == "local")]
    made["pattern"] = float(pattern.groupby("patient")["value"].mean().mean())
    made["parameters"] = card["parameters"]
    return made


# -- cost of an epoch -------------------------------------------------------------------------------------------------


def cost(chosen: list[str], *, quick: bool) -> list[dict[str, Any]]:
    """Seconds of an epoch, validation included, and peak memory: each model in a process of its own."""
    rows = []
    for recipe in ("cpu",) if quick else ("cpu", "paper"):
        for model in chosen:
            if resolve(model, recipe).card.learns != "gradient":
                continue
            command = [sys.executable, "-m", "benchmarks.models", "--one", model, "--recipe", recipe]
            done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
            if done.returncode:
                raise RuntimeError(f"{model}, recipe {recipe}: {done.stderr[-2000:]}")
            rows.append({"model": model, "recipe": recipe, **json.loads(done.stdout.splitlines()[-1])})
            print(rows[-1])
    return rows


def one(model: str, recipe: str) -> dict[str, float]:
    """Two epochs of a model on embeddings of zeros; the second one's time, and memory above what was there before."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    spec = resolve(model, recipe)
    side = 6 if recipe == "paper" else 12  # an epoch of the largest networks takes minutes for a few hundred spots
    train = phantom(n_patients=2, spots=(side, side), genes={"noise": 194}, um_per_px=5.0, seed=1)  # 250 genes
    view = settings(train, Path(), out_px=224).view()
    feed = Feed(
        view.fit(train.cohort), train.cohort, zeros(train.cohort, WIDTH, 224), spec.needs, device=device, hops=spec.hops
    )
    torch.manual_seed(0)
    module: Any = create(spec.name, Dims(genes=250, emb=feed.width), **spec.args).to(device)  # type: ignore[attr-defined]
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
    if hasattr(module, "index"):
        module.index(feed)
    times = [time.perf_counter()]
    held = feed.inner_fold() == 0
    fit(
        module, feed.only(~held), feed.only(held), replace(spec.recipe, epochs=2, precision="32-true"), seed=0,
        progress=lambda *_: times.append(time.perf_counter()),
    )  # fmt: skip
    made = {"seconds": times[2] - times[1], "spots": feed.n, "parameters": sum(p.numel() for p in module.parameters())}
    if device == "cuda":
        return made | {"device": torch.cuda.get_device_name(), "mb": torch.cuda.max_memory_allocated() / 2**20}
    return made | {"device": "CPU", "mb": memory("VmHWM") - before}


def memory(field: str) -> float:
    """MB that this process holds now (``VmRSS``) or held at most (``VmHWM``), as Linux counts them."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[field].split()[0]) / 1024


# -- the page ---------------------------------------------------------------------------------------------------------


def page(found: list[dict[str, Any]], costs: list[dict[str, Any]], cards: dict[str, Any]) -> str:
    """The page of models, from both results."""
    mean = next((r["pattern"] for r in found if r["model"] == "mean"), np.nan)
    lines = ["# Models", "", (Path(__file__).parent / "models_intro.md").read_text(encoding="utf-8").rstrip(), ""]
    lines += ["## On the phantom, all on the same frozen encoder", "", about(cards["accuracy"]), ""]
    lines += table(
        ["model", "reads", "local PCC (95 %)", "local pattern MSE / mean's", *FAMILIES[1:], "parameters (as run)", "init"],
        [
            [f"`{r['model']}`", "context" if r["context"] else "spot", interval(r["local"]), f"{r['pattern'] / mean:.3f}",
             *(f"{r[f][0]:.3f}" for f in FAMILIES[1:]), f"{r['parameters']:,}", r["init"]]
            for r in found
        ],
    )  # fmt: skip
    lines += ["", "## As published, for 250 genes and 512-d embeddings", ""]
    lines += table(
        ["model", "parameters", "BC1 PCC(M)", "BC1 MSE", "SCC PCC(M)", "source", "what was wrong in the public code"],
        [
            published(name)
            for name in dict.fromkeys(r["model"].partition("[")[0] for r in found)
            if not card_of(name).control
        ],
    )
    lines += ["", "## Time of an epoch and peak memory", "", about(cards["cost"]), ""]
    by = {(c["model"], c["recipe"]): c for c in costs}
    lines += table(
        [
            "model",
            *(f"{recipe}: {what}" for recipe in ("cpu", "paper") for what in ("s / 1000 spots", "MB", "parameters")),
        ],
        [
            [f"`{m}`", *(v for recipe in ("cpu", "paper") for v in spent(by.get((m, recipe))))]
            for m in dict.fromkeys(c["model"] for c in costs)
        ],
    )
    return "\n".join(lines) + "\n"


def about(card: dict[str, Any]) -> str:
    """Command, date and machine of a result."""
    return (
        f"`{card['command']}`, {card['date']}, {card['threads']} threads, {card['device']}, torch "
        f"{card['versions']['torch']}."
    )


def published(name: str) -> list[str]:
    """One line of the table of publications."""
    card: Card = card_of(name)
    model: Any = blank(name, {}, Dims(genes=250, emb=WIDTH))
    numbers = [card.published.get(key) for key in ("BC1 PCC(M)", "BC1 MSE", "SCC PCC(M)")]
    shown = ["–" if n is None else f"{n:.3f}" for n in numbers]
    size = f"{sum(p.numel() for p in model.parameters()):,}"
    return [f"`{name}`", size, *shown, card.citation, card.wrong or "nothing known that changes a result"]


def interval(value: list[float]) -> str:
    """Mean and interval."""
    return f"{value[0]:.3f} ({value[1]:.3f} to {value[2]:.3f})"


def spent(row: dict[str, Any] | None) -> list[str]:
    """Cells of a cost."""
    if row is None:
        return ["–"] * 3
    return [f"{1000 * row['seconds'] / row['spots']:.2f}", f"{row['mb']:,.0f}", f"{row['parameters']:,}"]


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """A table in Markdown."""
    return ["| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows]]


def run() -> None:
    """Runs the parts asked for and writes results and page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny cohort and recipes: whether it runs")
    parser.add_argument("--only", default="accuracy,cost", help="parts joined by commas")
    parser.add_argument("--models", default=None, help="default: every predictor of the table; rows of others stay")
    parser.add_argument("--work", type=Path, default=None, help="folder of the run, taken up again; default: temporary")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--recipe", default="cpu", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given.one, given.recipe)))
        return
    chosen = split_specs(given.models) if given.models else models()
    with tempfile.TemporaryDirectory() as temporary:
        for part in given.only.split(","):
            folder = given.work or Path(temporary)
            made = (
                accuracy(folder, chosen, quick=given.quick) if part == "accuracy" else cost(chosen, quick=given.quick)
            )
            card = fingerprint(part=part, quick=given.quick) | {
                "command": f"python -m benchmarks.models --only {part}",
                "date": str(date.today()),
            }
            given.out.mkdir(parents=True, exist_ok=True)
            path = given.out / f"models-{part}.json"
            if given.models and path.exists():  # rows of other models stay
                asked = {row["model"] for row in made}
                kept = json.loads(path.read_text(encoding="utf-8"))["rows"]
                made = [row for row in kept if row["model"] not in asked] + made
            path.write_text(json.dumps({"card": card, "rows": made}, indent=1) + "\n", encoding="utf-8")
    stored = {part: given.out / f"models-{part}.json" for part in ("accuracy", "cost")}
    if all(path.exists() for path in stored.values()):
        read = {part: json.loads(path.read_text(encoding="utf-8")) for part, path in stored.items()}
        cards = {part: value["card"] for part, value in read.items()}
        given.page.write_text(page(read["accuracy"]["rows"], read["cost"]["rows"], cards), encoding="utf-8")


if __name__ == "__main__":
    run()
