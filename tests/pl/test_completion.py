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


def test_a_curve_without_all_points_is_drawn_through_those_it_has() -> None:
    errors = pd.DataFrame({"whole": [1.0, 2.0, 3.0], "again": [1.0, np.nan, 2.0], "short": [0.5, 0.6, np.nan]},
                          index=[0.1, 0.3, 0.7])  # fmt: skip
    (ax,) = rate_curves(errors, dashed=["again"], of="all").axes
    lines = ax.get_lines()
    assert [list(line.get_xdata()) for line in lines] == [[10, 30, 70], [10, 70], [10, 30]]
    assert [line.get_linestyle() for line in lines] == ["-", "--", "-"]
    assert ax.get_xlabel() == "hidden share of all entries (%)"
    end = {text.get_text(): text.get_position()[1] for text in ax.texts}
    assert end["short"] < end["again"] < end["whole"]


def test_names_of_equal_curves_are_apart_and_inside() -> None:
    errors = pd.DataFrame({f"m{i}": [1.0, 50.0 + i] for i in range(9)} | {"other": [0.01, 0.01]}, index=[0.1, 0.7])
    places = np.sort([text.get_position()[1] for text in rate_curves(errors).axes[0].texts])
    assert np.diff(places).min() > 0.04
    assert places[0] >= 0 and places[-1] <= 1
