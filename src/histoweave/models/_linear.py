"""Least squares and ridge for all genes and all penalties at once, from sums over spots that are streamed.

Letters: b spots of a chunk, n all spots, k folds, d features, g genes, a penalties, p directions that are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Moments(NamedTuple):
    """Sums over spots per fold k: n (k,), x (k, d), y (k, g), xx (k, d, d), xy (k, d, g), and yy (k, g) where needed."""

    n: Tensor
    x: Tensor
    y: Tensor
    xx: Tensor
    xy: Tensor
    yy: Tensor | None = None

    @classmethod
    def of(cls, x: Tensor, y: Tensor, fold: Tensor | None = None, k: int = 1) -> Moments:
        """Sums of a chunk of features (b, d) and targets (b, g) by fold (b,), in float64 whatever the chunk is."""
        x, y = x.double(), y.double()
        parts = [(x, y)] if fold is None else [(x[fold == i], y[fold == i]) for i in range(k)]
        return cls(
            torch.tensor([float(len(a)) for a, _ in parts], dtype=torch.float64, device=x.device),
            torch.stack([a.sum(dim=0) for a, _ in parts]),
            torch.stack([b.sum(dim=0) for _, b in parts]),
            torch.stack([a.T @ a for a, _ in parts]),
            torch.stack([a.T @ b for a, b in parts]),
            torch.stack([(b * b).sum(dim=0) for _, b in parts]),
        )

    @classmethod
    def stream(cls, chunks: Iterable[tuple[Tensor, ...]], k: int = 1) -> Moments:
        """Sums over chunks (x, y) or (x, y, fold); only one chunk is held at a time.

        Raises
        ------
        ValueError
            No chunk, no spot, or values that are not finite.
        """
        sums: Moments | None = None
        for chunk in chunks:
            new = cls.of(chunk[0], chunk[1], chunk[2] if len(chunk) > 2 else None, k)
            sums = new if sums is None else sums.plus(new)
        if sums is None or not sums.n.sum() > 0:
            raise ValueError("there is no spot to fit on; give at least one spot with counts")
        for name, table in (("feature", sums.x), ("target", sums.y)):
            bad = torch.nonzero(~torch.isfinite(table).all(dim=0)).squeeze(1).tolist()
            if bad:
                raise ValueError(
                    f"{name}s hold NaN or infinite values in {len(bad)} columns (first: {bad[:5]}); leave out these "
                    "columns, or the spots where they are not measured"
                )
        return sums

    def plus(self, other: Moments) -> Moments:
        """Over the spots of both."""
        yy = None if self.yy is None or other.yy is None else self.yy + other.yy
        sums = (self.n + other.n, self.x + other.x, self.y + other.y, self.xx + other.xx, self.xy + other.xy)
        return Moments(*sums, yy)

    def total(self) -> Moments:
        """Over all folds, with a leading axis of 1."""
        return self._each(lambda part: part.sum(dim=0, keepdim=True))

    def only(self, k: int) -> Moments:
        """Of one fold, with a leading axis of 1."""
        return self._each(lambda part: part[k : k + 1])

    def without(self, k: int) -> Moments:
        """Over all folds but one, with a leading axis of 1."""
        return self._each(lambda part: part.sum(dim=0, keepdim=True) - part[k : k + 1])

    def _each(self, change: Callable[[Tensor], Tensor]) -> Moments:
        yy = None if self.yy is None else change(self.yy)
        return Moments(change(self.n), change(self.x), change(self.y), change(self.xx), change(self.xy), yy)


class Path(NamedTuple):
    """Coefficients for every penalty (a, d, g), and intercepts (a, g)."""

    coef: Tensor
    intercept: Tensor

    @classmethod
    def join(cls, parts: Sequence[Path]) -> Path:
        """Of the genes of all parts, one after the other."""
        return cls(torch.cat([part.coef for part in parts], 2), torch.cat([part.intercept for part in parts], 1))

    def pick(self, best: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients (d, g) and intercepts (g,) at the penalty of each gene (g,)."""
        gene = torch.arange(len(best), device=best.device)
        return self.coef[best, :, gene].T.contiguous(), self.intercept[best, gene]


