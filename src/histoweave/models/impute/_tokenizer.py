"""xMINT's ResNet over pieces of an image: a vector per patch of 16 × 16 px, of all patches or of the occupied ones."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from histoweave.models._checks import at_least, one_of

PATCH = 16  # px, the paper's
REACH = 6  # px that six convolutions of 3 × 3 look beyond a patch
_CHUNK = 64  # crops at a time where statistics are fixed: what a convolution writes then stays near the processor


class Tokenizer(nn.Module):
    """Three residual blocks at full resolution, then the maximum of each patch; a spot gets the vector of its patch.

    A patch depends on the 28 × 28 px around it and on nothing else, once the statistics of the batch norms are fixed.
    ``"restricted"`` cuts these crops out for the occupied patches, each once, and convolves without padding:
    28 → 26 → 24 → 22 → 20 → 18 → 16 px. Where a crop leaves the region, the dense network sees zeros in every layer,
    not what biases would make of them, so what lies outside is set to zero again after every activation.

    In training, statistics are taken over all patches of the step, which therefore pass a layer together. They are
    those of the patches' own 16 × 16 px: the frame around belongs to other patches, or to no occupied one.

    Parameters
    ----------
    channels, width
        Channels c of the image, and width f of a vector.
    stem
        Width of the first block; the second has twice that.
    mode
        ``"restricted"``, or ``"dense"``: all patches of all regions.
    recompute
        In training, keep what goes into a block only, and compute its inside once more for the gradient.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        *,
        stem: int = 32,
        mode: Literal["restricted", "dense"] = "restricted",
        recompute: bool = True,
    ) -> None:
        super().__init__()
        self.channels, self.recompute = at_least("channels", channels, 1), recompute
        self.mode = one_of("tokenizer", mode, ("restricted", "dense"))
        widths = (channels, at_least("stem", stem, 1), 2 * stem, at_least("width", width, 1))
        self.blocks = nn.ModuleList(_Block(a, b) for a, b in pairwise(widths))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, region: Tensor, of: Tensor, rc: Tensor) -> Tensor:
        """Vectors (b, f) of spots in regions of (b,), at patches rc (b, 2) = (row, column), of region (r, c, h, w)."""
        rows, cols = self._grid(region, of, rc)
        key = (of * rows + rc[:, 0]) * cols + rc[:, 1]  # (b,)
        if self.mode == "dense":
            return self.dense(region).permute(0, 2, 3, 1).flatten(0, 2)[key]
        patch, back = key.unique(return_inverse=True)
        return self.restricted(region, patch)[back]

    def dense(self, region: Tensor) -> Tensor:
        """Vectors (r, f, h / 16, w / 16) of all patches of region (r, c, h, w)."""
        if self.training:
            return self._run(region, None, None)
        return torch.cat([self._run(one, None, None) for one in region.split(1)])

    def restricted(self, region: Tensor, patch: Tensor) -> Tensor:
        """Vectors (p, f) of the patches (p,) of region (r, c, h, w), numbered row by row, region after region."""
        rows, cols = region.shape[-2] // PATCH, region.shape[-1] // PATCH
        of, row, col = patch // (rows * cols), patch // cols % rows, patch % cols
        edge = (row == 0) | (row == rows - 1) | (col == 0) | (col == cols - 1)
        order = edge.int().argsort(descending=True, stable=True)  # those that leave the region come first
        of, row, col, number = of[order], row[order], col[order], int(edge.sum())
        size = PATCH + 2 * REACH
        crops = F.pad(region, [REACH] * 4).unfold(2, size, PATCH).unfold(3, size, PATCH)  # (r, c, rows, cols, 28, 28)
        step = torch.arange(-REACH, PATCH + REACH, device=region.device)
        y, x = (at[:number, None] * PATCH + step for at in (row, col))  # (edge patches, 28)
        tall, wide = (y >= 0) & (y < region.shape[-2]), (x >= 0) & (x < region.shape[-1])
        inside = (tall[:, :, None] & wide[:, None, :])[:, None].to(region.dtype)  # (edge patches, 1, 28, 28)
        chunk = len(patch) if self.training else _CHUNK
        out = [
            self._run(crops[of[i : i + chunk], :, row[i : i + chunk], col[i : i + chunk]], REACH, inside[i : i + chunk])
            for i in range(0, len(patch), chunk)
        ]
        return torch.cat(out).flatten(1)[order.argsort()]

    def _run(self, x: Tensor, halo: int | None, inside: Tensor | None) -> Tensor:
        """Maxima of the patches of x, whole regions (r, c, h, w) or, with a halo, crops (p, c, 28, 28)."""
        x = x.contiguous(memory_format=torch.channels_last)
        for block in self.blocks:
            assert isinstance(block, _Block)
            if self.recompute and torch.is_grad_enabled():
                x, moments = checkpoint(block, x, halo, inside, use_reentrant=False, preserve_rng_state=False)
            else:
                x, moments = block(x, halo, inside)
            block.track(moments)  # out here, because a checkpointed block runs twice
            if halo is not None and inside is not None:
                halo, inside = halo - 2, inside[..., 2:-2, 2:-2]
        return F.max_pool2d(x, PATCH)

    def _grid(self, region: Tensor, of: Tensor, rc: Tensor) -> tuple[int, int]:
        """Rows and columns of patches in a region, after checks."""
        if region.ndim != 4 or region.shape[1] != self.channels or region.shape[-2] % PATCH or region.shape[-1] % PATCH:
            raise ValueError(
                f"regions have shape {tuple(region.shape)}; expected (r, {self.channels}, h, w) with sides that are "
                f"multiples of {PATCH} px: set `channels` to those of the image, and fill regions up with zeros"
            )
        rows, cols = region.shape[-2] // PATCH, region.shape[-1] // PATCH
        last = torch.cat([of[:, None], rc], 1)  # (b, 3)
        if len(rc) and bool(((last < 0) | (last >= last.new_tensor([len(region), rows, cols]))).any()):
            raise ValueError(
                f"(region, row, column) of the patches go from {last.amin(0).tolist()} to {last.amax(0).tolist()}, but "
                f"there are {len(region)} regions of {rows} × {cols} patches: give `patch_rc` within its region"
            )
        return rows, cols


