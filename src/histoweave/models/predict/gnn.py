"""The graph network of Anand et al.: spots and the mean of the spots around them, on principal components."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from histoweave.batch import Batch, Card, Dims, FeedLike, Needs
from histoweave.models._checks import at_least, given, one_of
from histoweave.models._losses import masked_mse
from histoweave.models._pca import Inputs

TIE_UM = 0.1  # distances within it are equal: positions on a lattice are rounded to pixels and to float32
_BITS = 20  # of an offset in steps; a distance and two signed offsets fill the 63 bits of a key
_CHUNK = 1 << 20  # pairs of spots held at a time
_KEPT = 128  # graphs that are remembered: a section comes by in every epoch


class GNN(nn.Module):
    """Two layers that join a spot to the mean of its nearest spots, and a linear layer for all genes at once.

    A layer is ``h' = FFN([h, mean of h over the nearest spots])``, the FFN being a dense layer, batch normalisation,
    ReLU and dropout. At evaluation batch normalisation uses what it saw in training.

    Parameters
    ----------
    dims
        Number of genes, and width of the frozen embeddings.
    input
        Embedding of the ``spot``, or ``pooled``: the mean over its 15 nearest, itself included.
    adjacency
        Whether the 32 vectors that tell where the spot lies in its section are joined to the image: ``none``, as in the
        paper; ``sign``, every vector turned one way; or ``paper``, as the solver leaves them.
    components
        Principal components of the embedding, fitted on the training spots; scores are not whitened.
    neighbours
        Nearest spots of the section that are averaged, the spot itself not among them. Of spots at one distance the one
        further up comes first, then further left. A section with fewer spots has what there is; a lone spot gets zeros.
    hidden
        Width of the layers.
    dropout
        Share of units that are dropped in training.
    start
        ``"random"``: the last layer as the paper has it, predicting about 0 at first; ``"mean"``: its bias starts at the
        training mean, so that short training is not spent on finding it.

    Notes
    -----
    The paper searches width, learning rate, dropout and optimiser, of which the defaults and the recipe ``paper`` hold
    what it names; other rates and optimisers are those of a `Recipe`.

    **Differences from the paper**, by whose description it is written, not by code. (1) A section is one step of
    training, and batch normalisation uses the moments of that section. The paper takes 128 spots a step, so that an
    epoch of its sections, some 460 spots each, has 3.6 times as many; the recipe ``paper`` has that many times its
    epochs. (2) Embeddings are those of the view's encoder, standardized as the view says before the principal
    components; theirs are of a ResNet50 of ImageNet. (3) The order within the FFN, its activation (ReLU), that it is one
    dense layer, and that neighbours are the 15 others, all of one weight and in one direction, are our reading.
    (4) Genes that are not measured in a spot are left out of the error.
    """

    card: ClassVar[Card] = Card(
        title="GNN on principal components",
        citation="Anand et al. Integrating histology imaging and spatial transcriptomics through low-dimensional "
        "embeddings.",
        published={"Anand train PCC": 0.14297, "Anand valid PCC": -0.0260, "Anand test PCC": 0.02887}
        | {"Anand train MSE": 0.2363, "Anand valid MSE": 0.3036, "Anand test MSE": 0.2960},
    )
    needs: Needs = Needs.WHOLE_SECTION | Needs.POOLED | Needs.XY

    def __init__(
        self,
        dims: Dims,
        *,
        input: Literal["spot", "pooled"] = "pooled",
        adjacency: Literal["none", "sign", "paper"] = "none",
        components: int = 32,
        neighbours: int = 15,
        hidden: int = 32,
        dropout: float = 0.8,
        start: Literal["random", "mean"] = "random",
    ) -> None:
        super().__init__()
        self.start = one_of("start", start, ("random", "mean"))
        self.neighbours = at_least("neighbours", neighbours, 1)
        at_least("hidden", hidden, 1)
        self.inputs = Inputs(dims, input=input, adjacency=adjacency, components=components)
        self.needs = Needs.WHOLE_SECTION | Needs.XY | self.inputs.needs
        self.halo = 8  # two layers and the pooling reach 15 spots each: 3 · √5 lattice steps, more at edges
        self.layers = nn.ModuleList([_Layer(self.inputs.width, hidden, dropout), _Layer(hidden, hidden, dropout)])
        self.head = nn.Linear(hidden, dims.genes)
        self._graphs: dict[tuple[int, int, torch.device], tuple[Tensor, Tensor]] = {}

    def forward(self, batch: Batch) -> Tensor:
        """Predictions (b, g)."""
        near, x = self._graph(batch), self.inputs(batch)
        for layer in self.layers:
            x = layer(x, near)
        return self.head(x)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Masked mean squared error."""
        value = masked_mse(self(batch), batch.y, batch.y_mask)
        return value, {"mse": value.detach()}

    @torch.no_grad()
    def index(self, feed: FeedLike) -> None:
        """Fits the principal components, and starts at the mean target (g,) if asked to."""
        self.inputs.fit(feed)
        if self.start == "mean":
            self.head.bias.copy_(feed.y_mean())

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """Arguments of a small model with every part."""
        return {"adjacency": "sign", "components": 8, "neighbours": 6}

    def _graph(self, batch: Batch) -> Tensor:
        """The nearest spots of the same section as rows of the batch (b, k); -1 for none."""
        xy = given(batch.xy, "xy")
        near = torch.full((len(xy), self.neighbours), -1, device=xy.device)
        for section in batch.section.unique().tolist():
            rows = torch.nonzero(batch.section == section).squeeze(1)  # (n,)
            found = self._remembered(section, xy[rows])
            near[rows] = torch.where(found >= 0, rows[found.clamp(min=0)], -1)
        return near

    def _remembered(self, section: int, xy: Tensor) -> Tensor:
        """`nearest_spots`, looked up where the very same positions came by before."""
        key = (section, len(xy), xy.device)
        if key in self._graphs and torch.equal(self._graphs[key][0], xy):
            return self._graphs[key][1]
        self._graphs.pop(key, None)
        if len(self._graphs) >= _KEPT:
            del self._graphs[next(iter(self._graphs))]
        self._graphs[key] = (xy, nearest_spots(xy, self.neighbours))
        return self._graphs[key][1]


