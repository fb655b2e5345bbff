"""Training on one cohort and testing on another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from histoweave.data.section import Cohort
from histoweave.data.split import Split, SplitLeak


def external_split(
    train: Cohort, test: Cohort, *, same: Mapping[str, str] | None = None, same_patient: bool = False
) -> tuple[Cohort, tuple[Split, ...], list[str]]:
    """Both cohorts as one, the one fold that trains on the first and tests on the second, and the genes not matched.

    Genes are matched by name; those that are not in every section of both are reported and not predicted.

    Parameters
    ----------
    same
        Training patient → the test patient who is the same person under another name.
    same_patient
        Patients may stand in both cohorts, as with two parts of one slide; the split then says that its scores are not of
        a new patient.

    Raises
    ------
    SplitLeak
        Such a pair, or one name, is in both cohorts.
    """
    pairs = {a: b for a, b in (same or {}).items() if a in train.patients and b in test.patients}
    if pairs and not same_patient:
        raise SplitLeak(
            f"training patients {list(pairs)} are test patients {list(pairs.values())} under another name; leave their "
            "sections out of one of the cohorts (`--sections`, or `Cohort.where_patient`)"
        )
    common = set(train.genes("common")) & set(test.genes("common"))
    missing = [gene for gene in train.genes("common") if gene not in common]
    if not common:
        raise ValueError(
            f"the cohorts share no gene name (training: {', '.join(train.genes('common')[:3])}…; test: "
            f"{', '.join(test.genes('common')[:3])}…). Are both symbols, or both Ensembl ids?"
        )
    known = bool(pairs or {*train.patients} & {*test.patients})
    twice = sorted({*train.ids} & {*test.ids} | ({*train.patients} & {*test.patients} if not same_patient else set()))
    if twice:
        raise SplitLeak(
            f"{', '.join(map(repr, twice[:8]))} stand in both cohorts, as patient or section. If they are the same, take "
            "them out of one; if they only share a name, rename them in samples.csv, or with `prefixed(cohort, 'x-')`. Sections "
            "of one patient can be compared with `--same-patient`, which is no claim about a new patient"
        )
    joined = Cohort([*train, *test])
    split = Split(train=train.ids, test=test.ids, name="external", by="section" if known else "patient")
    return joined, (split.check(joined),), missing


def prefixed(cohort: Cohort, prefix: str) -> Cohort:
    """The cohort with a prefix before every section id and patient, for cohorts that share names but not people."""
    return Cohort(replace(s, id=prefix + s.id, patient=prefix + s.patient) for s in cohort)
