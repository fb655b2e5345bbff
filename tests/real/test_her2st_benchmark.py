"""her2st through the benchmark: the two numbers of the training mean, and the whole way on sections with images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from histoweave.bench.benchmark import Benchmark
from histoweave.bench.summary import Report, summarise
from histoweave.commands import bench, fit, predict
from histoweave.data.io import read_cohort
from histoweave.data.section import Cohort
from histoweave.data.split import leave_one_out
from histoweave.data.store import Store
from histoweave.report import write_html
from histoweave.settings import BenchSettings, FitSettings, PredictSettings
from histoweave.view import View

pytestmark = pytest.mark.real
Record = Callable[[str, object], None]
# Small windows keep this under a minute; the full size is in benchmarks/.
QUICK = {"sections": "B4,C2,C3", "window_um": 154.0, "out_px": 64, "recipe": "tiny", "panel": "top-mean:50"}


@pytest.fixture(scope="module")
def cohort(her2st_folder: Path) -> Cohort:
    return read_cohort(her2st_folder)


@pytest.mark.parametrize(("protocol", "mse", "sd"), [("paper", 0.2633, 0.0818), ("strict", 0.2525, 0.0782)])
def test_the_training_mean(
    cohort: Cohort, tmp_path: Path, record: Record, protocol: str, mse: float, sd: float
) -> None:
    """Leave one patient out over all 36 sections, triplex-paper target, top 250 by raw count; no image is needed."""
    benchmark = Benchmark(
        name="bc1",
        cohort=cohort,
        splits=tuple(leave_one_out(cohort)),
        view=View(),
        models=("mean",),
        controls=("mean", "ridge"),
        protocol=protocol,
    )  # type: ignore[arg-type]
    assert benchmark.left_out() == ("ridge",)
    report = summarise(benchmark, benchmark.run(tmp_path, Store(tmp_path / "store")), tmp_path)
    row = report.summary.set_index(["model", "metric"]).loc[("mean", "mse")]
    record("mse", [float(row["mean"]), float(row["sd"])])
    assert (round(row["mean"], 4), round(row["sd"], 4), row["n"]) == (mse, sd, 8)
    pcc = report.summary.set_index(["model", "metric"]).loc[("mean", "pcc"), "mean"]
    assert pcc == 0.0  # a constant prediction scores 0, it does not drop out


@pytest.fixture(scope="module")
def run(her2st_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Cohort, Path]:
    """A benchmark of every kind of model on three sections with images, with small windows."""
    folder = tmp_path_factory.mktemp("her2st")
    cohort = read_cohort(her2st_folder, sections=["B4", "C2", "C3"])
    settings = BenchSettings(models="ridge,knn,position,colour,stnet,triplex", store=str(folder / "store"), **QUICK)
    return bench(cohort, folder / "run", settings), cohort, folder


def test_models_on_sections_with_images(run: tuple[Report, Cohort, Path], record: Record) -> None:
    report, _, _ = run
    summary = report.summary.set_index(["metric", "model"])["mean"]
    record("pcc", summary.loc["pcc"].to_dict())
    assert set(report.models) == {"mean", "ridge", "knn", "shuffled", "position", "colour", "stnet", "triplex"}
    assert summary.loc["pcc"].notna().all()
    assert summary.loc[("pcc", "ridge")] > 0.05  # embeddings of H&E tell something about expression
    assert summary.loc[("pcc", "ridge")] > summary.loc[("pcc", "shuffled")] + 0.03
    assert not report.tests["testable"].any()  # two patients rank nothing


def test_report_holds_every_model(run: tuple[Report, Cohort, Path]) -> None:
    report, cohort, _ = run
    page = write_html(report, cohort, genes=[report.genes.index[0]]).read_text(encoding="utf-8")
    assert all(model in page for model in report.models)
    assert "http://" not in page.replace("http://www.w3.org", "") and "<script src" not in page


def test_prediction_without_counts(run: tuple[Report, Cohort, Path], her2st_folder: Path, record: Record) -> None:
    """A model of two sections predicts an image of a third one without its counts."""
    _, cohort, folder = run
    settings = FitSettings(
        model="ridge", store=str(folder / "store"), from_bench=str(folder / "run"), **(QUICK | {"sections": "B4,C2"})
    )
    fit(cohort, folder / "model", settings)
    image = next(path for path in (her2st_folder / "ST-imgs").rglob("C3.jpg"))
    made = predict(
        folder / "model",
        image,
        folder / "C3.h5ad",
        PredictSettings(mpp=cohort["C3"].um_per_px, store=str(folder / "store")),
    )
    record("tiles", int(made.n_obs))
    spots = cohort["C3"].n
    assert 0.7 * spots < made.n_obs < 1.4 * spots
    values = np.asarray(made.X[:])
    assert np.isfinite(values).all() and values.std(axis=0).max() > 0.01
    # Each fold chose its own panel, so a gene was seen in the folds of one patient or of both.
    assert made.var["cv_pcc"].notna().all() and set(made.var["cv_pcc_n"]) == {1, 2}
    assert "log10" in made.uns["histoweave"]["units"]
    made.file.close()
