"""What a model's text means: the model, its arguments, its recipe, and the stage that goes before it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from inspect import signature
from typing import Any

from histoweave.batch import FROZEN, IMAGE, Card, Needs
from histoweave.embed import as_trunk, list_encoders
from histoweave.feed import Sequencing
from histoweave.models import COMMON, blank, card_of, list_models, model_class, parse, with_argument
from histoweave.train.recipe import Recipe, load_recipe

LOOP = ("lr", "optimizer", "epochs")  # arguments that go with every model and change its recipe
LAYERS = ("raw", "measured")  # what needs no model that completes
HALO = 5  # lattice steps that a model looks at around a region, if it does not say


@dataclass(frozen=True, slots=True)
class Spec:
    """A model as it will be fitted.

    Attributes
    ----------
    text, name, args
        As given, the name in the table, and the model's own arguments: the recipe's, then those given.
    recipe
        How it is trained.
    delta
        Whether it learns the difference from the training mean.
    first
        The stage before it, whose features and predictions it starts from.
    layer
        What a count of 0 is worth in training: ``raw``: a measured zero; ``measured``: nothing, the loss leaves it out;
        else what the model `filler` puts there.
    filler
        The model that completes the training sections, where one does.
    needs, hops, halo
        What it reads from a batch, how far its neighbours reach, and what a region of a large section needs around it,
        both in lattice steps.
    sequencing
        Length and number of sequences, for models that want them.
    """

    text: str
    name: str
    args: dict[str, Any]
    recipe: Recipe
    delta: bool
    first: Spec | None
    layer: str
    filler: Spec | None
    needs: Needs
    hops: int
    halo: int
    sequencing: Sequencing

    @property
    def card(self) -> Card:
        """The model's card."""
        return card_of(self.name)

    @property
    def trains(self) -> bool:
        """Whether any of its stages goes through the training loop."""
        before = [stage for stage in (self.first, self.filler) if stage is not None]
        return self.card.learns == "gradient" or any(stage.trains for stage in before)

    @property
    def completes(self) -> bool:
        """Whether it fills in what is missing of the sections that it is shown."""
        return self.card.task == "complete"

    @property
    def zeros(self) -> bool:
        """Whether a count of 0 is a measurement to it."""
        return self.layer == "raw" and not self.completes

    @property
    def looks(self) -> Needs:
        """What it is given of the images, in prediction too: for its first stage, where it has one."""
        return (self.needs if self.first is None else self.first.looks) & IMAGE

    @property
    def sees(self) -> Needs:
        """What has to be made of the images for the whole of it, so also what the fillers of its stages look at."""
        own = (self.needs if self.first is None else self.first.sees) & IMAGE
        return own if self.filler is None else own | self.filler.sees

    @property
    def recipes(self) -> dict[str, Any]:
        """The recipes of all its stages, JSON-safe."""
        before = {"first": self.first, "filler": self.filler}
        return {"own": self.recipe.to_dict()} | {key: stage and stage.recipes for key, stage in before.items()}

    @property
    def counts(self) -> bool:
        """Whether it predicts expected counts, and not values of the target."""
        return self.args.get("scale") == "counts"

    @property
    def embeds(self) -> bool:
        """Whether the frozen encoder has a part in it, or in what fills gaps for it."""
        return bool(self.sees & FROZEN)


@cache
def _encoders() -> frozenset[str]:
    return frozenset(card.name for card in list_encoders())


def resolve(text: str, recipe: str | Recipe) -> Spec:
    """The model of a text such as ``sepal[hops=2]`` under a recipe, given by name or as it is.

    Raises
    ------
    ValueError
        An unknown model, argument or recipe, with the nearest match.
    """
    name, given = parse(text)
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(name, recipe)
    args = recipe.args | given
    own = signature(model_class(name)).parameters  # an argument of the model itself comes first
    common = {key: args.pop(key) for key in COMMON if key in args and key not in own}
    if changed := {key: common[key] for key in LOOP if key in common}:
        if card_of(name).learns != "gradient":
            raise ValueError(f"model {name!r} is not trained step by step; leave {', '.join(changed)} out")
        recipe = replace(recipe, **changed)
    if args.get("trunk") in _encoders() and signature(model_class(name)).parameters["trunk"].annotation == "str":
        args["trunk"] = as_trunk(args["trunk"])  # models with a fixed choice of image parts say so themselves
    layer = common.get("layer", "raw")
    first = _first(common["first"], layer, recipe.name) if common.get("first") else None
    filler = None if layer in LAYERS else resolve(layer, recipe.name)
    if layer != "raw" and card_of(name).task == "complete":
        raise ValueError(f"model {name!r} completes, so it learns from measured entries; leave layer={layer!r} out")
    if filler is not None and not filler.completes:
        raise ValueError(
            f"layer={layer!r} of model {name!r} does not complete; expected {', '.join(LAYERS)}, or one of "
            f"{', '.join(other for other in list_models() if card_of(other).task == 'complete')}"
        )
    model = blank(name, args)
    if layer != "raw" and (switch := getattr(model, "needs_zeros", False)):
        raise ValueError(
            f"model {name!r} fits a distribution of raw counts, to which zeros belong, and layer={layer!r} leaves them "
            "out or fills them in. "
            + (
                f"Give it the argument {switch}"
                if isinstance(switch, str)
                else f"Use {name}[layer=raw], or a model that does not fit counts, such as 'ridge-gene'"
            )
        )
    if first is not None and not hasattr(blank(first.name, first.args), "features"):
        raise ValueError(f"model {first.name!r} cannot be the first stage of {name!r}: it has no features to hand on")
    return Spec(
        text,
        name,
        args,
        recipe,
        bool(common.get("delta")),
        first,
        layer,
        filler,
        model.needs,
        hops=getattr(model, "hops", 1),
        halo=getattr(model, "halo", HALO),
        sequencing=Sequencing(*getattr(model, "sequencing", ())),
    )


def _first(text: str, layer: str, recipe: str) -> Spec:
    """The stage before a model that learns from a layer: it learns from the same, if it names none and can."""
    spec = resolve(text, recipe)
    fixed = spec.completes or getattr(blank(spec.name, spec.args), "needs_zeros", False)
    if layer == "raw" or "layer" in parse(text)[1] or fixed:
        return spec
    return resolve(with_argument(text, "layer", layer), recipe)
