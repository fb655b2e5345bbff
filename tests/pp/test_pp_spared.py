"""The SpaRED pipeline: its layers against a plain calculation, and what it is asked for."""

import numpy as np
import pytest
from tests.pp.spared_data import GENES, SPLIT, make_cohort, make_lengths

from histoweave.pp import (
    Combat,
    add_completed,
    grid_hops,
    median_fill,
    real_data_genes,
    select_panel,
    spared,
)
from histoweave.pp.genes import auto_count


@pytest.fixture(scope="module")
def cohort():
    return make_cohort()


@pytest.fixture(scope="module")
def lengths():
    return make_lengths()


@pytest.fixture(scope="module")
def result(cohort, lengths):
    return spared(cohort, SPLIT, lengths=lengths, n_genes=8)


def moran(values, rc):
    near = (np.abs(rc[:, None] - rc[None]).max(axis=2) == 1).astype(float)
    near /= near.sum(axis=1, keepdims=True)
    z = values - values.mean(axis=0)
    return np.einsum("ij,ig,jg->g", near, z, z) / (z**2).sum(axis=0)


@pytest.mark.parametrize("leak_free", [True, False])
def test_layers_against_a_plain_calculation(cohort, lengths, leak_free):
    got = spared(cohort, SPLIT, lengths=lengths, n_genes=8, leak_free=leak_free, combat_key="patient")
    learn = list(cohort)[: 3 if leak_free else 5]
    counts = {s.id: s.counts(GENES).toarray().astype(np.float64) for s in cohort}
    least = np.min([(counts[s.id] > 0).mean(axis=0) for s in learn], axis=0)
    overall = (np.concatenate([counts[s.id] for s in learn]) > 0).mean(axis=0)
    alive = np.flatnonzero(real_data_genes(least, overall) & (np.arange(40) > 0))  # the first has no length
    rate = {id: c[:, alive] / lengths["merged_exon_length"].to_numpy()[alive - 1] for id, c in counts.items()}
    tpm = {id: r / r.sum(axis=1, keepdims=True) * 1e6 for id, r in rate.items()}
    logs = {id: np.log2(t + 1) for id, t in tpm.items()}
    filled = {s.id: median_fill(logs[s.id], counts[s.id][:, alive] > 0, [grid_hops(s.array_rc, h) for h in range(1, 5)])
              for s in cohort}  # fmt: skip
    used = logs if leak_free else filled
    score = np.mean([moran(used[s.id], s.array_rc) for s in learn], axis=0)
    best = np.argsort(-score, kind="stable")[:8]
    assert got.panel.genes == tuple(GENES[alive[j]] for j in best)
    assert got.panel.trained_on == tuple(s.id for s in learn)
    batch = np.concatenate([[s.patient] * s.n for s in learn])
    combat = Combat.fit(np.concatenate([filled[s.id][:, best] for s in learn]), batch)
    for s in cohort:
        table = got.sections[s.id]
        own = filled[s.id][:, best]
        adjusted = own if leak_free and s.id == "c1" else combat.transform(own, [s.patient] * s.n)
        train_mean = np.concatenate([got.sections[i].layers["c_d_log1p"] for i in SPLIT.train]).mean(axis=0)
        mask = counts[s.id][:, alive[best]] > 0
        expected = {"tpm": tpm[s.id][:, best], "log1p": logs[s.id][:, best], "d_log1p": own, "c_d_log1p": adjusted,
                    "c_d_deltas": adjusted - train_mean, "mask": mask,
                    "noisy_c_d_log1p": np.where(mask, adjusted, 0),
                    "noisy_c_d_deltas": np.where(mask, adjusted, 0) - train_mean}  # fmt: skip
        for layer, values in expected.items():
            np.testing.assert_allclose(table.layers[layer], values, atol=2e-4, rtol=1e-5, err_msg=layer)
        column = "log1p_moran" if leak_free else "d_log1p_moran"
        np.testing.assert_allclose(table.var[column], score[best], atol=1e-6)
        np.testing.assert_allclose(table.var["glob_exp_frac"], overall[alive[best]])
        np.testing.assert_allclose(table.var["c_d_log1p_avg_exp"], train_mean, atol=1e-4)


