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
    kills, runs
        Kills, each of which hit a job that was not done, and how many whole jobs they were spread over.
    same
        Whether every file of every job equals that of a run that nobody killed.
    untouched
        Whether files that were finished before a kill were left as they were.
    leftover
        Files that the uninterrupted run does not have.
    """

    kills: int
    runs: int
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
    """Kills a job at random moments until `kills` of them hit unfinished work; what then gets done is compared.

    A job that is done before it is killed is compared too, and the next one starts from nothing.
    """
    rng = random.Random(seed)
    whole = folder / "whole"
    seconds = finish(what, whole)
    loading = finish(what, whole)  # nothing is left to do: the interpreter and the libraries, where a kill hits nothing
    expected = digests(whole)
    hits, runs, same, untouched, extra = 0, 0, True, True, set()
    while hits < kills:
        broken, runs, done = folder / f"broken-{runs}", runs + 1, False
        while not done:
            before = finished(broken)
            process = start(what, broken)
            if hits < kills:
                try:
                    process.wait(loading + rng.random() * max(seconds - loading, 0.05))
                except subprocess.TimeoutExpired:
                    os.kill(process.pid, signal.SIGKILL)
            _, error = process.communicate()
            done = process.returncode == 0
            if not done and process.returncode != -signal.SIGKILL:
                raise RuntimeError(f"{what} failed: {error.decode()[-2000:]}")
            hits += not done
            untouched &= all(path.exists() and path.stat().st_mtime_ns == at for path, at in before.items())
        made = digests(broken)
        same &= all(made.get(key) == value for key, value in expected.items())
        extra |= set(made) - set(expected)
    return Ordeal(hits, runs, same, untouched, tuple(sorted(extra)))


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
             "| job | kills of unfinished work | jobs they were spread over | same bytes | finished work kept | left over |",
             "| --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    for what in WHAT:
        with tempfile.TemporaryDirectory() as folder:
            found = ordeal(what, Path(folder), kills=given.kills, seed=given.seed)
        lines.append(f"| {what} | {found.kills} | {found.runs} | {'yes' if found.same else 'NO'} | "
                     f"{'yes' if found.untouched else 'NO'} | {len(found.leftover)} |")  # fmt: skip
        print(lines[-1])
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "kill.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run()
