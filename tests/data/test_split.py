"""Splits by patient, and the ladder of inner splits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histoweave.data.section import Cohort, make_section
from histoweave.data.split import Split, SplitLeak, from_table, inner_split, k_fold, leave_one_out, make_splits


def cohort_of(patients: list[str], n: int = 6) -> Cohort:
    """One section per entry, named after its patient and place."""
    xy = np.column_stack([np.arange(n) * 10.0, np.zeros(n)])
    return Cohort(
        make_section(
            id=f"{p}{i}", patient=p, counts=np.ones((n, 2)), genes=["a", "b"], xy=xy, platform="st", um_per_px=None
        )
        for i, p in enumerate(patients)
    )


@given(st.lists(st.sampled_from("ABCDEFG"), min_size=2, max_size=12), st.integers(2, 5), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_folds_are_of_whole_patients(patients: list[str], k: int, seed: int) -> None:
    cohort = cohort_of(patients)
    distinct = len(cohort.patients)
    if distinct < 2 or k > distinct:
        return
    splits = k_fold(cohort, k, seed=seed)
    tested = [id for split in splits for id in split.test]
    assert sorted(tested) == sorted(cohort.ids) and len(splits) == k
    for split in splits:
        assert not {cohort[i].patient for i in split.train} & {cohort[i].patient for i in split.test}


def test_leave_one_out_names_the_patient() -> None:
    splits = leave_one_out(cohort_of(["A", "A", "B"]))
    assert [(split.name, split.test) for split in splits] == [("A", ("A0", "A1")), ("B", ("B2",))]


def test_a_leak_names_the_patients() -> None:
    cohort = cohort_of(["A", "A", "B"])
    with pytest.raises(SplitLeak, match=r"patient\(s\) 'A' are in both train and test"):
        Split(train=("A0", "B2"), test=("A1",)).check(cohort)
    with pytest.raises(SplitLeak, match="0 training"):
        Split(train=(), test=("A1",)).check(cohort)


def test_published_splits_by_section_say_so() -> None:
    cohort = cohort_of(["A", "A", "B"])
    split = Split(train=("A0", "B2"), test=("A1",), by="section", remarks=("and more",))
    assert split.check(cohort) is split
    assert split.notes[0].startswith("split by section") and split.notes[1:] == ("and more",)
    assert Split(train=("A0",), test=("B2",)).notes == ()
    with pytest.raises(SplitLeak, match=r"section\(s\) 'A1' are in both train and val"):
        Split(train=("A0", "A1"), val=("A1",), test=("B2",), by="section").check(cohort)
    with pytest.raises(SplitLeak, match="0 test"):
        Split(train=("A0",), test=(), by="section").check(cohort)
    with pytest.raises(ValueError, match=r"by='slide'; expected one of \('patient', 'section'\)"):
        Split(train=("A0",), test=("A1",), by="slide")  # type: ignore[arg-type]


def test_one_patient_cannot_be_split() -> None:
    with pytest.raises(SplitLeak, match="one patient only"):
        leave_one_out(cohort_of(["A", "A"]))


def test_tables_and_names() -> None:
    cohort = cohort_of(["A", "B", "C"])
    assert from_table(cohort, {"x": ["A", "B"]})[0].train == ("C2",)
    with pytest.raises(ValueError, match=r"\['Z'\] that the cohort does not have"):
        from_table(cohort, {"x": ["Z"]})
    assert len(make_splits(cohort, "k-fold:3")) == 3
    with pytest.raises(ValueError, match="'k-means' is unknown"):
        make_splits(cohort, "k-means")


@pytest.mark.parametrize(
    ("patients", "rung", "k"),
    [(["A", "B", "B"], "patients", 2), (["A", "A", "A"], "sections", 3), (["A"], "blocks", 5)],
)
def test_inner_split_takes_the_highest_rung(patients: list[str], rung: str, k: int) -> None:
    cohort = cohort_of(patients)
    inner = inner_split(cohort)
    assert (inner.rung, inner.k) == (rung, k) and len(inner.fold) == cohort.n
    units = np.repeat([s.patient for s in cohort] if rung == "patients" else list(cohort.ids), 6)
    if rung != "blocks":
        assert all(len(set(inner.fold[units == unit])) == 1 for unit in set(units))
    else:
        assert (np.diff(inner.fold) >= 0).all()  # contiguous along the section


def test_inner_split_is_reproducible() -> None:
    cohort = cohort_of(list("ABCDEF"))
    assert np.array_equal(inner_split(cohort, seed=1).fold, inner_split(cohort, seed=1).fold)
