"""The 26 datasets of SpaRED as rows of the catalog, with their published sides.

``spared.toml`` holds them. Rows of one source share its licence, citation and way to get it; urls of files are written
once per source, with ``{section}`` and the row's ``numbers`` of that section in them.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from functools import cache
from importlib import resources
from typing import Any

from histoweave.data.dataset import Dataset, RemoteFile
from histoweave.data.io.st_legacy import patient_of
from histoweave.data.split import By, Split

PREFIX = "spared-"
SERIAL = "patients are serial numbers of capture slides, not people: one person can be on several slides"
SELECTED = (
    "validation-selected: no test split was published, and the sections scored are those the authors chose models on"
)


@cache
def rows() -> tuple[Dataset, ...]:
    """The 26 rows, in the order of the table of SpaRED.

    Raises
    ------
    ValueError
        A row with an unknown entry.
    """
    text = resources.files("histoweave.data").joinpath("spared.toml").read_text(encoding="utf-8")
    content = tomllib.loads(text)
    return tuple(_row(name, row, content["source"]) for name, row in content["dataset"].items())


def left_out(names: Iterable[str]) -> dict[str, str]:
    """Datasets to leave out of an average over these, so that no slide counts twice: name → why.

    A set whose parts are all there is left out; where only some of its parts are there, those are.
    """
    given = dict.fromkeys(names)
    why: dict[str, str] = {}
    for row in rows():
        if row.name not in given or not row.parts:
            continue
        there = [part for part in row.parts if part in given]
        if len(there) == len(row.parts):
            why[row.name] = f"its slides are those of {' and '.join(row.parts)}"
        else:
            why |= dict.fromkeys(there, f"its slides are among those of {row.name}")
    return why


def _row(name: str, row: Mapping[str, Any], sources: Mapping[str, Mapping[str, Any]]) -> Dataset:
    entries = {**sources[row["source"]], **row, "name": PREFIX + name}
    given = {side: tuple(entries.pop(side)) for side in ("train", "val", "test")}
    templates, numbers = entries.pop("each_section", ()), entries.pop("numbers", {})
    del entries["source"]
    unknown = sorted(set(entries) - {item.name for item in fields(Dataset)})
    if unknown:
        raise ValueError(f"row {name!r} of spared.toml has unknown entries {unknown}")
    ids = [id for side in given.values() for id in side]
    patients = {id: patient_of(id, entries.get("patient_of") or entries["patient"]) for id in ids}
    remarks = (SERIAL,) * entries.get("patient_is_serial", False) + (SELECTED,) * (not given["test"])
    return Dataset(
        **entries,
        format="visium-folder",
        platform="visium",
        sections=len(ids),
        patients=tuple(dict.fromkeys(patients.values())),
        split="sides",
        sides=_sides(entries["name"], given, patients, remarks),
        validation_selected=not given["test"],
        files=tuple(_file(template, id, numbers.get(id, ())) for id in ids for template in templates),
    )


def _sides(
    name: str, given: Mapping[str, tuple[str, ...]], patients: Mapping[str, str], remarks: tuple[str, ...]
) -> Split:
    """The sides of the paper; validation sections are scored where there are no others, and then choose nothing."""
    who = [{patients[id] for id in side} for side in given.values()]
    apart: By = "patient" if sum(map(len, who)) == len(set.union(*who)) else "section"
    val, test = (given["val"], given["test"]) if given["test"] else ((), given["val"])
    return Split(train=given["train"], val=val, test=test, name=name, by=apart, remarks=remarks)


def _file(template: Mapping[str, str], section: str, numbers: Sequence[int]) -> RemoteFile:
    """One file of a section; its number at the source goes where the template says."""
    entries = {key: text.format(*numbers, section=section) for key, text in template.items()}
    return RemoteFile(**entries)  # type: ignore[arg-type]
