"""Space Ranger folders: both position files, both matrix forms, gene names, scale, images, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tests.data import fixtures as fx

from histoweave.data.io import read_cohort, read_visium, recognise
from histoweave.data.section import SectionError

SIZE = (90, 90)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("matrix", ["h5", "mtx"])
def test_reads_what_was_written(tmp_path: Path, version: int, matrix: str) -> None:
    truth = fx.write_visium(tmp_path / "S1/outs", version, matrix)
    fx.write_image(tmp_path / "S1/outs/tissue_image.png", SIZE)
    section = read_visium(tmp_path / "S1/outs", patient="p")
    kept = truth.in_tissue
    assert (section.id, section.patient, section.platform) == ("S1", "p", "visium")
    assert section.spots.obs_names.tolist() == [b for b, k in zip(truth.barcodes, kept, strict=True) if k]
    assert list(section.genes) == ["SAMD11", "ENSG2", "ENSG3", "AbC"]
    np.testing.assert_array_equal(section.spots.X.toarray(), truth.counts[kept, :4])
    np.testing.assert_allclose(section.xy, truth.xy[kept])
    np.testing.assert_array_equal(section.array_rc, truth.array_rc[kept])
    assert section.um_per_px == pytest.approx(1 / fx.VISIUM_PX_PER_UM, rel=1e-6)
    assert section.image is not None


def test_options(tmp_path: Path) -> None:
    truth = fx.write_visium(tmp_path / "outs", prefix="Sample_")
    section = read_visium(tmp_path / "outs", id="x", patient="p", genes="id", in_tissue=False, um_per_px=9.9)
    assert section.n == len(truth.barcodes)
    assert list(section.genes) == truth.ids[:4]
    assert section.um_per_px == 9.9
    assert section.image is None
    with pytest.raises(ValueError, match="'symbol' or 'id'"):
        read_visium(tmp_path / "outs", patient="p", genes="name")  # type: ignore[arg-type]


def test_folder_of_sections(tmp_path: Path) -> None:
    for name in ("S1", "S2", "T1"):
        fx.write_visium(tmp_path / name / "outs")
    fx.write_image(tmp_path / "S2/S2_image.tif", SIZE)
    assert recognise(tmp_path) == "visium-folder"
    cohort = read_cohort(tmp_path, patient=r"^([A-Z])")
    assert (cohort.ids, cohort.patients) == (("S1", "S2", "T1"), ("S", "T"))
    assert read_cohort(tmp_path, sections="with-image").ids == ("S2",)


def test_a_downsampled_image_is_named(tmp_path: Path) -> None:
    fx.write_visium(tmp_path / "outs")
    reach = read_visium(tmp_path / "outs", patient="p").xy.max()
    hires = fx.write_image(tmp_path / "outs/spatial/tissue_hires_image.png", (int(reach / 2) + 5,) * 2)
    with pytest.raises(SectionError, match=r"looks like 'tissue_hires_image\.png'.*full-resolution"):
        read_visium(tmp_path / "outs", hires, patient="p")
    lowres = fx.write_image(tmp_path / "outs/spatial/tissue_lowres_image.png", (int(reach / 10) + 2,) * 2)
    with pytest.raises(SectionError, match=r"looks like 'tissue_lowres_image\.png'"):
        read_visium(tmp_path / "outs", lowres, patient="p")
    with pytest.raises(SectionError, match="outside the image"):
        read_visium(tmp_path / "outs", fx.write_image(tmp_path / "tiny.png", (3, 3)), patient="p")


def test_two_images_or_matrices(tmp_path: Path) -> None:
    fx.write_visium(tmp_path / "outs", prefix="a_")
    for name in ("x_image.png", "y_image.tif"):
        fx.write_image(tmp_path / "outs" / name, SIZE)
    with pytest.raises(SectionError, match="has 2 images"):
        read_visium(tmp_path / "outs", patient="p")
    (tmp_path / "outs/b_filtered_feature_bc_matrix.h5").write_bytes(b"")
    with pytest.raises(SectionError, match="several matrices"):
        read_visium(tmp_path / "outs", patient="p")


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no Space Ranger output: expected 'filtered_feature_bc_matrix\.h5'"):
        read_visium(tmp_path)
    fx.write_visium(tmp_path / "outs")
    positions = tmp_path / "outs/spatial/tissue_positions.csv"
    table = pd.read_csv(positions)
    table.assign(barcode="AAAA-1").iloc[:1].to_csv(positions, index=False)
    with pytest.raises(SectionError, match="none of the 48 barcodes"):
        read_visium(tmp_path / "outs", patient="p")
    pd.concat([table, table.iloc[:1]]).to_csv(positions, index=False)
    with pytest.raises(SectionError, match="names barcodes twice"):
        read_visium(tmp_path / "outs", patient="p")
    table.drop(columns="array_row").to_csv(positions, index=False)
    with pytest.raises(SectionError, match=r"lacks the columns \['array_row'\]"):
        read_visium(tmp_path / "outs", patient="p")
    positions.rename(positions.with_suffix(".parquet"))
    with pytest.raises(SectionError, match="Visium HD"):
        read_visium(tmp_path / "outs", patient="p")


def test_truncated_matrix(tmp_path: Path) -> None:
    fx.write_visium(tmp_path / "outs")
    path = tmp_path / "outs/filtered_feature_bc_matrix.h5"
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(SectionError, match=r"matrix\.h5' is truncated or not a 10x matrix"):
        read_visium(tmp_path / "outs", patient="p")
