"""`Benchmark`: hides something from every model, fits it on each fold's training patients, scores what it gives back.

One cell is one model, seed and fold. A finished cell is a folder that appears at once, named by everything its content
depends on; a run that is killed recomputes the cells that were not finished, and inside a cell training goes on from its
last checkpoint. Dates and timings stand only in ``run.log``.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData

from histoweave import _keys as K
from histoweave._repro import digest, file_digest, versions
from histoweave.batch import Needs
from histoweave.bench._checks import check_settings
from histoweave.bench._digest import section_digest
from histoweave.bench.metrics import to_rows
from histoweave.bench.scoring import at_rate, score, shown_values
from histoweave.data.holdout import Entries, Everything, Genes, Hide, Holdout
from histoweave.data.section import Cohort
from histoweave.data.split import Split, k_fold
from histoweave.data.store import Store
from histoweave.models.impute import create_imputer
from histoweave.pp.genes import select_panel
from histoweave.train import Learner, Spec, Transfer, resolve
from histoweave.train.transfer import TransferSpec, is_imputer
from histoweave.view import View

Progress = Callable[[int, int, str], None]
RESULTS = 3  # to be raised with any change that moves numbers: cells of older code are then not taken
CONTROLS = ("mean", "ridge", "knn", "shuffled")


@dataclass(frozen=True, slots=True)
class Cell:
    """One model, seed and fold."""

    model: str
    seed: int
    split: Split
    folder: Path

    @property
    def done(self) -> bool:
        """Whether the finished cell is there."""
        return (self.folder / "cell.json").exists()

    def card(self) -> dict[str, Any]:
        """What the cell says of itself."""
        found: dict[str, Any] = json.loads((self.folder / "cell.json").read_text(encoding="utf-8"))
        return found


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What is run: cohort, folds, view and models.

    Attributes
    ----------
    models
        Names with arguments, as in the table of models.
    controls
        Added to every table where the data allow.
    protocol
        ``strict``: panels from training patients only; when to stop and what to choose too, or, where a split names
        validation sections, from these. ``paper``: the panel from all sections and the epoch chosen on the test fold,
        as the TRIPLEX code does; every table made with it says so.
    hide
        What is hidden on the test side.
    rates
        Further rates of hidden entries at which the same fits are scored.
    measured
        Also score entries with a count alone: counts of 0 may be what the assay dropped.
    ensemble
        0: one fit on all training patients. k: the mean of k fits, each stopped on another k-th of them.
    trunk_weights
        Local file of weights that trainable trunks start from; without, they start at random.
    """

    name: str
    cohort: Cohort
    splits: tuple[Split, ...]
    view: View
    models: tuple[str, ...]
    controls: tuple[str, ...] = CONTROLS
    recipe: str = "cpu"
    seeds: tuple[int, ...] = (0,)
    protocol: Literal["strict", "paper"] = "strict"
    hide: Hide = field(default_factory=Everything)
    rates: tuple[float, ...] = ()
    measured: bool = False
    ensemble: int = 0
    trunk_weights: str | None = None

    def __post_init__(self) -> None:
        for split in self.splits:
            split.check(self.cohort)
        if self.protocol not in ("strict", "paper"):
            raise ValueError(f"protocol={self.protocol!r}; expected 'strict' or 'paper'")
        check_settings(self)
        bare = [section.id for section in self.cohort if section.image is None]
        looking = [model for model in self.models if self.spec(model).sees]
        if bare and looking:
            raise ValueError(
                f"{', '.join(looking)} look at images, and {len(bare)} of {len(self.cohort)} sections have "
                f"none ({', '.join(bare[:8])}{', …' if len(bare) > 8 else ''}). Every model of a table sees "
                "the same sections: use `--sections with-image`"
            )

    def all_models(self) -> tuple[str, ...]:
        """The models asked for and the controls that the data allow, controls first."""
        bare = any(section.image is None for section in self.cohort)
        controls = [control for control in self.controls if not (bare and self.spec(control).sees)]
        return tuple(dict.fromkeys([*controls, *self.models]))

    def left_out(self) -> tuple[str, ...]:
        """Controls that cannot run because sections have no image."""
        return tuple(control for control in self.controls if control not in self.all_models())

    def fitted_view(self) -> View:
        """The view of every fold: names common to all sections; under ``paper``, the panel of all sections."""
        view = self.view
        if isinstance(view.panel, str):
            among = view.among or self.cohort.genes("common")
            view = replace(view, among=among)
            if self.protocol == "paper":
                view = replace(view, panel=select_panel(self.cohort, str(self.view.panel), candidates=among))
        return view

    def cells(self, out: Path) -> list[Cell]:
        """Every cell with its folder, in the order in which they run."""
        view = self.fitted_view()
        shared = {
            "sections": {section.id: section_digest(section) for section in self.cohort},
            "view": view.to_dict(),
            "among": digest(list(view.among or ())),
            "protocol": self.protocol,
            "hide": repr(self.hide),
            "rates": list(self.rates),
            "measured": self.measured,
            "ensemble": self.ensemble,
            "trunk": self.trunk_weights and file_digest(Path(self.trunk_weights)),
            "versions": versions() | {"results": RESULTS},
            "panel": None if isinstance(view.panel, str) else view.panel.digest,
        }
        made = []
        for model in self.all_models():
            spec = self.spec(model)
            for seed in self.seeds if spec.trains else self.seeds[:1]:
                for split in self.splits:
                    address = digest(
                        {
                            **shared,
                            "encoder": view.make_encoder().digest if spec.embeds else None,
                            "model": model,
                            "seed": seed,
                            "recipe": spec.recipe.to_dict(),
                            "first": spec.first and spec.first.recipe.to_dict(),
                            "filler": spec.filler and spec.filler.recipe.to_dict(),
                            "train": split.train,
                            "test": split.test,
                            "fold": split.name,
                            **({"val": split.val} if split.val else {}),
                        }
                    )
                    slug = "".join(c if c.isalnum() else "-" for c in model).strip("-")[:40]
                    made.append(Cell(model, seed, split, out / "cells" / f"{slug}-{address[:16]}"))
        return made

    def run(
        self, out: str | Path, store: Store, *, device: str = "cpu", progress: Progress | None = None
    ) -> list[Cell]:
        """Computes the cells that are not there yet and returns all of them.

        Parameters
        ----------
        out
            Folder of the run; cells that are finished there are taken as they are.
        """
        out = Path(out)
        (out / "cells").mkdir(parents=True, exist_ok=True)
        cells = self.cells(out)
        for i, cell in enumerate(cells):
            if progress is not None:
                progress(i, len(cells), f"{cell.model}, fold {cell.split.name}, seed {cell.seed}")
            if not cell.done:
                begin = time.monotonic()
                self._compute(cell, store, device, progress)
                with (out / "run.log").open("a", encoding="utf-8") as log:
                    now = datetime.now().isoformat(timespec="seconds")
                    log.write(f"{now} {time.monotonic() - begin:.1f} s {cell.folder.name} {cell.split.name}\n")
        return cells

    # -- one cell -----------------------------------------------------------------------------------------------

    def _compute(self, cell: Cell, store: Store, device: str, progress: Progress | None) -> None:
        holdout = Holdout(cell.split, self.hide)
        train, test = holdout.given(self.cohort)
        work = cell.folder.with_name(f".{cell.folder.name}")
        learners = list(self._fit(cell, train, test, store, device, work / "checkpoint"))
        prediction = _mean([learner.predict(test) for learner in learners])
        rows, prediction = self._score(cell, learners[0], prediction, holdout)
        rows = pd.concat([rows, *self._other_rates(cell, learners, prediction)], ignore_index=True)
        card = learners[0].describe() | {
            "fold": cell.split.name,
            "test": list(cell.split.test),
            "protocol": self.protocol,
            "fits": len(learners),
            "spots": int(test.n),
            "history": [_finite(row) for row in learners[0].history.rows],
            "best_epoch": learners[0].history.best_epoch,
            "cv_pcc": _cv_pcc(learners[0]),
        }
        new = work / "new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        rows.to_parquet(new / "rows.parquet", index=False)
        prediction.write_h5ad(new / "prediction.h5ad")
        (new / "cell.json").write_text(
            json.dumps(card, indent=1, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8"
        )
        os.replace(new, cell.folder)
        shutil.rmtree(work)

    def _fit(
        self, cell: Cell, train: Cohort, test: Cohort, store: Store, device: str, checkpoint: Path
    ) -> Iterator[Learner | Transfer]:
        view = self.fitted_view()
        if isinstance(self.spec(cell.model), TransferSpec):
            yield Transfer(cell.model, view, seed=cell.seed).fit(train.subset(cell.split.train))
            return
        if self.ensemble and isinstance(view.panel, str):
            # Members learn on parts of the training side, but predict the same genes in the same units.
            panel = select_panel(train, view.panel, candidates=view.among or train.genes("common"))
            view = replace(view, panel=panel, target=view.target.bind(len(train.genes("union"))))
        spec = self.spec(cell.model)
        trunk = self.trunk_weights if spec.trains and Needs.WINDOW in spec.sees else None

        def learner(part: str) -> Learner:
            return Learner(
                cell.model,
                view,
                store,
                recipe=self.recipe,
                seed=cell.seed,
                device=device,
                checkpoint=checkpoint / part,
                trunk_weights=trunk,
            )

        if self.protocol == "paper":
            # The habit under study: the test fold, with its expression, decides when to stop.
            yield learner("paper").fit(train, self.cohort.subset(cell.split.test))
        elif not self.ensemble and cell.split.val:  # these sections stop and choose, and teach nothing
            val = train.subset(cell.split.val)
            yield learner("all").fit(train.subset(cell.split.train), val).choose(val)
        elif not self.ensemble:
            yield learner("all").fit(train)
        else:
            for part in k_fold(train, self.ensemble, seed=cell.seed):
                yield learner(part.name).fit(train.subset(part.train), train.subset(part.test))

    def _other_rates(
        self, cell: Cell, learners: list[Learner | Transfer], prediction: AnnData
    ) -> Iterator[pd.DataFrame]:
        """Rows of the same fits at the other rates of hidden entries, the rate in the names of their metrics.

        What they predict there is kept as layers of the prediction.
        """
        for rate in self.rates:
            assert isinstance(self.hide, Entries)
            holdout = Holdout(cell.split, replace(self.hide, rate=rate))
            shown = holdout.shown(self.cohort.subset(cell.split.test))
            made = _mean([learner.predict(shown) for learner in learners])
            rows, made = self._score(cell, learners[0], made, holdout)
            prediction.layers[at_rate("X", rate)] = made.X
            for layer in ("truth", "shown"):
                prediction.layers[at_rate(layer, rate)] = made.layers[layer]
            yield rows.assign(metric=[at_rate(metric, rate) for metric in rows["metric"]])

    def _score(
        self, cell: Cell, learner: Learner | Transfer, prediction: AnnData, holdout: Holdout
    ) -> tuple[pd.DataFrame, AnnData]:
        """Rows of the long table, and the prediction with fold, split and the truth beside it."""
        assert learner.fitted is not None
        parts, truths, masks, shown = [], [], [], []
        for section in self.cohort.subset(cell.split.test):
            here = (prediction.obs[K.SECTION] == section.id).to_numpy()
            if list(prediction.obs_names[here]) != [f"{section.id}/{name}" for name in section.spots.obs_names]:
                raise RuntimeError(f"predictions of section {section.id!r} are not in the order of its spots")
            own = prediction.layers[K.OWN][here] if K.OWN in prediction.layers else None
            frame, truth, mask = score(learner.fitted, section, prediction.X[here], holdout, measured=self.measured, own=own)
            parts.append(
                to_rows(
                    frame,
                    benchmark=self.name,
                    model=cell.model,
                    seed=cell.seed,
                    fold=cell.split.name,
                    patient=section.patient,
                    section=section.id,
                )
            )
            truths.append(truth)
            masks.append(mask)
            if isinstance(holdout.hide, Entries):
                shown.append(shown_values(learner.fitted, section, holdout))
        prediction.layers["truth"] = np.where(np.concatenate(masks), np.concatenate(truths), np.nan).astype(np.float32)
        if shown:
            prediction.layers["shown"] = np.concatenate(shown)
        prediction.obs[K.FOLD], prediction.obs[K.SPLIT] = cell.split.name, "test"
        return pd.concat(parts, ignore_index=True), prediction

    def spec(self, model: str) -> Spec | TransferSpec:
        """A model of this benchmark with its recipe; an imputer where genes are hidden."""
        if isinstance(self.hide, Genes) and is_imputer(model):
            return TransferSpec(model, create_imputer(model).card)
        return resolve(model, self.recipe)


def _mean(predictions: list[AnnData]) -> AnnData:
    """The mean of several predictions of the same spots."""
    made = predictions[0]
    if len(predictions) > 1:
        made.X = np.mean([p.X for p in predictions], axis=0, dtype=np.float64).astype(np.float32)
    return made


def _finite(row: dict[str, float]) -> dict[str, float | None]:
    """The row with None for NaN and infinity, which JSON does not have."""
    return {key: value if math.isfinite(value) else None for key, value in row.items()}


def _cv_pcc(learner: Learner | Transfer) -> list[float | None] | None:
    """Cross-validated correlation per gene on the training patients, where the model has it (ridge)."""
    values = getattr(learner.module, "cv_pcc", None)
    return None if values is None else [float(v) if v == v else None for v in values]
