"""Which genes a target shares with what it is imputed from, by name as it is written."""

from __future__ import annotations

from dataclasses import dataclass

from histoweave.data.section import Cohort


@dataclass(frozen=True, slots=True)
class Matched:
    """Genes of a target and of what they are imputed from, by name as it is written.

    Attributes
    ----------
    shared
        In both, in the order of the target.
    imputed
        In the reference alone.
    unknown
        In the target alone: nothing is learnt from them.
    """

    shared: tuple[str, ...]
    imputed: tuple[str, ...]
    unknown: tuple[str, ...]

    @property
    def alike(self) -> tuple[str, ...]:
        """Genes of the target alone whose name is that of an imputed one but for its case: probably the same gene."""
        lower = {gene.lower() for gene in self.imputed}
        return tuple(gene for gene in self.unknown if gene.lower() in lower)

    def __str__(self) -> str:
        text = (
            f"{len(self.shared)} genes shared, {len(self.imputed)} to impute, {len(self.unknown)} of the target alone"
        )
        if self.alike:
            some = f"{len(self.alike)} of these are imputed ones but for case, such as {self.alike[0]!r}"
            text += f" (WARNING: {some}: rename them)"
        return text


def match_genes(origin: Cohort, target: Cohort, wanted: str | None = None) -> Matched:
    """What of a target is measured in the origin too, and what is to be imputed.

    Parameters
    ----------
    wanted
        Genes to impute, joined by commas; None for all that the target lacks.

    Raises
    ------
    ValueError
        No shared gene (with those that agree if case is ignored), nothing to impute, or a wanted gene that is not there.
    """
    known, here = origin.genes("common"), target.genes("common")
    there, anywhere = set(known), set(target.genes("union"))
    shared = tuple(gene for gene in here if gene in there)
    missing = tuple(gene for gene in known if gene not in anywhere)
    if not shared:
        alike = sorted({gene.lower() for gene in known} & {gene.lower() for gene in here})
        hint = (
            f" {len(alike)} names agree if case is ignored, such as {alike[0]!r}: rename the genes of one."
            if alike
            else ""
        )
        raise ValueError(
            f"the target and what it is imputed from share no gene name ({', '.join(here[:3])}, … and "
            f"{', '.join(known[:3])}, …). Are both symbols, or both Ensembl ids?{hint}"
        )
    if wanted is not None:
        asked = list(dict.fromkeys(gene.strip() for gene in wanted.split(",") if gene.strip()))
        if absent := sorted(set(asked) - set(missing), key=asked.index):
            raise ValueError(
                f"genes {', '.join(map(repr, absent[:5]))} cannot be imputed: the target measures them, or the reference does not"
            )
        missing = tuple(asked)
    if not missing:
        raise ValueError(f"the target measures all {len(known)} genes of the reference; there is nothing to impute")
    return Matched(shared, missing, tuple(gene for gene in here if gene not in there))
