"""`write_html`: the results of a run as one page that needs nothing beside itself: no network, no script.

Figures are inline SVG with the page's own fonts and colours (light and dark); what is drawn over a slide is a raster
image inside them. Every name that comes from data is escaped, by jinja2 in the text and by matplotlib in the figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

import anndata
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from histoweave import _keys as K
from histoweave.bench.markdown import notes
from histoweave.bench.summary import Report
from histoweave.bench.trust import MIN_RELIABILITY
from histoweave.bio import read_signatures
from histoweave.data._atomic import writing
from histoweave.data.section import Cohort
from histoweave.pl import Plate, ceiling_scatter, error_map, marker_map, patient_dots
from histoweave.report import tables
from histoweave.report.biology import biology_of
from histoweave.report.completion import completion_of
from histoweave.report.findings import Shot
from histoweave.report.labels import Labels
from histoweave.report.svg import inline_svg


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure of the page: its SVG, and what it shows in words."""

    svg: Markup
    caption: str


@dataclass(slots=True)
class Shown:
    """The section that the maps show, with the predictions of its fold, each read once."""

    report: Report
    fold: str
    section: str
    patient: str
    plate: Plate
    made: dict[str, anndata.AnnData] = field(default_factory=dict)

    def predictions(self) -> dict[str, anndata.AnnData]:
        """Per model, the stored prediction of this section (first seed)."""
        if not self.made:
            for model in self.report.models:
                seeds = [c["seed"] for c in self.report.cells if (c["model"], c["fold"]) == (model, self.fold)]
                if seeds:
                    whole = self.report.prediction(model, self.fold, min(seeds))
                    self.made[model] = whole[(whole.obs[K.SECTION] == self.section).to_numpy()]
        return self.made

    def genes(self) -> set[str]:
        """Genes of the fold's panel."""
        return {gene for c in self.report.cells if c["fold"] == self.fold for gene in c["panel"]["genes"]}

    def values(self, gene: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Truth (n,) and each model's prediction (n,) of a gene."""
        made = self.predictions()
        at = {model: int(table.var_names.get_loc(gene)) for model, table in made.items()}
        model, table = next(iter(made.items()))
        return (
            np.asarray(table.layers["truth"][:, at[model]]),
            {name: np.asarray(one.X[:, at[name]]).ravel() for name, one in made.items()},
        )

    def completed(self, gene: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """`values`; where entries were hidden, those of the whole section: what was shown is measured, and kept."""
        truth, predictions = self.values(gene)
        for model, table in self.predictions().items():
            if "shown" in table.layers:
                shown = np.asarray(table.layers["shown"][:, int(table.var_names.get_loc(gene))])
                truth = np.where(np.isfinite(truth), truth, shown)
                predictions[model] = np.where(np.isfinite(shown), shown, predictions[model])
        return truth, predictions

    def pcc(self, gene: str) -> dict[str, float]:
        """The PCC of each model for a gene in this section, as in the table of results; nothing where none is made."""
        rows = self.report.rows
        rows = rows[
            (rows["metric"] == "pcc")
            & (rows["section"] == self.section)
            & (rows["gene"] == gene)
            & (rows["fold"] == self.fold)
        ]
        return dict(rows.sort_values("seed").groupby("model", observed=True)["value"].first())


def write_html(
    report: Report,
    cohort: Cohort | None,
    *,
    genes: list[str] | None = None,
    labels: str | None = None,
    signatures: str | Path | None = None,
) -> Path:
    """Writes ``report.html`` into the folder of a run and returns its path.

    Parameters
    ----------
    cohort
        The cohort of the run, for the images, spot sizes and annotations of the maps; None draws positions alone.
    genes
        Genes of the marker maps; by default the three that the models predict best among those measured reliably.
    labels
        Column of ``obs`` whose labels are compared under "Biology": ``column``, ``column=label`` (against all others) or
        ``column=label:label``. By default ``label``, where the section shown has it.
    signatures
        File of gene signatures for "Biology" (`histoweave.bio.read_signatures`), in place of the built-in ones.

    Raises
    ------
    ValueError
        A gene that the run did not score; a cohort without any test section of the run; a column that it lacks.
    """
    chosen = _checked_genes(report, genes)
    compared = Labels.read(labels, cohort)
    lists = None if signatures is None else {name: one.genes for name, one in read_signatures(signatures).items()}
    shown = _choose_section(report, cohort, chosen, compared if labels else None)
    chosen = chosen or tables.default_genes(report, among=sorted(shown.genes()))
    here = [gene for gene in chosen if gene in shown.genes()]
    best = tables.best_model(report)
    trained, folds = tables.fold_rows(report)
    living = biology_of(
        report, shown.predictions(), shown.section, cohort, shown.plate, here, best, compared, signatures=lists
    )
    environment = Environment(
        loader=PackageLoader("histoweave.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("template.html.jinja").render(
        title=str(report.card["benchmark"]), hidden=tables.hidden(report), protocol=tables.protocol(report),
        strict=report.card["protocol"] != "paper", units=report.cells[0]["units"], n_folds=len(report.card["folds"]),
        n_patients=len(set(report.card["patients"].values())), n_sections=len(report.card["patients"]),
        n_genes=len(report.genes), notes=notes(report), metrics=[tables.NAMES[m] for m in tables.metrics(report)],
        rows=tables.main_rows(report), made=tables.PROVENANCE, rankable=tables.rankable(report),
        tests=tables.ridge_rows(report), dots=_dots(report), ceiling=_ceiling(report, best, here), shown=shown,
        maps=_maps(shown, here), no_ceiling=_no_ceiling(report), absent=[gene for gene in chosen if gene not in here],
        error=_error(shown, best, here[0]) if here else None, best=best, trained=trained, folds=folds,
        genes=tables.gene_rows(report), models=report.models, controls=tables.controls(report),
        limit=MIN_RELIABILITY, facts=tables.fingerprint_rows(report), biology=living,
        biology_drawings=_drawings("bio", living.shots), against=tables.against(report),
        main=tables.main_name(report), tested=tables.tested(report), unseen=tables.unseen(report),
        completed=_drawings("completion", completion_of(report, shown.predictions(), shown.plate, here)),
    )  # fmt: skip
    path = report.folder / "report.html"
    with writing(path) as file:
        file.write(page.encode("utf-8"))
    return path


def _checked_genes(report: Report, genes: Sequence[str] | None) -> list[str]:
    """The genes asked for, each once; an unknown one is a `ValueError` with the nearest match."""
    known = [str(gene) for gene in report.rows["gene"].unique()]
    chosen = list(dict.fromkeys(genes or []))
    for gene in chosen:
        if gene not in known:
            close = get_close_matches(gene, known, n=1)
            raise ValueError(
                f"gene {gene!r} was not scored in this run"
                + (f"; did you mean {close[0]!r}?" if close else ".")
                + f" It scored {len(known)} genes, among them {', '.join(known[:5])}"
            )
    return chosen


def _choose_section(report: Report, cohort: Cohort | None, genes: Sequence[str], labels: Labels | None = None) -> Shown:
    """The first test section that has an image, of the fold whose panel holds most of the genes asked for.

    With `labels`, one that has them comes before one that has an image.
    """
    panels = {c["fold"]: set(c["panel"]["genes"]) for c in report.cells}
    places = [(fold, id) for fold, test in report.card["folds"].items() for id in test if fold in panels]
    if cohort is not None:
        there = [(fold, id) for fold, id in places if id in cohort.ids]
        if not there:
            raise ValueError(
                f"the cohort has no test section of this run (the run: {', '.join(id for _, id in places[:5])}; "
                f"the cohort: {', '.join(cohort.ids[:5])}). Give the cohort that was benchmarked"
            )
        there = [place for place in there if labels is not None and labels.there(cohort[place[1]])] or there
        places = [place for place in there if cohort[place[1]].image is not None] or there
    fold, id = max(places, key=lambda place: len(panels[place[0]] & set(genes)))
    patient = str(report.card["patients"][id])
    if cohort is not None:
        return Shown(report, fold, id, patient, Plate.of(cohort[id]))
    shown = Shown(report, fold, id, patient, Plate(np.zeros((1, 2)), 1.0))
    shown.plate = Plate.bare(np.asarray(next(iter(shown.predictions().values())).obsm[K.SPATIAL]))
    return shown


# -- figures ----------------------------------------------------------------------------------------------------------


def _dots(report: Report) -> Drawing:
    values = tables.by_patient(report)
    against, metric = tables.against(report), tables.main_name(report)
    reference = against if against in values.columns else None
    n = len(values)
    caption = (
        f"{metric[0].upper()}{metric[1:]} of each of {n} patients (dots; a patient keeps its height within every line) and the "
        "mean over them (bar). Grey: controls." + (f" Dashed: mean of {reference}." if reference else "")
        + (f" The test below is on {tables.tested(report)}." if tables.tested(report) != metric else "")
    )
    means = "; ".join(f"{model} {tables.number(mean)}" for model, mean in values.mean().items())
    figure = patient_dots(values, controls=tables.controls(report), reference=reference, metric=metric)
    return _drawing(figure, "dots", caption, f"Dot plot of {metric} per patient and model. Means: {means}.")


def _ceiling(report: Report, best: str, marked: Sequence[str]) -> Drawing | None:
    if _no_ceiling(report):
        return None
    pcc = tables.by_gene(report)
    pcc = pcc[[model for model in dict.fromkeys(["ridge", best]) if model in pcc]]
    caption = (
        "PCC of each gene against the highest PCC that its counts allow (√reliability, from random halves of the counts). "
        "The line is that ceiling; genes left of the dotted line have a reliability under "
        f"{MIN_RELIABILITY:g} and are not to be judged one by one."
    )
    figure = ceiling_scatter(report.genes["ceiling"], pcc, marked=marked, limit=float(np.sqrt(MIN_RELIABILITY)))
    alt = f"Scatter plots of PCC per gene against its ceiling, for {' and '.join(pcc.columns)}."
    return _drawing(figure, "ceiling", caption, alt)


def _no_ceiling(report: Report) -> str:
    """Why there is no ceiling to compare with; empty where there is one."""
    if tables.main_metric(report) != "pcc":
        return "A ceiling is one of PCC, and hidden transcripts are scored by their deviance."
    if tables.partly_shown(report):
        return (
            "The ceiling of a gene is that of a correlation over all spots. PCC is over hidden entries here, all of which "
            "were measured, so there is no ceiling to compare with."
        )
    if not report.genes["ceiling"].notna().any():
        return "No gene varies in any section, so that there is no ceiling to compare with."
    return ""


def _maps(shown: Shown, genes: Sequence[str]) -> list[Drawing]:
    drawn = []
    for i, gene in enumerate(genes):
        truth, predictions = shown.completed(gene)
        if not np.isfinite(truth).any():
            continue
        pcc = shown.pcc(gene)
        scores = ", ".join(f"{model} {tables.number(pcc.get(model, np.nan), 2)}" for model in predictions)
        made = "completed" if "shown" in next(iter(shown.predictions().values())).layers else "predicted"
        figure = marker_map(shown.plate, gene, truth, predictions, pcc=pcc, units=str(shown.report.cells[0]["units"]))
        drawn.append(
            _drawing(
                figure,
                f"map{i}",
                gene,
                f"Maps of {gene} in section {shown.section}: measured, and {made} by each model."
                + (f" PCC: {scores}." if pcc else ""),
            )
        )
    return drawn


def _error(shown: Shown, model: str, gene: str) -> Drawing | None:
    truth, predictions = shown.values(gene)
    if not np.isfinite(truth).any():
        return None
    hidden = "shown" in shown.predictions()[model].layers  # then the truth is that of the hidden entries
    made = np.where(np.isfinite(truth), predictions[model], np.nan) if hidden else predictions[model]
    pcc = shown.pcc(gene)
    figure = error_map(
        shown.plate,
        gene,
        truth,
        made,
        model=model,
        pcc=pcc.get(model, np.nan) if pcc else None,
        units=str(shown.report.cells[0]["units"]),
        where=", hidden entries" if hidden else "",
    )
    error = made - truth
    over = " over its hidden entries" if hidden else ""
    words = f"mean {tables.number(float(np.nanmean(error)), 2)}, sd {tables.number(float(np.nanstd(error)), 2)}"
    return _drawing(
        figure,
        "error",
        f"{gene}{over}: measured, predicted by {model}, and the error ({words}). Red: too high.",
        f"Maps of {gene}{over} in section {shown.section}: measured, predicted by {model}, and error, {words}.",
    )


def _drawings(part: str, shots: Sequence[Shot]) -> list[Drawing]:
    return [_drawing(one.figure, f"{part}-{one.name}", one.caption, one.alt) for one in shots]


def _drawing(figure: Figure, name: str, caption: str, alt: str) -> Drawing:
    return Drawing(inline_svg(figure, name, alt), caption)
