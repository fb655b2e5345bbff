"""Figures over datasets: names and legend can be read."""

from __future__ import annotations

import numpy as np
import pandas as pd

from histoweave.pl.over_datasets import layer_pairs, size_scatter


def test_one_name_stands_for_models_of_one_size() -> None:
    table = pd.DataFrame(
        {"normalised": [1.3, 1.0, 1.1, 2.0], "sd": 0.1, "parameters": [0, 500, 500, 0]}, index=["a", "b", "c", "d"]
    )
    assert sorted(text.get_text() for text in size_scatter(table).axes[0].texts) == ["a", "b"]


def test_the_legend_of_layers_covers_no_dataset() -> None:
    values = pd.DataFrame(np.linspace(0.1, 0.3, 8).reshape(2, 4), index=["x", "y"], columns=list("pqrs"))
    figure = layer_pairs(values)
    figure.canvas.draw()
    (ax,) = figure.axes
    lowest = ax.transData.transform((0.2, 1.2))[1]  # below the second dataset
    assert ax.get_legend().get_window_extent().y1 < lowest
