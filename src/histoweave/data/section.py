"""`Section` and `Cohort`: one tissue section with its counts and image, and an ordered set of them.

All content checks live in `make_section`, so that every reader gives the same errors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from histoweave import _keys as K

if TYPE_CHECKING:
    from histoweave.data.image import SlideImage

Platform = Literal["st", "visium", "visium_hd", "xenium", "reference", "image"]
PITCH_UM: dict[str, float] = {"st": 200.0, "visium": 100.0}  # centre-to-centre distance given by the manufacturers


class SectionError(ValueError):
    """The content of a section is not usable; the message says what was given, expected, and what to do."""


def _some(names: Iterable[object], limit: int = 5) -> str:
    """The first few names quoted, for an error message."""
    listed = [repr(str(name)) for name in names]
    return ", ".join(listed[:limit]) + (f", … ({len(listed)} in all)" if len(listed) > limit else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One tissue section. Build it with `make_section`, which checks the content.

    Attributes
    ----------
    id, patient
        Name of the section, and of the patient it comes from: the unit that never straddles a split.
    spots
        ``X``: raw counts, CSR float32 (n, G), or (n, 0) when there are none; ``obsm["spatial"]``: level-0 pixel
        centres (x, y), float64; ``obs["array_row"]``, ``obs["array_col"]`` on lattices; ``obs["library"]``: total
        counts per spot over all genes.
    um_per_px
        Micrometres per level-0 pixel; None only where nothing is looked at (a reference without an image).
    platform
        Decides lattice and spot size.
    image
        Lazy handle; None is legal where no image is needed.
    """

    id: str
    patient: str
    spots: AnnData
    um_per_px: float | None
    platform: Platform
    image: SlideImage | None = None

    @property
    def n(self) -> int:
        """Number of spots."""
        return int(self.spots.n_obs)

    @property
    def genes(self) -> pd.Index:
        """Gene names, in the order of the columns of ``spots.X``."""
        return self.spots.var_names

    @property
    def xy(self) -> np.ndarray:
        """Level-0 pixel centres (n, 2), float64, (x, y)."""
        return np.asarray(self.spots.obsm[K.SPATIAL], dtype=np.float64)

    @property
    def array_rc(self) -> np.ndarray | None:
        """Lattice coordinates (n, 2), int64, (row, column); None off lattices."""
        if K.ROW not in self.spots.obs:
            return None
        return self.spots.obs[[K.ROW, K.COL]].to_numpy(dtype=np.int64)

    @property
    def library(self) -> np.ndarray:
        """Total counts per spot over all genes (n,), float64; NaN where the counts are hidden."""
        return self.spots.obs[K.LIBRARY].to_numpy(dtype=np.float64)

    def counts(self, genes: Sequence[str]) -> sparse.csr_matrix:
        """Raw counts of the named genes, CSR (n, g), in the order asked; a missing gene is a `KeyError`."""
        at = self.genes.get_indexer(pd.Index(genes))
        if (at < 0).any():
            missing = [gene for gene, i in zip(genes, at, strict=True) if i < 0]
            raise KeyError(f"section {self.id!r} has no gene {_some(missing)}; its genes: {len(self.genes)}")
        return sparse.csr_matrix(self.spots.X[:, at])

    def with_spots(self, spots: AnnData) -> Section:
        """The same section around another table of spots."""
        return replace(self, spots=spots)


