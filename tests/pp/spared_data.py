"""Made-up sections for the tests of the SpaRED pipeline: 40 genes, from rare to frequent, on a square lattice."""

import numpy as np
import pandas as pd

from histoweave.data.section import Cohort, make_section
from histoweave.data.split import Split

RC = np.array([(r, c) for r in range(7) for c in range(8)])
GENES = [f"ENSG{i:011d}" for i in range(40)]
SPLIT = Split(train=("a1", "a2", "b1"), val=("a3",), test=("c1",))


def section(id, seed, rc=RC, genes=GENES):
    rng = np.random.default_rng(seed)
    level = np.geomspace(0.03, 30, len(genes)) * np.random.default_rng(5).permuted(np.linspace(0.7, 1.4, len(genes)))
    wave = 1 + 0.9 * np.sin(rc[:, :1] * np.random.default_rng(6).uniform(0, 1.5, len(genes)))
    counts = rng.negative_binomial(2, 2 / (2 + level * wave * rng.uniform(0.7, 1.4, len(genes))))
    return make_section(id=id, patient=id[0], counts=counts, genes=genes, xy=rc[:, ::-1] * 100.0 + 50, platform="st",
                        um_per_px=1.0, array_rc=rc)  # fmt: skip


def make_cohort():
    return Cohort([section("a1", 1), section("a2", 2), section("b1", 3), section("a3", 4), section("c1", 5, RC[:30])])


def make_lengths():
    rng = np.random.default_rng(0)
    return pd.DataFrame({"gene_id": GENES[1:], "gene_symbol": "", "merged_exon_length": rng.integers(200, 9000, 39)})
