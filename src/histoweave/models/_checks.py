"""Checks that models make on their arguments and batches."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from torch import Tensor


def one_of(name: str, value: str, options: Sequence[str]) -> str:
    """The value, when it is one of the options; else a ValueError that lists them and the nearest."""
    if value in options:
        return value
    near = difflib.get_close_matches(value, options, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{name}={value!r} is not one of {', '.join(map(repr, options))}{hint}")


def at_least(name: str, value: object, least: int) -> int:
    """The value, when it is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}={value!r}; expected a whole number of {least} or more")
    return value


def given(field: Tensor | None, name: str) -> Tensor:
    """The field of a batch, when it is there."""
    if field is None:
        raise ValueError(f"the batch has no {name!r}: make it by a feed with the model's own `needs`")
    return field
