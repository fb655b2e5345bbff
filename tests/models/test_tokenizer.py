"""xMINT's image tokenizer: occupied patches alone give what the whole region gives."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from tests.models.section_batch import count
from torch import Tensor, nn
from torch.nn import functional as F

from histoweave.models.impute import _tokenizer
from histoweave.models.impute._tokenizer import PATCH, Tokenizer, _CoreNorm

ROWS, COLS, WIDTH = 4, 5, 12
CORNERS = [(0, 0), (0, COLS - 1), (ROWS - 1, 0), (ROWS - 1, COLS - 1)]
SOME = [*CORNERS, (0, 2), (3, 1), (2, 0), (1, 4), (1, 2), (2, 3), (1, 2)]  # every border, the middle, one patch twice
Outcome = tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]


def make(mode: str = "restricted", *, width: int = WIDTH, **arguments: object) -> Tokenizer:
    """A tokenizer with weights, shifts and statistics that leave nothing at zero or one."""
    torch.manual_seed(0)
    made = Tokenizer(3, width, stem=4, mode=mode, **arguments)  # type: ignore[arg-type]
    with torch.no_grad():
        for value in made.state_dict().values():
            if value.ndim == 1:
                value.uniform_(0.2, 0.9)
    return made


def cells(*patches: tuple[int, int], regions: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Regions (r, 3, h, w), and (b,) and (b, 2) of cells in these patches of each."""
    g = torch.Generator().manual_seed(2)
    region = torch.randn(regions, 3, ROWS * PATCH, COLS * PATCH, generator=g)
    return region, torch.arange(regions).repeat_interleave(len(patches)), torch.tensor(patches).repeat(regions, 1)


def outcome(made: Tokenizer, given: tuple[Tensor, Tensor, Tensor], *, train: bool) -> Outcome:
    """Vectors, gradients of all parameters, and the state afterwards."""
    out = made.train(train)(*given)
    torch.manual_seed(3)
    (out * torch.randn(out.shape)).sum().backward()
    return out.detach(), {n: p.grad for n, p in made.named_parameters() if p.grad is not None}, made.state_dict()


