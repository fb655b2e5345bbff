"""The section "Biology" of the HTML report: what the predictions of one test section keep of its biology.

Everything is of one section, so it describes and tests nothing across patients; what cannot be shown is said in `remarks`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from histoweave.bench.summary import Report
from histoweave.bio import (
    Part,
    adjusted_rand,
    cluster_error,
    cluster_means,
    leiden,
    log_normalised,
    normalised_mutual_information,
    parts,
    structure,
)
from histoweave.bio.clusters import MIN_SPOTS as MIN_CLUSTERED
from histoweave.bio.spatial import summary_of
from histoweave.data.section import Cohort, Section
from histoweave.pl import Plate, cluster_maps, cluster_scatter, normalised_maps, oversmoothing, value_histogram
from histoweave.pp.counts import NotInvertible, Target
from histoweave.report.differences import add_differences, add_signatures, over_sections
from histoweave.report.findings import Biology, Shot, Table
from histoweave.report.labels import Labels
from histoweave.report.tables import number, partly_shown
from histoweave.view import divisor

MOST_SPOTS = 20_000  # of the section; a larger one would take longer than the rest of the page together
_SCATTERED = 6  # models in one scatter plot: colours repeat after a few


def biology_of(
    report: Report,
    made: Mapping[str, AnnData],
    id: str,
    cohort: Cohort | None,
    plate: Plate,
    genes: Sequence[str],
    best: str,
    labels: Labels,
    *,
    signatures: Mapping[str, Sequence[str]] | None = None,
) -> Biology:
    """`biology` of a test section of a run, and the differences over all its labelled test sections, of `best` and ridge.

    Nothing where models were shown a part of the sections: some give back what they saw, and would be judged by it.
    """
    if partly_shown(report):
        why = "Left out: models were shown a part of what was measured here, and some give it back as they saw it."
        return Biology(remarks=[why])
    card = report.cells[0]
    told = card["view"].get("target")
    found = biology(
        made, None if cohort is None else cohort[id], plate, genes, best, labels, units=str(card["units"]),
        target=None if told is None else Target.from_dict(told), signatures=signatures,
    )  # fmt: skip
    if cohort is not None:
        models = [model for model in dict.fromkeys([best, "ridge"]) if model in report.models]
        table, left = over_sections(report, cohort, labels, models)
        found.tables.extend([] if table is None else [table])
        found.remarks.extend(left)
    return found


def biology(
    made: Mapping[str, AnnData],
    section: Section | None,
    plate: Plate,
    genes: Sequence[str],
    best: str,
    labels: Labels,
    *,
    units: str = "",
    target: Target | None = None,
    signatures: Mapping[str, Sequence[str]] | None = None,
) -> Biology:
    """Tables over all models, and figures of one, of a test section.

    Parameters
    ----------
    made
        Model → its prediction of the section.
    section
        The section itself, for all its counts and its labels; None where the cohort was not given.
    genes
        Those to draw; others are chosen where the labels decide.
    best
        The model of the figures.
    target
        What the predictions are values of: where it can be inverted and the section's counts are there, its maps are of
        counts.
    signatures
        Name → genes; the built-in ones by default.
    """
    found = Biology()
    sections = {model: next(parts(table)) for model, table in made.items() if table.n_obs}
    if not sections:
        return found
    n = len(next(iter(sections.values())).truth)
    if n > MOST_SPOTS:
        found.remarks.append(f"Left out: the section has {n} spots, more than {MOST_SPOTS}.")
        return found
    shown = best if best in sections else next(iter(sections))
    tables = {model: structure(part) for model, part in sections.items()}
    _add_structure(found, sections, tables)
    _add_clusters(found, sections, section, plate, genes, shown)
    _add_values(found, sections, section, plate, genes, shown, units, tables[shown]["pcc"], target)
    sets, why = labels.contrast(section)
    found.remarks.extend(why)
    if sets is not None:
        add_differences(found, sections, sets, shown)
    add_signatures(found, sections, sets, signatures)
    return found


def as_counts(part: Part, section: Section | None, target: Target | None) -> tuple[Part | None, str]:
    """A section of a prediction on the scale of counts, and how it was made; or None, and why it cannot be.

    The truth is the raw counts; the prediction is the target inverted with each spot's own divisor, which was measured.
    """
    if section is None or target is None or not section.spots.n_vars:
        return None, "Not on the scale of counts: the cohort was not given."
    try:
        counts = section.counts(list(part.genes)).toarray().astype(np.float64)
        library = counts.sum(axis=1) if target.library == "panel" else divisor(target, section)
        pred = target.inverse(part.pred, library)
    except (NotInvertible, KeyError) as error:
        return None, f"Not on the scale of counts: {error.args[0]}."
    how = "" if target.library == "none" else ", by the divisor that was measured in each spot"
    return replace(
        part, truth=np.where(part.measured, counts, np.nan), pred=pred
    ), f"Predictions are inverted to counts{how}."


def _add_structure(found: Biology, sections: Mapping[str, Part], tables: Mapping[str, pd.DataFrame]) -> None:
    rows = []
    for model, part in sections.items():
        short = summary_of(tables[model], part)
        one = {name: number(value, 2) for name, value in short.items()}
        rows.append(
            [model, f"{one['moran_truth']} → {one['moran_pred']}", f"{one['geary_truth']} → {one['geary_pred']}",
             one["variance_ratio"], one["ssim"], one["rv"], f"{one['spot_pcc']} ({one['spot_pcc_mean_profile']})",
             f"{short['found']:.0f} of {short['tested']:.0f}"]
        )  # fmt: skip
    shifts = max(int(table["shifts"].max()) for table in tables.values())
    least = f"1/{shifts}" if shifts else "–"
    found.tables.append(
        Table(
            "Spatial structure, medians over genes (PCC over genes: over spots). Moran's I and Geary's C: measured → "
            "predicted; a higher I, a lower C and a variance ratio far under PCC² mean oversmoothing. RV is between the "
            "correlations of different genes. In brackets, what the section's mean profile reaches without looking at the "
            "spot. Genes found: PCC above that of the prediction shifted over the section, q ≤ 0.05 over its genes "
            f"(smallest p {least}).",
            [
                "model",
                "Moran's I",
                "Geary's C",
                "variance ratio",
                "SSIM",
                "gene–gene RV",
                "PCC over genes",
                "genes found",
            ],
            rows,
        )
    )
    usable = {
        m: table["pcc"].median() for m, table in tables.items() if table[["variance_ratio", "pcc"]].notna().all(1).any()
    }
    shown = {model: tables[model] for model in sorted(usable, key=usable.__getitem__, reverse=True)[:_SCATTERED]}
    if shown:
        found.shots.append(
            Shot(
                oversmoothing(shown),
                "oversmoothing",
                "Each gene's variance ratio and PCC. On the line, predictions are scaled as least squares would have them; "
                "left of it variance is missing (oversmoothed), right of it there is too much. Ratios over 2 are at the rim."
                + (f" Of {len(usable)} models the {_SCATTERED} of highest PCC." if len(usable) > _SCATTERED else ""),
                f"Scatter plot of variance ratio against PCC per gene, for {', '.join(shown)}.",
            )
        )


def _add_clusters(
    found: Biology,
    sections: Mapping[str, Part],
    section: Section | None,
    plate: Plate,
    genes: Sequence[str],
    shown: str,
) -> None:
    part = sections[shown]
    n = len(part.truth)
    if n < MIN_CLUSTERED:
        found.remarks.append(f"No clusters: the section has {n} spots, and at least {MIN_CLUSTERED} are needed.")
        return
    whole = section is not None and section.spots.n_vars > 0
    if not whole and not part.measured.all():
        found.remarks.append(
            "No clusters: without the cohort they would be of the panel, and not all of it was measured."
        )
        return
    try:
        true = leiden(log_normalised(section.spots.X) if whole and section is not None else part.truth)
        of = {model: leiden(one.pred) for model, one in sections.items()}
    except ImportError as error:
        found.remarks.append(f"No clusters: {error}")
        return
    rows, means = [], {}
    for model, one in sections.items():
        means[model] = cluster_means(one.truth, one.pred, true, one.genes, one.measured)
        off = cluster_error(means[model])
        rows.append(
            [model, str(int(of[model].max()) + 1), number(adjusted_rand(of[model], true), 2),
             number(normalised_mutual_information(of[model], true), 2), number(float(off["rmse"].mean()), 3),
             number(float(off["spread"].mean()), 3)]
        )  # fmt: skip
    source = f"all {section.spots.n_vars} genes" if whole and section is not None else "the panel"
    found.tables.append(
        Table(
            f"Leiden clusters: {int(true.max()) + 1} by the measured expression of {source}, against those of each "
            "prediction. ARI is 0 by chance, NMI is not. Clusters know neither scale nor genes: any function of the image finds "
            "the groups that the image shows, so compare with the shuffled control. Error: of the mean "
            "expression of a measured cluster, root mean square over clusters, mean over genes; "
            "as large as the sd of the true means, nothing of the difference is known.",
            ["model", "clusters", "ARI", "NMI", "RMS error of cluster means", "sd of true means"],
            rows,
        )
    )
    _draw_clusters(found, plate, {"measured": true, shown: of[shown]}, means[shown], genes)


def _draw_clusters(
    found: Biology,
    plate: Plate,
    clusters: Mapping[str, NDArray[np.int64]],
    means: pd.DataFrame,
    genes: Sequence[str],
) -> None:
    """Maps of the measured clusters and of those of one model, and the means in the measured ones."""
    (_, true), (shown, made) = clusters.items()
    found.shots.append(
        Shot(
            cluster_maps(plate, clusters),
            "clusters",
            f"Clusters of the measured and of the predicted expression ({shown}). Each side numbers its own by size: equal "
            "colours need not be equal clusters.",
            f"Maps of {int(true.max()) + 1} measured and {int(made.max()) + 1} predicted clusters.",
        )
    )
    there = set(means["gene"])
    drawn = [gene for gene in genes if gene in there]
    if drawn:
        found.shots.append(
            Shot(
                cluster_scatter(means, drawn, model=shown),
                "cluster-means",
                "Mean expression in each measured cluster, measured and predicted, with standard errors over spots (too "
                "small: spots are neighbours). On the line both are equal.",
                f"Scatter plots of cluster means, measured against predicted by {shown}, for {', '.join(drawn)}.",
            )
        )


def _add_values(
    found: Biology,
    sections: Mapping[str, Part],
    section: Section | None,
    plate: Plate,
    genes: Sequence[str],
    shown: str,
    units: str,
    pcc: pd.Series,
    target: Target | None,
) -> None:
    part = sections[shown]
    drawn = [gene for gene in genes if gene in part.genes and part.measured[:, part.genes.get_loc(gene)].any()]
    if not drawn:
        return
    gene = drawn[0]
    at = int(part.genes.get_loc(gene))
    truth = part.truth[:, at]
    scaled, why = as_counts(part, section, target)
    of, what = (part, "value") if scaled is None else (scaled, "count")
    true, made = of.truth[:, at], of.pred[:, at]
    if np.nanmean(true) > 0:
        found.shots.append(
            Shot(
                normalised_maps(plate, gene, true, made, model=shown, pcc=float(pcc[gene])),
                "normalised",
                f"{gene} as multiples of its mean measured {what} in this section: measured, predicted, and the error. {why} "
                f"PCC is that of the values ({units or 'target'}).",
                f"Maps of {gene} over its mean {what}: measured, predicted by {shown}, and error.",
            )
        )
    values: dict[str, NDArray[np.float64]] = {
        model: one.pred[:, one.genes.get_loc(gene)] for model, one in sections.items() if gene in one.genes
    }
    found.shots.append(
        Shot(
            value_histogram(gene, truth, values, units=units),
            "histogram",
            f"Values of {gene} over the spots: measured (filled) and predicted.",
            f"Histogram of {gene}, measured and predicted by {', '.join(values)}.",
        )
    )
