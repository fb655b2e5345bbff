"""A run in words: its tables as Markdown, and what must be known before its numbers are believed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from histoweave.bench.metrics import LOWER_IS_BETTER
from histoweave.data.holdout import Everything

if TYPE_CHECKING:
    from histoweave.bench.summary import Report


def to_markdown(report: Report) -> str:
    """The run as Markdown: table, tests, warnings."""
    lines = [
        f"# {report.card['benchmark']}",
        "",
        *(f"> {note}" for note in notes(report)),
        "",
        pipe(report.table()),
        "",
    ]
    if "p_holm" in report.tests:
        lines += [
            f"## Against {report.tests['reference'].iloc[0]} ({report.tests['metric'].iloc[0]}, patients paired)",
            "",
            pipe(report.tests.set_index("model")[["difference", "n_patients", "p", "p_holm", "p_min", "note"]]),
            "",
        ]
    return "\n".join(lines)


def pipe(table: pd.DataFrame) -> str:
    """A Markdown table."""
    header = [table.index.name or "", *map(str, table.columns)]
    body = [
        [str(index), *(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row)]
        for index, row in zip(table.index, table.itertuples(index=False), strict=True)
    ]
    rows = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def notes(report: Report) -> list[str]:
    """What a reader must know before believing the numbers."""
    found = [f"{note[0].upper()}{note[1:]}." for note in report.card.get("split_notes", ())]  # older runs have none
    patients = set(report.card["patients"].values())
    if report.card["protocol"] == "paper":
        found.append(
            "Protocol 'paper': the panel comes from all sections and the epoch was chosen on the test fold. "
            "These numbers are optimistic and not comparable with the default protocol."
        )
    if len(patients) < 6:
        found.append(f"{len(patients)} patients: not testable, and nothing is ranked (6 are needed for p < 0.05).")
    rungs = {card["inner_split"] for card in report.cells} & {"sections", "blocks"}
    if rungs:
        found.append(
            f"Inner split on {' and '.join(sorted(rungs))}: the training side has too few patients to validate "
            "on one of its own."
        )
    short = sorted({card["recipe"]["name"] for card in report.cells if card["history"]} - {"paper"})
    if short:
        found.append(f"Recipe {', '.join(short)}: shorter than published; not the method's accuracy.")
    if report.card["controls_left_out"]:
        found.append(
            f"Controls left out, because sections have no image: {', '.join(report.card['controls_left_out'])}."
        )
    if report.card["hide"] == repr(Everything()) and "ridge" not in report.models:
        found.append("Ridge did not run: there is no test against it, and no pcc_50.")
    weak = int((~report.genes["reliable"]).sum())
    if weak:
        found.append(
            f"{weak} of {len(report.genes)} genes have a reliability under 0.3; they count in the mean, and "
            f"their {'ceiling' if report.genes['ceiling'].notna().any() else 'reliability'} is in the table of genes."
        )
    metrics = set(report.summary["metric"])
    lower = ", ".join(sorted(LOWER_IS_BETTER & metrics))
    found.append(
        f"{'PCC' if 'pcc' in metrics else 'Deviance'} is per gene within a section, then mean over genes, sections and "
        f"patients; ± is the population sd over patients. Lower is better for {lower}."
    )
    return found
