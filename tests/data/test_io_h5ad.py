"""AnnData files: platform, scale, counts, positions, and what is refused."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from tests.data import fixtures as fx

from histoweave.data.io import read_cohort, read_h5ad, recognise
from histoweave.data.section import SectionError


def write(folder: Path, table: anndata.AnnData, name: str = "s.h5ad") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    table.write_h5ad(folder / name)
    return folder / name


def test_lattice_gives_platform_and_scale(tmp_path: Path) -> None:
    table = fx.visium_adata(um_per_px=10.0)
    image = fx.write_image(tmp_path / "s.png", (70, 70))
    section = read_h5ad(write(tmp_path, table), image, patient="p")
    assert (section.id, section.platform) == ("s", "visium")
    assert section.um_per_px == pytest.approx(10.0, rel=1e-6)
    assert list(section.genes) == ["A", "a", "B", "C"]
    np.testing.assert_array_equal(section.spots.X.toarray(), table.X.toarray())
    np.testing.assert_array_equal(section.array_rc, table.obs[["array_row", "array_col"]])
    assert read_cohort(tmp_path / "s.h5ad")["s"].image is not None


def test_square_lattice_and_cells(tmp_path: Path) -> None:
    table = fx.visium_adata()
    table.obs["array_col"] = np.arange(table.n_obs)
    assert read_h5ad(write(tmp_path, table), patient="p").platform == "st"
    del table.obs["array_col"]
    cells = read_h5ad(write(tmp_path, table), patient="p", um_per_px=0.5)
    assert (cells.platform, cells.array_rc, cells.um_per_px) == ("xenium", None, 0.5)
    table.uns["platform"] = "visium_hd"
    assert read_h5ad(write(tmp_path, table), patient="p").platform == "visium_hd"


@pytest.mark.parametrize(
    "uns",
    [{"um_per_px": 0.425}, {"histoweave": {"um_per_px": 0.425}},
     {"spatial": {"lib": {"scalefactors": {"microns_per_pixel": 0.425}}}},
     {"spatial": {"lib": {"metadata": {"pixel_size_um_estimated": 0.425}}}}],
)
def test_scale_of_the_file(tmp_path: Path, uns: dict) -> None:
    table = fx.visium_adata()
    table.obs = table.obs[[]]
    table.uns.update(uns)
    image = fx.write_image(tmp_path / "i.png", (70, 70))
    assert read_h5ad(write(tmp_path, table), image, patient="p").um_per_px == 0.425


def test_unknown_scale(tmp_path: Path) -> None:
    table = fx.visium_adata()
    table.obs = table.obs[[]]
    table.uns["spatial"] = {lib: {"scalefactors": {"microns_per_pixel": mpp}} for lib, mpp in (("a", 0.2), ("b", 0.5))}
    path = write(tmp_path, table)
    assert read_h5ad(path, patient="p").um_per_px is None
    image = fx.write_image(tmp_path / "i.png", (70, 70))
    with pytest.raises(SectionError, match=r"µm per px of its image is unknown.*um_per_px="):
        read_h5ad(path, image, patient="p")


def test_reference_without_positions(tmp_path: Path) -> None:
    table = fx.visium_adata()
    del table.obsm["spatial"]
    table.obs = pd.DataFrame({"cell_type": ["T", "B"] * (table.n_obs // 2), "library": "lib1"}, index=table.obs_names)
    section = read_h5ad(write(tmp_path, table), patient="p")
    assert (section.platform, section.um_per_px) == ("reference", None)
    assert set(section.spots.obs["cell_type"]) == {"T", "B"}
    np.testing.assert_array_equal(section.library, table.X.sum(axis=1).A1)
    assert "library_in_file" in section.spots.obs
    with pytest.raises(SectionError, match="which platform 'visium' needs"):
        read_h5ad(tmp_path / "s.h5ad", patient="p", platform="visium")
    with pytest.raises(SectionError, match="obsm has no 'spatial'"):
        read_h5ad(tmp_path / "s.h5ad", fx.write_image(tmp_path / "i.png", (9, 9)), patient="p")


def test_layers_raw_and_feature_types(tmp_path: Path) -> None:
    table = fx.visium_adata()
    counts = table.X.copy()
    table.var["feature_types"] = ["Gene Expression", "Gene Expression", "Negative Control Probe", "Gene Expression"]
    table.layers["counts"] = counts
    table.raw = table.copy()
    table.X = table.X.log1p()
    path = write(tmp_path, table)
    with pytest.raises(SectionError, match="counts are not integers"):
        read_h5ad(path, patient="p")
    for layer in ("counts", "raw"):
        section = read_h5ad(path, patient="p", layer=layer)
        assert list(section.genes) == ["A", "a", "C"]
        np.testing.assert_array_equal(section.spots.X.toarray(), counts[:, [0, 1, 3]].toarray())
    with pytest.raises(SectionError, match=r"no layer 'count'; its layers are \['counts'\]"):
        read_h5ad(path, patient="p", layer="count")


def test_positions_in_obs(tmp_path: Path) -> None:
    table = fx.visium_adata()
    xy = table.obsm["spatial"].copy()
    table.obs["px"], table.obs["py"] = xy.T
    del table.obsm["spatial"]
    path = write(tmp_path, table)
    np.testing.assert_allclose(read_h5ad(path, patient="p", spatial=("px", "py")).xy, xy)
    with pytest.raises(SectionError, match=r"no column \['x'\]"):
        read_h5ad(path, patient="p", spatial=("x", "py"))


def test_what_was_written_by_histoweave_keeps_its_library(tmp_path: Path) -> None:
    table = fx.visium_adata()
    table.obs["library"] = 1000.0
    table.uns["histoweave"] = {"units": "counts"}
    np.testing.assert_array_equal(read_h5ad(write(tmp_path, table), patient="p").library, 1000.0)


def test_bad_files(tmp_path: Path) -> None:
    path = write(tmp_path, fx.visium_adata())
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(SectionError, match=r"s\.h5ad' is truncated or not an AnnData file"):
        read_h5ad(path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_h5ad(tmp_path / "none.h5ad")


def test_a_folder_of_files(tmp_path: Path) -> None:
    for name in ("a1", "b1"):
        write(tmp_path, fx.visium_adata(), f"{name}.h5ad")
    fx.write_image(tmp_path / "b1.tif", (70, 70))
    assert recognise(tmp_path) == "h5ad-folder"
    assert read_cohort(tmp_path, patient="^([a-z])").patients == ("a", "b")
    assert read_cohort(tmp_path, sections="with-image").ids == ("b1",)
