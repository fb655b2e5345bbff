"""Where the tissue is on a slide, and a lattice of tile centres on it."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from histoweave.pp.lattice import Lattice

# Bounds and widths below were set on the six her2st images, whose glass is pinkish and has a halo of eosin: there the
# spots on tissue score 0.05 and more, and the glass away from it 0.03 and less.
_NEVER, _ALWAYS = 0.03, 0.06  # score: below is glass, above is stained
_FLOOR = 0.005  # added to scores before the logarithm under which Otsu's threshold is sought: noise of a scanner
_WIDTH = 3.0  # px of the thumbnail over which density and texture are judged
_COLOUR = 0.2  # spread of the densities over the channels, relative to their mean, below which a pixel is grey
_GLASS = 200.0  # a byte: glass is not darker, so that an image without glass is not measured against its own tissue
_ROUNDING = 1e-9  # by which a tile that is all tissue may miss a share of 1


def tissue_mask(rgb: np.ndarray, *, min_object: float = 5e-4, max_hole: float = 5e-3) -> np.ndarray:
    """Which pixels of a thumbnail show stained tissue.

    Nuclei darken red, and tissue has texture in green; a halo of eosin on the glass does neither, and shadow and black
    pen have no colour. So the score of a neighbourhood is the root of its mean squared red optical density plus its
    variance of green density, against the colour of the glass; grey is left out. The threshold is Otsu's on the
    logarithm of the score, kept between fixed bounds so that an image of glass alone has no tissue and one of tissue
    alone is all tissue. Coloured pen is taken for tissue, and holes of under about 16 px across are not seen.

    Parameters
    ----------
    rgb
        uint8 (h, w, 3); about 1,000 px a side is enough.
    min_object, max_hole
        Smaller pieces are dropped and smaller holes filled; as fractions of the image's area.

    Returns
    -------
    bool (h, w).

    Raises
    ------
    ValueError
        Not an RGB image of bytes.
    """
    rgb = np.asarray(rgb)
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or rgb.size == 0:
        raise ValueError(f"the image has shape {rgb.shape} and type {rgb.dtype}; expected uint8 (h, w, 3)")
    density = np.log10((_glass(rgb) + 1) / (rgb.astype(np.float32) + 1))  # (h, w, 3)
    mean = ndimage.gaussian_filter(density, (_WIDTH, _WIDTH, 0))
    square = ndimage.gaussian_filter(density[..., :2] ** 2, (_WIDTH, _WIDTH, 0))
    score = np.sqrt(square[..., 0] + np.maximum(square[..., 1] - mean[..., 1] ** 2, 0))
    threshold = 10 ** otsu(np.log10(score + _FLOOR)) - _FLOOR
    mask = score > np.clip(threshold, _NEVER, _ALWAYS)
    mask &= mean.max(axis=2) - mean.min(axis=2) > _COLOUR * np.abs(mean.mean(axis=2))
    # Glass scores for as far as it sees the tissue beside it: there a pixel has to be dark itself.
    rim = mask & ~ndimage.binary_erosion(mask, iterations=round(3 * _WIDTH), border_value=1)
    mask &= ~rim | (ndimage.gaussian_filter(density[..., 0], 1.0) > _NEVER)
    mask = ~_drop_small(~mask, max_hole * mask.size)
    return _drop_small(mask, min_object * mask.size)


def _glass(rgb: np.ndarray) -> np.ndarray:
    """Colour of the glass (3,), float32: a high quantile of each channel, without the padding of slide files."""
    pixels = rgb.reshape(-1, 3)
    scanned = pixels[(pixels.min(axis=1) < 255) & (pixels.max(axis=1) > 0)]
    if len(scanned) == 0:
        return np.full(3, 255, dtype=np.float32)
    return np.maximum(np.quantile(scanned, 0.9, axis=0), _GLASS).astype(np.float32)


def otsu(values: np.ndarray, bins: int = 256) -> float:
    """The threshold that separates two classes with the largest variance between them (Otsu 1979).

    Parameters
    ----------
    values
        Any shape, finite.

    Returns
    -------
    A bin centre; the value itself where all are equal.

    Raises
    ------
    ValueError
        No values.
    """
    if np.size(values) == 0:
        raise ValueError("a threshold needs values, and there are none")
    low, high = float(np.min(values)), float(np.max(values))
    if low == high:
        return low
    count, edges = np.histogram(values, bins=bins, range=(low, high))
    centre = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(count).astype(np.float64)
    above = below[-1] - below
    summed = np.cumsum(count * centre)
    split = (below > 0) & (above > 0)
    between = np.zeros(bins)
    means = summed[split] / below[split] - (summed[-1] - summed[split]) / above[split]
    between[split] = below[split] * above[split] * means**2
    return float(centre[np.argmax(between)])


def tile_centres(
    mask: np.ndarray,
    image_size: tuple[int, int],
    um_per_px: float,
    pitch_um: float,
    *,
    lattice: Lattice = "square",
    min_tissue: float = 0.5,
    window_um: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Centres of tiles on tissue, on a lattice over the whole image.

    Parameters
    ----------
    mask
        Tissue, bool (h, w), over the same field as the image, at any scale.
    image_size
        Width and height of level 0 in px.
    um_per_px
        Of level 0.
    pitch_um
        Distance between touching centres.
    lattice
        ``hex`` gives Visium's layout: rows √3/2 pitches apart, every second one shifted by half a pitch, columns
        doubled.
    min_tissue
        Fraction of a tile's area that must be tissue; area outside the image is not.
    window_um
        Side of the square that is judged; None takes the pitch.

    Returns
    -------
    xy, array_rc
        Level-0 px (n, 2) float64 as (x, y), and int64 (n, 2) as (row, column), by row and then column.

    Raises
    ------
    ValueError
        Sizes that are not above 0, a fraction outside 0 to 1, a lattice that does not exist, or no tile with enough
        tissue.
    """
    mask = np.asarray(mask)
    window_um = pitch_um if window_um is None else window_um
    _check_tiling(mask, image_size, um_per_px, pitch_um, window_um, min_tissue, lattice)
    width, height = image_size
    step = pitch_um / um_per_px
    if step < 1:
        raise ValueError(
            f"pitch_um={pitch_um:g} is less than a pixel ({um_per_px:g} µm); expected the distance between spots in µm"
        )
    down = step * (np.sqrt(3) / 2 if lattice == "hex" else 1.0)
    rows = np.arange(int(np.ceil(height / down)))
    columns = np.arange(int(np.ceil(width / step)))
    row, column = (axis.ravel() for axis in np.meshgrid(rows, columns, indexing="ij"))
    shifted = (row % 2) if lattice == "hex" else np.zeros_like(row)
    xy = np.column_stack([(column + 0.5 + 0.5 * shifted) * step, (row + 0.5) * down])
    array_rc = np.column_stack([row, 2 * column + shifted if lattice == "hex" else column])
    inside = (xy[:, 0] < width) & (xy[:, 1] < height)
    xy, array_rc = xy[inside], array_rc[inside].astype(np.int64)
    share = _covered(mask, xy, window_um / um_per_px, (width, height))
    keep = (share >= min_tissue - _ROUNDING) & (share > _ROUNDING)
    if not keep.any():
        raise ValueError(
            f"none of {len(xy)} tiles of {window_um:g} µm is at least {min_tissue:.0%} tissue "
            f"({mask.mean():.1%} of the image is); lower min_tissue, check the µm per px, or give "
            "another mask"
        )
    return xy[keep], array_rc[keep]


