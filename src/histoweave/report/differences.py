"""Labels and signatures in the section "Biology": what differs between two labels, in one section and over all that have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from histoweave.bench.summary import Report
from histoweave.bio import Contrast, Part, agreement, combined, differential_of, parts, signature_table, signatures
from histoweave.data.section import Cohort
from histoweave.pl import de_dots
from histoweave.report.findings import Biology, Shot, Table
from histoweave.report.labels import Labels
from histoweave.report.tables import number, p_value

_DOT_GENES = 12
MOST_SECTIONS = 12  # labelled sections of the table over sections: each costs the predictions of a fold


def add_differences(found: Biology, sections: Mapping[str, Part], sets: Contrast, shown: str) -> None:
    """What differs between two labels of one section, by every model, and the dots of one."""
    of = {model: differential_of(part, sets) for model, part in sections.items()}
    rows = []
    for model, (truth, pred) in of.items():
        one = agreement(truth, pred)
        rows.append([model, f"{one.common} of {one.top}", number(one.by_chance, 1), p_value(one.p),
                     number(one.same_sign, 2), number(one.effect_spearman, 2)])  # fmt: skip
    who = f"{sets.a} ({int(sets.is_a.sum())} spots) against {sets.b} ({int(sets.is_b.sum())})"
    found.tables.append(
        Table(
            f"Differential expression, {who}: Welch's t on the measured and on the predicted values of the panel. Common: "
            "genes among the first of both lists by absolute t; p is hypergeometric and takes genes for independent, "
            "which they are not. Same direction: of the common genes. Spots are neighbours, so genes are ordered here, "
            "not tested.",
            ["model", "common genes", "by chance", "p", "same direction", "Spearman of effects"],
            rows,
        )
    )
    truth = of[shown][0]
    tested = truth["statistic"].abs().dropna().sort_values(ascending=False, kind="stable").index[:_DOT_GENES]
    chosen = sorted(tested, key=lambda gene: -truth.loc[gene, "statistic"])
    if chosen:
        part = sections[shown]
        at = part.genes.get_indexer(pd.Index(chosen))
        figure = de_dots(
            part.truth[:, at], part.pred[:, at], {sets.a: sets.is_a, sets.b: sets.is_b}, chosen, model=shown
        )
        found.shots.append(
            Shot(
                figure,
                "differences",
                f"The {len(chosen)} genes that differ most by measurement, {who}. Each side is scaled by itself, so a "
                "shrunken prediction looks the same.",
                f"Dot plots of {len(chosen)} genes in {sets.a} and {sets.b}, measured and predicted by {shown}.",
            )
        )


def over_sections(
    report: Report, cohort: Cohort, labels: Labels, models: Sequence[str]
) -> tuple[Table | None, list[str]]:
    """Differences in every labelled test section, and in all of them together, as a table; or None. And what was left out.

    Parameters
    ----------
    models
        Those to show.
    """
    places = [(fold, id) for fold, ids in report.card["folds"].items() for id in ids if id in cohort.ids]
    sets = {(fold, id): labels.contrast(cohort[id])[0] for fold, id in places if labels.there(cohort[id])}
    told = {place: one for place, one in sets.items() if one is not None}
    if len(told) < 2:
        return None, []
    kept = dict(list(told.items())[:MOST_SECTIONS])
    left = [f"Labels: {len(told) - len(kept)} further labelled sections are not in the table over sections."]
    rows = []
    for model in models:
        tables = _differentials(report, kept, model)
        if len(tables) < 2:
            continue
        for id, (truth, pred) in tables.items():
            rows.append([model, id, *_agreed(truth, pred)])
        both = (combined({id: pair[side] for id, pair in tables.items()}) for side in (0, 1))
        rows.append([model, f"all {len(tables)}", *_agreed(*both)])
    if not rows:
        return None, []
    return Table(
        "Differential expression section by section, and over all labelled test sections together: there the effect is the "
        "mean over sections, and genes are ordered by Stouffer's Z of the sections' tests, so that what differs between "
        "sections has no part in it. Columns as in the table of one section.",
        ["model", "section", "genes", "common genes", "by chance", "p", "same direction", "Spearman of effects"],
        rows,
    ), left if len(told) > len(kept) else []


def _differentials(
    report: Report, sets: Mapping[tuple[str, str], Contrast], model: str
) -> dict[str, tuple[pd.DataFrame, pd.DataFrame]]:
    """Section → its differences on the truth and on the prediction of a model; of the first seed."""
    seeds = {card["fold"]: card["seed"] for card in reversed(report.cells) if card["model"] == model}
    made = {}
    for fold in dict.fromkeys(fold for fold, _ in sets):
        if fold not in seeds:
            continue
        for part in parts(report.prediction(model, fold, seeds[fold])):
            if (fold, part.section) in sets:
                made[part.section] = differential_of(part, sets[fold, part.section])
    return made


def _agreed(truth: pd.DataFrame, pred: pd.DataFrame) -> list[str]:
    """Agreement of two tables as cells."""
    one = agreement(truth, pred)
    cells = [str(one.genes), f"{one.common} of {one.top}", number(one.by_chance, 1), p_value(one.p)]
    return [*cells, number(one.same_sign, 2), number(one.effect_spearman, 2)]


def add_signatures(
    found: Biology,
    sections: Mapping[str, Part],
    sets: Contrast | None,
    chosen: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """The scores of signatures: the built-in ones, or those that are given."""
    of = {model: signature_table(part, chosen, sets) for model, part in sections.items()}
    first = next(iter(of.values()))
    there = [name for name in first.index if first.loc[name, "genes"] > 0]
    if not there:
        which = "the built-in ones" if chosen is None else "those given"
        found.remarks.append(f"No signatures: none of {which} has a gene in the panel.")
        return
    known = signatures() if chosen is None else {}
    doubtful = [str(name) for name in there if name in known and not known[str(name)].verified]
    rows = []
    for name in there:
        row = [str(name), f"{first.loc[name, 'genes']} of {first.loc[name, 'of']}"]
        row += [number(table.loc[name, "pcc"], 2) for table in of.values()]
        if sets is not None:
            row += [number(first.loc[name, "auc_truth"], 2), *(number(t.loc[name, "auc_pred"], 2) for t in of.values())]
        rows.append(row)
    columns = ["signature", "genes", *(f"PCC, {model}" for model in of)]
    if sets is not None:
        columns += ["AUC, measured", *(f"AUC, {model}" for model in of)]
    found.tables.append(
        Table(
            "Signature scores (mean z-score of the genes that are in the panel): PCC of the predicted with the measured "
            "scores over spots"
            + (f", and AUC for {sets.a} against {sets.b}" if sets is not None else "")
            + ". With few of "
            "its genes here, a signature is those genes and not what it is named after."
            + (f" Not checked against its source: {', '.join(doubtful)}." if doubtful else ""),
            columns,
            rows,
        )
    )
