"""Published benchmark suites: on which data, genes and folds, and the published numbers that ours are printed beside.

``suites.toml`` holds the rows. A suite fixes what is measured (dataset, folds, target, gene panel, window), never how
well: a model without a published value has a dash beside it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from histoweave.data import catalog
from histoweave.data.phantom import phantom, phantom_like
from histoweave.data.section import Cohort
from histoweave.data.spared import PREFIX
from histoweave.data.split import Split, from_table, leave_one_out
from histoweave.models import nearest, parse

DRY = "dry run on a phantom: the values mean nothing beside the published ones"
METRICS = {"mse": "mse", "mae": "mae", "pcc_m": "pcc", "pcc_h_paper": "pcc_h_paper"}  # published name → ours
PHANTOM_UM_PER_PX = 5.0
PHANTOM_WINDOW_PX = 40  # the phantom's tile of 200 µm

# Arguments that say where a model's images go in, which every row of the run's own table prints; not another model.
_INPUTS = ("trunk", "init")


class SuiteIncomplete(ValueError):
    """The data at hand are not those of the suite; the message names what is missing."""


@dataclass(frozen=True, slots=True)
class Value:
    """A published number, and its spread over folds where one was given."""

    mean: float
    sd: float = float("nan")


Row = Mapping[str, tuple[Value, ...]]  # metric → one value, or one per test section


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """One row of ``suites.toml``.

    Attributes
    ----------
    dataset, train
        Dataset of the catalog that is tested on; where another is trained on (``split="external"``), its name.
    split, folds, test_patients
        How it is folded, into how many (external: the number of test sections), and the test patients where the table
        is fixed.
    window_px
        Side of the window in native pixels.
    phantom
        Which phantom has the shape of the training data.
    published, ablations
        Model → metric → one value, or one per test section (external).
    arguments
        With which arguments the authors ran a model on this dataset.
    variants
        Published rows that are a model of ours with other arguments, by model and row.
    val_patients
        ``split="sides"``, for papers that report training, validation and test patients of one split: who validates.
        `published` then has one value per side.
    models, rows, count_rows, search
        Of such a suite: models that are run where none are named; published row → the model that it is; rows published
        on the scale of counts; model → setting → values among which the validation patients choose.
    """

    name: str
    title: str
    citation: str
    dataset: str
    target: str
    panel: str
    protocol: Literal["strict", "paper"]
    split: Literal["leave-one-patient-out", "folds", "external", "sides"]
    folds: int
    window_px: int
    phantom: str
    train: str | None = None
    test_patients: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    published: Mapping[str, Row] = field(default_factory=dict)
    ablations: Mapping[str, Row] = field(default_factory=dict)
    arguments: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    variants: Mapping[str, Mapping[str, Mapping[str, object]]] = field(default_factory=dict)
    val_patients: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    rows: Mapping[str, str] = field(default_factory=dict)
    count_rows: tuple[str, ...] = ()
    search: Mapping[str, Mapping[str, Sequence[Any]]] = field(default_factory=dict)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Published metrics that are compared, in the order of `METRICS`; single genes are not."""
        rows = [*self.published.values(), *self.ablations.values()]
        return tuple(metric for metric in METRICS if any(metric in row for row in rows))

    @property
    def same_patients(self) -> Mapping[str, str]:
        """External suites: training patient → the test patient who is the same person, as the catalog knows it."""
        return catalog.dataset(self.train).overlaps.get(self.dataset, {}) if self.train else {}

    def load(self, root: str | Path | None = None) -> tuple[Cohort, Cohort | None]:
        """The sections with image of the suite's data, and those to test on where they are another dataset.

        Parameters
        ----------
        root
            The dataset's own folder, or one that holds it under its name; default ``$HISTOWEAVE_DATA``. External suites
            read two datasets, so only the second form does.

        Raises
        ------
        DatasetNotFound
            Not on this machine; the message says how to get it.
        SuiteIncomplete
            A patient has no section with an image.
        """
        found = [_complete(self, name, catalog.load(name, root, sections="with-image")) for name in self.datasets]
        return found[0], (found[1] if len(found) > 1 else None)

    def stand_in(self, spots: tuple[int, int] = (5, 5)) -> tuple[Cohort, Cohort | None]:
        """What `load` gives, as a phantom of the same patients and sections (lattice rows and columns of each: `spots`)."""
        cohort = phantom_like(self.phantom, spots=spots, um_per_px=PHANTOM_UM_PER_PX).cohort
        if self.split != "external":
            return cohort, None
        made = phantom(
            n_patients=2,
            sections_per_patient=2,
            layout="visium",
            spots=spots,
            tile_um=200.0,
            um_per_px=PHANTOM_UM_PER_PX,
            seed=1,
        ).cohort
        return cohort, made[: self.folds]  # two sections of one patient, one of another, as in the dataset

    def splits(self, cohort: Cohort) -> tuple[Split, ...]:
        """The published folds of a cohort.

        Raises
        ------
        SuiteIncomplete
            Patients are missing, or there are others.
        """
        if self.split == "external":
            raise ValueError(
                f"suite {self.name!r} has no folds: it trains on {self.train!r} and tests on {self.dataset!r}"
            )
        wanted = {patient for group in self.test_patients.values() for patient in group}
        if self.split == "sides":
            return (self._sides(cohort, wanted),)
        if wanted and wanted != set(cohort.patients):
            raise SuiteIncomplete(
                f"suite {self.name!r} folds {len(wanted)} patients; the cohort lacks "
                f"{sorted(wanted - set(cohort.patients))} and has, beside them, "
                f"{sorted(set(cohort.patients) - wanted)}"
            )
        splits = from_table(cohort, self.test_patients) if wanted else leave_one_out(cohort)
        if len(splits) != self.folds:
            raise SuiteIncomplete(
                f"suite {self.name!r} has {self.folds} folds; this cohort of {len(cohort.patients)} "
                f"patients gives {len(splits)}"
            )
        return tuple(splits)

    def _sides(self, cohort: Cohort, tested: set[str]) -> Split:
        """The one split of a paper that reports three sides: tested and validating patients, and all others."""
        missing = sorted(({*tested, *self.val_patients}) - set(cohort.patients))
        if missing:
            raise SuiteIncomplete(f"suite {self.name!r} validates or tests on {missing}; the cohort lacks them")
        (split,) = from_table(cohort, self.test_patients)
        val = cohort.where_patient(self.val_patients).ids
        return replace(split, train=tuple(id for id in split.train if id not in set(val)), val=val).check(cohort)

    def spec(self, spec: str) -> str:
        """A model with the arguments that the authors gave it on this dataset, where it is written without them."""
        name, given = parse(spec)
        own = [f"{k}={v}" for k, v in self.arguments.get(name, {}).items() if k not in given]
        if not own:
            return spec
        head, bracket, inside = spec.strip().partition("[")
        return f"{head}[{','.join([inside.rstrip(']'), *own] if bracket else own)}]"

    def published_as(self, spec: str) -> str | None:
        """The published row that a model of ours is to be compared with; None where there is none."""
        name, given = parse(spec)
        if self.rows:
            free = {*_INPUTS, *self.search.get(name, {})}
            told = (name, {k: v for k, v in given.items() if k not in free})
            return next((row for row, model in self.rows.items() if parse(model) == told), None)
        own = self.arguments.get(name, {})
        changed = {k: v for k, v in given.items() if k not in _INPUTS and own.get(k) != v}
        labels = (
            [name] if not changed else [label for label, args in self.variants.get(name, {}).items() if args == changed]
        )
        return next((label for label in labels if label in self.published or label in self.ablations), None)

    @property
    def datasets(self) -> tuple[str, ...]:
        """Names in the catalog: what is trained on, and what is tested on where that is another."""
        return (self.train, self.dataset) if self.train else (self.dataset,)


