"""Spatial structure of a prediction beside that of the truth, gene by gene within a section.

Arrays are ``(n, g)``; what was not measured is left out of both sides, so that they speak of the same spots. A spot's
neighbours weigh the same and sum to 1, as in `pp.morans_i`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from histoweave.bench.metrics import pearson
from histoweave.bio._part import Floats, Part, centred, checked, parts
from histoweave.bio.torus import toroidal_test
from histoweave.pp.smooth import mean_operator

WINDOW_HOPS = 3  # of SSIM: 7 × 7 spots on a square lattice, the side that scikit-image uses by default
_K1, _K2 = 0.01, 0.03  # Wang et al., IEEE Trans. Image Process. 13:600 (2004)
_BLOCK = 2**20  # dense entries of one block of genes: 8 MiB per array


def autocorrelation(values: ArrayLike, nbr: NDArray[np.int32], mask: ArrayLike | None = None) -> tuple[Floats, Floats]:
    """Moran's I and Geary's C per gene, with row-normalised weights over measured neighbours.

    I = n / W · Σᵢⱼ wᵢⱼ zᵢ zⱼ / Σᵢ zᵢ² and C = (n - 1) / 2W · Σᵢⱼ wᵢⱼ (xᵢ - xⱼ)² / Σᵢ zᵢ², with z the deviation from the
    mean and W the sum of all weights.

    Parameters
    ----------
    values
        (n, g).
    nbr
        Neighbour table (n, k) of row numbers, -1 where there is none.
    mask
        (n, g), True = measured; None = what is not NaN. Spots that were not measured are nobody's neighbour.

    Returns
    -------
    Two (g,); NaN for constant genes and where no measured spot has a measured neighbour.
    """
    x, _, seen = checked(values, np.zeros(np.shape(values)), mask)
    links = _links(nbr, include_self=False)
    n, g = x.shape
    moran, geary = np.full(g, np.nan), np.full(g, np.nan)
    step = max(1, _BLOCK // n)
    for at in range(0, g, step):
        cut = np.s_[at : at + step]
        m = seen[:, cut]
        z, varies = centred(x[:, cut], m)
        degree = links @ m.astype(np.float64)
        linked = m & (degree > 0)
        share = linked / np.maximum(degree, 1.0)  # (n, block): the weight of each measured neighbour
        total, count = linked.sum(axis=0), m.sum(axis=0)
        square = np.square(z)
        cross = np.einsum("ng,ng->g", z * share, links @ z)
        apart = np.einsum("ng->g", square * linked) - 2 * cross + np.einsum("ng,ng->g", share, links @ square)
        usable = varies & (total > 0)
        scale = np.where(usable, square.sum(axis=0) * total, 1.0)
        moran[cut] = np.where(usable, count * cross / scale, np.nan)
        geary[cut] = np.where(usable, (count - 1) * apart / (2 * scale), np.nan)
    return moran, geary


def _links(nbr: NDArray[np.int32], *, include_self: bool) -> sparse.csr_array:
    """The neighbour table as a matrix of ones, CSR (n, n)."""
    links = mean_operator(nbr, include_self=include_self)
    links.data[:] = 1.0
    return links


def variance_ratio(truth: ArrayLike, pred: ArrayLike, mask: ArrayLike | None = None) -> Floats:
    """Variance of the prediction over variance of the truth per gene, (g,); NaN where the truth is constant.

    Truth holds the noise of counting, so a perfect conditional mean has a ratio under 1: the ratio is to be read beside
    the correlation (`pl.oversmoothing`), whose square it equals for a prediction that is neither shrunk nor stretched.
    """
    x, y, seen = checked(truth, pred, mask)
    (z, varies), (w, _) = centred(x, seen), centred(y, seen)
    spread = np.where(varies, np.square(z).sum(axis=0), 1.0)
    return np.where(varies, np.square(w).sum(axis=0) / spread, np.nan)


def ssim(truth: ArrayLike, pred: ArrayLike, nbr: NDArray[np.int32], mask: ArrayLike | None = None) -> Floats:
    """Structural similarity per gene on a lattice, (g,): the mean over spots of Wang's index of their windows.

    A window is a spot and its neighbours in the table, as far as they exist and were measured; moments are population
    moments with equal weights. The dynamic range is the range of the gene's truth in the section, in its own units, so
    a prediction that is right but for its scale is penalised. NaN where the truth is constant.
    """
    x, y, seen = checked(truth, pred, mask)
    links = _links(nbr, include_self=True)
    n, g = x.shape
    found = np.full(g, np.nan)
    step = max(1, _BLOCK // n)
    for at in range(0, g, step):
        cut = np.s_[at : at + step]
        m = seen[:, cut]
        z, varies = centred(x[:, cut], m)
        filled = np.where(m, x[:, cut], np.nan)
        if not varies.any():
            continue
        z, m, filled = z[:, varies], m[:, varies], filled[:, varies]
        middle = np.nansum(filled, axis=0) / m.sum(axis=0)
        w = np.where(m, y[:, cut][:, varies] - middle, 0.0)  # both sides from one origin: moments keep their digits
        span = np.nanmax(filled, axis=0) - np.nanmin(filled, axis=0)
        size = np.maximum(links @ m.astype(np.float64), 1.0)
        mean_z, mean_w = links @ z / size, links @ w / size
        var_z = links @ np.square(z) / size - np.square(mean_z)
        var_w = links @ np.square(w) / size - np.square(mean_w)
        both = links @ (z * w) / size - mean_z * mean_w
        a, b = mean_z + middle, mean_w + middle
        c1, c2 = np.square(_K1 * span), np.square(_K2 * span)
        index = (2 * a * b + c1) * (2 * both + c2) / ((a**2 + b**2 + c1) * (var_z + var_w + c2))
        found[np.arange(g)[cut][varies]] = np.where(m, index, 0.0).sum(axis=0) / m.sum(axis=0)
    return found


def rv_coefficient(
    truth: ArrayLike, pred: ArrayLike, mask: ArrayLike | None = None, *, diagonal: bool = False
) -> float:
    """Escoufier's RV coefficient between the gene–gene correlation matrices of truth and prediction.

    tr(R S) / √(tr R² · tr S²), over spots in which every gene was measured and over genes whose truth varies there. A
    gene that is predicted constant correlates with none.

    Parameters
    ----------
    diagonal
        Count the ones on the diagonals too, as the definition has it. They agree whatever was predicted, which lifts
        the value of few or weakly correlated genes; so they are left out by default.

    Returns
    -------
    NaN without two such genes and three such spots, or where one side correlates nothing.

    Notes
    -----
    Robert & Escoufier, Applied Statistics 25:257 (1976). Neither a genes × genes nor a spots × spots matrix is built
    when the other is smaller.
    """
    x, y, seen = checked(truth, pred, mask)
    used = seen.any(axis=0)
    rows = seen[:, used].all(axis=1)
    x, y = x[rows][:, used], y[rows][:, used]
    if len(x) < 3:
        return float("nan")
    every = np.ones(x.shape, dtype=bool)
    (z, varies), (w, moves) = centred(x, every), centred(y, every)
    z, w, moves = z[:, varies], w[:, varies], moves[varies]
    if z.shape[1] < 2:
        return float("nan")
    z /= np.linalg.norm(z, axis=0)
    w = np.where(moves, w / np.where(moves, np.linalg.norm(w, axis=0), 1.0), 0.0)
    drop = (0, 0, 0) if diagonal else (int(moves.sum()), len(moves), int(moves.sum()))
    cross, own, other = (_trace(a, b) - d for (a, b), d in zip(((z, w), (z, z), (w, w)), drop, strict=True))
    size = max(own, 0.0) * max(other, 0.0)
    return float(cross / np.sqrt(size)) if size > 1e-18 * len(moves) ** 4 else float("nan")


def _trace(a: Floats, b: Floats) -> float:
    """tr(aᵀa bᵀb) of (n, g) matrices, through whichever product is smaller."""
    if a.shape[0] < a.shape[1]:
        return float(np.square(a @ b.T).sum())
    return float(np.einsum("ij,ij->", a.T @ a, b.T @ b))


def spotwise(truth: ArrayLike, pred: ArrayLike, mask: ArrayLike | None = None) -> pd.DataFrame:
    """Correlation over genes within each spot, n rows.

    Columns: ``pcc``; ``pcc_mean_profile``, what the section's own mean expression reaches there. Genes differ in level
    far more than spots do, so only what lies above the second says that something about the spot is known.
    """
    x, y, seen = checked(truth, pred, mask)
    count = seen.sum(axis=0)
    profile = np.where(seen, x, 0.0).sum(axis=0) / np.maximum(count, 1)
    flat = np.broadcast_to(profile, x.shape)
    filled = np.where(seen, x, 0.0)
    return pd.DataFrame(
        {
            "pcc": pearson(filled.T, y.T, seen.T),
            "pcc_mean_profile": pearson(filled.T, flat.T, seen.T),
        }
    )


def structure(part: Part) -> pd.DataFrame:
    """All per-gene values of one section, g rows; see `spatial_table` for the columns."""
    seen = part.measured
    nbr = part.neighbours()
    moran_truth, geary_truth = autocorrelation(part.truth, nbr, seen)
    moran_pred, geary_pred = autocorrelation(part.pred, nbr, seen)
    test = toroidal_test(part.truth, part.pred, part.cells(), seen, doubled=part.kind == "hex")
    window = part.neighbours(WINDOW_HOPS) if part.kind is not None else None
    return pd.DataFrame(
        {
            "pcc": pearson(np.where(seen, part.truth, 0.0), part.pred, seen),
            "moran_truth": moran_truth,
            "moran_pred": moran_pred,
            "geary_truth": geary_truth,
            "geary_pred": geary_pred,
            "variance_ratio": variance_ratio(part.truth, part.pred, seen),
            "ssim": np.nan if window is None else ssim(part.truth, part.pred, window, seen),
            "p": test["p"].to_numpy(),
            "q": test["q"].to_numpy(),
            "shifts": test["shifts"].to_numpy(),
        },
        index=part.genes.rename("gene"),
    )


def spatial_table(prediction: AnnData) -> pd.DataFrame:
    """Spatial structure of every gene in every section of a stored prediction.

    Columns: patient, section, gene, pcc, moran_truth, moran_pred, geary_truth, geary_pred, variance_ratio, ssim (NaN off
    lattices), and the toroidal-shift test of the PCC: p, q (Benjamini–Hochberg over the genes of a section) and shifts,
    of which 1 / shifts is the smallest p that the section can give.
    """
    tables = [
        structure(part).reset_index().assign(patient=part.patient, section=part.section) for part in parts(prediction)
    ]
    table = pd.concat(tables, ignore_index=True)
    return table[["patient", "section", *[c for c in table.columns if c not in ("patient", "section")]]]


def spatial_summary(part: Part) -> dict[str, float]:
    """One section in a few numbers: medians over genes and spots, the RV coefficient, and genes found at q ≤ 0.05."""
    return summary_of(structure(part), part)


def summary_of(genes: pd.DataFrame, part: Part) -> dict[str, float]:
    """`spatial_summary` where `structure` is at hand."""
    spots = spotwise(part.truth, part.pred, part.measured)

    def median(values: pd.Series) -> float:
        return float(values.median()) if values.notna().any() else float("nan")

    kept = {name: median(genes[name]) for name in ("moran_truth", "moran_pred", "geary_truth", "geary_pred")}
    return kept | {
        "variance_ratio": median(genes["variance_ratio"]),
        "ssim": median(genes["ssim"]),
        "rv": rv_coefficient(part.truth, part.pred, part.measured),
        "spot_pcc": median(spots["pcc"]),
        "spot_pcc_mean_profile": median(spots["pcc_mean_profile"]),
        "found": float((genes["q"] <= 0.05).sum()),
        "tested": float(genes["p"].notna().sum()),
        "shifts": median(genes["shifts"]),
    }
