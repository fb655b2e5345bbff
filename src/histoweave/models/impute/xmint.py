"""xMINT: genes that a panel lacks, from those it has and from the image around a cell (multimodal transformer)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from histoweave.batch import Batch, Card, Dims, FeedLike, Needs
from histoweave.models._checks import at_least, given, one_of
from histoweave.models._losses import masked_mse
from histoweave.models.impute._rule import LinearRule, log_shares
from histoweave.models.impute._tokenizer import Tokenizer

_SHORTEST = 1e-6  # a vector that is shorter is divided by this instead of by its length
_LEAST = 1e-6  # relative expression below which a mean start does not go: it has to have a logarithm


class XMINT(nn.Module):
    """Cells of a sequence attend to one another, first by their measured genes, then by genes and image together.

    The measured genes of a cell, over their sum, become a vector by a small network and a transformer; the patch of
    16 × 16 px in which the cell lies becomes one by a ResNet. The two, each at length 1, pass a second transformer of
    twice the width and a linear map, and a softmax gives the relative expression of the missing genes. There are no
    positions: a sequence is a set of cells.

    Parameters
    ----------
    dims
        Numbers of imputed genes g (`genes`) and of shared genes m (`shared`).
    width, layers, heads, expansion, dropout
        Width f of either vector; layers of each transformer, their heads, the width inside the feed-forward part as a
        multiple, dropout. Defaults are those of the published results, which are no row of the paper's Table 1.
    image
        Without it the image's half of the joint vector is zero, and only the ResNet is missing from the parameters.
    channels
        Of the image: 3, and one more for each further stain of a section (`histoweave.data.stains.StainedImage`).
    tokenizer
        ``"restricted"``: only patches in which cells lie; ``"dense"``: all of a region. Once per region in either.
    stem
        Width of the ResNet's first block; the second has twice that, the third `width`.
    length, repeats, rule
        Cells of a sequence; how often each cell occurs at least in a pass over all; how many sequences a region gets:
        as in the authors' ``"code"``, which uses small regions too, or as in the ``"paper"``, which leaves out the rest.
    checkpoint
        Compute the inside of the ResNet's blocks again for the gradient instead of keeping it.
    objective
        ``"mse"``; ``"kl"``: divergence of the predicted from the measured relative expression, a mean over cells; or
        ``"poisson"``: half the deviance of the counts, in which a cell weighs as much as it has counts.
    start
        ``"random"`` as in the paper, predicting about 1 / g at first; ``"mean"``: the training mean.
    scale
        The measured genes enter as their share (``"relative"``, the paper's), or as log1p of 10,000 times it (``"log"``).
    unit
        Off: vectors of genes and image keep their length when they are joined.
    skip
        A linear map from log1p of 10,000 times the shares to the logits, zero at first.
    blend
        Predict the geometric mean of the network's relative expression and that of a ridge regression from the shared
        genes, the control `ridge-shares`, fitted to the training cells. The network is trained by itself.
    legacy
        Defects of the authors' code to reproduce, by name (below).

    Notes
    -----
    **Differences from the authors' code.** (1) Their transformers take sequences for the axis of attention: a cell sees
    the cells at the same place of the other sequences in the batch and none of its own, so that alone in a batch it
    sees only itself. Here cells of a sequence see one another as the paper says, unless ``legacy="batch-axis"``.
    (2) They look patches up with row and column exchanged, so that a cell gets the patch mirrored at the diagonal;
    ``legacy="transposed"``. (3) A vector of length 0 is left at 0 rather than divided by 0. (4) Their ResNet runs over
    whole regions, once per sequence; here over the occupied patches, once per region. At evaluation this is the same;
    in training, batch norms take their statistics over the px of the patches that are occupied in the step, each once.
    ``tokenizer="dense"`` takes them over whole regions. (5) The squared error is multiplied by g², that is, in units of
    an even share: as small as it is otherwise, the constant in Adam's denominator would slow the learning down. (6) The
    loop keeps the best epoch on validation, theirs the last. (7) Theirs sorts the cells of a region by id as text and
    cuts consecutive sequences; here they are drawn, anew for each pass in training and always alike in prediction, where
    a region that one sequence holds has one. (8) Mean and deviation of the image's channels are those of the regions in
    which cells lie, theirs those of the whole slide.
    `stem`, `start`, `scale`, `unit`, `skip`, `blend` and the other two objectives are not the authors'.
    """

    card: ClassVar[Card] = Card(
        title="xMINT",
        citation="xMINT: imputation of unmeasured genes in imaging-based spatial transcriptomics by a multimodal "
        "transformer; code jichunxie/xMINT_manu_support (2024).",
        task="impute",
        wrong="attention runs over the sequences of a batch instead of the cells of a sequence, and a cell gets the patch "
        "mirrored at the diagonal of its region",
    )
    needs: Needs = Needs.SHARED | Needs.REGION | Needs.SEQ  # with the image; an instance has its own

    def __init__(
        self,
        dims: Dims,
        *,
        width: int = 256,
        layers: int = 4,
        heads: int = 8,
        expansion: int = 8,
        dropout: float = 0.1,
        image: bool = True,
        channels: int = 3,
        tokenizer: Literal["restricted", "dense"] = "restricted",
        stem: int = 32,
        length: int = 1024,
        repeats: int = 5,
        rule: Literal["code", "paper"] = "code",
        checkpoint: bool = True,
        objective: Literal["mse", "kl", "poisson"] = "mse",
        start: Literal["random", "mean"] = "random",
        scale: Literal["relative", "log"] = "relative",
        unit: bool = True,
        skip: bool = False,
        blend: bool = False,
        legacy: str | Sequence[str] = (),
    ) -> None:
        super().__init__()
        named = (legacy,) if isinstance(legacy, str) else legacy
        self.legacy = tuple(one_of("legacy", habit, ("batch-axis", "transposed")) for habit in named)
        self.objective = one_of("objective", objective, ("mse", "kl", "poisson"))
        self.start, self.scale = one_of("start", start, ("random", "mean")), one_of("scale", scale, ("relative", "log"))
        self.unit, self.shared, width = unit, dims.shared, at_least("width", width, 1)
        self.needs = Needs.SHARED | Needs.SEQ | (Needs.REGION if image else Needs.NONE)
        self.needs |= Needs.COUNTS if objective == "poisson" else Needs.NONE
        self.needs_zeros = "objective=mse" if objective == "poisson" else ""
        at_least("length", length, 1), at_least("repeats", repeats, 1), one_of("rule", rule, ("code", "paper"))
        self.sequencing = (length, repeats, rule, channels if image else 3)
        across = "batch-axis" in self.legacy
        inputs = max(dims.shared, 1)  # without any shared gene the model can say what it reads, but `forward` refuses
        self.lift = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width))
        self.gene = _Transformer(layers, width, heads, expansion, dropout, across=across)
        self.tokenizer = Tokenizer(channels, width, stem=stem, mode=tokenizer, recompute=checkpoint) if image else None
        self.joint = _Transformer(layers, 2 * width, heads, expansion, dropout, across=across)
        self.head = nn.Linear(2 * width, dims.genes)
        self.skip = nn.Linear(inputs, dims.genes, bias=False) if skip else None
        if self.skip is not None:
            nn.init.zeros_(self.skip.weight)
        self.rule = LinearRule(inputs, dims.genes) if blend else None

    @torch.no_grad()
    def index(self, feed: FeedLike) -> None:
        """Starts the head at the mean relative expression (g,) of the training cells, and fits the linear rule, if asked."""
        if self.start == "mean":
            self.head.bias.copy_(feed.y_mean().clamp(min=_LEAST).log())
        if self.rule is not None:
            self.rule.fit(feed)

    def forward(self, batch: Batch) -> Tensor:
        """Relative expression (b, g) of the imputed genes; a row sums to 1."""
        made = self._logits(batch).softmax(-1)
        return made if self.rule is None else self.rule.blended(made, log_shares(given(batch.shared, "shared")))

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective over the measured entries; 0 in a batch without any."""
        logits, y, mask = self._logits(batch), batch.y, batch.y_mask
        if self.objective == "mse":
            value = masked_mse(logits.softmax(-1), y, mask) * y.shape[1] ** 2
        else:
            zero = torch.zeros((), dtype=y.dtype, device=y.device)
            y = torch.where(mask, y, zero)
            of_cell = torch.where(mask, torch.xlogy(y, y) - y * logits.log_softmax(-1), zero).sum(-1)  # (b,)
            weight = mask.any(-1).to(y.dtype)
            if self.objective == "poisson":
                weight = weight * torch.where(mask, given(batch.counts, "counts"), zero).sum(-1)
            value = (weight * of_cell).sum() / weight.sum().clamp(min=1)
        return value, {self.objective: value.detach()}

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """Arguments of a small model with every part that is trained."""
        return {"width": 16, "layers": 1, "heads": 2, "expansion": 2, "stem": 4, "length": 8, "repeats": 2, "skip": True}

    def _logits(self, batch: Batch) -> Tensor:
        """What the softmax is taken of, (b, g), in float32."""
        shared = given(batch.shared, "shared")
        if self.shared < 1 or shared.shape[-1] != self.shared:
            raise ValueError(
                f"the batch has {shared.shape[-1]} shared genes, and the model was made for {self.shared} (dims.shared); "
                "expected the same number, 1 or more: give both panels' common genes, in one order"
            )
        logs = log_shares(shared)  # (b, m)
        sequences = _count(given(batch.seq, "seq"))
        gene = self.lift(logs if self.scale == "log" else shared).unflatten(0, (sequences, -1))  # (s, t, f)
        gene = self.gene(gene).flatten(0, 1)
        image = torch.zeros_like(gene) if self.tokenizer is None else self._image(batch, self.tokenizer)
        both = [F.normalize(part.float(), dim=-1, eps=_SHORTEST) if self.unit else part for part in (image, gene)]
        x = self.joint(torch.cat(both, -1).unflatten(0, (sequences, -1))).flatten(0, 1)  # (b, 2 f)
        out = self.head(x)
        return (out if self.skip is None else out + self.skip(logs)).float()

    def _image(self, batch: Batch, tokenizer: Tokenizer) -> Tensor:
        """Vector (b, f) of the patch that each cell lies in."""
        rc = given(batch.patch_rc, "patch_rc")
        rc = rc.flip(-1) if "transposed" in self.legacy else rc
        return tokenizer(given(batch.region, "region"), given(batch.region_of, "region_of"), rc)


class _Transformer(nn.Module):
    """Post-norm encoder layers over x (s, t, d), after dropout; `across`: over the s sequences instead of the t cells."""

    def __init__(self, layers: int, width: int, heads: int, expansion: int, dropout: float, *, across: bool) -> None:
        super().__init__()
        self.across, self.dropout = across, nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            _Layer(width, heads, width * at_least("expansion", expansion, 1), dropout)
            for _ in range(at_least("layers", layers, 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Transform x (s, t, d)."""
        x = self.dropout(x.transpose(0, 1) if self.across else x)
        for layer in self.layers:
            x = layer(x)
        return x.transpose(0, 1) if self.across else x


class _Layer(nn.Module):
    """Attention, then a feed-forward part: each is added to its input, normed, and dropped from."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        if width % at_least("heads", heads, 1):
            raise ValueError(f"width {width} cannot be split into {heads} heads: choose a divisor of `width`")
        self.heads, self.weights, self.dropout = heads, nn.Dropout(dropout), nn.Dropout(dropout)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        """Transform x (s, t, d); tokens of a row attend to one another."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (s, heads, t, d / heads)
        drop = self.weights.p if self.training else 0.0
        seen = F.scaled_dot_product_attention(q, k, v, dropout_p=drop).transpose(1, 2).flatten(-2)  # (s, t, d)
        x = self.dropout(self.norm1(x + self.out(seen)))
        return self.dropout(self.norm2(x + self.feed_forward(x)))


def _count(seq: Tensor) -> int:
    """How many sequences the batch has; spots of one follow each other, and all are equally long."""
    runs = seq.unique_consecutive(return_counts=True)[1]  # (s,)
    if len(runs) > 1 and bool((runs != runs[0]).any()):
        raise ValueError(
            f"the {len(runs)} sequences of the batch have {int(runs.min())} to {int(runs.max())} spots; expected equally "
            "many in each, one sequence after the other: fill a short one up by repeating its spots"
        )
    return len(runs)
