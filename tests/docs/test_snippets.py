"""Every snippet of README and docs: Python blocks run page by page, command lines are parsed, and those marked are run.

The blocks of a page share a namespace and a folder, in the order of the page, and every page makes its own data. Marks are
comments on the line above a block: ``<!-- run -->`` executes the ``histoweave`` lines of a bash block, and
``<!-- skip: reason -->`` leaves a Python block out.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
from typer.testing import CliRunner

import histoweave
from histoweave import _keys as K
from histoweave.cli import app
from histoweave.embed import list_encoders
from histoweave.models import describe, list_models
from histoweave.models.impute import imputer_class, list_imputers
from histoweave.settings import (
    BenchSettings,
    CompleteSettings,
    FitSettings,
    ImputeSettings,
    PredictSettings,
    RunSettings,
)

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MARK = r"(?:^<!-- (?P<mark>run|skip: [^>]+?) -->\n+)?"
BLOCK = re.compile(MARK + r"^```(?P<kind>python|bash)\n(?P<text>.*?)^```", re.DOTALL | re.MULTILINE)
MOST_SKIPPED = 2
REFERENCE = ROOT / "docs" / "reference"
USAGE: Any = typer.BadParameter.__mro__[1]  # the usage error of the click that typer brings with it


class Block(NamedTuple):
    """A fenced block, the line on which its text starts, and its mark."""

    kind: str
    line: int
    text: str
    mark: str


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for match in BLOCK.finditer(text):
        yield Block(match["kind"], text.count("\n", 0, match.start("text")) + 1, match["text"], match["mark"] or "")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def commands(text: str) -> Iterator[list[str]]:
    """The arguments of every ``histoweave`` line of a bash block; a backslash at the end goes on."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        if words and words[0] == "histoweave":
            yield words[1:]


