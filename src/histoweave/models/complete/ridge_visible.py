"""Linear completion from everything that is visible: the other genes of the spot, and all genes of its neighbours."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from histoweave.batch import Batch, Card, Dims, FeedLike, Needs
from histoweave.models._checks import at_least
from histoweave.models._losses import masked_mse
from histoweave.models.complete._around import NEEDS, Around, Piece
from histoweave.models.complete._masked import CHOOSING, Normal, Pairs, above_zero, whole_numbers


class RidgeVisible(nn.Module):
    """Ridge on section and neighbours, then the conditional mean given the other visible genes of the spot.

    The first part starts from the mean of the gene's visible entries in the section, and regresses each gene on means
    over visible neighbours: of the gene itself, and of all genes as principal components. Means are shrunk by the number
    of visible values they are made of, so that one without any is 0. The second part takes what this leaves of the genes
    that are visible in the spot, and adds the mean of what it leaves of the others given these, under a normal
    distribution. That is exact for any pattern of visible genes: nothing is imputed before.

    Parameters
    ----------
    dims
        Number of genes.
    hops
        How far neighbours reach, in lattice steps.
    components
        Numbers of principal components of the means over neighbours to choose from.
    ridges
        Penalties of the first part to choose from, above 0, in spots: 30 weighs as much as 30 spots do.
    alphas
        Penalties of the second part to choose from, above 0: noise that is added, as a share of a gene's variance.

    Notes
    -----
    Penalties and components are those of the smallest squared error over the inner folds, with 30 % of the entries
    hidden: of section and neighbours when inputs are made, and of the spot when the second part is tried. Correlations
    are taken over the spots that have both genes of a pair measured, shrunk for pairs of few spots. Time grows as g³ per
    spot.

    An unseen entry is predicted without its own value. The prediction for a visible entry uses it, as it uses all that
    is visible; callers keep the measured value there.
    """

    card: ClassVar[Card] = Card(
        title="Ridge on visible genes and neighbours",
        citation="control",
        task="complete",
        learns="closed-form",
        control=True,
    )
    needs: Needs = NEEDS
    mean: Tensor
    sd: Tensor
    correlation: Tensor
    alpha: Tensor

    def __init__(
        self,
        dims: Dims,
        *,
        hops: int = 2,
        components: tuple[int, ...] = (1, 4, 8, 16, 32),
        ridges: tuple[float, ...] = (10.0, 100.0, 1000.0),
        alphas: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
    ) -> None:
        super().__init__()
        self.hops, g = at_least("hops", hops, 1), dims.genes
        self.alphas = above_zero("alphas", alphas)
        many, ridges = whole_numbers("components", components), above_zero("ridges", ridges)
        self.around = Around(g, components=many, ridges=ridges)
        self.register_buffer("mean", torch.zeros(g, dtype=torch.float64))
        self.register_buffer("sd", torch.zeros(g, dtype=torch.float64))
        self.register_buffer("correlation", torch.eye(g, dtype=torch.float64))
        self.register_buffer("alpha", torch.tensor(1.0))

    @torch.no_grad()
    def index(self, feed: FeedLike) -> None:
        """Fits both parts and chooses their penalties, in five walks over the training spots."""
        self.around.fit(feed)
        folds = int(feed.inner_fold().max()) + 1
        pairs = Pairs.sum(
            Pairs.of(piece.y - self.around(piece), piece.measured, piece.fold, folds)
            for piece in self.around.walk(feed)
        )
        best = self._best(feed, [Normal.of(pairs.without(i)) for i in range(folds)])
        self.alpha = torch.tensor(best, device=self.alpha.device)
        self.mean, self.sd, self.correlation = Normal.of(pairs.total())

    def _best(self, feed: FeedLike, fits: list[Normal]) -> float:
        """The penalty of the smallest squared error on hidden entries, each fold given what the others say."""
        error, at = torch.zeros(len(self.alphas), dtype=torch.float64), 0
        for piece in self.around.walk(feed):
            left = (piece.y - self.around(piece)).double()
            rows = torch.arange(at, at + len(left), device=left.device)
            at, tried = at + len(left), rows % -(-feed.n // CHOOSING) == 0
            for i, fit in enumerate(fits):
                here = tried & (piece.fold == i)
                truth, hidden = left[here], (piece.measured & piece.hidden)[here]
                for a, alpha in enumerate(self.alphas):
                    made = fit.given(truth, piece.measured[here] & ~hidden, alpha)
                    error[a] += torch.where(hidden, made - truth, 0.0).square().sum().cpu()
        return self.alphas[int(error.argmin())]

    def forward(self, batch: Batch) -> Tensor:
        """Predictions (b, g) from what is visible."""
        return torch.cat([self._piece(piece) for piece in self.around.pieces(batch)])

    def _piece(self, piece: Piece) -> Tensor:
        """Predictions of a piece (c, g)."""
        first = self.around(piece)
        left = (piece.z[:, 0] - first).double()
        second = Normal(self.mean, self.sd, self.correlation).given(left, piece.seen[:, 0], float(self.alpha))
        return (first + second.float()) * self.around.sd + piece.level

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Masked MSE, for reports."""
        value = masked_mse(self(batch), batch.y, batch.y_mask)
        return value, {"mse": value}

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """Few components, two penalties of each kind."""
        return {"components": (2, 4), "ridges": (30.0, 300.0), "alphas": (0.3, 3.0)}