def _check_tiling(
    mask: np.ndarray,
    image_size: tuple[int, int],
    um_per_px: float,
    pitch_um: float,
    window_um: float,
    min_tissue: float,
    lattice: str,
) -> None:
    if mask.ndim != 2 or mask.dtype != bool or mask.size == 0:
        raise ValueError(f"the tissue mask has shape {mask.shape} and type {mask.dtype}; expected bool (h, w)")
    sizes: dict[str, float | None] = {
        "width": image_size[0],
        "height": image_size[1],
        "um_per_px": um_per_px,
        "pitch_um": pitch_um,
        "window_um": window_um,
    }
    for name, value in sizes.items():
        if value is None or not (np.isfinite(value) and value > 0):
            raise ValueError(f"{name}={value!r}; expected a number above 0")
    if not 0 <= min_tissue <= 1:
        raise ValueError(f"min_tissue={min_tissue!r}; expected a fraction between 0 and 1")
    if lattice not in ("square", "hex"):
        raise ValueError(f"lattice={lattice!r}; expected 'square' or 'hex'")


def _drop_small(mask: np.ndarray, least: float) -> np.ndarray:
    """The mask without pieces (joined by edges) of fewer than `least` pixels."""
    pieces, _ = ndimage.label(mask)
    large = np.bincount(pieces.ravel()) >= least
    large[0] = False
    return large[pieces]


def _covered(mask: np.ndarray, xy: np.ndarray, side: float, image_size: tuple[int, int]) -> np.ndarray:
    """Fraction of the square of `side` px round each centre that is tissue, (n,)."""
    scale = np.array([mask.shape[1], mask.shape[0]]) / np.asarray(image_size, dtype=np.float64)  # (x, y)
    summed = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1))
    summed[1:, 1:] = mask.cumsum(axis=0, dtype=np.int64).cumsum(axis=1)
    limit = np.array([mask.shape[1], mask.shape[0]], dtype=np.float64)
    low = np.clip((xy - side / 2) * scale, 0, limit)  # (n, 2)
    high = np.clip((xy + side / 2) * scale, 0, limit)

    def upto(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        # The mask is constant within a pixel, so its running sum is bilinear there and this is the exact area.
        return ndimage.map_coordinates(summed, np.stack([y, x]), order=1, mode="nearest")

    (left, top), (right, bottom) = low.T, high.T
    area = upto(right, bottom) - upto(left, bottom) - upto(right, top) + upto(left, top)
    return area / (side**2 * scale.prod())
