"""Who is trained on and who is tested: splits by patient, and the ladder of inner splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from histoweave.data.section import Cohort, Section

Rung = Literal["patients", "sections", "blocks"]
By = Literal["patient", "section"]


class SplitLeak(ValueError):
    """A patient stands on both sides of a split."""


@dataclass(frozen=True, slots=True)
class Split:
    """Section ids on each side of one fold.

    Attributes
    ----------
    train, test, val
        Section ids. Validation normally comes out of ``train`` through `inner_split` and ``val`` is empty.
    name
        What the fold is called in tables, usually the held-out patient.
    by
        What may not stand on two sides. ``"section"`` is for published splits that put sections of one patient on
        several sides by design: their scores say nothing of a new patient, and `notes` says so.
    remarks
        What else a reader must know of this split, in sentences.
    """

    train: tuple[str, ...]
    test: tuple[str, ...]
    val: tuple[str, ...] = ()
    name: str = "fold"
    by: By = "patient"
    remarks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.by not in get_args(By):
            raise ValueError(f"fold {self.name!r}: by={self.by!r}; expected one of {get_args(By)}")

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know before believing scores on this split."""
        if self.by == "patient":
            return self.remarks
        return (
            "split by section: sections of one patient stand on several sides, so scores are of new sections of known "
            "patients",
            *self.remarks,
        )

    def check(self, cohort: Cohort) -> Split:
        """This split, if nothing stands on two sides of it.

        Raises
        ------
        SplitLeak
            A patient (with ``by="section"``: a section) on two sides, with its name; a side without sections.
        """
        names = {id: cohort[id].patient if self.by == "patient" else id for id in self.train + self.val + self.test}
        sides = {side: {names[id] for id in getattr(self, side)} for side in ("train", "val", "test")}
        for a, b in (("train", "test"), ("val", "test"), ("train", "val")):
            both = sorted(sides[a] & sides[b])
            if both:
                raise SplitLeak(
                    f"fold {self.name!r}: {self.by}(s) {', '.join(map(repr, both))} are in both {a} and {b}. "
                    + (
                        "Split by patient: all sections of a patient belong on one side"
                        if self.by == "patient"
                        else "A section belongs on one side"
                    )
                )
        if not self.train or not self.test:
            raise SplitLeak(
                f"fold {self.name!r} has {len(self.train)} training and {len(self.test)} test sections; "
                "both sides need at least one"
            )
        return self


def leave_one_out(cohort: Cohort) -> list[Split]:
    """One fold per patient: all sections of that patient are the test side.

    Raises
    ------
    SplitLeak
        If there is one patient only.
    """
    return k_fold(cohort, len(cohort.patients), shuffle=False)


def k_fold(cohort: Cohort, k: int, *, seed: int = 0, shuffle: bool = True) -> list[Split]:
    """`k` folds of whole patients, of sizes that differ by at most one."""
    patients = list(cohort.patients)
    if len(patients) < 2:
        raise SplitLeak(
            f"the cohort has one patient only ({', '.join(map(repr, patients))}); a benchmark needs at "
            "least two. Add patients, or use `fit` and `predict`"
        )
    if not 2 <= k <= len(patients):
        raise ValueError(f"k={k} folds of {len(patients)} patients; expected 2 to {len(patients)}")
    if shuffle:
        patients = list(np.random.default_rng(seed).permutation(patients))
    groups = [list(group) for group in np.array_split(np.asarray(patients, dtype=object), k)]
    return from_table(cohort, {"+".join(group): group for group in groups})


def from_table(cohort: Cohort, folds: Mapping[str, Sequence[str]]) -> list[Split]:
    """Folds from a table ``{name: test patients}``; everyone else trains. Unknown patients are an error."""
    splits = []
    for name, group in folds.items():
        unknown = sorted(set(group) - set(cohort.patients))
        if unknown:
            raise ValueError(
                f"fold {name!r} names patients {unknown} that the cohort does not have; it has {list(cohort.patients)}"
            )
        test = cohort.where_patient(group).ids
        train = tuple(id for id in cohort.ids if id not in set(test))
        splits.append(Split(train=train, test=test, name=name).check(cohort))
    return splits


def make_splits(cohort: Cohort, how: str, *, seed: int = 0) -> list[Split]:
    """Folds by name: ``leave-one-patient-out`` or ``k-fold:5``."""
    name, _, k = how.partition(":")
    if name == "leave-one-patient-out":
        return leave_one_out(cohort)
    if name == "k-fold" and k.isdigit():
        return k_fold(cohort, int(k), seed=seed)
    raise ValueError(f"split {how!r} is unknown; expected 'leave-one-patient-out' or 'k-fold:5'")


@dataclass(frozen=True, slots=True)
class InnerSplit:
    """Folds inside the training side, over all its spots in cohort order.

    Attributes
    ----------
    rung
        What was held apart: whole patients, whole sections of a patient, or contiguous blocks of a section.
    fold
        Fold of each spot (n,), int64, 0 … k - 1. Early stopping validates on fold 0.
    """

    rung: Rung
    fold: np.ndarray

    @property
    def k(self) -> int:
        """Number of folds."""
        return int(self.fold.max()) + 1


def inner_split(train: Cohort, *, k: int = 5, seed: int = 0) -> InnerSplit:
    """Folds of the training side on the highest rung that the data allow.

    Patients if there are two or more, else sections, else contiguous blocks of the one section (strips across its
    longer axis). At most `k` folds.
    """
    rung, units = inner_units(train, k=k)
    if rung == "blocks":
        return InnerSplit(rung, units)
    n_units = int(units.max()) + 1
    shuffled = np.random.default_rng(seed).permutation(n_units)
    fold_of = np.empty(n_units, dtype=np.int64)
    fold_of[shuffled] = np.arange(n_units) % min(k, n_units)
    return InnerSplit(rung, fold_of[units])


def inner_units(train: Cohort, *, k: int = 5) -> tuple[Rung, np.ndarray]:
    """What must not be on two sides of an inner split: the unit of every spot (n,), on the highest rung there is."""
    sizes = [section.n for section in train]
    if len(train.patients) >= 2:
        return "patients", np.repeat([train.patients.index(section.patient) for section in train], sizes)
    if len(train) >= 2:
        return "sections", np.repeat(np.arange(len(train)), sizes)
    return "blocks", _blocks(train[0], k)


def _blocks(section: Section, k: int) -> np.ndarray:
    """Contiguous strips with equal numbers of spots, across the longer axis of the section."""
    if section.n < 2:
        raise SplitLeak(f"section {section.id!r} has {section.n} spot; an inner split needs at least 2")
    axis = int(np.ptp(section.xy, axis=0).argmax())
    rank = np.argsort(np.argsort(section.xy[:, axis], kind="stable"), kind="stable")
    return rank * min(k, section.n) // section.n