def test_what_is_there(result):
    assert (result.unit, result.filled, result.completed) == ("tpm", "c_d_log1p", "c_t_log1p")
    assert result.dropped["genes without a length"] <= 1
    for id, table in result.sections.items():
        assert set(table.layers) == {
            "counts", "tpm", "mask", "log1p", "d_log1p", "c_log1p", "c_d_log1p", "deltas", "d_deltas", "c_deltas",
            "c_d_deltas", "noisy_c_d_log1p", "noisy_c_d_deltas",
        }  # fmt: skip
        assert all(np.isfinite(table.layers[layer]).all() for layer in set(table.layers) - {"counts"})
        assert all(table.layers[x].dtype == np.float32 for x in set(table.layers) - {"counts", "mask"})
        assert (table.obs["section"] == id).all()
        side = next(side for side in ("train", "val", "test") if id in getattr(SPLIT, side))
        assert (table.obs["split"] == side).all()
        assert 0 < table.layers["mask"].mean() < 1
        np.testing.assert_array_equal(
            table.layers["d_log1p"][table.layers["mask"]], table.layers["log1p"][table.layers["mask"]]
        )


def test_without_lengths_it_is_cpm_and_without_combat_no_c_layers(cohort):
    got = spared(cohort, SPLIT, combat_key=None, n_genes=6)
    assert (got.unit, got.filled, got.completed, got.combat) == ("cpm", "d_log1p", "t_log1p", {})
    layers = set(got.sections["c1"].layers)
    assert {"cpm", "noisy_d_log1p", "noisy_d_deltas"} <= layers
    assert not any(layer == "tpm" or layer.startswith(("c_", "noisy_c_")) for layer in layers)
    train = cohort.subset(SPLIT.train)
    assert select_panel(train, "spared:6", GENES).genes == got.panel.genes
    assert select_panel(train, "spared:auto", GENES).genes == tuple(got.ranking.index[: auto_count(len(got.ranking))])
    with pytest.raises(ValueError, match=r"39 genes were asked for, but \d+ pass"):
        spared(cohort, SPLIT, n_genes=39)
    with pytest.raises(ValueError, match="genes that pass; ask for fewer"):
        select_panel(train, "spared:40", GENES)


def test_completed_values_join(result):
    rng = np.random.default_rng(0)
    given = {id: rng.gamma(2.0, size=table.shape) for id, table in result.sections.items()}
    joined = add_completed(result, given)
    mean = np.concatenate([joined.sections[i].layers["c_t_log1p"] for i in SPLIT.train]).mean(axis=0)
    for id, table in joined.sections.items():
        mask, values = table.layers["mask"], table.layers["c_t_log1p"]
        np.testing.assert_array_equal(values[mask], table.layers["c_d_log1p"][mask])
        np.testing.assert_array_equal(values[~mask], given[id].astype(np.float32)[~mask])
        np.testing.assert_allclose(table.layers["c_t_deltas"], values - mean, atol=1e-5)
        np.testing.assert_array_equal(table.layers["noisy_c_t_log1p"], np.where(mask, values, 0))
        np.testing.assert_allclose(table.layers["noisy_c_t_deltas"], np.where(mask, values, 0) - mean, atol=1e-5)
        assert "c_t_log1p" not in result.sections[id].layers
    with pytest.raises(ValueError, match=r"expected \['a1', 'a2'"):
        add_completed(result, {"a1": given["a1"]})
    with pytest.raises(ValueError, match="section 'c1': completed values have shape"):
        add_completed(result, given | {"c1": given["c1"][1:]})
    with pytest.raises(ValueError, match="not finite"):
        add_completed(result, given | {"c1": given["c1"] * np.nan})
