"""Speed of the SpaRED steps: the adaptive median against a loop, Moran's I of a transcriptome, ComBat against scanpy.

    HISTOWEAVE_DATA=DIR python -m benchmarks.completion_speed [--only median,moran,combat] [--rounds 3] [--quick]

With her2st in ``DIR`` the median runs on its spots, else on made-up ones of the same density. Writes
``benchmarks/results/completion-speed.md``.
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import scanpy as sc
from anndata import AnnData
from scipy import sparse

from benchmarks.clock import Case, Disagreement, Measured, Pair, Spread, measure
from benchmarks.speed import RESULTS, machine
from histoweave._repro import versions
from histoweave.data.io import read_cohort
from histoweave.pp import Combat, grid_hops, hex_hops, log2p1, median_fill, morans_i, per_million, select_panel

PARTS = ("median", "moran", "combat")
MEDIAN_TARGET, MORAN_TARGET = 50, 10.0  # times faster than the loop; seconds
DENSITIES = {"the 1,000 most frequent genes": 0.57, "genes drawn from all": 0.14}  # as measured in her2st


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How large the jobs are."""

    spots: int = 1500
    genes: int = 1000
    sampled: int = 20  # genes of the loop, whose time is scaled to all
    moran_spots: int = 4000
    moran_genes: int = 18_000
    combat_spots: int = 13_000
    combat_genes: int = 128
    batches: int = 36


QUICK = Sizes(
    spots=90, genes=30, sampled=5, moran_spots=100, moran_genes=60, combat_spots=1500, combat_genes=60, batches=3
)


@dataclass(frozen=True, slots=True)
class Job:
    """A case, what share of the whole job its second way does, and what is asked of the first."""

    case: Case
    share: float = 1.0
    faster: float | None = None  # times
    within: float | None = None  # seconds


# -- data ---------------------------------------------------------------------------------------------------------


