"""Gene panels: which genes are predicted, chosen on training sections only."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.stats import rankdata

from histoweave.data.section import Cohort, Section
from histoweave.pp.neighbors import neighbours
from histoweave.pp.real_data import spared_filter
from histoweave.pp.smooth import mean_operator
from histoweave.pp.tpm import log2p1, per_million

_BINS = 20  # of mean expression, in the "seurat" flavour of scanpy's highly variable genes
_CHUNK = 2**17  # dense values held at a time in Moran's I: 1 MiB, which stays in the cache
_AUTO = (
    128,
    320,
    32,
)  # genes of SpaRED: the first number where more than the second survive its filters, else the third


@dataclass(frozen=True, slots=True)
class GenePanel:
    """The genes of a prediction, in the order of its columns.

    Attributes
    ----------
    genes
        Unique names.
    recipe
        How they were chosen.
    trained_on
        Ids of the sections whose values chose them.
    """

    genes: tuple[str, ...]
    recipe: str
    trained_on: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("genes", "trained_on"):
            object.__setattr__(self, name, tuple(str(item) for item in getattr(self, name)))
        _check_unique(self.genes, "the gene panel")
        if not self.genes:
            raise ValueError("the gene panel is empty; give at least one gene")

    def __len__(self) -> int:
        return len(self.genes)

    @property
    def digest(self) -> str:
        """SHA-256 of the names in their order, hexadecimal."""
        return hashlib.sha256(json.dumps(self.genes).encode()).hexdigest()

    def columns(self, names: Sequence[str] | pd.Index) -> np.ndarray:
        """Where the panel's genes are among the names given: int64 (g,), -1 where missing."""
        return pd.Index(names).get_indexer(pd.Index(self.genes)).astype(np.int64)

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe values."""
        return {"genes": list(self.genes), "recipe": self.recipe, "trained_on": list(self.trained_on)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GenePanel:
        """The panel of `to_dict`."""
        return cls(tuple(values["genes"]), str(values["recipe"]), tuple(values["trained_on"]))


def select_panel(train: Cohort, recipe: str, candidates: Sequence[str]) -> GenePanel:
    """The genes that score best in the training sections; ties in the order of the candidates.

    Parameters
    ----------
    train
        Training sections.
    recipe
        ``name:count``, or ``list:A,B``. The names:

        - ``top-mean``: mean raw count over all spots
        - ``rank-sum``: rank of the mean plus rank of the variance of ln(1 + counts per million) over all spots
        - ``rank-sum-raw``: the same of the raw counts
        - ``hvg``: normalised dispersion of counts per 10,000 in 20 bins of mean expression (the "seurat" flavour of
          scanpy), averaged over sections; a gene that is absent or constant in a section counts as 0 there
        - ``moran``: Moran's I of ln(1 + counts per million) over the touching spots of a section, averaged over
          sections; constant genes count as 0
        - ``spared``: SpaRED's filters of spots and genes (`spared_filter`), then Moran's I of log2(1 + counts per
          million of the genes left), averaged over the sections in which it is defined; ``spared:auto`` takes 128
          genes where more than 320 pass, else 32
        - ``list``: the genes named, in their order

        A candidate that a section lacks is an error, or is taken as 0 there with ``+union``: ``top-mean+union:250``.
    candidates
        Names to choose from. Names are never hidden, so these may be the names common to all sections of a cohort.

    Raises
    ------
    ValueError
        A recipe that cannot be read, more genes than candidates, duplicate or missing candidates, no sections.

    Notes
    -----
    Sections are read one after the other; their counts stay sparse.
    """
    candidates = tuple(str(name) for name in candidates)
    _check_unique(candidates, "the candidates")
    if len(train) == 0:
        raise ValueError("a gene panel is chosen on training sections, and there are none")
    check_recipe(recipe, candidates)
    name, union, argument = _read_recipe(recipe)
    if name == "list":
        return GenePanel(_listed(argument), recipe, ())
    score = _SCORES[name](train, candidates, union=union)  # (g,), NaN for genes that the recipe filters out
    alive = int((~np.isnan(score)).sum())
    wanted = auto_count(alive) if argument == "auto" else _read_count(recipe, argument, alive, "genes that pass")
    best = np.argsort(-score, kind="stable")[:wanted].tolist()
    return GenePanel(tuple(candidates[i] for i in best), recipe, train.ids)


def check_recipe(recipe: str, candidates: Sequence[str]) -> None:
    """`ValueError` if `select_panel` could not follow the recipe among these candidates; no counts are looked at."""
    name, _, argument = _read_recipe(recipe)
    if name == "spared" and argument == "auto":
        return
    if name != "list":
        _read_count(recipe, argument, len(candidates))
        return
    known = set(candidates)
    unknown = [gene for gene in _listed(argument) if gene not in known]
    if unknown:
        raise ValueError(f"recipe {recipe!r}: genes {_some(unknown)} are not among the {len(candidates)} candidates")


def auto_count(survivors: int) -> int:
    """How many genes SpaRED takes of those that its filters leave: 128 of more than 320, else 32, never more than all."""
    many, enough, few = _AUTO
    return min(survivors, many if survivors > enough else few)


def candidate_counts(section: Section, candidates: Sequence[str], *, union: bool = False) -> sparse.csr_matrix:
    """Raw counts of the candidates, CSR (n, g); columns that the section lacks are 0 with `union`, else an error."""
    at = section.genes.get_indexer(pd.Index(candidates))
    missing = np.flatnonzero(at < 0).tolist()
    if len(missing) and not (union and section.spots.n_vars):
        raise ValueError(
            f"section {section.id!r} lacks {len(missing)} of {len(candidates)} candidate genes "
            f"({_some([candidates[i] for i in missing])}); choose among the genes common to all sections, "
            "or write '+union' after the name of the recipe to take them as 0"
        )
    counts = sparse.csr_matrix(section.spots.X[:, np.maximum(at, 0)])
    return sparse.csr_matrix(counts @ sparse.diags_array((at >= 0).astype(counts.dtype))) if len(missing) else counts


def morans_i(values: Any, nbr: np.ndarray) -> np.ndarray:
    """Moran's I per gene with row-normalised weights (every neighbour of a spot weighs the same, and they sum to 1).

    I = n / W · Σᵢⱼ wᵢⱼ zᵢ zⱼ / Σᵢ zᵢ², with z the deviation from the mean and W the sum of all weights, that is the
    number of spots that have a neighbour.

    Parameters
    ----------
    values
        (n, g), dense or sparse.
    nbr
        Neighbour table (n, k).

    Returns
    -------
    (g,) float64; NaN for constant genes, and for all where no spot has a neighbour.
    """
    weights = mean_operator(nbr, include_self=False)
    total = weights.sum()
    columns: Any = sparse.csc_matrix(values) if sparse.issparse(values) else np.asarray(values)
    n, g = columns.shape
    result = np.full(g, np.nan)
    step = max(8, _CHUNK // max(n, 1))
    for start in range(0, g if total > 0 else 0, step):
        part = columns[:, start : start + step]  # (n, chunk)
        z = (part.toarray() if sparse.issparse(part) else part).astype(np.float64, order="C")
        varies = z.min(axis=0) < z.max(axis=0)
        z -= z.mean(axis=0)
        spread = np.where(varies, np.einsum("ng,ng->g", z, z), 1.0)
        together = np.einsum("ng,ng->g", z, weights @ z)
        result[start : start + step] = np.where(varies, n / total * together / spread, np.nan)
    return result


def mean_morans_i(rows: Iterable[np.ndarray]) -> np.ndarray:
    """Mean of Moran's I (g,) over sections, leaving out NaN; -inf for genes for which it is defined nowhere."""
    values = np.stack(list(rows))  # (s, g)
    known = ~np.isnan(values)
    total = np.where(known, values, 0.0).sum(axis=0)
    return np.where(known.any(axis=0), total / np.maximum(known.sum(axis=0), 1), -np.inf)


