"""What all commands share: flags from settings, progress bars, tables."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Annotated, Any, get_type_hints

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

console = Console()
Cohorts = Annotated[str, typer.Argument(help="folder, samples.csv or .h5ad of the cohort")]


def with_settings(
    settings: type[Any], fixed: tuple[str, ...] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Adds the fields of a settings dataclass, but for the fixed ones, as flags to a command that takes ``settings``."""
    hints, free = get_type_hints(settings), [f for f in fields(settings) if f.name not in fixed]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "settings"]
        flags = [
            inspect.Parameter(
                f.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=f.default if f.default is not MISSING else ...,
                annotation=Annotated[hints[f.name], typer.Option(help=f.metadata.get("help", ""))],
            )
            for f in free
        ]

        def run(**given: Any) -> None:
            chosen = settings(**{f.name: given.pop(f.name) for f in free})
            command(**given, settings=chosen)

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__signature__ = inspect.Signature(own + flags)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in own + flags}
        return run

    return decorate


class Bar:
    """Progress bars, one per label, with throughput and time left; call it as ``bar(done, total, label)``."""

    def __init__(self) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Bar:
        self._bar.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.__exit__(*error)

    def __call__(self, done: int, total: int, label: str) -> None:
        """Shows `done` of `total` under a label."""
        key = label.split(",")[0]
        if key not in self._tasks or done == 0:
            if key in self._tasks:
                self._bar.remove_task(self._tasks[key])
            self._tasks[key] = self._bar.add_task(label, total=total, rate="")
        task = self._tasks[key]
        speed = next((t.speed for t in self._bar.tasks if t.id == task), None)
        self._bar.update(task, completed=done, total=total, description=label, rate=f"{speed:.0f}/s" if speed else "")
        if done >= total:
            self._bar.remove_task(self._tasks.pop(key))


def say(text: str) -> None:
    """One line for the user."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def show(table: Any, title: str) -> None:
    """A pandas table, in colour and as wide as the terminal allows."""
    drawn = Table(title=title, title_justify="left")
    drawn.add_column(table.index.name or "", no_wrap=True)
    for column in table.columns:
        drawn.add_column(str(column), justify="right")
    for index, row in zip(table.index, table.itertuples(index=False), strict=True):
        drawn.add_row(*(escape(str(value)) for value in (index, *row)))  # models have arguments in brackets
    console.print(drawn)


def print_table(rows: list[dict[str, Any]], as_json: bool, title: str, columns: tuple[str, ...]) -> None:
    if as_json:
        sys.stdout.write(json.dumps(rows, indent=1) + "\n")
        return
    import pandas as pd

    shown = pd.DataFrame([{c: " ".join(r[c]) if isinstance(r[c], list) else r[c] for c in columns} for r in rows])
    show(shown.set_index(columns[0]), title)
