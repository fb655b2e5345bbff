"""The table of models: one line each. A model is a file with one class and a line here.

Packages outside join through the entry-point group ``histoweave.models`` (name = "package.module:Class").
Model arguments are written ``triplex[fusion=sum,peg=none]`` and are checked here and nowhere else.
"""

from __future__ import annotations

import inspect
import json
import re
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from keyword import iskeyword
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


def parse(spec: str) -> tuple[str, dict[str, Any]]:
    """``"triplex[fusion=sum,alpha=0.3]"`` → ``("triplex", {"fusion": "sum", "alpha": 0.3})``.

    Values are JSON (numbers, true, false, null), ``on`` or ``off``, else text; several values are joined with ``+``:
    ``legacy=ffn-width+eval-dropout`` gives a tuple. An argument that is a Python keyword is written without the
    underscore that it has in Python: ``global=off``.
    """
    match = re.fullmatch(r"\s*([\w.-]+)\s*(?:\[(.*)\])?\s*", spec)
    if match is None:
        raise ValueError(f"model {spec!r} is not written like 'name' or 'name[argument=value,…]'")
    arguments: dict[str, Any] = {}
    for item in filter(None, (match[2] or "").split(",")):
        key, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"argument {item!r} of model {spec!r} has no value; write argument=value")
        key = key.strip()
        arguments[f"{key}_" if iskeyword(key) else key] = _value(value.strip())
    check_arguments(match[1], arguments)
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
    return [part.strip() for part in re.split(r",(?![^\[]*\])", text) if part.strip()]


def check_arguments(name: str, arguments: dict[str, Any]) -> None:
    """`ValueError` if the model has no such argument, with the nearest match, or it cannot have such a value."""
    parameters = {key: p for key, p in inspect.signature(model_class(name)).parameters.items() if key != "dims"}
    for key, value in arguments.items():
        if key not in parameters:
            raise ValueError(f"model {name!r} has no argument {key!r}{nearest(key, list(parameters))}")
        kind = str(parameters[key].annotation)
        if kind in _KINDS and not (isinstance(value, _KINDS[kind]) and isinstance(value, bool) == (kind == "bool")):
            raise ValueError(f"model {name!r}: {key}={value!r}; expected a value of type {kind}")


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


def needs_of(name: str, arguments: dict[str, Any]) -> Needs:
    """What a model with these arguments reads; nothing is allocated for the answer."""
    with torch.device("meta"):
        return create(name, Dims(genes=2, emb=16), **arguments).needs


def describe(name: str, genes: int = 250, emb: int = 512) -> dict[str, Any]:
    """One row of the table of models: name, task, needs, parameters, citation, licence."""
    with torch.device("meta"):
        model = model_class(name)(Dims(genes=genes, emb=emb))
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
