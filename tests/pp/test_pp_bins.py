"""Pseudo-spots: sums per bin by a plain loop, places, and what is refused."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from scipy import sparse

import histoweave as hw
from histoweave.data.section import Section
from histoweave.pp.bins import bins

UM = 0.5  # per px


def cells(n: int = 400, **given: object) -> Section:
    """Cells on an image of 300 × 210 px, 150 × 105 µm; a fifth of them without a count."""
    rng = np.random.default_rng(1)
    counts = rng.poisson(2.0, (n, 6)) * (rng.random(n) < 0.8)[:, None]
    xy = rng.uniform(0, 1, (n, 2)) * [299.9, 209.9]
    made = {"xy": xy, "um_per_px": UM, "platform": "xenium", "patient": "p", "id": "A", **given}
    image = hw.SlideImage.from_array(np.zeros((210, 300, 3), np.uint8), um_per_px=UM)
    made.setdefault("image", image)
    return hw.make_section(counts=sparse.csr_matrix(counts), genes=list("abcdef"),
                           obs={"control_counts": rng.poisson(0.3, n), "cell_area": rng.random(n)}, **made)  # type: ignore[arg-type] # fmt: skip


@pytest.mark.parametrize("um", [20.0, 55, 100])
def test_sums_equal_a_plain_loop(um: float) -> None:
    section = cells()
    got = bins(section, um)
    rows: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, (x, y) in enumerate(section.xy):
        rows[int(y * UM // um), int(x * UM // um)].append(i)
    assert [tuple(rc) for rc in got.array_rc.tolist()] == sorted(rows)  # type: ignore[union-attr]
    dense = section.spots.X.toarray()
    for spot, at in enumerate(sorted(rows)):
        np.testing.assert_array_equal(got.spots.X[spot].toarray().ravel(), dense[rows[at]].sum(axis=0))
        assert got.spots.obs["cells"].iloc[spot] == len(rows[at])
        for name in ("library", "control_counts"):
            assert got.spots.obs[name].iloc[spot] == section.spots.obs[name].iloc[rows[at]].sum()
    assert got.spots.X.sum() == dense.sum()
    assert sparse.issparse(got.spots.X)


def test_what_a_bin_is() -> None:
    section = cells()
    got = bins(section)
    assert (got.id, got.patient, got.platform, got.um_per_px) == ("A-55um", "p", "visium_hd", UM)
    assert bins(section, 12.5).id == "A-12.5um"
    assert got.image is section.image
    assert got.genes.tolist() == section.genes.tolist()
    assert set(got.spots.obs) == {"cells", "library", "control_counts", "array_row", "array_col"}
    assert got.spots.obs_names[0] == "0x0"
    assert section.n == 400 and "cells" not in section.spots.obs  # the cells stay as they are


def test_centres_lie_in_the_image() -> None:
    got = bins(cells(), 55)  # 110 px: columns end at 330 and rows at 220, beyond the 300 × 210 px of the image
    np.testing.assert_allclose(np.unique(got.xy[:, 0]), [55, 165, (220 + 300) / 2])
    np.testing.assert_allclose(np.unique(got.xy[:, 1]), [55, (110 + 210) / 2])
    bare = bins(cells(image=None), 55)
    np.testing.assert_allclose(bare.xy, (bare.array_rc[:, ::-1] + 0.5) * 110)  # type: ignore[index]


def test_empty_bins_are_left_out_and_the_lattice_is_square() -> None:
    section = cells(3, xy=np.array([[5.0, 5.0], [6.0, 5.0], [225.0, 5.0]]), image=None)
    got = bins(section, 55)
    assert got.array_rc.tolist() == [[0, 0], [0, 2]]  # type: ignore[union-attr]
    assert got.spots.obs["cells"].tolist() == [2, 1]
    table = hw.pp.neighbours(bins(cells(), 20))
    assert table.shape[1] == 8  # the square around each
    assert (table >= 0).sum(axis=1).max() == 8


def test_cells_without_counts_make_a_bin() -> None:
    section = cells(2, xy=np.array([[5.0, 5.0], [200.0, 5.0]]), image=None)
    empty = section.with_spots(section.spots.copy())
    empty.spots.X = sparse.csr_matrix(empty.spots.X.shape, dtype=np.float32)
    got = bins(empty)
    assert got.n == 2 and got.spots.X.nnz == 0


def test_genes_that_are_hidden_stay_hidden() -> None:
    section = cells()
    hidden = section.with_spots(section.spots[:, :0].copy())
    hidden.spots.obs["library"] = np.nan
    got = bins(hidden)
    assert got.spots.n_vars == 0 and np.isnan(got.library).all()


@pytest.mark.parametrize("um", [0, -5.0, float("nan"), float("inf"), True])
def test_sides_that_are_refused(um: float) -> None:
    with pytest.raises(ValueError, match=f"um={um!r}: the side of a bin"):
        bins(cells(), um)


def test_sections_that_are_refused() -> None:
    with pytest.raises(ValueError, match="of platform 'st'; bins are made of cells"):
        bins(cells(platform="st"))
    with pytest.raises(ValueError, match="of platform 'reference'; bins are made of cells"):
        bins(cells(platform="reference"))
    with pytest.raises(ValueError, match="'A' does not know its µm per px"):
        bins(cells(image=None, um_per_px=None))
