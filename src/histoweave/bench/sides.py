"""Training, validation and test patients scored alike, for papers that report all three: pooled over the spots of a side.

These scores stand beside the stored prediction of a cell (``uns["sides"]``) and never among those of the test sections:
differences between sections count as skill in them, and on the training side a model is asked what it was told.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from anndata import AnnData

from histoweave import _keys as K
from histoweave.bench import _genewise as gw
from histoweave.bench.benchmark import Benchmark, Cell
from histoweave.bench.metrics import pearson, section_metrics
from histoweave.data.holdout import Everything, Holdout
from histoweave.data.section import Cohort
from histoweave.train import Learner, Transfer

UNS = "sides"  # of a stored prediction
SIDES = ("train", "val", "test")
POOLED = ("pcc", "spearman", "mse", "mae", "r2")
MEANS = ("pcc", "pcc_varying", "spearman", "mse", "mae", "r2", "pcc_within", "constant", "zeros", "zeros_truth")
_ROUNDS_TO_ZERO = 0.5  # an expected count below it


@dataclass(frozen=True, kw_only=True)
class SidedBenchmark(Benchmark):
    """A benchmark of splits with validation patients, which scores the training and validation side too.

    Rows and tables are of the test side, as ever; `side_scores` of all three stand in ``uns["sides"]`` of every stored
    prediction.

    Raises
    ------
    ValueError
        A split without validation sections; another protocol, an ensemble, or anything but all expression hidden.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        bare = [split.name for split in self.splits if not split.val]
        if bare:
            raise ValueError(
                f"all sides are to be scored, and {len(bare)} of {len(self.splits)} folds have no validation sections "
                f"({', '.join(map(repr, bare[:8]))}); name them in `Split(val=…)`"
            )
        if self.protocol == "paper" or self.ensemble or not isinstance(self.hide, Everything):
            raise ValueError(
                "all sides are scored of one fit that stops on the validation sections, with all expression hidden; leave "
                "out protocol='paper', the ensemble, and what else is hidden"
            )

    def _score(
        self, cell: Cell, learner: Learner | Transfer, prediction: AnnData, holdout: Holdout
    ) -> tuple[pd.DataFrame, AnnData]:
        assert isinstance(learner, Learner)  # as `_fit` gives them
        rows, prediction = super()._score(cell, learner, prediction, holdout)
        prediction.uns[UNS] = side_scores(learner, self.cohort, holdout, prediction).astype(
            dict.fromkeys(("side", "scale", "gene", "metric"), "category")
        )
        return rows, prediction


def side_scores(learner: Learner, cohort: Cohort, holdout: Holdout, test: AnnData) -> pd.DataFrame:
    """Scores of a fitted model per side, scale and gene.

    Parameters
    ----------
    cohort
        With the expression of all sides; the model is shown none of it.
    test
        Its prediction of the test side.

    Returns
    -------
    Columns side (``train``, ``val``, ``test``), scale, gene, metric, value. Scale is ``target``, and for models that
    expect counts also ``counts``: against the raw counts of the panel. The metrics:

    - `POOLED`, each over all measured spots of the side
    - ``pcc_within``: PCC within a section, mean over the sections in which the gene varies
    - ``constant``: 1 where the prediction is the same for all spots, and its PCC 0 by convention
    - ``zeros``, ``zeros_truth`` (counts only): share of expected counts that round to 0, and of counts that are 0
    """
    models = {"target": learner}
    if hasattr(learner.module, "on_counts"):
        models["counts"] = expecting_counts(learner)
    parts = []
    for side in SIDES:
        sections = cohort.subset(getattr(holdout.split, side))
        for scale, model in models.items():
            known = test if (side, scale) == ("test", "target") else model.predict(holdout.shown(sections))
            frame = _scores(learner, sections, known, counts=scale == "counts")
            long = frame.reset_index().melt(id_vars="gene", var_name="metric", value_name="value")
            parts.append(long.assign(side=side, scale=scale)[["side", "scale", "gene", "metric", "value"]])
    return pd.concat(parts, ignore_index=True)


def expecting_counts(learner: Learner) -> Learner:
    """The same fit of a count model, predicting expected counts."""
    fitted, module = learner.ready()
    other = copy(learner)
    other.spec = replace(learner.spec, args=learner.spec.args | {"scale": "counts"})
    other.module = module.on_counts()  # type: ignore[operator]
    other.fitted = replace(fitted, center=None)  # a mean of the target has no part in counts
    return other


def _scores(learner: Learner, sections: Cohort, made: AnnData, *, counts: bool) -> pd.DataFrame:
    """Genes × metrics of one side."""
    fitted, _ = learner.ready()
    genes = list(fitted.genes.genes)
    wanted = [f"{section.id}/{name}" for section in sections for name in section.spots.obs_names]
    if list(made.obs_names) != wanted or list(made.var_names) != genes:
        raise RuntimeError("predictions of a side are not in the order of its spots and genes")
    truths, masks = [], []
    for section in sections:
        truth, mask = fitted.truth(section)
        truths.append(section.counts(genes).toarray() if counts else truth)
        masks.append(mask)
    truth, mask, pred = np.concatenate(truths), np.concatenate(masks), np.asarray(made.X)
    frame, _ = section_metrics(truth, pred, mask, genes=genes)
    frame = frame[list(POOLED)]
    ids = made.obs[K.SECTION].astype(str).to_numpy()
    here = [ids == section.id for section in sections]
    frame["pcc_within"] = _nanmean([pearson(truth[rows], pred[rows], mask[rows]) for rows in here])
    (flat,) = gw.evaluate(truth, pred, mask, lambda pair: pair.pred_flat.astype(np.float64))
    frame["constant"] = flat
    if counts:
        seen = np.maximum(mask.sum(axis=0), 1)
        frame["zeros"] = ((pred < _ROUNDS_TO_ZERO) & mask).sum(axis=0) / seen
        frame["zeros_truth"] = ((truth == 0) & mask).sum(axis=0) / seen
    return frame


def _nanmean(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Mean over rows (s, g) → (g,), without those that are NaN; NaN where all are."""
    table = np.stack(rows)
    told = ~np.isnan(table)
    return np.divide(
        np.nansum(table, axis=0), told.sum(axis=0), out=np.full(table.shape[1], np.nan), where=told.any(axis=0)
    )


def side_means(scores: pd.DataFrame) -> pd.DataFrame:
    """Means over genes, one line per model, scale and side.

    Parameters
    ----------
    scores
        `side_scores` of several models, with the column model.

    Returns
    -------
    Columns model, scale, side and `MEANS`. Genes that do not vary in truth have no PCC and are left out of its mean. A
    constant prediction counts as 0 in ``pcc`` and is left out of ``pcc_varying``; ``constant`` is the share of such genes.
    """
    keys = ["model", "scale", "side"]
    wide = scores.pivot(index=[*keys, "gene"], columns="metric", values="value").reindex(columns=_PER_GENE)
    wide["pcc_varying"] = wide["pcc"].where(wide["constant"] == 0)
    made = wide.groupby(level=keys, sort=False).mean()[list(MEANS)]
    order = pd.MultiIndex.from_frame(scores[keys].drop_duplicates())
    return made.reindex(order).reset_index()


_PER_GENE = [metric for metric in MEANS if metric != "pcc_varying"]
