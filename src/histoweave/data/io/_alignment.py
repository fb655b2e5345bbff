"""The affine map between the pixels of a stained image and those of the Xenium run it belongs to.

Direction: as 10x exports it, a matrix takes pixels of the *stained image* (H&E) to pixels of the *Xenium* morphology
image. Cells are measured on the Xenium side, so they are placed on the stained image by its inverse (`to_image`).
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from histoweave.data.section import SectionError

log = logging.getLogger(__name__)

Points = str | Path | np.ndarray | list[Any]
Alignment = str | Path | np.ndarray | list[Any] | tuple[Points, Points] | Literal["identity"]

IDENTITY = "identity"
# Columns of the landmarks that Xenium Explorer exports: "fixed" is the Xenium image, "alignment" the stained one.
FIXED, MOVED = ("fixedX", "fixedY"), ("alignmentX", "alignmentY")
_FLAT = 1e-6  # smallest over largest stretch, below which a map takes the plane to a line
_SHEARED = 1.05  # stretches of a glass slide's scan agree within a few per cent
_CELL_UM = 10.0  # about the diameter of a cell; landmarks that miss by more put cells on their neighbours


def read_alignment(given: Alignment, *, pixel_size: float, id: str) -> np.ndarray:
    """The matrix (3, 3) that takes pixels of the stained image to pixels of the Xenium image.

    Parameters
    ----------
    given
        A matrix (3, 3), as an array or a list of rows; a file of one (``.csv`` without header, ``.json`` as a list of
        rows or under ``"matrix"``); a ``.csv`` of landmarks with the columns ``fixedX, fixedY`` (Xenium px) and
        ``alignmentX, alignmentY`` (px of the stained image), as Xenium Explorer exports them; two tables of matched
        points, ``(stained, xenium)``, each an array or list (m, 2) or a ``.csv`` with the columns x and y; or
        ``"identity"``.
    pixel_size
        µm per Xenium px, for messages.

    Raises
    ------
    SectionError
        A matrix that is not (3, 3), not finite, not affine or singular; fewer than three landmarks, landmarks on one
        line, tables of different lengths; `FileNotFoundError` where there is no such file.
    """
    where = f"section {id!r}: the alignment"
    if isinstance(given, tuple):
        if len(given) != 2:
            raise SectionError(f"{where} has {len(given)} tables of landmarks; expected two, (stained image, Xenium)")
        return _fitted(_points(given[0], where), _points(given[1], where), pixel_size, where)
    if isinstance(given, np.ndarray | list):
        return _checked(_array(given, where) if isinstance(given, list) else given, where)
    if given == IDENTITY:
        return np.eye(3)
    path = Path(given)
    where = f"section {id!r}: the alignment '{path}'"
    if not path.is_file():
        raise FileNotFoundError(f"{where} is not there; give a matrix (.csv, .json) or landmarks (.csv)")
    if path.suffix == ".json":
        return _checked(_json_matrix(path, where), where)
    table = _table(path, where)
    names = [str(name).strip().strip('"') for name in table.iloc[0]]
    if set(FIXED) | set(MOVED) <= set(names):
        points = _numbers(table.iloc[1:].set_axis(names, axis=1)[[*MOVED, *FIXED]], where)
        return _fitted(points[:, :2], points[:, 2:], pixel_size, where)
    return _checked(_numbers(table, where), where)


def to_image(matrix: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Xenium pixels (n, 2) on the stained image (n, 2): the inverse of `matrix`."""
    return np.linalg.solve(matrix[:2, :2], (xy - matrix[:2, 2]).T).T


