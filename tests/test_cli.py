"""The command line: flags are the fields of the settings, errors are one sentence, and --help is quick."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from histoweave.cli import main
from histoweave.models import list_models
from histoweave.settings import BenchSettings, FitSettings, PredictSettings


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int, str, str]:
    """Exit status, output and errors of a command."""
    monkeypatch.setattr(sys, "argv", ["histoweave", *words])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as left:
        main()
    out = capsys.readouterr()
    return int(left.value.code or 0), out.out, out.err


def test_help_does_not_load_torch() -> None:
    code = "import sys; sys.argv=['histoweave','--help']\nfrom histoweave.cli import main\n"
    code += "try: main()\nexcept SystemExit: pass\nassert not {'torch','scipy','anndata'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False).returncode == 0


@pytest.mark.parametrize(
    ("command", "settings"), [("bench", BenchSettings), ("fit", FitSettings), ("predict", PredictSettings)]
)
def test_every_field_is_a_flag(
    command: str, settings: type, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = run(capsys, monkeypatch, command, "--help")
    assert code == 0
    for field in fields(settings):
        assert f"--{field.name.replace('_', '-')}" in out


def test_types_of_a_reference_are_not_those_of_sections(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("impute", "panel", "--out", "o.h5ad", "--origin", "known", "--groups", "type")
    code, _, err = run(capsys, monkeypatch, *words)
    assert code == 1 and "--groups names a column of a --reference" in " ".join(err.split())


def test_models_as_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = run(capsys, monkeypatch, "models", "--json")
    rows = json.loads(out)
    assert code == 0 and [row["name"] for row in rows] == list_models()
    assert {"name", "task", "needs", "parameters", "citation", "licence"} <= set(rows[0])
    code, out, _ = run(capsys, monkeypatch, "encoders", "--json")
    assert {"licence", "gated", "dim", "px"} <= set(json.loads(out)[0])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["bench", "nowhere"], "nowhere"),
        (["bench"], "either one COHORT, or both --train and --test"),
        (["predict", "nowhere", "slide.tif", "--out", "o.h5ad"], "not a saved model"),
        (["report", "nowhere"], "not a finished run"),
        (["data", "fetch", "her2"], "her2st"),
    ],
)
def test_an_error_is_one_sentence(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, monkeypatch, *words)
    assert code == 1 and says in err and "Traceback" not in err and err.count("\n") <= 3
    assert not list(tmp_path.iterdir())


def test_an_unknown_flag_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = run(capsys, monkeypatch, "bench", "x", "--modles", "mean")
    assert code == 2 and "--modles" in err and "--models" in err