def _some(names: Sequence[str], limit: int = 5) -> str:
    shown = ", ".join(repr(name) for name in names[:limit])
    return shown + (", …" if len(names) > limit else "")


def _check_unique(names: tuple[str, ...], what: str) -> None:
    index = pd.Index(names)
    if not index.is_unique:
        raise ValueError(f"{what} name genes twice: {_some(list(index[index.duplicated()].unique()))}; name each once")


def _read_recipe(recipe: str) -> tuple[str, bool, str]:
    head, colon, argument = recipe.partition(":")
    name, plus, modifier = head.strip().partition("+")
    known = [*_SCORES, "list"]
    if name not in known:
        match = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {match[0]!r}? " if match else ""
        raise ValueError(f"gene recipe {recipe!r} is unknown; {hint}expected name:count with one of {', '.join(known)}")
    if not colon or not argument.strip():
        example = "list:GNAS,CLDN4" if name == "list" else f"{name}:250"
        raise ValueError(f"gene recipe {recipe!r} says no {'names' if name == 'list' else 'count'}; write {example!r}")
    if plus and (modifier != "union" or name == "list"):
        raise ValueError(
            f"gene recipe {recipe!r}: '+{modifier}' is not understood; '+union' goes with {', '.join(_SCORES)}"
        )
    return name, bool(plus), argument.strip()


def _listed(argument: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in argument.split(",") if part.strip())


def _read_count(recipe: str, argument: str, available: int, what: str = "candidates") -> int:
    if not argument.isdecimal() or int(argument) < 1:
        raise ValueError(f"gene recipe {recipe!r}: {argument!r} is not a number of genes of 1 or more")
    if int(argument) > available:
        raise ValueError(f"gene recipe {recipe!r} asks for more genes than the {available} {what}; ask for fewer")
    return int(argument)


