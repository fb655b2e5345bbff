"""CONTRIBUTING's "Add a model in one file and one line", followed literally: the file and the line are read from the page."""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.contracts import test_leak as leak
from tests.contracts import test_models as contracts
from typer.testing import CliRunner

import histoweave.models.predict as home
from histoweave import models
from histoweave.cli import app
from histoweave.data.phantom import Phantom
from histoweave.data.split import leave_one_out
from histoweave.data.store import Store
from histoweave.train import Learner
from histoweave.view import View

PAGE = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
SECTION = PAGE[PAGE.index("## Add a model in one file and one line") :]
FILE, LINE = re.findall(r"^```python\n(.*?)^```", SECTION, re.DOTALL | re.MULTILINE)
PATH = Path(re.findall(r"`(src/[\w/]+\.py)`:\n", SECTION)[0])
((NAME, ADDRESS),) = ast.literal_eval("{" + LINE + "}").items()
MODULE = ".".join(PATH.with_suffix("").parts[1:])


@pytest.fixture(autouse=True)
def _added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The file where the page says it goes (a folder that belongs to the same package), and the line in the table."""
    folder = tmp_path / "predict"
    folder.mkdir()
    (folder / PATH.name).write_text(FILE, encoding="utf-8")
    monkeypatch.setattr(home, "__path__", [*home.__path__, str(folder)])
    monkeypatch.setitem(models._MODELS, NAME, ADDRESS)
    models._table.cache_clear()
    yield
    models._table.cache_clear()
    sys.modules.pop(MODULE, None)
    vars(home).pop(PATH.stem, None)


def _learns_by(test: Callable[..., None]) -> list[str] | None:
    """The models that a contract test is run for; None if it is not run per model."""
    for mark in getattr(test, "pytestmark", []):
        if mark.name == "parametrize" and mark.args[0] == "name":
            return list(mark.args[1])
    return None


CONTRACTS = [
    test
    for module in (contracts, leak)
    for key, test in vars(module).items()
    if key.startswith("test_") and set(contracts.BY_GRADIENT) <= set(_learns_by(test) or ())
]


def test_the_page_shows_a_small_file_and_the_line_that_names_it() -> None:
    assert len(FILE.splitlines()) < 45
    assert f"{MODULE}:" in ADDRESS and PATH.parent.as_posix().startswith("src/histoweave/models/")
    assert "_MODELS" in SECTION.split(LINE)[0].splitlines()[-3]


def test_the_contract_tests_of_a_trained_model_are_all_here() -> None:
    assert {test.__name__ for test in CONTRACTS} >= {
        "test_a_gradient_reaches_every_parameter", "test_sixteen_spots_can_be_learnt_by_heart",
        "test_prediction_does_not_see_what_is_hidden", "test_save_and_load_give_the_same_predictions",
    }  # fmt: skip


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda test: test.__name__)
def test_it_keeps_the_contract(contract: Callable[..., None], request: pytest.FixtureRequest) -> None:
    assert models.card_of(NAME).learns == "gradient"
    wanted = [name for name in inspect.signature(contract).parameters if name != "name"]
    contract(NAME, **{name: request.getfixturevalue(name) for name in wanted})


def test_it_is_in_the_list_and_on_the_command_line() -> None:
    assert NAME in models.list_models()
    answer = CliRunner().invoke(app, ["models", "--json"])
    assert answer.exit_code == 0, answer.output
    (row,) = [row for row in json.loads(answer.output) if row["name"] == NAME]
    assert row["needs"] == ["EMB"] and row["task"] == "predict"
    assert row["parameters"] == (512 + 1) * 256 + (256 + 1) * 250


def test_it_trains_and_predicts_a_patient_it_has_not_seen(small: Phantom, view: View, shared_store: Store) -> None:
    split = leave_one_out(small.cohort)[0]
    learner = Learner(f"{NAME}[width=32]", view, shared_store, recipe="tiny").fit(small.cohort.subset(split.train))
    losses = [row["loss"] for row in learner.history.rows]
    assert min(losses) < losses[0]
    made = np.asarray(learner.predict(small.cohort.subset(split.test)).X)
    assert np.isfinite(made).all() and (made.std(axis=0) > 0).all()
    assert learner.describe()["parameters"] == (16 + 1) * 32 + (32 + 1) * 10
