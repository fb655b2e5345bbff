"""The parser of count tables against pandas, and what it refuses."""

from __future__ import annotations

import gzip

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histoweave.data.io._tsv import read_count_table
from histoweave.data.section import SectionError

CELL = st.sampled_from([0, 0, 0, 1, 9, 10, 345, 1234567])
TABLE = "\tA\tb\tC\n1x2\t0\t10\t0\n3x4\t7\t0\t123456\n"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(CELL, min_size=3, max_size=3), min_size=1, max_size=6))
def test_agrees_with_pandas(tmp_path_factory: pytest.TempPathFactory, values: list[list[int]]) -> None:
    path = tmp_path_factory.mktemp("tsv") / "counts.tsv"
    frame = pd.DataFrame(values, index=[f"{i}x1" for i in range(len(values))], columns=["G1", "g1", "G-2"])
    frame.to_csv(path, sep="\t")
    table = read_count_table(path)
    assert (table.rows, table.columns) == (list(frame.index), list(frame.columns))
    np.testing.assert_array_equal(table.counts.toarray(), frame.to_numpy())
    assert table.counts.nnz == np.count_nonzero(values)
    assert table.counts.has_canonical_format


@pytest.mark.parametrize(
    "text",
    [TABLE, TABLE.replace("\n", "\r\n"), TABLE.replace("\n", "\r"), TABLE + "\n\n", TABLE[1:],
     TABLE.replace("A", '"A"'),
     TABLE.replace("\t0\t10", "\t0.0\t10.0").replace("\t7\t", "\t7.0\t"), TABLE.replace("\t10\t", "\t1e1\t")],
    ids=["plain", "crlf", "cr", "blank lines", "no corner", "quotes", "floats", "exponent"],
)
def test_spellings_of_one_table(tmp_path, text: str) -> None:
    path = tmp_path / "counts.tsv"
    path.write_bytes(text.encode())
    table = read_count_table(path)
    assert (table.rows, table.columns) == (["1x2", "3x4"], ["A", "b", "C"])
    np.testing.assert_array_equal(table.counts.toarray(), [[0, 10, 0], [7, 0, 123456]])


def test_comma_and_gzip(tmp_path) -> None:
    path = tmp_path / "counts.csv.gz"
    path.write_bytes(gzip.compress(TABLE.replace("\t", ",").encode()))
    np.testing.assert_array_equal(read_count_table(path).counts.toarray(), [[0, 10, 0], [7, 0, 123456]])


def test_negative_and_fractions_are_kept_for_the_check_of_content(tmp_path) -> None:
    path = tmp_path / "counts.tsv"
    path.write_text("\tA\tB\nx\t-3\t0.5\n")
    np.testing.assert_array_equal(read_count_table(path).counts.toarray(), [[-3, 0.5]])


@pytest.mark.parametrize(
    ("text", "message"),
    [("\tA\tB\n", "no rows"), (TABLE + "5x6\t0\t1", "line 4 has 3 cells, the first row has 4"),
     (TABLE.replace("\t7\t", "\t\t"), "1 counts are missing.*'3x4', gene 'A'"),
     (TABLE.replace("10", "ten"), "not a number"),
     ("A\tB\tC\tD\tE\n1x1\t0\t0\n", "names 5 columns, but the first row has 2")],
)
def test_refuses(tmp_path, text: str, message: str) -> None:
    path = tmp_path / "counts.tsv"
    path.write_text(text)
    with pytest.raises(SectionError, match=message):
        read_count_table(path)


def test_truncated_gzip_names_the_file(tmp_path) -> None:
    path = tmp_path / "counts.tsv.gz"
    path.write_bytes(gzip.compress(TABLE.encode())[:-12])
    with pytest.raises(SectionError, match=r"counts\.tsv\.gz' is truncated"):
        read_count_table(path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_count_table(tmp_path / "nowhere.tsv")
