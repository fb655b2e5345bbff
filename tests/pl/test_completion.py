"""Curves of error against the hidden share: a name stands at the end of its curve, and all are in the figure."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from histoweave.pl.completion import rate_curves


def test_names_stand_at_the_ends_of_the_curves() -> None:
    last = {"far": 90.0, "middle": 9.0, "low": 0.3}
    errors = pd.DataFrame({name: [0.5 * value, value] for name, value in last.items()}, index=[0.1, 0.7])
    figure = rate_curves(errors)
    figure.canvas.draw()
    (ax,) = figure.axes
    assert len(ax.texts) == 3
    for text in ax.texts:
        end = ax.transAxes.inverted().transform(ax.transData.transform((70.0, last[text.get_text()])))
        assert text.get_position()[1] == pytest.approx(end[1], abs=1e-6)


def test_names_of_equal_curves_are_apart_and_inside() -> None:
    errors = pd.DataFrame({f"m{i}": [1.0, 50.0 + i] for i in range(9)} | {"other": [0.01, 0.01]}, index=[0.1, 0.7])
    places = np.sort([text.get_position()[1] for text in rate_curves(errors).axes[0].texts])
    assert np.diff(places).min() > 0.04
    assert places[0] >= 0 and places[-1] <= 1
