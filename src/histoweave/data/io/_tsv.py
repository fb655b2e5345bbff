"""Tables of counts written as text: bytes → sparse matrix, without a dense step and without one column object per gene.

More than nine in ten cells of such a table are the single character ``0``, so only the other cells are parsed.
"""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import sparse

from histoweave.data.section import SectionError

ZERO, NEWLINE = ord("0"), ord("\n")
EXACT_DIGITS = 15  # integers of that many digits are exact as float64
TAB_OR_NEWLINE = 10  # no other character up to this code occurs in a table


@dataclass(frozen=True, slots=True)
class CountTable:
    """A table of counts: row names (n,), column names (G,), and the values (n, G) as CSR."""

    rows: list[str]
    columns: list[str]
    counts: sparse.csr_matrix


def read_bytes(path: Path) -> bytes:
    """The content of a file, decompressed where its name ends in ``.gz``.

    Raises
    ------
    FileNotFoundError, SectionError
        No such file; a compressed file that is truncated or corrupt.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file '{path}'")
    if path.suffix != ".gz":
        return path.read_bytes()
    try:
        return gzip.decompress(path.read_bytes())
    except (EOFError, OSError, zlib.error) as error:
        raise SectionError(f"'{path}' is truncated or not a gzip file ({error}); fetch or copy it again") from error


def read_count_table(path: str | Path) -> CountTable:
    """A text table of counts, rows × columns, names in the first column and the first line.

    Tabs separate cells, or commas where the name says ``.csv``. The first line may lack the corner cell.

    Raises
    ------
    SectionError
        An empty table, lines of unequal length, an empty cell, a cell that is no number.
    """
    path = Path(path)
    raw = read_bytes(path)
    for spelling, plain in ((b"\r\n", b"\n"), (b"\r", b"\n"), (b'"', b"")):
        if spelling in raw:
            raw = raw.replace(spelling, plain)
    raw = raw.rstrip(b"\n")
    if path.name.removesuffix(".gz").endswith(".csv"):
        raw = raw.replace(b",", b"\t")
    first, _, rest = raw.partition(b"\n")
    if not rest:
        raise SectionError(f"'{path}' holds no rows of counts; expected a line of gene names and one line per spot")
    header = first.decode("utf-8").split("\t")
    width = rest.partition(b"\n")[0].count(b"\t") + 1
    columns = header[1:] if len(header) == width else header
    if len(columns) != width - 1 or width < 2:
        raise SectionError(
            f"'{path}': the first line names {len(columns)} columns, but the first row has {width - 1} values; "
            "expected a table of spots × genes, separated by tabs (commas in a .csv)"
        )
    body = np.frombuffer(b"\n" + rest + b"\n", dtype=np.uint8)
    separator = body <= TAB_OR_NEWLINE
    edges = np.flatnonzero(separator)  # cell i lies between edges[i] and edges[i + 1]
    _check_rows(path, body, edges, width)
    names = zip(edges[:-1:width] + 1, edges[1::width], strict=True)
    rows = [body[a:b].tobytes().decode("utf-8") for a, b in names]
    return CountTable(rows, columns, _values(path, body, separator, edges, rows, columns))


def _check_rows(path: Path, body: np.ndarray, edges: np.ndarray, width: int) -> None:
    """All rows must have the same number of cells."""
    lines = np.flatnonzero(body == NEWLINE)
    n = len(lines) - 1
    if len(edges) != n * width + 1 or not np.array_equal(edges[::width], lines):
        cells = np.diff(np.searchsorted(edges, lines))
        row = int(np.flatnonzero(cells != width)[0])
        raise SectionError(
            f"'{path}': line {row + 2} has {int(cells[row])} cells, the first row has {width}; the file is damaged "
            "or cut off"
        )


def _values(
    path: Path, body: np.ndarray, separator: np.ndarray, edges: np.ndarray, rows: list[str], columns: list[str]
) -> sparse.csr_matrix:
    """Cells other than a lone ``0``, parsed together by their length."""
    width = len(columns) + 1
    lone_zero = np.zeros(len(body), dtype=bool)
    lone_zero[:-2] = (body[1:-1] == ZERO) & separator[2:]  # at the separator before the cell
    filled = ~lone_zero[edges[:-1]]
    filled[::width] = False  # the names
    cell = np.flatnonzero(filled)
    row, column = cell // width, cell % width - 1
    begin = edges[cell] + 1
    length = edges[cell + 1] - begin
    if (length == 0).any():
        i = int(np.flatnonzero(length == 0)[0])
        raise SectionError(
            f"'{path}': {int((length == 0).sum())} counts are missing (first: spot {rows[row[i]]!r}, gene "
            f"{columns[column[i]]!r}); write 0, or drop the spot"
        )
    values = np.empty(len(begin), dtype=np.float64)
    for size in np.flatnonzero(np.bincount(length)).tolist():
        which = np.flatnonzero(length == size)
        at = begin[which]
        number = np.zeros(len(which))
        digits_only = size <= EXACT_DIGITS
        for place in range(min(size, EXACT_DIGITS)):
            digit = body[at + place] - np.uint8(ZERO)  # wraps below the digits, so that one comparison is enough
            digits_only = digits_only and bool(digit.max() <= 9)
            number = number * 10 + digit
        values[which] = number if digits_only else _floats(path, body[at[:, None] + np.arange(size)])
    starts = np.searchsorted(cell, np.arange(len(rows) + 1) * width)
    matrix = sparse.csr_matrix((values, column, starts), shape=(len(rows), len(columns)))
    matrix.eliminate_zeros()
    return matrix


def _floats(path: Path, text: np.ndarray) -> np.ndarray:
    """Cells of equal length (m, characters) as numbers."""
    words = np.ascontiguousarray(text).view(f"S{text.shape[1]}").ravel()
    try:
        return words.astype(np.float64)
    except ValueError as error:
        raise SectionError(f"'{path}' has a cell that is not a number ({error}); expected a table of counts") from error
