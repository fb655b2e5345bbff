"""The SpaRED pipeline: no leak from held-out sections, thin data, and what cannot be."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from tests.pp.spared_data import GENES, RC, SPLIT, make_cohort, make_lengths, section

from histoweave.data.holdout import Entries, Holdout
from histoweave.data.section import Cohort, make_section
from histoweave.data.split import Split
from histoweave.pp import shared_ranking, spared


@pytest.fixture(scope="module")
def cohort():
    return make_cohort()


@pytest.fixture(scope="module")
def lengths():
    return make_lengths()


def statistics(got):
    found = {"genes": np.array(got.panel.genes), "ranking": got.ranking.to_numpy(), **got.means}
    for layer, combat in got.combat.items():
        found |= {f"{layer}.{x}": getattr(combat, x) for x in ("mean", "sd", "shift", "variance")}
    var = got.sections["a1"].var
    return found | {column: var[column].to_numpy() for column in var}


@pytest.mark.parametrize("held_out", ["complete", "predict"])
def test_held_out_sections_teach_nothing(cohort, lengths, held_out):
    clean = spared(cohort, SPLIT, lengths=lengths, n_genes=8, held_out=held_out)
    both = Split(train=SPLIT.train, test=(*SPLIT.val, *SPLIT.test))
    garbled = spared(Holdout(both).garble(cohort), SPLIT, lengths=lengths, n_genes=8, held_out=held_out,
                     spot_counts=(10, 1e9))  # fmt: skip
    alone = spared(cohort, Split(train=SPLIT.train, test=()), lengths=lengths, n_genes=8)
    before, after, without = statistics(clean), statistics(garbled), statistics(alone)
    for name, value in before.items():
        np.testing.assert_array_equal(value, after[name], err_msg=name)
        np.testing.assert_array_equal(value, without[name], err_msg=name)
    for id in SPLIT.train:
        for layer, values in clean.sections[id].layers.items():
            again = garbled.sections[id].layers[layer]
            assert (values != again).sum() == 0, layer
    published = spared(cohort, SPLIT, lengths=lengths, n_genes=8, leak_free=False)
    leaked = spared(Holdout(both).garble(cohort), SPLIT, lengths=lengths, n_genes=8, leak_free=False,
                    spot_counts=(10, 1e9))  # fmt: skip
    assert not np.array_equal(published.means["d_log1p"], leaked.means["d_log1p"])


@pytest.mark.parametrize("held_out", ["complete", "predict"])
def test_hidden_entries_of_a_held_out_section_change_nothing_visible(cohort, held_out):
    holdout = Holdout(Split(train=(*SPLIT.train, *SPLIT.val), test=SPLIT.test), Entries(0.3))

    def run(c):
        return spared(Cohort([*holdout.given(c)[0], *holdout.given(c)[1]]), SPLIT, n_genes=8, held_out=held_out)

    a, b = run(cohort), run(holdout.garble(cohort))
    for id, table in a.sections.items():
        for layer, values in table.layers.items():
            assert (values != b.sections[id].layers[layer]).sum() == 0, (id, layer)


def test_a_held_out_batch_is_shifted_by_what_it_shows(cohort):
    whole, none = (spared(cohort, SPLIT, n_genes=8, held_out=how) for how in ("complete", "predict"))
    for id in ("a3", "c1"):
        np.testing.assert_array_equal(none.sections[id].layers["c_d_log1p"], none.sections[id].layers["d_log1p"])
        target = whole.combat["d_log1p"].mean
        off = [np.abs(one.sections[id].layers["c_d_log1p"].mean(axis=0) - target).mean() for one in (whole, none)]
        assert off[0] < 0.7 * off[1]
    two = Split(train=("a1", "b1"), test=("c1", "c2"))
    both = spared(Cohort([*cohort, section("c2", 6)]), two, n_genes=8, combat_key="patient", held_out="complete")
    raw, made = (
        np.concatenate([both.sections[id].layers[layer] for id in two.test]) for layer in ("d_log1p", "c_d_log1p")
    )
    np.testing.assert_array_equal(made, both.combat["d_log1p"].transform_new(raw))  # a patient is one batch
    by_patient = spared(cohort, SPLIT, n_genes=8, combat_key="patient")
    combat, table = by_patient.combat["d_log1p"], by_patient.sections["a3"]  # its patient is among the training ones
    np.testing.assert_array_equal(
        table.layers["c_d_log1p"], combat.transform(table.layers["d_log1p"], ["a"] * table.n_obs)
    )
    assert not np.array_equal(table.layers["c_d_log1p"], table.layers["d_log1p"])


def test_one_training_section(cohort):
    got = spared(cohort, Split(train=("a1",), test=("c1",)), n_genes=4, held_out="complete")
    assert len(got.notes) == 1 and "one batch" in got.notes[0] and got.notes[0] == got.combat["d_log1p"].note
    assert not spared(cohort, SPLIT, n_genes=4).notes
    for table in got.sections.values():
        np.testing.assert_array_equal(table.layers["c_d_log1p"], table.layers["d_log1p"])


def test_how_much_two_rankings_share(cohort):
    a, b = (spared(cohort, SPLIT, n_genes=4, leak_free=leak_free).ranking for leak_free in (True, False))
    got = shared_ranking(a, b, 10)
    both = [gene for gene in a.index if gene in b.index]
    assert got.genes == len(both) >= 10
    assert got.overlap == len(set(a.index[:10]) & set(b.index[:10])) / 10
    assert got.spearman == pytest.approx(spearmanr([a[g] for g in both], [b[g] for g in both]).statistic)
    assert shared_ranking(a, a, 5)[1:3] == pytest.approx((1.0, 1.0))
    assert str(got).startswith(f"{got.overlap:.0%} of the best 10 genes are the same; Spearman {got.spearman:.2f} over")
    with pytest.raises(ValueError, match="expected 1 to"):
        shared_ranking(a, b, 1000)


# -- thin and bad input -------------------------------------------------------------------------------------------


def test_a_section_of_five_spots_a_missing_gene_and_an_isolated_spot(cohort):
    far = np.vstack([RC[:4], [[90, 90]]])
    small = section("c1", 9, far)
    counts = small.spots.X.toarray()
    counts[:, 35] = 0  # everywhere else it is one of the most frequent
    counts[4, :39] = 0  # the isolated spot has a single gene
    counts[4, 39] = 50
    small = make_section(id="c1", patient="c", counts=counts, genes=GENES, xy=small.xy, platform="st", um_per_px=1.0,
                         array_rc=far)  # fmt: skip
    mixed = Cohort([*list(cohort)[:4], small])
    for leak_free in (True, False):
        got = spared(mixed, SPLIT, n_genes=6, leak_free=leak_free, held_out="complete")
        table = got.sections["c1"]
        assert table.n_obs == 5
        assert all(np.isfinite(table.layers[layer]).all() for layer in set(table.layers) - {"counts"})
    listed = spared(mixed, SPLIT, genes=[GENES[35], GENES[39]], n_genes=2, held_out="complete")
    at = listed.panel.genes.index(GENES[35])
    assert (listed.sections["c1"].layers["d_log1p"][:, at] == 0).all()
    assert set(listed.panel.genes) == {GENES[35], GENES[39]}


def test_empty_spots_are_dropped_and_counted(cohort):
    counts = cohort["a1"].spots.X.toarray()
    counts[[2, 9]] = 0
    other = make_section(id="a1", patient="a", counts=counts, genes=GENES, xy=cohort["a1"].xy, platform="st",
                         um_per_px=1.0, array_rc=RC)  # fmt: skip
    got = spared(Cohort([other, *list(cohort)[1:]]), SPLIT, n_genes=4)
    assert got.dropped["spots out of bounds"] == 2
    assert list(got.sections["a1"].obs_names) == [
        name for i, name in enumerate(other.spots.obs_names) if i not in (2, 9)
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": Split(train=(), test=("c1",))}, "no training sections"),
        ({"split": Split(train=("a1", "c1"), test=("c1",))}, r"names sections \['c1'\] more than once"),
        ({"real_data": 2}, "real-data share 2"),
        ({"spot_counts": (1e5, 1e6)}, "section 'a1' has no spot with more than 100000"),
        ({"spot_counts": (5, 5)}, "expected .low, high."),
        ({"gene_counts": (1e8, 1e9)}, "no gene has more than"),
        ({"combat_key": "slide"}, "combat_key='slide'"),
        ({"held_out": "both"}, "held_out='both'"),
        ({"n_genes": 0}, "n_genes=0"),
        ({"genes": ["nope", GENES[0]]}, r"1 of 2 genes that were named \(as \['nope'\]\)"),
        ({"lengths": pd.DataFrame({"gene_id": ["x"], "gene_symbol": [""], "merged_exon_length": [5]})},
         r"none of the \d+ genes that pass"),
    ],
)  # fmt: skip
def test_one_clear_error(cohort, change, message):
    with pytest.raises(ValueError, match=message):
        spared(cohort, **({"split": SPLIT, "n_genes": 4} | change))


def test_sections_without_counts(cohort):
    shown = Holdout(Split(train=SPLIT.train, test=("c1",))).shown(cohort.subset(["c1"]))
    with pytest.raises(ValueError, match=r"sections \['c1'\] have no counts"):
        spared(Cohort([*list(cohort)[:4], *shown]), SPLIT)