class Centred(NamedTuple):
    """Scatter about the means: gram (d, d), cross (d, g), total (g,); means x (d,) and y (g,); n; and `rounding`, the
    share of gram that is noise, which grows with the means: features far from 0 cost digits, so centre them roughly.

    Features of no spread, to rounding, are exactly 0 in gram and cross, and so are targets of no spread in cross and total.
    """

    gram: Tensor
    cross: Tensor
    total: Tensor
    x: Tensor
    y: Tensor
    n: float
    rounding: float

    @classmethod
    def of(cls, sums: Moments) -> Centred:
        """From moments of one fold."""
        if len(sums.n) != 1 or sums.yy is None:
            raise ValueError("expected moments of one fold with squares of the target; use total() or without()")
        n = float(sums.n[0])
        if n < 1:
            raise ValueError("there is no spot to fit on; give at least one spot with counts, and folds that hold some")
        x, y = sums.x[0] / n, sums.y[0] / n
        gram = sums.xx[0] - n * torch.outer(x, x)
        cross = sums.xy[0] - n * torch.outer(x, y)
        total = sums.yy[0] - n * y * y
        eps = torch.finfo(x.dtype).eps
        noise = 8 * n**0.5 * eps  # rounding of a sum of n squares
        raw = sums.xx[0].diagonal()
        varies, moves = gram.diagonal() > noise * raw, total > noise * sums.yy[0]
        lost = torch.where(varies, raw / gram.diagonal().clamp(min=torch.finfo(x.dtype).tiny), 1.0).clamp(min=1)
        gram = gram * varies[:, None] * varies
        return cls(gram, cross * varies[:, None] * moves, total * moves, x, y, n, eps * float(lost.max()))

    def intercept(self, coef: Tensor) -> Tensor:
        """Intercepts (a, g) that go with coefficients (a, d, g)."""
        return self.y - torch.einsum("d,adg->ag", self.x, coef)


def ridge_path(sums: Moments, alphas: Tensor) -> Path:
    """Minimises ‖y - Xw - b‖² + α‖w‖² for every penalty and every gene by one eigendecomposition, float64.

    That is scikit-learn's ``Ridge(alpha)``, whose penalty is not divided by the number of spots; b is not penalised.
    With XᵀX = VSVᵀ about the means, w(α) = V (S + α)⁻¹ VᵀXᵀy. At α = 0 it is `least_squares`.

    Parameters
    ----------
    sums
        Moments of one fold.
    alphas
        (a,), 0 or more, in any order.

    Raises
    ------
    ValueError
        A penalty that is negative or not finite.
    """
    alphas = penalties(alphas).to(sums.x)
    data = Centred.of(sums)
    values, vectors = torch.linalg.eigh(data.gram)  # (d,), (d, d)
    projected = vectors.T @ data.cross  # (d, g)
    safe = torch.where(alphas > 0, alphas, 1.0)
    shrunk = projected / (values.clamp(min=0) + safe[:, None])[:, :, None]  # (a, d, g)
    coef = vectors @ shrunk
    if (alphas == 0).any():
        coef[alphas == 0] = least_squares(data)
    return Path(coef, data.intercept(coef))


def least_squares(data: Centred) -> Tensor:
    """Coefficients (d, g) of least squares; the shortest ones where features are collinear.

    Features are divided by their standard deviations first, so that their units do not matter; then directions whose
    share of variance is below d·ε of the largest are left out, which the Gram matrix cannot tell from rounding: for
    centred features that is a ratio of 1e-7 in singular values.
    """
    basis = whitening(data)
    return basis @ (basis.T @ data.cross) / data.n


def whitening(data: Centred) -> Tensor:
    """A basis (d, p) of the directions that the spots determine, in which features are white: BᵀXᵀXB = n·1."""
    sd = (data.gram.diagonal() / data.n).clamp(min=0).sqrt()
    inverse = torch.where(sd > 0, 1 / sd.clamp(min=torch.finfo(sd.dtype).tiny), 0.0)
    values, vectors = torch.linalg.eigh(inverse[:, None] * data.gram * inverse / data.n)
    keep = values > len(values) * data.rounding * values[-1:].clamp(min=1e-3)  # 1 where anything varies, 0 where not
    return inverse[:, None] * vectors[:, keep] / values[keep].sqrt()


def squared_error(path: Path, held: Moments) -> Tensor:
    """Squared error (a, g) of a path on the spots of a fold, from their moments: no spot is looked at again."""
    if held.yy is None:
        raise ValueError("the moments have no squares of the target; make them by Moments.of")
    n, x, y, xx, xy, yy = held.n[0], held.x[0], held.y[0], held.xx[0], held.xy[0], held.yy[0]
    coef, b = path
    fitted = (coef * (xx @ coef)).sum(dim=1) + 2 * b * torch.einsum("d,adg->ag", x, coef) + n * b * b  # Σ p² (a, g)
    crossed = (coef * xy).sum(dim=1) + b * y  # Σ p y
    return (fitted - 2 * crossed + yy).clamp(min=0)


def penalties(alphas: Tensor) -> Tensor:
    """The penalties (a,), when all are finite and 0 or more."""
    if alphas.ndim != 1 or not len(alphas) or not bool((torch.isfinite(alphas) & (alphas >= 0)).all()):
        raise ValueError(f"penalties {alphas.tolist()}; expected one or more finite numbers of 0 or more")
    return alphas
