"""Speed of the batched linear, lasso and count solvers against a loop over genes and penalties, and their cost by spots.

    python -m benchmarks.solvers [--only ridge,lasso,nb,spots] [--rounds 3] [--quick]

Writes ``benchmarks/results/solvers.md`` and ``solvers.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import statsmodels.api as sm
import torch
from sklearn.linear_model import Lasso, Ridge
from sklearn.linear_model import lasso_path as shared_path

from benchmarks.clock import Case, Disagreement, Measured, Pair, Spread, measure
from benchmarks.solvers_data import Data, Sizes
from benchmarks.solvers_stream import JOBS, Spots, measured, write
from benchmarks.speed import RESULTS, machine
from histoweave._repro import versions
from histoweave.models._glm import alpha_from_moments, fit_counts
from histoweave.models._lasso import lasso_path
from histoweave.models._linear import Moments, ridge_path
from histoweave.models.predict.linear import LASSO_GRID, RIDGE_GRID

PARTS = (*JOBS, "spots")
TARGETS = {"ridge": 100, "lasso": 20, "nb": 50}
_LIBRARIES = ("scikit-learn", "statsmodels")


QUICK = Sizes(spots=200, features=8, genes=6, sampled=2, streamed=(500, 1000))


@dataclass(frozen=True, slots=True)
class Job:
    """A case, and for each way what share of the whole job it does."""

    name: str
    case: Case
    share: Mapping[str, float]


# -- jobs ---------------------------------------------------------------------------------------------------------


def ridge(data: Data) -> Job:
    """All genes and penalties, from features and targets to coefficients."""
    x, y, alphas = torch.from_numpy(data.x), torch.from_numpy(data.logs), torch.tensor(RIDGE_GRID, dtype=torch.float64)

    def ours() -> Iterator[np.ndarray]:
        yield ridge_path(Moments.of(x, y), alphas).coef[:, :, data.sample].numpy()

    def loop() -> Iterator[np.ndarray]:
        yield np.stack([[Ridge(alpha=a).fit(data.x, data.logs[:, j]).coef_ for j in data.sample] for a in RIDGE_GRID])

    def together() -> Iterator[np.ndarray]:
        yield np.stack([Ridge(alpha=a).fit(data.x, data.logs).coef_ for a in RIDGE_GRID])[:, data.sample]

    def same(ours: Sequence[Any], theirs: Sequence[Any]) -> str:
        return _within(np.abs(ours[0] - theirs[0].transpose(0, 2, 1)).max() / np.abs(theirs[0]).max(), 1e-6, "")

    loops, multi = "Ridge().fit per gene and λ", "multi-output Ridge().fit per λ"
    ways = {"ridge_path": ours, loops: loop, multi: together, **_products(x, y)}
    return _job("ridge", f"ridge, {len(alphas)} λ", data, ways, [(loops, same), (multi, same)])


def lasso(data: Data) -> Job:
    """All genes and penalties, from features and targets to coefficients."""
    x, y, alphas = torch.from_numpy(data.x), torch.from_numpy(data.logs), torch.tensor(LASSO_GRID, dtype=torch.float64)
    n = len(x)

    def ours() -> Iterator[np.ndarray]:
        yield lasso_path(Moments.of(x, y), alphas).coef[:, :, data.sample].numpy()

    def loop() -> Iterator[np.ndarray]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scikit-learn says that the least penalties did not converge
            fits = [[Lasso(alpha=a).fit(data.x, data.logs[:, j]).coef_ for j in data.sample] for a in LASSO_GRID]
        yield np.stack(fits).transpose(0, 2, 1)

    def shared() -> Iterator[np.ndarray]:
        a, b = data.x - data.x.mean(axis=0), data.logs - data.logs.mean(axis=0)
        gram, cross = a.T @ a, a.T @ b
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = [
                shared_path(a, b[:, j], alphas=np.array(LASSO_GRID)[::-1], precompute=gram, Xy=cross[:, j])[1][:, ::-1]
                for j in range(b.shape[1])
            ]
        yield np.stack(made)[data.sample].transpose(2, 1, 0)

    def same(ours: Sequence[Any], theirs: Sequence[Any]) -> str:
        """Ours may be below theirs, whose gap is 1e-4 of ‖y‖², by as much; it must not be above."""
        a, b = data.x - data.x.mean(axis=0), data.logs[:, data.sample] - data.logs[:, data.sample].mean(axis=0)
        penalty = np.array(LASSO_GRID)[:, None]
        mine, other = (
            ((b - np.einsum("nd,adg->ang", a, w)) ** 2).sum(axis=1) / (2 * n) + penalty * np.abs(w).sum(axis=1)
            for w in (ours[0], theirs[0])
        )
        return _within(float(((mine - other) / other).max()), 1e-4, "objective above theirs by at most ", clip=True)

    loops, gram = "Lasso().fit per gene and λ", "lasso_path per gene, Gram shared"
    ways = {"lasso_path": ours, loops: loop, gram: shared, **_products(x, y)}
    return _job("lasso", f"lasso, {len(alphas)} λ", data, ways, [(loops, same), (gram, same)])


def nb(data: Data) -> Job:
    """All genes, from features and counts to coefficients, with the dispersion from training moments."""
    x, y = torch.from_numpy(data.x), torch.from_numpy(data.counts)
    alpha = alpha_from_moments(y.mean(dim=0), y.var(dim=0))
    single, weights = x.float(), torch.zeros(x.shape[1], y.shape[1])
    design = sm.add_constant(data.x)

    def walk() -> Iterable[Any]:
        return zip(x.split(1024), y.split(1024), [None] * -(-len(x) // 1024), strict=True)

    def ours() -> Iterator[np.ndarray]:
        fit = fit_counts(walk, alpha=alpha)
        yield np.where(fit.converged.numpy(), fit.coef.numpy(), np.nan)[:, data.sample]

    def loop() -> Iterator[np.ndarray]:
        kinds = [sm.families.NegativeBinomial(alpha=float(alpha[j])) for j in data.sample]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fits = [sm.GLM(data.counts[:, j], design, k).fit() for j, k in zip(data.sample, kinds, strict=True)]
        yield np.stack([np.where(fit.converged, fit.params[1:], np.nan) for fit in fits], axis=1)

    def floor() -> Iterator[torch.Tensor]:
        for part in single.split(1024):
            yield part.T @ (part @ weights).exp_()

    def same(ours: Sequence[Any], theirs: Sequence[Any]) -> str:
        both = np.isfinite(ours[0]).all(axis=0) & np.isfinite(theirs[0]).all(axis=0)
        off = np.abs(ours[0] - theirs[0])[:, both].max() if both.any() else np.inf
        return _within(float(off), 1e-4, f"{both.sum()} of {len(both)} genes converge in both, coefficients ")

    loops = "statsmodels GLM per gene"
    ways = {"fit_counts": ours, loops: loop, "floor: two products and exp of one pass, float32": floor}
    return _job("nb", "negative binomial, α from moments", data, ways, [(loops, same)])


def _products(x: torch.Tensor, y: torch.Tensor) -> dict[str, Callable[[], Iterable[Any]]]:
    def products() -> Iterator[torch.Tensor]:
        yield x.T @ x
        yield x.T @ y

    return {"floor: XᵀX and XᵀY, float64": products}


def _job(name: str, title: str, data: Data, ways: dict[str, Any], rivals: Sequence[tuple[str, Any]]) -> Job:
    """Ways are ours, those that we are compared with, and the floor; "per gene" loops do the sample only, but for paths."""
    ours, floor = next(iter(ways)), list(ways)[-1]
    pairs = [Pair(ours, way, "idiom", same) for way, same in rivals] + [Pair(ours, floor, "floor")]
    share = dict.fromkeys(ways, 1.0)
    share[rivals[0][0]] = len(data.sample) / data.logs.shape[1]
    return Job(name, Case(title, data.logs.shape[1], "gene", ways, pairs), share)


def _within(off: float, tolerance: float, text: str, *, clip: bool = False) -> str:
    if not off <= tolerance:
        raise Disagreement(f"results differ by {off:.2g}, more than {tolerance:g}")
    return f"{text}within {max(off, 0.0):.0e}" if not clip else f"{text}{max(off, 0.0):.0e}"


# -- report -------------------------------------------------------------------------------------------------------


def run(
    out: Path, *, sizes: Sizes, parts: Sequence[str], rounds: int, command: str, spare: float = 0.0, real: bool = False
) -> str:
    """Measure the `parts`, write ``solvers.md`` and ``solvers.json`` into `out`, and give the Markdown."""
    load = os.getloadavg()[0]
    data = Data.real(sizes) if real else Data.of(sizes)
    made = {"ridge": ridge, "lasso": lasso, "nb": nb}
    jobs = [made[part](data) for part in parts if part in made]
    results = [(job, measure(job.case, rounds, spare=spare)) for job in jobs]
    streamed = list(_streamed(sizes)) if "spots" in parts else []
    card: dict[str, Any] = {
        "command": command,
        "date": date.today().isoformat(),
        "machine": machine(load),
        "versions": {**versions(), **{name: version(name) for name in _LIBRARIES}},
        "sizes": asdict(sizes),
        "data": data.describe(),
    }
    text = markdown(results, streamed, card)
    out.mkdir(parents=True, exist_ok=True)
    (out / "solvers.md").write_text(text, encoding="utf-8")
    cases = [{"name": j.name, "share": dict(j.share), "seconds": dict(m.seconds)} for j, m in results]
    (out / "solvers.json").write_text(json.dumps({**card, "cases": cases, "spots": streamed}, indent=1) + "\n")
    return text


def _streamed(sizes: Sizes) -> Iterator[dict[str, Any]]:
    for n in sizes.streamed:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), Spots(sizes.features, sizes.genes), n)
            for job in JOBS:
                yield measured(job, Path(folder), n)


def markdown(results: Sequence[tuple[Job, Measured]], streamed: Sequence[dict[str, Any]], card: dict[str, Any]) -> str:
    """The report: against loops and stronger baselines, above the floor, and by spots."""
    about, sizes = card["machine"], card["sizes"]
    judged = all(sizes[key] == getattr(Sizes(), key) for key in ("spots", "features", "genes"))  # targets are for these
    lines = [
        "# Speed of the linear, lasso and count solvers",
        "",
        f"`{card['command']}`, {card['date']}: {about['processor']}, {about['cores']} cores, {about['torch_threads']} "
        f"torch threads, load before the run {about['load_before']}.",
        ", ".join(f"{name} {number}" for name, number in card["versions"].items()) + ".",
        "",
        f"{sizes['genes']} genes × {sizes['spots']:,} spots × {sizes['features']} features: {card['data']}. Ours is timed "
        "from features and targets to coefficients. "
        f"Loops over genes run on {sizes['sampled']} genes, spread evenly over their mean counts, and their "
        "time is scaled to all; everything else runs in full. Ways take turns in one process; times are the median (least "
        "to largest) of the rounds, ratios are taken round by round. Results are compared before they are timed.",
        "",
        "| job | ours | s | against | s, all genes | ours is faster by | target | results |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for job, result in results:
        for i, (pair, agreement) in enumerate(zip(job.case.pairs, result.agreement, strict=True)):
            scale = 1 / job.share[pair.theirs]
            sampled = f" (sampled: {job.share[pair.theirs]:.0%})" if scale > 1 else ""
            ratio = _scaled(result.ratio(pair.theirs, pair.ours), scale)
            least = TARGETS[job.name]
            verdict = "" if i or not judged else f"≥ {least} ×: {'met' if ratio.median >= least else 'MISSED'}"
            lines.append(
                f"| {job.case.title} | `{pair.ours}` | {_spread(result.time(pair.ours))} | {pair.theirs}{sampled} | "
                f"{_spread(_scaled(result.time(pair.theirs), scale))} | **{_spread(ratio)}** × | {verdict} | {agreement} |"
            )
    if streamed:
        lines += [
            "",
            "## Cost by spots",
            "",
            f"Spots are read from a file, a chunk at a time, by a process of its own per row: {sizes['features']} features, "
            f"{sizes['genes']} genes, all penalties. Memory is the largest resident size, and how much of it the job added.",
            "",
            "| job | spots | s | µs per spot | peak MiB | added MiB | |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *(
                f"| {row['job']} | {row['spots']:,} | {row['seconds']:.2f} | {1e6 * row['seconds'] / row['spots']:.1f} "
                f"{_bar(row, streamed)} | {row['peak_mib']:.0f} | {row['peak_mib'] - row['before_mib']:.0f} | {row['said']} |"
                for row in sorted(streamed, key=lambda row: (JOBS.index(row["job"]), row["spots"]))
            ),
        ]
    return "\n".join(lines) + "\n"


def _bar(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """Time per spot as a bar, the longest of its job being 20 wide: equal bars are linear cost."""
    most = max(other["seconds"] / other["spots"] for other in rows if other["job"] == row["job"])
    return "█" * max(1, round(20 * row["seconds"] / row["spots"] / most))


def _scaled(spread: Spread, factor: float) -> Spread:
    return Spread(spread.median * factor, spread.low * factor, spread.high * factor)


def _spread(spread: Spread) -> str:
    median, low, high = (f"{value:,.3g}" if value < 100 else f"{value:,.0f}" for value in asdict(spread).values())
    return f"{median} ({low} to {high})"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.solvers", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default=",".join(PARTS), help="parts joined by commas")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds of each job")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: whether it runs, not how fast")
    parser.add_argument("--real", action="store_true", help="counts and components of her2st under $HISTOWEAVE_DATA")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    parts = given.only.split(",")
    if unknown := sorted(set(parts) - set(PARTS)):
        parser.error(f"--only: there are no parts {unknown}; expected some of {','.join(PARTS)}")
    if given.rounds < 1:
        parser.error("--rounds: expected 1 or more")
    command = (
        "python -m benchmarks.solvers"
        + f" --rounds {given.rounds}" * (given.rounds != 3)
        + " --quick" * given.quick
        + " --real" * given.real
    )
    command += "" if given.only == ",".join(PARTS) else f" --only {given.only}"
    print(
        run(
            given.out,
            sizes=QUICK if given.quick else Sizes(),
            parts=parts,
            rounds=given.rounds,
            command=command,
            real=given.real,
        )
    )


if __name__ == "__main__":
    main()
