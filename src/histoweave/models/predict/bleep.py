"""BLEEP: images and expression in one space, and expression looked up there (Xie et al., NeurIPS 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from histoweave.batch import Batch, Card, Dims, FeedLike, Needs
from histoweave.models._bank import Bank, average
from histoweave.models._checks import at_least, given, one_of
from histoweave.models._trunk import Trunk

CHOICES = {
    "retrieval": ("simple", "average", "weighted"),
    "legacy": ("skip-image-head", "target-temperature"),
}


class BLEEP(nn.Module):
    """Contrastive learning of pairs (window, expression of the spot), then retrieval of training expression.

    One head projects image features, another projects expression. Training pulls the two projections of a spot
    together. To predict, the projection of the window is compared with those of the expression of all training spots,
    and the expression of the `k` most similar ones (cosine) is combined.

    Parameters
    ----------
    dims
        Number of genes, and width of the frozen embeddings (used with ``trunk="frozen"`` only).
    trunk
        ``"trainable"``: the paper's ResNet50; ``"frozen"``: the image head reads the spot's embedding and no window is
        read; else a timm architecture to train.
    width, dropout
        Of both projections.
    temperature
        By which similarities are divided, in the logits and in the soft targets.
    normalize
        Whether the loss compares projections of unit length. As published they have the length √width, so that a spot
        is similar to itself by 256 and the soft targets are one-hot: the softening only acts with ``normalize=True``
        or a high temperature.
    detach
        Whether the soft targets teach without being moved themselves; in the paper they are.
    retrieval, k
        ``"average"``: mean of the `k` most similar training spots; ``"weighted"``: weighted by exp(−d²), where d is the
        distance of the projections; ``"simple"``: the most similar one alone.
    augment, init
        Random flips and turns of windows in training; weights of the trunk. The paper starts from ImageNet; without
        weights the trunk starts at random.
    legacy
        Defects of public code to reproduce, by name (below).

    Notes
    -----
    **Differences from the authors' code.** (1) The port that came with TRIPLEX skips the image head at inference and
    compares raw image features with projected expression, which runs because both are 512 wide there:
    ``legacy="skip-image-head"``. (2) The authors' code multiplied the soft targets' similarities by the temperature at
    first, and its variant classes still do: ``legacy="target-temperature"``; at 1 this is the same. (3) Their windows
    were BGR bytes without normalisation and were flipped and turned at inference too; here they are RGB, normalised,
    and turned in training only. (4) They correct the gene matrix for batch effects over all slides, the test slide
    included; here nothing is learnt from it. (5) They stop on a random fifth of the spots, here on held-out patients.
    (6) They sum similarities within the part of a batch that a device holds, here within the batch. (7) Where a gene of
    a spot is not measured, the expression head reads its training mean; the spots that are looked up are averaged over
    those that have the gene. Spots without any gene take no part.
    """

    card: ClassVar[Card] = Card(
        title="BLEEP",
        citation="Xie R, Pang K, Chung SW, Perciani CT, MacParland SA, Wang B, Bader GD. Spatially resolved gene "
        "expression prediction from histology images via bi-modal contrastive learning. NeurIPS 2023.",
        published={"BC1 MSE": 0.277, "BC1 PCC(M)": 0.151, "BC1 PCC(H)": 0.277, "BC2 MSE": 0.235, "BC2 PCC(M)": 0.095}
        | {"BC2 PCC(H)": 0.193, "SCC MSE": 0.297, "SCC PCC(M)": 0.269, "SCC PCC(H)": 0.396},  # as run for TRIPLEX
        retrieves=True,
        wrong="batch effects are corrected over all slides, the test slide included, and windows are turned at random at "
        "inference; the port that came with TRIPLEX skips the image head at inference",
    )
    needs: Needs = Needs.WINDOW  # as in the paper; an instance has its own
    reference: Tensor

    def __init__(
        self,
        dims: Dims,
        *,
        trunk: str = "trainable",
        width: int = 256,
        dropout: float = 0.1,
        temperature: float = 1.0,
        normalize: bool = False,
        detach: bool = False,
        retrieval: Literal["simple", "average", "weighted"] = "average",
        k: int = 50,
        augment: bool = True,
        legacy: str | Sequence[str] = (),
        init: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.legacy = (legacy,) if isinstance(legacy, str) else tuple(legacy)
        for name, value in [("retrieval", retrieval), *(("legacy", defect) for defect in self.legacy)]:
            one_of(name, value, CHOICES[name])
        if not temperature > 0:
            raise ValueError(f"temperature={temperature!r}; expected a number above 0, because it divides similarities")
        if trunk == "frozen" and dims.emb < 1:
            raise ValueError(f"trunk='frozen' reads embeddings, but dims.emb is {dims.emb}: give an encoder")
        self.temperature, self.normalize, self.detach = temperature, normalize, detach
        self.retrieval, self.k = retrieval, 1 if retrieval == "simple" else at_least("k", k, 1)
        self.trunk: Trunk | None = None
        if trunk != "frozen":
            self.trunk = Trunk("resnet50" if trunk == "trainable" else trunk, augment=augment, init=init)
        self.needs = Needs.WINDOW if self.trunk else Needs.EMB
        image_width = self.trunk.pooled_width if self.trunk else dims.emb
        if "skip-image-head" in self.legacy and image_width != width:
            raise ValueError(
                f"legacy='skip-image-head' compares image features, {image_width} wide, with projected expression, "
                f"width={width}; it only runs where they are equally wide: give width={image_width}"
            )
        self.image_head = _Projection(image_width, width, dropout)
        self.spot_head = _Projection(dims.genes, width, dropout)
        self.bank = Bank(0, dims.genes)  # without keys: projections of its values, which change as the head learns
        self.register_buffer("reference", torch.empty(0, width), persistent=False)  # (n, d); empty: to be made
        self.register_load_state_dict_post_hook(_forget)

    def index(self, feed: FeedLike) -> None:
        """Keeps the expression of the training spots."""
        self.bank.fill(feed.reading(Needs.NONE), key=lambda batch: batch.y[:, :0])
        _forget(self)

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002 - the signature of torch
        """Training makes the projected references outdated."""
        if mode:
            _forget(self)
        return super().train(mode)

    def forward(self, batch: Batch) -> Tensor:
        """Predictions (b, g). In training a spot finds spots of other patients only."""
        image = self._image(batch)
        query = image if "skip-image-head" in self.legacy else self.image_head(image)  # (b, d)
        reference = self._references()  # (n, d)
        similarity = F.normalize(query, dim=1) @ F.normalize(reference, dim=1).T  # (b, n)
        k = min(self.k, len(reference))
        if self.training:
            own = self.bank.same_unit(batch.spot)
            similarity, k = similarity.masked_fill(own, -torch.inf), min(k, int((~own).sum(1).min()))
            if k < 1:
                raise ValueError(
                    "a training spot has no other patient (section, block) to look up; train on more spots"
                )
        near = similarity.topk(k, dim=1).indices  # (b, k); spots that tie have the same expression
        weight, logits = torch.full_like(similarity[:, :k], 1 / k), None
        if self.retrieval == "weighted":
            # The published weights exp(-(d² - d₁² + 1)) are averaged over their sum, in which the constants cancel.
            logits = (query[:, None] - reference[near]).square().sum(-1).neg()
            weight = logits.softmax(1)
        values = self.bank.values
        made = F.embedding_bag(near, values, per_sample_weights=weight.to(values), mode="sum")
        missing = made.isnan()  # a gene that some of those found do not have
        return torch.where(missing, average(values, near, logits), made) if bool(missing.any()) else made

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of who belongs to whom in the batch, spot → image and image → spot, with soft targets."""
        some = batch.y_mask.any(1)
        y, measured = batch.y[some], batch.y_mask[some]
        y = y if bool(measured.all()) else torch.where(measured, y, self.bank.mean())
        image, spot = self.image_head(self._image(batch)[some]), self.spot_head(y)  # (b, d)
        if self.normalize:
            image, spot = F.normalize(image, dim=1), F.normalize(spot, dim=1)
        logits = spot @ image.T / self.temperature  # (b, b)
        alike = (image @ image.T + spot @ spot.T) / 2
        factor = self.temperature if "target-temperature" in self.legacy else 1 / self.temperature
        target = (alike * factor).softmax(1)
        if self.detach:
            target = target.detach()
        n = max(len(logits), 1)
        by_spot = -(target * logits.log_softmax(1)).sum() / n
        by_image = -(target * logits.log_softmax(0)).sum() / n  # the transposes of both, row by row
        return (by_spot + by_image) / 2, {"spot": by_spot.detach(), "image": by_image.detach()}

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """Arguments of a small model with every part."""
        sizes = {"trunk": "test_resnet", "width": 32, "retrieval": "weighted", "k": 3}
        return sizes | {"normalize": True, "temperature": 0.1, "augment": False}

    def _image(self, batch: Batch) -> Tensor:
        """Image features (b, f)."""
        return given(batch.emb, "emb") if self.trunk is None else self.trunk.pooled(given(batch.window, "window"))

    def _references(self) -> Tensor:
        """Projected expression of the training spots (n, d); made once between two times of training."""
        if self.training:
            return self.spot_head(self.bank.expression())
        if not len(self.reference):
            with torch.no_grad():
                self.reference = self.spot_head(self.bank.expression())
        return self.reference


class _Projection(nn.Module):
    """Linear, then a residual GELU layer, then a norm."""

    def __init__(self, given: int, width: int, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(given, width)
        self.residual = nn.Sequential(nn.GELU(), nn.Linear(width, width), nn.Dropout(dropout))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, given) to (b, width)."""
        x = self.linear(x)
        return self.norm(x + self.residual(x))


def _forget(model: Any, *_: object) -> None:
    """Drops the projected references: what made them has changed."""
    model.reference = model.reference.new_empty(0, model.reference.shape[1])
