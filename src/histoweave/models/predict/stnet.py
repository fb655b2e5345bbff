"""ST-Net: a DenseNet121 from a window to expression (He et al., Nature Biomedical Engineering 2020)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from histoweave.batch import Batch, Card, Dims, FeedLike, Needs
from histoweave.models._checks import given, one_of
from histoweave.models._losses import spot_mse
from histoweave.models._trunk import Trunk, symmetries

COLOUR_BATCHES, COLOUR_SIZE = 12, 32  # the authors estimate colour on 12 training batches of 32 windows


class STNet(nn.Module):
    """A convolutional network with one linear head that starts at the mean expression of the training spots.

    Before training, `index` sets the head's bias to that mean (its weight is zero, so that every first prediction is
    the mean) and the colour normalisation to the mean and deviation of training windows. At evaluation the prediction
    is the average over the eight rotations and reflections of the window.

    Parameters
    ----------
    dims
        Number of genes, and width of the frozen embeddings (used with ``trunk="frozen"`` only).
    trunk
        ``"trainable"``: the paper's DenseNet121; ``"frozen"``: a linear head on the spot's embedding, without a window;
        else a timm architecture to train.
    reduction
        How spots make a loss: ``"sum"`` as in the paper, whose learning rate belongs to it, or ``"mean"``.
    eight
        Average over the eight symmetries at evaluation.
    augment
        Random flips and turns of windows in training.
    init
        Weights of the trunk. The paper starts from ImageNet; without weights the trunk starts at random.

    Notes
    -----
    **Differences from the authors' code.** (1) Their code takes the colour statistics from the first 12 shuffled
    batches; here 12 batches are spread evenly over the training spots, so that the result does not depend on an order.
    (2) Genes that are not measured in a spot are left out of its mean; theirs are filled with zeros before. (3) To
    train only the last layers, and their colour jitter (off), are not offered. Ports of ST-Net differ more: one has no
    average over symmetries, no start at the mean and a clamp at 0; another freezes the trunk and keeps the learning
    rate of the summed loss for a mean.
    """

    card: ClassVar[Card] = Card(
        title="ST-Net",
        citation="He B, Bergenstråhle L, Stenbeck L, et al. Integrating spatial gene expression and breast tumour "
        "morphology via deep learning. Nature Biomedical Engineering 4, 827-834 (2020).",
        published={"BC1 MSE": 0.260, "BC1 PCC(M)": 0.194, "BC1 PCC(H)": 0.345, "BC2 MSE": 0.209, "BC2 PCC(M)": 0.116}
        | {"BC2 PCC(H)": 0.223, "SCC MSE": 0.294, "SCC PCC(M)": 0.274, "SCC PCC(H)": 0.382},  # as run for TRIPLEX
    )
    needs: Needs = Needs.WINDOW  # as in the paper; an instance has its own

    def __init__(
        self,
        dims: Dims,
        *,
        trunk: str = "trainable",
        reduction: Literal["sum", "mean"] = "sum",
        eight: bool = True,
        augment: bool = True,
        init: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.reduction, self.eight = one_of("reduction", reduction, ("sum", "mean")), eight
        self.trunk: Trunk | None = None
        if trunk == "frozen":
            if dims.emb < 1:
                raise ValueError(f"trunk='frozen' reads embeddings, but dims.emb is {dims.emb}: give an encoder")
            self.needs, width = Needs.EMB, dims.emb
        else:
            self.trunk = Trunk("densenet121" if trunk == "trainable" else trunk, augment=augment, init=init)
            self.needs, width = Needs.WINDOW, self.trunk.width
        self.head = nn.Linear(width, dims.genes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, batch: Batch) -> Tensor:
        """Predictions (b, g)."""
        return self.head(self.features(batch))

    def features(self, batch: Batch) -> Tensor:
        """What the head reads (b, d)."""
        if self.trunk is None:
            return given(batch.emb, "emb")
        window = given(batch.window, "window")
        if self.training or not self.eight:
            return self.trunk(window).mean(1)
        # The head is linear, so averaging features is averaging predictions.
        return torch.stack([self.trunk(view).mean(1) for view in symmetries(window)]).mean(0)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared error averaged over the measured genes of a spot, then summed (or averaged) over spots."""
        spots = spot_mse(self(batch), batch.y, batch.y_mask)  # (b,)
        total = spots.sum() if self.reduction == "sum" else spots.mean()
        return total, {"mse": spots.detach().mean()}

    @torch.no_grad()
    def index(self, feed: FeedLike) -> None:
        """Start the head at the mean target (g,), and take the colour (3,) of training windows."""
        self.head.bias.copy_(feed.y_mean())
        if self.trunk is None:
            return
        every = max(1, -(-feed.n // COLOUR_SIZE) // COLOUR_BATCHES)
        moments = []  # per window: mean and mean square of each channel
        for i, batch in enumerate(feed.batches(COLOUR_SIZE)):
            if i % every == 0:
                x = given(batch.window, "window").double() / 255
                moments.append(torch.stack([x.mean((2, 3)), x.square().mean((2, 3))]))  # (2, b, 3)
        mean, square = torch.cat(moments, 1).mean(1)
        std = (square - mean.square()).clamp(min=0).sqrt().clamp(min=1 / 255)  # plain windows: one grey level
        self.trunk.mean.copy_(mean.view(3, 1, 1))
        self.trunk.std.copy_(std.view(3, 1, 1))

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """Arguments of a small model with every part."""
        return {"trunk": "test_efficientnet", "augment": False}  # no block of this trunk starts at zero
