"""What a prediction of one section is scored on: all that was measured, the entries or genes that were hidden, or counts."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import sparse

from histoweave.bench.metrics import section_metrics, spearman
from histoweave.data.holdout import Entries, Everything, Genes, Holdout, Thin
from histoweave.data.section import Cohort, Section
from histoweave.view import FittedView, divisor

ENTRIES = "entries"  # how many entries of a gene were scored, by which means over entries are made
DROPPED = "dropped"  # 1 for a gene that is not scored because all that was measured of it is hidden
MEASURED = "_measured"  # ends the names of metrics over measured entries alone, where counts of 0 are entries too
BINNED = ("spearman_bins", "spearman_all_bins")  # of bins with 10 cells or more, and of all bins with a cell
OWN = "spearman_bins_own"  # the first of these for what an imputer gave, before it was brought to the common scale
BIN_UM, BIN_CELLS, _FEWEST_BINS = 54.4, 10, 3  # xMINT: 128 px of 0.425 µm
_LEAST = 1e-4  # expected counts are at least this, so that no prediction of 0 is infinitely wrong


def at_rate(metric: str, rate: float) -> str:
    """Name of a metric of the same fit at another rate of hidden entries: ``mse@0.5``."""
    return f"{metric}@{rate:g}"


def score(
    fitted: FittedView,
    section: Section,
    predicted: np.ndarray,
    holdout: Holdout,
    *,
    measured: bool = False,
    own: np.ndarray | None = None,
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Metrics per gene of a section under test, the truth (n, g), and where it counts (n, g).

    Parameters
    ----------
    predicted
        (n, g), in units of the target.
    measured
        Also the metrics over entries with a count alone, their names ending in ``_measured``.
    own
        (n, g) of hidden genes on the scale of whatever imputed them; `predicted` where there is no other.
    """
    genes = list(fitted.genes.genes)
    truth, mask = fitted.truth(section)
    if isinstance(holdout.hide, Thin):
        return _deviance(fitted, section, predicted, holdout), truth, mask
    if not isinstance(holdout.hide, Everything):
        mask &= holdout.hidden(section)[:, section.genes.get_indexer(genes)].toarray()
    dropped = np.zeros(len(genes), dtype=bool)
    if isinstance(holdout.hide, Entries) and holdout.hide.of == "all":  # genes of which nothing stays visible
        left = (fitted.truth(section, zeros=False)[1] & ~mask).any(axis=0)
        dropped, mask = mask.any(axis=0) & ~left, mask & left
    frame, _ = section_metrics(truth, predicted, mask, genes=genes)
    if isinstance(holdout.hide, Genes):
        frame[list(BINNED)] = np.column_stack(binned_spearman(section, truth, predicted, mask))
        frame[OWN] = frame[BINNED[0]] if own is None else binned_spearman(section, truth, own, mask)[0]
    if isinstance(holdout.hide, Entries):
        frame[ENTRIES] = mask.sum(axis=0).astype(np.float64)
        if holdout.hide.of == "all":
            frame[DROPPED] = dropped.astype(np.float64)
    if measured:
        seen = mask & fitted.truth(section, zeros=False)[1]
        more, _ = section_metrics(truth, predicted, seen, genes=genes)
        frame = frame.join(more.add_suffix(MEASURED))
    return frame, truth, mask


def shown_values(fitted: FittedView, section: Section, holdout: Holdout) -> np.ndarray:
    """Values (n, g) of the measured entries that are not hidden, NaN elsewhere; also of genes that are not scored."""
    values, measured = fitted.truth(section, zeros=False)
    hidden = holdout.hidden(section)[:, section.genes.get_indexer(list(fitted.genes.genes))].toarray()
    return np.where(measured & ~hidden, values, np.nan).astype(np.float32)


def binned_spearman(
    section: Section, truth: np.ndarray, predicted: np.ndarray, mask: np.ndarray, *, side_um: float = BIN_UM
) -> tuple[np.ndarray, np.ndarray]:
    """Spearman correlation per gene between means over square bins of tissue: of bins of 10 cells or more, and of all.

    Parameters
    ----------
    truth, predicted
        (n, g); cells that `mask` (n, g) leaves out are in no mean.
    side_um
        Side of a bin; in px where the section has no µm per px.

    Returns
    -------
    (g,), (g,): NaN where a gene is constant over the bins, or there are fewer than 3.
    """
    place = np.floor(section.xy * (section.um_per_px or 1.0) / side_um).astype(np.int64)
    code = np.unique(place, axis=0, return_inverse=True)[1].reshape(-1)
    member = sparse.csr_array((np.ones(section.n), (code, np.arange(section.n))))  # (bins, n)
    cells = member @ mask.astype(np.float64)  # (bins, g)
    means = [np.divide(member @ np.where(mask, v, 0.0), cells, out=np.zeros(cells.shape), where=cells > 0)
             for v in (truth, predicted)]  # fmt: skip
    found = [spearman(means[0], means[1], cells >= least) for least in (BIN_CELLS, 1)]
    enough = [(cells >= least).sum(axis=0) >= _FEWEST_BINS for least in (BIN_CELLS, 1)]
    many, all_bins = (np.where(told, values, np.nan) for told, values in zip(enough, found, strict=True))
    return many, all_bins


def _deviance(fitted: FittedView, section: Section, predicted: np.ndarray, holdout: Holdout) -> pd.DataFrame:
    """Poisson deviance per gene of the hidden transcripts, mean over spots; and the share of a constant rate's explained.

    What is expected of the hidden part is what the prediction says of the shown part, times rate / (1 - rate). The
    constant rate is the best in hindsight: the gene's own share of the hidden transcripts of this section.
    """
    assert isinstance(holdout.hide, Thin)
    genes, rate = list(fitted.genes.genes), holdout.hide.rate
    shown = holdout.shown(Cohort([section]))[0]
    library = divisor(fitted.view.target, shown)
    expected = fitted.view.target.inverse(predicted, library) * (rate / (1 - rate))  # (n, g)
    held = holdout.held(section)[:, section.genes.get_indexer(genes)].toarray().astype(np.float64)  # (n, g)
    share = held.sum(axis=0) / max(float(library.sum()), 1.0)
    deviance = _poisson(held, expected)
    constant = _poisson(held, library[:, None] * share)
    told = np.divide(constant - deviance, constant, out=np.full(len(genes), np.nan), where=constant > 0)
    return pd.DataFrame({"deviance": deviance, "deviance_explained": told}, index=pd.Index(genes, name="gene"))


def _poisson(counts: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Mean Poisson deviance per column (g,)."""
    expected = np.maximum(expected, _LEAST)
    ratio = np.log(np.where(counts > 0, counts, 1.0) / np.where(counts > 0, expected, 1.0))
    return np.asarray(2 * (counts * ratio - (counts - expected)).mean(axis=0))