def her2st_spots(folder: Path, n: int, g: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """log2 counts per million (n, g) of whole sections side by side, the most frequent genes and any, with their lattice."""
    cohort = read_cohort(folder)
    names = cohort.genes("common")
    most = select_panel(cohort, f"top-mean:{g}", names).genes
    any_ = np.random.default_rng(0).permutation(np.array(names, dtype=object))[:g].tolist()
    cells, used, offset = [], [], 0
    turn = {section.id: [s.id for s in cohort.where_patient([section.patient])].index(section.id) for section in cohort}
    for section in sorted(cohort, key=lambda section: turn[section.id]):  # one of every patient, then the next
        rc = section.array_rc
        cells.append(rc - rc.min(axis=0) + [0, offset])
        offset = int(cells[-1][:, 1].max()) + 10  # farther than four hops
        used.append(section)
        if sum(map(len, cells)) >= n:
            break
    for what, genes in zip(DENSITIES, (most, any_), strict=True):
        counts = sparse.vstack([section.counts(genes) for section in used])[:n]
        yield f"her2st, {what}", log2p1(per_million(counts)).toarray(), np.concatenate(cells)[:n]


def made_up_spots(n: int, g: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Values of the densities of her2st on one square lattice."""
    rng, side = np.random.default_rng(0), int(np.ceil(np.sqrt(n)))
    cells = np.column_stack([np.arange(n) // side, np.arange(n) % side])
    for what, density in DENSITIES.items():
        share = rng.beta(2 * density, 2 * (1 - density), g)
        yield f"made up, as {what}", rng.gamma(5.0, 1.5, (n, g)) * (rng.random((n, g)) < share), cells


# -- jobs ---------------------------------------------------------------------------------------------------------


def median_jobs(sizes: Sizes, her2st: Path | None) -> Iterator[Job]:
    """The adaptive median of four hops, against `numpy.median` for each missing entry and hop."""
    spots = (
        made_up_spots(sizes.spots, sizes.genes) if her2st is None else her2st_spots(her2st, sizes.spots, sizes.genes)
    )
    for what, values, cells in spots:
        values = values.astype(np.float32)
        seen = values > 0
        tables = [grid_hops(cells, h) for h in range(1, 5)]
        sample = np.linspace(0, values.shape[1] - 1, sizes.sampled).astype(int)

        def ours(values: np.ndarray = values, seen: np.ndarray = seen, tables: Any = tables) -> Iterator[np.ndarray]:
            yield median_fill(values, seen, tables)

        def loop(values: np.ndarray = values[:, sample], tables: Any = tables) -> Iterator[np.ndarray]:
            yield _plain_median(values, tables)

        def same(ours: Sequence[Any], theirs: Sequence[Any], sample: np.ndarray = sample) -> str:
            if not np.array_equal(ours[0][:, sample], theirs[0]):
                raise Disagreement("the medians differ from those of the loop")
            return "identical"

        n, g = values.shape
        title = f"median, {n:,} spots × {g:,} genes of which {seen.mean():.1%} is measured ({what})"
        ways = {"median_fill": ours, "np.median per spot and gene": loop}
        pair = Pair("median_fill", "np.median per spot and gene", "idiom", same)
        yield Job(Case(title, n, "spot", ways, [pair]), sizes.sampled / g, faster=MEDIAN_TARGET)


def _plain_median(values: np.ndarray, tables: Sequence[np.ndarray]) -> np.ndarray:
    filled = values.copy()
    members = [[[i, *row[row >= 0]] for i, row in enumerate(table)] for table in tables]
    for j in range(values.shape[1]):
        column = values[:, j]
        there = column[column != 0]
        for i in np.flatnonzero(column == 0):
            for windows in members:
                found = np.median(column[windows[i]])
                if found != 0:
                    break
            else:
                found = np.median(there) if len(there) else 0
            filled[i, j] = found
    return filled


def moran_jobs(sizes: Sizes) -> Iterator[Job]:
    """Moran's I on a hexagonal lattice, of sparse values and of values without gaps, against scanpy's."""
    n, g, side = sizes.moran_spots, sizes.moran_genes, 50
    at = np.arange(n)
    nbr = hex_hops(np.column_stack([at // side, 2 * (at % side) + at // side % 2]), 1)
    rng = np.random.default_rng(0)
    gaps = sparse.random(
        n, g, density=0.14, format="csr", dtype=np.float32, rng=rng, data_rvs=lambda size: rng.gamma(5.0, 1.5, size)
    )
    rows, slots = np.nonzero(nbr >= 0)
    weight = 1.0 / (nbr >= 0).sum(axis=1)[rows]
    graph = sparse.csr_matrix((weight, (rows, nbr[rows, slots])), shape=(n, n))
    for what, values in (("14% measured", gaps), ("no gaps", rng.gamma(5.0, 1.5, (n, g)).astype(np.float32))):
        turned = np.ascontiguousarray((values.toarray() if sparse.issparse(values) else values).T, dtype=np.float64)

        def ours(values: Any = values) -> Iterator[np.ndarray]:
            yield morans_i(values, nbr)

        def theirs(turned: np.ndarray = turned) -> Iterator[np.ndarray]:
            yield np.asarray(sc.metrics.morans_i(graph, turned))

        ways = {"morans_i": ours, "scanpy.metrics.morans_i": theirs}
        pair = Pair("morans_i", "scanpy.metrics.morans_i", "idiom", _near(1e-6))
        title = f"Moran's I, {g:,} genes × {n:,} spots, {what}"
        yield Job(Case(title, g, "gene", ways, [pair]), within=MORAN_TARGET)


def combat_jobs(sizes: Sizes) -> Iterator[Job]:
    """Fitting and adjusting, against scanpy's."""
    rng = np.random.default_rng(0)
    n, g, batches = sizes.combat_spots, sizes.combat_genes, sizes.batches
    batch = np.arange(n) % batches
    shift, scale = rng.normal(0, 0.5, (batches, g)), rng.uniform(0.7, 1.4, (batches, g))
    values = rng.gamma(5.0, 1.5, (n, g)) * scale[batch] + shift[batch]
    names = np.array([f"section {b:02d}" for b in batch])

    def ours() -> Iterator[np.ndarray]:
        yield Combat.fit(values, names).transform(values, names)

    def theirs() -> Iterator[np.ndarray]:
        table = AnnData(values.copy())
        table.obs["batch"] = names
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pandas names its own deprecations in there
            yield np.asarray(sc.pp.combat(table, inplace=False))

    ways = {"Combat": ours, "scanpy.pp.combat": theirs}
    title = f"ComBat, {n:,} spots × {g} genes of {batches} batches"
    yield Job(Case(title, n, "spot", ways, [Pair("Combat", "scanpy.pp.combat", "idiom", _near(1e-5))]))


def _near(most: float) -> Any:
    def same(ours: Sequence[Any], theirs: Sequence[Any]) -> str:
        off = float(np.abs(ours[0] - theirs[0]).max())
        if not off <= most:
            raise Disagreement(f"results differ by up to {off:.2g}, more than {most:g}")
        return f"within {max(off, 1e-16):.0e}"

    return same


# -- report -------------------------------------------------------------------------------------------------------


def run(out: Path, *, sizes: Sizes, parts: Sequence[str], rounds: int, command: str, her2st: Path | None) -> str:
    """Time the parts and write the table."""
    load = os.getloadavg()[0]
    jobs: list[Job] = []
    if "median" in parts:
        jobs += median_jobs(sizes, her2st)
    if "moran" in parts:
        jobs += moran_jobs(sizes)
    if "combat" in parts:
        jobs += combat_jobs(sizes)
    results = [(job, measure(job.case, rounds)) for job in jobs]
    text = markdown(results, command, load, judged=sizes == Sizes())
    out.mkdir(parents=True, exist_ok=True)
    (out / "completion-speed.md").write_text(text, encoding="utf-8")
    return text


def markdown(results: Sequence[tuple[Job, Measured]], command: str, load: float, *, judged: bool) -> str:
    """The table, with the command and what the times depend on."""
    about = machine(load)
    packages = {**versions(), "scanpy": version("scanpy")}
    lines = [
        "# Speed of the SpaRED steps",
        "",
        f"`{command}`, {date.today().isoformat()}: {about['processor']}, {about['cores']} cores, load before the run "
        f"{about['load_before']}.",
        ", ".join(f"{name} {number}" for name, number in packages.items()) + ".",
        "",
        "Ways take turns in one process; times are the median (least to largest) of the rounds, ratios are taken round by "
        "round. Results are compared before they are timed. The loop runs on some genes, spread evenly over the order of "
        "the columns, and its time is scaled to all.",
        "",
        "| job | ours | s | against | s, all genes | ours is faster by | target | results |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for job, result in results:
        (pair,) = job.case.pairs
        scale = 1 / job.share
        ratio, own = _scaled(result.ratio(pair.theirs, pair.ours), scale), result.time(pair.ours)
        verdict = ""
        if judged and job.faster is not None:
            verdict = f"≥ {job.faster:g} ×: {'met' if ratio.median >= job.faster else 'MISSED'}"
        elif judged and job.within is not None:
            verdict = f"< {job.within:g} s: {'met' if own.median < job.within else 'MISSED'}"
        sampled = f" (sampled: {job.share:.0%})" if scale > 1 else ""
        lines.append(
            f"| {job.case.title} | `{pair.ours}` | {_spread(own)} | {pair.theirs}{sampled} | "
            f"{_spread(_scaled(result.time(pair.theirs), scale))} | **{_spread(ratio)}** × | {verdict} | "
            f"{result.agreement[0]} |"
        )
    return "\n".join(lines) + "\n"


def _scaled(spread: Spread, factor: float) -> Spread:
    return Spread(spread.median * factor, spread.low * factor, spread.high * factor)


def _spread(spread: Spread) -> str:
    median, low, high = (f"{value:,.3g}" if value < 100 else f"{value:,.0f}" for value in asdict(spread).values())
    return f"{median} ({low} to {high})"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.completion_speed", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--only", default=",".join(PARTS), help="parts joined by commas")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds of each job")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: whether it runs, not how fast")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    parts = given.only.split(",")
    if unknown := sorted(set(parts) - set(PARTS)):
        parser.error(f"--only: there are no parts {unknown}; expected some of {','.join(PARTS)}")
    if given.rounds < 1:
        parser.error("--rounds: expected 1 or more")
    root = os.environ.get("HISTOWEAVE_DATA")
    her2st = Path(root) / "her2st" if root and (Path(root) / "her2st").is_dir() else None
    command = "HISTOWEAVE_DATA=DIR " * (her2st is not None) + "python -m benchmarks.completion_speed"
    command += f" --rounds {given.rounds}" * (given.rounds != 3) + " --quick" * given.quick
    command += "" if given.only == ",".join(PARTS) else f" --only {given.only}"
    sizes = QUICK if given.quick else Sizes()
    print(run(given.out, sizes=sizes, parts=parts, rounds=given.rounds, command=command, her2st=her2st))


if __name__ == "__main__":
    main()
