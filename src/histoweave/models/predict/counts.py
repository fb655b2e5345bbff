"""The count regressions of Anand et al. on principal components of a frozen embedding: Poisson and negative binomial."""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import copy
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from histoweave.batch import Batch, Card, Dims, FeedLike, Needs
from histoweave.models._checks import given, one_of
from histoweave.models._glm import BOUND, alpha_from_moments, fit_counts
from histoweave.models._losses import masked_mse
from histoweave.models._pca import WALK, Inputs

_CITATION = "Anand et al. Integrating histology imaging and spatial transcriptomics through low-dimensional embeddings."
ROOM = 10.0  # a prediction may be this many times the largest training one, where it is clipped


class _Counts(nn.Module):
    """log μ = xᵀw + b + log size for every gene by itself, by maximum likelihood."""

    needs: Needs = Needs.EMB | Needs.COUNTS
    needs_zeros: ClassVar[bool] = True  # what a count distribution says of a gene is how often it is 0, too
    coef: Tensor
    intercept: Tensor
    ceiling: Tensor
    slope: Tensor
    base: Tensor
    converged: Tensor

    def __init__(
        self,
        dims: Dims,
        *,
        input: Literal["spot", "pooled"],
        adjacency: Literal["none", "sign", "paper"],
        components: int,
        offset: Literal["library", "none"],
        scale: Literal["target", "counts"],
        clip: bool,
    ) -> None:
        super().__init__()
        self.inputs = Inputs(dims, input=input, adjacency=adjacency, components=components)
        self.needs = self.inputs.needs | Needs.COUNTS
        self.offset = one_of("offset", offset, ("library", "none"))
        self.scale = one_of("scale", scale, ("target", "counts"))
        self.clip = clip
        self.register_buffer("coef", torch.zeros(self.inputs.width, dims.genes))
        for name, value in (("intercept", 0.0), ("ceiling", BOUND), ("slope", 1.0), ("base", 0.0)):
            self.register_buffer(name, torch.full((dims.genes,), value))
        self.register_buffer("converged", torch.zeros(dims.genes, dtype=torch.bool))

    def on_counts(self) -> Self:
        """The same fit, predicting expected counts; it shares its tensors with this one."""
        other = copy(self)
        other.scale = "counts"
        return other

    def dispersion(self, mean: Tensor, var: Tensor) -> Tensor | float | None:
        """Dispersion of every gene (g,), one for all, or None for Poisson, from training moments (g,) of the counts."""
        return None

    @torch.no_grad()
    def index(self, feed: FeedLike) -> None:
        """Fits the principal components, the regressions, and the line from log(1 + μ) to the target."""
        self.inputs.fit(feed)
        x, counts, library, y = (torch.cat(parts) for parts in zip(*self._walk(feed), strict=True))
        if len(x) < 2:
            raise ValueError("fewer than 2 training spots have counts in the panel; nothing can be fitted")
        size = (library / library.median()).log() if self.offset == "library" else torch.zeros_like(library)
        table = counts.double()
        alpha = self.dispersion(table.mean(dim=0), table.var(dim=0))
        fit = fit_counts(lambda: zip(x.split(WALK), counts.split(WALK), size.split(WALK), strict=True), alpha=alpha)
        self.coef, self.intercept, self.converged = fit.coef.float(), fit.intercept.float(), fit.converged
        eta = x @ self.coef + self.intercept  # (n, g), at the median library
        self.ceiling = torch.full_like(self.intercept, BOUND)
        if self.clip:
            self.ceiling = (eta.amax(dim=0) + math.log(ROOM)).clamp(max=BOUND)
        self.slope, self.base = _line(self._mean(eta).log1p().double(), y.double())

    def _walk(self, feed: FeedLike) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Inputs (b, d), counts (b, g), library (b,) and target (b, g) of the spots that count."""
        for batch in feed.batches(WALK):
            library = given(batch.library, "library")
            keep = batch.y_mask.all(dim=1) & (library > 0)
            yield self.inputs(batch)[keep], given(batch.counts, "counts")[keep], library[keep], batch.y[keep]

    def _mean(self, eta: Tensor) -> Tensor:
        """Expected counts (b, g)."""
        return torch.minimum(eta, self.ceiling).clamp(min=-BOUND).exp()

    def forward(self, batch: Batch) -> Tensor:
        """Predictions (b, g): in units of the target, or expected counts of a spot with the median library."""
        mean = self._mean(self.inputs(batch) @ self.coef + self.intercept)
        return mean if self.scale == "counts" else mean.log1p() * self.slope + self.base

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Masked MSE on the scale of the predictions, for reports."""
        truth = given(batch.counts, "counts") if self.scale == "counts" else batch.y
        value = masked_mse(self(batch), truth, batch.y_mask)
        return value, {"mse": value.detach()}


