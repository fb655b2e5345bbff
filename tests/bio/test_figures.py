"""Figures draw what they are given, and say what they cannot draw."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from tests.bio.made import grid_cells, smooth_maps, stored

from histoweave.bio import cluster_means, parts, structure
from histoweave.pl import Plate, cluster_maps, cluster_scatter, de_dots, normalised_maps, oversmoothing, value_histogram


@pytest.fixture(scope="module")
def maps() -> tuple[np.ndarray, np.ndarray, Plate]:
    """Truth with holes, prediction (64, 4) and the plate."""
    truth = smooth_maps(4, 8, 0) + 3
    pred = 3 + 0.4 * (truth - 3) + 0.1 * smooth_maps(4, 8, 1)
    truth[:4, 1] = np.nan
    return truth, pred, Plate.bare(grid_cells(8)[:, ::-1] * 100.0)


def drawn(figure: Figure) -> int:
    """Bytes of the figure as SVG: it could be drawn."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg")
    return len(buffer.getvalue())


def test_dots_have_the_colour_of_the_mean_and_the_area_of_the_share(maps: tuple[np.ndarray, np.ndarray, Plate]) -> None:
    truth, pred, _ = maps
    high = truth[:, 0] > 3
    figure = de_dots(truth, pred, {"tu$mour": high, "rest": ~high}, ["A", "B", "C", "$D$"], model="<net>")
    dots = figure.axes[0].collections[0]
    z = (truth[:, 0] - truth[:, 0].mean()) / truth[:, 0].std()
    assert dots.get_array()[0] == pytest.approx(z[high].mean())  # type: ignore[index]
    share = (truth[high, 0] > np.median(truth[:, 0])).mean()
    assert dots.get_sizes()[0] == pytest.approx(130 * share)
    assert figure.axes[1].get_title() == "<net>"
    assert drawn(figure)
    with pytest.raises(ValueError, match="0 genes and 1 labels"):
        de_dots(truth[:, :0], pred[:, :0], {"a": high}, [], model="m")


def test_cluster_figures(maps: tuple[np.ndarray, np.ndarray, Plate]) -> None:
    truth, pred, plate = maps
    labels = np.arange(64) % 3
    means = cluster_means(truth, pred, labels, pd.Index(list("ABCD")))
    figure = cluster_scatter(means, ["Z", "B", "A"], model="net")
    assert [ax.get_title().split()[0] for ax in figure.axes] == ["B", "A"]
    error = means.loc[means["gene"] == "B", "error"].abs().mean()
    assert figure.axes[0].get_title().endswith(f"{error:.2f}")
    assert drawn(figure)
    assert drawn(cluster_maps(plate, {"measured": labels, "net": np.arange(64) % 12}))
    with pytest.raises(ValueError, match="expected 64 spots in each"):
        cluster_maps(plate, {"measured": labels[:5]})
    with pytest.raises(ValueError, match="none of the genes"):
        cluster_scatter(means, ["Z"], model="net")


def test_values_over_their_mean_and_their_histogram(maps: tuple[np.ndarray, np.ndarray, Plate]) -> None:
    truth, pred, plate = maps
    figure = normalised_maps(plate, "B", truth[:, 1], pred[:, 1], model="net")
    shown = figure.axes[0].collections[0].get_array()
    assert np.mean(shown) == pytest.approx(1.0)  # type: ignore[arg-type]
    assert drawn(figure)
    assert drawn(value_histogram("B", truth[:, 1], {"net": pred[:, 1], "other$": pred[:, 2]}, units="ln"))
    with pytest.raises(ValueError, match="only a mean above 0"):
        normalised_maps(plate, "B", truth[:, 1] - 10, pred[:, 1], model="net")
    with pytest.raises(ValueError, match="measured in no spot"):
        value_histogram("B", np.full(64, np.nan), {})


def test_oversmoothing_has_one_point_per_gene_that_varies(maps: tuple[np.ndarray, np.ndarray, Plate]) -> None:
    truth, pred, _ = maps
    flat = truth.copy()
    flat[:, 3] = 1.0
    table = structure(next(parts(stored(flat, pred, grid_cells(8)))))
    figure = oversmoothing({"net": table, "twice": table.assign(variance_ratio=table["variance_ratio"] * 50)})
    points = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert [len(line.get_xdata()) for line in points] == [3, 3]  # type: ignore[arg-type]
    assert points[1].get_xdata().max() == 2.0  # type: ignore[union-attr]
    assert drawn(figure)
    with pytest.raises(ValueError, match="no gene varies"):
        oversmoothing({"net": table[3:]})
