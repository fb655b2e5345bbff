"""her2st as measured: Leiden clusters of every section, and what differs under the pathologist's label of cancer.

    python -m benchmarks.biology COHORT

Writes ``benchmarks/results/biology-her2st.md``. No prediction takes part: this is the truth that predictions are held to.
"""

from __future__ import annotations

import sys
import time
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.phantom import markdown
from histoweave import _keys as K
from histoweave.bio import adjusted_rand, contrast, differential, leiden, log_normalised
from histoweave.data.io import read_cohort
from histoweave.data.section import Section

RESULTS = Path(__file__).parent / "results"
CANCER = "invasive cancer"
SHOWN = 8  # genes named per section
EXPRESSED = 0.1  # share of the labelled spots in which a gene has to be seen to be compared


def clusters(section: Section) -> dict[str, object]:
    """Leiden clusters of a section on its whole transcriptome, and their agreement with the pathologist's labels."""
    found = leiden(log_normalised(section.spots.X))
    row: dict[str, object] = {"section": section.id, "spots": section.n, "clusters": int(found.max()) + 1}
    labels = section.spots.obs.get(K.LABEL)
    if labels is not None and labels.notna().any():
        known = labels.notna().to_numpy()
        row["ARI with labels"] = round(float(adjusted_rand(found[known], labels[known].astype(str).to_numpy())), 3)
    return row


def differences(section: Section) -> dict[str, object] | None:
    """Genes that differ between spots labelled as invasive cancer and all other labelled ones; None without labels."""
    labels = section.spots.obs.get(K.LABEL)
    if labels is None or not (labels == CANCER).any():
        return None
    sets = contrast(labels, CANCER)
    compared = sets.is_a | sets.is_b
    seen = np.asarray((section.spots.X[compared] > 0).mean(axis=0)).ravel() >= EXPRESSED
    values = log_normalised(section.spots.X)[:, seen].toarray()
    table = differential(values, sets.is_a, sets.is_b, genes=section.genes[seen], test="wilcoxon")
    best = table[table["q"] <= 0.05].sort_values("statistic", ascending=False)
    return {
        "section": section.id,
        "cancer": int(sets.is_a.sum()),
        "other": int(sets.is_b.sum()),
        "median library, cancer : other": " : ".join(
            f"{np.median(section.library[spots]):.0f}" for spots in (sets.is_a, sets.is_b)
        ),
        "genes compared": int(seen.sum()),
        "q ≤ 0.05": len(best),
        "highest in cancer": ", ".join(best.index[:SHOWN]),
        "ERBB2 effect": round(float(table["effect"].get("ERBB2", np.nan)), 2),
    }


def run() -> None:
    """Writes the page."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m benchmarks.biology COHORT")
    cohort = read_cohort(sys.argv[1])
    begin = time.perf_counter()
    grouped = pd.DataFrame([clusters(section) for section in cohort]).set_index("section")
    seconds = time.perf_counter() - begin
    differing = pd.DataFrame([row for section in cohort if (row := differences(section))]).set_index("section")
    lines = [
        "# her2st as measured: clusters, and differences under the pathologist's labels",
        "",
        f"`python -m benchmarks.biology ../shared/data/her2st`, {date.today()}. No prediction takes part.",
        "",
        f"## Spots labelled {CANCER!r} against all others with a label, within a section",
        "",
        "Wilcoxon rank sums on log(1 + counts per 10,000), genes seen in a tenth of the spots, Benjamini–Hochberg. Spots of a "
        "section are not independent: genes are ordered by this, not tested. Where cancer has a multiple of the library, as in "
        "B1, C1 and G2, most genes come out higher in it: counts of 0 stay 0 when they are divided by a small total.",
        "",
        markdown(differing),
        "",
        f"## Leiden clusters on the whole transcriptome, {len(grouped)} sections in {seconds:.1f} s",
        "",
        markdown(grouped.astype(object).where(grouped.notna(), "–")),
        "",
    ]
    (RESULTS / "biology-her2st.md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines[:20]))


if __name__ == "__main__":
    run()
