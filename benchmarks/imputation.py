"""Imputation on real Xenium counts: two bands of one section of human pancreas, from A to B and from B to A.

    python -m benchmarks.imputation choose|run|reference|page [--work DIR] [--genes 50,100,150,200] [--models NAMES]
                                    [--seeds N] [--threads N]

``choose`` compares forms of xMINT on parts of the slide that nothing else looks at; ``run`` fits and scores every method
for every number of shared genes in both directions; ``reference`` imputes the same bands from single cells of other
tumours, ``pdac/scrna.h5ad``; each goes on where it stopped. ``page`` writes ``benchmarks/results/imputation-xenium.md``
from what is there.

The bands are neighbours, A above B. 500 µm between them are left out, half on either side. It is one slide of
fluorescence: nothing here is about H&E, other samples or other patients.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from datetime import date
from pathlib import Path

import pandas as pd

from histoweave import _keys as K
from histoweave._repro import fingerprint
from histoweave.bench.markdown import pipe
from histoweave.bench.summary import Report
from histoweave.bio import leiden, log_normalised
from histoweave.commands import bench
from histoweave.data.image import SlideImage
from histoweave.data.io import read_cohort
from histoweave.data.section import Cohort, Section
from histoweave.data.split import Split
from histoweave.filling import reference
from histoweave.pl import Plate, marker_map
from histoweave.pl.imputation import boxes_by_m
from histoweave.report import write_html
from histoweave.settings import BenchSettings

RESULTS = Path(__file__).parent / "results"
NAME = "imputation-xenium"
GUARD_UM, BAND_PX = 500.0, 2295
PART_PX = (5000, 9500)  # of the bands' 17,078 px in x: what a machine without an accelerator gets through
CHOOSE_PX = {"left": (0, 4400), "right": (11600, 14000)}  # of band A: 255 µm or more from the part above, and as many cells
SHARED = (50, 100, 150, 200)
COMMON = 200  # genes imputed at every number of shared genes are those after the first 200
DRAWS, DRAWN = 5, 100  # of the genes in common with the single cells: draws of shared ones, and how many they are
MAPS = 3  # genes that are drawn
KL = "objective=kl,scale=log"
LONG = f"{KL},unit=off,epochs=24"
ALONE = f"{LONG},length=64"  # the best of a network by itself,
PLUS = f"{ALONE},blend=on"  # and of
FORMS = (
    "", "epochs=24", "epochs=100", "objective=kl", "scale=log", KL, f"{KL},skip=on", f"{KL},unit=off", LONG, ALONE, PLUS,
)
REFERENCE = "spage,anchors,gimvi[epochs=20],tangram[mode=clusters,density=uniform]"
METHODS = f"{REFERENCE},xmint,xmint[image=off],xmint[image=off,{ALONE}],xmint[image=off,{PLUS}],xmint[{PLUS}]"
CONTROLS = "gene-mean,knn-expression,ridge-expression,ridge-shares,pca-knn"


def _data() -> Path:
    return Path(os.environ.get("HISTOWEAVE_DATA", "../shared/data"))


def bands() -> Cohort:
    """Both bands without the guard strip between them, and within `PART_PX`."""
    half = GUARD_UM / 2
    return Cohort(_part(name, name, PART_PX, half) for name in "AB")


def _part(band: str, name: str, across: tuple[int, int], guard_um: float = 0.0) -> Section:
    """Cells of a band between two px in x, without those near the other band; with clusters of all their genes."""
    root = _data() / "xenium_pancreas"
    section = read_cohort(str(root / f"{band}.h5ad"))[0]
    assert section.um_per_px is not None
    guard = guard_um / section.um_per_px
    x, y = section.xy.T
    keep = (x >= across[0]) & (x < across[1]) & ((y < BAND_PX - guard) if band == "A" else (y >= guard))
    spots = section.spots[keep].copy()
    clusters = leiden(log_normalised(spots.X))  # read where the cells are a reference
    spots.obs[K.GROUP] = pd.Categorical(clusters.astype(str))
    image = SlideImage.open(root / f"{band}.jpg", section.um_per_px)
    return replace(section.with_spots(spots), id=name, patient="pancreas", image=image)


def directions() -> list[Split]:
    """A → B and B → A; both bands are of one patient, which these splits say."""
    return [Split(train=(a,), test=(b,), name=f"{a} → {b}", by="section") for a, b in (("A", "B"), ("B", "A"))]


def settings(work: Path, models: str, hide: str, *, seeds: int, threads: int | None, name: str) -> BenchSettings:
    """What all runs share."""
    return BenchSettings(
        models=models, controls=CONTROLS, hide=hide, recipe="cpu", seeds=seeds, threads=threads, store=str(work / "store"),
        max_hours=1000, name=name,
    )  # fmt: skip


def choose(work: Path, threads: int | None) -> None:
    """Forms of xMINT, without the image, from one end of band A to the other; 100 shared genes, one seed."""
    cohort = Cohort(_part("A", name, across) for name, across in CHOOSE_PX.items())
    forms = ",".join(f"xmint[{','.join(['image=off', *filter(None, [form])])}]" for form in FORMS)
    how = settings(work, forms, "genes:first:100", seeds=1, threads=threads, name="xenium pancreas, forms of xMINT")
    split = Split(train=("right",), test=("left",), name="right → left", by="section")
    bench(cohort, work / "choose", how, splits=(split,), say=print)


def run(work: Path, genes: list[int], models: str, seeds: int, threads: int | None) -> None:
    """Every method for every number of shared genes, in both directions."""
    cohort = bands()
    for m in genes:
        how = settings(
            work, models, f"genes:first:{m}", seeds=seeds, threads=threads, name=f"xenium pancreas, {m} shared genes"
        )
        report = bench(cohort, work / f"m{m}", how, splits=tuple(directions()), say=print)
        write_html(report, cohort)


def from_single_cells(work: Path, models: str, threads: int | None) -> None:
    """The reference-based methods on both bands, from single cells of other tumours."""
    cells = reference(_data() / "pdac" / "scrna.h5ad")
    cohort = Cohort([*cells, *bands()])
    splits = tuple(Split(train=cells.ids, test=(band,), name=f"cells → {band}") for band in "AB")
    for draw in range(DRAWS):
        hide = f"genes:random:{DRAWN}:{draw}"
        how = settings(
            work, models, hide, seeds=1, threads=threads, name=f"xenium pancreas from single cells, draw {draw}"
        )
        bench(cohort, work / f"cells{draw}", how, splits=splits, say=print)


def page(work: Path, genes: list[int]) -> None:
    """The page, from what was run."""
    reports = {m: Report.read(work / f"m{m}") for m in genes if (work / f"m{m}" / "run.json").exists()}
    cohort = bands()
    seeds = sorted({card["seed"] for report in reports.values() for card in report.cells})
    lines = [
        "# Imputation on Xenium: two bands of one section",
        "",
        f"`python -m benchmarks.imputation choose|run|reference|page`, {date.today()}, {os.cpu_count()} cores, "
        f"torch {fingerprint()['versions']['torch']}.",
        "",
        f"10x Xenium, human pancreas, 377 genes; {', '.join(f'band {s.id}: {s.n} cells' for s in cohort)} in a part of "
        f"{(PART_PX[1] - PART_PX[0]) * 0.425 / 1000:.1f} mm, {GUARD_UM:g} µm between the bands left out. **One slide, "
        "fluorescence**: nothing here is about H&E, other samples or other patients, and two directions of one pair of "
        "bands rank nothing. Shared genes are the first m of the panel, which is in alphabetical order: one arbitrary draw. "
        f"m = {', '.join(map(str, reports))}, seeds {seeds} of what is trained by gradient; "
        "a dash is a method that was not run at that m.",
        "",
        "Spearman correlation per gene over bins of 54 µm with 10 cells or more, of expression over its sum over the imputed "
        f"genes; mean over the {377 - COMMON} genes that are imputed at every m, then over both directions and the seeds "
        "(± spread over directions and seeds).",
        "",
        "## Genes imputed at every number of shared genes",
        "",
        pipe(_table(reports, "spearman_bins", common=True)),
        "",
        "## The same on each method's own scale",
        "",
        "Values as each method gives them. To bring them to shares, logarithms are undone, which costs no correlation, and a "
        "cell is divided by its sum, which does where that sum is imputed with more noise than a gene. xMINT and ridge-shares "
        "are made on the scale of shares.",
        "",
        pipe(_table(reports, "spearman_bins_own", common=True)),
        "",
        "## All imputed genes",
        "",
        pipe(_table(reports, "spearman_bins", common=False)),
        "",
        "## Per cell: Pearson correlation, genes imputed at every m",
        "",
        pipe(_table(reports, "pcc", common=True)),
        "",
        *_chosen(work),
        *_from_single_cells(work),
        *_figures(work, reports, cohort),
        *_recipes(reports),
    ]
    (RESULTS / f"{NAME}.md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


def _chosen(work: Path) -> list[str]:
    """Forms of xMINT on the parts of the slide that choose."""
    if not (work / "choose" / "run.json").exists():
        return []
    report = Report.read(work / "choose")
    means = report.summary.pivot(index="model", columns="metric", values="mean").reindex(report.models)
    metrics = ["spearman_bins", "spearman_bins_own", "pcc"]
    best = {card["model"]: card["best_epoch"] + 1 for card in report.cells if card["history"]}
    table = means[metrics].round(3).assign(**{"best epoch": [best.get(m, "–") for m in report.models]})
    return [
        "## Chosen elsewhere on the slide",
        "",
        "Forms of xMINT without the image, learnt at the right end of band A and scored at its left end, 100 shared genes, one "
        "seed; no cell of the tables above is in it, but the nearest are 255 µm away.",
        "",
        pipe(table),
        "",
    ]


def _from_single_cells(work: Path) -> list[str]:
    """The reference-based methods with single cells of other tumours."""
    draws = [Report.read(path.parent) for path in sorted(work.glob("cells*/run.json"))]
    if not draws:
        return []
    columns = {}
    for metric in ("spearman_bins", "spearman_bins_own", "pcc"):
        rows = pd.concat([r.rows[r.rows["metric"] == metric].assign(draw=i) for i, r in enumerate(draws)])
        runs = rows.groupby(["model", "draw", "fold"], observed=True)["value"].mean()
        mean, sd = runs.groupby("model").mean(), runs.groupby("model").std(ddof=0)
        columns[metric] = {model: f"{mean[model]:.3f} ± {sd[model]:.3f}" for model in draws[0].models}
    one = draws[0]
    return [
        "## From single cells of other tumours",
        "",
        f"The same cells of both bands; reference: single cells of pancreatic tumours (GSE111672), {len(one.genes) + DRAWN} "
        f"genes in common, of which {DRAWN} are shared in each of {len(draws)} random draws and {len(one.genes)} imputed; "
        "± spread over draws and bands.",
        "",
        pipe(pd.DataFrame(columns).rename_axis("model")),
        "",
    ]


def _table(reports: dict[int, Report], metric: str, *, common: bool) -> pd.DataFrame:
    """Models × numbers of shared genes: mean over genes, directions and seeds ± spread over directions and seeds."""
    columns = {}
    for m, report in reports.items():
        rows = report.rows[report.rows["metric"] == metric]
        if common:
            always = set(rows["gene"]) & set.intersection(*(set(r.rows["gene"]) for r in reports.values()))
            rows = rows[rows["gene"].isin(always)]
        runs = rows.groupby(["model", "seed", "fold"])["value"].mean()
        mean, sd = runs.groupby("model").mean(), runs.groupby("model").std(ddof=0)
        columns[f"m = {m}"] = {model: f"{mean[model]:.3f} ± {sd[model]:.3f}" for model in report.models}
    return pd.DataFrame(columns).fillna("–").rename_axis("model")


def _per_gene(reports: dict[int, Report], metric: str) -> pd.DataFrame:
    """Columns gene, model, m, value: mean over directions and seeds of the genes that are imputed at every m."""
    parts = []
    for m, report in reports.items():
        rows = report.rows[report.rows["metric"] == metric]
        value = rows.groupby(["model", "gene"], observed=True)["value"].mean().reset_index()
        parts.append(value.assign(m=m))
    table = pd.concat(parts, ignore_index=True)
    always = set.intersection(*(set(part["gene"]) for part in parts))
    order = {model: i for report in reports.values() for i, model in enumerate(report.models)}
    return table[table["gene"].isin(always)].sort_values("model", key=lambda names: names.map(order), kind="stable")


def _figures(work: Path, reports: dict[int, Report], cohort: Cohort) -> list[str]:
    """Boxes over genes by m; and in the working folder, maps of the genes best told, by all methods at the largest m, A → B."""
    table = _per_gene(reports, "spearman_bins")
    last = reports[max(reports)]
    controls = {card["model"] for card in last.cells if card["control"]}
    boxes_by_m(table, controls=controls).savefig(RESULTS / f"{NAME}-genes.svg", metadata={"Date": None})
    best = table[table["m"] == max(reports)].groupby("gene")["value"].median().nlargest(MAPS).index
    fold = next(iter(last.card["folds"]))
    made = {model: last.prediction(model, fold) for model in last.models}
    (section,) = cohort.subset(last.card["folds"][fold])
    rows = last.rows[(last.rows["metric"] == "pcc") & (last.rows["fold"] == fold)]
    for gene in best:
        truth = next(iter(made.values()))[:, [gene]].layers["truth"].ravel()
        shown = {model: one[:, [gene]].X.ravel() for model, one in made.items()}
        pcc = rows[rows["gene"] == gene].groupby("model", observed=True)["value"].mean().to_dict()
        figure = marker_map(Plate.of(section), gene, truth, shown, pcc=pcc, units=str(last.cells[0]["units"]))
        figure.savefig(work / f"{gene}.png", dpi=130, facecolor="white")
    return [
        "## Per gene, by the number of shared genes",
        "",
        f"![boxes]({NAME}-genes.svg)",
        "",
        f"Maps of {', '.join(best)} ({fold}, {max(reports)} shared genes), measured and by every method, are in the working "
        "folder, and of other genes in the report of each run; they show the slide, which is not kept here.",
        "",
    ]


def _recipes(reports: dict[int, Report]) -> list[str]:
    """What every trained model was given."""
    last = next(iter(reports.values()))
    lines = [
        "## How they were run",
        "",
        "gimVI: 20 epochs instead of 200, in which its prior is hardly phased in. Tangram places groups (Leiden clusters of "
        "the reference, of all its genes; the cell types of single cells), equally dense everywhere. xMINT: recipe `cpu`.",
        "",
    ]
    for model in last.models:
        card = next(c for c in last.cells if c["model"] == model)
        history = f", {len(card['history'])} epochs" if card["history"] else ""
        count = card["parameters"]
        size = "parameters not counted" if count is None else f"{count:,} parameters"
        lines.append(f"- `{model}`: {size}{history}, arguments {card['args']}")
    return [*lines, ""]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["choose", "run", "reference", "page"])
    parser.add_argument("--work", type=Path, default=Path("runs/imputation"))
    parser.add_argument("--genes", default=",".join(map(str, SHARED)))
    parser.add_argument("--models", default=None)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None)
    given = parser.parse_args()
    genes = [int(part) for part in given.genes.split(",")]
    if given.what == "choose":
        choose(given.work, given.threads)
    elif given.what == "run":
        run(given.work, genes, given.models or METHODS, given.seeds, given.threads)
    elif given.what == "reference":
        from_single_cells(given.work, given.models or REFERENCE, given.threads)
    else:
        page(given.work, genes)


if __name__ == "__main__":
    main()
