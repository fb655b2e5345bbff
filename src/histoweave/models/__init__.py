"""The table of models: one line each. A model is a file with one class and a line here.

Packages outside join through the entry-point group ``histoweave.models`` (name = "package.module:Class").
Model arguments are written ``triplex[fusion=sum,peg=none]`` and are checked here and nowhere else.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from keyword import iskeyword
from types import MappingProxyType
from typing import Any

import torch

from histoweave.batch import Card, Dims, Needs, SpotModel

_MODELS = {
    "mean": "histoweave.models.predict.mean:Mean",
    "ridge": "histoweave.models.predict.ridge:Ridge",
    "knn": "histoweave.models.predict.knn:KNN",
    "shuffled": "histoweave.models.predict.ridge:Shuffled",
    "position": "histoweave.models.predict.shortcuts:Position",
    "density": "histoweave.models.predict.shortcuts:Density",
    "colour": "histoweave.models.predict.shortcuts:Colour",
    "stnet": "histoweave.models.predict.stnet:STNet",
    "triplex": "histoweave.models.predict.triplex:Triplex",
    "tem": "histoweave.models.predict.triplex_branches:TEM",
    "nem": "histoweave.models.predict.triplex_branches:NEM",
    "gem": "histoweave.models.predict.triplex_branches:GEM",
    "sepal": "histoweave.models.predict.sepal:Sepal",
    "histogene": "histoweave.models.predict.histogene:HisToGene",
    "hist2st": "histoweave.models.predict.hist2st:Hist2ST",
    "shufflenet": "histoweave.models.predict.finetuned:ShuffleNet",
    "vitb": "histoweave.models.predict.finetuned:ViTB",
    "bleep": "histoweave.models.predict.bleep:BLEEP",
    "egn": "histoweave.models.predict.egn:EGN",
    "eggn": "histoweave.models.predict.eggn:EGGN",
    "mlp": "histoweave.models.predict.mlp:MLP",
    "gnn": "histoweave.models.predict.gnn:GNN",
    "ols": "histoweave.models.predict.linear:OLS",
    "lasso": "histoweave.models.predict.linear:Lasso",
    "ridge-gene": "histoweave.models.predict.linear:RidgePerGene",
    "poisson": "histoweave.models.predict.counts:Poisson",
    "nb": "histoweave.models.predict.counts:NB",
    "zero": "histoweave.models.complete.controls:Zero",
    "gene-mean": "histoweave.models.complete.controls:GeneMean",
    "slide-median": "histoweave.models.complete.controls:SlideMedian",
    "spot-gene": "histoweave.models.complete.controls:SpotGene",
    "low-rank": "histoweave.models.complete.low_rank:LowRank",
    "ridge-visible": "histoweave.models.complete.ridge_visible:RidgeVisible",
    "median": "histoweave.models.complete.median:Median",
    "sme": "histoweave.models.complete.sme:SME",
    "spackle": "histoweave.models.complete.spackle:Spackle",
    "xmint": "histoweave.models.impute.xmint:XMINT",
}


@cache
def _table() -> dict[str, str]:
    """Our models and those of installed packages."""
    return _MODELS | {point.name: point.value for point in entry_points(group="histoweave.models")}


def list_models() -> list[str]:
    """Names of all models, ours first."""
    return list(_table())


def nearest(given: str, known: list[str]) -> str:
    """``; did you mean 'x'?`` where something is close, and the whole list."""
    close = get_close_matches(given, known, n=1)
    return (f"; did you mean {close[0]!r}?" if close else ".") + f" Known: {', '.join(known)}"


def model_class(name: str) -> type[Any]:
    """The class behind a name; an unknown name is a `ValueError` with the nearest match."""
    if name not in _table():
        raise ValueError(f"model {name!r} is unknown{nearest(name, list_models())}")
    module, _, attribute = _table()[name].partition(":")
    return getattr(import_module(module), attribute)


# What any model can be given beside its own arguments; `train` acts on them and the model never sees them.
COMMON = {
    "delta": "bool",  # learn the difference from the training mean, which is added back to what is predicted
    "first": "str",  # a model that is fitted before: its features and predictions are what this one starts from
    "layer": "str",  # what counts of 0 are worth in training: raw, measured, or what a model that completes makes of them
    "lr": "float",  # learning rate of the training loop, in place of the recipe's
    "optimizer": "str",  # its optimiser: adam, adamw, nadam or sgd
    "epochs": "int",  # its length at most; patience stays the recipe's
}


def parse(spec: str) -> tuple[str, dict[str, Any]]:
    """``"triplex[fusion=sum,alpha=0.3]"`` → ``("triplex", {"fusion": "sum", "alpha": 0.3})``, checked.

    Values are JSON (numbers, true, false, null), ``on`` or ``off``, else text; several values are joined with ``+``:
    ``legacy=ffn-width+eval-dropout`` gives a tuple. An argument that is a Python keyword is written without the
    underscore that it has in Python: ``global=off``.
    """
    name, arguments = read_spec(spec)
    check_arguments(name, arguments)
    return name, arguments


def read_spec(spec: str) -> tuple[str, dict[str, Any]]:
    """Name and arguments as `parse` reads them, not held against any table."""
    match = re.fullmatch(r"\s*([\w.-]+)\s*(?:\[(.*)\])?\s*", spec)
    if match is None:
        raise ValueError(f"model {spec!r} is not written like 'name' or 'name[argument=value,…]'")
    arguments: dict[str, Any] = {}
    for item in split_specs(match[2] or ""):
        key, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"argument {item!r} of model {spec!r} has no value; write argument=value")
        key = key.strip()
        arguments[f"{key}_" if iskeyword(key) else key] = _value(value.strip())
    return match[1], arguments


_KINDS: dict[str, Any] = {"int": int, "float": (int, float), "bool": bool, "str": str}  # annotations that are checked
_WORDS = {"on": True, "off": False}


def _value(text: str) -> Any:
    """Text as JSON, ``on`` or ``off``, several of these joined by ``+``, or itself."""
    if text in _WORDS:
        return _WORDS[text]
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return tuple(_value(part) for part in text.split("+")) if "+" in text else text


def split_specs(text: str) -> list[str]:
    """``"mean,triplex[a=1,b=2]"`` → ``["mean", "triplex[a=1,b=2]"]``: commas inside brackets belong to the model."""
    depth, parts = 0, [""]
    for char in text:
        depth += (char == "[") - (char == "]")
        if char == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts if part.strip()]


def with_argument(spec: str, key: str, value: str) -> str:
    """A model's text with one more argument; as it is where it has that one already."""
    if key in parse(spec)[1]:
        return spec
    head, bracket, inside = spec.strip().partition("[")
    return f"{head}[{inside.removesuffix(']')},{key}={value}]" if bracket else f"{head}[{key}={value}]"


