"""ShuffleNet and ViT-B: a network with one linear head, fine-tuned, the baselines of SpaRED (Mejia et al., MICCAI 2024).

+Δ of the paper, which learns differences from the training mean, is a switch of the target and no model of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from histoweave.batch import Batch, Card, Dims, FeedLike, Needs
from histoweave.models._checks import at_least, given, one_of
from histoweave.models._losses import masked_mse
from histoweave.models._trunk import Trunk, symmetries

SPARED = (
    "Used as in: Mejia G, Ruiz D, Cárdenas P, et al. Enhancing gene expression prediction from histology images with "
    "spatial transcriptomics completion. MICCAI 2024."
)


class _FineTuned(nn.Module):
    """Window → network → its own pooled features → Linear; everything is trained together."""

    needs: Needs = Needs.WINDOW  # as in the paper; an instance has its own

    def __init__(self, dims: Dims, network: Trunk | None, *, start: str, eight: bool) -> None:
        super().__init__()
        self.start, self.eight, self.trunk = one_of("start", start, ("random", "mean")), eight, network
        if network is None and dims.emb < 1:
            raise ValueError(f"trunk='frozen' reads embeddings, but dims.emb is {dims.emb}: give an encoder")
        self.needs = Needs.EMB if network is None else Needs.WINDOW
        self.head = nn.Linear(dims.emb if network is None else network.pooled_width, dims.genes)

    @torch.no_grad()
    def index(self, feed: FeedLike) -> None:
        """Starts the head at the mean target (g,), where that was asked for."""
        if self.start == "mean":
            self.head.bias.copy_(feed.y_mean())
            self.head.weight.zero_()

    def features(self, batch: Batch) -> Tensor:
        """What the head reads (b, d)."""
        if self.trunk is None:
            return given(batch.emb, "emb")
        window = given(batch.window, "window")
        if self.training or not self.eight:
            return self.trunk.pooled(window)
        return torch.stack([self.trunk.pooled(view) for view in symmetries(window)]).mean(0)

    def forward(self, batch: Batch) -> Tensor:
        """Predictions (b, g)."""
        return self.head(self.features(batch))

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error over the measured entries."""
        value = masked_mse(self(batch), batch.y, batch.y_mask)
        return value, {"mse": value.detach()}


class ShuffleNet(_FineTuned):
    """ShuffleNet V2 ×0.5 and a linear head: the fewest parameters of the methods that SpaRED compares.

    Parameters
    ----------
    dims
        Number of genes, and width of the frozen embeddings (used with ``trunk="frozen"`` only).
    trunk
        ``"trainable"``: the paper's ShuffleNet; ``"frozen"``: a linear head on the spot's embedding, without a window;
        else a timm architecture to train.
    start
        ``"random"``: the head as the paper has it, predicting about 0 at first; ``"mean"``: its bias starts at the
        training mean and its weight at zero, so that short training is not spent on finding the one and on unlearning
        the other.
    eight
        Average over the eight rotations and reflections of the window at evaluation (``average_test`` of their code).
    augment, init
        Random flips and turns of windows in training; weights of the trunk. The paper starts from ImageNet; without
        weights the trunk starts at random.

    Notes
    -----
    **Differences from the authors' code.** (1) Their loss is the mean over all entries, those that a completion filled
    in too; here only entries that were measured count. Fill them in before, if that is wanted. (2) Their head starts at
    random; ``start="mean"`` is ours.
    """

    card: ClassVar[Card] = Card(
        title="ShuffleNet",
        citation="Ma N, Zhang X, Zheng HT, Sun J. ShuffleNet V2: practical guidelines for efficient CNN architecture "
        f"design. ECCV 2018. {SPARED}",
    )

    def __init__(
        self,
        dims: Dims,
        *,
        trunk: str = "trainable",
        start: Literal["random", "mean"] = "random",
        eight: bool = False,
        augment: bool = True,
        init: Mapping[str, Tensor] | None = None,
    ) -> None:
        network = "shufflenet_v2_x0_5" if trunk == "trainable" else trunk
        made = None if trunk == "frozen" else Trunk(network, augment=augment, init=init)
        super().__init__(dims, made, start=start, eight=eight)

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """The network itself is small enough."""
        return {"augment": False}


class ViTB(_FineTuned):
    """A vision transformer (ViT-B/16) and a linear head on its class token.

    Parameters
    ----------
    dims
        Number of genes, and width of the frozen embeddings (used with ``trunk="frozen"`` only).
    trunk
        ``"trainable"``: the paper's ViT-B/16; ``"frozen"``: a linear head on the spot's embedding, without a window;
        else a timm architecture to train.
    side
        Side of the images in px that the network is bound to by its position embedding; windows of another side are
        resized to it, so that models which look at smaller windows can be compared on the same ones. Cut windows of
        this side (``Window(out=224)``) to give the network real pixels.
    start
        ``"random"``: the head as the paper has it, predicting about 0 at first; ``"mean"``: its bias starts at the
        training mean and its weight at zero, so that short training is not spent on finding the one and on unlearning
        the other.
    eight
        Average over the eight rotations and reflections of the window at evaluation (``average_test`` of their code).
    augment, init
        Random flips and turns of windows in training; weights of the trunk, in the spelling of timm or of torchvision,
        whose ImageNet file is the one that the paper starts from. Without weights the trunk starts at random.

    Notes
    -----
    **Differences from the authors' code.** (1) Their loss is the mean over all entries, those that a completion filled
    in too; here only entries that were measured count. Fill them in before, if that is wanted. (2) Their head starts at
    random; ``start="mean"`` is ours.
    """

    card: ClassVar[Card] = Card(
        title="ViT-B",
        citation="Dosovitskiy A, Beyer L, Kolesnikov A, et al. An image is worth 16x16 words: transformers for image "
        f"recognition at scale. ICLR 2021. {SPARED}",
    )

    def __init__(
        self,
        dims: Dims,
        *,
        trunk: str = "trainable",
        side: int = 224,
        start: Literal["random", "mean"] = "random",
        eight: bool = False,
        augment: bool = True,
        init: Mapping[str, Tensor] | None = None,
    ) -> None:
        network = "vit_base_patch16_224" if trunk == "trainable" else trunk
        at_least("side", side, 1)
        made = None if trunk == "frozen" else Trunk(network, augment=augment, init=init, side=side)
        super().__init__(dims, made, start=start, eight=eight)

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """Arguments of a small model with every part."""
        return {"trunk": "test_vit", "side": 48, "start": "mean", "augment": False}
