"""The adaptive median: against a plain loop, on lattices with borders and holes, and by its promises."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histoweave.data.section import make_section
from histoweave.pp import grid_hops, hex_hops, median, median_fill, median_tables


def plain(values, seen, tables):
    """Spot by spot, gene by gene."""
    known = np.where(seen, values, 0).astype(np.float32)
    filled = known.copy()
    for i, j in zip(*np.nonzero(~seen), strict=True):
        for table in tables:
            found = np.median(known[[i, *table[i][table[i] >= 0]], j])
            if found != 0:
                break
        else:
            there = known[seen[:, j], j]
            found = np.median(there) if len(there) else 0
        filled[i, j] = found
    return filled


def lattice(kind, n, rng):
    cells = rng.permutation(np.array([(r, c) for r in range(9) for c in range(9)]))[:n]
    if kind == "grid":
        return [grid_hops(cells, h) for h in range(1, 5)]
    cells = np.column_stack([cells[:, 0], 2 * cells[:, 1] + cells[:, 0] % 2])
    return [hex_hops(cells, h) for h in range(1, 5)]


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["grid", "hex"]),
    n=st.integers(1, 81),
    signed=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_equals_the_plain_loop(kind, n, signed, seed):
    rng = np.random.default_rng(seed)
    tables = lattice(kind, n, rng)
    values = rng.normal(size=(n, 6)) if signed else rng.gamma(2.0, size=(n, 6))
    values[:, 4] = rng.integers(0, 3, n)  # ties, and measured zeros
    seen = rng.random((n, 6)) < rng.random(6)
    seen[:, 5] = False
    before = values.copy()
    filled = median_fill(values, seen, tables)
    np.testing.assert_array_equal(filled, plain(values, seen, tables))
    np.testing.assert_array_equal(values, before)
    assert filled.dtype == np.float32
    np.testing.assert_array_equal(filled[seen], values.astype(np.float32)[seen])
    assert (filled[:, 5] == 0).all()


def test_blocks_do_not_matter(monkeypatch):
    rng = np.random.default_rng(3)
    tables = lattice("hex", 70, rng)
    values, seen = rng.gamma(2.0, size=(70, 20)), rng.random((70, 20)) < 0.4
    whole = median_fill(values, seen, tables)
    monkeypatch.setattr(median, "_BLOCK", 200)
    np.testing.assert_array_equal(median_fill(values, seen, tables), whole)


def test_the_smallest_window_wins_then_the_section():
    cells = np.column_stack([np.zeros(12, dtype=int), np.arange(12)])
    tables = [grid_hops(cells, h) for h in (1, 2)]
    values = np.zeros((12, 1))
    values[[1, 3, 11], 0] = [2.0, 6.0, 7.0]
    filled = median_fill(values, values > 0, tables).ravel()
    # 2 hops from the gap at 2: {0, 2, 0, 6, 0} is 0; 1 hop: {2, 0, 6} is 2. At 0, of two spots, (0 + 2) / 2.
    assert filled.tolist() == [1.0, 2.0, 2.0, 6.0, 6.0, 6.0, 6.0, 6.0, 6.0, 6.0, 6.0, 7.0]


def test_no_window_and_no_neighbour_falls_back_to_the_section():
    values = np.array([[0.0], [1.0], [4.0], [9.0], [2.0]])
    alone = np.full((5, 6), -1)
    assert median_fill(values, values > 0, [alone, alone])[0] == 3.0
    assert median_fill(values, values > 0, [])[0] == 3.0


def test_what_is_missing_is_not_looked_at():
    rng = np.random.default_rng(0)
    tables = lattice("grid", 50, rng)
    values, seen = rng.gamma(2.0, size=(50, 5)), rng.random((50, 5)) < 0.5
    garbage = np.where(seen, values, rng.choice([np.nan, np.inf, -1e300, 7.0], size=values.shape))
    np.testing.assert_array_equal(median_fill(garbage, seen, tables), median_fill(values, seen, tables))


def test_a_spot_without_anything_and_a_tiny_section():
    rng = np.random.default_rng(1)
    seen = np.ones((5, 3), dtype=bool)
    seen[2] = False
    filled = median_fill(rng.gamma(2.0, size=(5, 3)), seen, [hex_hops(np.array([[0, 2 * i] for i in range(5)]), 1)])
    assert np.isfinite(filled).all() and (filled > 0).all()
    assert median_fill(np.zeros((0, 3)), np.zeros((0, 3), dtype=bool), []).shape == (0, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": np.zeros(4)}, r"shape \(4,\); expected \(n, g\)"),
        ({"seen": np.ones((4, 3), dtype=bool)}, r"shape \(4, 3\) and type bool"),
        ({"seen": np.ones((4, 2))}, "type float64"),
        ({"values": np.full((4, 2), np.nan)}, "8 seen values are NaN"),
        ({"values": np.full((4, 2), 1e300)}, "infinite as float32"),
        ({"tables": [np.zeros((3, 2), dtype=int)]}, r"expected integers \(4, k\)"),
        ({"tables": [np.zeros((4, 2))]}, "type float64"),
        ({"tables": [np.full((4, 2), 4)]}, "points to rows 4 to 4 of 4"),
    ],
)
def test_bad_input(change, message):
    good = {"values": np.ones((4, 2)), "seen": np.ones((4, 2), dtype=bool), "tables": [np.full((4, 2), -1)]}
    with pytest.raises(ValueError, match=message):
        median_fill(**(good | change))


def section(platform, n=40):
    rc = np.array([(i // 7, 2 * (i % 7) + (i // 7) % 2 if platform == "visium" else i % 7) for i in range(n)])
    return make_section(id="a", patient="p", counts=np.ones((n, 1)), genes=["g"], xy=rc[:, ::-1] * 10.0 + 5,
                        platform=platform, um_per_px=1.0, array_rc=None if platform == "xenium" else rc)  # fmt: skip


@pytest.mark.parametrize(("platform", "widths"), [("st", (8, 24)), ("visium", (6, 18)), ("xenium", (6, 18))])
def test_tables_of_platforms(platform, widths):
    tables = median_tables(section(platform), 2)
    assert tuple(table.shape[1] for table in tables) == widths
    for small, large in pairwise(tables):
        assert all(set(a[a >= 0]) <= set(b[b >= 0]) for a, b in zip(small, large, strict=True))
    assert len(median_tables(section(platform))) == 4
    with pytest.raises(ValueError, match="hops=0"):
        median_tables(section(platform), 0)
