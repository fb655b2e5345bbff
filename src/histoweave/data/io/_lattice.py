"""µm per pixel from the spot lattice, whose pitch the manufacturer gives: the most reliable number in the files."""

from __future__ import annotations

import logging
import math

import numpy as np

from histoweave.data.section import PITCH_UM, SectionError

log = logging.getLogger(__name__)

HEX_ROW = math.sqrt(3) / 2  # distance of two rows of a hexagonal lattice, in pitches
HUBER = 1.345  # standard constant: 95 % efficient under normal errors
MAD_TO_SD = 1.4826


def lattice_um(array_xy: np.ndarray, platform: str) -> np.ndarray:
    """Lattice coordinates (n, 2) as (column, row), in µm (n, 2).

    Legacy ST counts 200 µm in both directions. On Visium two spots of a row are two columns and 100 µm apart, and rows
    are 100·√3/2 µm apart.
    """
    pitch = PITCH_UM[platform]
    step = (pitch, pitch) if platform == "st" else (pitch / 2, pitch * HEX_ROW)
    return np.asarray(array_xy, dtype=np.float64) * step


def um_per_px(array_xy: np.ndarray, xy: np.ndarray, platform: str, *, id: str) -> float:
    """µm per px, from an affine map of lattice to pixels fitted by least squares with Huber weights.

    The square root of the map's determinant is px per µm, whatever the rotation or reflection of the slide.

    Parameters
    ----------
    array_xy
        Lattice coordinates (n, 2) as (column, row); fractions are welcome.
    xy
        Pixel centres (n, 2).

    Raises
    ------
    SectionError
        Fewer than four spots, or spots on one line; positions that are no lattice.
    """
    known = np.isfinite(xy).all(axis=1)
    um, xy = lattice_um(array_xy, platform)[known], xy[known]
    remedy = "give it (`--mpp`, the `mpp` column of samples.csv, or `um_per_px=`)"
    centred = um - um.mean(axis=0)
    if len(um) < 4 or np.linalg.svd(centred, compute_uv=False)[-1] < 1e-6 * PITCH_UM[platform]:
        raise SectionError(
            f"section {id!r}: {len(um)} spots on one line or fewer than four do not tell the µm per px; {remedy}"
        )
    design = np.column_stack([centred, np.ones(len(um))])
    weight = np.ones(len(um))
    for _ in range(20):
        root = np.sqrt(weight)[:, None]
        affine = np.linalg.lstsq(design * root, xy * root, rcond=None)[0]
        residual = np.linalg.norm(xy - design @ affine, axis=1)
        spread = MAD_TO_SD * float(np.median(residual))
        if spread <= 1e-9:
            break
        weight = np.minimum(1.0, HUBER * spread / np.maximum(residual, 1e-12))
    stretch = np.linalg.svd(affine[:2], compute_uv=False)
    if stretch[1] <= 0 or not np.isfinite(stretch).all():
        raise SectionError(f"section {id!r}: all spots have the same pixel position; check the position file")
    scale = 1.0 / math.sqrt(float(stretch[0] * stretch[1]))
    error_um = float(np.median(residual)) * scale
    if error_um > PITCH_UM[platform] / 4:
        raise SectionError(
            f"section {id!r}: pixel and lattice positions do not agree (median error {error_um:.0f} µm at a pitch of "
            f"{PITCH_UM[platform]:.0f} µm); do the files and platform {platform!r} belong together? Or {remedy}"
        )
    if stretch[0] / stretch[1] > 1.05:
        percent = 100 * float(stretch[0] / stretch[1] - 1)
        log.warning("section %r: the lattice is stretched by %.1f %% in the image", id, percent)
    log.info(
        "section %r: %.4f µm per px from the %s lattice of %d spots (median error %.1f µm)",
        id,
        scale,
        platform,
        len(um),
        error_um,
    )
    return scale


def resolve(given: float | None, array_xy: np.ndarray, xy: np.ndarray, platform: str, *, id: str) -> float:
    """The given µm per px, or else the one of the lattice; a given value that is off by more than 10 % is logged."""
    if given is None:
        return um_per_px(array_xy, xy, platform, id=id)
    try:
        inferred = um_per_px(array_xy, xy, platform, id=id)
    except SectionError as error:
        log.info("the given %.4f µm per px cannot be checked: %s", given, error)
        return given
    if abs(given / inferred - 1) > 0.1:
        log.warning(
            "section %r: %.4f µm per px was given, but the spot lattice says %.4f; the given value is used",
            id,
            given,
            inferred,
        )
    return given
