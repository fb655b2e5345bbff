"""The name table: how a model and its arguments are written, and what a wrong name answers."""

from __future__ import annotations

import pytest

from histoweave.batch import Dims
from histoweave.models import create, parse, split_specs


def test_parse() -> None:
    assert parse("mean") == ("mean", {})
    name, given = parse(
        "triplex[fusion=sum, alpha=0.5,neighbor=off,depth=1+2+3,legacy=ffn-width+eval-dropout,global=on]"
    )
    assert name == "triplex"
    assert given == {"fusion": "sum", "alpha": 0.5, "neighbor": False, "depth": (1, 2, 3),
                     "legacy": ("ffn-width", "eval-dropout"), "global_": True}  # fmt: skip


def test_split_specs_leaves_brackets_alone() -> None:
    assert split_specs("mean, triplex[fusion=sum,peg=none],knn") == ["mean", "triplex[fusion=sum,peg=none]", "knn"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("triplx", "did you mean 'triplex'"),
        ("triplex[fuson=sum]", "no argument 'fuson'; did you mean 'fusion'"),
        ("triplex[fusion]", "has no value"),
        ("triplex[fusion=sum", "not written like"),
    ],
)
def test_wrong_names_answer_with_the_nearest(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says.replace("[", r"\[")):
        parse(text)


def test_create_refuses_what_the_class_does_not_take() -> None:
    with pytest.raises(ValueError, match="no argument 'depths'"):
        create("triplex", Dims(genes=2, emb=4), depths=3)
