"""Tables over datasets by hand, and the suite of all datasets on two phantoms."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from histoweave.bench.over_datasets import arm, gain_of_layers, normalised, standing
from histoweave.commands import run_spared
from histoweave.settings import BenchSettings


def values(table: dict[str, dict[str, float]], metric: str = "mse_measured") -> pd.DataFrame:
    rows = [(d, m, metric, v) for m, by in table.items() for d, v in by.items()]
    return pd.DataFrame(rows, columns=["dataset", "model", "metric", "value"])


def test_normalised_error_wins_and_what_counts_twice() -> None:
    given = values({"a": {"x": 1.0, "y": 4.0, "z": 9.0}, "b": {"x": 2.0, "y": 2.0, "z": 9.0}})
    ratios = normalised(given)
    assert ratios.to_dict() == {"a": {"x": 1.0, "y": 2.0, "z": 1.0}, "b": {"x": 2.0, "y": 1.0, "z": 1.0}}
    table = standing(ratios, {"a": 10, "b": 0})
    assert table.loc["a", "win_share"] == table.loc["b", "win_share"] == 0.5  # a tie is shared
    assert table.loc["a", "normalised"] == pytest.approx(4 / 3)
    assert list(normalised(given, left_out=["z"]).index) == ["x", "y"]


def test_a_model_that_did_not_run_everywhere_is_an_error() -> None:
    with pytest.raises(ValueError, match="'b' has no mse_measured on 'y'"):
        normalised(values({"a": {"x": 1.0, "y": 1.0}, "b": {"x": 1.0}}))


def test_gain_of_a_layer_is_against_the_masked_loss() -> None:
    names = [f"d{i}" for i in range(7)]
    raw, measured = dict.fromkeys(names, 3.0), dict.fromkeys(names, 1.0)
    filled = {name: 0.9 - 0.01 * i for i, name in enumerate(names)}
    given = values({"knn[k=2]": raw, "knn[k=2,layer=measured]": measured, "knn[k=2,layer=median]": filled})
    table = gain_of_layers(given, metric="mse_measured").set_index("layer")
    assert table.loc["raw", "difference"] == pytest.approx(2.0)
    assert table.loc["median", "difference"] == pytest.approx(np.mean(list(filled.values())) - 1.0)
    assert table.loc["median", "p"] == pytest.approx(2 / 2**7)
    assert (table["p_holm"] >= table["p"]).all()
    few = gain_of_layers(given[given["dataset"].isin(names[:3])], metric="mse_measured")
    assert few["note"].str.contains("not testable").all()


def test_arms_are_told_apart_by_the_layer_alone() -> None:
    assert arm("ridge") == ("ridge", "raw")
    assert arm("vitb[delta=on,layer=spackle[rate=0.5]]") == ("vitb[delta=True]", "spackle[rate=0.5]")


def test_the_suite_on_phantoms(tmp_path: Path) -> None:
    said: list[str] = []
    how = BenchSettings(models="ridge", threads=1, store=str(tmp_path / "store"), hide="entries:0.3", rates="0.5")
    made = run_spared(  # what is hidden is the suite's, whatever the settings say
        tmp_path, how, only=["mirzazadeh_mouse_bone", "fan_mouse_olfatory_bulb"], layers=("raw", "measured", "median"),
        dry_run=True, say=said.append,
    )  # fmt: skip
    assert set(made.standing.index) == {"mean", *(f"ridge[layer={layer}]" for layer in ("raw", "measured", "median"))}
    assert set(made.gains["layer"]) == {"raw", "median"}
    assert set(made.values["metric"]) == {"mse", "mse_measured", "pcc_measured"}
    run = json.loads((tmp_path / "spared-mirzazadeh_mouse_bone" / "run.json").read_text(encoding="utf-8"))
    assert run["hide"] == "Everything()"
    text = (tmp_path / "spared.md").read_text(encoding="utf-8")
    assert "validation-selected" in text and "values mean nothing" in text
    assert {path.name for path in tmp_path.glob("spared-*.svg")} == {
        f"spared-{name}.svg" for name in ("standing", "size", "errors", "layers")
    }
    with pytest.raises(ValueError, match="did you mean 'fan_mouse_olfatory_bulb'"):
        run_spared(tmp_path, how, only=["fan_mouse_olfactory_bulb"], dry_run=True)
