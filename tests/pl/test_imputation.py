"""Boxes of scores by the number of shared genes: what is drawn where."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from histoweave.pl.imputation import boxes_by_m
from histoweave.pl.scores import METHOD


def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = [
        (model, m, value)
        for m in (100, 50)
        for model in ("gene-mean", "spage[n_pv=$3$]", "xmint")
        for value in rng.normal(0.3, 0.1, 9)
        if not (model == "xmint" and m == 50)
    ]
    return pd.DataFrame([*rows, ("xmint", 50, np.nan)], columns=["model", "m", "value"])


def test_a_box_per_model_and_m_with_its_median() -> None:
    given = table()
    figure = boxes_by_m(given, controls=["gene-mean"], metric="PCC")
    (ax,) = figure.axes
    medians = sorted(
        (round(float(line.get_xdata().mean()), 6), float(line.get_ydata()[0]))
        for line in ax.lines
        if line.get_color() == figure.axes[0].yaxis.label.get_color() and len(set(line.get_ydata())) == 1
    )
    wanted = given.dropna().groupby(["m", "model"])["value"].median()
    assert [value for _, value in medians] == pytest.approx(wanted.to_list())  # from left to right: m, then model
    assert [t.get_text() for t in ax.get_xticklabels()] == ["m = 50", "m = 100"]
    assert "PCC" in ax.get_ylabel()
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["gene-mean", "spage[n_pv=$3$]", "xmint"]


def test_eight_methods_have_a_colour_each_and_one_beside_controls_that_of_methods() -> None:
    def colours(*models: str) -> list[str]:
        rows = pd.DataFrame([(model, 50, v) for model in models for v in (0.1, 0.2)], columns=["model", "m", "value"])
        return [to_hex(p.get_facecolor()) for p in boxes_by_m(rows, controls=["a", "b"]).legends[0].get_patches()]

    found = colours("a", *"cdefghij", "b")
    assert len(set(found)) == 9  # controls differ in strength alone
    assert colours("a", "c", "b")[1] == METHOD


def test_what_cannot_be_drawn_is_told() -> None:
    with pytest.raises(ValueError, match=r"lacks the columns \['m'\]"):
        boxes_by_m(table().drop(columns="m"))
    with pytest.raises(ValueError, match="no gene has a value"):
        boxes_by_m(table().assign(value=np.nan))
