"""Single-cell references, and negative controls of AnnData files."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from histoweave.data.io import read_h5ad, read_reference, read_samples
from histoweave.data.section import SectionError


def table(**obs: object) -> anndata.AnnData:
    """Five cells of four features."""
    counts = sparse.csr_matrix(np.random.default_rng(2).poisson(1.0, (5, 4)))
    names = [f"c{i}" for i in range(5)]
    return anndata.AnnData(counts, obs=pd.DataFrame(obs, index=names), var=pd.DataFrame(index=["a", "b", "N1", "N2"]))


def write(folder: Path, given: anndata.AnnData) -> Path:
    given.write_h5ad(folder / "atlas.h5ad")
    return folder / "atlas.h5ad"


def test_a_reference(tmp_path: Path) -> None:
    given = table(cell_type=["T", "B", "T", "B", "T"], donor=list("xxyyy"))
    section = read_reference(write(tmp_path, given))
    assert (section.id, section.patient, section.platform, section.um_per_px) == ("atlas", "atlas", "reference", None)
    assert section.image is None and not section.xy.any()
    np.testing.assert_array_equal(section.spots.X.toarray(), given.X.toarray())
    assert section.spots.obs["group"].tolist() == ["T", "B", "T", "B", "T"]
    assert section.spots.obs["group"].cat.categories.tolist() == ["B", "T"]
    assert section.spots.obs["donor"].tolist() == list("xxyyy")
    other = read_reference(tmp_path / "atlas.h5ad", "donor", id="r", patient="q")
    assert (other.id, other.patient, set(other.spots.obs["group"])) == ("r", "q", {"x", "y"})
    assert "group" not in read_reference(tmp_path / "atlas.h5ad", None).spots.obs


def test_counts_of_a_layer(tmp_path: Path) -> None:
    given = table(cell_type=list("TBTBT"))
    given.layers["umi"] = given.X * 3
    section = read_reference(write(tmp_path, given), layer="umi")
    np.testing.assert_array_equal(section.spots.X.toarray(), 3 * given.X.toarray())


def test_cells_of_a_section_are_a_reference(tmp_path: Path) -> None:
    given = table(cell_type=list("TBTBT"))
    given.obsm["spatial"] = np.arange(10.0).reshape(5, 2)
    given.uns.update(platform="xenium", um_per_px=0.5, patient="p7")
    section = read_reference(write(tmp_path, given))
    assert (section.platform, section.patient) == ("reference", "p7")
    np.testing.assert_array_equal(section.xy, given.obsm["spatial"])


def test_groups_that_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, table(celltype=["T", "B", None, None, "T"], one=["T"] * 5))
    with pytest.raises(SectionError, match=r"atlas\.h5ad': obs has no column 'cell_type'; did you mean 'celltype'\?"):
        read_reference(path)
    with pytest.raises(SectionError, match="2 of 5 cells have no 'celltype'"):
        read_reference(path, "celltype")
    with pytest.raises(SectionError, match="all cells have the 'one' 'T'"):
        read_reference(path, "one")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_reference(tmp_path / "none.h5ad")


def cells_with_controls() -> anndata.AnnData:
    given = table()
    given.var["feature_types"] = ["Gene Expression", "Gene Expression", "Negative Control", "Unassigned Codeword"]
    given.obsm["spatial"] = np.arange(10.0).reshape(5, 2)
    given.uns.update(platform="xenium", um_per_px=0.5)
    return given


def test_controls_of_an_anndata_file_are_kept_apart(tmp_path: Path) -> None:
    given = cells_with_controls()
    (tmp_path / "samples.csv").write_text("id,patient,path\nA,P1,atlas.h5ad\nB,P1,atlas.h5ad\n")
    write(tmp_path, given)
    cohort = read_samples(tmp_path / "samples.csv")
    assert cohort.patients == ("P1",)
    section = cohort["A"]
    assert section.genes.tolist() == ["a", "b"]
    np.testing.assert_array_equal(section.spots.X.toarray(), given.X[:, :2].toarray())
    np.testing.assert_array_equal(section.library, given.X[:, :2].sum(axis=1).A1)
    np.testing.assert_array_equal(section.spots.obs["control_counts"], given.X[:, 2:].sum(axis=1).A1)
    assert section.spots.uns["controls"].tolist() == ["N1", "N2"]


def test_controls_survive_a_round_trip(tmp_path: Path) -> None:
    first = read_h5ad(write(tmp_path, cells_with_controls()), patient="p")
    first.spots.write_h5ad(tmp_path / "again.h5ad")
    second = read_h5ad(tmp_path / "again.h5ad", patient="p", platform="xenium", um_per_px=0.5)
    assert second.spots.uns["controls"].tolist() == ["N1", "N2"]
    np.testing.assert_array_equal(second.spots.obs["control_counts"], first.spots.obs["control_counts"])


def test_a_file_of_controls_alone_is_refused(tmp_path: Path) -> None:
    given = cells_with_controls()
    given.var["feature_types"] = "Negative Control"
    with pytest.raises(SectionError, match=r"atlas\.h5ad': no feature is of type 'Gene Expression'"):
        read_h5ad(write(tmp_path, given), patient="p")