def make_section(
    *,
    id: str,
    patient: str,
    counts: Any,
    genes: Sequence[str],
    xy: Any,
    platform: Platform,
    um_per_px: float | None,
    image: SlideImage | None = None,
    array_rc: Any = None,
    names: Sequence[str] | None = None,
    obs: Mapping[str, Any] | pd.DataFrame | None = None,
) -> Section:
    """A checked `Section`.

    Parameters
    ----------
    counts
        Raw counts (n, G), dense or sparse; None for a section without counts.
    genes
        Names (G,); case and order are kept.
    xy
        Level-0 pixel centres (n, 2), (x, y).
    um_per_px
        Micrometres per level-0 pixel. Where None, the image's own value is taken.
    array_rc
        Lattice coordinates (n, 2) as (row, column), integers.
    names
        Spot names (n,); default ``"0"``, ``"1"``, ….
    obs
        Further columns, aligned with the spots.

    Raises
    ------
    SectionError
        Negative, non-integer or missing counts; duplicate genes, spot names or lattice positions; no spot; shapes that
        do not agree; spots outside the image; an image whose µm per px is unknown.
    """
    if platform not in get_args(Platform):
        raise SectionError(f"section {id!r}: platform {platform!r} is unknown; expected one of {get_args(Platform)}")
    xy = np.asarray(xy, dtype=np.float64)
    if xy.ndim != 2 or xy.shape[1] != 2:
        raise SectionError(f"section {id!r}: positions have shape {xy.shape}; expected (spots, 2) as (x, y) in px")
    n = len(xy)
    if n == 0:
        raise SectionError(f"section {id!r} is empty: it has no spots. Remove it, or loosen the filter that emptied it")
    matrix = _checked_counts(id, counts, n, len(genes))
    gene_index = pd.Index([str(gene) for gene in genes], dtype=object)
    spot_index = pd.Index(
        [str(name) for name in names] if names is not None else np.arange(n).astype(str), dtype=object
    )
    _check_names(id, gene_index, spot_index, n)
    if not np.isfinite(xy).all():
        bad = spot_index[~np.isfinite(xy).all(axis=1)]
        raise SectionError(f"section {id!r}: spots without a finite position: {_some(bad)}; drop or correct them")
    table = pd.DataFrame(obs, index=None if obs is None or isinstance(obs, pd.DataFrame) else spot_index)
    table = pd.DataFrame(index=spot_index) if obs is None else table.set_axis(spot_index, axis=0)
    if array_rc is not None:
        table[[K.ROW, K.COL]] = _checked_lattice(id, array_rc, spot_index)
    if K.LIBRARY not in table:
        total = np.asarray(matrix.sum(axis=1)).ravel()
        table[K.LIBRARY] = total if matrix.shape[1] else np.full(n, np.nan)
    um_per_px = _checked_scale(id, um_per_px, image)
    if image is not None:
        _check_inside(id, xy, spot_index, image.size)
    spots = AnnData(X=matrix, obs=table, var=pd.DataFrame(index=gene_index), obsm={K.SPATIAL: xy})
    return Section(id=str(id), patient=str(patient), spots=spots, um_per_px=um_per_px, platform=platform, image=image)


def _checked_counts(id: str, counts: Any, n: int, n_genes: int) -> sparse.csr_matrix:
    if counts is None:
        return sparse.csr_matrix((n, n_genes), dtype=np.float32)
    matrix = sparse.csr_matrix(counts)
    if matrix.shape != (n, n_genes):
        raise SectionError(
            f"section {id!r}: counts have shape {matrix.shape}, but there are {n} positions and {n_genes} gene names"
        )
    values = matrix.data
    if values.size and np.issubdtype(values.dtype, np.floating):
        if not np.isfinite(values).all():
            raise SectionError(
                f"section {id!r}: {int((~np.isfinite(values)).sum())} counts are NaN or infinite; "
                "expected raw counts. Mark missing spots by dropping them"
            )
        if (values != np.rint(values)).any():
            example = values[values != np.rint(values)][0]
            raise SectionError(
                f"section {id!r}: counts are not integers (for example {example:g}); expected raw counts, "
                "not normalised or log values. Give the layer that holds the raw counts"
            )
    if values.size and values.min() < 0:
        raise SectionError(
            f"section {id!r}: {int((values < 0).sum())} counts are negative (smallest {values.min():g}); "
            "expected raw counts"
        )
    return matrix.astype(np.float32)


def _check_names(id: str, genes: pd.Index, spots: pd.Index, n: int) -> None:
    if len(spots) != n:
        raise SectionError(f"section {id!r}: {len(spots)} spot names were given for {n} positions")
    for kind, index in (("gene", genes), ("spot", spots)):
        if not index.is_unique:
            repeated = index[index.duplicated()].unique()
            raise SectionError(f"section {id!r}: duplicate {kind} names {_some(repeated)}; rename or merge them first")


def _checked_lattice(id: str, array_rc: Any, spots: pd.Index) -> np.ndarray:
    given = np.asarray(array_rc)
    rc = given.astype(np.int64)
    if rc.shape != (len(spots), 2) or (given != rc).any():
        raise SectionError(
            f"section {id!r}: lattice coordinates have shape {given.shape} and type {given.dtype}; "
            f"expected integers ({len(spots)}, 2) as (row, column)"
        )
    repeated = pd.MultiIndex.from_arrays([rc[:, 0], rc[:, 1]]).duplicated(keep=False)
    if repeated.any():
        raise SectionError(f"section {id!r}: spots {_some(spots[repeated])} share a lattice position; keep one of each")
    return rc


