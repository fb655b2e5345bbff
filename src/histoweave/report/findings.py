"""What the section "Biology" of the report is made of: tables, figures, and what could not be shown."""

from __future__ import annotations

from dataclasses import dataclass, field

from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the page: its caption, the names of its columns, and rows of text whose first entry is the row's name."""

    caption: str
    columns: list[str]
    rows: list[list[str]]


@dataclass(frozen=True, slots=True)
class Shot:
    """A figure, a name for its ids, its caption, and what it shows in words."""

    figure: Figure
    name: str
    caption: str
    alt: str


@dataclass(frozen=True, slots=True)
class Biology:
    """What the section holds, in its order."""

    remarks: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    shots: list[Shot] = field(default_factory=list)
