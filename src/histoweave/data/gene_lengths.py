"""Lengths of genes as the union of their exons, from a GTF of GENCODE or Ensembl: what counts are divided by for TPM.

A table has the columns ``gene_id`` (without version), ``gene_symbol`` ("" where there is none) and
``merged_exon_length`` (base pairs). Genes are looked up by identifier or by symbol.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import pandas as pd

from histoweave._repro import file_digest
from histoweave.data._atomic import writing

ID, SYMBOL, LENGTH = "gene_id", "gene_symbol", "merged_exon_length"
_COLUMNS = (ID, SYMBOL, LENGTH)
_ENSEMBL = re.compile(r"(ENS[A-Z]*G\d+)\.\d+\S*")  # also ENSG00000182378.15_PAR_Y
_GENE_ID = re.compile(r'\bgene_id "([^"]+)"')
_GENE_NAME = re.compile(r'\bgene_name "([^"]*)"')


@dataclass(frozen=True, slots=True)
class Lengths:
    """A table of lengths on disk, and what it holds.

    Attributes
    ----------
    path
        The table, tab-separated.
    genes, with_symbol
        How many genes it has, and how many of them carry a symbol.
    duplicates
        Genes of the GTF left out because another had the same identifier before (the second copies of genes that lie
        on both sex chromosomes).
    """

    path: Path
    genes: int
    with_symbol: int
    duplicates: int


def make_lengths(gtf: str | Path, cache: str | Path | None = None) -> Lengths:
    """The table of a GTF, built once and kept under the digest of the file.

    Parameters
    ----------
    gtf
        Annotation, plain or ``.gz``.
    cache
        Folder to keep it in; ``~/.cache/histoweave`` where None.

    Raises
    ------
    FileNotFoundError, ValueError
        As `build`.
    """
    gtf = _file(gtf)
    folder = Path(cache) if cache is not None else Path.home() / ".cache" / "histoweave"
    path = folder / "gene_lengths" / f"{file_digest(gtf)}.tsv"
    if not path.is_file():
        table, duplicates = _build(gtf)
        with writing(path) as file:
            file.write(f"# duplicates: {duplicates}\n".encode())
            file.write(table.to_csv(sep="\t", index=False).encode())
    table = read(path)
    with path.open(encoding="utf-8") as text:
        duplicates = int(text.readline().rpartition(" ")[2])
    return Lengths(path, len(table), int((table[SYMBOL] != "").sum()), duplicates)


def build(gtf: str | Path) -> pd.DataFrame:
    """Lengths of the genes of a GTF: for each, the base pairs that at least one of its exons covers.

    Parameters
    ----------
    gtf
        Annotation of GENCODE or Ensembl, plain or ``.gz``.

    Returns
    -------
    Columns ``gene_id`` (version taken off), ``gene_symbol``, ``merged_exon_length``; genes in the order of the file. Of
    several genes with one identifier the first stays.

    Raises
    ------
    FileNotFoundError, ValueError
        No such file; a truncated or broken file; lines that are not GTF; no exons.

    Notes
    -----
    **Differences from the authors' code.** SpaRED takes the "merged" column of GTFtools, which is the same union of
    exons on chromosomes 1 to 22 (or 19), X and Y. Here genes of all sequences of the file are kept, those of the
    mitochondrion too.
    """
    return _build(_file(gtf))[0]


def read(path: str | Path) -> pd.DataFrame:
    """A table of lengths: tab- or comma-separated text, or parquet, with the columns that `build` gives.

    Raises
    ------
    FileNotFoundError, ValueError
        No such file; columns missing; lengths that are not numbers above 0.
    """
    path = _file(path)
    if path.suffix == ".parquet":
        table = pd.read_parquet(path)
    else:
        separator = "," if ".csv" in path.suffixes else "\t"
        table = pd.read_csv(path, sep=separator, comment="#", dtype={ID: str, SYMBOL: str}, keep_default_na=False)
    missing = [column for column in _COLUMNS if column not in table]
    if missing:
        raise ValueError(
            f"'{path}' has the columns {list(map(str, table.columns))} and lacks {missing}; expected a table of gene "
            "lengths as `histoweave data gene-lengths GTF` makes it"
        )
    length = pd.to_numeric(table[LENGTH], errors="coerce")
    bad = int((~(length > 0) | np.isinf(length)).sum())
    if bad:
        raise ValueError(f"'{path}': {bad} of {len(table)} lengths are not numbers above 0; expected base pairs")
    table = table[list(_COLUMNS)].assign(**{LENGTH: length, SYMBOL: table[SYMBOL].fillna("")})
    table[ID] = [without_version(name) for name in table[ID]]
    return table.drop_duplicates(ID).reset_index(drop=True)


def lookup(table: pd.DataFrame, genes: Sequence[str]) -> np.ndarray:
    """Length of each gene by identifier (with or without version) or by symbol: float64 (g,), NaN where there is none.

    A symbol that genes of different lengths share has none.
    """
    by_id = pd.Series(table[LENGTH].to_numpy(np.float64), index=pd.Index(table[ID]))
    named = table[table[SYMBOL] != ""]
    spread = named.groupby(SYMBOL)[LENGTH].agg(["min", "max"]).astype(np.float64)
    by_symbol = spread["min"].where(spread["min"] == spread["max"])
    names = pd.Index([str(gene) for gene in genes], dtype=object)
    found = by_id.reindex([without_version(name) for name in names]).to_numpy()
    return np.where(np.isnan(found), by_symbol.reindex(names).to_numpy(), found)


def without_version(name: str) -> str:
    """An Ensembl gene identifier without its version; any other name as it is."""
    match = _ENSEMBL.fullmatch(name)
    return match[1] if match else name


def _file(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file '{path}'")
    return path


def _build(gtf: Path) -> tuple[pd.DataFrame, int]:
    """The table, and how many genes were left out as duplicates."""
    pieces: dict[tuple[str, str], int] = {}  # (identifier with version, sequence) → code
    symbols: dict[str, str] = {}
    code, start, end = [], [], []
    for gene, symbol, sequence, first, last in _exons(gtf):
        code.append(pieces.setdefault((gene, sequence), len(pieces)))
        start.append(first)
        end.append(last)
        if symbol or gene not in symbols:
            symbols[gene] = symbol
    if not code:
        raise ValueError(f"'{gtf}' has no exons; expected a GTF of genes with exons, as GENCODE or Ensembl give it")
    covered = _covered(np.array(code), np.array(start), np.array(end))
    table = pd.DataFrame({"full": [gene for gene, _ in pieces], LENGTH: covered})
    table = table.groupby("full", sort=False, as_index=False)[LENGTH].sum()
    table[ID] = [without_version(gene) for gene in table["full"]]
    table[SYMBOL] = [symbols[gene] for gene in table["full"]]
    repeated = table[ID].duplicated()
    return table.loc[~repeated, list(_COLUMNS)].reset_index(drop=True), int(repeated.sum())


def _covered(code: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Base pairs that the intervals [start, end] of each code cover together: int64 (codes,)."""
    order = np.lexsort((start, code))
    code, start, end = code[order], start[order], end[order]
    # Each code gets a stretch of the number line to itself, so one running maximum serves all of them.
    shift = code * (int(end.max()) + 1)
    reached = np.maximum.accumulate(end + shift)
    before = np.concatenate([[0], reached[:-1]])
    new = end + shift - np.maximum(start + shift - 1, before)
    return np.bincount(code, weights=np.maximum(new, 0)).astype(np.int64)