def _checked_scale(id: str, um_per_px: float | None, image: SlideImage | None) -> float | None:
    scale = um_per_px if um_per_px is not None or image is None else image.um_per_px
    if scale is None and image is not None:
        raise SectionError(
            f"section {id!r}: the µm per px of its image is unknown and the file does not say; give it "
            "(`--mpp 0.5`, the `mpp` column of samples.csv, or `um_per_px=`)"
        )
    if scale is not None and not (np.isfinite(scale) and 0.01 <= scale <= 100):
        raise SectionError(f"section {id!r}: {scale!r} µm per px was given; expected a number between 0.01 and 100")
    return None if scale is None else float(scale)


def _check_inside(id: str, xy: np.ndarray, spots: pd.Index, size: tuple[int, int]) -> None:
    outside = (xy < 0).any(axis=1) | (xy >= np.asarray(size)).any(axis=1)
    if outside.any():
        raise SectionError(
            f"section {id!r}: {int(outside.sum())} of {len(xy)} spots lie outside the image of {size[0]} × {size[1]} px "
            f"({_some(spots[outside])}; positions reach x {xy[:, 0].max():.0f}, y {xy[:, 1].max():.0f}). Is this the "
            "full-resolution image that the positions refer to?"
        )


class Cohort(Sequence[Section]):
    """An ordered, immutable set of sections with unique ids."""

    __slots__ = ("_sections",)

    def __init__(self, sections: Iterable[Section]) -> None:
        self._sections = tuple(sections)
        ids = pd.Index([section.id for section in self._sections])
        if not ids.is_unique:
            raise SectionError(f"duplicate section ids {_some(ids[ids.duplicated()].unique())}; give each its own")

    def __getitem__(self, item: Any) -> Any:
        """The section at a position or with an id; a slice gives a cohort."""
        if isinstance(item, str):
            for section in self._sections:
                if section.id == item:
                    return section
            raise KeyError(f"no section {item!r}; there are {_some(self.ids)}")
        return Cohort(self._sections[item]) if isinstance(item, slice) else self._sections[item]

    def __len__(self) -> int:
        return len(self._sections)

    def __iter__(self) -> Iterator[Section]:
        return iter(self._sections)

    def __repr__(self) -> str:
        return f"Cohort({len(self)} sections of {len(self.patients)} patients, {self.n} spots)"

    @property
    def ids(self) -> tuple[str, ...]:
        """Section ids, in order."""
        return tuple(section.id for section in self._sections)

    @property
    def patients(self) -> tuple[str, ...]:
        """Patients, each once, in order of appearance."""
        return tuple(dict.fromkeys(section.patient for section in self._sections))

    @property
    def n(self) -> int:
        """Spots over all sections."""
        return sum(section.n for section in self._sections)

    @property
    def obs(self) -> pd.DataFrame:
        """One row per section: patient, platform, spots, genes, µm per px, whether there is an image."""
        return pd.DataFrame(
            {
                "patient": [s.patient for s in self],
                "platform": [s.platform for s in self],
                "spots": [s.n for s in self],
                "genes": [len(s.genes) for s in self],
                "um_per_px": [s.um_per_px for s in self],
                "image": [s.image is not None for s in self],
            },
            index=pd.Index(self.ids, name="section"),
        )

    def genes(self, how: Literal["common", "union"] = "common") -> tuple[str, ...]:
        """Gene names present in all sections, or in any; in the order of the first section that has them."""
        if how not in ("common", "union"):
            raise ValueError(f"how={how!r}; expected 'common' or 'union'")
        sets = [set(section.genes) for section in self]
        seen = dict.fromkeys(gene for section in self for gene in section.genes)
        keep = set.intersection(*sets) if how == "common" and sets else set(seen)
        return tuple(gene for gene in seen if gene in keep)

    def subset(self, ids: Iterable[str]) -> Cohort:
        """The named sections, in the order of the cohort; an unknown id is a `KeyError`."""
        wanted = list(ids)
        for id in wanted:
            self[id]
        return Cohort(section for section in self if section.id in set(wanted))

    def where_patient(self, patients: Iterable[str]) -> Cohort:
        """The sections of the named patients."""
        wanted = set(patients)
        return Cohort(section for section in self if section.patient in wanted)

    def with_image(self) -> Cohort:
        """The sections that have an image."""
        return Cohort(section for section in self if section.image is not None)

    def to_anndata(self) -> AnnData:
        """All spots in one table over the union of genes (absent genes are 0), with section and patient in ``obs``."""
        from anndata import concat

        tables = {section.id: section.spots for section in self}
        joined = concat(tables, join="outer", label=K.SECTION, index_unique="-", fill_value=0)
        joined.obs[K.PATIENT] = np.repeat([section.patient for section in self], [section.n for section in self])
        return joined