def _line(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and intercept (g,) of least squares of y (n, g) on x (n, g), gene by gene; a slope below 0 is 0."""
    mean_x, mean_y = x.mean(dim=0), y.mean(dim=0)
    spread = (x - mean_x).square().sum(dim=0)
    slope = ((x - mean_x) * (y - mean_y)).sum(dim=0) / spread.clamp(min=1e-12)
    slope = slope.clamp(min=0) * (spread > 1e-12)
    return slope.float(), (mean_y - slope * mean_x).float()


class Poisson(_Counts):
    """Poisson regression of raw counts with a log link.

    Parameters
    ----------
    dims
        Number of genes, and width of the frozen embeddings.
    input
        Embedding of the ``spot``, or ``pooled``: the mean over its 15 nearest, itself included.
    adjacency
        Whether the 32 vectors that tell where the spot lies in its section are joined to the image: ``none``; ``sign``,
        every vector turned one way; or ``paper``, as the solver leaves them.
    components
        Principal components of the embedding, fitted on the training spots.
    offset
        ``library``: the mean is proportional to the spot's library over the median training one; for a target that is
        normalised. ``none``: the mean does not know it.
    scale
        Of the predictions. ``target``: a straight line in log(1 + μ) per gene, never falling, that least squares finds
        on the training spots, so that the model stands in one table with the others. ``counts``: μ itself, at the median
        library; its errors do not compare with errors on logarithms.
    clip
        Bound log μ by its largest value on the training spots and log 10.

    Notes
    -----
    The library of a predicted spot is not known, so predictions are those of a spot with the median library. Spots with
    an empty library teach nothing, nor do those that lack a gene of the panel. ``converged`` (g,) tells the genes whose
    likelihood has a maximum that was found. ``layer=measured`` is refused: it leaves out counts of 0, of which the
    distribution expects many, so that every fitted mean would be too large.

    **Differences from the paper.** (1) The paper joins the adjacency; the default leaves it out, because its basis
    differs from section to section. (2) It says nothing of offsets: ``offset=none``. (3) It bounds nothing, and the
    exponential of components beyond the training range is what its errors on test patients are made of: ``clip=off``.
    (4) It reports that all its Poisson predictions fell to 0 and leaves them out; here they do not.
    """

    card: ClassVar[Card] = Card(title="Poisson regression", citation=_CITATION, learns="closed-form")

    def __init__(
        self,
        dims: Dims,
        *,
        input: Literal["spot", "pooled"] = "spot",
        adjacency: Literal["none", "sign", "paper"] = "none",
        components: int = 32,
        offset: Literal["library", "none"] = "library",
        scale: Literal["target", "counts"] = "target",
        clip: bool = True,
    ) -> None:
        super().__init__(
            dims, input=input, adjacency=adjacency, components=components, offset=offset, scale=scale, clip=clip
        )

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """Few components, and the adjacency."""
        return {"components": 4, "adjacency": "sign"}


class NB(_Counts):
    """Negative binomial regression of raw counts with a log link and a dispersion α that is set beforehand.

    Parameters
    ----------
    dims, input, adjacency, components, offset, scale, clip
        As of `Poisson`. The paper's kNN NB reads ``input=pooled``.
    alpha
        Var = μ + αμ². ``moments``: per gene, (s² - m) / m² of the training counts, at least 1e-6; or a number for all
        genes, as the paper's first model has 1.

    Notes
    -----
    **Differences from the paper.** (1) to (3) as of `Poisson`. The density printed there has the sign of the exponent
    1/α turned; it is the usual one here.
    """

    card: ClassVar[Card] = Card(
        title="Negative binomial regression",
        citation=_CITATION,
        learns="closed-form",
        published={"Anand train PCC": 0.2130, "Anand valid PCC": 0.0568, "Anand test PCC": 0.0420},
    )

    def __init__(
        self,
        dims: Dims,
        *,
        input: Literal["spot", "pooled"] = "spot",
        adjacency: Literal["none", "sign", "paper"] = "none",
        components: int = 32,
        alpha: float | str = "moments",
        offset: Literal["library", "none"] = "library",
        scale: Literal["target", "counts"] = "target",
        clip: bool = True,
    ) -> None:
        super().__init__(
            dims, input=input, adjacency=adjacency, components=components, offset=offset, scale=scale, clip=clip
        )
        number = isinstance(alpha, int | float) and not isinstance(alpha, bool)
        if alpha != "moments" and not (number and 0 < float(alpha) < math.inf):
            raise ValueError(f"alpha={alpha!r}; expected 'moments' or a finite number above 0")
        self.alpha = alpha

    def dispersion(self, mean: Tensor, var: Tensor) -> Tensor | float | None:
        """Dispersion of every gene (g,), or the one that was given."""
        return alpha_from_moments(mean, var) if isinstance(self.alpha, str) else float(self.alpha)

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """Few components, and the adjacency."""
        return {"components": 4, "adjacency": "sign"}
