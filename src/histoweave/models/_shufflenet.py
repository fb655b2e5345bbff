"""ShuffleNet V2 ×0.5 (Ma, Zhang, Zheng and Sun, ECCV 2018), which timm does not have.

Tensors are named as in torchvision, so that its weight files load.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Table 5 of the paper, column 0.5×: channels after the first convolution, (units, channels) of each stage, last channels
STEM, STAGES, LAST = 24, ((4, 48), (8, 96), (4, 192)), 1024


class ShuffleNetV2(nn.Module):
    """The network without its classifier; it answers to the calls that a `Trunk` makes of timm networks."""

    num_features = LAST

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(*_conv(3, STEM, 3, stride=2))
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        width, stages = STEM, []
        for units, out in STAGES:
            stages.append(nn.Sequential(_Halving(width, out), *(_Unit(out) for _ in range(units - 1))))
            width = out
        self.stage2, self.stage3, self.stage4 = stages
        self.conv5 = nn.Sequential(*_conv(width, LAST, 1))

    def forward_features(self, x: Tensor) -> Tensor:
        """The last feature map (b, 1024, h / 32, w / 32) of images x (b, 3, h, w)."""
        x = self.maxpool(self.conv1(x))
        return self.conv5(self.stage4(self.stage3(self.stage2(x))))

    def forward_head(self, x: Tensor, *, pre_logits: bool = True) -> Tensor:
        """What a classifier would read (b, 1024): the mean over the map x (b, 1024, h, w). There is no classifier."""
        return x.mean((2, 3))


class _Unit(nn.Module):
    """Half of the channels is transformed, the other half passes; then the halves are shuffled into one another."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch2 = nn.Sequential(*_bottleneck(width // 2, width // 2))

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, c, h, w) to the same shape."""
        passed, changed = x.chunk(2, dim=1)
        return _shuffle(passed, self.branch2(changed))


class _Halving(nn.Module):
    """Both halves are made from all channels, at half the resolution."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.branch1 = nn.Sequential(*_depthwise(width, stride=2), *_conv(width, out // 2, 1))
        self.branch2 = nn.Sequential(*_bottleneck(width, out // 2, stride=2))

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, c, h, w) to (b, out, h / 2, w / 2)."""
        return _shuffle(self.branch1(x), self.branch2(x))


def _shuffle(first: Tensor, second: Tensor) -> Tensor:
    """Channels of two maps (b, c / 2, h, w) taken in turn: (b, c, h, w)."""
    return torch.stack([first, second], dim=2).flatten(1, 2)


def _bottleneck(width: int, out: int, stride: int = 1) -> list[nn.Module]:
    return [*_conv(width, out, 1), *_depthwise(out, stride), *_conv(out, out, 1)]


def _conv(width: int, out: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(width, out, kernel, stride, padding=kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(out), nn.ReLU(inplace=True)]


def _depthwise(width: int, stride: int) -> list[nn.Module]:
    """A 3 × 3 convolution per channel, without the activation that others have."""
    conv = nn.Conv2d(width, width, 3, stride, padding=1, groups=width, bias=False)
    return [conv, nn.BatchNorm2d(width)]
