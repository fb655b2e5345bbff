"""HisToGene: a vision transformer whose tokens are the spots of a section (Pang, Su and Li, bioRxiv 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from histoweave.batch import Batch, Card, Dims, FeedLike, Needs
from histoweave.models._checks import at_least, given, one_of
from histoweave.models._layers import Stack
from histoweave.models._losses import masked_mse
from histoweave.models._section import Positions, normalised, resized


class HisToGene(nn.Module):
    """All pixels of a window through one linear map make a token; tokens of a whole section attend to one another.

    A learned vector of the spot's lattice row and one of its column are added to the token.

    Parameters
    ----------
    dims
        Number of genes, and width of the frozen embeddings (used with ``trunk="frozen"`` only).
    trunk
        ``"trainable"``: the paper's linear map of the pixels; ``"frozen"``: one of the spot's embedding, without a
        window.
    side
        Windows are resized to this many pixels.
    width, depth, heads, ratio, dropout
        Width of a token, number of blocks, attention heads, width inside the feed-forward part as a multiple, dropout.
    positions
        Entries of the tables of rows and of columns. `index` lengthens them where training sections need more; a spot
        that lies outside at prediction gets the entry at that end.
    start
        ``"random"`` as in the paper, predicting about 0 at first; ``"mean"``: the head's bias starts at the training
        mean, so that short training is not spent on finding it.
    legacy
        Habits of the authors' code to reproduce, by name (below).

    Notes
    -----
    **Differences from the authors' code.** (1) Their windows enter as raw values from 0 to 255, which drown the
    positions at first; here colours are normalised, unless ``legacy="raw-pixels"``.
    (2) Their windows are flattened column by column, channels last, which only permutes the inputs of a linear map: not
    reproduced. (3) Their class has 4 blocks unless told otherwise; 8, as here, is what they report. (4) Their tables
    have 64 entries whatever the section; a section beyond fails there. (5) Entries that are not measured do not count
    in the loss. Prediction between spots, on windows that overlap by half, is not offered: their positions there are
    pixels over a thirtieth of the section's extent, another scale than the trained one.
    """

    card: ClassVar[Card] = Card(
        title="HisToGene",
        citation="Pang M, Su K, Li M. Leveraging information in spatial transcriptomics to predict super-resolution gene "
        "expression from histology images in tumors. bioRxiv 2021.11.28.470212 (2021).",
        published={"BC1 MSE": 0.314, "BC1 PCC(M)": 0.168, "BC1 PCC(H)": 0.302, "BC2 MSE": 0.194, "BC2 PCC(M)": 0.100}
        | {"BC2 PCC(H)": 0.219, "SCC MSE": 0.270, "SCC PCC(M)": 0.133, "SCC PCC(H)": 0.261},  # as run for TRIPLEX
        wrong="windows are raw values from 0 to 255, and folds leave out one section while others of the same patient "
        "stay in the training",
    )
    needs: Needs = Needs.WINDOW | Needs.ARRAY_XY | Needs.WHOLE_SECTION  # as in the paper; an instance has its own

    def __init__(
        self,
        dims: Dims,
        *,
        trunk: Literal["trainable", "frozen"] = "trainable",
        side: int = 112,
        width: int = 1024,
        depth: int = 8,
        heads: int = 16,
        ratio: int = 2,
        dropout: float = 0.1,
        positions: int = 64,
        start: Literal["random", "mean"] = "random",
        legacy: str | Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.legacy = (legacy,) if isinstance(legacy, str) else tuple(legacy)
        for habit in self.legacy:
            one_of("legacy", habit, ("raw-pixels",))
        self.frozen = one_of("trunk", trunk, ("trainable", "frozen")) == "frozen"
        self.start, self.side = one_of("start", start, ("random", "mean")), at_least("side", side, 1)
        if self.frozen and dims.emb < 1:
            raise ValueError(f"trunk='frozen' reads embeddings, but dims.emb is {dims.emb}: give an encoder")
        self.needs = (Needs.EMB if self.frozen else Needs.WINDOW) | Needs.ARRAY_XY | Needs.WHOLE_SECTION
        self.token = nn.Linear(dims.emb if self.frozen else 3 * side * side, width)
        self.positions = Positions(width, positions)
        self.dropout = nn.Dropout(dropout)
        self.transformer = Stack(depth, width, heads, width * at_least("ratio", ratio, 1), dropout)
        self.head = nn.Linear(width, dims.genes)

    @torch.no_grad()
    def index(self, feed: FeedLike) -> None:
        """Makes the tables of positions long enough, and starts the head at the mean target (g,) where asked for."""
        self.positions.cover(feed)
        if self.start == "mean":
            self.head.bias.copy_(feed.y_mean())

    def forward(self, batch: Batch) -> Tensor:
        """Predictions (b, g)."""
        x = self.token(self._seen(batch)) + self.positions(given(batch.array_xy, "array_xy"))  # (b, d)
        return self.head(self.transformer(self.dropout(x)[None])[0])  # the spots are the tokens of one sequence

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error over the measured entries of the section."""
        value = masked_mse(self(batch), batch.y, batch.y_mask)
        return value, {"mse": value.detach()}

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """Arguments of a small model with every part; the tables are too short for any section."""
        return {"side": 8, "width": 32, "depth": 2, "heads": 2, "positions": 2}

    def _seen(self, batch: Batch) -> Tensor:
        """The embedding of each spot (b, emb), or its pixels (b, 3 * side * side)."""
        if self.frozen:
            return given(batch.emb, "emb")
        x = resized(given(batch.window, "window"), self.side)
        return (x if "raw-pixels" in self.legacy else normalised(x)).flatten(1)
