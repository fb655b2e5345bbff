"""The leak test: garbage in every hidden value, and in everything derived from it, must not change a single bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from histoweave import models
from histoweave.bench.benchmark import Benchmark
from histoweave.data.holdout import Entries, Everything, Genes, Holdout
from histoweave.data.phantom import Phantom
from histoweave.data.split import leave_one_out
from histoweave.data.store import Store
from histoweave.models.impute import list_imputers
from histoweave.train import Learner, Recipe, Transfer
from histoweave.view import View
from tests.contracts.test_models import suited

QUICK = Recipe(name="quick", epochs=2, batch=64, lr=1e-3)
STRESS = {"stress-completer": "NeighbourCompleter", "stress-sequences": "Sequences"}


@pytest.fixture(autouse=True)
def _stress_models(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, cls in STRESS.items():
        monkeypatch.setitem(models._MODELS, name, f"tests.contracts.stress:{cls}")
    models._table.cache_clear()
    yield
    models._table.cache_clear()


def learner(name: str, view: View, store: Store) -> Learner:
    return Learner(name, view, store, recipe=replace(QUICK, args=models.model_class(name.partition("[")[0]).tiny()))


LEARNS_MORE = ("xmint[blend=on]",)  # what no small form of a model turns on, and is learnt from the training side


@pytest.mark.parametrize("name", [*models.list_models(), *STRESS, *LEARNS_MORE])
def test_prediction_does_not_see_what_is_hidden(name: str, small: Phantom, view: View, shared_store: Store) -> None:
    genes, base = small.cohort.genes("common"), name.partition("[")[0]
    hide = {"complete": Entries(0.3, seed=1), "impute": Genes(genes[6:])}.get(models.card_of(base).task, Everything())
    view = suited(base, view, small.cohort)
    holdout = Holdout(leave_one_out(small.cohort)[0], hide)
    made = []
    for cohort in (small.cohort, holdout.garble(small.cohort)):
        train, test = holdout.given(cohort)
        made.append(learner(name, view, shared_store).fit(train).predict(test))
    assert np.array_equal(made[0].X, made[1].X)
    assert list(made[0].var_names) == list(made[1].var_names)


def test_garbage_is_everywhere_that_is_hidden(small: Phantom) -> None:
    """The test above means nothing if `garble` changes nothing: every hidden value differs, every shown one is kept."""
    split = leave_one_out(small.cohort)[0]
    for hide in (Everything(), Entries(0.3), Entries(0.3, of="all"), Genes(tuple(small.cohort[0].genes[:5]))):
        holdout = Holdout(split, hide)
        garbled = holdout.garble(small.cohort)
        for before, after in zip(small.cohort, garbled, strict=True):
            hidden = (
                holdout.hidden(before).toarray() if before.id in split.test else np.zeros(before.spots.X.shape, bool)
            )
            changed = before.spots.X.toarray() != after.spots.X.toarray()
            assert not changed[~hidden].any()
            assert hidden.sum() == 0 or changed[hidden].mean() > 0.99


@pytest.mark.parametrize("rate", [0.2, 0.7])
def test_entries_hide_the_rate_asked_for(small: Phantom, rate: float) -> None:
    section = small.cohort[0]
    holdout = Holdout(leave_one_out(small.cohort)[0], Entries(rate))
    hidden = holdout.hidden(section)
    assert hidden.nnz / section.spots.X.nnz == pytest.approx(rate, abs=0.05)
    assert (section.spots.X.multiply(hidden)).nnz == hidden.nnz  # only measured entries


QUICKER = {"spage": "n_pv=4", "gimvi": "epochs=2", "tangram": "epochs=4", "anchors": "k_weight=5"}


@pytest.mark.parametrize("name", list_imputers())
def test_imputation_does_not_see_the_hidden_genes(name: str, small: Phantom) -> None:
    genes = tuple(small.cohort[0].genes[:6])
    holdout = Holdout(leave_one_out(small.cohort)[0], Genes(genes))
    made = []
    for cohort in (small.cohort, holdout.garble(small.cohort)):
        train, test = holdout.given(cohort)
        made.append(Transfer(f"{name}[{QUICKER.get(name, '')}]").fit(train).predict(test))
    assert np.array_equal(made[0].X, made[1].X)
    assert set(made[0].var_names) == set(genes)


def test_a_whole_benchmark_does_not_see_what_is_hidden(
    small: Phantom, view: View, shared_store: Store, tmp_path: Path
) -> None:
    split = leave_one_out(small.cohort)[:1]
    made = []
    for i, cohort in enumerate((small.cohort, Holdout(split[0]).garble(small.cohort))):
        run = Benchmark(name="leak", cohort=cohort, splits=tuple(split), view=view, models=("ridge",), recipe="tiny")
        cells = run.run(tmp_path / str(i), shared_store)
        made.append([_prediction(cell.folder) for cell in cells])
    assert len(made[0]) == 4
    for a, b in zip(*made, strict=True):
        assert np.array_equal(a, b)


def _prediction(folder: Path) -> np.ndarray:
    import anndata

    return np.asarray(anndata.read_h5ad(folder / "prediction.h5ad").X)


def test_a_leak_is_caught(small: Phantom, view: View, shared_store: Store) -> None:
    """The same comparison on a method that does look: it has to differ, or the leak test could not fail."""
    holdout = Holdout(leave_one_out(small.cohort)[0])
    made = []
    for cohort in (small.cohort, holdout.garble(small.cohort)):
        learner_ = learner("mean", view, shared_store).fit(cohort)  # trained on the test patient too
        made.append(learner_.predict(holdout.given(cohort)[1]).X)
    assert not np.array_equal(made[0], made[1])
