"""The adaptive median of SpaRED as a completer."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from histoweave.batch import Batch, Card, Dims, FeedLike, Needs
from histoweave.models._checks import given
from histoweave.models._losses import masked_mse


class Median(nn.Module):
    """Fills a missing entry with the median of the gene in the smallest neighbourhood where that is not 0.

    `histoweave.pp.median_fill` does it, over the visible entries of the whole section: neighbourhoods of 1 to 4 hops,
    then all values of the section. Entries that are visible keep their value.

    Notes
    -----
    **Differences from the authors' code.** Those of `histoweave.pp.median_fill`. It runs after entries are hidden, on
    the same visible matrix that every other method is given.
    """

    card: ClassVar[Card] = Card(
        title="Adaptive median",
        citation="Mejia G, Ruiz D, Cárdenas P, et al. Enhancing gene expression prediction from histology images with "
        "spatial transcriptomics completion. MICCAI 2024 (the median that SpaCKLE is compared with).",
        task="complete",
        learns="none",
    )
    needs: Needs = Needs.FILL

    def __init__(self, dims: Dims) -> None:
        super().__init__()
        self.genes = dims.genes

    def index(self, feed: FeedLike) -> None:
        """Nothing is learnt."""

    def forward(self, batch: Batch) -> Tensor:
        """The filled expression (b, g)."""
        return given(batch.fill, "fill").clone()

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Masked MSE, for reports."""
        value = masked_mse(self(batch), batch.y, batch.y_mask)
        return value, {"mse": value}

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """There is nothing to make smaller."""
        return {}
