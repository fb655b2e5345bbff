"""Tables over datasets by hand, and the suite of all datasets on two phantoms."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from histoweave import cli
from histoweave.bench.over_datasets import arm, gain_of_layers, normalised, standing
from histoweave.bench.summary import Report
from histoweave.commands import _spared, _spared_conclusion, run_spared
from histoweave.data.catalog import DatasetNotFound, dataset
from histoweave.data.phantom import Phantom, phantom_like
from histoweave.pp.genes import select_panel
from histoweave.pp.spared import spared, spared_ranking
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
    how = BenchSettings(models="ridge", threads=1, store=str(tmp_path / "store"), seeds=2)
    made = run_spared(
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
    for name in ("spared-mirzazadeh_mouse_bone", "spared-fan_mouse_olfatory_bulb"):
        assert f"> {name}: spots have more than 10 and fewer than 1e+06 counts, which leaves 0 of " in text
        shared = re.search(rf"> {name}: genes ranked without held-out .*: (\d+)% of the best 16 genes are", text)
        assert shared is not None and 0 <= int(shared[1]) <= 100
    assert "> spared-fan_mouse_olfatory_bulb: validation-selected" in text and "\n> validation-selected" not in text
    assert "> Parameters are those on spared-mirzazadeh_mouse_bone." in text
    size = (tmp_path / "spared-size.svg").read_text(encoding="utf-8")
    assert "trainable parameters on spared-mirzazadeh_mouse_bone" in size
    assert {path.name for path in tmp_path.glob("spared-*.svg")} == {
        f"spared-{name}.svg" for name in ("standing", "size", "errors", "layers")
    }
    with pytest.raises(ValueError, match="did you mean 'fan_mouse_olfatory_bulb'"):
        run_spared(tmp_path, how, only=["fan_mouse_olfactory_bulb"], dry_run=True)


@pytest.mark.parametrize(
    "given",
    [{"protocol": "paper"}, {"hide": "entries:0.3"}, {"panel": "top-mean:8"}, {"ensemble": 2}, {"rates": "0.5"}],
)
def test_what_the_suite_fixes_cannot_be_given(given: dict[str, Any], tmp_path: Path) -> None:
    (key, value), usual = *given.items(), BenchSettings()
    with pytest.raises(ValueError, match=rf"suite 'spared' has its own .*, and {key}='?{value}'? was given; leave"):
        run_spared(tmp_path / "run", BenchSettings(**given), dry_run=True)
    assert _spared._settings(BenchSettings(measured=True, target=_spared.TARGET), tmp_path, dry_run=False).measured
    assert _spared._settings(usual, tmp_path, dry_run=False).recipe == "spared"


def test_the_command_hands_the_protocol_on(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="protocol='paper' was given"):
        cli._run_suite("spared", tmp_path, BenchSettings(), protocol="paper", dry_run=True)


def test_every_dataset_has_to_be_there_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "spared-mirzazadeh_mouse_bone").mkdir()
    (tmp_path / "spared-mirzazadeh_mouse_bone" / "something").touch()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("it was read")

    monkeypatch.setattr(_spared.catalog, "load", refuse)
    with pytest.raises(DatasetNotFound, match="'spared-vicari_mouse_brain' is not on this machine"):
        run_spared(tmp_path / "run", data=tmp_path, only=["mirzazadeh_mouse_bone", "vicari_mouse_brain"])
    with pytest.raises(ValueError, match="model 'nb' fits a distribution of raw counts"):
        run_spared(tmp_path / "run", BenchSettings(models="nb"), data=tmp_path, only=["mirzazadeh_mouse_bone"])


def test_arms_of_a_model_that_also_fits_counts() -> None:
    assert _spared._arms(["hist2st"], ["raw"], "spared") == ["hist2st[layer=raw]"]
    assert _spared._arms(["stnet", "hist2st[lr=0.001]"], ["raw", "median"], "spared") == [
        *("stnet[layer=raw]", "stnet[layer=median]", "hist2st[lr=0.001,layer=raw]"),
        *("hist2st[lr=0.001,counts=none,layer=raw]", "hist2st[lr=0.001,counts=none,layer=median]"),
    ]
    for text in _spared._arms(_spared.split_specs(_spared.MODELS), _spared.LAYERS, "spared"):
        _spared.resolve(text, "spared")


def test_spots_out_of_the_bounds_of_a_dataset_are_left_out(small: Phantom, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = small.cohort
    totals = np.sort(np.concatenate([section.library for section in cohort]))
    low = int(totals[len(totals) // 4])
    monkeypatch.setattr(_spared.catalog, "load", lambda *_, **__: cohort)
    row = replace(dataset("spared-mirzazadeh_human_small_intestine"), min_spot_counts=low)
    made, told = _spared._cohort(row, None, dry_run=False)
    for section, before in zip(made, cohort, strict=True):
        assert np.array_equal(section.library, before.library[before.library > low])  # strict, as SpaRED's
    assert f"more than {low} and fewer" in told and f"leaves {cohort.n - made.n} of {cohort.n} out" in told
    assert 0 < made.n < cohort.n
    assert _spared._cohort(replace(row, min_spot_counts=None), None, dry_run=False)[0].n == (totals > 10).sum()
    with pytest.raises(ValueError, match="have no spot with more than 100000 and fewer"):
        _spared._cohort(replace(row, min_spot_counts=100_000), None, dry_run=False)


def test_errors_are_means_over_sections_and_seeds() -> None:
    table = [("a", "g", 0, "s", 1.0), ("a", "g", 1, "s", 2.0), ("a", "g", 0, "t", 6.0), ("a", "h", 0, "s", 5.0)]
    rows = pd.DataFrame(table, columns=["model", "gene", "seed", "section", "value"]).assign(metric="mse_measured")
    report = Report(Path(), rows, rows, rows, rows, [], {})
    assert _spared_conclusion._by_gene(report, "a").tolist() == [3.0, 5.0]


def test_the_ranking_alone_is_that_of_the_whole_processing() -> None:
    row = dataset("spared-mirzazadeh_mouse_bone")
    cohort = phantom_like(row.name, spots=(6, 6)).cohort
    sides = row.published_split(cohort)
    for leak_free in (True, False):
        whole = spared(cohort, sides, leak_free=leak_free).ranking
        pd.testing.assert_series_equal(spared_ranking(cohort, sides, leak_free=leak_free), whole)
    panel = select_panel(cohort.subset(sides.train), "spared:16", candidates=cohort.genes("common"))
    assert list(spared_ranking(cohort, sides).index[:16]) == list(panel.genes)  # as the benchmark chooses them
