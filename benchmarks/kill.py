"""Kills `embed` and `bench` at random moments and runs them again: the same bytes, and finished work is not done twice.

    python -m benchmarks.kill [--kills 10]

Writes ``benchmarks/results/kill.md``. The tests call `ordeal` with fewer kills.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
WHAT = ("embed", "bench")


@dataclass(frozen=True, slots=True)
class Ordeal:
    """What became of a job that was killed several times.

    Attributes
    ----------
    kills, unfinished
        Kills, and how many of them hit a job that was not done.
    same
        Whether every file equals that of a run that nobody killed.
    untouched
        Whether files that were finished before a kill were left as they were.
    leftover
        Files that the uninterrupted run does not have.
    """

    kills: int
    unfinished: int
    same: bool
    untouched: bool
    leftover: tuple[str, ...]


def work(what: str, folder: Path) -> None:
    """The job: a phantom cohort, embedded or benchmarked with a model that trains."""
    import torch

    from histoweave.batch import Needs
    from histoweave.commands import bench
    from histoweave.data.phantom import phantom
    from histoweave.settings import BenchSettings
    from histoweave.train import loop

    torch.set_num_threads(1)
    loop.CHECKPOINT_SECONDS = 0.2  # so that kills find checkpoints in training, too
    truth = phantom(n_patients=3, spots=(7, 7), genes={"local": 4, "neighbourhood": 2, "global": 2, "noise": 8}, seed=5)
    settings = BenchSettings(
        target="log1p-given",
        panel="top-mean:12",
        window_um=200.0,
        encoder="tiny",
        out_px=32,
        models="ridge,triplex",
        recipe="tiny",
        store=str(folder / "store"),
        name="kill",
    )
    if what == "embed":
        settings.view().embed(truth.cohort, Needs.EMB | Needs.CTX_EMB | Needs.WINDOW, settings.open_store())
    else:
        bench(truth.cohort, folder / "run", settings)


def start(what: str, folder: Path) -> subprocess.Popen[bytes]:
    """The job in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.kill", "--work", what, "--folder", str(folder)]
    return subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(what: str, folder: Path) -> float:
    """Runs the job to its end; the seconds it took."""
    begin = time.monotonic()
    process = start(what, folder)
    _, error = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{what} failed: {error.decode()[-2000:]}")
    return time.monotonic() - begin


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, by its path in the folder; the log holds dates and is left out."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "run.log"
    }


def finished(folder: Path) -> dict[Path, int]:
    """Finished entries of the store and finished cells, with the time they were written."""
    marks = [*folder.glob("store/**/meta.json"), *folder.glob("run/cells/*/cell.json")]
    return {path: path.stat().st_mtime_ns for path in marks if not path.parent.name.startswith(".")}


def ordeal(what: str, folder: Path, *, kills: int, seed: int) -> Ordeal:
    """Kills a job at random moments, each time further on, lets it finish, and compares."""
    rng = random.Random(seed)
    whole, broken = folder / "whole", folder / "broken"
    seconds = finish(what, whole)
    loading = min(seconds / 2, 4.0)  # the interpreter and the libraries; a kill before that hits nothing
    unfinished, untouched = 0, True
    for _ in range(kills):
        before = finished(broken)
        process = start(what, broken)
        time.sleep(loading + rng.random() * max(seconds - loading, 0.1))
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            unfinished += 1
        process.communicate()
        untouched &= all(path.exists() and path.stat().st_mtime_ns == at for path, at in before.items())
    before = finished(broken)
    finish(what, broken)
    untouched &= all(path.stat().st_mtime_ns == at for path, at in before.items())
    expected, made = digests(whole), digests(broken)
    extra = tuple(sorted(set(made) - set(expected)))
    return Ordeal(kills, unfinished, all(made.get(k) == v for k, v in expected.items()), untouched, extra)


def run() -> None:
    """Runs the ordeals and writes their table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", choices=WHAT, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(given.work, given.folder)
        return
    lines = ["# Killed and run again", "", f"`python -m benchmarks.kill --kills {given.kills}`, {date.today()}", "",
             "| job | kills | hit unfinished work | same bytes | finished work left alone | files left over |",
             "| --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    for what in WHAT:
        with tempfile.TemporaryDirectory() as folder:
            found = ordeal(what, Path(folder), kills=given.kills, seed=given.seed)
        lines.append(f"| {what} | {found.kills} | {found.unfinished} | {'yes' if found.same else 'NO'} | "
                     f"{'yes' if found.untouched else 'NO'} | {len(found.leftover)} |")  # fmt: skip
        print(lines[-1])
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "kill.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run()