@cache
def suites() -> tuple[Suite, ...]:
    """All suites, in the order of the file; `ValueError` for a row with an unknown entry."""
    table = tomllib.loads(files("histoweave.bench").joinpath("suites.toml").read_text(encoding="utf-8"))
    variants = table.pop("variants")
    return tuple(_suite(name, row | {"variants": variants}) for name, row in table.items())


def suite(name: str) -> Suite:
    """The suite of that name; an unknown name is a `ValueError` with the nearest match."""
    rows = {row.name: row for row in suites()}
    if name not in rows:
        raise ValueError(f"suite {name!r} is unknown{nearest(name, list(rows))}")
    return rows[name]


def overview() -> pd.DataFrame:
    """All suites, one line each."""
    rows = [(s.name, s.title, " → ".join(s.datasets), s.split, s.folds) for s in suites()]
    rows.append(("spared", "SpaRED: 26 datasets, raw and completed", f"{PREFIX}*", "sides", 1))
    rows.append(
        ("xmint-tonsil", "xMINT: genes that a Xenium panel lacks", "xenium-tonsil, tonsil-atlas", "external", 1)
    )
    return pd.DataFrame(rows, columns=["suite", "title", "dataset", "split", "folds"]).set_index("suite")


def fewer(panel: str, available: int) -> str:
    """A panel recipe that asks for no more genes than there are: ``top-mean:250`` → ``top-mean:156``."""
    name, _, count = panel.partition(":")
    return f"{name}:{min(int(count), available)}"


def shortened(search: Mapping[str, Mapping[str, Sequence[Any]]]) -> dict[str, dict[str, Sequence[Any]]]:
    """The first two values of the first setting of every grid: enough for a dry run."""
    return {model: {key: values[:2] for key, values in list(grid.items())[:1]} for model, grid in search.items()}


def _suite(name: str, row: dict[str, Any]) -> Suite:
    ablations, sections = row.pop("ablations", {}), row.pop("published_sections", {})
    unknown = sorted(set(row) - {item.name for item in fields(Suite)})
    if unknown:
        raise ValueError(f"suite {name!r} has unknown entries {unknown}")
    made = Suite(name=name, **{key: value for key, value in row.items() if key not in ("published", "test_patients")})
    return replace(
        made,
        val_patients=tuple(row.get("val_patients", ())),
        models=tuple(row.get("models", ())),
        count_rows=tuple(row.get("count_rows", ())),
        test_patients={fold: tuple(group) for fold, group in row.get("test_patients", {}).items()},
        published={
            model: {metric: (_value(v),) for metric, v in values.items()}
            for model, values in row.get("published", {}).items()
        }
        | {model: {metric: tuple(map(Value, v)) for metric, v in values.items()} for model, values in sections.items()},
        ablations={
            model: {metric: (_value(v),) for metric, v in values.items()} for model, values in ablations.items()
        },
    )


def _value(given: float | Sequence[float]) -> Value:
    """A number, or mean and sd."""
    return Value(*given) if isinstance(given, Sequence) else Value(given)


def _complete(suite: Suite, name: str, cohort: Cohort) -> Cohort:
    """The cohort, if every patient of the dataset is in it."""
    missing = sorted(set(catalog.dataset(name).patients) - set(cohort.patients))
    if missing:
        raise SuiteIncomplete(
            f"suite {suite.name!r} needs every patient of dataset {name!r}, and {missing} have no section "
            "with an image here, so that no value would be comparable with a published one. Get the "
            "whole dataset, look at a part with `histoweave bench`, or try the suite with --dry-run"
        )
    return cohort