def furthest(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Largest difference, over the largest entry of the first."""
    assert a.keys() == b.keys()
    scale = max(float(v.abs().max()) for v in a.values())
    return max(float((a[name] - b[name]).abs().max()) for name in a) / scale


class Plain(nn.Module):
    """The dense network as it would usually be written."""

    def __init__(self, like: Tokenizer) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        for (a, b), block in zip([(3, 4), (4, 8), (8, WIDTH)], like.blocks, strict=True):
            made = nn.ModuleDict(
                {"conv1": nn.Conv2d(a, b, 3, padding=1), "norm1": nn.BatchNorm2d(b), "skip": nn.Conv2d(a, b, 1)}
                | {"conv2": nn.Conv2d(b, b, 3, padding=1), "norm2": nn.BatchNorm2d(b)}
            )
            made.load_state_dict(block.state_dict())
            self.blocks.append(made)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.blocks:
            y = torch.relu(part["norm1"](part["conv1"](x)))
            x = torch.relu(part["norm2"](part["conv2"](y)) + part["skip"](x))
        return nn.MaxPool2d(PATCH, PATCH)(x)


@pytest.mark.parametrize(("width", "expected"), [(256, 823_648), (128, 298_464)])
def test_parameter_counts(width: int, expected: int) -> None:
    with torch.device("meta"):
        assert count(Tokenizer(3, width)) == expected


@pytest.mark.parametrize("train", [False, True])
def test_dense_is_the_usual_network(train: bool) -> None:
    made = make("dense")
    plain, (region, of, rc) = Plain(made).double().train(train), cells(*SOME)
    given = region.double(), of, rc
    out, grads, state = outcome(made.double(), given, train=train)
    theirs = plain(given[0])[given[1], :, given[2][:, 0], given[2][:, 1]]
    assert (out - theirs).abs().max() < 1e-9 < out.std()
    torch.manual_seed(3)
    (theirs * torch.randn(theirs.shape)).sum().backward()
    assert furthest(grads, {n: p.grad for n, p in plain.named_parameters() if p.grad is not None}) < 1e-9
    assert furthest(dict(state), dict(plain.state_dict())) < 1e-9


def test_occupied_patches_alone_are_the_dense_result() -> None:
    given = cells(*SOME)
    dense, dense_grads, _ = outcome(make("dense"), given, train=False)
    out, grads, state = outcome(make(), given, train=False)
    assert (out - dense).abs().max() <= 1e-5
    assert furthest(dense_grads, grads) <= 1e-4
    assert all(torch.equal(value, state[name]) for name, value in make().state_dict().items())


@pytest.mark.parametrize("patch", [*CORNERS, (1, 1)])
def test_a_patch_alone(patch: tuple[int, int]) -> None:
    region, of, rc = cells(patch, regions=1)
    with torch.no_grad():
        out = make().eval()(region, of, rc)
        assert (out[0] - make("dense").eval().dense(region)[0, :, patch[0], patch[1]]).abs().max() <= 1e-5


def test_without_the_border_rule_the_result_would_be_another(monkeypatch: pytest.MonkeyPatch) -> None:
    given, made = cells(*CORNERS, (1, 1)), make().eval()
    with torch.no_grad():
        before = made(*given)
        monkeypatch.setattr(_tokenizer, "_cut", lambda x, inside, frame: x)
        off = (made(*given) - before).abs().amax(1).view(2, -1)
    assert off[:, :4].min() > 1e-3 and float(off[:, 4].max()) == 0


def test_training_on_all_patches_is_training_on_whole_regions() -> None:
    region, of, rc = cells(*product(range(ROWS), range(COLS)))
    given = region.double(), of, rc
    dense, dense_grads, dense_state = outcome(make("dense").double(), given, train=True)
    out, grads, state = outcome(make().double(), given, train=True)
    assert (out - dense).abs().max() <= 1e-9
    assert furthest(dense_grads, grads) <= 1e-9
    assert furthest(dict(dense_state), dict(state)) <= 1e-9


def test_statistics_are_those_of_the_occupied_pixels_each_once() -> None:
    made = make()
    region, of, rc = cells(*SOME)
    first = made.blocks[0].conv1(F.pad(region, [1] * 4))
    pixels = torch.cat(
        [
            first[r, :, row * PATCH : (row + 1) * PATCH, col * PATCH : (col + 1) * PATCH].flatten(1)
            for r, (row, col) in product(range(2), set(SOME))
        ],
        1,
    )  # (f, px)
    norm = made.blocks[0].norm1
    mean, var = norm.running_mean.clone(), norm.running_var.clone()
    made.train()(region, of, rc)
    torch.testing.assert_close(norm.running_mean, 0.9 * mean + 0.1 * pixels.mean(1))
    torch.testing.assert_close(norm.running_var, 0.9 * var + 0.1 * pixels.var(1))
    assert int(norm.num_batches_tracked) == 1


def test_norm_has_the_gradient_of_its_formula() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 4, 7, 8, dtype=torch.double, requires_grad=True)
    weight, bias = (torch.randn(4, dtype=torch.double, requires_grad=True) for _ in range(2))

    def formula(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        var, mean = torch.var_mean(x[..., 2:-2, 2:-2], (0, 2, 3), correction=0, keepdim=True)
        return (x - mean) / (var + 1e-5).sqrt() * weight[:, None, None] + bias[:, None, None]

    out = _CoreNorm.apply(x, weight, bias, 2, 1e-5)[0]
    torch.testing.assert_close(out, formula(x, weight, bias))
    up = torch.randn_like(out)
    ours = torch.autograd.grad(out, (x, weight, bias), up)
    theirs = torch.autograd.grad(formula(x, weight, bias), (x, weight, bias), up)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("train", [False, True])
def test_recomputing_changes_nothing(train: bool) -> None:
    given = cells(*SOME)
    kept, kept_grads, kept_state = outcome(make(recompute=False), given, train=train)
    out, grads, state = outcome(make(recompute=True), given, train=train)
    assert torch.equal(out, kept)
    assert furthest(kept_grads, grads) < 1e-6
    assert all(torch.equal(value, state[name]) for name, value in kept_state.items())


def test_chunks_and_order_of_cells_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    region, of, rc = cells(*SOME)
    made = make().eval()
    with torch.no_grad():
        whole = made(region, of, rc)
        order = torch.randperm(len(of), generator=torch.Generator().manual_seed(0))
        assert (made(region, of[order], rc[order]) - whole[order]).abs().max() < 1e-6
        monkeypatch.setattr(_tokenizer, "_CHUNK", 3)
        assert (made(region, of, rc) - whole).abs().max() < 1e-6


def test_a_block_without_change_of_width_has_no_map_around_it() -> None:
    assert isinstance(make(width=8).blocks[2].skip, nn.Identity)
    given = cells((0, 0), (2, 2))
    with torch.no_grad():
        out, dense = (make(mode, width=8).eval()(*given) for mode in ("restricted", "dense"))
    assert (out - dense).abs().max() <= 1e-5


def test_half_precision_stays_close() -> None:
    given = cells(*SOME)
    out, _, state = outcome(make(), given, train=True)
    with torch.autocast("cpu", torch.bfloat16):
        half, grads, half_state = outcome(make(), given, train=True)
    assert half.dtype == torch.bfloat16 and all(torch.isfinite(g).all() for g in grads.values())
    assert (half.float() - out).abs().mean() < 0.03 * out.abs().mean()
    assert all(value.dtype == state[name].dtype for name, value in half_state.items())
    assert furthest(dict(state), dict(half_state)) < 0.01


def test_bad_input_is_named() -> None:
    region, of, rc = cells((0, 0))
    with pytest.raises(ValueError, match=r"shape \(2, 2, 64, 80\); expected \(r, 3, h, w\)"):
        make()(region[:, :2], of, rc)
    with pytest.raises(ValueError, match="multiples of 16 px"):
        make()(region[..., :-1], of, rc)
    for wrong in ([0, COLS], [ROWS, 0], [-1, 0]):
        with pytest.raises(ValueError, match="2 regions of 4 × 5 patches"):
            make()(region, of, rc + torch.tensor(wrong))
    with pytest.raises(ValueError, match="2 regions"):
        make()(region, of + 1, rc)
    with pytest.raises(ValueError, match="did you mean 'dense'"):
        Tokenizer(3, 8, mode="dens")  # type: ignore[arg-type]
    for name in ("channels", "width", "stem"):
        with pytest.raises(ValueError, match=f"{name}=0"):
            Tokenizer(**({"channels": 3, "width": 8, "stem": 4} | {name: 0}))  # type: ignore[arg-type]
