"""Where the real data are: `$HISTOWEAVE_DATA`, or `../shared/data` beside the project. Tests skip without."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

_NUMBERS = pytest.StashKey[dict[str, dict[str, object]]]()
_OUTCOMES = pytest.StashKey[dict[str, dict[str, str]]]()

BESIDE = Path(__file__).resolve().parents[2].parent / "shared" / "data"


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of the real data sets."""
    root = Path(os.environ.get("HISTOWEAVE_DATA") or BESIDE)
    if not root.is_dir():
        pytest.skip(f"no real data: neither $HISTOWEAVE_DATA nor '{BESIDE}' is there")
    return root


@pytest.fixture(scope="session")
def her2st_folder(data_root: Path) -> Path:
    """The her2st data set."""
    folder = data_root / "her2st"
    if not folder.is_dir():
        pytest.skip(f"'{folder}' is not there")
    return folder


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[[str, object], None]:
    """Notes a measured number under the test's name for the JSON that ``make real`` writes."""
    noted = request.config.stash.setdefault(_NUMBERS, {})

    def note(what: str, value: object) -> None:
        noted.setdefault(request.node.nodeid, {})[what] = value

    return note


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Keeps the outcome of every test, and why it was skipped."""
    result = yield
    report = result.get_result()  # type: ignore[attr-defined]
    if report.when == "call" or report.outcome != "passed":
        why = str(report.longrepr[2]) if report.skipped and isinstance(report.longrepr, tuple) else ""
        item.config.stash.setdefault(_OUTCOMES, {})[item.nodeid] = {"outcome": report.outcome, "why": why}


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Writes runs/real.json: outcomes, numbers, and what was skipped."""
    outcomes = session.config.stash.get(_OUTCOMES, {})
    numbers = session.config.stash.get(_NUMBERS, {})
    if not outcomes:
        return
    path = Path(os.environ.get("HISTOWEAVE_REAL_JSON") or Path(__file__).resolve().parents[2] / "runs" / "real.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = {name: {**outcome, "numbers": numbers.get(name, {})} for name, outcome in sorted(outcomes.items())}
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