class _Layer(nn.Module):
    """A spot and the mean of its nearest spots, joined and transformed."""

    def __init__(self, width: int, out: int, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(2 * width, out, bias=False)  # the normalisation would take a bias away again
        self.norm = _Norm(out)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, near: Tensor) -> Tensor:
        """Spots x (b, d), nearest spots (b, k) as rows or -1 → (b, out)."""
        there = near >= 0
        weight = there / there.sum(1, keepdim=True).clamp(min=1)
        around = F.embedding_bag(near.clamp(min=0), x, per_sample_weights=weight.to(x.dtype), mode="sum")  # (b, d)
        return self.dropout(F.relu(self.norm(self.dense(torch.cat([x, around], 1)))))


class _Norm(nn.BatchNorm1d):
    """Batch normalisation that meets a section of a single spot with the running statistics: it has no variance."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (b, d)."""
        if self.training and len(x) < 2:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


@torch.no_grad()
def nearest_spots(xy: Tensor, k: int) -> Tensor:
    """The `k` other spots that are nearest to each spot, nearest first.

    Of spots at one distance, told to `TIE_UM`, the one further up comes first, then further left, so that the order of
    the spots has no part in it unless two lie on the very same place.

    Parameters
    ----------
    xy
        Positions (n, 2) in µm.

    Returns
    -------
    Tensor
        (n, k) int64; -1 where there are no more spots.
    """
    n, at = len(xy), xy.double()
    near = torch.full((n, k), -1, device=xy.device)
    if n < 2:
        return near
    span = float((at.amax(0) - at.amin(0)).max())
    step = max(TIE_UM, span / (2**_BITS - 1))  # coarser where a section is wider than 10 cm
    for rows in torch.arange(n, device=xy.device).split(max(1, _CHUNK // n)):
        dx, dy = ((at[:, axis] - at[rows, None, axis]) / step for axis in (0, 1))  # (c, n)
        key = (dx.square() + dy.square()).sqrt().round_().long()
        for offset in (dy, dx):
            key = (key << (_BITS + 1)) + offset.round_().long() + 2**_BITS
        key[torch.arange(len(rows), device=xy.device), rows] = torch.iinfo(torch.long).max
        found = key.topk(min(k, n - 1), largest=False).indices
        near[rows, : found.shape[1]] = found
    return near
