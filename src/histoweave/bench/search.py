"""A small grid search that validation patients decide: over arguments of a model, learning rate and optimiser."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from histoweave._repro import digest, versions
from histoweave.bench._digest import section_digest
from histoweave.bench.benchmark import Benchmark
from histoweave.bench.metrics import section_metrics
from histoweave.bench.plan import plan
from histoweave.data._atomic import writing
from histoweave.data.holdout import Holdout
from histoweave.data.section import Cohort
from histoweave.data.split import Split
from histoweave.data.store import Store
from histoweave.models import parse
from histoweave.train import Learner, resolve
from histoweave.view import View

Grid = Mapping[str, Sequence[Any]]
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Search:
    """What a search found.

    Attributes
    ----------
    best
        The model with the settings that do best on the validation sections.
    table
        One line per combination, in the order of the grid: its settings, mse, pcc, and epochs (those it was trained).
    """

    best: str
    table: pd.DataFrame


def variants(model: str, grid: Grid) -> dict[str, dict[str, Any]]:
    """Every combination of a grid as the text of a model → its settings, the last setting changing fastest.

    Raises
    ------
    ValueError
        An empty grid, or a setting that the model is given already.

    Examples
    --------
    >>> list(variants("mlp[hidden=32]", {"lr": [0.001, 0.01]}))
    ['mlp[hidden=32,lr=0.001]', 'mlp[hidden=32,lr=0.01]']
    """
    name, given = parse(model)
    if not grid or not all(len(values) for values in grid.values()):
        raise ValueError(f"the grid of {model!r} is {dict(grid)}; expected one value or more for one setting or more")
    if twice := sorted(set(given) & set(grid)):
        raise ValueError(f"model {model!r} has {', '.join(twice)} already; leave it out of the model or of the grid")
    inside = model.partition("[")[2].rstrip().removesuffix("]")
    made = {}
    for values in itertools.product(*grid.values()):
        settings = dict(zip(grid, values, strict=True))
        told = ",".join(filter(None, [inside, *(f"{key}={_text(value)}" for key, value in settings.items())]))
        made[f"{name}[{told}]"] = settings
    return made


def _text(value: Any) -> str:
    """A value as it is written in a model's text."""
    if isinstance(value, str):
        return value
    return "+".join(map(_text, value)) if isinstance(value, Sequence) else json.dumps(value)


def search(
    model: str,
    grid: Grid,
    train: Cohort,
    val: Cohort,
    *,
    view: View,
    store: Store,
    recipe: str = "cpu",
    by: Literal["mse", "pcc"] = "mse",
    seed: int = 0,
    device: str = "cpu",
    folder: Path | None = None,
    progress: Progress | None = None,
) -> Search:
    """Fits a model with every combination of a grid, and takes the one that predicts the validation sections best.

    Parameters
    ----------
    model
        Any model, with the arguments that are not searched in brackets.
    grid
        Setting → values: arguments of the model, ``lr`` and ``optimizer``.
    train, val
        Fitted on the first; the second decides when to stop, as for any fit, and which combination is taken.
    by
        ``mse``, the lowest, or ``pcc``, the highest; each within a section, then mean over genes and sections. A tie goes
        to the earlier combination.
    folder
        Where finished combinations are kept; those found there are not fitted again.

    Raises
    ------
    ValueError
        A grid that cannot be read; no combination with a finite score.

    Notes
    -----
    A training that diverges loses; it stops nothing. The score of the best is a best of several, and too good: what the
    model is worth is for other patients to say.
    """
    if by not in ("mse", "pcc"):
        raise ValueError(f"by={by!r}; expected 'mse' or 'pcc'")
    made = variants(model, grid)
    shared = {
        "train": [section_digest(section) for section in train],
        "val": [section_digest(section) for section in val],
        "view": view.to_dict(),
        "among": digest(list(view.among or ())),
        "panel": None if isinstance(view.panel, str) else view.panel.digest,
        "seed": seed,
        "versions": versions(),
    }
    rows = []
    for i, (text, settings) in enumerate(made.items()):
        if progress is not None:
            progress(i, len(made), f"search of {model}, {text}")
        spec = resolve(text, recipe)
        encoder = view.make_encoder().digest if spec.embeds else None
        address = digest({**shared, "model": text, "recipe": spec.recipes, "encoder": encoder})
        kept = None if folder is None else folder / f"{spec.name}-{address[:16]}.json"
        if kept is not None and kept.exists():
            found = json.loads(kept.read_text(encoding="utf-8"))
        else:
            checkpoint = None if kept is None else kept.with_suffix("")
            learner = Learner(text, view, store, recipe=recipe, seed=seed, device=device, checkpoint=checkpoint)
            found = _scored(learner, train, val)
            if kept is not None:
                kept.parent.mkdir(parents=True, exist_ok=True)
                with writing(kept) as file:
                    file.write(json.dumps(found).encode())
        rows.append({**settings, **{key: math.nan if value is None else value for key, value in found.items()}})
    table = pd.DataFrame(rows, index=pd.Index(list(made), name="model"))
    score = table["mse"] if by == "mse" else -table["pcc"]
    if not score.notna().any():
        raise ValueError(f"none of {len(made)} combinations of {model!r} could be trained; try lower learning rates")
    return Search(str(score.idxmin()), table)


