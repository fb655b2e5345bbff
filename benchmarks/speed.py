"""Speed of the hot paths against the usual idiom of the field and against what nobody can leave out, in one run.

    python -m benchmarks [--only windows,feed] [--rounds 5] [--quick]

Writes ``benchmarks/results/speed.md`` and ``speed.json``. Real data are read where $HISTOWEAVE_DATA leads to them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.clock import SPARE, Case, Measured, Spread, measure
from benchmarks.speed_images import Scene, embedding, real_scene, synthetic_scene, windows
from benchmarks.speed_tables import correlation, feed, reading, smoothing
from histoweave._repro import versions

RESULTS = Path(__file__).parent / "results"
PARTS = ("windows", "embedding", "feed", "smoothing", "pearson", "reading")
BARE_SHARE = 0.85  # of the bare encoder's throughput, what embedding is to reach end to end
_FURTHER = ("torchvision", "pandas", "pillow", "imagecodecs")  # packages that the idioms and floors are made of


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How large the jobs are; the defaults are those of a published section."""

    image_spots: int = 19  # a side, 200 µm apart
    um_per_px: float = 1.0  # 19 spots of 200 px and the margin: about 4000 px
    window: int = 224  # px
    embedded: int = 96  # windows
    encoder: str = "efficientnet-lite0"
    feed_sections: int = 5
    feed_side: int = 40  # 5 × 40² = 8,000 spots
    width: int = 512
    batch: int = 256
    genes: int = 250
    spots: int = 1600
    sections: int = 8
    tables: int = 2


QUICK = Sizes(
    image_spots=4, um_per_px=4.0, window=32, embedded=2, encoder="tiny", feed_sections=2, feed_side=8, width=8, batch=50,
    genes=6, spots=60, sections=2, tables=1,
)  # fmt: skip


def run(
    out: Path,
    *,
    sizes: Sizes,
    parts: Sequence[str] = PARTS,
    rounds: int = 5,
    spare: float = SPARE,
    command: str = "python -m benchmarks",
    data: Path | None = None,
    say: Callable[[str], None] = print,
) -> str:
    """Measure the `parts`, write ``speed.md`` and ``speed.json`` into `out`, and give the Markdown.

    Parameters
    ----------
    rounds, spare
        Least number of interleaved rounds of each case, and the seconds that short cases may fill with more of them.
    command
        What to run again for this table; goes into it.
    data
        The folder of real data; without it what needs them is left out, and named.
    say
        Told each case as it is done.
    """
    if unknown := sorted(set(parts) - set(PARTS)):
        raise ValueError(f"there are no parts {unknown}; expected some of {list(PARTS)}")
    if rounds < 1:
        raise ValueError(f"rounds={rounds}: expected 1 or more")
    her2st = None if data is None else data / "her2st"
    load = os.getloadavg()[0]
    results: list[Measured] = []
    skipped: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for case in _cases(Path(folder), sizes, parts, her2st, skipped):
            results.append(measure(case, rounds, spare=spare))
            say(_said(results[-1]))
    card: dict[str, Any] = {
        "command": command,
        "date": date.today().isoformat(),
        "machine": machine(load),
        "versions": {**versions(), **{name: version(name) for name in _FURTHER}},
        "sizes": asdict(sizes),
        "skipped": skipped,
    }
    text = markdown(results, card)
    out.mkdir(parents=True, exist_ok=True)
    (out / "speed.md").write_text(text, encoding="utf-8")
    (out / "speed.json").write_text(json.dumps({**card, "cases": [_plain(m) for m in results]}, indent=1) + "\n")
    return text


