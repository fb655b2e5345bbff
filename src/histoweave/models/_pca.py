"""Principal components of frozen embeddings, and what models of Anand et al. read of a spot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from histoweave.batch import Batch, Dims, FeedLike, Needs
from histoweave.models._checks import at_least, given, one_of

WALK = 4096  # spots per step when the feed is walked
ADJACENCY_WIDTH = 32  # of a batch's adjacency, the paper's
_ADJACENCY = {"none": Needs.NONE, "sign": Needs.ADJACENCY, "paper": Needs.ADJACENCY_RAW}
_INPUT = {"spot": Needs.EMB, "pooled": Needs.POOLED}


class Pca(nn.Module):
    """Principal component scores (b, p) of vectors (b, d), as scikit-learn's ``PCA(p).transform`` gives them.

    Vectors are centred, not divided by their deviation; scores are not whitened, so the first varies most. Mean and
    scatter are summed batch by batch in float64, so that the training spots need not fit in memory. Each component
    points to where its loading of largest size is positive, so that reruns agree. Components that the spots do not
    determine (fewer spots than components, or embeddings without variance) are zero, and so are their scores.

    Parameters
    ----------
    width
        Width d of the vectors.
    components
        How many components p; at most d are there.
    """

    mean: Tensor
    loadings: Tensor

    def __init__(self, width: int, components: int) -> None:
        super().__init__()
        self.width = min(at_least("components", components, 1), width)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("loadings", torch.zeros(self.width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Scores (b, p) of x (b, d)."""
        return (x - self.mean) @ self.loadings.T

    @torch.no_grad()
    def fit(self, feed: FeedLike, read: Callable[[Batch], Tensor]) -> None:
        """Learns mean (d,) and components (p, d) from all spots of a feed; `read` gives the vectors (b, d) of a batch.

        Raises
        ------
        ValueError
            Fewer than 2 spots, or vectors that are not finite.
        """
        n, mean, scatter = _scatter(feed, read)
        if n < 2:
            raise ValueError(
                f"principal components of {n} training spots were asked for; expected 2 or more: add spots"
            )
        if not (torch.isfinite(mean).all() and torch.isfinite(scatter).all()):
            raise ValueError("embeddings of training spots hold NaN or infinity; embed these sections again")
        values, vectors = torch.linalg.eigh(scatter)  # ascending (d,), (d, d)
        values, found = values.flip(0)[: self.width], vectors.T.flip(0)[: self.width]  # (p,), (p, d)
        largest = found.gather(1, found.abs().argmax(1, keepdim=True))  # (p, 1)
        told = values > values[0] * len(mean) * torch.finfo(values.dtype).eps  # the others are rounding
        self.mean.copy_(mean)
        self.loadings.copy_(torch.where(told[:, None], found * largest.sign(), 0.0))


def _scatter(feed: FeedLike, read: Callable[[Batch], Tensor]) -> tuple[int, Tensor, Tensor]:
    """Number of spots, their mean (d,) and the scatter about it (d, d), float64.

    Each batch is centred before it is squared and merged (Chan, Golub and LeVeque 1983): sums of raw squares would lose
    the digits in which vectors far from 0 differ.
    """
    n, mean, scatter = 0, torch.zeros(()), torch.zeros(())
    for batch in feed.batches(WALK):
        x = read(batch).double()  # (b, d)
        if not len(x):
            continue
        here = x.mean(0)
        x = x - here
        if n == 0:
            n, mean, scatter = len(x), here, x.T @ x
            continue
        apart, total = here - mean, n + len(x)
        scatter += x.T @ x + torch.outer(apart, apart) * (n * len(x) / total)
        mean += apart * (len(x) / total)
        n = total
    return n, mean, scatter


class Inputs(nn.Module):
    """What the models of Anand et al. read of a spot: principal components of the image, and where the spot lies.

    Parameters
    ----------
    dims
        Sizes; the width of the embeddings is used.
    input
        Embedding of the ``spot``, or ``pooled``: the mean over its 15 nearest, itself included.
    adjacency
        Basis of the section's graph of nearest spots: ``none``; ``sign``, every vector turned one way; or ``paper``, as
        the solver leaves it. Sections have bases of their own, so what is learnt of it hardly carries over to others.
    components
        Principal components of the embedding, at most as many as it is wide.
    """

    def __init__(
        self,
        dims: Dims,
        *,
        input: Literal["spot", "pooled"],
        adjacency: Literal["none", "sign", "paper"],
        components: int,
    ) -> None:
        super().__init__()
        if dims.emb < 1:
            raise ValueError(
                f"principal components are those of embeddings, but dims.emb is {dims.emb}: give an encoder"
            )
        self.input = one_of("input", input, tuple(_INPUT))
        self.adjacency = one_of("adjacency", adjacency, tuple(_ADJACENCY))
        self.needs = _INPUT[self.input] | _ADJACENCY[self.adjacency]
        self.pca = Pca(dims.emb, components)
        self.width = self.pca.width + (0 if self.adjacency == "none" else ADJACENCY_WIDTH)

    def forward(self, batch: Batch) -> Tensor:
        """Scores, and where asked for the adjacency behind them (b, d)."""
        scores = self.pca(self._image(batch))
        if self.adjacency == "none":
            return scores
        name = "adjacency" if self.adjacency == "sign" else "adjacency_raw"
        return torch.cat([scores, given(getattr(batch, name), name)], 1)

    def fit(self, feed: FeedLike) -> None:
        """Learns the principal components from all spots of a feed."""
        self.pca.fit(feed.reading(_INPUT[self.input]), self._image)

    def _image(self, batch: Batch) -> Tensor:
        """The embedding that is reduced (b, d)."""
        return given(batch.emb, "emb") if self.input == "spot" else given(batch.pooled, "pooled")
