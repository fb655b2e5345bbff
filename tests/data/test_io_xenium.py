"""Xenium folders: what is read, where cells lie on a morphology image and on a stained one, and what is refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from tests.data import fixtures as fx
from tests.data.xenium_outs import PIXEL, SYMBOLS, TYPES, Outs, write_cells, write_matrix, write_xenium

from histoweave.data.io import read_cohort, read_samples, read_xenium, recognise
from histoweave.data.section import SectionError

SIZE = (100, 100)  # px of 0.2125 µm that hold the 20 µm of the cells
TURN = np.deg2rad(30)
# Takes px of an H&E image of 0.34 µm per px to Xenium px: mirrored, turned by 30° and shifted.
MATRIX = np.array(
    [[-1.6 * np.cos(TURN), -1.6 * np.sin(TURN), 120.0], [-1.6 * np.sin(TURN), 1.6 * np.cos(TURN), 20.0], [0, 0, 1]]
)


@pytest.fixture
def outs(tmp_path: Path) -> Outs:
    return write_xenium(tmp_path / "S1/outs")


def on_stained(outs: Outs, matrix: np.ndarray = MATRIX) -> np.ndarray:
    """Cells on the stained image, one by one."""
    return np.array([np.linalg.solve(matrix, [x, y, 1.0])[:2] for x, y in outs.px])


@pytest.mark.parametrize("table", ["parquet", "csv.gz"])
@pytest.mark.parametrize("prefix", ["", "GSM1_"])
def test_reads_what_was_written(tmp_path: Path, table: str, prefix: str) -> None:
    outs = write_xenium(tmp_path / "S1/outs", table=table, prefix=prefix)
    section = read_xenium(tmp_path / "S1", patient="p")
    assert (section.id, section.patient, section.platform) == ("S1", "p", "xenium")
    assert (section.um_per_px, section.image, section.array_rc) == (PIXEL, None, None)
    assert section.spots.obs_names.tolist() == outs.cells
    assert list(section.genes) == ["ACE2", "ENSG2", "ENSG3"]  # a symbol that two genes share is no name
    np.testing.assert_array_equal(section.spots.X.toarray(), outs.counts[:, :3])
    np.testing.assert_allclose(section.xy, outs.px)
    assert section.library[3] == 0  # an empty cell stays
    np.testing.assert_array_equal(section.spots.obs["transcript_counts"], outs.counts[:, :3].sum(axis=1))


def test_controls_are_kept_apart(outs: Outs, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        section = read_xenium(outs.folder, patient="p", genes="id")
    assert list(section.genes) == ["ENSG1", "ENSG2", "ENSG3"]
    assert section.spots.uns["controls"].tolist() == SYMBOLS[3:6]
    np.testing.assert_array_equal(section.spots.obs["control_counts"], outs.counts[:, 3:6].sum(axis=1))
    np.testing.assert_array_equal(section.library, outs.counts[:, :3].sum(axis=1))
    assert "features dropped: 1 × Protein Expression" in caplog.text


def test_integer_ids_and_bytes_are_names(tmp_path: Path) -> None:
    outs = write_xenium(tmp_path)
    table = pd.read_parquet(tmp_path / "cells.parquet")
    write_cells(tmp_path / "cells.parquet", table.assign(cell_id=table["cell_id"].str.encode("utf-8")))
    assert read_xenium(tmp_path, patient="p").spots.obs_names.tolist() == outs.cells
    outs.cells = [str(i) for i in range(1, 31)]
    write_matrix(tmp_path / "cell_feature_matrix.h5", outs)
    write_cells(tmp_path / "cells.parquet", table.iloc[:-1].assign(cell_id=range(30, 0, -1)))
    np.testing.assert_allclose(read_xenium(tmp_path, patient="p").xy, outs.px)


def test_morphology(outs: Outs, caplog: pytest.LogCaptureFixture) -> None:
    (outs.folder / "morphology_focus").mkdir()
    nuclei = outs.folder / "morphology_focus/ch0000_dapi.ome.tif"
    tifffile.imwrite(nuclei, np.full((100, 100), 900, dtype=np.uint16), metadata={"axes": "YX"})
    section = read_xenium(outs.folder, patient="p")
    assert section.image is not None and section.image.path == nuclei
    np.testing.assert_allclose(section.xy, outs.px)
    tifffile.imwrite(nuclei, np.zeros((4, 100, 100), dtype=np.uint16), metadata={"axes": "CYX"})
    section = read_xenium(outs.folder, patient="p")
    assert section.image is None and "read without its morphology image" in caplog.text


@pytest.mark.parametrize("name", ["S1_morphology_focus.ome.tif", "S1_morphology_focus/ch0000_dapi.ome.tif"])
def test_a_morphology_image_with_a_prefix_and_its_own_place(outs: Outs, name: str) -> None:
    path = outs.folder / name
    path.parent.mkdir(exist_ok=True)
    tifffile.imwrite(path, np.full((100, 100), 900, dtype=np.uint16), metadata={"axes": "YX"})
    np.savetxt(outs.folder / "he_imagealignment.csv", MATRIX, delimiter=",")  # of another image
    for how in ({}, {"alignment": "identity"}, {"image": path}):
        section = read_xenium(outs.folder, patient="p", **how)
        assert section.image is not None and section.image.path == path
        np.testing.assert_allclose(section.xy, outs.px)


@pytest.mark.parametrize("name", ["x_he_imagealignment.csv", "x_he_image_matrix.csv", "x_he_imagealignment.json"])
def test_a_stained_image_beside_its_alignment(outs: Outs, name: str) -> None:
    image = fx.write_image(outs.folder.parent / "x_he_image.png", (160, 160))
    path = image.parent / name
    path.write_text(json.dumps(MATRIX.tolist())) if path.suffix == ".json" else np.savetxt(path, MATRIX, delimiter=",")
    section = read_xenium(outs.folder, patient="p")
    assert section.image is not None and section.image.path == image
    np.testing.assert_allclose(section.xy, on_stained(outs), atol=1e-6)
    assert section.um_per_px == pytest.approx(1.6 * PIXEL)
    back = MATRIX @ np.vstack([section.xy.T, np.ones(section.n)])  # the matrix takes px of the image to Xenium px
    np.testing.assert_allclose(back[:2].T * PIXEL, outs.um, atol=1e-6)


def test_an_alignment_may_be_given_or_be_the_only_one(outs: Outs, tmp_path: Path) -> None:
    image = fx.write_image(tmp_path / "slide.png", (160, 160))
    given = read_xenium(outs.folder, image, alignment=MATRIX, patient="p")
    np.testing.assert_allclose(given.xy, on_stained(outs))
    np.savetxt(outs.folder / "he_imagealignment.csv", MATRIX, delimiter=",")
    np.testing.assert_allclose(read_xenium(outs.folder, image, patient="p").xy, on_stained(outs))
    assert read_xenium(outs.folder, image, alignment="identity", patient="p").um_per_px == PIXEL


def test_identity_where_there_is_none(outs: Outs, caplog: pytest.LogCaptureFixture) -> None:
    fx.write_image(outs.folder / "he_image.png", SIZE)
    section = read_xenium(outs.folder, patient="p")
    assert section.um_per_px == PIXEL
    np.testing.assert_allclose(section.xy, outs.px)
    assert "no alignment" not in caplog.text
    halved = read_xenium(outs.folder, fx.write_image(outs.folder / "small.png", (50, 50)), patient="p", um_per_px=0.425)
    np.testing.assert_allclose(halved.xy, outs.px / 2)
    assert "no alignment is given" in caplog.text


def test_an_image_that_does_not_cover_the_cells(outs: Outs, tmp_path: Path) -> None:
    image = fx.write_image(tmp_path / "he.png", (160, 160))
    inverse = np.linalg.inv(MATRIX)
    inside = int(((on_stained(outs, inverse) >= 0) & (on_stained(outs, inverse) < 160)).all(axis=1).sum())
    assert inside < 30
    with pytest.raises(
        SectionError,
        match=rf"{30 - inside} of 30 cells lie outside .*160 × 160.*inverted it would cover 30 of 30\. .*Typical",
    ):
        read_xenium(outs.folder, image, alignment=inverse, patient="p")
    small = fx.write_image(tmp_path / "part.png", (60, 100))
    covered = outs.px[:, 0] < 60
    with pytest.raises(SectionError, match=r"shows less tissue than was measured \(then `drop_outside=True`\)"):
        read_xenium(outs.folder, small, patient="p")
    part = read_xenium(outs.folder, small, patient="p", drop_outside=True)
    assert part.spots.obs_names.tolist() == np.array(outs.cells)[covered].tolist()
    np.testing.assert_array_equal(part.spots.X.toarray(), outs.counts[covered, :3])


def test_a_scale_that_the_alignment_contradicts(outs: Outs, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = fx.write_image(tmp_path / "he.png", (160, 160))
    with pytest.raises(SectionError, match=r"0\.5 µm per px was given.*alignment says 0\.34.*downsampled"):
        read_xenium(outs.folder, image, alignment=MATRIX, patient="p", um_per_px=0.5)
    assert read_xenium(outs.folder, image, alignment=MATRIX, patient="p", um_per_px=0.33).um_per_px == 0.33
    own = tmp_path / "own.tif"
    tifffile.imwrite(own, np.zeros((160, 160, 3), np.uint8), resolution=(5e4, 5e4), resolutionunit=3)
    read_xenium(outs.folder, own, alignment=MATRIX, patient="p")
    assert "says 0.2 µm per px, its alignment 0.34" in caplog.text


def test_missing_files(outs: Outs, tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"no Xenium output: expected 'cell_feature_matrix\.h5', 'cells\.parquet'"
    ):
        read_xenium(tmp_path)
    (outs.folder / "experiment.xenium").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"no 'experiment\.xenium' in .* which has 'cell_feat.*give `pixel_size`"
    ):
        read_xenium(outs.folder, patient="p")
    assert read_xenium(outs.folder, patient="p", pixel_size=0.5).um_per_px == 0.5
    (outs.folder / "cells.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"no 'cells\.parquet' or 'cells\.csv\.gz' or 'cells\.csv'"):
        read_xenium(outs.folder, patient="p")
    write_xenium(outs.folder)
    with pytest.raises(SectionError, match="an alignment was given, but no image"):
        read_xenium(outs.folder, patient="p", alignment=MATRIX)


@pytest.mark.parametrize("text", ["{", "{}", '{"pixel_size": "x"}', "[1]"])
def test_a_manifest_without_pixel_size(outs: Outs, text: str) -> None:
    (outs.folder / "experiment.xenium").write_text(text)
    with pytest.raises(SectionError, match=r"experiment\.xenium' does not say 'pixel_size'"):
        read_xenium(outs.folder, patient="p")


def test_no_genes(outs: Outs) -> None:
    write_matrix(outs.folder / "cell_feature_matrix.h5", outs, ["Negative Control Probe"] * len(TYPES))
    with pytest.raises(
        SectionError, match=r"no feature is of type 'Gene Expression', only \['Negative Control Probe'\]"
    ):
        read_xenium(outs.folder, patient="p")


def test_cells_that_do_not_agree(outs: Outs) -> None:
    path = outs.folder / "cells.parquet"
    table = pd.read_parquet(path)
    write_cells(path, table[table["cell_id"] != outs.cells[5]])
    with pytest.raises(
        SectionError, match=rf"1 of 30 cells of the matrix are not in 'cells\.parquet' .*{outs.cells[5]}"
    ):
        read_xenium(outs.folder, patient="p")
    write_cells(path, pd.concat([table, table.iloc[:1]]))
    with pytest.raises(SectionError, match="names cells twice"):
        read_xenium(outs.folder, patient="p")
    write_cells(path, table.drop(columns="x_centroid"))
    with pytest.raises(SectionError, match=r"lacks the columns \['x_centroid'\]"):
        read_xenium(outs.folder, patient="p")
    write_cells(path, table.assign(x_centroid=np.nan))
    with pytest.raises(SectionError, match="30 cells have no centroid"):
        read_xenium(outs.folder, patient="p")
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(SectionError, match="truncated or no table of cells"):
        read_xenium(outs.folder, patient="p")


def test_two_of_a_kind(outs: Outs) -> None:
    for name in ("a_he_image.png", "b_he_image.png"):
        fx.write_image(outs.folder / name, SIZE)
    with pytest.raises(SectionError, match="has 2 images"):
        read_xenium(outs.folder, patient="p")
    for name in ("a_imagealignment.csv", "b_imagealignment.csv"):
        np.savetxt(outs.folder / name, MATRIX, delimiter=",")
    with pytest.raises(SectionError, match="has 2 alignments"):
        read_xenium(outs.folder, outs.folder / "a_he_image.png", patient="p")


def test_recognised(outs: Outs, tmp_path: Path) -> None:
    write_xenium(tmp_path / "S2")
    fx.write_image(tmp_path / "S2/he_image.png", SIZE)
    assert (recognise(outs.folder), recognise(tmp_path / "S1"), recognise(tmp_path)) == (
        "xenium",
        "xenium",
        "xenium-folder",
    )
    cohort = read_cohort(tmp_path, patient=r"^([A-Z])")
    assert (cohort.ids, cohort.patients) == (("S1", "S2"), ("S",))
    assert read_cohort(tmp_path, patient={"S1": "a", "S2": "b"}, sections="with-image").ids == ("S2",)


def test_in_samples_csv(outs: Outs, tmp_path: Path) -> None:
    fx.write_image(tmp_path / "he.png", (160, 160))
    np.savetxt(tmp_path / "m.csv", MATRIX, delimiter=",")
    samples = tmp_path / "samples.csv"
    head = "id,patient,platform,path,image,alignment\n"
    samples.write_text(f"{head}one,p,xenium,S1/outs,he.png,m.csv\ntwo,p,,S1,,\nthree,p,,S1,he.png,identity\n")
    one, two, three = read_samples(samples)
    np.testing.assert_allclose(one.xy, on_stained(outs))
    np.testing.assert_allclose(two.xy, outs.px)
    assert (two.image, three.um_per_px, {s.patient for s in (one, two, three)}) == (None, PIXEL, {"p"})
    samples.write_text(f"{head}one,p,visium,S1/outs,he.png,m.csv\n")
    with pytest.raises(SectionError, match="is of platform 'xenium', but 'visium' is given"):
        read_samples(samples)
    samples.write_text(f"{head}one,p,,S1/outs,he.png,n.csv\n")
    with pytest.raises(FileNotFoundError, match=r"line 2: column 'alignment' names 'n\.csv'"):
        read_samples(samples)
    fx.visium_adata().write_h5ad(tmp_path / "v.h5ad")
    samples.write_text(f"{head}one,p,,v.h5ad,he.png,m.csv\n")
    with pytest.raises(SectionError, match="'alignment' is for Xenium folders"):
        read_samples(samples)