def _cases(folder: Path, sizes: Sizes, parts: Sequence[str], her2st: Path | None, skipped: list[str]) -> Iterator[Case]:
    """The cases of the parts asked for, each built when it is its turn."""
    if her2st is not None and not her2st.is_dir():
        her2st = None
    real = [part for part in ("windows", "reading") if part in parts]
    if her2st is None and real:
        skipped += [f"{part} on her2st, whose folder was not given" for part in real]
    if {"windows", "embedding"} & set(parts):
        scenes: list[Scene] = [synthetic_scene(folder, sizes.image_spots, sizes.um_per_px)]
        if "windows" in parts:
            for scene in scenes + ([] if her2st is None else [real_scene(her2st)]):
                yield from windows(scene, sizes.window)
        if "embedding" in parts:
            yield from embedding(scenes[0], folder, n=sizes.embedded, encoder=sizes.encoder, out=sizes.window)
    if "feed" in parts:
        yield from feed(
            sections=sizes.feed_sections, side=sizes.feed_side, width=sizes.width, genes=sizes.genes, batch=sizes.batch
        )
    if "smoothing" in parts:
        yield from smoothing(n=sizes.spots, genes=sizes.genes)
    if "pearson" in parts:
        yield from correlation(sections=sizes.sections, n=sizes.spots, genes=sizes.genes)
    if "reading" in parts and her2st is not None:
        yield from reading(sorted((her2st / "ST-cnts").glob("*.tsv.gz"))[: sizes.tables])


def machine(load: float) -> dict[str, Any]:
    """What the times depend on: processor, cores, threads, and how busy the machine was before (1 minute)."""
    info = Path("/proc/cpuinfo")
    models = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return {
        "processor": models[0].partition(":")[2].strip() if models else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "load_before": round(load, 2),
    }


# -- tables -------------------------------------------------------------------------------------------------------


def markdown(results: Sequence[Measured], card: dict[str, Any]) -> str:
    """The report: against the idiom, and against the floor."""
    about, packages = card["machine"], card["versions"]
    lines = [
        "# Speed of the hot paths",
        "",
        f"`{card['command']}`, {card['date']}: {about['processor']}, {about['cores']} cores, {about['torch_threads']} "
        f"torch threads, load before the run {about['load_before']}.",
        ", ".join(f"{name} {number}" for name, number in packages.items()) + ".",
        "",
        "All ways to one result are run in turn in one process; times are the median (least to largest) of the rounds, "
        "ratios are taken round by round. Ways are compared before they are timed.",
        "",
        "## Against the usual idiom",
        "",
        "| job | ours | ms | the idiom | ms | ours is faster by | results |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *_idioms(results),
        "",
        "## Above the floor",
        "",
        "The floor is the part of the job that cannot be left out; where it is a matter of bytes, they are given with the "
        "rate at which this machine moved them (read + written).",
        "",
        "| job | ours | per second | floor | ms | ours takes | floor's share |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *_floors(results),
        *_target(results),
    ]
    if card["skipped"]:
        lines += ["", "Left out: " + "; ".join(card["skipped"]) + "."]
    return "\n".join(lines) + "\n"


def _idioms(results: Sequence[Measured]) -> Iterator[str]:
    for result in results:
        for pair, agreement in zip(result.case.pairs, result.agreement, strict=True):
            if pair.kind == "idiom":
                yield _row(
                    result.case.title, pair.ours, _ms(result.time(pair.ours)), pair.theirs,
                    _ms(result.time(pair.theirs)), _times(result.ratio(pair.theirs, pair.ours)), agreement,
                )  # fmt: skip


def _floors(results: Sequence[Measured]) -> Iterator[str]:
    for result in results:
        for pair in result.case.pairs:
            if pair.kind == "floor":
                ours, floor = result.time(pair.ours), result.time(pair.theirs)
                name = pair.theirs.removeprefix("floor: ")
                if pair.moved is not None:
                    name += f" ({pair.moved / 1e6:,.1f} MB, {pair.moved / floor.median / 1e9:.1f} GB/s)"
                yield _row(
                    result.case.title, pair.ours, f"{result.case.units / ours.median:,.0f} {result.case.unit}s", name,
                    _ms(floor), _times(result.ratio(pair.ours, pair.theirs)),
                    f"{result.ratio(pair.theirs, pair.ours).median:.0%}",
                )  # fmt: skip


