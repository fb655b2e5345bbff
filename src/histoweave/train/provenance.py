"""What made a prediction, in words and numbers: the card that travels with saved models and outputs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from histoweave.embed import encoder_card

if TYPE_CHECKING:
    from histoweave.train.predictor import Learner


def describe(learner: Learner) -> dict[str, Any]:
    """Model, recipe, view, encoder with its licence, and training patients of a fitted learner, JSON-safe."""
    fitted, module = learner.ready()
    card = learner.spec.card
    return {
        "model": learner.model,
        "name": learner.name,
        "args": learner.spec.args,
        "task": card.task,
        "layer": learner.spec.layer,
        "layer_recipe": learner.spec.filler and learner.spec.filler.recipe.to_dict(),
        "first": None if learner.first is None else learner.first.describe(),
        "recipe": learner.recipe.to_dict(),
        "seed": learner.seed,
        "citation": card.citation,
        "control": card.control,
        "view": fitted.view.to_dict(),
        "panel": fitted.genes.to_dict(),
        "panel_digest": fitted.genes.digest,
        "trained_on": list(fitted.trained_on),
        "inner_split": learner.rung,
        "encoder": _encoder(learner) if learner.embeds else None,
        "width": learner.width,
        "max_context": learner.max_context,
        "spacing": learner.spacing,
        "expected_accuracy": learner.expected_note,
        "trunk": _trunk(learner),
        "parameters": sum(p.numel() for p in module.parameters()),
        "units": learner.units,
    }


def _encoder(learner: Learner) -> dict[str, Any]:
    """The encoder as it is used: with the side of its windows here."""
    view = learner.ready()[0].view
    return encoder_card(view.encoder).to_dict() | {
        "px": view.window.out,
        "weights": view.weights,
        "dtype": view.dtype,
        "digest": learner.encoder_digest,
    }


def _trunk(learner: Learner) -> str | None:
    """Where a trainable trunk started: random, or the name of the file; None without such a trunk."""
    if getattr(learner.module, "trunk", None) is None:
        return None
    return "random" if learner.trunk_weights is None else Path(learner.trunk_weights).name
