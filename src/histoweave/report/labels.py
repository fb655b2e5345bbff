"""Which labels of a cohort the report compares: what ``--labels`` says."""

from __future__ import annotations

from dataclasses import dataclass

from histoweave import _keys as K
from histoweave.bio import Contrast, contrast
from histoweave.bio.de import MIN_SPOTS
from histoweave.data.section import Cohort, Section


@dataclass(frozen=True, slots=True)
class Labels:
    """What ``--labels`` says: a column of ``obs``, and which of its labels are compared."""

    column: str = K.LABEL
    a: str | None = None
    b: str | None = None

    @classmethod
    def read(cls, text: str | None, cohort: Cohort | None) -> Labels:
        """``column``, ``column=label`` (against all others) or ``column=label:label``.

        Raises
        ------
        ValueError
            A column that no section of the cohort has; labels without a cohort, which would hold them.
        """
        if text is None:
            return cls()
        column, _, rest = text.partition("=")
        a, _, b = (part.strip() for part in rest.partition(":"))
        if cohort is None:
            raise ValueError(f"labels {text!r} were asked for, but labels are in the cohort: give it too (`--cohort`)")
        if not any(column.strip() in section.spots.obs for section in cohort):
            known = sorted({str(name) for section in cohort for name in section.spots.obs})
            raise ValueError(f"no section has a column {column.strip()!r}; the columns are {', '.join(known)}")
        return cls(column.strip(), a or None, b or None)

    def there(self, section: Section) -> bool:
        """Whether any spot of the section is labelled."""
        return self.column in section.spots.obs and bool(section.spots.obs[self.column].notna().any())

    def contrast(self, section: Section | None) -> tuple[Contrast | None, list[str]]:
        """The two sets of spots of a section; or None, and why there are none."""
        if section is None:
            return None, ["No labels: the cohort was not given, so nothing is compared between regions."]
        if not self.there(section):
            return None, [
                f"No labels: section {section.id} has no spot labelled in column {self.column!r}, so there is no "
                "differential expression and no AUC."
            ]
        given = section.spots.obs[self.column]
        present = set(given.dropna().astype(str))
        absent = [name for name in (self.a, self.b) if name is not None and name not in present]
        if absent:
            names = ", ".join(sorted(present))
            return None, [f"No comparison: section {section.id} has no spot labelled {absent[0]!r}; it has {names}."]
        sets = contrast(given, self.a, self.b)
        if not sets.testable:
            return None, [
                f"No comparison: {sets.a} has {int(sets.is_a.sum())} spots and {sets.b} {int(sets.is_b.sum())}; each needs "
                f"{MIN_SPOTS}."
            ]
        return sets, []
