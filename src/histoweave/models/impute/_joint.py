"""gimVI's network: two sides encoded into one latent space, a linear decoder, and the likelihood of counts.

Letters: b cells of a batch, d latent dimensions, g genes that a side observes, m shared genes, h imputed genes. Side 0
is the reference, which observes m + h genes; side 1 is the target, which observes the first m of them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from histoweave.models.impute._imputed import Pair

SIZE_WIDTH = 128  # of the encoder of a cell's size, as in the authors' code
_LEAST_VAR = 1e-4  # of a cell's log size, as there


def layer(wide: int, width: int, dropout: float) -> nn.Sequential:
    """A linear layer with batch norm, ReLU and dropout; momentum and eps of the norm are the authors'."""
    norm = nn.BatchNorm1d(width, momentum=0.01, eps=0.001)
    return nn.Sequential(nn.Linear(wide, width), norm, nn.ReLU(), nn.Dropout(dropout))


def log_nb(x: Tensor, log_mean: Tensor, log_size: Tensor) -> Tensor:
    """Log-probability (b,) of counts x (b, g) under negative binomials of this log mean (b, g) and log size (g,).

    Variance is mean + mean² / size. Gamma functions are computed where there are counts; at 0 they cancel.
    """
    zero, more, (cell, _) = _parts(x, log_mean, log_size)
    return zero.sum(1).index_add(0, cell, more)


def log_zinb(x: Tensor, log_mean: Tensor, log_size: Tensor, logits: Tensor) -> Tensor:
    """The same with zero inflation: the share of cells that show 0 whatever they hold is sigmoid(logits) (b, g)."""
    zero, more, at = _parts(x, log_mean, log_size)
    inflated = F.logsigmoid(logits)
    drawn = inflated - logits + zero  # of which log(1 - share) is the first two
    nothing = torch.logaddexp(inflated, drawn)
    return nothing.sum(1).index_add(0, at[0], drawn[at] + more - nothing[at])


def _parts(x: Tensor, log_mean: Tensor, log_size: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Log-probability of 0 (b, g), what each count above 0 adds to it, and where these are."""
    log_sum = torch.logaddexp(log_mean, log_size)
    zero = log_size.exp() * (log_size - log_sum)
    at = x.nonzero(as_tuple=True)
    count, size = x[at], log_size.exp()[at[1]]
    ways = torch.lgamma(count + size) - torch.lgamma(size) - torch.lgamma(count + 1)
    return zero, ways + count * (log_mean - log_sum)[at], at


def kl_normal(mean: Tensor, var: Tensor, prior_mean: float = 0.0, prior_var: float = 1.0) -> Tensor:
    """Divergence (b,) of normals with means and variances (b, d) from a prior, summed over dimensions."""
    ratio = var / prior_var
    return ((mean - prior_mean).square() / prior_var + ratio - 1 - ratio.log()).sum(1) / 2


class Joint(nn.Module):
    """The joint autoencoder of both sides.

    Parameters
    ----------
    pair
        Counts of both sides, of which sizes and the prior of a reference cell's log size are taken.
    latent, width, dropout
        Width of the latent space and of both encoder layers, and dropout after them.
    """

    def __init__(self, pair: Pair, *, latent: int, width: int, dropout: float) -> None:
        super().__init__()
        self.m, g = pair.m, pair.m + pair.h
        totals = torch.from_numpy(pair.reference.sum(1)).double().log()  # (n, 1)
        self.prior = float(totals.mean()), max(float(totals.var(correction=0)), _LEAST_VAR)
        self.own = nn.ModuleList([layer(wide, width, dropout) for wide in (g, self.m)])
        self.both = layer(width, width, dropout)
        self.mean, self.log_var = nn.Linear(width, latent), nn.Linear(width, latent)
        self.size = nn.Sequential(layer(g, SIZE_WIDTH, dropout), nn.Linear(SIZE_WIDTH, 2))
        self.share, self.inflation = nn.Linear(latent, g), nn.Linear(latent, g)
        self.log_sizes = nn.ParameterList([torch.randn(wide) for wide in (g, self.m)])  # log of inverse dispersions

    def encode(self, x: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance and a draw (b, d) of the latent vector, from log1p counts (b, g) of a side."""
        hidden = self.both(self.own[side](x))  # (b, width)
        mean, var = self.mean(hidden), self.log_var(hidden).exp()
        return mean, var, draw(mean, var)

    def forward(self, x: Tensor, side: int, weight: float) -> tuple[Tensor, Tensor]:
        """Loss (b,) of counts x (b, g) of a side, with the weight of the divergences, and the latent draw (b, d)."""
        mean, var, z = self.encode(x.log1p(), side)
        apart = kl_normal(mean, var)
        seen = x.shape[1]
        log_share = F.linear(z, self.share.weight[:seen], self.share.bias[:seen]).log_softmax(
            1
        )  # (b, g), of the side's
        if side == 1:
            log_mean = log_share + x.sum(1, keepdim=True).log()
            return weight * apart - log_nb(x, log_mean, self.log_sizes[side]), z
        middle, spread = self.size(x.log1p()).split(1, dim=1)  # (b, 1) each
        spread = spread.exp() + _LEAST_VAR
        apart = apart + kl_normal(middle, spread, *self.prior)
        log_mean = log_share + draw(middle, spread)
        return weight * apart - log_zinb(x, log_mean, self.log_sizes[side], self.inflation(z)), z

    def shares(self, z: Tensor) -> Tensor:
        """Shares (b, h) of the imputed genes among all, of latent vectors (b, d)."""
        return self.share(z).softmax(1)[:, self.m :]


def draw(mean: Tensor, var: Tensor) -> Tensor:
    """A draw of normals (b, d), through which gradients pass."""
    return mean + var.sqrt() * torch.randn_like(mean)


def drawn_spread(model: Joint, mean: Tensor, var: Tensor, samples: int) -> Tensor:
    """Standard deviation (b, h) of the shares over draws of the latent vector (b, d); one pass (Welford 1962)."""
    centre = square = torch.zeros(())
    for k in range(1, samples + 1):
        made = model.shares(draw(mean, var))
        off = made - centre
        centre = centre + off / k
        square = square + off * (made - centre)
    return (square / samples).sqrt()
