"""Neighbour tables against scikit-learn, squidpy where it is installed, and loops; properties; lattices."""

import importlib.util

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from histoweave.data.section import make_section
from histoweave.pp import (
    derive_array,
    edge_distance,
    grid8,
    grid_hops,
    hex_hops,
    knn,
    lattice,
    lattice_pitch,
    neighbours,
    pitch,
    radius,
)

needs_squidpy = pytest.mark.skipif(importlib.util.find_spec("squidpy") is None, reason="squidpy is not installed")


def square(rows, columns, keep=1.0, seed=0):
    rng = np.random.default_rng(seed)
    cells = np.array([(r, c) for r in range(rows) for c in range(columns)])
    return cells[rng.permutation(len(cells))[: max(1, round(keep * len(cells)))]]


def visium(rows, columns, keep=1.0, seed=0):
    cells = square(rows, columns, keep, seed)
    return np.column_stack([cells[:, 0], 2 * cells[:, 1] + cells[:, 0] % 2])


def hex_xy(rc):
    return np.column_stack([rc[:, 1] * 0.5, rc[:, 0] * np.sqrt(3) / 2])


def sets(nbr):
    return [set(row[row >= 0].tolist()) for row in nbr]


def assert_ordered(nbr, distance):
    """Nearest first, ties by row, -1 only at the end, nobody its own neighbour."""
    assert nbr.dtype == np.int32
    for i, row in enumerate(nbr):
        there = row >= 0
        assert there[: there.sum()].all()
        key = [(round(float(distance[i, j]), 9), int(j)) for j in row[there]]
        assert key == sorted(set(key))
        assert i not in row


cells_strategy = st.sets(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=1, max_size=40).map(sorted)


@settings(max_examples=60, deadline=None)
@given(cells=cells_strategy, data=st.data())
def test_grid8_is_the_3_by_3_square_in_any_order_and_place(cells, data):
    rc = np.array(cells)
    apart = np.abs(rc[:, None] - rc[None]).max(axis=2)
    nbr = grid8(rc)
    assert nbr.shape == (len(rc), 8)
    assert sets(nbr) == [set(np.flatnonzero(row == 1).tolist()) for row in apart]
    assert_ordered(nbr, np.sqrt(((rc[:, None] - rc[None]) ** 2).sum(axis=2)))
    np.testing.assert_array_equal(grid8(rc + data.draw(st.integers(-(10**9), 10**9))), nbr)
    order = np.array(data.draw(st.permutations(range(len(rc)))))
    back = np.append(order, -1)
    assert sets(back[grid8(rc[order])]) == [sets(nbr)[i] for i in order]


@pytest.mark.parametrize("hops", [1, 2, 3])
def test_hex_hops_are_steps_of_the_lattice(hops):
    rc = visium(9, 8, keep=0.85)
    apart = np.sqrt(((hex_xy(rc)[:, None] - hex_xy(rc)[None]) ** 2).sum(axis=2))
    # Steps on the full lattice, by walking: the reference knows nothing of the closed formula.
    steps = [(0, 2), (0, -2), (1, 1), (1, -1), (-1, 1), (-1, -1)]
    offsets = {(0, 0)}
    for _ in range(hops):
        offsets |= {(r + a, c + b) for r, c in offsets for a, b in steps}
    nbr = hex_hops(rc, hops)
    assert nbr.shape[1] == len(offsets) - 1 == {1: 6, 2: 18, 3: 36}[hops]
    row_of = {tuple(cell): i for i, cell in enumerate(rc.tolist())}
    others = offsets - {(0, 0)}
    expected = [{row_of[r + a, c + b] for a, b in others if (r + a, c + b) in row_of} for r, c in rc.tolist()]
    assert sets(nbr) == expected
    assert_ordered(nbr, apart)


def test_grid_hops_is_the_larger_square():
    rc = square(8, 6, keep=0.8)
    apart = np.abs(rc[:, None] - rc[None]).max(axis=2)
    assert sets(grid_hops(rc, 2)) == [set(np.flatnonzero((row > 0) & (row <= 2)).tolist()) for row in apart]


@pytest.mark.parametrize("k", [1, 4, 18])
def test_knn_equals_scikit_learn(k):
    xy = np.random.default_rng(5).normal(size=(150, 2)) * 100
    expected = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(xy).kneighbors(return_distance=False)
    np.testing.assert_array_equal(knn(xy, k), expected)