def _target(results: Sequence[Measured]) -> Iterator[str]:
    """Whether embedding reaches its share of the bare encoder's throughput."""
    for result in results:
        for pair in result.case.pairs:
            if pair.kind == "floor" and pair.ours.startswith("embed, "):
                share = result.ratio(pair.theirs, pair.ours)
                verdict = _verdict(share)
                yield ""
                yield (
                    f"`{pair.ours}` end to end runs at {share.median:.1%} ({share.low:.1%} to {share.high:.1%}) of the bare "
                    f"encoder's throughput; the target of {BARE_SHARE:.0%} is {verdict}."
                )


def _verdict(share: Spread) -> str:
    """Only rounds that all fall on one side decide."""
    if share.low >= BARE_SHARE:
        return "reached in every round"
    if share.high < BARE_SHARE:
        return "MISSED in every round"
    return "not decided by this run, whose rounds lie on both sides of it: run again on a quiet machine"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _ms(seconds: Spread) -> str:
    median, low, high = (f"{1e3 * s:,.{_places(1e3 * s)}f}" for s in (seconds.median, seconds.low, seconds.high))
    return f"{median} ({low} to {high})"


def _times(ratio: Spread) -> str:
    median, low, high = (f"{r:,.{_places(r)}f}" for r in (ratio.median, ratio.low, ratio.high))
    return f"**{median} ×** ({low} to {high})"


def _places(value: float) -> int:
    return 0 if value >= 100 else 1 if value >= 10 else 2


def _said(result: Measured) -> str:
    times = ", ".join(f"{name} {_ms(result.time(name))} ms" for name in result.case.ways)
    return f"{result.case.title}: {times}"


def _plain(result: Measured) -> dict[str, Any]:
    """A case as JSON-safe values: every round of every way, and every comparison."""
    case = result.case
    pairs = [
        {
            "ours": pair.ours,
            "theirs": pair.theirs,
            "kind": pair.kind,
            "agreement": agreement,
            "bytes_moved": pair.moved,
            "theirs_over_ours": asdict(result.ratio(pair.theirs, pair.ours)),
        }
        for pair, agreement in zip(case.pairs, result.agreement, strict=True)
    ]
    seconds = {name: list(rounds) for name, rounds in result.seconds.items()}
    return {"title": case.title, "units": case.units, "unit": case.unit, "seconds": seconds, "pairs": pairs}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default=",".join(PARTS), help="parts joined by commas")
    parser.add_argument("--rounds", type=int, default=5, help="least number of interleaved rounds")
    parser.add_argument("--windows", type=int, help=f"windows to embed; default {Sizes().embedded}, of --quick fewer")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, no real data: whether it runs, not how fast")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    for name in ("rounds", "windows"):
        if getattr(given, name) is not None and getattr(given, name) < 1:
            parser.error(f"--{name}: expected 1 or more")
    parts = given.only.split(",")
    if unknown := sorted(set(parts) - set(PARTS)):
        parser.error(f"--only: there are no parts {unknown}; expected some of {','.join(PARTS)}")
    command = "python -m benchmarks" + f" --rounds {given.rounds}" + " --quick" * given.quick
    command += "" if given.windows is None else f" --windows {given.windows}"
    command += "" if given.only == ",".join(PARTS) else f" --only {given.only}"
    sizes = QUICK if given.quick else Sizes()
    sizes = sizes if given.windows is None else replace(sizes, embedded=given.windows)
    data = os.environ.get("HISTOWEAVE_DATA")
    print(
        run(
            given.out,
            sizes=sizes,
            parts=parts,
            rounds=given.rounds,
            spare=0.0 if given.quick else SPARE,
            command=command,
            data=Path(data) if data and not given.quick else None,
        )
    )


if __name__ == "__main__":
    main()