def to_xenium(matrix: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Pixels of the stained image (n, 2) on the Xenium image (n, 2)."""
    return xy @ matrix[:2, :2].T + matrix[:2, 2]


def stretch(matrix: np.ndarray) -> float:
    """Xenium px per px of the stained image, whatever the rotation or reflection."""
    return float(np.sqrt(abs(np.linalg.det(matrix[:2, :2]))))


def _checked(given: np.ndarray, where: str) -> np.ndarray:
    matrix = np.asarray(given)
    if matrix.shape != (3, 3) or matrix.dtype.kind not in "uif":
        raise SectionError(
            f"{where} is a matrix of shape {matrix.shape} and type {matrix.dtype}; expected numbers (3, 3) that take px "
            "of the stained image to Xenium px, as Xenium Explorer exports them"
        )
    matrix = matrix.astype(np.float64)
    if not np.isfinite(matrix).all():
        raise SectionError(f"{where} holds {int((~np.isfinite(matrix)).sum())} numbers that are not finite")
    if not np.allclose(matrix[2], (0, 0, 1), atol=1e-9):
        raise SectionError(f"{where} has the last row {matrix[2].tolist()}; expected 0, 0, 1: is it transposed?")
    sides = np.linalg.svd(matrix[:2, :2], compute_uv=False)
    if sides[1] <= _FLAT * sides[0] or sides[0] == 0:
        raise SectionError(
            f"{where} is singular: it takes the image to a line or a point (stretches {sides[0]:.3g} and "
            f"{sides[1]:.3g}), so cells cannot be placed; export the matrix again"
        )
    if sides[0] > _SHEARED * sides[1]:
        log.warning("%s stretches one direction by %.1f %% more than another", where, 100 * (sides[0] / sides[1] - 1))
    return matrix


def _fitted(stained: np.ndarray, xenium: np.ndarray, pixel_size: float, where: str) -> np.ndarray:
    """The least-squares affine map from matched points (m, 2) to (m, 2)."""
    if len(stained) != len(xenium):
        raise SectionError(
            f"{where} has {len(stained)} points on the stained image and {len(xenium)} on the Xenium image; expected "
            "matched points, row by row"
        )
    spread = np.linalg.svd(stained - stained.mean(axis=0), compute_uv=False) if len(stained) > 2 else np.zeros(2)
    if spread[-1] <= _FLAT * spread[0]:
        raise SectionError(f"{where} has {len(stained)} landmarks; expected three or more that are not on one line")
    design = np.column_stack([stained, np.ones(len(stained))])
    solved = np.linalg.lstsq(design, xenium, rcond=None)[0]  # (3, 2)
    miss_um = float(np.sqrt(((design @ solved - xenium) ** 2).sum(axis=1).mean())) * pixel_size
    say = log.warning if miss_um > _CELL_UM else log.info
    say("%s: %d landmarks miss the map through them by %.2f µm (root mean square)", where, len(stained), miss_um)
    return _checked(np.vstack([solved.T, [0.0, 0.0, 1.0]]), where)


def _points(given: Points, where: str) -> np.ndarray:
    """Landmarks (m, 2) of one image."""
    if isinstance(given, list):
        points = _array(given, where)
    elif isinstance(given, np.ndarray):
        points = np.asarray(given, dtype=np.float64)
    else:
        if not Path(given).is_file():
            raise FileNotFoundError(f"{where}: there is no table of landmarks '{given}'")
        table = _table(Path(given), f"{where}: '{given}'")
        names = [str(name).strip().lower() for name in table.iloc[0]]
        if not {"x", "y"} <= set(names):
            raise SectionError(f"{where}: the first line of '{given}' is {names}; expected the columns x and y")
        points = _numbers(table.iloc[1:].set_axis(names, axis=1)[["x", "y"]], f"{where}: '{given}'")
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise SectionError(
            f"{where}: landmarks have shape {points.shape}; expected finite numbers (points, 2) as (x, y)"
        )
    return points


def _array(given: list[Any], where: str) -> np.ndarray:
    try:
        return np.asarray(given, dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise SectionError(
            f"{where} is a list that is no table of numbers ({error}); expected three rows of three, or points (m, 2)"
        ) from error


def _table(path: Path, where: str) -> pd.DataFrame:
    try:
        return pd.read_csv(path, header=None, dtype=str, skipinitialspace=True, encoding="utf-8-sig")
    except (ValueError, pd.errors.ParserError) as error:
        raise SectionError(
            f"{where} is no table ({error}); expected three lines of three numbers, or landmarks"
        ) from error


def _numbers(table: pd.DataFrame, where: str) -> np.ndarray:
    try:
        return table.to_numpy(dtype=np.float64)
    except ValueError as error:
        raise SectionError(
            f"{where} holds something that is no number ({error}); expected three lines of three numbers, or landmarks "
            f"with the columns {', '.join((*FIXED, *MOVED))}"
        ) from error


def _json_matrix(path: Path, where: str) -> np.ndarray:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return np.asarray(content["matrix"] if isinstance(content, dict) else content, dtype=np.float64)
    except (ValueError, KeyError, TypeError) as error:
        raise SectionError(f"{where} is no json of three rows of three numbers ({error})") from error
