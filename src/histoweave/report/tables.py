"""The tables of the HTML report as plain values: text and numbers, nothing of HTML."""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from histoweave.bench.metrics import LOWER_IS_BETTER
from histoweave.bench.scoring import DROPPED
from histoweave.bench.summary import HEADLINE, Report

NAMES = {
    "pcc": "PCC", "pcc_reliable": "PCC reliable genes", "pcc_of_ceiling": "PCC / ceiling",
    "pcc_50": "PCC-50", "spearman": "Spearman", "mse": "MSE", "mse_offset": "MSE offset",
    "mse_pattern": "MSE pattern", "mae": "MAE", "r2": "R²", "pcc_pooled": "PCC pooled", "pcc_h_paper": "PCC(H) paper",
    "mse_entries": "MSE over entries", "deviance": "deviance", "deviance_explained": "deviance explained",
    "mse_measured": "MSE measured", "pcc_measured": "PCC measured", "spearman_bins": "Spearman of bins",
    "spearman_all_bins": "Spearman of all bins", "spearman_bins_own": "Spearman of bins, own scale", "dropped": "genes dropped",
}  # fmt: skip
PROVENANCE = ("encoder", "init", "trunk", "parameters", "recipe", "inner split", "standardize")
MOST_GENES = 50
_SMALL = 1e-2
_NAMED = 5  # hidden genes that are named


@dataclass(frozen=True, slots=True)
class Score:
    """One number of the main table."""

    mean: str
    sd: str
    best: bool


@dataclass(frozen=True, slots=True)
class Row:
    """One model of the main table. `partial`: random initialisation or a shortened recipe."""

    model: str
    control: bool
    partial: bool
    scores: list[Score]
    seeds: str
    made: list[str]


def number(value: float, digits: int = 3) -> str:
    """A number with a true minus sign; "–" where there is none."""
    return "–" if not np.isfinite(value) else f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


def _size(value: float, metric: str) -> str:
    """A number of the main table; errors below what three digits tell are in powers of ten."""
    small = metric in LOWER_IS_BETTER and 0 < abs(value) < _SMALL
    return f"{value:.1e}".replace("-", "−") if small else number(value)


def controls(report: Report) -> set[str]:
    """The models of a run that are controls."""
    return {cell["model"] for cell in report.cells if cell["control"]}


def rankable(report: Report) -> bool:
    """Whether the test against ridge can be made; where it cannot, nothing is ranked."""
    return "testable" in report.tests and bool(report.tests["testable"].any())


def metrics(report: Report) -> list[str]:
    """The headline metrics that the run has."""
    seen = set(report.summary["metric"])
    return [metric for metric in HEADLINE if metric in seen]


def main_rows(report: Report) -> list[Row]:
    """The main table, one row per model; the best of a column is marked only where the test can be made."""
    table = report.summary.set_index(["model", "metric"])
    shown = report.table()
    models, control = report.models, controls(report)
    best: dict[str, float] = {}
    if rankable(report):
        for metric in [metric for metric in metrics(report) if metric != DROPPED]:  # the same for every model
            means = [float(table["mean"].get((model, metric), np.nan)) for model in models]
            if np.isfinite(means).any():
                best[metric] = float(np.nanmin(means) if metric in LOWER_IS_BETTER else np.nanmax(means))
    rows = []
    for model in models:
        scores = []
        for metric in metrics(report):
            mean = float(table["mean"].get((model, metric), np.nan))
            sd = float(table["sd"].get((model, metric), np.nan))
            scores.append(Score(_size(mean, metric), _size(sd, metric), mean == best.get(metric)))
        made = {column: _thousands(shown.loc[model, column]) for column in PROVENANCE if column in shown}
        trained = any(cell["history"] for cell in report.cells if cell["model"] == model)
        partial = trained and (made.get("recipe") != "paper" or made.get("init") == "random")
        spread, seeds = table.loc[(model, main_metric(report)), ["sd_seeds", "n_seeds"]]
        seeds = f"{seeds:.0f} (sd {number(spread)})" if seeds > 1 else f"{seeds:.0f}"
        rows.append(Row(model, model in control, partial, scores, seeds, list(made.values())))
    return rows


def _thousands(value: Any) -> str:
    return f"{value:,}".replace(",", " ") if isinstance(value, int | np.integer) else str(value)


