"""Alignments: matrices, landmarks, their direction, and what is refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from histoweave.data.io._alignment import read_alignment, stretch, to_image, to_xenium
from histoweave.data.section import SectionError

MATRIX = np.array([[0.1, -1.3, 400.0], [1.3, 0.1, -20.0], [0.0, 0.0, 1.0]])
POINTS = np.array([[10.0, 20.0], [300.0, 40.0], [150.0, 500.0], [420.0, 380.0]])
EXPLORER = ["fixedX", "fixedY", "alignmentX", "alignmentY"]


def read(given: object) -> np.ndarray:
    return read_alignment(given, pixel_size=0.2125, id="s")  # type: ignore[arg-type]


def moved(points: np.ndarray) -> np.ndarray:
    return np.array([(MATRIX @ [x, y, 1.0])[:2] for x, y in points])


def test_forms_of_a_matrix(tmp_path: Path) -> None:
    csv, rows, named = tmp_path / "m.csv", tmp_path / "m.json", tmp_path / "n.json"
    csv.write_text("\ufeff" + "\n".join(", ".join(map(repr, row)) for row in MATRIX.tolist()) + "\n", encoding="utf-8")
    rows.write_text(json.dumps(MATRIX.tolist()))
    named.write_text(json.dumps({"matrix": MATRIX.tolist()}))
    for given in (MATRIX, MATRIX.tolist(), csv, str(rows), named):
        np.testing.assert_array_equal(read(given), MATRIX)
    np.testing.assert_array_equal(read("identity"), np.eye(3))


def test_directions_are_each_others_inverse() -> None:
    np.testing.assert_allclose(to_xenium(MATRIX, POINTS), moved(POINTS))
    np.testing.assert_allclose(to_image(MATRIX, moved(POINTS)), POINTS)
    assert stretch(MATRIX) == pytest.approx(np.hypot(0.1, 1.3))


def test_exact_landmarks_give_the_matrix(tmp_path: Path) -> None:
    np.testing.assert_allclose(read((POINTS, moved(POINTS))), MATRIX, atol=1e-9)
    np.testing.assert_allclose(read((POINTS.tolist(), moved(POINTS).tolist())), MATRIX, atol=1e-9)
    explorer = tmp_path / "k.csv"
    pd.DataFrame(np.c_[moved(POINTS), POINTS], columns=EXPLORER).to_csv(explorer, index=False)
    np.testing.assert_allclose(read(explorer), MATRIX, atol=1e-9)
    for name, points in (("a.csv", POINTS), ("b.csv", moved(POINTS))):
        pd.DataFrame(points, columns=["X", "y"]).to_csv(tmp_path / name)
    np.testing.assert_allclose(read((tmp_path / "a.csv", tmp_path / "b.csv")), MATRIX, atol=1e-9)


def test_noisy_landmarks_are_fitted_by_least_squares(caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(0)
    stained = rng.uniform(0, 2000, (12, 2))
    xenium = moved(stained) + rng.normal(0, 4, (12, 2))
    with caplog.at_level(logging.INFO):
        got = read((stained, xenium))
    design = np.c_[stained, np.ones(12)]  # the normal equations, one coordinate at a time
    for axis in (0, 1):
        np.testing.assert_allclose(got[axis], np.linalg.solve(design.T @ design, design.T @ xenium[:, axis]), rtol=1e-8)
    miss = np.sqrt(((to_xenium(got, stained) - xenium) ** 2).sum(axis=1).mean()) * 0.2125
    assert f"12 landmarks miss the map through them by {miss:.2f} µm" in caplog.text
    assert "WARNING" not in caplog.text
    read((stained, xenium + rng.normal(0, 100, (12, 2))))
    assert "WARNING" in caplog.text


@pytest.mark.parametrize(
    "matrix, why",
    [
        (MATRIX[:2], r"shape \(2, 3\) and type float64; expected numbers \(3, 3\)"),
        (MATRIX.ravel(), r"shape \(9,\)"),
        (MATRIX.T, "expected 0, 0, 1: is it transposed"),
        (np.where(MATRIX == 400, np.nan, MATRIX), "1 numbers that are not finite"),
        (np.array([[1.0, 2.0, 0.0], [2.0, 4.0, 0.0], [0.0, 0.0, 1.0]]), "is singular"),
        (np.diag([0.0, 0.0, 1.0]), "is singular"),
    ],
)
def test_matrices_that_are_refused(tmp_path: Path, matrix: np.ndarray, why: str) -> None:
    for given in (matrix, matrix.tolist()):
        with pytest.raises(SectionError, match=why):
            read(given)
    if matrix.ndim == 2:
        np.savetxt(tmp_path / "m.csv", matrix, delimiter=",")
        with pytest.raises(SectionError, match=r"section 's': the alignment '.*m\.csv'"):
            read(tmp_path / "m.csv")


@pytest.mark.parametrize(
    "stained, xenium, why",
    [
        (POINTS[:2], POINTS[:2], "has 2 landmarks; expected three or more"),
        (POINTS[:, :1] * [1.0, 2.0], POINTS, "has 4 landmarks; expected three or more that are not on one line"),
        (POINTS, POINTS[:3], "4 points on the stained image and 3 on the Xenium"),
        (POINTS[:, :1], POINTS, r"landmarks have shape \(4, 1\)"),
        (POINTS, POINTS[:, :1] * [1.0, 2.0], "is singular"),
    ],
)
def test_landmarks_that_are_refused(stained: np.ndarray, xenium: np.ndarray, why: str) -> None:
    with pytest.raises(SectionError, match=why):
        read((stained, xenium))


def test_lists_that_are_no_table() -> None:
    for given in ([[1.0, 0.0], [0.0]], ([["a", "b"]] * 3, POINTS)):
        with pytest.raises(SectionError, match="section 's': the alignment is a list that is no table of numbers"):
            read(given)


@pytest.mark.parametrize(
    "name, text, why",
    [
        ("m.csv", "a,b,c\n1,2,3\n4,5,6\n", "holds something that is no number"),
        ("m.csv", "", "is no table"),
        ("m.csv", "1,0,0\n0,1\n0,0,1\n", "1 numbers that are not finite"),
        ("m.json", "{", "is no json of three rows"),
        ("m.json", '{"affine": 1}', "is no json of three rows"),
        ("m.json", "[[1, 0], [0]]", "is no json of three rows"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, name: str, text: str, why: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(SectionError, match=why):
        read(tmp_path / name)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"the alignment '.*none\.csv' is not there"):
        read(tmp_path / "none.csv")
    with pytest.raises(FileNotFoundError, match="no table of landmarks"):
        read((tmp_path / "none.csv", POINTS))
    (tmp_path / "p.csv").write_text("u,v\n1,2\n")
    with pytest.raises(SectionError, match="expected the columns x and y"):
        read((tmp_path / "p.csv", POINTS))
    with pytest.raises(SectionError, match="3 tables of landmarks; expected two"):
        read((POINTS, POINTS, POINTS))


def test_a_stretched_matrix_is_told(caplog: pytest.LogCaptureFixture) -> None:
    read(np.diag([1.2, 1.0, 1.0]))
    assert "stretches one direction by 20.0 % more" in caplog.text