def _scaled(
    train: Cohort, names: Sequence[str], *, union: bool, scale: float
) -> Iterator[tuple[Section, sparse.csr_matrix]]:
    """Each section with its counts per `scale` counts of the spot's whole library, CSR float64 (n, g)."""
    for section in train:
        counts = candidate_counts(section, names, union=union).astype(np.float64)
        library = section.library
        factor = np.divide(scale, library, out=np.zeros_like(library), where=library > 0)
        counts.data *= np.repeat(factor, np.diff(counts.indptr))
        yield section, counts


def _log1p_cpm(train: Cohort, names: Sequence[str], *, union: bool) -> Iterator[tuple[Section, sparse.csr_matrix]]:
    for section, counts in _scaled(train, names, union=union, scale=1e6):
        np.log1p(counts.data, out=counts.data)
        yield section, counts


def _moments(tables: Iterator[sparse.csr_matrix], g: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and unbiased variance per column over the rows of all tables, both (g,)."""
    n, first, second = 0, np.zeros(g), np.zeros(g)
    for table in tables:
        n += table.shape[0]
        first += np.bincount(table.indices, weights=table.data, minlength=g)
        second += np.bincount(table.indices, weights=table.data**2, minlength=g)
    mean = first / n
    return mean, np.maximum(second - n * mean**2, 0.0) / max(n - 1, 1)


def _top_mean(train: Cohort, names: tuple[str, ...], *, union: bool) -> np.ndarray:
    total = np.zeros(len(names))
    for section in train:
        total += np.asarray(candidate_counts(section, names, union=union).sum(axis=0, dtype=np.float64)).ravel()
    return total / train.n


def _rank_sum(train: Cohort, names: tuple[str, ...], *, union: bool) -> np.ndarray:
    mean, variance = _moments((table for _, table in _log1p_cpm(train, names, union=union)), len(names))
    return rankdata(mean) + rankdata(variance)


def _rank_sum_raw(train: Cohort, names: tuple[str, ...], *, union: bool) -> np.ndarray:
    tables = (candidate_counts(section, names, union=union).astype(np.float64) for section in train)
    mean, variance = _moments(tables, len(names))
    return rankdata(mean) + rankdata(variance)


def _hvg(train: Cohort, names: tuple[str, ...], *, union: bool) -> np.ndarray:
    score = np.zeros(len(names))
    for _, table in _scaled(train, names, union=union, scale=1e4):
        score += _normalised_dispersion(*_moments(iter([table]), len(names)))
    return score / len(train)


def _normalised_dispersion(mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """How far ln(variance / mean) lies above that of genes of like mean, in their standard deviations: (g,)."""
    varies = (mean > 0) & (variance > 0)
    score = np.zeros(len(mean))
    if not varies.any():
        return score
    level = np.log1p(mean)
    edges = np.linspace(level.min(), level.max(), _BINS + 1)
    at = np.clip(np.searchsorted(edges, level, side="left") - 1, 0, _BINS - 1)[varies]  # bins closed on the right
    dispersion = np.log(variance[varies] / mean[varies])
    size = np.maximum(np.bincount(at, minlength=_BINS), 1)
    centre = np.bincount(at, weights=dispersion, minlength=_BINS) / size
    away = np.bincount(at, weights=(dispersion - centre[at]) ** 2, minlength=_BINS)
    sd = np.sqrt(away / np.maximum(size - 1, 1))
    # A gene alone in its bin has nothing to be compared with; scanpy's convention gives it a score of 1.
    alone = (size == 1)[at]
    score[varies] = np.where(alone, 1.0, (dispersion - centre[at]) / np.where(sd > 0, sd, 1.0)[at])
    return score


def _moran(train: Cohort, names: tuple[str, ...], *, union: bool) -> np.ndarray:
    score = np.zeros(len(names))
    for section, table in _log1p_cpm(train, names, union=union):
        score += np.nan_to_num(morans_i(table, neighbours(section)), nan=0.0)
    return score / len(train)


def _spared(train: Cohort, names: tuple[str, ...], *, union: bool) -> np.ndarray:
    tables = [candidate_counts(section, names, union=union) for section in train]
    passed = spared_filter(tables, [section.library for section in train], ids=train.ids)
    score = np.full(len(names), np.nan)
    score[passed.genes] = mean_morans_i(
        morans_i(log2p1(per_million(table[keep][:, passed.genes])), neighbours(section.with_spots(section.spots[keep])))
        for section, table, keep in zip(train, tables, passed.spots, strict=True)
    )
    return score


_SCORES: dict[str, Callable[..., np.ndarray]] = {
    "top-mean": _top_mean,
    "rank-sum": _rank_sum,
    "rank-sum-raw": _rank_sum_raw,
    "hvg": _hvg,
    "moran": _moran,
    "spared": _spared,
}
