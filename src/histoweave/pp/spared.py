"""The SpaRED pipeline as one recipe: filters, TPM, log2, medians, Moran's I, ComBat, deltas, and their layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from histoweave import _keys as K
from histoweave.data.gene_lengths import lookup
from histoweave.data.section import Cohort, Section
from histoweave.data.split import Split
from histoweave.pp.combat import Combat
from histoweave.pp.genes import GenePanel, auto_count, candidate_counts, mean_morans_i, morans_i
from histoweave.pp.median import median_fill, median_tables
from histoweave.pp.neighbors import neighbours
from histoweave.pp.real_data import GENE_COUNTS, REAL_DATA, SPOT_COUNTS, Filtered, in_genes, spared_filter, within
from histoweave.pp.spared_result import D_LOG1P, SparedResult, SparedSettings, add_deltas, add_noisy, train_mean
from histoweave.pp.tpm import log2p1, per_million


class _Kept(NamedTuple):
    """A section after the filters: its spots, raw counts (n, g) of the genes that pass, their log2 values."""

    section: Section
    counts: sparse.csr_matrix
    logs: sparse.csr_matrix


def spared(
    cohort: Cohort,
    split: Split,
    *,
    leak_free: bool = True,
    lengths: pd.DataFrame | None = None,
    combat_key: Literal["section", "patient"] | None = "section",
    held_out: Literal["complete", "predict"] = "predict",
    n_genes: int | Literal["auto"] = "auto",
    genes: Sequence[str] | None = None,
    spot_counts: tuple[float, float] = SPOT_COUNTS,
    gene_counts: tuple[float, float] = GENE_COUNTS,
    real_data: float = REAL_DATA,
) -> SparedResult:
    """Process the sections of a split as SpaRED does, by default without looking at those that are held out.

    Layers of each section, float32 (n, g) but for the counts: ``counts``; ``tpm`` (``cpm`` without lengths);
    ``log1p``, log2(x + 1) of it; ``d_log1p``, its gaps filled by medians; ``c_log1p``, ``c_d_log1p`` after ComBat;
    ``deltas``, ``d_deltas``, ``c_deltas``, ``c_d_deltas``, each minus the gene's mean over training spots; ``mask``,
    True where a count is above 0; ``noisy_c_d_log1p`` and ``noisy_c_d_deltas`` with the gaps put back (without ComBat
    ``noisy_d_log1p``, ``noisy_d_deltas``).

    Parameters
    ----------
    cohort
        Sections with counts. What is hidden in them (`Holdout.shown`) is missing here.
    split
        Section ids of each side. Sections of one patient may stand on several sides, as in SpaRED's intra-patient sets.
    leak_free
        Filters of genes, Moran's I (of ``log1p``, gaps as zeros) and ComBat from training sections only. Otherwise as
        published: from all sections of the split, and Moran's I of ``d_log1p``.
    lengths
        Table of `histoweave.data.gene_lengths`. Genes without a length are dropped and counted; without a table
        counts are not divided.
    combat_key
        What a batch is: a section, a patient, or None for no ComBat and no ``c_`` layers.
    held_out
        What ComBat does with a batch that has no training section, if `leak_free`: ``"complete"`` estimates its shift
        and scale from its own visible entries, ``"predict"`` leaves its values as they are.
    n_genes
        Number of genes; ``"auto"``: 128 where more than 320 pass the filters, else 32.
    genes
        Names that take the place of the filters of genes (a published list); Moran's I still ranks them.
    spot_counts, gene_counts, real_data
        Bounds of totals (strict) and share of the matrix that should be measured, see `spared_filter`.

    Raises
    ------
    ValueError
        A filter that leaves nothing, with the step; sections that are named twice or have no counts; lengths that fit
        no gene; more genes asked for than pass.

    Notes
    -----
    Mejia et al., "Enhancing gene expression prediction from histology images with spatial transcriptomics completion"
    (2024).

    **Differences from the authors' code.** The default is leak-free; `leak_free=False` is as published. Spots
    are filtered in every section by their own totals, which nothing is learnt for. With `leak_free`, ComBat of
    ``log1p`` looks at measured entries only, so that a held-out section with gaps can be compared with the training
    sections; as published, zeros count as values. A spot's total is that over all genes of its section, not over those
    common to all. Windows of the medians follow the lattice (`median_fill`), and so does the graph of Moran's I, which
    SpaRED builds of the six nearest spots. No permutations are drawn, because only the statistic is used. A mean of
    Moran's I leaves sections out where a gene is constant.
    """
    settings = SparedSettings(
        leak_free=leak_free,
        combat_key=combat_key,
        held_out=held_out,
        n_genes=n_genes,
        genes=None if genes is None else tuple(map(str, genes)),
        spot_counts=spot_counts,
        gene_counts=gene_counts,
        real_data=real_data,
    )
    sections = _sections(cohort, split)
    train = set(split.train)
    learning = _learning(sections, split, settings)
    names = Cohort(sections).genes("common")
    passed, alive, base_pairs = _genes(learning, names, settings, lengths)
    chosen = [name for name, keep in zip(names, alive, strict=True) if keep]
    kept, lost = _keep_spots(sections, names, passed.genes, alive, base_pairs, settings)
    learnt = [kept[section.id] for section in learning]
    ranking = _ranking(learnt, chosen, filled=not settings.leak_free)
    panel = _panel(ranking, settings, tuple(section.id for section in learning))
    at = pd.Index(chosen).get_indexer(pd.Index(panel.genes))
    unit = K.CPM if lengths is None else K.TPM
    tables = {id: _table(one, panel, at, unit, base_pairs, split) for id, one in kept.items()}
    combat = _adjust(tables, settings, train) if settings.combat_key else {}
    means = {layer: train_mean(tables, layer, train) for layer in _logs(tables)}
    seen = pd.Index(names).get_indexer(pd.Index(panel.genes))
    moran = (K.LOG1P if settings.leak_free else D_LOG1P) + K.MORAN
    for table in tables.values():
        table.var[moran] = ranking.loc[list(panel.genes)].to_numpy()
        table.var[K.LEAST_SEEN] = passed.detection.least[seen]
        table.var[K.SEEN] = passed.detection.overall[seen]
        for layer, mean in means.items():
            add_deltas(table, layer, mean)
        add_noisy(table, K.ADJUSTED * bool(combat) + D_LOG1P, means)
    dropped = lost | {step: n for step, n in passed.dropped.items() if step.startswith("genes")}
    dropped["genes without a length"] = int((passed.genes & ~alive).sum())
    return SparedResult(tables, panel, ranking, split, settings, unit, combat, means, dropped)


def spared_ranking(
    cohort: Cohort, split: Split, *, leak_free: bool = True, spot_counts: tuple[float, float] = SPOT_COUNTS
) -> pd.Series:
    """Mean Moran's I of all genes that pass the filters, best first: the ranking of `spared`, without its layers."""
    settings = SparedSettings(leak_free=leak_free, spot_counts=spot_counts)
    sections = _sections(cohort, split)
    learning, names = _learning(sections, split, settings), Cohort(sections).genes("common")
    passed, alive, base_pairs = _genes(learning, names, settings, None)
    kept, _ = _keep_spots(learning, names, passed.genes, alive, base_pairs, settings)
    chosen = [name for name, keep in zip(names, alive, strict=True) if keep]
    return _ranking(list(kept.values()), chosen, filled=not leak_free)


