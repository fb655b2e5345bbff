"""Prediction without counts: tiles at the training pitch, the same numbers in memory and on disk, errors that help."""

from __future__ import annotations

import json
from pathlib import Path

import anndata
import numpy as np
import pytest
from PIL import Image

from histoweave.commands import fit, predict
from histoweave.data.phantom import Phantom
from histoweave.data.store import Store
from histoweave.inference import predict_section, tile_slide
from histoweave.settings import FitSettings, PredictSettings
from histoweave.train import Learner
from histoweave.view import View


@pytest.fixture(scope="module")
def saved(small: Phantom, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    settings = FitSettings(model="ridge", target="log1p-given", panel="top-mean:10", encoder="tiny", window_um=200.0,
                           out_px=32, cv=3, store=str(folder / "store"))  # fmt: skip
    fit(small.cohort, folder / "model", settings)
    return folder


@pytest.fixture(scope="module")
def slide(small: Phantom, tmp_path_factory: pytest.TempPathFactory) -> Path:
    image = small.cohort[1].image
    assert image is not None
    path = tmp_path_factory.mktemp("slide") / "new.png"
    Image.fromarray(image.thumbnail(10_000)).save(path)
    return path


def test_a_slide_without_counts(saved: Path, slide: Path, small: Phantom, tmp_path: Path) -> None:
    section = small.cohort[1]
    settings = PredictSettings(mpp=section.um_per_px, store=str(saved / "store"))
    made = predict(saved / "model", slide, tmp_path / "out.h5ad", settings)
    assert made.isbacked and 0.6 * section.n < made.n_obs < 1.6 * section.n
    xy = made.obsm["spatial"]
    assert np.diff(np.unique(xy[:, 0])).min() * section.um_per_px == pytest.approx(200.0)  # the training pitch
    about = made.uns["histoweave"]
    assert about["units"].startswith("ln(") and about["expected_accuracy"] == "3-fold cross-validation by patient"
    assert made.var["cv_pcc"].notna().all() and (made.var["cv_pcc_n"] == 3).all()
    card = json.loads(about["card"])
    assert card["encoder"]["licence"] and card["trained_on"] == list(small.cohort.patients)
    made.file.close()
    again = anndata.read_h5ad(tmp_path / "out.h5ad")
    in_memory = predict(saved / "model", slide, None, settings)
    assert np.array_equal(again.X, in_memory.X) and list(again.obs_names) == list(in_memory.obs_names)
    assert [p.name for p in tmp_path.iterdir()] == ["out.h5ad"]


def test_accuracy_that_was_not_measured_is_missing_with_a_reason(
    small: Phantom, view: View, shared_store: Store
) -> None:
    learner = Learner("mean", view, shared_store).fit(small.cohort)
    made = predict_section(learner, small.cohort[0])
    assert made.var["cv_pcc"].isna().all() and "not measured" in made.uns["histoweave"]["expected_accuracy"]


def test_scanpy_takes_over(small: Phantom, view: View, shared_store: Store) -> None:
    import scanpy

    made = predict_section(Learner("ridge", view, shared_store).fit(small.cohort), small.cohort[0])
    scanpy.pp.pca(made, n_comps=3)
    assert made.obsm["X_pca"].shape == (made.n_obs, 3)


def test_errors_say_what_to_do(saved: Path, slide: Path, small: Phantom, tmp_path: Path) -> None:
    store = str(saved / "store")
    with pytest.raises(ValueError, match=r"--mpp 0\.5"):
        predict(saved / "model", slide, tmp_path / "o.h5ad", PredictSettings(store=store))
    with pytest.raises(ValueError, match=r"not a \.h5ad file"):
        predict(saved / "model", slide, tmp_path / "o.csv", PredictSettings(store=store, mpp=6.25))
    blank = tmp_path / "blank.png"
    Image.fromarray(np.full((200, 200, 3), 250, dtype=np.uint8)).save(blank)
    with pytest.raises(ValueError, match="tissue"):
        predict(saved / "model", blank, tmp_path / "o.h5ad", PredictSettings(store=store, mpp=6.25))
    assert {p.name for p in tmp_path.iterdir()} == {"blank.png"}


def test_hexagonal_tiles_for_visium(small: Phantom) -> None:
    image = small.cohort[0].image
    assert image is not None
    section = tile_slide(image, id="x", um_per_px=small.cohort[0].um_per_px, pitch_um=200.0, platform="visium")
    assert section.platform == "visium" and section.array_rc is not None
    assert ((section.array_rc.sum(axis=1) % 2) == 0).all()  # doubled columns
