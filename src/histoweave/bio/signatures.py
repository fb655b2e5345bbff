"""Scores of gene signatures, from the truth and from the prediction. ``signatures.toml`` holds the built-in ones."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from histoweave.bench.metrics import pearson
from histoweave.bio._part import Floats, Part, centred, checked
from histoweave.bio.de import Contrast, auc


@dataclass(frozen=True, slots=True)
class Signature:
    """Genes that stand for one thing, and where the list is from."""

    name: str
    genes: tuple[str, ...]
    source: str


@cache
def signatures() -> Mapping[str, Signature]:
    """The built-in signatures by name."""
    text = resources.files("histoweave.bio").joinpath("signatures.toml").read_text(encoding="utf-8")
    rows = tomllib.loads(text)
    return MappingProxyType({name: Signature(name, tuple(row["genes"]), row["source"]) for name, row in rows.items()})


def score(values: ArrayLike, genes: Sequence[str], wanted: Sequence[str], mask: ArrayLike | None = None) -> Floats:
    """Mean z-score over the genes of a signature that are there and vary, per spot, (n,).

    Parameters
    ----------
    values
        (n, g) of one section; each gene is scaled to mean 0 and variance 1 over its measured spots, so no gene weighs
        more by being abundant, and sections are not comparable by their scores.
    genes, wanted
        Names of the columns; names of the signature. Those that are missing are left out.
    mask
        (n, g), True = measured; None = what is not NaN.

    Returns
    -------
    NaN for spots in which no such gene was measured, and for all where none varies.
    """
    x, _, seen = checked(values, np.zeros(np.shape(values)), mask)
    at = pd.Index(genes).get_indexer(pd.Index(dict.fromkeys(wanted)))
    x, seen = x[:, at[at >= 0]], seen[:, at[at >= 0]]
    z, varies = centred(x, seen)
    z, seen = z[:, varies], seen[:, varies]
    z = z / np.sqrt(np.square(z).sum(axis=0) / np.maximum(seen.sum(axis=0), 1))
    count = seen.sum(axis=1)
    return np.where(count > 0, z.sum(axis=1) / np.maximum(count, 1), np.nan)


def signature_table(
    part: Part, chosen: Mapping[str, Sequence[str]] | None = None, sets: Contrast | None = None
) -> pd.DataFrame:
    """Signature scores of one section: how well the prediction's follow the truth's.

    Parameters
    ----------
    chosen
        Name → genes; the built-in ones by default.
    sets
        Two labels, for the AUC of the scores of truth and prediction: `sets.a` against `sets.b`.

    Returns
    -------
    One row per signature: genes (how many there are), of (how many it has), pcc, and with `sets` auc_truth and auc_pred.
    A signature without a gene here keeps its row, with NaN. A score of one gene is that gene.
    """
    lists = {name: one.genes for name, one in signatures().items()} if chosen is None else chosen
    rows = []
    for name, wanted in lists.items():
        unique = list(dict.fromkeys(wanted))
        there = [gene for gene in unique if gene in part.genes]
        row: dict[str, float | int | str] = {"signature": name, "genes": len(there), "of": len(unique), "pcc": np.nan}
        true = score(part.truth, list(part.genes), there, part.measured)
        made = score(part.pred, list(part.genes), there, part.measured)
        known = np.isfinite(true)
        if known.any():  # a prediction that does not vary has no scores: it follows nothing
            row["pcc"] = float(pearson(true[known][:, None], np.nan_to_num(made[known])[:, None])[0])
        if sets is not None:
            row["auc_truth"] = auc(true, sets.is_a, sets.is_b)
            row["auc_pred"] = auc(made, sets.is_a, sets.is_b)
        rows.append(row)
    return pd.DataFrame(rows).set_index("signature")
