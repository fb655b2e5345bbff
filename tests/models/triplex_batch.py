"""A small cohort as a batch, and small TRIPLEX models for it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from histoweave.batch import Batch, Dims
from histoweave.models.predict.triplex import Triplex

DIMS = Dims(genes=6, emb=12)
SIZES = (7, 9, 4)  # spots of the three sections
TINY = Triplex.tiny() | {"width": 16}
FROZEN = TINY | {"dropout": 0.0, "augment": False, "trunk": "frozen"}


def make_batch(rows: Tensor | None = None, *, sizes: tuple[int, ...] = SIZES) -> Batch:
    """Every field of every spot of a small cohort, or the given rows of it, with a pool of the sections present."""
    g = torch.Generator().manual_seed(1)
    n, longest = sum(sizes), max(sizes)
    section = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    within = torch.cat([torch.arange(size) for size in sizes])
    mask = torch.arange(longest) < torch.tensor(sizes)[:, None]
    emb = torch.randn(n, DIMS.emb, generator=g)
    pool = torch.zeros(len(sizes), longest, DIMS.emb)
    pool[section, within] = emb
    rc = torch.zeros(len(sizes), longest, 2, dtype=torch.long)
    for s, size in enumerate(sizes):  # distinct cells of a 5 × 4 lattice, at another origin in each section
        cells = torch.randperm(20, generator=g)[:size]
        rc[s, :size] = torch.stack([cells // 4 + 10 * s, cells % 4 + 3], -1)
    ctx_mask = torch.rand(n, 25, generator=g) < 0.8
    ctx_mask[:, 12] = True
    made = Batch(
        spot=torch.arange(n), section=section,
        y=torch.randn(n, DIMS.genes, generator=g), y_mask=torch.ones(n, DIMS.genes, dtype=torch.bool),
        window=torch.randint(0, 256, (n, 3, 64, 64), dtype=torch.uint8, generator=g), emb=emb,
        ctx_emb=torch.randn(n, 25, DIMS.emb, generator=g), ctx_mask=ctx_mask,
        pool_emb=pool, pool_rc=rc, pool_mask=mask, pool_row=section * longest + within,
    )  # fmt: skip
    return made if rows is None else take(made, rows)


def take(batch: Batch, rows: Tensor) -> Batch:
    """Rows of a batch, with only the sections that are still present in its pool, cut to the longest of them."""
    longest = batch.pool_mask.shape[1]
    of, within = batch.pool_row[rows] // longest, batch.pool_row[rows] % longest
    present, where = torch.unique(of, return_inverse=True)
    keep = int(batch.pool_mask[present].sum(1).max())
    spots = ("spot", "section", "y", "y_mask", "window", "emb", "ctx_emb", "ctx_mask")
    return replace(
        batch, **{name: getattr(batch, name)[rows] for name in spots},
        **{name: getattr(batch, name)[present, :keep] for name in ("pool_emb", "pool_rc", "pool_mask")},
        pool_row=where * keep + within,
    )  # fmt: skip


def model(**arguments: object) -> Triplex:
    return Triplex(DIMS, **(FROZEN | arguments))


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
