"""The speed suite: its ways do the same job, differences are seen, its table is written. Nothing here is timed."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks import clock
from benchmarks.clock import Case, Disagreement, Pair, Spread, compare, measure
from benchmarks.speed import PARTS, QUICK, _verdict, main, run
from benchmarks.speed_images import Pixels, Scene, Vectors, embedding, synthetic_scene, windows
from benchmarks.speed_tables import Close, correlation, feed, reading, same_batches, smoothing
from PIL import Image


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return synthetic_scene(tmp_path_factory.mktemp("scene"), spots=4, um_per_px=4.0)


@pytest.fixture
def tables(tmp_path: Path) -> list[Path]:
    counts = np.random.default_rng(0).poisson(0.5, (12, 7))
    lines = ["\t".join(["", *(f"g{j}" for j in range(7))])]
    lines += ["\t".join([f"{i}x1", *map(str, row)]) for i, row in enumerate(counts)]
    path = tmp_path / "A1.tsv.gz"
    path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))
    return [path, path]


def test_windows_are_those_of_the_idiom(scene: Scene) -> None:
    cases = list(windows(scene, out=32))
    assert len(cases) == 4
    found = [said for case in cases for said in compare(case)[0] if said]
    assert [said.split(",")[0] for said in found] == ["same bytes"] * 6
    assert ["frame of 1 px" in said for said in found] == [False] * 4 + [True] * 2


def test_a_fitting_centre_has_its_whole_window_inside(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg")
    xy = np.array([[10.0, 10.0], [8.0, 10.0], [30.0, 20.0], [32.0, 20.0], [20.0, 22.0]])
    fitting = Scene("a", tmp_path / "a.jpg", xy, 1.0).fitting(20)
    assert fitting.tolist() == [[10.0, 10.0], [30.0, 20.0]]


def test_embeddings_are_those_of_the_idiom_and_of_the_bare_encoder(scene: Scene, tmp_path: Path) -> None:
    (case,) = embedding(scene, tmp_path, n=4, encoder="tiny", out=32)
    agreement, _ = compare(case)
    assert len(agreement) == 5
    assert [said.split()[0] for said in agreement] == ["within", "rms", "within", "within", "within"]
    with pytest.raises(ValueError, match="fewer than the 1000 asked for"):
        next(embedding(scene, tmp_path, n=1000, encoder="tiny", out=32))


def table_cases(tables: list[Path]) -> dict[str, tuple[Iterator[Case], list[str]]]:
    """Cases after the encoder, and how close their idioms are."""
    return {
        "feed": (feed(sections=2, side=6, width=4, genes=3, batch=25), ["same values"] * 2),
        "smoothing": (smoothing(n=40, genes=3), ["within"] * 2),
        "pearson": (correlation(sections=2, n=30, genes=4), ["within"] * 2),
        "reading": (reading(tables), ["same values"]),
    }


@pytest.mark.parametrize("name", ["feed", "smoothing", "pearson", "reading"])
def test_tables_are_those_of_the_idiom(name: str, tables: list[Path]) -> None:
    cases, expected = table_cases(tables)[name]
    (case,) = cases
    found = [said for said in compare(case)[0] if said]
    assert len(found) == len(expected)
    assert all(said.startswith((start, "same values")) for said, start in zip(found, expected, strict=True))
    assert [pair.kind for pair in case.pairs] == ["idiom"] * len(expected) + ["floor"]


def test_a_feed_of_another_order_is_seen() -> None:
    (case,) = feed(sections=2, side=6, width=4, genes=3, batch=25)
    ours, theirs = (list(case.ways[name]()) for name in (case.pairs[0].ours, case.pairs[0].theirs))
    with pytest.raises(Disagreement, match="'emb'"):
        same_batches(ours, theirs[1:2] + theirs[:1] + theirs[2:])
    theirs[-1]["ctx_mask"] = ~theirs[-1]["ctx_mask"]
    with pytest.raises(Disagreement, match="'ctx_mask'"):
        same_batches(ours, theirs)
    with pytest.raises(ValueError, match="shorter"):
        same_batches(ours, theirs[:-1])


ROWS = np.array([1, 0])
PAGE = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)


def _changed(page: np.ndarray, at: tuple[int, ...], by: int) -> np.ndarray:
    page = page.copy()
    page[at] += by
    return page


def test_windows_that_differ_are_seen() -> None:
    swapped = [(np.array([0]), PAGE[1:]), (np.array([1]), PAGE[:1])]
    assert Pixels()([(ROWS, PAGE)], swapped) == "same bytes"
    with pytest.raises(Disagreement, match="grey levels"):
        Pixels()([(ROWS, PAGE)], [(ROWS, _changed(PAGE, (0, 0, 0, 0), 1))])
    edge = Pixels(edge=1)
    assert edge([(ROWS, PAGE)], [(ROWS, _changed(PAGE, (0, 0, 0, 0), 9))]).startswith("same bytes")
    assert edge([(ROWS, PAGE)], [(ROWS, _changed(PAGE, (0, 1, 1, 0), 1))]).startswith("within 1 grey level")
    with pytest.raises(Disagreement, match="up to 2"):
        edge([(ROWS, PAGE)], [(ROWS, _changed(PAGE, (0, 1, 1, 0), 2))])
    with pytest.raises(Disagreement, match="shapes"):
        Pixels()([(ROWS, PAGE)], [(ROWS[:1], PAGE[:1])])


@pytest.mark.parametrize("same", [Vectors(0.1), Vectors(0.1, rms=True), Close(0.1)])
def test_values_that_differ_are_seen(same: Any) -> None:
    values = np.linspace(-1, 1, 12).reshape(3, 4)
    assert same([values], [values + 1e-3]).startswith(("within", "rms"))
    for wrong, message in ((values + 1, "differ"), (values[:2], "shapes"), (np.full_like(values, np.nan), "differ")):
        with pytest.raises(Disagreement, match=message):
            same([values], [wrong])
        with pytest.raises(Disagreement, match=message):
            same([wrong], [values])


def test_nothing_agrees_with_nothing_by_chance() -> None:
    with pytest.raises(Disagreement, match="nothing to compare"):
        Close(1.0)([], [])


def test_rounds_start_elsewhere_and_time_every_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "_SHORTEST", 0.0)
    calls: list[str] = []

    def way(name: str) -> list[float]:
        calls.append(name)
        return [1.0]

    ways = {name: partial(way, name) for name in "abc"}
    case = Case("t", 1, "thing", ways, [Pair("a", "b", "idiom", Close(0.0)), Pair("a", "c", "floor")])
    result = measure(case, 3, spare=0.0)
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab"
    assert {name: len(rounds) for name, rounds in result.seconds.items()} == {"a": 3, "b": 3, "c": 3}
    assert result.agreement == ["same values", ""]


def test_ways_that_disagree_are_not_timed() -> None:
    case = Case("t", 1, "thing", {"a": lambda: [1.0], "b": lambda: [2.0]}, [Pair("a", "b", "idiom", Close(0.1))])
    with pytest.raises(Disagreement, match=r"differ by 0\.5"):
        measure(case, 1, spare=0.0)


def test_ratios_are_taken_round_by_round() -> None:
    case = SimpleNamespace()
    result = clock.Measured(case, {"a": [1.0, 2.0, 4.0], "b": [3.0, 4.0, 4.0]}, [])  # type: ignore[arg-type]
    assert result.ratio("b", "a") == Spread(2.0, 1.0, 3.0)
    assert result.time("a") == Spread(2.0, 1.0, 4.0)


def test_the_suite_writes_its_table(tmp_path: Path) -> None:
    said: list[str] = []
    out = tmp_path / "results"
    text = run(out, sizes=QUICK, rounds=1, spare=0.0, command="the command", say=said.append)
    assert (out / "speed.md").read_text("utf-8") == text
    card = json.loads((out / "speed.json").read_text("utf-8"))
    assert card["command"] == "the command"
    assert {"date", "machine", "versions", "sizes", "cases"} <= set(card)
    titles = [case["title"] for case in card["cases"]]
    for part in ("windows", "embedding", "feed", "smoothing", "Pearson"):
        assert any(title.startswith(part) for title in titles)
    assert len(said) == len(titles) == 8
    assert card["skipped"] == [f"{part} on her2st, whose folder was not given" for part in ("windows", "reading")]
    assert "Left out: windows on her2st" in text
    rows = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line]
    pairs = [pair for case in card["cases"] for pair in case["pairs"]]
    assert len(rows) == len(pairs) + 2  # and a header for either table
    assert text.count("of the bare encoder's throughput") == 2
    assert str(tmp_path) not in text + json.dumps(card)
    for case in card["cases"]:
        assert all(len(rounds) == 1 and rounds[0] > 0 for rounds in case["seconds"].values())


def test_a_part_by_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--quick", "--rounds", "2", "--only", "smoothing", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "`python -m benchmarks --rounds 2 --quick --only smoothing`" in printed
    assert str(tmp_path) not in printed
    assert [case["title"] for case in json.loads((tmp_path / "speed.json").read_text())["cases"]] == [
        "smoothing, 60 spots × 6 genes"
    ]


@pytest.mark.parametrize("wrong", [["--only", "smoothing,feeed"], ["--rounds", "0"], ["--windows", "0"]])
def test_what_is_not_there_is_refused(wrong: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*wrong, "--out", str(tmp_path)])
    assert "expected" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"no parts \['feeed'\]"):
        run(tmp_path, sizes=QUICK, parts=["feeed"])
    assert not list(tmp_path.iterdir())


def test_only_rounds_on_one_side_decide() -> None:
    assert _verdict(Spread(0.9, 0.85, 1.0)).startswith("reached")
    assert _verdict(Spread(0.8, 0.7, 0.84)).startswith("MISSED")
    assert _verdict(Spread(0.9, 0.84, 1.0)).startswith("not decided")


def test_windows_to_embed_are_counted(tmp_path: Path) -> None:
    main(["--quick", "--rounds", "1", "--only", "embedding", "--windows", "3", "--out", str(tmp_path)])
    card = json.loads((tmp_path / "speed.json").read_text())
    assert card["command"].endswith("--quick --windows 3 --only embedding")
    assert [case["units"] for case in card["cases"]] == [3]


def test_every_part_has_a_place_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "--only" in capsys.readouterr().out
    assert set(PARTS) == {"windows", "embedding", "feed", "smoothing", "pearson", "reading"}


def test_contexts_reach_over_the_edge_and_are_masked() -> None:
    (case,) = feed(sections=1, side=5, width=4, genes=3, batch=25)
    (batch,) = case.ways["Feed.batches"]()
    mask = batch.ctx_mask[torch.argsort(batch.spot)]
    assert mask[12].all()  # the middle of 5 × 5 spots sees 5 × 5 tiles
    assert int(mask[0].sum()) == 9
