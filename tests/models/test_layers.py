"""Shared layers against torch and against brute force."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from histoweave.models._layers import Attention, Block, GridConv, Stack, grid_offsets, square_packing


@pytest.fixture(autouse=True)
def _fixed() -> None:
    torch.manual_seed(0)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_attention_equals_torch() -> None:
    ours = Attention(12, 3)
    theirs = nn.MultiheadAttention(12, 3, batch_first=True, bias=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.q.weight, ours.kv.weight]))
        theirs.in_proj_bias.zero_()
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    query, keys, mask = torch.randn(4, 2, 12), torch.randn(4, 5, 12), torch.rand(4, 5) < 0.6
    mask[:, 0] = True
    close(ours(query, keys, mask), theirs(query, keys, keys, key_padding_mask=~mask)[0])


def test_grid_bias_is_looked_up_by_unsigned_offset() -> None:
    offsets = grid_offsets(3)
    for i in range(9):
        for j in range(9):
            assert offsets[i, j] == abs(i // 3 - j // 3) * 3 + abs(i % 3 - j % 3)
    layer, x = Attention(8, 2, grid=3), torch.randn(2, 9, 8)
    nn.init.normal_(layer.bias)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, 4:] = False
    q, (k, v) = layer.q(x), layer.kv(x).chunk(2, -1)
    heads = []
    for h in range(2):
        part = slice(4 * h, 4 * h + 4)
        logits = q[..., part] @ k[..., part].transpose(1, 2) / 2 + layer.bias[h][offsets]
        heads.append(logits.masked_fill(~mask[:, None], -torch.inf).softmax(-1) @ v[..., part])
    close(layer(x, x, mask), layer.out(torch.cat(heads, -1)))


@pytest.mark.parametrize("grid", [None, 2])
def test_no_key_at_all_is_not_nan(grid: int | None) -> None:
    block, x = Block(8, 2, 8, grid=grid), torch.randn(2, 4, 8, requires_grad=True)
    mask = torch.tensor([[True] * 4, [False] * 4])
    out = block(x, mask)
    out.sum().backward()
    assert torch.isfinite(out).all()
    assert torch.isfinite(x.grad).all()
    close(block.attention(x, x, mask)[1], block.attention.out.bias.expand(4, 8))


def test_block_normalises_query_and_context_alike() -> None:
    block, x, context = Block(8, 2, 16), torch.randn(3, 2, 8), 3 * torch.randn(3, 5, 8)
    nn.init.normal_(block.norm1.weight)
    y = x + block.attention(block.norm1(x), block.norm1(context))
    close(block(x, None, context), y + block.feed_forward(block.norm2(y)))
    y = x + block.attention(block.norm1(x), block.norm1(x))
    close(block(x), y + block.feed_forward(block.norm2(y)))


def test_context_of_a_block_is_only_read() -> None:
    stack, x, context = Stack(2, 8, 2, 8), torch.randn(3, 1, 8), torch.randn(3, 5, 8)
    step = x
    for block in stack.blocks:
        step = block(step, None, context)
    close(stack(x, None, context), stack.norm(step))
    close(stack(x, None, context[:, torch.randperm(5)]), stack(x, None, context))  # a set, not a sequence


def brute_force_apeg(layer: GridConv, x: Tensor, rc: Tensor) -> Tensor:
    """Depthwise convolution of one section, cell by cell."""
    cells: dict[tuple[int, int], list[Tensor]] = {}
    for token, (r, c) in zip(x, rc.tolist(), strict=True):
        cells.setdefault((r, c), []).append(token)
    out = []
    for token, (r, c) in zip(x, rc.tolist(), strict=True):
        total = layer.conv.bias.clone()
        for i in range(3):
            for j in range(3):
                if (r + i - 1, c + j - 1) in cells:
                    near = torch.stack(cells[r + i - 1, c + j - 1]).mean(0)
                    total = total + layer.conv.weight[:, 0, i, j] * near
        out.append(token + total if layer.residual else total)
    return torch.stack(out)


@pytest.mark.parametrize("residual", [True, False])
def test_apeg_equals_brute_force_on_every_section(residual: bool) -> None:
    """Void cells, spots that share a cell, grids of different size and origin, padding."""
    layer, x = GridConv(5, residual=residual), torch.randn(3, 8, 5)
    rc = torch.randint(0, 4, (3, 8, 2)) * torch.tensor([1, 2]) + torch.tensor([[[0, 0]], [[9, -4]], [[100, 7]]])
    rc[0, 1] = rc[0, 0]
    mask = torch.arange(8) < torch.tensor([8, 5, 1])[:, None]
    out = layer(x, rc, mask)
    for s in range(3):
        close(out[s][mask[s]], brute_force_apeg(layer, x[s][mask[s]], rc[s][mask[s]]))
        close(out[s : s + 1][:, mask[s]], layer(x[s : s + 1], rc[s : s + 1], mask[s : s + 1])[:, mask[s]])
    order = torch.randperm(8)
    close(layer(x[:, order], rc[:, order], mask[:, order])[mask[:, order]], out[:, order][mask[:, order]])


def test_apeg_keeps_every_spot_of_a_shared_cell() -> None:
    x, rc = torch.randn(1, 3, 4), torch.tensor([[[2, 2], [2, 2], [2, 4]]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    plain, added = GridConv(4, residual=False), GridConv(4)
    out = plain(x, rc, mask)
    assert out.shape == x.shape
    assert torch.equal(out[0, 0], out[0, 1])
    added.load_state_dict(plain.state_dict())
    close(added(x, rc, mask), x + out)
    zero = x.clone()
    zero[0, 2] = 0  # a token that sums to 0 is still a spot: it gets the bias, at least
    close(plain(zero, rc, mask)[0, 2], plain.conv.bias)


def test_square_packing_follows_rows_then_columns() -> None:
    rc = torch.tensor([[[5, 9], [5, 8], [0, 3], [7, 0], [5, 1]], [[1, 1], [0, 0], [0, 0], [0, 0], [0, 0]]])
    mask = torch.tensor([[True] * 5, [True] + [False] * 4])
    packed = square_packing(rc, mask)
    assert packed[0].tolist() == [[1, 0], [0, 2], [0, 0], [1, 1], [0, 1]]  # five spots in a square of three
    assert packed[1, 0].tolist() == [0, 0]
