"""Gene lengths from a synthetic GTF: unions of exons, versions, duplicates, the cache, and look-ups."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from histoweave.cli._data import gene_lengths
from histoweave.data import gene_lengths as gl

EXONS = [  # sequence, gene, symbol, first, last
    ("chr1", "ENSG00000000001.5", "AAA", 100, 199),
    ("chr1", "ENSG00000000001.5", "AAA", 150, 249),  # overlaps
    ("chr1", "ENSG00000000001.5", "AAA", 120, 130),  # inside
    ("chr1", "ENSG00000000001.5", "AAA", 250, 259),  # touches
    ("chr1", "ENSG00000000001.5", "AAA", 1000, 1000),
    ("chr1", "ENSG00000000002.1", "BBB", 120, 140),  # over the first gene, which does not matter
    ("chrX", "ENSG00000000003.9", "PAR", 10, 29),
    ("chrY", "ENSG00000000003.9_PAR_Y", "PAR", 10, 49),
    ("chr2", "ENSG00000000004.2", "", 5, 9),
    ("chr3", "ENSG00000000005.2", "TWICE", 1, 10),
    ("chr3", "ENSG00000000006.2", "TWICE", 1, 20),
    ("chr3", "ENSG00000000007.2", "SAME", 1, 30),
    ("chr3", "ENSG00000000008.2", "SAME", 41, 70),
]
LENGTHS = {1: 161, 2: 21, 3: 20, 4: 5, 5: 10, 6: 20, 7: 30, 8: 30}


def line(sequence: str, gene: str, symbol: str, first: object, last: object, kind: str = "exon") -> str:
    named = f' gene_name "{symbol}";' if symbol else ""
    about = f'gene_id "{gene}"; transcript_id "T";{named}'
    return "\t".join([sequence, "HAVANA", kind, str(first), str(last), ".", "+", ".", about])


@pytest.fixture
def gtf(tmp_path: Path) -> Path:
    rows = ["##description: made up", line("chr1", "ENSG00000000001.5", "AAA", 100, 99999, "gene")]
    path = tmp_path / "small.gtf"
    path.write_text("\n".join([*rows, *(line(*exon) for exon in EXONS)]) + "\n", encoding="utf-8")
    return path


def test_exons_are_merged(gtf: Path) -> None:
    table = gl.build(gtf)
    assert list(table.columns) == ["gene_id", "gene_symbol", "merged_exon_length"]
    assert dict(zip(table["gene_id"], table["merged_exon_length"], strict=True)) == {
        f"ENSG{i:011d}": length for i, length in LENGTHS.items()
    }
    assert table["gene_symbol"].tolist() == ["AAA", "BBB", "PAR", "", "TWICE", "TWICE", "SAME", "SAME"]


def test_random_exons_against_sets_of_bases(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    bases: dict[str, set[tuple[str, int]]] = {}
    rows = []
    for _ in range(300):
        gene, sequence, first = f"g{rng.integers(12)}", f"chr{rng.integers(2)}", int(rng.integers(1, 200))
        last = first + int(rng.integers(0, 40))
        rows.append(line(sequence, gene, "", first, last))
        bases.setdefault(gene, set()).update((sequence, base) for base in range(first, last + 1))
    path = tmp_path / "random.gtf"
    path.write_text("\n".join(rows), encoding="utf-8")
    table = gl.build(path).set_index("gene_id")["merged_exon_length"]
    assert table.to_dict() == {gene: len(covered) for gene, covered in bases.items()}


def test_compressed_and_cached(gtf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = tmp_path / "small.gtf.gz"
    packed.write_bytes(gzip.compress(gtf.read_bytes()))
    pd.testing.assert_frame_equal(gl.build(packed), gl.build(gtf))
    made = gl.make_lengths(packed, tmp_path / "cache")
    assert (made.genes, made.with_symbol, made.duplicates) == (8, 7, 1)
    assert made.path.parent == tmp_path / "cache" / "gene_lengths"
    pd.testing.assert_frame_equal(gl.read(made.path), gl.build(gtf))
    assert gl.make_lengths(gtf, tmp_path / "cache").path != made.path
    monkeypatch.setattr(gl, "_build", lambda gtf: pytest.fail("built a second time"))
    assert gl.make_lengths(packed, tmp_path / "cache") == made
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    with pytest.raises(pytest.fail.Exception):  # another cache is empty
        gl.make_lengths(packed)


def test_the_command_tells_what_is_left_out(gtf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gene_lengths(gtf, tmp_path / "cache")
    told = "".join(capsys.readouterr())
    assert "8 genes, 7 with a symbol, 1 left out that came a second time: " in " ".join(told.split())


def test_lookup_by_identifier_and_symbol(gtf: Path) -> None:
    names = ["ENSG00000000002.77", "ENSG00000000004", "AAA", "PAR", "aaa", "nope.1", "TWICE", "SAME", ""]
    found = gl.lookup(gl.build(gtf), names)
    np.testing.assert_array_equal(found, [21, 5, 161, 20, np.nan, np.nan, np.nan, 30, np.nan])


def test_names_with_a_dot_are_not_cut() -> None:
    assert gl.without_version("ENSMUSG00000102693.2") == "ENSMUSG00000102693"
    assert [gl.without_version(name) for name in ("AL627309.1", "ENSG1", "HLA-A")] == ["AL627309.1", "ENSG1", "HLA-A"]


def test_tables_from_elsewhere(gtf: Path, tmp_path: Path) -> None:
    table = gl.build(gtf)
    table.to_parquet(tmp_path / "t.parquet")
    table.assign(more=1).to_csv(tmp_path / "t.csv", index=False)
    pd.testing.assert_frame_equal(gl.read(tmp_path / "t.parquet"), table)
    pd.testing.assert_frame_equal(gl.read(tmp_path / "t.csv"), table)
    pd.concat([table, table]).to_csv(tmp_path / "twice.tsv", sep="\t", index=False)
    pd.testing.assert_frame_equal(gl.read(tmp_path / "twice.tsv"), table)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", r"lacks \['gene_id'"),
        ("gene_id,gene_symbol,merged_exon_length\nA,a,0\nB,b,x\n", "2 of 2 lengths are not numbers above 0"),
        ("gene_id,gene_symbol,merged_exon_length\nA,a,inf\n", "1 of 1 lengths"),
    ],
)
def test_tables_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        gl.read(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# nothing\n\n", "has no exons"),
        ("chr1\texon\n", "line 1, has 2 columns"),
        (line("chr1", "G", "", 5, 4), "from '5' to '4'"),
        (line("chr1", "G", "", "x", 4), "from 'x' to '4'"),
        (line("chr1", "G", "", 1, 4).replace('gene_id "G"', "gene_id=G"), "without gene_id"),
    ],
)
def test_files_that_are_no_gtf(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.gtf"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        gl.build(path)


def test_no_file_and_half_a_file(gtf: Path, tmp_path: Path) -> None:
    for function in (gl.build, gl.read, gl.make_lengths):
        with pytest.raises(FileNotFoundError, match="there is no file"):
            function(tmp_path / "none")
    half = tmp_path / "half.gtf.gz"
    half.write_bytes(gzip.compress(gtf.read_bytes())[:-30])
    with pytest.raises(ValueError, match="cannot be read to its end"):
        gl.build(half)