class _Block(nn.Module):
    """ReLU of the sum of two convolutions of 3 × 3 with batch norms, and of the input, brought to the new width."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(before, after, 3), nn.BatchNorm2d(after)
        self.conv2, self.norm2 = nn.Conv2d(after, after, 3), nn.BatchNorm2d(after)
        self.skip = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor, halo: int | None, inside: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """From x (p, c, h, w) to (p, f, h - 4, w - 4), or (p, f, h, w) with zeros around where `halo` is None.

        `halo` is the width of the frame in px that does not belong to the patch; `inside` (q, 1, h, w) is 0 where the
        first q crops lie outside their region. Also the means and variances of training, in pairs.
        """
        pad, frame = (1, 0) if halo is None else (0, halo)
        y = F.conv2d(x, self.conv1.weight, self.conv1.bias, padding=pad)
        y, first = _normalised(y, self.norm1, max(frame - 1, 0))
        y = F.conv2d(F.relu(_cut(y, inside, 1)), self.conv2.weight, self.conv2.bias, padding=pad)
        y, second = _normalised(y, self.norm2, max(frame - 2, 0))
        short = self.skip(x if halo is None else x[..., 2:-2, 2:-2])
        return F.relu(_cut(y + short, inside, 2)), [*first, *second]

    @torch.no_grad()
    def track(self, moments: list[Tensor]) -> None:
        """Moves the running statistics towards those of a training step, as `torch.nn.BatchNorm2d` does."""
        for norm, mean, var in zip((self.norm1, self.norm2), moments[::2], moments[1::2], strict=False):
            norm.running_mean.lerp_(mean, norm.momentum)  # type: ignore[union-attr, arg-type]
            norm.running_var.lerp_(var, norm.momentum)  # type: ignore[union-attr, arg-type]
            norm.num_batches_tracked.add_(1)  # type: ignore[union-attr]


def _cut(x: Tensor, inside: Tensor | None, frame: int) -> Tensor:
    """x (p, f, h, w), set to zero in place where its first crops lie outside their region."""
    if inside is not None and len(inside):
        x[: len(inside)] *= inside[..., frame:-frame, frame:-frame].to(x.dtype)
    return x


def _normalised(x: Tensor, norm: nn.BatchNorm2d, frame: int) -> tuple[Tensor, list[Tensor]]:
    """Batch norm of x (p, f, h, w) by the running statistics, or in training by those of x without its frame.

    Also mean and unbiased variance (f,) of training; none at evaluation.
    """
    if not norm.training:
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps), []
    out, mean, var = _CoreNorm.apply(x, norm.weight, norm.bias, frame, norm.eps)
    number = len(x) * (x.shape[-2] - 2 * frame) * (x.shape[-1] - 2 * frame)
    return out, [mean, var * number / max(number - 1, 1)]


def _core(x: Tensor, frame: int) -> Tensor:
    """x (p, f, h, w) without its frame; a view."""
    return x[..., frame : x.shape[-2] - frame, frame : x.shape[-1] - frame]


class _CoreNorm(torch.autograd.Function):
    """Batch norm whose statistics come from the core of each crop and whose frame is normalised by them too.

    It keeps its input only, and sums in float32 whatever the type of its input.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, frame: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Output (p, f, h, w), mean and biased variance (f,)."""
        core = _core(x, frame).contiguous(memory_format=torch.channels_last)
        mean, var = (moment.to(weight.dtype) for moment in torch.batch_norm_update_stats(core, None, None, 0.0))
        ctx.save_for_backward(x, weight, mean, var)
        ctx.frame, ctx.eps = frame, eps
        ctx.mark_non_differentiable(mean, var)
        return F.batch_norm(x, mean, var, weight, bias, eps=eps), mean, var

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """As if the statistics were constants, plus what flows through them to the core."""
        x, weight, mean, var = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        to_x, to_weight, to_bias = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, mean, var, None, None, False, ctx.eps, [True, True, True]
        )
        core = _core(x, ctx.frame)
        number, inverse = core.numel() // core.shape[1], (var + ctx.eps).rsqrt()
        # d mean = -weight/σ · Σ grad, d variance = -weight/2σ² · Σ grad (x - mean)/σ, over frame and core alike
        slope = -(weight * inverse * inverse * to_weight) / number  # (f,), on (x - mean)
        level = -(weight * inverse * to_bias) / number - slope * mean
        core_grad = torch.addcmul(_column(level, x), core, _column(slope, x))
        _core(to_x, ctx.frame).add_(core_grad)
        return to_x, to_weight, to_bias, None, None


def _column(value: Tensor, like: Tensor) -> Tensor:
    """(f,) as (f, 1, 1), in the type of another tensor."""
    return value.to(like.dtype)[:, None, None]
