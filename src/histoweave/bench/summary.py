"""From finished cells to tables: the long table of every value, the summary, the test against ridge, gene reliability.

A `Report` is what is read back from a run's folder; making one changes nothing but the files it names.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd

from histoweave import _keys as K
from histoweave._repro import fingerprint
from histoweave.bench.benchmark import Benchmark, Cell
from histoweave.bench.markdown import to_markdown
from histoweave.bench.metrics import ROWS, average, pcc_50, pcc_h_paper, pooled_pcc
from histoweave.bench.scoring import DROPPED, ENTRIES
from histoweave.bench.stats import compare
from histoweave.bench.trust import reliability
from histoweave.data._atomic import writing
from histoweave.data.holdout import Entries, Everything, Genes, Thin
from histoweave.data.section import Section
from histoweave.pp.counts import Target
from histoweave.view import divisor, smoothing

TOP = 50  # genes of pcc_50
_SMALL = 1e-2  # below it, four decimals do not say enough of a mean
HEADLINE = (
    "pcc",
    "pcc_reliable",
    "pcc_of_ceiling",
    "pcc_50",
    "spearman_bins",
    "spearman_all_bins",
    "spearman_bins_own",
    "spearman",
    "mse",
    "mse_entries",
    "dropped",
    "deviance",
    "deviance_explained",
    "mse_measured",
    "pcc_measured",
    "mse_offset",
    "mse_pattern",
    "mae",
    "r2",
    "pcc_pooled",
    "pcc_h_paper",
)
_FILES = {"rows": "results.parquet", "summary": "summary.parquet", "tests": "tests.parquet", "genes": "genes.parquet"}


@dataclass(frozen=True, slots=True)
class Report:
    """The tables of a run.

    Attributes
    ----------
    folder
        The run.
    rows
        Long table: benchmark, model, seed, fold, patient, section, gene, metric, value.
    summary
        One line per model and metric: mean and population sd over patients, spread over seeds.
    tests
        Every model against ridge: exact sign-flip test over patients, Holm over models.
    genes
        Reliability per gene, and its ceiling where PCC is over whole sections.
    cells
        What each cell says of itself.
    card
        The fingerprint of the run.
    """

    folder: Path
    rows: pd.DataFrame
    summary: pd.DataFrame
    tests: pd.DataFrame
    genes: pd.DataFrame
    cells: list[dict[str, Any]]
    card: dict[str, Any]

    def prediction(self, model: str, fold: str, seed: int = 0) -> anndata.AnnData:
        """The stored prediction of a cell: ``X`` predicted, ``layers["truth"]``, NaN where nothing was measured."""
        for card in self.cells:
            if (card["model"], card["fold"]) == (model, fold) and card["seed"] == seed:
                return anndata.read_h5ad(self.folder / "cells" / card["folder"] / "prediction.h5ad")
        raise KeyError(f"no cell of model {model!r}, fold {fold!r}, seed {seed}; models: {self.models}")

    @property
    def models(self) -> list[str]:
        """Models of the table, controls first."""
        return list(dict.fromkeys(card["model"] for card in self.cells))

    def table(self) -> pd.DataFrame:
        """Models × headline metrics: ``mean ± sd``, with what was trained and on what."""
        wide = self.summary.pivot(index="model", columns="metric", values=["mean", "sd"]).reindex(self.models)
        shown = pd.DataFrame(index=pd.Index(self.models, name="model"))
        for metric in [m for m in HEADLINE if m in set(self.summary["metric"])]:
            mean, sd = wide[("mean", metric)], wide[("sd", metric)]
            shown[metric] = [_pm(m, s) for m, s in zip(mean, sd, strict=True)]
        first = {card["model"]: card for card in reversed(self.cells)}
        for column, read in _PROVENANCE.items():
            shown[column] = [read(first[model]) for model in self.models]
        return shown

    @classmethod
    def read(cls, folder: str | Path) -> Report:
        """The report of a finished run; `FileNotFoundError` says what is missing."""
        folder = Path(folder)
        missing = [name for name in (*_FILES.values(), "run.json") if not (folder / name).exists()]
        if missing:
            raise FileNotFoundError(
                f"{folder} is not a finished run: {', '.join(missing)} missing. Run `histoweave "
                "bench … --out` again; it goes on where it stopped"
            )
        card = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        tables = {key: pd.read_parquet(folder / name) for key, name in _FILES.items()}
        return cls(folder=folder, cells=card.pop("cells"), card=card, **tables)


def _pm(mean: float, sd: float) -> str:
    if np.isnan(mean):
        return "–"
    return f"{mean:.4f} ± {sd:.4f}" if mean == 0 or abs(mean) >= _SMALL else f"{mean:.3g} ± {sd:.2g}"


def _looking(card: dict[str, Any]) -> dict[str, Any]:
    """The card of the stage that looks at images: the first one."""
    return _looking(card["first"]) if card["first"] else card


def _encoder(card: dict[str, Any]) -> str:
    card = _looking(card)
    return card["encoder"]["name"] if card["encoder"] else "none"


def _init(card: dict[str, Any]) -> str:
    card = _looking(card)
    if card["trunk"] is not None:
        return str(card["trunk"])
    return card["encoder"]["init"] if card["encoder"] else "–"


_PROVENANCE = {
    "encoder": _encoder,
    "init": _init,
    "trunk": lambda card: str(_looking(card)["args"].get("trunk", "–")),
    "parameters": lambda card: "–" if card["parameters"] is None else card["parameters"],
    "recipe": lambda card: card["recipe"]["name"],
    "inner split": lambda card: card["inner_split"],
    "standardize": lambda card: _standardize(card),
}


def _standardize(card: dict[str, Any]) -> str:
    how = str(card["view"]["standardize"])
    return f"{how} (transductive)" if how in ("section", "both") and _looking(card)["encoder"] else how


# What every model is tested against, and on what: by what is hidden.
_REFERENCE: dict[type, tuple[str, str]] = {
    Everything: ("pcc", "ridge"),
    Entries: ("mse", "ridge-visible"),
    Thin: ("deviance", "ridge-visible"),
    Genes: ("spearman_bins", "ridge-expression"),
}


def over_entries(rows: pd.DataFrame) -> pd.DataFrame:
    """``mse_entries`` per section: squared error over all hidden entries, so that a gene counts as often as it was hidden.

    One row per section in the place of one per gene, for every rate of hidden entries in the table.
    """
    keys = [name for name in ROWS if name not in ("gene", "metric", "value")]
    parts = []
    for name in [m for m in rows["metric"].unique() if m.partition("@")[0] == ENTRIES]:
        _, at, rate = name.partition("@")
        wide = rows[rows["metric"].isin([f"mse{at}{rate}", name])].pivot(
            index=[*keys, "gene"], columns="metric", values="value"
        )
        error, number = wide[f"mse{at}{rate}"], wide[name]
        summed = pd.DataFrame({"error": error * number, "number": number}).groupby(level=keys, sort=False).sum()
        value = summed["error"] / summed["number"]
        parts.append(value.rename("value").reset_index().assign(gene="all", metric=f"mse_{ENTRIES}{at}{rate}"))
    return pd.concat(parts, ignore_index=True)[list(ROWS)]


def counted(rows: pd.DataFrame) -> pd.DataFrame:
    """``dropped`` per section: how many genes are not scored. One row in the place of one per gene, for every rate."""
    part = rows[rows["metric"].str.partition("@")[0] == DROPPED]
    keys = [name for name in ROWS if name not in ("gene", "value")]
    return part.groupby(keys, sort=False)["value"].sum().reset_index().assign(gene="all")[list(ROWS)]


def summarise(benchmark: Benchmark, cells: Sequence[Cell], out: str | Path) -> Report:
    """The tables of a run from its finished cells, written to its folder and returned."""
    out = Path(out)
    cards = [cell.card() | {"folder": cell.folder.name} for cell in cells]
    rows = pd.concat([pd.read_parquet(cell.folder / "rows.parquet") for cell in cells], ignore_index=True)
    rows = rows.assign(benchmark=benchmark.name)  # a cell may have been made under another name
    genes = _genes(benchmark, rows)
    parts = [average(rows[rows["metric"].str.partition("@")[0] != DROPPED], protocol=benchmark.protocol)]
    if not isinstance(benchmark.hide, Thin):  # there the truth of a spot has a part that models were shown
        parts.append(average(_pooled(benchmark, cells), protocol="paper"))
    if "pcc" in set(rows["metric"]):
        parts.append(pcc_h_paper(rows))
    parts += _reliable(rows, genes, benchmark.protocol)
    if isinstance(benchmark.hide, Entries):
        parts.append(average(over_entries(rows), protocol="strict"))
        if benchmark.hide.of == "all":
            parts.append(average(counted(rows), protocol="strict"))
    lists = _top_genes(cards)
    if lists is not None:
        parts.append(pcc_50(rows, lists, protocol=benchmark.protocol))
    summary = pd.concat(parts, ignore_index=True)
    models = set(rows["model"])
    metric, reference = _REFERENCE[type(benchmark.hide)]
    validation = {split.name: list(split.val) for split in benchmark.splits if split.val}
    tests = compare(rows, metric, reference) if {reference} < models else pd.DataFrame({"model": sorted(models)})
    card = fingerprint(
        benchmark=benchmark.name,
        protocol=benchmark.protocol,
        view=benchmark.view.to_dict(),
        recipe=benchmark.recipe,
        hide=repr(benchmark.hide),
        rate=getattr(benchmark.hide, "rate", None),
        seeds=list(benchmark.seeds),
        controls_left_out=list(benchmark.left_out()),
        ensemble=benchmark.ensemble,
        folds={split.name: list(split.test) for split in benchmark.splits},
        **({"validation": validation} if validation else {}),
        split_notes=list(dict.fromkeys(note for split in benchmark.splits for note in split.notes)),
        patients={section.id: section.patient for section in benchmark.cohort},
        top=lists,
    )
    for key, table in {"rows": rows, "summary": summary, "tests": tests, "genes": genes}.items():
        with writing(out / _FILES[key]) as handle:
            table.to_parquet(handle)
    with writing(out / "run.json") as handle:
        handle.write((json.dumps(card | {"cells": cards}, indent=1, sort_keys=True) + "\n").encode())
    report = Report.read(out)
    with writing(out / "report.md") as handle:
        handle.write(to_markdown(report).encode())
    return report


def _reliable(rows: pd.DataFrame, genes: pd.DataFrame, protocol: str) -> list[pd.DataFrame]:
    """``pcc_reliable``: PCC over genes of reliability 0.3 or more; ``pcc_of_ceiling``: their PCC over their ceiling.

    The second only where genes have a ceiling.
    """
    kept = rows[(rows["metric"] == "pcc") & rows["gene"].map(genes["reliable"])]
    if kept.empty:
        return []
    parts = [kept.assign(metric="pcc_reliable")]
    if genes["ceiling"].notna().any():
        share = kept["value"] / kept["gene"].map(genes["ceiling"])
        parts.append(kept.assign(metric="pcc_of_ceiling", value=share))
    return [average(part, protocol=protocol) for part in parts]  # type: ignore[arg-type]


def _pooled(benchmark: Benchmark, cells: Sequence[Cell]) -> pd.DataFrame:
    """``pcc_pooled`` per gene and fold: correlation over the concatenated test sections of the fold."""
    parts = []
    for cell in cells:
        made = anndata.read_h5ad(cell.folder / "prediction.h5ad")
        truth = np.asarray(made.layers["truth"])
        values = pooled_pcc([truth], [made.X], [~np.isnan(truth)])
        parts.append(
            pd.DataFrame(
                {
                    "benchmark": benchmark.name,
                    "model": cell.model,
                    "seed": cell.seed,
                    "fold": cell.split.name,
                    "patient": str(made.obs[K.PATIENT].iloc[0]),
                    "section": "pooled",
                    "gene": list(made.var_names),
                    "metric": "pcc_pooled",
                    "value": values,
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def _top_genes(cards: Sequence[dict[str, Any]]) -> dict[str, list[str]] | None:
    """Per fold the 50 genes that ridge predicts best across the training patients; None where ridge did not run."""
    found = {}
    for card in cards:
        if card["model"] == "ridge" and card["cv_pcc"] is not None:
            score = np.array([np.nan if v is None else v for v in card["cv_pcc"]])
            best = np.argsort(-np.nan_to_num(score, nan=-np.inf), kind="stable")[:TOP]
            found[card["fold"]] = [card["panel"]["genes"][i] for i in best]
    return found or None


def _genes(benchmark: Benchmark, rows: pd.DataFrame) -> pd.DataFrame:
    """Reliability of every gene that was scored, over the sections with counts.

    It is of all entries of a section, zeros too. Where entries or transcripts are hidden, nothing is correlated over
    these, so it sets no ceiling there.
    """
    genes = list(dict.fromkeys(rows["gene"]))
    target = benchmark.view.target.bind(len(benchmark.cohort.genes("union")))
    scored = [section for section in benchmark.cohort if section.spots.n_vars]
    found = reliability([section.counts(genes) for section in scored], [_halved(target, s) for s in scored], genes)
    return found.assign(ceiling=np.nan) if isinstance(benchmark.hide, Entries | Thin) else found


def _halved(target: Target, section: Section) -> Callable[[np.ndarray], np.ndarray]:
    """The target of half a spot's counts: what they are divided by is halved with them."""
    half, near = divisor(target, section) / 2, smoothing(target, section)
    return lambda counts: target.transform(counts, half, near)[0]
