"""What a model's text means: the model, its arguments, its recipe, and the stage that goes before it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from inspect import signature
from typing import Any

from histoweave.batch import FROZEN, IMAGE, Card, Needs
from histoweave.embed import as_trunk, list_encoders
from histoweave.models import COMMON, blank, card_of, model_class, parse
from histoweave.train.recipe import Recipe, load_recipe

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
    needs, hops, halo
        What it reads from a batch, how far its neighbours reach, and what a region of a large section needs around it,
        both in lattice steps.
    """

    text: str
    name: str
    args: dict[str, Any]
    recipe: Recipe
    delta: bool
    first: Spec | None
    needs: Needs
    hops: int
    halo: int

    @property
    def card(self) -> Card:
        """The model's card."""
        return card_of(self.name)

    @property
    def trains(self) -> bool:
        """Whether any of its stages goes through the training loop."""
        return self.card.learns == "gradient" or (self.first is not None and self.first.trains)

    @property
    def sees(self) -> Needs:
        """What has to be made of the images: for its first stage, where it has one."""
        return (self.needs if self.first is None else self.first.sees) & IMAGE

    @property
    def counts(self) -> bool:
        """Whether it predicts expected counts, and not values of the target."""
        return self.args.get("scale") == "counts"

    @property
    def embeds(self) -> bool:
        """Whether the frozen encoder has a part in it."""
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
    common = {key: args.pop(key) for key in COMMON if key in args}
    if args.get("trunk") in _encoders() and signature(model_class(name)).parameters["trunk"].annotation == "str":
        args["trunk"] = as_trunk(args["trunk"])  # models with a fixed choice of image parts say so themselves
    first = resolve(common["first"], recipe.name) if common.get("first") else None
    model = blank(name, args)
    if first is not None and not hasattr(blank(first.name, first.args), "features"):
        raise ValueError(f"model {first.name!r} cannot be the first stage of {name!r}: it has no features to hand on")
    reach = {"hops": getattr(model, "hops", 1), "halo": getattr(model, "halo", HALO)}
    return Spec(text, name, args, recipe, bool(common.get("delta")), first, model.needs, **reach)
