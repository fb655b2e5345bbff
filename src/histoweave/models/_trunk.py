"""Trainable image trunks: uint8 windows in, feature tokens out."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from histoweave import _optional
from histoweave.models._shufflenet import ShuffleNetV2

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
PREFIXES = ("module.", "model.", "resnet.", "backbone.", "encoder.", "net.")  # wrappers that checkpoints come in
OWN = {"shufflenet_v2_x0_5": ShuffleNetV2}  # networks that timm does not have, under torchvision's names
SPELLINGS = (  # how torchvision's files write what timm writes otherwise: DenseNet, then the vision transformer
    (r"(denselayer\d+\.(?:norm|conv))\.(\d)\.", r"\1\2."),
    (r"^class_token$", "cls_token"),
    (r"^pos_embedding$", "pos_embed"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"^ln\.", "norm."),
    (r"\.ln_(\d)\.", r".norm\1."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.(?:0|linear_1)\.", ".mlp.fc1."),
    (r"\.mlp\.(?:3|linear_2)\.", ".mlp.fc2."),
)


class Trunk(nn.Module):
    """A network without its head, over windows of bytes.

    Windows stay bytes until they are on the device; there they are augmented (training only), scaled to [0, 1] and
    normalised. The constructor downloads nothing: weights are random until `load`.

    Parameters
    ----------
    name
        Any timm architecture, or one of `OWN`. Behind a question mark, JSON: arguments of the architecture, and the
        `mean` and `std` of its colours where they are not ImageNet's.
    augment
        In training, flip and rotate each window at random (all eight symmetries of the square alike).
    init
        Weights for `load`.
    side
        Resize windows of another side to this one, for architectures that are bound to it; without, windows are taken
        as they are, and one that does not fit is an error.

    Attributes
    ----------
    width, pooled_width : int
        Width of a token, and of what `pooled` gives (a few architectures widen it after pooling).
    init : str
        ``"random"`` or ``"given"``.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, name: str, *, augment: bool = True, init: Mapping[str, Tensor] | None = None, side: int | None = None
    ) -> None:
        super().__init__()
        self.name, _, options = name.partition("?")
        self.augment, self.side, self.init = augment, side, "random"
        given = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD} | json.loads(options or "{}")
        mean, std = (torch.tensor(given.pop(key)).view(3, 1, 1) for key in ("mean", "std"))
        self.net = _network(self.name, given)
        self.width: int = self.net.num_features
        self.pooled_width: int = getattr(self.net, "head_hidden_size", self.width)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        if init is not None:
            self.load(init)

    def forward(self, window: Tensor) -> Tensor:
        """Tokens (b, t, width) of windows (b, 3, h, w) uint8: cells of the last feature map, or patch tokens."""
        features = self._features(window)
        if features.ndim == 3:
            return features[:, getattr(self.net, "num_prefix_tokens", 0) :]
        if features.shape[1] != self.width:  # some timm networks keep channels last
            return features.flatten(1, 2)
        return features.flatten(2).transpose(1, 2)

    def pooled(self, window: Tensor) -> Tensor:
        """What the architecture's own classifier reads (b, pooled_width) of windows (b, 3, h, w) uint8.

        The mean over the map in a convolutional network, the class token in a vision transformer.
        """
        return self.net.forward_head(self._features(window), pre_logits=True)

    def _features(self, window: Tensor) -> Tensor:
        """Map (b, c, h', w'), or (b, h', w', c), or tokens (b, t, c) of windows (b, 3, h, w) uint8."""
        x = random_symmetry(window) if self.training and self.augment else window
        x = x.float() / 255
        if self.side is not None:
            x = resized(x, self.side)
        x = (x - self.mean) / self.std
        try:
            return self.net.forward_features(x.contiguous(memory_format=torch.channels_last))
        except AssertionError as error:  # how timm says that an architecture is bound to a size
            given = f"{x.shape[-2]} × {x.shape[-1]} px"
            change = "`out`" if self.side is None else "`side`"
            raise ValueError(
                f"trunk {self.name!r} does not take windows of {given}: {error}; change {change}"
            ) from error

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take weights, whatever wrapper prefix their names carry; heads and other surplus entries are ignored.

        Raises
        ------
        ValueError
            When an entry is missing or has another shape. Nothing is changed then.
        """
        own = self.net.state_dict()
        given = {key if key in own else plain_key(key): value for key, value in state.items()}
        wrong = [k for k, v in own.items() if k not in given and not k.endswith("num_batches_tracked")]
        wrong += [
            f"{k} {tuple(given[k].shape)}, not {tuple(v.shape)}"
            for k, v in own.items()
            if k in given and given[k].shape != v.shape
        ]
        if wrong:
            raise ValueError(
                f"the weights do not fit trunk {self.name!r}: {len(wrong)} of {len(own)} entries are missing or have "
                f"another shape ({'; '.join(wrong[:3])}); give weights of this architecture"
            )
        self.net.load_state_dict({k: given.get(k, v) for k, v in own.items()})
        self.init = "given"


def _network(name: str, options: dict[str, Any]) -> Any:
    """A network without its head, with random weights, that has timm's `forward_features` and `forward_head`."""
    if name in OWN:
        return OWN[name]()
    timm = _optional.timm()
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, [*OWN, *timm.list_models()], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"trunk {name!r} is unknown; expected the name of a timm architecture{hint}")
    if "mlp_layer" in options:
        options = options | {"mlp_layer": getattr(timm.layers, options["mlp_layer"])}
    return timm.create_model(name, pretrained=False, num_classes=0, **options)


def plain_key(key: str) -> str:
    """Name of an entry without wrapper prefixes, in the spelling of timm."""
    while key.startswith(PREFIXES):
        key = key.split(".", 1)[1]
    for theirs, ours in SPELLINGS:
        key = re.sub(theirs, ours, key)
    return key


def resized(window: Tensor, side: int) -> Tensor:
    """Windows (b, 3, h, h), float, brought to (b, 3, side, side); those of that side already are left as they are."""
    _check_square(window)
    if window.shape[-1] == side:
        return window
    return F.interpolate(window, size=(side, side), mode="bilinear", antialias=True)


def random_symmetry(window: Tensor) -> Tensor:
    """Each window (b, c, h, h) flipped left-right, flipped up-down and turned by 90°, each with probability 1/2."""
    _check_square(window)
    flip, flop, turn = torch.rand(3, len(window), 1, 1, 1, device=window.device) < 0.5
    window = torch.where(flip, window.flip(-1), window)
    window = torch.where(flop, window.flip(-2), window)
    return torch.where(turn, window.rot90(1, (-2, -1)), window)


def symmetries(window: Tensor) -> Iterator[Tensor]:
    """The eight rotations and reflections of windows (b, c, h, h), one batch after the other."""
    _check_square(window)
    for turned in (window, window.rot90(1, (-2, -1))):
        for flipped in (turned, turned.flip(-1)):
            yield flipped
            yield flipped.flip(-2)


def _check_square(window: Tensor) -> None:
    if window.shape[-1] != window.shape[-2]:
        raise ValueError(
            f"windows have shape {tuple(window.shape)}; expected squares (b, 3, h, h), because they are turned by 90°"
        )