def check_arguments(name: str, arguments: dict[str, Any]) -> None:
    """`ValueError` if the model has no such argument, with the nearest match, or it cannot have such a value."""
    check_against(model_class(name), f"model {name!r}", arguments, COMMON)


def check_against(
    cls: type[Any], called: str, arguments: dict[str, Any], common: Mapping[str, str] = MappingProxyType({})
) -> None:
    """The same for any class; `common` are arguments that are taken beside its own, with the names of their types."""
    parameters = inspect.signature(cls).parameters.items()
    kinds = {key: str(parameter.annotation) for key, parameter in parameters if key != "dims"} | dict(common)
    for key, value in arguments.items():
        if key not in kinds:
            raise ValueError(f"{called} has no argument {key!r}{nearest(key, list(kinds))}")
        kind = kinds[key]
        if kind in _KINDS and not (isinstance(value, _KINDS[kind]) and isinstance(value, bool) == (kind == "bool")):
            raise ValueError(f"{called}: {key}={value!r}; expected a value of type {kind}")


def create(name: str, dims: Dims, /, **arguments: Any) -> SpotModel:
    """A new model for the given sizes, with checked arguments."""
    check_arguments(name, arguments)
    model = model_class(name)(dims, **arguments)
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model {name!r} is a {type(model).__name__}; expected a torch.nn.Module")
    return model  # type: ignore[return-value]


def card_of(name: str) -> Card:
    """The card of a model."""
    card: Card = model_class(name).card
    return card


def blank(name: str, arguments: dict[str, Any], dims: Dims | None = None) -> SpotModel:
    """A model without memory for its weights: what it reads and how large it is can be asked of it."""
    with torch.device("meta"):
        return create(name, dims or Dims(genes=2, emb=16), **arguments)


def needs_of(name: str, arguments: dict[str, Any]) -> Needs:
    """What a model with these arguments reads."""
    return blank(name, arguments).needs


def describe(name: str, genes: int = 250, emb: int = 512) -> dict[str, Any]:
    """One row of the table of models: name, task, needs, parameters, citation, licence."""
    model: Any = blank(name, {}, Dims(genes=genes, emb=emb))
    card = card_of(name)
    return {
        "name": name,
        "title": card.title,
        "task": card.task,
        "learns": card.learns,
        "control": card.control,
        "needs": [need.name for need in model.needs],
        "parameters": sum(p.numel() for p in model.parameters()),
        "genes": genes,
        "citation": card.citation,
        "licence": card.licence,
        "published": card.published,
    }
