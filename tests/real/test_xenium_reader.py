"""The two bands of one Xenium section, and the pancreas reference: facts that were checked by hand."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import histoweave as hw
from histoweave.data.io import read_h5ad, read_reference, read_samples
from histoweave.data.section import Cohort

pytestmark = pytest.mark.real
CELLS = {"A": 47_571, "B": 53_536}


@pytest.fixture(scope="module")
def bands(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    folder = data_root / "xenium_pancreas"
    if not folder.is_dir():
        pytest.skip(f"'{folder}' is not there")
    samples = tmp_path_factory.mktemp("bands") / "samples.csv"
    rows = [f"{id},P1,xenium,{folder / id}.h5ad,{folder / id}.jpg,0.425" for id in CELLS]
    samples.write_text("\n".join(["id,patient,platform,path,image,mpp", *rows]) + "\n")
    return read_samples(samples)


@pytest.fixture(scope="module")
def pdac(data_root: Path) -> Path:
    folder = data_root / "pdac"
    if not folder.is_dir():
        pytest.skip(f"'{folder}' is not there")
    return folder


def test_cells_genes_and_controls(bands: Cohort) -> None:
    assert {section.id: section.n for section in bands} == CELLS
    assert bands.patients == ("P1",)  # one slide
    for section in bands:
        assert len(section.genes) == 377
        assert not section.genes.str.contains("NegControl|BLANK|Codeword").any()
        assert len(section.spots.uns["controls"]) == 129
        np.testing.assert_array_equal(
            section.library + section.spots.obs["control_counts"], section.spots.obs["total_counts"]
        )
        assert (section.library == 0).any()  # empty cells stay
        assert section.image is not None and section.image.size == (17_078, 2_295)
        assert section.um_per_px == 0.425
    assert bands["A"].genes.tolist() == bands["B"].genes.tolist()


def test_cells_lie_on_nuclei(bands: Cohort, record: Callable[[str, object], None]) -> None:
    """Mean DAPI under the cells, moved by so many px: brightest where they are, within half a cell."""
    moves = np.arange(-32, 33, 4)
    for section in bands:
        assert section.image is not None
        with section.image.held() as image:
            nuclei = image.thumbnail(max(image.size))[..., 2]  # blue: DAPI
        at = section.xy.astype(int)
        for axis in (0, 1):
            seen = []
            for move in moves:
                x, y = (at + np.where(np.arange(2) == axis, move, 0)).T
                seen.append(nuclei[y.clip(0, nuclei.shape[0] - 1), x.clip(0, nuclei.shape[1] - 1)].mean())
            best = int(moves[int(np.argmax(seen))])
            record(f"{section.id}: move in {'xy'[axis]} at which DAPI is brightest, px", best)
            record(f"{section.id}: DAPI at 0 over that at 32 px, {'xy'[axis]}", float(seen[8] / seen[0]))
            assert abs(best) <= 8  # 3.4 µm
            assert seen[8] > 1.2 * seen[0] and seen[8] > 1.2 * seen[-1]


@pytest.mark.parametrize("um", [55, 100])
def test_bins(bands: Cohort, um: int, record: Callable[[str, object], None]) -> None:
    section = bands["A"]
    started = time.perf_counter()
    spots = hw.pp.bins(section, um)
    record(f"seconds for bins of {um} µm", round(time.perf_counter() - started, 2))
    record(f"bins of {um} µm, median cells", [spots.n, float(np.median(spots.spots.obs["cells"]))])
    assert spots.spots.obs["cells"].sum() == section.n
    np.testing.assert_array_equal(
        np.asarray(spots.spots.X.sum(axis=0)).ravel(), np.asarray(section.spots.X.sum(axis=0)).ravel()
    )
    assert (hw.pp.neighbours(spots) >= 0).sum(axis=1).max() == 8


def test_a_legacy_section_and_its_reference(pdac: Path) -> None:
    reference = read_reference(pdac / "scrna.h5ad")
    assert (reference.n, len(reference.genes), reference.platform) == (1_926, 7_000, "reference")
    assert "Acinar_cells" in reference.spots.obs["group"].cat.categories
    assert {"cell_type", "sample"} <= set(reference.spots.obs)
    section = read_h5ad(pdac / "st.h5ad", patient="p")
    assert (section.n, len(section.genes), section.platform, section.um_per_px) == (428, 11_000, "st", None)
    assert len(reference.genes.intersection(section.genes)) == 2_316


def test_genes_shared_with_the_panel(bands: Cohort, pdac: Path) -> None:
    assert len(read_reference(pdac / "scrna.h5ad").genes.intersection(bands["A"].genes)) == 131
