"""Saved predictors back from their folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from histoweave.data.store import Store
from histoweave.pp.genes import GenePanel
from histoweave.train.loop import Progress
from histoweave.train.predictor import STATISTICS, Learner
from histoweave.train.recipe import Recipe
from histoweave.train.saved import read_folder, restore
from histoweave.view import FittedView, View


def load_predictor(
    dir: str | Path, store: Store, *, device: str = "cpu", weights: str | None = None, progress: Progress | None = None
) -> Learner:
    """The predictor that `Learner.save` wrote.

    Parameters
    ----------
    weights
        Local file of the encoder's weights, where it moved since the model was fitted.
    """
    card, tensors, accuracy = read_folder(Path(dir))
    learner = _learner(card, store, device=device, weights=weights, progress=progress)
    learner.expected, learner.expected_note = accuracy, card["expected_accuracy"]
    _restore(learner, card, tensors, where=f"{dir}, model {card['model']!r}")
    return learner


def _learner(
    card: Mapping[str, Any], store: Store, *, device: str, weights: str | None, progress: Progress | None
) -> Learner:
    view = View.from_dict(card["view"], GenePanel.from_dict(card["panel"]))
    if weights is not None:
        view = replace(view, weights=weights)
    return Learner(
        card["model"], view, store, recipe=Recipe(**card["recipe"]), seed=card["seed"], device=device, progress=progress
    )


def _restore(learner: Learner, card: Mapping[str, Any], tensors: Mapping[str, Tensor], *, where: str) -> None:
    """Puts back what was learnt, stage by stage."""
    learner.rung, learner.max_context, learner.spacing = card["inner_split"], card["max_context"], card["spacing"]
    learner.encoder_digest = (card["encoder"] or {}).get("digest")
    learner.trunk_weights = None if card["trunk"] == "random" else card["trunk"]
    kept = {key: tensors[f"view/{key}"].numpy() for key in STATISTICS if f"view/{key}" in tensors}
    panel = GenePanel.from_dict(card["panel"])
    learner.fitted = FittedView(view=learner.view, genes=panel, trained_on=tuple(card["trained_on"]), **kept)
    learner.width = card["width"]
    learner.module = learner.build(learner.width)
    restore(learner.module, _part(tensors, "module/"), where=where)
    learner.module.to(learner.device).eval()
    if learner.first is not None:
        _restore(learner.first, card["first"], _part(tensors, "first/"), where=f"{where}, first stage")


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