def main_metric(report: Report) -> str:
    """The metric of the figures: correlation, or what stands for it where counts are scored. More is better."""
    return "pcc" if "pcc" in set(report.rows["metric"]) else "deviance_explained"


def main_name(report: Report) -> str:
    """The name of that metric."""
    return NAMES[main_metric(report)]


def against(report: Report) -> str:
    """The model that every other one is tested against; "ridge" where there was no test."""
    return str(report.tests["reference"].iloc[0]) if len(report.tests) and "reference" in report.tests else "ridge"


def tested(report: Report) -> str:
    """The name of the metric of the test."""
    metric = str(report.tests["metric"].iloc[0]) if len(report.tests) and "metric" in report.tests else "pcc"
    return NAMES.get(metric, metric)


def by_patient(report: Report) -> pd.DataFrame:
    """Patients × models: the main metric, averaged over genes, sections and seeds in that order."""
    rows = report.rows[report.rows["metric"] == main_metric(report)]
    for keys in (["model", "seed", "patient", "section", "fold"], ["model", "seed", "patient"], ["model", "patient"]):
        rows = rows.groupby(keys, sort=False, observed=True)["value"].mean().reset_index()
    wide = rows.pivot(index="patient", columns="model", values="value")
    order = [patient for patient in dict.fromkeys(report.card["patients"].values()) if patient in wide.index]
    return wide.reindex(index=order, columns=report.models)


def by_gene(report: Report) -> pd.DataFrame:
    """Genes × models: the main metric, averaged over the sections (and seeds) of a patient, then over patients."""
    rows = report.rows[report.rows["metric"] == main_metric(report)]
    patient = rows.groupby(["gene", "model", "patient"], sort=False, observed=True)["value"].mean()
    wide = patient.groupby(["gene", "model"], sort=False, observed=True).mean().unstack("model")
    return wide.reindex(index=pd.unique(rows["gene"]), columns=report.models)


def best_model(report: Report) -> str:
    """The model drawn in detail: the method (else the control) with the highest mean of the main metric; ridge only if alone."""
    mean = by_patient(report).mean()
    methods = [model for model in report.models if model not in controls(report)]
    among = methods or [model for model in report.models if model not in ("ridge", "mean")] or report.models
    chosen = mean[among].fillna(-np.inf).idxmax()
    return str(chosen)


def ridge_rows(report: Report) -> list[dict[str, str]]:
    """The test against ridge, one row per model; empty where ridge did not run or was alone."""
    if "p_holm" not in report.tests:
        return []
    return [
        {
            "model": row.model, "difference": _signed(row.difference), "patients": str(row.n_patients),
            "p": p_value(row.p), "p_holm": p_value(row.p_holm), "p_min": p_value(row.p_min),
            "how": ("exact" if row.exact else "Monte Carlo") if row.testable else "not testable",
        }
        for row in report.tests.itertuples(index=False)
    ]  # fmt: skip


def _signed(value: float) -> str:
    return "–" if not np.isfinite(value) else f"{value:+.3f}".replace("-", "−")


def p_value(value: float) -> str:
    """A p-value with four digits; "–" where there is none."""
    return "–" if not np.isfinite(value) else ("< 0.0001" if value < 1e-4 else f"{value:.4f}")


def fold_rows(report: Report) -> tuple[list[str], list[dict[str, Any]]]:
    """Models that were trained by gradient, and one row per fold with the epoch that each of them kept.

    ``val`` is in the row of a fold that names validation sections.
    """
    trained = [m for m in report.models if any(c["history"] for c in report.cells if c["model"] == m)]
    patients, validation = report.card["patients"], report.card.get("validation", {})
    rows = []
    for fold, test in report.card["folds"].items():
        cells = [cell for cell in report.cells if cell["fold"] == fold]
        epochs = {
            model: ", ".join(
                f"{c['best_epoch'] + 1}/{len(c['history'])}" for c in cells if c["model"] == model and c["history"]
            )
            for model in trained
        }
        rows.append({
            "fold": fold, "train": list(cells[0]["trained_on"]) if cells else [], "test": list(test),
            "test_patients": list(dict.fromkeys(patients[id] for id in test)),
            "spots": _thousands(int(cells[0]["spots"])) if cells else "–", "epochs": [epochs[m] or "–" for m in trained],
            **({"val": list(validation[fold])} if fold in validation else {}),
        })  # fmt: skip
    return trained, rows


