"""The networks behind the encoder table: uint8 windows in, pooled features out, classifiers removed."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from histoweave import _optional

_SEED = 20240501  # of weights that are asked to be random, so that two runs agree


class Trunk(nn.Module):
    """A row's network with its own normalisation before it and its pooling behind it.

    `net` is the bare network: its names are those of the weights' file. What trains on pixels trains this module.
    """

    net: Any  # torch.nn.Module; its methods differ from family to family
    mean: Tensor
    std: Tensor

    def __init__(self, row: Mapping[str, Any], px: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            self.net = _BUILDERS[row["net"]](row, px)
        self.pooling = row["pooling"]
        for name in ("mean", "std"):
            scale = 255.0 * torch.tensor(row[name], dtype=torch.float32).view(1, 3, 1, 1)
            self.register_buffer(name, scale, persistent=False)
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        """Map uint8 windows (b, 3, h, w) to features (b, d)."""
        x = (pixels.to(self.mean.dtype) - self.mean) / self.std  # (b, 3, h, w)
        if self.pooling == "mean":
            return self.net.extract_features(x).mean((2, 3))  # (b, d, h, w) -> (b, d)
        if self.pooling == "cls+mean":
            tokens = self.net.forward_features(x)  # (b, prefix + k, d / 2)
            return torch.cat([tokens[:, 0], tokens[:, self.net.num_prefix_tokens :].mean(1)], dim=1)
        return self.net(x)


class ConvStem(nn.Module):
    """The first layers of CTransPath: two strided convolutions and a projection in place of Swin's patch embedding."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half, quarter = width // 4, width // 8
        self.proj = nn.Sequential(
            nn.Conv2d(3, quarter, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(quarter),
            nn.ReLU(),
            nn.Conv2d(quarter, half, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(),
            nn.Conv2d(half, width, 1),
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (b, 3, h, w) to tokens on their grid (b, h / 4, w / 4, width)."""
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


def _lite(row: Mapping[str, Any], px: int) -> nn.Module:
    lite = import_module("efficientnet_lite_pytorch")
    net = lite.EfficientNet.from_name("efficientnet-lite0", image_size=px)  # the padding depends on the side
    net._fc = nn.Identity()
    return net


def _timm(row: Mapping[str, Any], px: int) -> nn.Module:
    timm = _optional.timm()
    options = dict(row["options"])
    if "mlp_layer" in options:
        options["mlp_layer"] = getattr(timm.layers, options["mlp_layer"])
    return timm.create_model(row["arch"], pretrained=False, num_classes=0, **options)


def _ctranspath(row: Mapping[str, Any], px: int) -> nn.Module:
    net: Any = _timm(row, px)
    net.patch_embed = ConvStem(net.patch_embed.proj.out_channels)
    return net


def _tiny(row: Mapping[str, Any], px: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=2),
        nn.ReLU(),
        nn.Conv2d(8, row["dim"], 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


_BUILDERS = {"efficientnet-lite0": _lite, "timm": _timm, "ctranspath": _ctranspath, "tiny": _tiny}
