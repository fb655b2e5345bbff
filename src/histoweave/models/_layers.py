"""Transformer layers that the models share: pre-norm blocks, relative grid bias, positions from a grid convolution."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Multi-head attention of a query sequence over a key sequence.

    Query, key and value maps have no bias; the output map has one and is followed by dropout; attention weights are
    not dropped. With a single head the output map is left out.

    Parameters
    ----------
    width, heads
        Model width d, and into how many heads it is split.
    dropout
        On the output.
    grid
        Side of a square grid of tokens. A learnable scalar per head and (``|Δrow|``, ``|Δcolumn|``), zero at first, is
        added to the logits; then queries and keys are the same grid² tokens, row-major.
    always_drop
        Dropout stays active at evaluation (a defect of published code, never wanted otherwise).
    """

    cell: Tensor

    def __init__(
        self, width: int, heads: int, *, dropout: float = 0.0, grid: int | None = None, always_drop: bool = False
    ) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"width {width} cannot be split into {heads} heads: choose a divisor of the width")
        self.heads = heads
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width) if heads > 1 else nn.Identity()
        self.dropout = _AlwaysDropout(dropout) if always_drop else nn.Dropout(dropout)
        self.bias: nn.Parameter | None = None
        if grid is not None:
            self.bias = nn.Parameter(torch.zeros(heads, grid * grid))
            self.register_buffer("cell", grid_offsets(grid), persistent=False)

    def forward(self, query: Tensor, keys: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Attend: query (b, q, d), keys (b, k, d), key_mask (b, k) True where a key exists; gives (b, q, d).

        A row without a single key attends to nothing and gets the bias of the output map.
        """
        q = self.q(query).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (b, heads, q, d / heads)
        k, v = self.kv(keys).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        some = None if key_mask is None else key_mask.any(-1)  # (b,)
        if key_mask is not None and some is not None:
            key_mask = (key_mask | ~some[:, None])[:, None, None]  # in some kernels a softmax over no key is NaN
        mask = key_mask
        if self.bias is not None:
            mask = self.bias[:, self.cell].to(q.dtype)[None]  # (1, heads, q, k)
            if key_mask is not None:
                mask = mask.masked_fill(~key_mask, float("-inf"))
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(-2)  # (b, q, d)
        if some is not None:
            x = x * some[:, None, None]
        return self.dropout(self.out(x))


class _AlwaysDropout(nn.Dropout):
    """Dropout in evaluation too."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p)


class Block(nn.Module):
    """Pre-norm residual block: ``x += attention(norm(x)); x += feed_forward(norm(x))``.

    With `context`, the queries attend to it instead of to themselves: one norm serves both, and the context itself
    is not updated. `hidden` is the width inside the feed-forward part; the other arguments are those of `Attention`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        dropout: float = 0.0,
        *,
        grid: int | None = None,
        always_drop: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, dropout=dropout, grid=grid, always_drop=always_drop)
        self.norm2 = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor, key_mask: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        """Transform x (b, q, d), over itself or over context (b, k, d), with key_mask (b, k)."""
        query = self.norm1(x)
        x = x + self.attention(query, query if context is None else self.norm1(context), key_mask)
        return x + self.feed_forward(self.norm2(x))


class Stack(nn.Module):
    """Blocks one after the other, and a norm at the end unless told otherwise; arguments are those of `Block`."""

    def __init__(
        self,
        depth: int,
        width: int,
        heads: int,
        hidden: int,
        dropout: float = 0.0,
        *,
        grid: int | None = None,
        always_drop: bool = False,
        norm: bool = True,
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth is {depth}; expected at least one block")
        self.blocks = nn.ModuleList(
            Block(width, heads, hidden, dropout, grid=grid, always_drop=always_drop) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()

    def forward(
        self,
        x: Tensor,
        key_mask: Tensor | None = None,
        context: Tensor | None = None,
        after_first: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Transform x (b, q, d) as a `Block` does; `after_first` is applied between the first block and the rest."""
        for i, block in enumerate(self.blocks):
            x = block(x, key_mask, context)
            if i == 0 and after_first is not None:
                x = after_first(x)
        return self.norm(x)


class GridConv(nn.Module):
    """Position information from a depthwise convolution over the occupied cells of a grid (PEG, APEG).

    Tokens are put on a grid by their row and column, convolved with zero padding, and read back by the same index, so
    their order does not matter. Tokens that share a cell enter it as their mean. Void cells are zero going in and are
    never read coming out. With `residual`, each token is added to what it reads.

    Sections of a batch share one array as large as the largest of them, which changes nothing: beyond its own grid a
    section sees zeros, as it would see padding.
    """

    def __init__(self, width: int, *, kernel: int = 3, residual: bool = True) -> None:
        super().__init__()
        self.residual = residual
        self.conv = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)

    def forward(self, x: Tensor, rc: Tensor, mask: Tensor) -> Tensor:
        """Transform tokens x (s, n, d) at rc (s, n, 2), integer (row, column), where mask (s, n) is True."""
        rc, (rows, cols) = grid_origin(rc, mask)
        s, n, d = x.shape
        if rows * cols > 4096 + 256 * n:
            raise ValueError(
                f"the positions of {n} spots span a grid of {rows} × {cols} cells; expected lattice indices "
                "(row, column): divide positions in pixels or µm by the pitch of the spots"
            )
        void = s * rows * cols  # one more cell, where padding goes and nothing is read
        first = torch.arange(s, device=x.device)[:, None] * (rows * cols)
        cell = torch.where(mask, first + rc[..., 0] * cols + rc[..., 1], void).flatten()  # (s * n,)
        total = x.new_zeros(void + 1, d).index_add(0, cell, x.flatten(0, 1))
        count = x.new_zeros(void + 1).index_add(0, cell, x.new_ones(s * n))
        grid = (total / count.clamp(min=1)[:, None])[:void].view(s, rows, cols, d)
        out = self.conv(grid.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).reshape(void, d)
        read = out[cell.clamp(max=void - 1)].view(s, n, d)
        return x + read if self.residual else read


def grid_offsets(side: int) -> Tensor:
    """Index (side², side²) of the pair (|Δrow|, |Δcolumn|) of any two cells of a square grid, row-major."""
    row, col = torch.arange(side).repeat_interleave(side), torch.arange(side).repeat(side)
    return (row[:, None] - row).abs() * side + (col[:, None] - col).abs()


def grid_origin(rc: Tensor, mask: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Shift rc (s, n, 2) so that each section begins at (0, 0); padding comes out as (0, 0). Also the size needed."""
    if rc.is_floating_point():
        raise TypeError(f"grid positions have dtype {rc.dtype}; expected integers: lattice (row, column)")
    low = rc.masked_fill(~mask[..., None], torch.iinfo(rc.dtype).max).amin(1, keepdim=True)
    rc = (rc - low).masked_fill(~mask[..., None], 0)
    rows, cols = (rc.amax((0, 1)) + 1).tolist()
    return rc, (rows, cols)


def square_packing(rc: Tensor, mask: Tensor) -> Tensor:
    """Positions (s, n, 2) of the same tokens packed row by row into the smallest square that holds a section.

    Tokens follow one another in the order of their (row, column), as in a PEG without geometry.
    """
    rc, (rows, cols) = grid_origin(rc, mask)
    key = (rc[..., 0] * cols + rc[..., 1]).masked_fill(~mask, rows * cols)
    rank = key.argsort(dim=1, stable=True).argsort(dim=1)  # (s, n)
    side = mask.sum(1, keepdim=True).double().sqrt().ceil().long().clamp(min=1)
    return torch.stack([rank // side, rank % side], -1)