def _learning(sections: Sequence[Section], split: Split, settings: SparedSettings) -> list[Section]:
    """The sections that filters, Moran's I and ComBat look at."""
    return [section for section in sections if section.id in split.train or not settings.leak_free]


def _sections(cohort: Cohort, split: Split) -> list[Section]:
    ids = [*split.train, *split.val, *split.test]
    if not split.train:
        raise ValueError(f"split {split.name!r} has no training sections; name at least one")
    twice = sorted({id for id in ids if ids.count(id) > 1})
    if twice:
        raise ValueError(f"split {split.name!r} names sections {twice} more than once; give each one side")
    sections = list(cohort.subset(ids))
    empty = [section.id for section in sections if not section.spots.n_vars or np.isnan(section.library).any()]
    if empty:
        raise ValueError(f"sections {empty} have no counts (hidden, or none were given); leave them out of the split")
    return sections


def _genes(
    learning: Sequence[Section], names: Sequence[str], settings: SparedSettings, lengths: pd.DataFrame | None
) -> tuple[Filtered, np.ndarray, np.ndarray | None]:
    """The filters' outcome, the genes that also have a length (all,) bool, and their lengths (g,)."""
    listed = None if settings.genes is None else pd.Index(names).isin(settings.genes)
    absent = sorted(set(settings.genes or ()) - set(names))
    if absent:
        raise ValueError(
            f"{len(absent)} of {len(settings.genes or ())} genes that were named (as {absent[:3]}) are not common to all "
            "sections of the split; leave them out"
        )
    passed = spared_filter(
        [candidate_counts(section, names) for section in learning],
        [section.library for section in learning],
        spot_counts=settings.spot_counts,
        gene_counts=settings.gene_counts,
        share=settings.real_data,
        genes=listed,
        ids=[section.id for section in learning],
    )
    if lengths is None:
        return passed, passed.genes, None
    found = lookup(lengths, names)
    alive = passed.genes & ~np.isnan(found)
    if not alive.any():
        raise ValueError(
            f"none of the {int(passed.genes.sum())} genes that pass (as {names[int(passed.genes.argmax())]!r}) is in "
            "the table of lengths; expected identifiers or symbols of the same organism"
        )
    return passed, alive, found[alive]


