"""Scores of gene signatures, from the truth and from the prediction. ``signatures.toml`` holds the built-in ones."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from histoweave.bench.metrics import pearson
from histoweave.bio._part import Floats, Part, centred, checked
from histoweave.bio.de import Contrast, auc


@dataclass(frozen=True, slots=True)
class Signature:
    """Genes that stand for one thing, and where the list is from.

    `verified`: whether the list was compared, gene by gene, with a copy that names the source.
    """

    name: str
    genes: tuple[str, ...]
    source: str
    verified: bool = False


@cache
def signatures() -> Mapping[str, Signature]:
    """The built-in signatures by name."""
    text = resources.files("histoweave.bio").joinpath("signatures.toml").read_text(encoding="utf-8")
    return MappingProxyType(_of_toml(text))


def read_signatures(path: str | Path) -> dict[str, Signature]:
    """Signatures of a file: TOML with a table per signature (``genes``, and ``source`` if known), or GMT.

    In GMT every line is a name, a description and genes, separated by tabs.

    Raises
    ------
    ValueError
        A file that is neither, without a signature, or with one that names no gene; `FileNotFoundError` without a file.
    """
    path = Path(path)
    text = path.read_text(encoding="utf-8")
    try:
        found = _of_toml(text) if path.suffix == ".toml" else _of_gmt(text)
    except (tomllib.TOMLDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f'signatures of {path} cannot be read ({error}); expected TOML with [name] and genes = ["A", "B"], or GMT: '
            "name, description and genes, separated by tabs"
        ) from error
    empty = [name for name, one in found.items() if not one.genes]
    if not found or empty:
        raise ValueError(
            f"{path} has {'no signature' if not found else f'no genes of {empty[0]!r}'}; give one gene or more"
        )
    return found


def _of_toml(text: str) -> dict[str, Signature]:
    return {
        name: Signature(name, tuple(map(str, row["genes"])), row.get("source", ""), row.get("verified", False))
        for name, row in tomllib.loads(text).items()
    }


def _of_gmt(text: str) -> dict[str, Signature]:
    lines = [line.split("\t") for line in text.splitlines() if line.strip()]
    if any(len(line) < 3 for line in lines):
        raise TypeError("a line has fewer than 3 columns")
    return {
        line[0].strip(): Signature(line[0].strip(), tuple(filter(None, map(str.strip, line[2:]))), line[1])
        for line in lines
    }


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