@settings(max_examples=60, deadline=None)
@given(
    points=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=40),
    k=st.integers(1, 12), reach=st.integers(1, 4), r2=st.integers(1, 9),
)
def test_knn_and_radius_break_ties_by_row_even_where_spots_coincide(points, k, reach, r2):
    xy = np.array(points, dtype=float)
    squared = ((xy[:, None] - xy[None]) ** 2).sum(axis=2)
    n = len(xy)
    ranked = [sorted((j for j in range(n) if j != i), key=lambda j, i=i: (squared[i, j], j)) for i in range(n)]
    padded = [(row + [-1] * k)[:k] for row in ranked]
    np.testing.assert_array_equal(knn(xy, k), padded)
    near = [([j for j in row if squared[i, j] <= r2] + [-1] * k)[:k] for i, row in enumerate(ranked)]
    np.testing.assert_array_equal(radius(xy, np.sqrt(r2), k), near)


def test_radius_equals_scikit_learn():
    xy = np.random.default_rng(6).uniform(0, 10, size=(120, 2))
    expected = NearestNeighbors(radius=1.7, algorithm="brute").fit(xy).radius_neighbors(return_distance=False)
    assert sets(radius(xy, 1.7, 60)) == [set(row.tolist()) for row in expected]


@needs_squidpy
@pytest.mark.filterwarnings("ignore")  # squidpy's own
@pytest.mark.parametrize(("kind", "rings"), [("square", 1), ("hex", 1), ("hex", 2)])
def test_lattices_equal_squidpy(kind, rings):
    import squidpy
    from anndata import AnnData

    rc = square(9, 9) if kind == "square" else visium(9, 9)
    xy = rc[:, ::-1] * 10.0 if kind == "square" else hex_xy(rc) * 10
    table = AnnData(np.zeros((len(rc), 1)), obsm={"spatial": xy})
    squidpy.gr.spatial_neighbors(table, coord_type="grid", n_neighs=8 if kind == "square" else 6, n_rings=rings)
    graph = table.obsp["spatial_connectivities"].tocsr()
    ours = grid8(rc) if kind == "square" else hex_hops(rc, rings)
    assert sets(ours) == [set(row.indices[row.data > 0].tolist()) for row in graph]


def test_edge_distance_of_a_square_is_rings():
    rc = square(9, 11)
    rings = np.minimum(np.minimum(rc[:, 0], 8 - rc[:, 0]), np.minimum(rc[:, 1], 10 - rc[:, 1]))
    np.testing.assert_allclose(edge_distance(rc[:, ::-1] * 200.0), rings * 200.0)


@pytest.mark.parametrize("make", [lambda: square(12, 12)[:, ::-1] * 1.0, lambda: hex_xy(visium(12, 12))])
def test_one_missing_spot_is_no_edge_and_a_turn_changes_nothing(make):
    xy = make()
    middle = np.argmin(((xy - xy.mean(axis=0)) ** 2).sum(axis=1))
    full = np.delete(edge_distance(xy), middle)
    holed = np.delete(xy, middle, axis=0)
    np.testing.assert_allclose(edge_distance(holed), full, atol=1e-9)
    a = 0.7
    turned = holed @ np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) + 31
    np.testing.assert_allclose(edge_distance(turned), full, atol=1e-9)


def test_edge_of_jittered_spots_and_of_scattered_cells():
    rng = np.random.default_rng(2)
    rc = square(14, 14)
    on_edge = (rc == 0).any(axis=1) | (rc == 13).any(axis=1)
    found = edge_distance(rc[:, ::-1] + rng.normal(scale=0.06, size=rc.shape)) == 0
    assert found[on_edge].mean() > 0.95
    assert not found[~on_edge].any()
    cells = rng.uniform(size=(3000, 2))
    inner = (np.abs(cells - 0.5) < 0.42).all(axis=1)
    assert (edge_distance(cells)[inner] == 0).mean() < 0.01