def gene_rows(report: Report, most: int = MOST_GENES) -> list[dict[str, Any]]:
    """The genes of highest reliability: reliability, ceiling, and the main metric of each model."""
    pcc = by_gene(report)
    genes = report.genes.sort_values("reliability", ascending=False, kind="stable", na_position="last").head(most)
    return [
        {
            "gene": str(gene), "reliability": number(row["reliability"], 2), "ceiling": number(row["ceiling"], 2),
            "reliable": bool(row["reliable"]),
            "pcc": [number(v, 2) for v in (pcc.loc[gene] if gene in pcc.index else [np.nan] * pcc.shape[1])],
        }
        for gene, row in genes.iterrows()
    ]  # fmt: skip


def default_genes(report: Report, among: Sequence[str] | None = None, most: int = 3) -> list[str]:
    """The genes with the highest main metric, averaged over models, among those measured reliably (else among all)."""
    mean = by_gene(report).mean(axis=1)
    if among is not None:
        mean = mean[mean.index.isin(among)]
    reliable = report.genes.index[report.genes["reliable"].astype(bool)]
    kept = mean[mean.index.isin(reliable)].dropna()
    return list((kept if len(kept) else mean.dropna()).sort_values(ascending=False, kind="stable").index[:most])


def hidden(report: Report) -> str:
    """What was hidden from the models, in words."""
    how = str(report.card.get("hide", ""))
    if how.startswith("Everything"):
        return "all expression of the test patients; models are given their images and positions"
    if how.startswith("Entries"):
        return f"entries (spot, gene) of the test sections: {how}"
    if how.startswith("Thin"):
        return f"a share of the transcripts of the test sections: {how}"
    if how.startswith("Genes(names="):
        names = ast.literal_eval(how.removeprefix("Genes(names=").removesuffix(")"))
        more = ", …" if len(names) > _NAMED else ""
        return (
            f"{len(names)} whole genes of the test sections ({', '.join(names[:_NAMED])}{more}); models are given the counts "
            "of the others"
        )
    return "expression on the test side of each fold"


def unseen(report: Report) -> str:
    """What no model saw of a test section, in words."""
    how = str(report.card.get("hide", "")).partition("(")[0]
    entries = "its hidden entries. PCC is over the hidden entries; maps show the completed section, with what was shown kept"
    return {"Genes": "its hidden genes", "Entries": entries, "Thin": "its hidden transcripts"}.get(how, "its expression")


def protocol(report: Report) -> str:
    """The protocol of the run, in words."""
    if report.card["protocol"] == "paper":
        return "paper: gene panel from all sections, epoch chosen on the test fold, means over folds"
    if report.card.get("validation"):
        return (
            "strict: gene panel and scaling from the training patients of each fold alone; stopping and choosing from its "
            "validation sections, or from training patients where it names none"
        )
    return "strict: gene panel, scaling and stopping from the training patients of each fold alone"


def partly_shown(report: Report) -> bool:
    """Whether models were shown a part of what was measured in the test sections: entries or transcripts are hidden."""
    return str(report.card.get("hide", "")).startswith(("Entries", "Thin"))


def fingerprint_rows(report: Report) -> list[tuple[str, str]]:
    """What the numbers depend on, as pairs of name and value."""
    card = report.card
    panels = dict.fromkeys(cell["panel_digest"] for cell in report.cells)
    units = dict.fromkeys(cell["units"] for cell in report.cells)
    shown = [
        ("digest", str(card.get("digest", "–"))),
        ("target units", ", ".join(units)),
        ("recipe", str(card["recipe"])),
        ("seeds", ", ".join(map(str, card["seeds"]))),
        ("fits per fold", str(card["ensemble"] or 1)),
        ("gene panel digest, per fold", " · ".join(map(str, panels))),
        ("view", json.dumps(card["view"], indent=1, sort_keys=True, ensure_ascii=False)),
        ("device", str(card.get("device", "–"))),
        ("machine", str(card.get("machine", "–"))),
        ("threads", str(card.get("threads", "–"))),
    ]
    licences = {c["encoder"]["name"]: c["encoder"] for c in report.cells if c["encoder"]}
    shown += [(f"encoder {name}", f"{e.get('licence', '–')}; {e.get('citation', '–')}") for name, e in licences.items()]
    return shown + [(f"version of {name}", str(value)) for name, value in card.get("versions", {}).items()]