def _keep_spots(
    sections: Sequence[Section],
    names: Sequence[str],
    real: np.ndarray,
    alive: np.ndarray,
    base_pairs: np.ndarray | None,
    settings: SparedSettings,
) -> tuple[dict[str, _Kept], dict[str, int]]:
    """Every section without the spots that the filters take, and how many they took."""
    kept, lost = {}, {"spots out of bounds": 0, "spots empty in the genes": 0}
    for section in sections:
        counts = candidate_counts(section, names)
        inside = within(section.library, settings.spot_counts)
        keep = inside & in_genes(counts, real)
        if not keep.any():
            raise ValueError(f"section {section.id!r} has no spot that passes the filters; leave it out of the split")
        lost["spots out of bounds"] += int((~inside).sum())
        lost["spots empty in the genes"] += int((inside & ~keep).sum())
        counts = counts[keep][:, alive]
        rest = section.with_spots(section.spots[keep].copy())
        kept[section.id] = _Kept(rest, counts, log2p1(per_million(counts, base_pairs)))
    return kept, lost


def _ranking(learnt: Sequence[_Kept], genes: Sequence[str], *, filled: bool) -> pd.Series:
    """Mean Moran's I of all genes that pass, best first, ties in their order."""
    rows = [
        morans_i(_median(one, one.logs.toarray()) if filled else one.logs, neighbours(one.section)) for one in learnt
    ]
    score = mean_morans_i(rows)
    order = np.argsort(-score, kind="stable")
    return pd.Series(score[order], index=pd.Index(genes)[order], name="moran")


def _panel(ranking: pd.Series, settings: SparedSettings, sections: tuple[str, ...]) -> GenePanel:
    n = auto_count(len(ranking)) if settings.n_genes == "auto" else settings.n_genes
    if n > len(ranking):
        raise ValueError(f"{n} genes were asked for, but {len(ranking)} pass the filters; ask for fewer or for 'auto'")
    return GenePanel(tuple(ranking.index[:n]), f"spared:{settings.n_genes}", sections)


def _median(one: _Kept, logs: np.ndarray) -> np.ndarray:
    return median_fill(logs, logs > 0, median_tables(one.section))


def _table(
    one: _Kept, panel: GenePanel, at: np.ndarray, unit: str, base_pairs: np.ndarray | None, split: Split
) -> AnnData:
    """The layers that a section has by itself."""
    spots, counts = one.section.spots, sparse.csr_matrix(one.counts[:, at])
    table = AnnData(
        X=counts, obs=spots.obs.copy(), var=pd.DataFrame(index=list(panel.genes)), obsm={K.SPATIAL: one.section.xy}
    )
    sides = {"train": split.train, "val": split.val, "test": split.test}
    table.obs[K.SECTION], table.obs[K.PATIENT] = one.section.id, one.section.patient
    table.obs[K.SPLIT] = next(side for side, ids in sides.items() if one.section.id in ids)
    if base_pairs is not None:
        table.var[K.EXON_LENGTH] = base_pairs[at]
    logs = one.logs[:, at].toarray()
    table.layers[K.COUNTS] = counts.copy()
    table.layers[unit] = per_million(one.counts, base_pairs)[:, at].toarray().astype(np.float32)
    table.layers[K.MASK] = counts.toarray() > 0
    table.layers[K.LOG1P] = logs.astype(np.float32)
    table.layers[D_LOG1P] = _median(one, logs)
    return table


def _adjust(tables: Mapping[str, AnnData], settings: SparedSettings, train: set[str]) -> dict[str, Combat]:
    """Add the layers after ComBat; what was learnt for each."""
    learnt = {}
    fitted = [table for id, table in tables.items() if id in train or not settings.leak_free]
    batch = np.concatenate([table.obs[settings.combat_key] for table in fitted])
    for layer in (K.LOG1P, D_LOG1P):
        masked = settings.leak_free and layer == K.LOG1P
        values = np.concatenate([table.layers[layer] for table in fitted])
        seen = np.concatenate([table.layers[K.MASK] for table in fitted]) if masked else None
        combat = learnt[layer] = Combat.fit(values, batch, seen)
        for name, group in _batches(tables, settings.combat_key).items():
            adjusted = np.concatenate([table.layers[layer] for table in group])
            if name in combat.batches:
                adjusted = combat.transform(adjusted, [name] * len(adjusted))
            elif settings.held_out == "complete":
                seen = np.concatenate([table.layers[K.MASK] for table in group]) if masked else None
                adjusted = combat.transform_new(adjusted, seen)
            ends = np.cumsum([table.n_obs for table in group])
            for table, part in zip(group, np.split(adjusted, ends[:-1]), strict=True):
                table.layers[K.ADJUSTED + layer] = part.copy()
    return learnt


def _batches(tables: Mapping[str, AnnData], key: str | None) -> dict[str, list[AnnData]]:
    """The sections of each batch: several where a batch is a patient."""
    made: dict[str, list[AnnData]] = {}
    for table in tables.values():
        made.setdefault(str(table.obs[key].iloc[0]), []).append(table)
    return made


def _logs(tables: Mapping[str, AnnData]) -> list[str]:
    return [layer for layer in next(iter(tables.values())).layers if layer.endswith(K.LOG1P)]
