"""Memory of stLearn-SME at size: a section of 100,000 spots × 128 genes, each form in a process of its own.

    python -m benchmarks.completion_memory [--spots 100000] [--genes 128]

``sme[weights=ge]`` runs as the command ``complete`` runs it, from counts to a table; ``sme[weights=all]`` on made-up image
embeddings, the model alone. Writes ``benchmarks/results/completion-memory.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import numpy as np
import torch
from scipy import sparse

import histoweave as hw
from benchmarks.clock import peak_mib
from benchmarks.speed import RESULTS, machine
from histoweave.batch import Batch, Dims
from histoweave.models import create

FORMS = ("ge", "all")
LIMIT_GB = 4
EMBEDDING, DENSITY = 1280, 0.4


def made_up(n: int, g: int) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Counts (n, g) of a hexagonal lattice, and the places of its spots (n, 2) in µm."""
    rng, side = np.random.default_rng(0), int(np.ceil(np.sqrt(n)))
    row, col = np.divmod(np.arange(n), side)
    xy = np.column_stack([100.0 * col + 50.0 * (row % 2), 100.0 * np.sqrt(0.75) * row])
    return sparse.random(n, g, DENSITY, "csr", rng=rng, data_rvs=lambda k: rng.integers(1, 9, k)), xy


def one(form: str, n: int, g: int) -> dict[str, float]:
    """Runs a form once in this process: seconds, and its largest resident size before and in it."""
    counts, xy = made_up(n, g)
    before, begin = peak_mib(), time.perf_counter()
    if form == "ge":
        section = hw.make_section(
            id="s", patient="p", counts=counts, genes=[f"G{i}" for i in range(g)], xy=xy, platform="visium", um_per_px=1.0
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as store:
            how = hw.CompleteSettings(method="sme[weights=ge]", panel=f"top-mean:{g}", store=store)
            made = hw.complete(hw.Cohort([section]), None, how).X
    else:
        expr = torch.from_numpy(np.log1p(counts.toarray()).astype(np.float32))
        batch = Batch(
            spot=torch.arange(n), section=torch.zeros(n, dtype=torch.long), y=expr, y_mask=expr > 0, expr=expr, seen=expr > 0,
            emb=torch.randn(n, EMBEDDING, generator=torch.Generator().manual_seed(0)), xy=torch.from_numpy(xy),
        )  # fmt: skip
        made = create("sme", Dims(genes=g, emb=EMBEDDING))(batch).numpy()  # type: ignore[operator]
    if made.shape != (n, g) or not np.isfinite(made).all():
        raise RuntimeError(f"sme[weights={form}] gave {made.shape}, finite: {bool(np.isfinite(made).all())}")
    return {"seconds": time.perf_counter() - begin, "before_mib": before, "peak_mib": peak_mib()}


def page(rows: Sequence[dict[str, float]], n: int, g: int, load: float) -> str:
    """The table."""
    about = machine(load)
    lines = [
        "# Memory of stLearn-SME",
        "",
        f"`python -m benchmarks.completion_memory`, {date.today()}: {about['processor']}, {about['torch_threads']} torch "
        f"threads, load before the run {load:.2f}. {n:,} spots of one section × {g} genes, {DENSITY:.0%} of them measured.",
        "",
        "Largest resident size of a process of its own, data included. A matrix of all pairs of spots in float64 would be "
        f"{n * n * 8 / 1e9:,.0f} GB.",
        "",
        f"| form | s | before, GB | peak GB | below {LIMIT_GB} GB |",
        "| --- | --- | --- | --- | --- |",
    ]
    for form, row in zip(FORMS, rows, strict=True):
        peak = row["peak_mib"] * 2**20 / 1e9
        lines.append(
            f"| `sme[weights={form}]` | {row['seconds']:.0f} | {row['before_mib'] * 2**20 / 1e9:.2f} | {peak:.2f} | "
            f"{'yes' if peak < LIMIT_GB else 'NO'} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.completion_memory")
    parser.add_argument("--spots", type=int, default=100_000)
    parser.add_argument("--genes", type=int, default=128)
    parser.add_argument("--form", choices=FORMS, help="one form in this process, as JSON")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    if given.form:
        print(json.dumps(one(given.form, given.spots, given.genes)))
        return
    load = os.getloadavg()[0]
    size = ["--spots", str(given.spots), "--genes", str(given.genes)]
    rows = []
    for form in FORMS:
        line = [sys.executable, "-m", "benchmarks.completion_memory", "--form", form, *size]
        out = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]).stdout
        rows.append(json.loads(out.splitlines()[-1]))
    text = page(rows, given.spots, given.genes, load)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "completion-memory.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