def _scored(learner: Learner, train: Cohort, val: Cohort) -> dict[str, float | None]:
    """Scores of a model on the validation sections, whose expression it does not see; None where its training diverged."""
    try:
        learner.fit(train, val).choose(val)
    except FloatingPointError:
        return {"mse": None, "pcc": None, "epochs": None}
    fitted, _ = learner.ready()
    shown = Holdout(Split(train=train.ids, test=val.ids)).shown(val)
    genes = list(fitted.genes.genes)
    scores = []
    for section, blind in zip(val, shown, strict=True):
        truth, mask = fitted.truth(section, zeros=learner.spec.zeros)  # on what it was taught to be measured
        frame, _ = section_metrics(truth, learner.predict(Cohort([blind])).X, mask, genes=genes)
        scores.append(frame[["mse", "pcc"]].mean().to_numpy())
    mse, pcc = np.nanmean(np.stack(scores), axis=0)
    return {"mse": float(mse), "pcc": float(pcc), "epochs": len(learner.history.rows)}


def tune(
    benchmark: Benchmark,
    grids: Mapping[str, Grid],
    out: Path,
    store: Store,
    *,
    device: str = "cpu",
    max_hours: float = math.inf,
    say: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> dict[str, Search]:
    """Searches every model of a benchmark that has a grid, on the validation side of its one split: model → search.

    Parameters
    ----------
    grids
        Name of a model → grid. A model of the benchmark that names a setting of its grid keeps what it names.
    out
        Folder of the run; finished combinations are kept under it.

    Raises
    ------
    TooLong
        If all combinations take longer than `max_hours`; not asked where a search was begun in this folder.
    """
    (split,) = benchmark.splits
    train, val = benchmark.cohort.subset(split.train), benchmark.cohort.subset(split.val)
    wanted = {}
    for model in benchmark.models:
        name, given = parse(model)
        wanted[model] = {key: values for key, values in grids.get(name, {}).items() if key not in given}
    tried = tuple(text for model, grid in wanted.items() if grid for text in variants(model, grid))
    if tried and not (out / "search").exists():
        planned = plan(replace(benchmark, models=tried, controls=()), out / "search", device=device)
        if say is not None:
            say(f"search: {planned}")
        planned.check(max_hours)
    return {
        model: search(
            model, grid, train, val, view=benchmark.fitted_view(), store=store, recipe=benchmark.recipe,
            seed=benchmark.seeds[0], device=device, folder=out / "search", progress=progress,
        )
        for model, grid in wanted.items()
        if grid
    }  # fmt: skip
