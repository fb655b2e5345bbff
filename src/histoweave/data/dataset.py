"""One row of the catalog: what a public dataset is, where it is from, and how it is split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from histoweave.data.io.st_legacy import PatientRule
from histoweave.data.section import Cohort, SectionError
from histoweave.data.split import Split


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """One file to download: into which folder of the dataset, and how it is unpacked."""

    url: str
    name: str = ""
    into: str = ""
    unpack: Literal["", "zip", "tar"] = ""
    sha256: str | None = None

    @property
    def filename(self) -> str:
        """Name on disk."""
        return self.name or self.url.rsplit("/", 1)[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """One row of the catalog.

    Attributes
    ----------
    split
        ``"leave-one-patient-out"``, ``"folds"`` (then `folds` lists the test patients of each), ``"external"`` (only
        for testing) or ``"sides"`` (then `sides` lists the sections of each).
    overlaps
        Which patients of another dataset are the same person (or slide).
    files, by_hand
        What `fetch` downloads; where there is nothing to download as it is, what to do by hand.
    patient_is_serial
        The "patient" is the serial number of the capture slide: one person can be on several slides, and one slide can
        carry several people.
    parts
        Datasets whose sections together are those of this one; see `left_out`.
    n_genes, combat_key, min_spot_counts
        As SpaRED processes it: size of the gene panel, what a batch is, and the fewest counts of a spot (exclusive).
    """

    name: str
    title: str
    format: str
    platform: str
    organ: str
    subtype: str
    sections: int
    patients: tuple[str, ...]
    split: str
    licence: str
    citation: str
    homepage: str
    files: tuple[RemoteFile, ...] = ()
    by_hand: str = ""
    doi: str = ""
    organism: Literal["human", "mouse"] = "human"
    spots: int | None = None
    patient: str | None = None
    patient_of: Mapping[str, str] = field(default_factory=dict)
    patient_is_serial: bool = False
    folds: tuple[tuple[str, ...], ...] = ()
    sides: Split | None = None
    validation_selected: bool = False
    overlaps: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    parts: tuple[str, ...] = ()
    n_genes: int | None = None
    combat_key: Literal["", "section", "patient"] = ""
    min_spot_counts: int | None = None
    notes: str = ""

    @property
    def rule(self) -> PatientRule | None:
        """How the patient follows from a section id, for `read_cohort`; None where the files name it."""
        return self.patient_of or self.patient

    @property
    def fold_table(self) -> dict[str, list[str]]:
        """The published folds as a table for `from_table`: name of the fold → test patients."""
        return {f"fold {i}": list(patients) for i, patients in enumerate(self.folds, start=1)}

    @property
    def section_ids(self) -> tuple[str, ...]:
        """Sections of all sides, training first; empty where the catalog does not name sections."""
        return () if self.sides is None else self.sides.train + self.sides.val + self.sides.test

    @property
    def scope(self) -> Literal["", "intra-patient", "inter-patient"]:
        """Whether SpaRED's set is of cuts of one tissue or of several subjects.

        **Derived** from its ComBat key (``patient`` in seven sets): the table that says it is not public.
        """
        if not self.combat_key:
            return ""
        return "inter-patient" if self.combat_key == "patient" else "intra-patient"

    @property
    def flags(self) -> tuple[str, ...]:
        """What must be known before numbers on this dataset are believed or averaged, in few words."""
        said = {
            "'patient' is a capture-slide serial": self.patient_is_serial,
            "validation-selected": self.validation_selected,
            f"made of {' and '.join(self.parts)}": bool(self.parts),
            f"{self.scope} (derived)": bool(self.scope),
        }
        return tuple(text for text, holds in said.items() if holds)

    def published_split(self, cohort: Cohort) -> Split:
        """The published sides, checked against a cohort that was read.

        Raises
        ------
        SectionError, SplitLeak
            No published sides, or sections that the cohort lacks; a patient on two sides where none may be.
        """
        if self.sides is None:
            raise SectionError(f"dataset {self.name!r} has no published sides; its split is {self.split!r}")
        missing = [id for id in self.section_ids if id not in set(cohort.ids)]
        if missing:
            raise SectionError(
                f"dataset {self.name!r}: the cohort lacks sections {missing} of the published split; it has "
                f"{list(cohort.ids[:8])}. Section ids are the names of their folders, or the column 'id' of samples.csv"
            )
        return self.sides.check(cohort)
