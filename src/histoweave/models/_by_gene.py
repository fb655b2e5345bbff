"""Ridge and least squares where every gene is measured in spots of its own: a Gram matrix for each gene.

A matrix per gene costs n·d²·g to sum and d³·g to solve, so this is for targets with gaps only; where all spots have all
genes, `histoweave.models._linear` shares one. Sums are streamed for as many genes at a time as 128 MiB hold, and solving
takes a few times that; the feed is walked once for each such group.

Letters: b spots of a chunk, k folds, d features, t = d (d + 1) / 2 entries of a triangle, g genes, a penalties.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from histoweave.batch import FeedLike, Needs
from histoweave.models._linear import Path, penalties

Entries = tuple[Tensor, Tensor, Tensor, Tensor]  # features (b, d), targets and where they count (b, g), fold (b,)
Walk = Callable[[], Iterable[Entries]]

WALK = 4096  # spots per step when the feed is walked
_HELD = 1 << 24  # numbers of the sums that are held at a time
_PRODUCTS = 1 << 22  # products of features that are held at a time


def partly(feed: FeedLike) -> bool:
    """Whether some spot has a part of the genes measured, and not all or none of them."""
    masks = (batch.y_mask for batch in feed.reading(Needs.NONE).batches(WALK))
    return any(bool((mask.any(dim=1) & ~mask.all(dim=1)).any()) for mask in masks)


class GeneMoments(NamedTuple):
    """Sums per fold and gene over its measured spots: n, y, yy (k, g), x, xy (k, g, d), upper triangle xx (k, g, t)."""

    n: Tensor
    x: Tensor
    y: Tensor
    xx: Tensor
    xy: Tensor
    yy: Tensor

    @classmethod
    def stream(cls, chunks: Iterable[Entries], k: int, genes: slice) -> GeneMoments:
        """Sums of some genes over chunks, in float64; what a target holds where it does not count never enters.

        Raises
        ------
        ValueError
            No chunk, or values that are not finite.
        """
        sums: GeneMoments | None = None
        for x, y, measured, fold in chunks:
            measured = measured[:, genes]
            x, y = x.double(), torch.where(measured, y[:, genes], 0.0).double()
            sums = cls._zeros(k, x, y) if sums is None else sums
            upper = torch.triu_indices(x.shape[1], x.shape[1], device=x.device)
            for rows in torch.arange(len(x), device=x.device).split(max(1, _PRODUCTS // upper.shape[1])):
                for i in fold[rows].unique().tolist():
                    sums._add(i, rows[fold[rows] == i], x, y, measured.double(), upper)
        if sums is None:
            raise ValueError("there is no spot to fit on; give at least one spot with counts")
        for name, table in (("features", sums.x), ("targets", sums.y)):
            if not bool(torch.isfinite(table).all()):
                raise ValueError(f"{name} hold NaN or infinite values; leave out the spots where they do")
        return sums

    @classmethod
    def _zeros(cls, k: int, x: Tensor, y: Tensor) -> GeneMoments:
        """Sums of no spot."""
        (d, g), t = (x.shape[1], y.shape[1]), x.shape[1] * (x.shape[1] + 1) // 2
        return cls(*(x.new_zeros(k, g, *shape) for shape in ((), (d,), (), (t,), (d,), ())))

    def _add(self, i: int, rows: Tensor, x: Tensor, y: Tensor, there: Tensor, upper: Tensor) -> None:
        """Adds rows of a chunk to fold i: x (b, d), y and there (b, g), upper (2, t)."""
        a, v, m = x[rows], y[rows], there[rows]
        self.n[i] += m.sum(dim=0)
        self.x[i].addmm_(m.T, a)
        self.y[i] += v.sum(dim=0)
        self.xx[i].addmm_(m.T, a[:, upper[0]] * a[:, upper[1]])
        self.xy[i].addmm_(v.T, a)
        self.yy[i] += v.square().sum(dim=0)

    def total(self) -> GeneMoments:
        """Over all folds, with a leading axis of 1."""
        return GeneMoments(*(part.sum(dim=0, keepdim=True) for part in self))

    def only(self, k: int) -> GeneMoments:
        """Of one fold, with a leading axis of 1."""
        return GeneMoments(*(part[k : k + 1] for part in self))

    def without(self, k: int) -> GeneMoments:
        """Over all folds but one, with a leading axis of 1.

        The others are added, not the one subtracted: of a gene with few spots a difference would leave rounding alone.
        """
        parts = []
        for part in self:
            made = torch.zeros_like(part[:1])
            for j in range(len(part)):
                if j != k:
                    made += part[j]
            parts.append(made)
        return GeneMoments(*parts)

    def square(self) -> Tensor:
        """Sums of products (g, d, d) of one fold."""
        d = self.x.shape[2]
        upper = torch.triu_indices(d, d, device=self.xx.device)
        made = self.xx.new_empty(self.xx.shape[1], d, d)
        made[:, upper[0], upper[1]] = made[:, upper[1], upper[0]] = self.xx[0]
        return made


def by_gene(walk: Walk, k: int, width: int, genes: int) -> Iterator[tuple[slice, GeneMoments]]:
    """The sums over k folds of all genes, of as many at a time as memory allows, and which they are."""
    size = max(1, _HELD // (k * (width * (width + 1) // 2)))
    for start in range(0, genes, size):
        part = slice(start, min(start + size, genes))
        yield part, GeneMoments.stream(walk(), k, part)


class GeneCentred(NamedTuple):
    """Scatter about the means of each gene's spots: gram (g, d, d), cross (d, g), total (g,); means x (d, g) and y (g,);
    n (g,), at least 1; and `rounding` (g,), the share of gram that is noise. All as in `_linear.Centred`.

    A gene without any spot has zeros everywhere, so its coefficients and its intercept are 0.
    """

    gram: Tensor
    cross: Tensor
    total: Tensor
    x: Tensor
    y: Tensor
    n: Tensor
    rounding: Tensor

    @classmethod
    def of(cls, sums: GeneMoments) -> GeneCentred:
        """From moments of one fold."""
        n = sums.n[0].clamp(min=1)  # sums over no spot are 0, so that this changes nothing else
        x, y, squares = sums.x[0] / n[:, None], sums.y[0] / n, sums.square()
        gram = squares - n[:, None, None] * x[:, :, None] * x[:, None]
        cross = (sums.xy[0] - n[:, None] * x * y[:, None]).T
        total = sums.yy[0] - n * y * y
        eps, tiny = torch.finfo(x.dtype).eps, torch.finfo(x.dtype).tiny
        noise = 8 * n.sqrt() * eps  # rounding of a sum of n squares
        raw, spread = (table.diagonal(dim1=1, dim2=2) for table in (squares, gram))  # (g, d)
        varies, moves = spread > noise[:, None] * raw, total > noise * sums.yy[0]
        lost = torch.where(varies, raw / spread.clamp(min=tiny), 1.0).clamp(min=1).amax(dim=1)
        gram = gram * varies[:, :, None] * varies[:, None]
        return cls(gram, cross * varies.T * moves, total * moves, x.T, y, n, eps * lost)

    def intercept(self, coef: Tensor) -> Tensor:
        """Intercepts (a, g) that go with coefficients (a, d, g)."""
        return self.y - torch.einsum("dg,adg->ag", self.x, coef)


def ridge_by_gene(sums: GeneMoments, alphas: Tensor, *, relative: bool = False) -> Path:
    """`_linear.ridge_path` for every gene on its own spots.

    Parameters
    ----------
    sums
        Moments of one fold.
    alphas
        (a,), 0 or more, in any order.
    relative
        Whether penalties are multiples of the mean eigenvalue of the gene's Gram matrix, over the directions that its
        spots can tell apart.
    """
    data = GeneCentred.of(sums)
    many = penalties(alphas).to(data.n)[:, None].expand(-1, len(data.n))  # (a, g)
    if relative:
        rank = (data.n - 1).clamp(min=1, max=len(data.cross))
        many = many * (data.gram.diagonal(dim1=1, dim2=2).sum(dim=1) / rank).clamp(min=1e-12)
    values, vectors = torch.linalg.eigh(data.gram)  # (g, d), (g, d, d)
    projected = (vectors.mT @ data.cross.T[..., None])[..., 0]  # (g, d)
    safe = torch.where(many > 0, many, 1.0)
    shrunk = projected / (values.clamp(min=0) + safe[..., None])  # (a, g, d)
    coef = torch.einsum("gde,age->adg", vectors, shrunk)
    if (alphas == 0).any():
        coef[(alphas == 0).to(coef.device)] = least_squares_by_gene(data)
    return Path(coef, data.intercept(coef))


def least_squares_by_gene(data: GeneCentred) -> Tensor:
    """`_linear.least_squares` for every gene on its own spots (d, g)."""
    n = data.n[:, None]
    sd = (data.gram.diagonal(dim1=1, dim2=2) / n).clamp(min=0).sqrt()  # (g, d)
    inverse = torch.where(sd > 0, 1 / sd.clamp(min=torch.finfo(sd.dtype).tiny), 0.0)
    values, vectors = torch.linalg.eigh(inverse[:, :, None] * data.gram * inverse[:, None] / n[..., None])
    least = values.shape[1] * data.rounding[:, None] * values[:, -1:].clamp(min=1e-3)
    kept = torch.where(values > least, 1 / values.clamp(min=torch.finfo(sd.dtype).tiny), 0.0)
    white = (vectors.mT @ (inverse * data.cross.T)[..., None])[..., 0]
    return (inverse * (vectors @ (kept * white / n)[..., None])[..., 0]).T


class Held(NamedTuple):
    """Sums (a, g) of predictions p of held-out entries, of their squares, and of their products with the truth."""

    p: Tensor
    pp: Tensor
    py: Tensor

    @classmethod
    def of(cls, path: Path, held: GeneMoments) -> Held:
        """Of a path on the measured spots of one fold, from their moments: no spot is looked at again."""
        w, b = path.coef.permute(2, 0, 1), path.intercept  # (g, a, d), (a, g)
        of_x, of_xy = ((w @ part[0][..., None])[..., 0].T for part in (held.x, held.xy))  # (a, g)
        p = of_x + held.n[0] * b
        pp = ((w @ held.square()) * w).sum(dim=2).T + b * (of_x + p)
        return cls(p, pp, of_xy + b * held.y[0])


def squared_error_by_gene(path: Path, held: GeneMoments) -> Tensor:
    """Squared error (a, g) of a path on the measured spots of one fold."""
    made = Held.of(path, held)
    return (made.pp - 2 * made.py + held.yy[0]).clamp(min=0)


def correlation_by_gene(path: Path, held: GeneMoments) -> Tensor:
    """Pearson correlation (a, g) of a path on the measured spots of one fold; 0 where either does not vary."""
    made, n, y = Held.of(path, held), held.n[0].clamp(min=1), held.y[0]
    cov = made.py - made.p * y / n
    var = (made.pp - made.p.square() / n).clamp(min=0) * (held.yy[0] - y.square() / n).clamp(min=0)
    return cov / var.sqrt().clamp(min=1e-12)
