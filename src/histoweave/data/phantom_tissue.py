"""Plan of a phantom section: where glands, tumour nests, lymphocyte clusters, fat and nuclei lie.

Everything is drawn into coarse maps of *depth fields*: micrometres inside a structure's outline, negative outside.
`phantom_render` turns the fields into pixels; `composition` measures what each tile holds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from scipy import ndimage
from scipy.spatial import cKDTree

NODES = 28  # coarse nodes per tile: 7 um at a 200 um tile, fine enough for a 14 um epithelium by interpolation
MARGIN = 1.25  # tiles of canvas around the outermost spots' tiles: white glass plus the ragged border
P_LYMPH, P_GLAND = 0.17, 0.62  # share of lymphocyte clusters; share of glands in what neither cluster nor fat takes
P_FAT = (0.02, 0.36)  # share of fat at the two ends of the adipose axis
PARTS = ("gland", "tumour", "lymphocyte", "fat", "nuclei", "tissue")  # columns of `composition`


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """Geometry of one section: canvas, tile and pixel size. Lengths in um, origin at the upper left corner."""

    size_um: tuple[float, float]  # (width, height)
    inner_um: tuple[float, float]  # (width, height) of the spots' bounding box
    tile_um: float
    um_per_px: float

    @property
    def shape(self) -> tuple[int, int]:
        """Pixels (height, width)."""
        return round(self.size_um[1] / self.um_per_px), round(self.size_um[0] / self.um_per_px)

    @property
    def step(self) -> float:
        """Distance of coarse nodes, um."""
        return self.tile_um / NODES

    @property
    def nodes(self) -> tuple[int, int]:
        """Coarse nodes (rows, columns), covering the canvas."""
        return int(np.ceil(self.size_um[1] / self.step)) + 1, int(np.ceil(self.size_um[0] / self.step)) + 1

    @property
    def half_um(self) -> float:
        """Half the mean side of the spots' bounding box."""
        return 0.25 * (self.inner_um[0] + self.inner_um[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Tissue:
    """Plan of one section.

    Attributes
    ----------
    fields
        Depth fields in um on the coarse nodes, float32 (rows, columns): tissue, gland, lumen, tumour, lymphocyte, fat,
        septum (distance to the nearest adipocyte border).
    margin_um
        Distance to the nearest visible tumour margin (rows, columns).
    margin_box_um
        The same in the maximum norm: a square view of half side r holds margin exactly where this is <= r.
    axis
        Place along the adipose axis (rows, columns): -1 (little fat) to 1 (much fat) over the spots' bounding box.
    inside
        True on the tumour's side of the margin (rows, columns).
    nuclei
        Columns x, y, long and short half axis (um), angle (rad), haematoxylin, kind (m, 7), float32.
    """

    frame: Frame
    fields: dict[str, np.ndarray]
    margin_um: np.ndarray
    margin_box_um: np.ndarray
    axis: np.ndarray
    inside: np.ndarray
    nuclei: np.ndarray

    def at(self, field: np.ndarray, xy_um: np.ndarray) -> np.ndarray:
        """Values of a coarse field (rows, columns) at points (m, 2): linear interpolation, (m,)."""
        where = xy_um.T[::-1] / self.frame.step
        return ndimage.map_coordinates(field.astype(np.float32), where, order=1, mode="nearest")


def make_tissue(rng: Generator, frame: Frame, sites_um: np.ndarray) -> Tissue:
    """A tissue plan with random orientation; one structure, drawn independently, per site (m, 2) in um."""
    rows, cols = frame.nodes
    y, x = np.mgrid[:rows, :cols].astype(np.float32) * np.float32(frame.step)
    xc, yc = (v - np.float32(side / 2) for v, side in zip((x, y), frame.size_um, strict=True))
    tissue = _outline(rng, frame, xc, yc)
    inside = _tumour_side(rng, frame, xc, yc)
    angle = rng.uniform(0, 2 * np.pi)
    axis = np.clip((np.cos(angle) * xc + np.sin(angle) * yc) / frame.half_um, -1.2, 1.2)
    margin_um, margin_box_um = _margin(frame, tissue, inside)
    fields = _structures(rng, frame, sites_um, axis, inside)
    fields["tissue"] = tissue
    fields["fat"], fields["septum"] = _adipocytes(rng, frame, fields["fat"])
    nuclei = _nuclei(rng, frame, fields, _cellularity(rng, frame, sites_um))
    return Tissue(frame=frame, fields=fields, margin_um=margin_um, margin_box_um=margin_box_um, axis=axis,
                  inside=inside, nuclei=nuclei)


def composition(tissue: Tissue, xy_um: np.ndarray) -> np.ndarray:
    """What the 5 x 5 tiles around each point hold: (n, 5, 5, parts), parts as in `PARTS`.

    Area fractions of a tile, and nuclei per 1000 um² for "nuclei". Exact box integrals over the coarse map.
    """
    frame, fields = tissue.frame, tissue.fields
    on = {name: _cover(fields[name], frame.step) for name in ("tissue", "tumour", "lymphocyte", "fat", "gland")}
    on["lymphocyte"] *= on["tissue"]
    on["tumour"] *= on["tissue"] * (1 - on["lymphocyte"])
    on["gland"] *= on["tissue"] * (1 - on["lymphocyte"]) * (1 - on["tumour"])
    on["fat"] *= on["tissue"] * (1 - on["lymphocyte"]) * (1 - on["tumour"]) * (1 - on["gland"])
    at = np.rint(tissue.nuclei[:, 1::-1] / frame.step).astype(np.int64)
    flat = np.ravel_multi_index((at[:, 0], at[:, 1]), frame.nodes)
    on["nuclei"] = np.bincount(flat, minlength=int(np.prod(frame.nodes))).reshape(frame.nodes) * 1000 / frame.step**2
    edges = (np.arange(6) - 2.5) * frame.tile_um
    x, y = xy_um[:, 0, None] + edges, xy_um[:, 1, None] + edges  # (n, 6)
    corner = np.stack(np.broadcast_arrays(y[:, :, None], x[:, None, :])) / frame.step + 0.5  # (2, n, 6, 6)
    out = np.empty((len(xy_um), 5, 5, len(PARTS)))
    for c, name in enumerate(PARTS):
        total = np.pad(on[name].astype(np.float64).cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
        box = ndimage.map_coordinates(total, corner, order=1, mode="nearest")
        out[..., c] = np.diff(np.diff(box, axis=1), axis=2) / NODES**2
    np.maximum(out, 0, out=out)  # differences of large sums: rounding
    return out


def _cover(depth: np.ndarray, step: float) -> np.ndarray:
    """Share of each coarse node's square that lies inside an outline."""
    return np.clip(depth / step + 0.5, 0.0, 1.0)


def _smooth_noise(rng: Generator, shape: tuple[int, int], sigma: float) -> np.ndarray:
    """Unit-variance Gaussian noise, smooth over `sigma` nodes, made on a grid coarse enough to be cheap."""
    skip = max(1, int(sigma / 2))
    small = rng.standard_normal((shape[0] // skip + 2, shape[1] // skip + 2))
    small = ndimage.gaussian_filter(small, sigma / skip, mode="wrap")
    small /= small.std() + 1e-12
    return interpolate(small, np.arange(shape[0]) / skip, np.arange(shape[1]) / skip)


def interpolate(field: np.ndarray, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """A field (h, w) at fractional rows and columns, both ascending: linear, float32 (rows, columns)."""
    first = min(int(rows[0]), len(field) - 2)
    out = np.asarray(field[first : int(rows[-1]) + 2], dtype=np.float32)
    for axis, at in ((1, cols), (0, rows - first)):  # columns first: the larger step then copies whole rows
        low = np.minimum(at.astype(np.int64), out.shape[axis] - 2)
        weight = (at - low).astype(np.float32)
        near, out = out.take(low, axis=axis), out.take(low + 1, axis=axis)
        out -= near
        out *= weight if axis == 1 else weight[:, None]
        out += near
    return out


def _outline(rng: Generator, frame: Frame, xc: np.ndarray, yc: np.ndarray) -> np.ndarray:
    """Depth field of the tissue: a rounded block with a ragged border, a little larger than the spots' bounding box."""
    reach = 0.35 * frame.tile_um
    a, b = frame.inner_um[0] / 2 + reach, frame.inner_um[1] / 2 + reach
    level = ((np.abs(xc) / a) ** 6 + (np.abs(yc) / b) ** 6) ** (1 / 6)
    ragged = 0.10 * _smooth_noise(rng, xc.shape, 0.6 * NODES) + 0.03 * _smooth_noise(rng, xc.shape, 0.12 * NODES)
    return ((1 - level) * min(a, b) + ragged * frame.tile_um).astype(np.float32)


def _tumour_side(rng: Generator, frame: Frame, xc: np.ndarray, yc: np.ndarray) -> np.ndarray:
    """True on the tumour's side of a wavy arc through the middle of the section, at a random orientation and curvature."""
    half = frame.half_um
    angle, bulge = rng.uniform(0, 2 * np.pi), rng.choice([-1.0, 1.0])
    radius, shift = rng.uniform(1.2, 2.5) * half, rng.uniform(-0.4, 0.4) * half
    u = np.cos(angle) * xc + np.sin(angle) * yc + (shift + radius)
    v = -np.sin(angle) * xc + np.cos(angle) * yc
    turn = np.arctan2(v, u)
    wave = sum(0.09 * half * np.sin(k * turn * radius / half + rng.uniform(0, 2 * np.pi)) for k in (2.0, 3.5))
    return bulge * (radius + wave - np.hypot(u, v)) > 0


def _margin(frame: Frame, tissue: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Euclidean and maximum-norm distance (um) to the margin, where it crosses tissue."""
    on = tissue > 0
    border = np.zeros_like(on)
    border[:-1] |= (inside[:-1] != inside[1:]) & on[:-1]
    border[:, :-1] |= (inside[:, :-1] != inside[:, 1:]) & on[:, :-1]
    near = ndimage.distance_transform_edt(~border)
    box = ndimage.distance_transform_cdt(~border, metric="chessboard")
    return (near * frame.step).astype(np.float32), (box * frame.step).astype(np.float32)


def _structures(
    rng: Generator, frame: Frame, sites: np.ndarray, axis: np.ndarray, inside: np.ndarray
) -> dict[str, np.ndarray]:
    """Depth fields of glands, lumina, tumour nests, lymphocyte clusters and fat.

    Each site's kind is an independent draw. Only the share of fat (along the adipose axis) and the choice between
    normal gland and tumour nest (by the side of the margin) know where the site is: all that the view around a spot
    says about the spot itself is through these two.
    """
    tile, m = frame.tile_um, len(sites)
    at = np.clip(np.rint(sites / frame.step).astype(int), 0, np.array(frame.nodes)[::-1] - 1)
    rise = np.clip((axis[at[:, 1], at[:, 0]] + 1) / 2, 0, 1)
    fat = P_FAT[0] + (P_FAT[1] - P_FAT[0]) * rise
    draw = rng.random(m)
    is_lymph = draw < P_LYMPH
    is_fat = ~is_lymph & (draw < P_LYMPH + fat)
    is_gland = ~is_lymph & ~is_fat & (draw < P_LYMPH + fat + P_GLAND * (1 - P_LYMPH - fat))
    tumour = is_gland & inside[at[:, 1], at[:, 0]]
    centre = sites + rng.uniform(-0.10, 0.10, (m, 2)) * tile
    number = rng.integers(1, 5, m)
    radius = np.array([0.0, 0.34, 0.215, 0.19, 0.175])[number] * tile * rng.uniform(0.85, 1.1, m)
    orbit = np.array([0.0, 0.0, 0.24, 0.25, 0.265])[number] * tile
    owner = np.repeat(np.arange(m), number)
    turn = rng.uniform(0, 2 * np.pi, m)[owner] + 2 * np.pi * (np.arange(len(owner)) - _starts(number)) / number[owner]
    acini = centre[owner] + orbit[owner, None] * np.c_[np.cos(turn), np.sin(turn)]
    normal, nest = (is_gland & ~tumour)[owner], tumour[owner]
    fields = {"gland": _stamp(rng, frame, acini[normal], radius[owner][normal], 0.05),
              "tumour": _stamp(rng, frame, acini[nest], 1.12 * radius[owner][nest], 0.17),
              "lymphocyte": _stamp(rng, frame, centre[is_lymph], tile * rng.uniform(0.2, 0.44, is_lymph.sum()), 0.13),
              "fat": _stamp(rng, frame, centre[is_fat], tile * rng.uniform(0.32, 0.48, is_fat.sum()), 0.10)}
    wall = np.clip(0.30 * _stamp_value(frame, acini[normal], radius[owner][normal]), 6.0, 15.0)
    fields["lumen"] = fields["gland"] - wall
    reach = radius[owner][nest].repeat(2)[:, None]
    slits = acini[nest].repeat(2, axis=0) + rng.normal(0, 0.45, (len(reach), 2)) * reach
    small = _stamp(rng, frame, slits, tile * rng.uniform(0.01, 0.04, len(slits)), 0.2)
    fields["lumen"] = np.maximum(fields["lumen"], np.minimum(small, fields["tumour"] - 6.0)).astype(np.float32)
    return fields


def _cellularity(rng: Generator, frame: Frame, sites: np.ndarray) -> np.ndarray:
    """Density of stromal nuclei relative to the mean: an independent draw per site, blurred at the sites' borders."""
    density, skip = rng.lognormal(-0.2, 0.65, len(sites)), 4
    rows, cols = (side // skip + 2 for side in frame.nodes)
    y, x = np.mgrid[:rows, :cols].reshape(2, -1) * (skip * frame.step)
    near = cKDTree(sites).query(np.c_[x, y])[1]
    return interpolate(density[near].reshape(rows, cols), *(np.arange(side) / skip for side in frame.nodes))


def _starts(number: np.ndarray) -> np.ndarray:
    """For each repeated item, the position where its owner's run starts."""
    return np.repeat(np.cumsum(number) - number, number)


def _window(frame: Frame, centre: np.ndarray, reach: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flat node indices (m, s) of the squares around centres, -1 off the map, and the offsets dx, dy in um."""
    half = int(np.ceil(reach / frame.step)) + 1
    offset = np.arange(-half, half + 1)
    base = np.rint(centre / frame.step).astype(int)
    col = base[:, 0, None, None] + offset[None, None, :]
    row = base[:, 1, None, None] + offset[None, :, None]
    ok = (col >= 0) & (col < frame.nodes[1]) & (row >= 0) & (row < frame.nodes[0])
    dx = (col * frame.step - centre[:, 0, None, None]).astype(np.float32)
    dy = (row * frame.step - centre[:, 1, None, None]).astype(np.float32)
    flat = np.where(ok, row * frame.nodes[1] + col, -1)
    dx, dy = np.broadcast_arrays(dx, dy)
    return flat, dx, dy


def _stamp(rng: Generator, frame: Frame, centre: np.ndarray, radius: np.ndarray, rough: float) -> np.ndarray:
    """Depth field of blobs: radii (m,) um, outlines roughened by `rough` relative harmonics."""
    field: np.ndarray = np.full(frame.nodes, -4.0 * frame.step, dtype=np.float32)
    harmonic = np.arange(2, 7)
    size = (rng.standard_normal((len(centre), 5)) * rough / np.sqrt(harmonic - 1)).astype(np.float32)
    phase = rng.uniform(0, 2 * np.pi, (len(centre), 5)).astype(np.float32)
    if len(centre) == 0:
        return field
    flat, dx, dy = _window(frame, centre, float(radius.max()) * (1 + 3 * rough))
    theta, r = np.arctan2(dy, dx), np.hypot(dx, dy)
    outline = np.ones_like(theta)
    for k, a, p in zip(harmonic, size.T, phase.T, strict=True):
        outline += a[:, None, None] * np.cos(k * theta + p[:, None, None])
    depth = radius.astype(np.float32)[:, None, None] * np.maximum(outline, np.float32(0.3)) - r
    ok = flat >= 0
    np.maximum.at(field.reshape(-1), flat[ok], depth[ok])
    return field


def _stamp_value(frame: Frame, centre: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Radius (um) of the blob around each node; 0 away from blobs."""
    field = np.zeros(frame.nodes, dtype=np.float32)
    if len(centre):
        flat, dx, dy = _window(frame, centre, 1.2 * float(radius.max()))
        ok = (flat >= 0) & (np.hypot(dx, dy) < 1.2 * radius[:, None, None])
        np.maximum.at(field.reshape(-1), flat[ok], np.broadcast_to(radius[:, None, None], flat.shape)[ok])
    return field


def _adipocytes(rng: Generator, frame: Frame, fat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depth field of the fat with whole cells at its border, and distance (um) to the nearest border between cells."""
    pitch = min(62.0, 0.36 * frame.tile_um)
    count = np.ceil(np.array(frame.size_um) / pitch).astype(int) + 2
    grid = np.stack(np.meshgrid(np.arange(count[0]), np.arange(count[1])), axis=-1).reshape(-1, 2).astype(float)
    grid[:, 0] += 0.5 * (grid[:, 1] % 2)
    centre = (grid - 0.5 + rng.uniform(-0.30, 0.30, grid.shape)) * pitch
    at = np.clip(np.rint(centre / frame.step).astype(int), 0, np.array(frame.nodes)[::-1] - 1)
    member = fat[at[:, 1], at[:, 0]] > 0
    row, col = np.nonzero(ndimage.binary_dilation(fat > 0, iterations=int(0.6 * pitch / frame.step)))
    far, near = cKDTree(centre).query(np.c_[col, row] * frame.step, k=2)
    border = 0.5 * (far[:, 1] - far[:, 0])
    first, second = member[near[:, 0]], member[near[:, 1]]
    septum, depth = np.zeros(frame.nodes, dtype=np.float32), np.full(frame.nodes, -4.0 * frame.step, dtype=np.float32)
    septum[row, col] = border
    depth[row, col] = np.where(first, 1, -1) * np.where(first == second, 4.0 * frame.step, border)
    return depth, septum


def _nuclei(rng: Generator, frame: Frame, fields: dict[str, np.ndarray], cellularity: np.ndarray) -> np.ndarray:
    """Nuclei (m, 7) of all kinds: jittered lattices, thinned to the structure each kind belongs to."""
    lymph, tumour, gland, lumen, fat = (fields[k] for k in ("lymphocyte", "tumour", "gland", "lumen", "fat"))
    ragged = lymph + 0.10 * frame.tile_um * _smooth_noise(rng, frame.nodes, 1.5)
    wall = gland - lumen
    free = (lymph < 0) & (tumour < -1) & (gland < -2)
    stroma, rim = free & (fat < 0), free & (fat > 0) & (fields["septum"] < 4)
    cluster = np.clip(ragged / (0.12 * frame.tile_um) + 0.35, 0, 1) * (lymph > -3 * frame.step)
    nest = (tumour > 3) & (lumen < -3) & (lymph < 0)
    epithelium = (gland > 0.2 * wall) & (lumen < -0.2 * wall) & (lymph < 0) & (tumour < 0)
    # probability on the nodes, lattice um, long and short half axis um, their spread, haematoxylin and its spread
    kinds = (
        (cluster, 7.2, 3.2, 3.0, 0.08, 1.35, 0.12),
        (0.93 * nest, 11.5, 5.4, 4.3, 0.20, 0.80, 0.25),
        (0.96 * epithelium, 7.6, 3.9, 2.8, 0.10, 0.95, 0.12),
        (np.clip(0.30 * cellularity, 0, 1) * stroma, 17.0, 6.4, 1.5, 0.25, 0.85, 0.20),
        (0.25 * rim, 20.0, 5.0, 1.3, 0.20, 0.90, 0.15),
    )
    flow = 2.0 * _smooth_noise(rng, frame.nodes, 0.5 * NODES)
    out = []
    for kind, (chance, pitch, long, short, spread, stain, stain_sd) in enumerate(kinds):
        xy = _scatter(rng, frame, pitch)
        node = np.rint(xy / frame.step).astype(int)
        keep = rng.random(len(xy)) < (chance * (fields["tissue"] > 3))[node[:, 1], node[:, 0]]
        xy, node = xy[keep], node[keep]
        size = rng.lognormal(0.0, spread, len(xy))
        turn = rng.uniform(0, np.pi, len(xy))
        if kind == 2:  # columnar epithelium: nuclei point to the lumen
            gy, gx = np.gradient(gland)
            turn = np.arctan2(gy, gx)[node[:, 1], node[:, 0]]
        elif kind == 3:  # fibroblasts follow a flow of their own
            turn = flow[node[:, 1], node[:, 0]] + rng.normal(0, 0.3, len(xy))
        dark = np.clip(rng.normal(stain, stain_sd, len(xy)), 0.3, 2.0)
        out.append(np.c_[xy, long * size, short * size, turn, dark, np.full(len(xy), kind)])
    return np.concatenate(out).astype(np.float32)


def _scatter(rng: Generator, frame: Frame, pitch: float) -> np.ndarray:
    """Jittered hexagonal lattice over the canvas (m, 2), um: crowded but hardly overlapping."""
    cols, rows = (max(int(side / pitch) - 1, 1) for side in frame.size_um)
    y, x = np.mgrid[:rows, :cols].reshape(2, -1).astype(float)
    xy = np.c_[x + 0.5 * (y % 2) + 0.5, y + 0.75] + rng.uniform(-0.28, 0.28, (len(x), 2))
    return np.clip(xy * pitch, 0, np.array(frame.size_um) - frame.step)
