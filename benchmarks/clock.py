"""Timing several ways to one result against each other, turn by turn, in one process; and the memory of a process.

A `Case` is one job and the ways to do it. Each way gives an iterable, and doing the job is walking it to its end: what
it gives is dropped item by item, as training or writing would, so that memory does not grow. Before the clock starts
every way has run once, and the ways that claim the same result have been compared.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

Run = Callable[[], Iterable[Any]]
Same = Callable[[Sequence[Any], Sequence[Any]], str]  # in what they agree; Disagreement where they do not

SPARE = 2.0  # s; a case that takes less gets more rounds
_SHORTEST = 0.02  # s; quicker runs are timed several at a time, or the clock's own noise would show
_MOST = 21  # rounds


class Disagreement(AssertionError):
    """Two ways do not give the same result, so their times do not compare."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A comparison within a case: `ours` and `theirs` name ways.

    An "idiom" does the same job as the field usually does it and is compared with `same`. A "floor" is the part of the
    job that nobody can leave out; `moved` are the bytes that it reads and writes, where it is a matter of bytes.
    """

    ours: str
    theirs: str
    kind: Literal["idiom", "floor"]
    same: Same | None = None
    moved: int | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """One job: `units` things of kind `unit` are done in a run of any of the `ways`."""

    title: str
    units: int
    unit: str
    ways: Mapping[str, Run]
    pairs: Sequence[Pair]


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, least and largest of the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        return cls(median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Measured:
    """A case with the seconds per run of every way, round by round, and in what each pair agrees."""

    case: Case
    seconds: Mapping[str, Sequence[float]]
    agreement: Sequence[str]

    def time(self, way: str) -> Spread:
        """Seconds of one run."""
        return Spread.of(self.seconds[way])

    def ratio(self, above: str, below: str) -> Spread:
        """Time of one way over that of another, each round by itself: what slows the machine slows both."""
        return Spread.of([a / b for a, b in zip(self.seconds[above], self.seconds[below], strict=True)])


def drain(items: Iterable[Any]) -> None:
    """Walk to the end, keeping nothing."""
    deque(items, maxlen=0)


def compare(case: Case) -> tuple[list[str], dict[str, float]]:
    """Run every way once: in what each pair agrees ("" where nothing is to be compared), and the seconds of each way.

    Raises
    ------
    Disagreement
        If ways that should give the same result do not.
    """
    wanted = {name for pair in case.pairs if pair.same is not None for name in (pair.ours, pair.theirs)}
    kept: dict[str, list[Any]] = {}
    seconds = {}
    for name, way in case.ways.items():
        begin = time.perf_counter()
        if name in wanted:
            kept[name] = list(way())
        else:
            drain(way())
        seconds[name] = time.perf_counter() - begin
    agreement = ["" if pair.same is None else pair.same(kept[pair.ours], kept[pair.theirs]) for pair in case.pairs]
    return agreement, seconds


def measure(case: Case, rounds: int, *, spare: float = SPARE) -> Measured:
    """Compare the ways of a case, then time them in turn, in at least `rounds` rounds that each start elsewhere.

    As long as a case has taken less than `spare` seconds it gets more rounds, up to 21.

    Raises
    ------
    Disagreement
        If ways that should give the same result do not.
    """
    agreement, first = compare(case)
    names = list(case.ways)
    number = {name: max(1, math.ceil(_SHORTEST / first[name])) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    begin, done = time.perf_counter(), 0
    while done < rounds or (done < _MOST and time.perf_counter() - begin < spare):
        start = done % len(names)
        for name in names[start:] + names[:start]:
            seconds[name].append(_seconds(case.ways[name], number[name]))
        done += 1
    return Measured(case, seconds, agreement)


def _seconds(run: Run, number: int) -> float:
    begin = time.perf_counter()
    for _ in range(number):
        drain(run())
    return (time.perf_counter() - begin) / number


def peak_mib() -> float:
    """Largest resident memory of this process so far; getrusage would count its parent's, too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
