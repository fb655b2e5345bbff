"""Imputers: what they need of time and memory at size, and how well they fill in held-out genes of a real tumour.

    python -m benchmarks.imputers memory --method spage [--cells 100000] [--reference 20000] [--times 1]
    python -m benchmarks.imputers pdac FOLDER [--methods spage,anchors]

`memory` adds a row to ``benchmarks/results/imputers.json`` and writes ``imputers.md`` from all rows; `pdac` writes
``imputers-pdac.md`` and ``.json`` likewise from ``FOLDER/scrna.h5ad`` and ``FOLDER/st.h5ad``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from benchmarks.clock import peak_mib
from benchmarks.phantom import markdown
from benchmarks.speed import machine
from histoweave._repro import versions
from histoweave.bench.metrics import pearson, spearman
from histoweave.models import split_specs
from histoweave.models.impute import create_imputer, list_imputers
from histoweave.models.impute._imputed import log_normalised

RESULTS = Path(__file__).parent / "results"
SHARED, HIDDEN, TYPES = 150, 200, 25  # genes and cell types of made-up counts
FOLDS = 5
LIMIT_GB = 8
LINEAR = {"ridge-shares": 1e4, "gimvi": 1e4, "tangram": 1.0}  # no logarithms; what makes counts per 10,000 of their values


# -- time and memory ----------------------------------------------------------------------------------------------


def made_up(cells: int, genes: int, profiles: np.ndarray, rng: np.random.Generator) -> tuple[Any, np.ndarray]:
    """Counts (cells, genes) of cells of different types and sizes, and their types."""
    types = rng.integers(0, len(profiles), cells)
    parts = []
    for start in range(0, cells, 10_000):
        here = types[start : start + 10_000]
        rate = profiles[here, :genes] * rng.gamma(3, 1 / 3, (len(here), 1)) * rng.gamma(4, 1 / 4, (len(here), genes))
        parts.append(sparse.csr_matrix(rng.poisson(rate).astype(np.float32)))
    return sparse.vstack(parts, format="csr"), types


def one(method: str, cells: int, reference: int) -> dict[str, Any]:
    """Runs an imputer once in this process: seconds and the largest memory before it and in it."""
    rng = np.random.default_rng(0)
    profiles = rng.gamma(0.3, 2, (TYPES, SHARED + HIDDEN))
    source, types = made_up(reference, SHARED + HIDDEN, profiles, rng)
    drift = rng.gamma(8, 1 / 8, (1, SHARED + HIDDEN))  # each gene is caught more or less well by the other assay
    target, _ = made_up(cells, SHARED, profiles * drift, rng)
    imputer, before = create_imputer(method), peak_mib()
    begin, worked = time.perf_counter(), time.process_time()
    made = imputer(source, target, seed=0, groups=types)
    seconds, worked = time.perf_counter() - begin, time.process_time() - worked
    finite = bool(np.isfinite(made.values).all())
    return {
        "seconds": seconds, "cpu_seconds": worked, "before_mib": before, "peak_mib": peak_mib(), "finite": finite,
        "notes": made.notes,
    }  # fmt: skip


def memory(method: str, cells: int, reference: int, times: float, command: str) -> str:
    """Measures in a process of its own, keeps the row, and gives the page of all rows."""
    load = os.getloadavg()[0]
    line = subprocess.run(
        [sys.executable, "-m", "benchmarks.imputers", "one", "--method", method,
         "--cells", str(cells), "--reference", str(reference)],
        check=True, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1],
    ).stdout.splitlines()[-1]  # fmt: skip
    row = {"method": method, "cells": cells, "reference": reference, "times": times, **json.loads(line)}
    row |= {"command": command, "date": date.today().isoformat(), "machine": machine(load)}
    kept = RESULTS / "imputers.json"
    rows = json.loads(kept.read_text()) if kept.exists() else []
    rows = [old for old in rows if old["command"] != command] + [row]
    order = {name: i for i, name in enumerate(list_imputers())}
    rows.sort(key=lambda r: (order[r["method"].partition("[")[0]], r["method"], r["cells"]))
    kept.write_text(json.dumps(rows, indent=1) + "\n")
    text = memory_page(rows)
    (RESULTS / "imputers.md").write_text(text, encoding="utf-8")
    return text


def memory_page(rows: Sequence[dict[str, Any]]) -> str:
    """The table of time and memory."""
    about = sorted({f"{r['machine']['processor']}, {r['machine']['torch_threads']} torch threads" for r in rows})
    lines = [
        "# Imputers: time and memory",
        "",
        f"{SHARED} shared and {HIDDEN} imputed genes, made-up counts of {TYPES} cell types; each row is a process of its "
        f"own. {'; '.join(about)}.",
        "",
        "Memory is the largest resident size of the process, counts included. Where others kept the machine busy (load "
        "before the run, over 1 minute), the seconds of the processor are what the job took. Where only a part of the job "
        "was run, the whole is extrapolated: the part's seconds of the processor, times the number behind it.",
        "",
        "| imputer | target cells | reference cells | s | s of the processor | whole job, s | peak GB | below 8 GB | load before "
        "| command |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in rows:
        gb = r["peak_mib"] * 2**20 / 1e9
        part = f"{r['cpu_seconds'] * r['times']:,.0f} (extrapolated, × {r['times']:g})"
        whole = "measured" if r["times"] == 1 else part
        verdict = "yes" if gb < LIMIT_GB else "NO"
        finite = "" if r["finite"] else ", NOT finite"
        lines.append(
            f"| `{r['method']}` | {r['cells']:,} | {r['reference']:,} | {r['seconds']:.0f} | {r['cpu_seconds']:.0f} | {whole} "
            f"| {gb:.2f} | {verdict}{finite} | {r['machine']['load_before']} | `{r['command']}`, {r['date']} |"
        )
    return "\n".join(lines) + "\n"


# -- held-out genes of a real tumour ------------------------------------------------------------------------------


def pdac(folder: Path, methods: Sequence[str], command: str) -> str:
    """Five folds of the genes in common, each hidden from the target in turn; rows of other methods are kept."""
    reference, target = ad.read_h5ad(folder / "scrna.h5ad"), ad.read_h5ad(folder / "st.h5ad")
    genes = np.array([gene for gene in target.var_names if gene in set(reference.var_names)])
    source, spots = sparse.csr_matrix(reference[:, genes].X), sparse.csr_matrix(target[:, genes].X)
    # The other genes of the reference together, as a last column: totals are over all of them.
    rest = reference.X.sum(axis=1, dtype=np.float64) - source.sum(axis=1, dtype=np.float64)
    source = sparse.hstack([source, sparse.csr_matrix(np.asarray(rest).reshape(-1, 1))], format="csr")
    truth = log_normalised(spots, total=np.asarray(target.X.sum(axis=1)).ravel()).toarray().astype(np.float32)
    groups = reference.obs["cell_type"].astype(str).to_numpy()
    fold = np.random.default_rng(0).permutation(len(genes)) % FOLDS
    kept = RESULTS / "imputers-pdac.json"
    rows = json.loads(kept.read_text()) if kept.exists() else {}
    for method in methods:
        imputer, made, worked = create_imputer(method), np.empty_like(truth), time.process_time()
        for k in range(FOLDS):
            shown, hidden = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
            found = imputer(source[:, [*shown, *hidden, len(genes)]], spots[:, shown], seed=0, groups=groups)
            made[:, hidden] = found.values[:, :-1]
        worked = time.process_time() - worked
        per = LINEAR.get(method.partition("[")[0])
        made = made if per is None else np.log1p(per * made)
        rows[method] = _scores(truth, made, fold) | {"s of the processor": round(worked), "command": command}
        kept.write_text(json.dumps(rows, indent=1) + "\n")
    order = {name: i for i, name in enumerate(list_imputers())}
    rows = dict(sorted(rows.items(), key=lambda item: (order[item[0].partition("[")[0]], item[0])))
    text = pdac_page(rows, spots.shape, source.shape[0])
    (RESULTS / "imputers-pdac.md").write_text(text, encoding="utf-8")
    return text


def _scores(truth: np.ndarray, made: np.ndarray, fold: np.ndarray) -> dict[str, object]:
    """Medians over genes; one that is measured as the same in all spots has no correlation, one imputed so has 0."""
    row: dict[str, object] = {}
    varies = truth.std(axis=0) > 0
    for name, score in (("Spearman", spearman), ("PCC", pearson)):
        values = np.asarray(score(truth[:, varies], made[:, varies]))
        by_fold = [np.nanmedian(values[fold[varies] == k]) for k in range(FOLDS)]
        row |= {
            f"median {name}": f"{np.nanmedian(values):.3f}",
            f"{name}, folds": f"{min(by_fold):.3f} to {max(by_fold):.3f}",
            f"{name}, upper tenth": f"{np.nanquantile(values, 0.9):.3f}",
        }
    return row | {"genes": int(varies.sum())}


def pdac_page(rows: Mapping[str, Mapping[str, Any]], shape: tuple[int, int], reference: int) -> str:
    """The table of held-out genes."""
    table = pd.DataFrame({f"`{method}`": row for method, row in rows.items()}).T.rename_axis("imputer")
    commands = sorted(set(table.pop("command")))
    about = machine(os.getloadavg()[0])
    return "\n".join(
        [
            "# Imputers on held-out genes of a pancreatic tumour",
            "",
            ", ".join(f"`{command}`" for command in commands) + f", {date.today()}: {about['processor']}, "
            f"{about['torch_threads']} torch threads. "
            + ", ".join(f"{name} {number}" for name, number in versions().items())
            + ".",
            "",
            f"{shape[0]} spots of one section, {reference:,} single cells of the same tumour as reference, {shape[1]:,} genes "
            f"in common in {FOLDS} folds: a fold is hidden from the spots and imputed from the others. Each gene is scored "
            "over all spots against ln(1 + counts per 10,000 of all genes of the spot). Shares and counts that an imputer "
            "gives are brought to ln(1 + per 10,000) first; the others give logarithms. Medians are over genes; a gene that "
            "is measured as the same in all spots is not scored, and one that is imputed so scores 0, as the mean of the "
            "reference does. Spots are 100 µm and hold several cells. One section and one seed: nothing is said of other "
            "samples. Genes of low counts bound what can be reached.",
            "",
            markdown(table),
            "",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.imputers", description=(__doc__ or "").splitlines()[0])
    jobs = parser.add_subparsers(dest="job", required=True)
    for name in ("memory", "one"):
        job = jobs.add_parser(name)
        job.add_argument("--method", required=True, help="an imputer with its arguments")
        job.add_argument("--cells", type=int, default=100_000)
        job.add_argument("--reference", type=int, default=20_000)
    jobs.choices["memory"].add_argument("--times", type=float, default=1.0, help="how many times this is the whole job")
    job = jobs.add_parser("pdac")
    job.add_argument("folder", type=Path)
    job.add_argument("--methods", default="", help="imputers joined by commas; all of the table if left out")
    given = parser.parse_args(arguments)
    command = " ".join(["python -m benchmarks.imputers", *(sys.argv[1:] if arguments is None else arguments)])
    if given.job == "one":
        print(json.dumps(one(given.method, given.cells, given.reference)))
    elif given.job == "memory":
        print(memory(given.method, given.cells, given.reference, given.times, command))
    else:
        print(pdac(given.folder, split_specs(given.methods) or list_imputers(), command))


if __name__ == "__main__":
    main()
