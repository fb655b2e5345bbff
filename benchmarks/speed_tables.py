"""Speed after the encoder: batches, smoothing, correlations, and tables of counts."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.clock import Case, Disagreement, Pair, Run
from histoweave.batch import Batch, Needs
from histoweave.bench.metrics import pearson
from histoweave.data.io._tsv import read_count_table
from histoweave.data.section import Cohort, make_section
from histoweave.embed import SectionFeatures
from histoweave.embed.context import lay_tiles
from histoweave.feed import Feed
from histoweave.pp import GenePanel, Target, grid8, smooth
from histoweave.view import FittedView, View

CONTEXT = 5  # side of the neighbour view in tiles
PITCH = 10  # px between spots of a made-up lattice
_FIELDS = ("emb", "ctx_emb", "ctx_mask", "y")


@dataclass(frozen=True, slots=True)
class Close:
    """Whether two streams of arrays agree to `tolerance`, relative to 1 or to the value, whichever is larger."""

    tolerance: float

    def __call__(self, ours: Iterable[Any], theirs: Iterable[Any]) -> str:
        largest = [self._difference(a, b) for a, b in zip(ours, theirs, strict=True)]
        if not largest:
            raise Disagreement("there is nothing to compare")
        worst = max(largest)
        return "same values" if worst == 0 else f"within {worst:.0e}"

    def _difference(self, ours: Any, theirs: Any) -> float:
        a, b = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
        if a.shape != b.shape:
            raise Disagreement(f"results of shapes {a.shape} and {b.shape}")
        largest = float((np.abs(a - b) / np.maximum(np.abs(b), 1)).max(initial=0.0))
        if not largest <= self.tolerance:  # also where either is NaN
            raise Disagreement(f"results differ by {largest:.2g}, more than {self.tolerance:g}")
        return largest


# -- feed ---------------------------------------------------------------------------------------------------------


def feed(*, sections: int, side: int, width: int, genes: int, batch: int) -> Iterator[Case]:
    """Batches with embedding and 5 × 5 context, standardised: `Feed.batches` against one dict per spot and collate.

    `sections` of `side` × `side` spots, embeddings of `width`. Both walk the spots in the same random order.
    """
    rng = np.random.default_rng(0)
    cohort = Cohort([_lattice_section(rng, f"s{i}", side, genes) for i in range(sections)])
    features = {section.id: _features(rng, section.xy, width) for section in cohort}
    view = FittedView(
        view=View(target=Target.preset("log1p-cpm")),
        genes=GenePanel(tuple(cohort.genes("common")), "benchmark"),
        trained_on=cohort.patients,
        shift=rng.normal(size=width).astype(np.float32),
        scale=rng.uniform(0.5, 2, size=width).astype(np.float32),
    )
    ours = Feed(view, cohort, features, Needs.EMB | Needs.CTX_EMB)
    dicts = {kind: SpotDicts(view, cohort, features, kind) for kind in (torch.float32, torch.float16)}
    half = torch.ones(batch, CONTEXT**2, width, dtype=torch.float16)

    def per_spot(kind: torch.dtype) -> Iterator[Mapping[str, Tensor]]:
        order = torch.randperm(ours.n, generator=_seeded()).tolist()
        return iter(DataLoader(dicts[kind], batch_size=batch, sampler=order, num_workers=0))

    def floor() -> Iterator[Tensor]:
        for start in range(0, ours.n, batch):
            yield half[: ours.n - start].float()

    ways: dict[str, Run] = {
        "Feed.batches": lambda: ours.batches(batch, generator=_seeded()),
        "dict per spot + default_collate, float32 tables": lambda: per_spot(torch.float32),
        "dict per spot + default_collate, equal dtype (float16)": lambda: per_spot(torch.float16),
        "floor: contexts from float16 to float32, once": floor,
    }
    first, *idioms, last = ways
    pairs = [Pair(first, name, "idiom", same_batches) for name in idioms]
    pairs.append(Pair(first, last, "floor", moved=ours.n * CONTEXT**2 * width * 6))
    title = f"feed, {ours.n} spots, d = {width}, k = {CONTEXT**2}, g = {genes}, batch {batch}"
    yield Case(title, ours.n, "spot", ways, pairs)


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def _lattice_section(rng: np.random.Generator, id: str, side: int, genes: int) -> Any:
    rc = np.stack(np.divmod(np.arange(side * side), side), axis=1)
    return make_section(
        id=id,
        patient=id,
        counts=rng.poisson(2.0, (len(rc), genes)),
        genes=[f"g{i}" for i in range(genes)],
        xy=(rc[:, ::-1] + 0.5) * PITCH,
        platform="st",
        um_per_px=200 / PITCH,
        array_rc=rc,
    )


def _features(rng: np.random.Generator, xy: np.ndarray, width: int) -> SectionFeatures:
    """Random embeddings where the windows of a section would lie, a pitch wide."""
    extent = int(xy.max() + PITCH / 2)
    tiles = lay_tiles(xy, PITCH, PITCH, CONTEXT, (extent, extent))
    assert tiles.index is not None
    low, high = tiles.centres - PITCH / 2, tiles.centres + PITCH / 2
    inside = np.all((low >= 0) & (high <= extent), axis=1)
    values = rng.normal(size=(len(tiles.centres), width)).astype(np.float16)
    n = len(xy)
    return SectionFeatures(emb=values[:n], ctx=values[n:], ctx_index=tiles.index, ctx_mask=inside[tiles.index])


class SpotDicts(Dataset[dict[str, Tensor]]):
    """The idiom: an item is the dict of one spot, gathered and standardised by itself, its section found by walking.

    `kind` is the type in which the embeddings lie in memory.
    """

    def __init__(
        self, view: FittedView, cohort: Cohort, features: Mapping[str, SectionFeatures], kind: torch.dtype
    ) -> None:
        assert view.shift is not None
        assert view.scale is not None
        self.shift, self.scale = torch.from_numpy(view.shift), torch.from_numpy(view.scale)
        self.ends = np.cumsum([section.n for section in cohort]).tolist()
        self.tables, self.index, self.mask, self.y = [], [], [], []
        for section in cohort:
            got = features[section.id]
            assert got.ctx is not None
            assert got.ctx_index is not None
            assert got.ctx_mask is not None
            self.tables.append(torch.from_numpy(np.concatenate([got.emb, got.ctx])).to(kind))
            self.index.append(torch.from_numpy(got.ctx_index.astype(np.int64)))
            self.mask.append(torch.from_numpy(got.ctx_mask))
            self.y.append(torch.from_numpy(view.truth(section)[0]))

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, spot: int) -> dict[str, Tensor]:
        section = 0
        while spot >= self.ends[section]:
            section += 1
        row = spot - (self.ends[section - 1] if section else 0)
        table = self.tables[section]
        return {
            "emb": (table[row].float() - self.shift) / self.scale,
            "ctx_emb": (table[self.index[section][row]].float() - self.shift) / self.scale,
            "ctx_mask": self.mask[section][row],
            "y": self.y[section][row],
        }


def same_batches(ours: Iterable[Batch], theirs: Iterable[Mapping[str, Tensor]]) -> str:
    """Whether every batch holds the same tensors, to the bit."""
    for first, second in zip(ours, theirs, strict=True):
        for name in _FIELDS:
            if not torch.equal(getattr(first, name), second[name]):
                raise Disagreement(f"batches differ in {name!r}")
    return "same values"


# -- smoothing ----------------------------------------------------------------------------------------------------


def smoothing(*, n: int, genes: int) -> Iterator[Case]:
    """Means over 3 × 3 spots, neighbours found on the way: one sparse product against loops over spots."""
    rng = np.random.default_rng(1)
    side = int(np.ceil(np.sqrt(n * 1.1)))  # a lattice with holes
    rc = np.stack(np.divmod(rng.permutation(side * side)[:n], side), axis=1)
    values = rng.gamma(1.0, size=(n, genes))
    obs = pd.DataFrame(rc, columns=["array_row", "array_col"])
    ways: dict[str, Run] = {
        "pp.grid8 + pp.smooth": lambda: [smooth(values, grid8(rc))],
        "iterrows, four scans a spot": lambda: [_scanned(values, obs)],
        "numpy loop over pp.grid8": lambda: [_looped(values, grid8(rc))],
        "floor: copy of the values": lambda: [values.copy()],
    }
    first, *idioms, last = ways
    pairs = [Pair(first, name, "idiom", Close(1e-12)) for name in idioms]
    pairs.append(Pair(first, last, "floor", moved=2 * values.nbytes))
    yield Case(f"smoothing, {n} spots × {genes} genes", n, "spot", ways, pairs)


def _scanned(values: np.ndarray, obs: pd.DataFrame) -> np.ndarray:
    """The idiom: for each spot the whole table is searched for the rows of its neighbours."""
    means = []
    for _, spot in obs.iterrows():
        row, col = spot["array_row"], spot["array_col"]
        near = (
            (obs["array_row"] >= row - 1)
            & (obs["array_row"] <= row + 1)
            & (obs["array_col"] >= col - 1)
            & (obs["array_col"] <= col + 1)
        )
        means.append(values[near.to_numpy()].mean(axis=0))
    return np.stack(means)


def _looped(values: np.ndarray, nbr: np.ndarray) -> np.ndarray:
    """A loop over spots on a neighbour table."""
    out = np.empty_like(values)
    for i, near in enumerate(nbr):
        out[i] = values[np.append(near[near >= 0], i)].mean(axis=0)
    return out


# -- correlations -------------------------------------------------------------------------------------------------


def correlation(*, sections: int, n: int, genes: int) -> Iterator[Case]:
    """Pearson per gene and section, in float64."""
    rng = np.random.default_rng(2)
    truth = [rng.gamma(2.0, size=(n, genes)) for _ in range(sections)]
    pred = [0.3 * t + rng.normal(size=t.shape) for t in truth]
    both = list(zip(truth, pred, strict=True))
    ways: dict[str, Run] = {
        "bench.metrics.pearson": lambda: (pearson(t, p) for t, p in both),
        "scipy.stats.pearsonr per gene": lambda: (_by_gene(t, p) for t, p in both),
        "scipy.stats.pearsonr, axis=0": lambda: (stats.pearsonr(t, p, axis=0).statistic for t, p in both),
        "floor: one dot product over both": lambda: (np.vdot(t, p) for t, p in both),
    }
    first, *idioms, last = ways
    pairs = [Pair(first, name, "idiom", Close(1e-10)) for name in idioms]
    pairs.append(Pair(first, last, "floor", moved=2 * sections * truth[0].nbytes))
    yield Case(f"Pearson, {sections} sections × {n} spots × {genes} genes", sections * genes, "gene", ways, pairs)


def _by_gene(truth: np.ndarray, pred: np.ndarray) -> np.ndarray:
    return np.array([stats.pearsonr(truth[:, j], pred[:, j])[0] for j in range(truth.shape[1])])


# -- counts -------------------------------------------------------------------------------------------------------


def reading(paths: Sequence[Path]) -> Iterator[Case]:
    """Tables of counts (.tsv.gz) as sparse matrices, against pandas (whose result is dense)."""
    raw = [path.read_bytes() for path in paths]
    ways: dict[str, Run] = {
        "data.io, to sparse": lambda: (read_count_table(path).counts for path in paths),
        "pandas.read_csv, to dense": lambda: (pd.read_csv(path, sep="\t", index_col=0) for path in paths),
        "floor: gunzip": lambda: (gzip.decompress(data) for data in raw),
    }
    first, idiom, floor = ways
    pairs = [Pair(first, idiom, "idiom", _same_counts), Pair(first, floor, "floor")]
    yield Case(f"reading {len(paths)} tables of legacy ST counts", len(paths), "table", ways, pairs)


def _same_counts(ours: Iterable[Any], theirs: Iterable[pd.DataFrame]) -> str:
    dense = ((counts.toarray(), frame.to_numpy()) for counts, frame in zip(ours, theirs, strict=True))
    return Close(0.0)(*zip(*dense, strict=True))