def parse(words: list[str]) -> None:
    """Parses a command line as the program does, without running it; what is wrong with it is a ValueError."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        if not words or words[0] not in command.commands:
            raise ValueError(f"no command {words[:1]}; there are {', '.join(command.commands)}")
        command, words = command.commands[words[0]], words[1:]
    try:
        command.make_context(command.name, list(words))
    except USAGE as error:
        raise ValueError(str(error)) from error


@pytest.fixture
def place(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder; the store is one for all pages."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HISTOWEAVE_STORE", str(tmp_path_factory.getbasetemp() / "docs-store"))
    monkeypatch.delenv("HISTOWEAVE_DATA", raising=False)
    return tmp_path


RUN = [page for page in PAGES if any(b.kind == "python" or b.mark == "run" for b in blocks(page))]


@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_the_snippets_of_a_page_run(page: Path, place: Path) -> None:
    space: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.kind == "python" and not block.mark.startswith("skip"):
            exec(compile("\n" * (block.line - 1) + block.text, name_of(page), "exec"), space)
        elif block.kind == "bash" and block.mark == "run":
            for words in commands(block.text):
                answer = CliRunner().invoke(app, words, catch_exceptions=False)
                assert answer.exit_code == 0, (
                    f"{name_of(page)}, line {block.line}: {shlex.join(words)}\n{answer.output}"
                )


LINES = [
    pytest.param(words, id=f"{name_of(page)}:{block.line} {' '.join(words[:2])}")
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]
    for block in blocks(page)
    if block.kind == "bash"
    for words in commands(block.text)
]


@pytest.mark.parametrize("words", LINES)
def test_a_command_line_exists(words: list[str]) -> None:
    parse(words)


@pytest.mark.parametrize(
    "words, wrong",
    [
        (["bench", "x", "--modles", "mean"], "--modles"),
        (["bnech", "x"], "no command"),
        (["predict", "m", "s.tif"], "out"),
    ],
)
def test_a_wrong_command_line_is_found(words: list[str], wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        parse(words)


def test_few_blocks_are_skipped() -> None:
    skipped = [(name_of(page), block.mark) for page in PAGES for block in blocks(page) if block.mark.startswith("skip")]
    assert len(skipped) <= MOST_SKIPPED and all("network" in mark for _, mark in skipped), skipped


def test_make_targets_of_the_pages_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {
        word for page in [*PAGES, ROOT / "CONTRIBUTING.md"] for block in blocks(page) if block.kind == "bash"
        for word in re.findall(r"^(?:\w+=\S+ )*make ([a-z]+)", block.text, re.MULTILINE)
    }  # fmt: skip
    assert named and named <= targets


def test_links_between_files_lead_somewhere() -> None:
    broken = []
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"(?<!!)\[[^\]]*\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            if "://" not in target and not (page.parent / target).exists():
                broken.append((page.name, target))
    assert broken == []


# -- what is generated, or has to be complete -----------------------------------------------------------------------------


def markdown(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows])


def section(page: Path, name: str) -> str:
    """What stands between the marks of a section, without them."""
    text = page.read_text(encoding="utf-8")
    found = re.search(rf"<!-- --8<-- \[start:{name}\] -->\n(.*?)\n<!-- --8<-- \[end:{name}\] -->", text, re.DOTALL)
    assert found is not None, f"{name_of(page)} has no section {name!r}"
    return found[1]


@pytest.mark.parametrize("task", ["predict", "complete", "impute"])
def test_the_table_of_models_is_that_of_the_program(task: str) -> None:
    rows = []
    for row in filter(lambda row: row["task"] == task, map(describe, list_models())):
        kind = "control" if row["control"] else row["learns"]
        needs, size = ", ".join(row["needs"]) or "–", f"{row['parameters']:,}"
        rows.append([f"`{row['name']}`", row["title"], kind, needs, size, row["citation"], row["licence"]])
    header = ["name", "model", "kind", "needs", "parameters", "source", "licence of weights"]
    assert section(ROOT / "README.md", f"models-{task}") == markdown(header, rows)


def test_every_model_has_one_of_the_three_tasks() -> None:
    assert {describe(name)["task"] for name in list_models()} == {"predict", "complete", "impute"}


def test_the_table_of_imputers_is_that_of_the_program() -> None:
    rows = []
    for name, cls in ((name, imputer_class(name)) for name in list_imputers()):
        kind = "control" if cls.card.control else cls.card.learns
        rows.append([f"`{name}`", cls.card.title, kind, cls.scale, cls.card.citation])
    header = ["name", "imputer", "kind", "a value is", "source"]
    assert section(ROOT / "README.md", "imputers") == markdown(header, rows)


def test_the_table_of_encoders_is_that_of_the_program() -> None:
    rows = []
    for card in list_encoders():
        scale = "–" if card.um_per_px is None else f"{card.um_per_px:g}"
        terms = [card.licence, "yes" if card.commercial else "no", "yes" if card.gated else "no"]
        rows.append(
            [f"`{card.name}`", str(card.dim), f"{card.px}{' only' if card.fixed else ''}", scale, card.init, *terms]
        )
    header = ["name", "d", "px", "µm per px", "trained on", "licence of weights", "commercial use", "gated"]
    assert section(ROOT / "docs" / "how-to" / "encoders.md", "encoders") == markdown(header, rows)


def test_every_flag_and_command_is_in_the_reference() -> None:
    text = (REFERENCE / "cli.md").read_text(encoding="utf-8")
    settings = (RunSettings, BenchSettings, FitSettings, PredictSettings, CompleteSettings, ImputeSettings)
    every = [f.name for s in settings for f in fields(s)]
    flags = {f"--{name.replace('_', '-')}" for name in every}
    named = set(re.findall(r"--[a-z][a-z-]*", text))
    assert flags <= named, sorted(flags - named)
    told: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert [name for name in told if f"`histoweave {name}" not in text] == []
    real = {option for command in told.values() for part in _leaves(command) for p in part.params for option in p.opts}
    assert named <= real | {"--no-resume", "--no-context", "--help"}, sorted(named - real)


def _leaves(command: Any) -> list[Any]:
    return list(getattr(command, "commands", {"": command}).values())


def test_every_public_name_is_in_the_reference() -> None:
    text = (REFERENCE / "python.md").read_text(encoding="utf-8")
    assert [name for name in histoweave.__all__ if f"`{name}" not in text] == []


def test_every_key_of_our_files_is_in_the_reference() -> None:
    text = (REFERENCE / "files.md").read_text(encoding="utf-8")
    keys = [value for name, value in vars(K).items() if name.isupper()]
    assert len(keys) > 10 and [key for key in keys if f"`{key}`" not in text] == []


def test_json_of_the_tables_is_json() -> None:
    for words in (["models", "--json"], ["encoders", "--json"]):
        assert json.loads(CliRunner().invoke(app, words).output)