def test_edge_distance_of_few_spots():
    np.testing.assert_array_equal(edge_distance(np.array([[3.0, 4.0]])), [0])
    np.testing.assert_array_equal(edge_distance(np.array([[0.0, 0], [1, 0], [2, 0]])), [0, 0, 0])
    np.testing.assert_array_equal(edge_distance(np.zeros((3, 2))), [0, 0, 0])
    assert edge_distance(np.zeros((0, 2))).shape == (0,)


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(["square", "hex"]), turn=st.floats(-0.4, 0.4), size=st.floats(5, 300), seed=st.integers(0, 99),
    given_pitch=st.booleans(),
)
def test_derived_lattice_coordinates(kind, turn, size, seed, given_pitch):
    rc = square(30, 24, 0.9, seed) if kind == "square" else visium(30, 24, 0.9, seed)
    upright = rc[:, ::-1] * 1.0 if kind == "square" else hex_xy(rc)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    noise = np.random.default_rng(seed).normal(scale=0.04, size=upright.shape)
    xy = ((upright + noise) @ rotation + [-7, 90]) * size
    got = derive_array(xy, size if given_pitch else None, kind=kind)
    expected = rc - rc.min(axis=0)
    if kind == "hex":
        expected[:, 1] += expected[0].sum() % 2
    np.testing.assert_array_equal(got, expected)
    assert lattice_pitch(xy, got, kind=kind) == pytest.approx(size, rel=3e-3)


def test_pitch():
    assert pitch(square(5, 5) * 290.0) == 290.0
    assert pitch(hex_xy(visium(6, 6)) * 100) == pytest.approx(100)
    assert [lattice(name) for name in ("st", "visium", "visium_hd", "xenium")] == ["square", "hex", "square", None]
    np.testing.assert_array_equal(derive_array(np.array([[5.0, 6.0]])), [[0, 0]])


@pytest.mark.parametrize(("platform", "array"), [("st", True), ("st", False), ("visium", True), ("xenium", False)])
def test_neighbours_of_a_section_follow_its_platform(platform, array):
    rc = visium(8, 8) if platform == "visium" else square(8, 8)
    xy = (hex_xy(rc) if platform == "visium" else rc[:, ::-1]) * 50.0 + 100
    section = make_section(id="a", patient="p", counts=np.ones((64, 1)), genes=["g"], xy=xy, platform=platform,
                           um_per_px=1.0, array_rc=rc if array else None)
    expected = {"st": lambda: grid8(rc), "visium": lambda: hex_hops(rc, 1), "xenium": lambda: knn(xy, 6)}[platform]
    np.testing.assert_array_equal(neighbours(section), expected())
    two = {"st": lambda: grid_hops(rc, 2), "visium": lambda: hex_hops(rc, 2), "xenium": lambda: knn(xy, 12)}[platform]
    np.testing.assert_array_equal(neighbours(section, 2), two())


def test_bad_input():
    with pytest.raises(ValueError, match=r"spots 0 and 2 at \(1, 2\)"):
        grid8(np.array([[1, 2], [0, 0], [1, 2]]))
    with pytest.raises(ValueError, match="derive_array"):
        grid8(np.array([[1.0, 2.0]]))
    with pytest.raises(ValueError, match="doubled columns"):
        hex_hops(np.array([[0, 0], [0, 1]]), 1)
    with pytest.raises(ValueError, match="hops=0"):
        hex_hops(np.array([[0, 0]]), 0)
    with pytest.raises(ValueError, match="not array indices"):
        grid8(np.array([[0, 0], [2**40, 2**40]]))
    with pytest.raises(ValueError, match="finite numbers"):
        knn(np.array([[0.0, np.nan]]), 1)
    with pytest.raises(ValueError, match=r"k=1\.5"):
        knn(np.zeros((3, 2)), 1.5)
    with pytest.raises(ValueError, match="above 0"):
        radius(np.zeros((3, 2)), 0, 4)
    with pytest.raises(ValueError, match="two or more"):
        pitch(np.zeros((1, 2)))
    with pytest.raises(ValueError, match="duplicates"):
        pitch(np.zeros((3, 2)))
    with pytest.raises(ValueError, match="do not lie on a square lattice"):
        derive_array(np.random.default_rng(0).uniform(0, 100, size=(200, 2)))
    with pytest.raises(ValueError, match="kind='cubic'"):
        derive_array(np.zeros((3, 2)), kind="cubic")
    with pytest.raises(ValueError, match="on one line"):
        lattice_pitch(np.array([[0.0, 0], [1, 0], [2, 0]]), np.array([[0, 0], [0, 1], [0, 2]]))
    assert grid8(np.zeros((0, 2), dtype=int)).shape == (0, 8)
