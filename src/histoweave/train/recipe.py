"""How a model is trained: optimiser, length, stopping; per model in ``recipes.toml``."""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from histoweave.models import check_arguments, nearest


@dataclass(frozen=True, slots=True)
class Recipe:
    """Settings of the training loop, and the model arguments that go with them.

    Attributes
    ----------
    args
        Model arguments; those written with the model's name win.
    schedule
        ``none``, ``step:50:0.9`` (factor every so many epochs) or ``cosine`` (to 0 over all epochs).
    clip
        Largest gradient norm; None for no clipping.
    steps
        Batches of an epoch, for methods that are published in iterations; None for every spot once.
    patience
        Epochs without a better validation score before stopping; the best weights are kept.
    monitor
        Validation score: within-section Pearson (``pcc``) or squared error (``mse``).
    precision
        ``32-true`` or ``bf16-mixed``.
    """

    name: str = "cpu"
    args: dict[str, Any] = field(default_factory=dict)
    optimizer: Literal["adam", "adamw", "nadam", "sgd"] = "adam"
    lr: float = 1e-4
    weight_decay: float = 0.0
    momentum: float = 0.0
    schedule: str = "none"
    batch: int = 128
    epochs: int = 200
    steps: int | None = None
    patience: int = 20
    monitor: Literal["pcc", "mse"] = "pcc"
    clip: float | None = None
    precision: Literal["32-true", "bf16-mixed"] = "32-true"

    def __post_init__(self) -> None:
        allowed = {
            "optimizer": ("adam", "adamw", "nadam", "sgd"),
            "monitor": ("pcc", "mse"),
            "precision": ("32-true", "bf16-mixed"),
        }
        for key, values in allowed.items():
            if getattr(self, key) not in values:
                raise ValueError(f"recipe {self.name!r}: {key}={getattr(self, key)!r}; expected one of {values}")
        for key in ("lr", "batch", "epochs", "patience", *(["steps"] if self.steps is not None else [])):
            if not getattr(self, key) > 0:
                raise ValueError(f"recipe {self.name!r}: {key}={getattr(self, key)!r}; expected a positive number")

    def rate(self, epoch: int) -> float:
        """Learning rate of an epoch, counted from 0: a function of the epoch alone, so that a resumed run agrees."""
        import math

        kind, *numbers = self.schedule.split(":")
        if kind == "none":
            return self.lr
        if kind == "step" and len(numbers) == 2:
            return self.lr * float(numbers[1]) ** (epoch // int(numbers[0]))
        if kind == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))
        raise ValueError(
            f"recipe {self.name!r}: schedule {self.schedule!r}; expected 'none', 'step:50:0.9' or 'cosine'"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe values."""
        return asdict(self)


@cache
def _recipes() -> dict[str, dict[str, Any]]:
    return tomllib.loads(files("histoweave.train").joinpath("recipes.toml").read_text(encoding="utf-8"))


def load_recipe(model: str, name: str) -> Recipe:
    """The named recipe of a model; a model without recipes of its own gets the defaults.

    A model that has ``cpu`` but no ``tiny`` gets a quarter of the epochs of the former. A recipe under ``any`` is the loop
    for every model, around the arguments that its ``cpu`` has.

    Raises
    ------
    ValueError
        An unknown recipe, or a field or model argument that does not exist, with the nearest match.
    """
    table = _recipes()
    names = sorted({recipe for rows in table.values() for recipe in rows})
    if name not in names:
        raise ValueError(f"recipe {name!r} is unknown{nearest(name, names)}")
    own = table.get(model, {})
    row = own.get(name, {})
    if name == "tiny" and not row and "cpu" in own:
        row = own["cpu"] | {"epochs": max(1, own["cpu"]["epochs"] // 4)}
    if name in table["any"] and not row:
        row = table["any"][name] | {"args": own.get("cpu", {}).get("args", {})}
    known = [f.name for f in fields(Recipe) if f.name != "name"]
    for key in row:
        if key not in known:
            raise ValueError(f"recipe {model}.{name} has an unknown field {key!r}{nearest(key, known)}")
    check_arguments(model, row.get("args", {}))
    return Recipe(name=name, **row)