def _exons(gtf: Path) -> Iterator[tuple[str, str, str, int, int]]:
    """Gene, symbol, sequence, first and last base of every exon."""
    try:
        with _text(gtf) as lines:
            for number, line in enumerate(lines, start=1):
                if line.startswith("#") or not line.strip():
                    continue
                fields = line.split("\t", 8)
                if len(fields) < 9:
                    raise ValueError(f"'{gtf}', line {number}, has {len(fields)} columns; expected the 9 of a GTF")
                if fields[2] == "exon":
                    yield _exon(fields, f"'{gtf}', line {number}")
    except (EOFError, gzip.BadGzipFile, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"'{gtf}' cannot be read to its end ({error}); get the file again") from error


def _exon(fields: Sequence[str], where: str) -> tuple[str, str, str, int, int]:
    gene, name = _GENE_ID.search(fields[8]), _GENE_NAME.search(fields[8])
    if gene is None:
        raise ValueError(f'{where}: an exon without gene_id "…"; expected a GTF (GFF3 writes gene_id=… instead)')
    if not (fields[3].isdecimal() and fields[4].isdecimal() and 1 <= int(fields[3]) <= int(fields[4])):
        raise ValueError(f"{where}: an exon from {fields[3]!r} to {fields[4]!r}; expected 1 ≤ first ≤ last base")
    return gene[1], name[1] if name else "", fields[0], int(fields[3]), int(fields[4])


def _text(path: Path) -> IO[str]:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rt", encoding="utf-8") if packed else path.open(encoding="utf-8")
