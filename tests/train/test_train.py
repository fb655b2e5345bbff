"""Training goes on where it was killed, stops when it should, and regions cover a section."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from histoweave.data.phantom import Phantom
from histoweave.data.section import Cohort
from histoweave.data.store import Store
from histoweave.models import model_class
from histoweave.train import Learner, Recipe, load_predictor, load_recipe, loop
from histoweave.train.regions import regions
from histoweave.view import View

RECIPE = Recipe(name="short", epochs=6, batch=32, lr=1e-3, patience=20)
MODEL = "triplex"


def learner(view: View, store: Store, optimizer: str = "adam", **changes: object) -> Learner:
    recipe = replace(RECIPE, optimizer=optimizer, args=model_class(MODEL).tiny() | {"trunk": "frozen"})
    return Learner(MODEL, view, store, recipe=recipe, **changes)  # type: ignore[arg-type]


class Killed(Exception):
    """Stands for the signal."""


@pytest.mark.parametrize("optimizer", ["adam", "nadam"])
def test_a_killed_training_ends_with_the_same_weights(
    optimizer: str, small: Phantom, view: View, shared_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    whole = learner(view, shared_store, optimizer).fit(small.cohort)

    def kill(done: int, total: int, label: str) -> None:
        if done == 4 and total == RECIPE.epochs:
            raise Killed

    with pytest.raises(Killed):
        learner(view, shared_store, optimizer, checkpoint=tmp_path, progress=kill).fit(small.cohort)
    seen: list[int] = []
    again = learner(
        view, shared_store, optimizer, checkpoint=tmp_path, progress=lambda done, total, label: seen.append(done)
    )
    again.fit(small.cohort)
    assert min(seen) >= 4  # the first epochs were not run again
    assert whole.module is not None and again.module is not None
    for a, b in zip(whole.module.state_dict().values(), again.module.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert whole.history.rows == again.history.rows


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.SGD])
def test_the_recipe_names_the_optimiser(kind: type[torch.optim.Optimizer]) -> None:
    recipe = replace(RECIPE, optimizer=kind.__name__.lower(), weight_decay=0.1)  # type: ignore[arg-type]
    ours, theirs = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    made, plain = loop._optimizer(ours, recipe), kind(theirs.parameters(), lr=recipe.lr, weight_decay=0.1)  # type: ignore[call-arg]
    assert type(made) is kind
    for _ in range(3):
        for module, optimizer in ((ours, made), (theirs, plain)):
            optimizer.zero_grad()
            module(torch.ones(4, 3)).square().sum().backward()
            optimizer.step()
    assert torch.equal(ours.weight, theirs.weight)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)], ids=lambda value: str(value)
)
def test_the_recipe_names_the_precision(
    precision: str, dtype: torch.dtype, small: Phantom, view: View, shared_store: Store
) -> None:
    found = learner(view, shared_store)
    found.recipe = replace(found.recipe, epochs=1, precision=precision)  # type: ignore[arg-type]
    seen: set[tuple[bool, torch.dtype]] = set()

    def note(module: torch.nn.Module, _: object, out: torch.Tensor) -> None:
        if isinstance(module, torch.nn.Linear):
            seen.add((module.training, out.dtype))

    hook = torch.nn.modules.module.register_module_forward_hook(note)
    try:
        found.fit(small.cohort)
    finally:
        hook.remove()
    assert seen == {(True, dtype), (False, dtype)}


def test_the_seed_decides(small: Phantom, view: View, shared_store: Store) -> None:
    made = [learner(view, shared_store, seed=seed).fit(small.cohort).predict(small.cohort).X for seed in (0, 0, 1)]
    assert np.array_equal(made[0], made[1]) and not np.array_equal(made[0], made[2])


def test_training_stops_and_keeps_the_best_epoch(small: Phantom, view: View, shared_store: Store) -> None:
    found = learner(view, shared_store)
    found.recipe = replace(found.recipe, epochs=40, patience=2, lr=0.05)
    found.fit(small.cohort)
    scores = [row["val_pcc"] for row in found.history.rows]
    assert found.history.best_epoch == int(np.argmax(scores))
    assert len(scores) == 40 or len(scores) == found.history.best_epoch + 3


def test_a_loss_that_is_not_finite_is_named(small: Phantom, view: View, shared_store: Store) -> None:
    wild = learner(view, shared_store)
    wild.recipe = replace(wild.recipe, optimizer="sgd", lr=1e30)
    with pytest.raises(FloatingPointError, match=r"lower the learning rate \(now 1e\+30\)"):
        wild.fit(small.cohort)


@given(st.integers(1, 400), st.integers(20, 200), st.integers(0, 6), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_regions_cover_every_spot_once(n: int, at_most: int, halo: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    cells = np.unique(rng.integers(0, 40, (n, 2)), axis=0)
    predicted = np.zeros(len(cells), dtype=int)
    for rows, core in regions(cells, at_most, halo=halo):
        predicted[rows[core]] += 1
        assert len(rows) <= at_most or core.sum() <= 64
    assert (predicted == 1).all()


def test_regions_give_what_the_whole_section_gives(small: Phantom, view: View, shared_store: Store) -> None:
    """Models that look at each spot and its tiles alone cannot tell a region from the section."""
    fitted = Learner("ridge", replace(view, standardize="section"), shared_store).fit(small.cohort)
    one = Cohort([small.cohort[0]])
    whole = fitted.predict(one)
    fitted.max_context, before = 10, fitted.max_context
    import histoweave.train.predictor as module

    chunk, module.CHUNK = module.CHUNK, 20
    try:
        parts = list(fitted.stream(one[0]))
        cut = fitted.predict(one)
    finally:
        module.CHUNK, fitted.max_context = chunk, before
    assert len(parts) > 2
    assert np.array_equal(whole[cut.obs_names].X, cut.X)


def test_loading_what_is_not_a_model(tmp_path: Path, shared_store: Store) -> None:
    with pytest.raises(FileNotFoundError, match=r"no model\.json"):
        load_predictor(tmp_path, shared_store)


def test_saving_keeps_what_is_there(small: Phantom, view: View, shared_store: Store, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="not a saved model"):
        Learner("mean", view, shared_store).fit(small.cohort).save(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_recipes() -> None:
    assert load_recipe("triplex", "paper").optimizer == "adam"
    assert load_recipe("mean", "cpu").args == {}
    with pytest.raises(ValueError, match="did you mean 'paper'"):
        load_recipe("triplex", "papre")
    assert Recipe(schedule="step:50:0.9", lr=1.0).rate(100) == pytest.approx(0.81)
    with pytest.raises(ValueError, match=r"optimizer='rmsprop'; expected one of .*'nadam'"):
        Recipe(optimizer="rmsprop")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="schedule 'often'"):
        Recipe(schedule="often").rate(0)


def test_checkpoints_hold_weights_in_any_memory_layout(tmp_path: Path) -> None:
    """Convolutions may lie channels last in memory, which the file format does not know."""
    module = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(1, 3, 5, 5)).sum().backward()
    optimizer.step()
    best = {key: value.detach().clone() for key, value in module.state_dict().items()}
    loop._save(tmp_path, module, optimizer, loop.History(rows=[{"epoch": 0.0}]), best)
    other = torch.nn.Conv2d(3, 4, 3)
    loop._restore(tmp_path, other, torch.optim.Adam(other.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters(), strict=True))
