"""ComBat: against scanpy and a plain loop, masks, new batches, and what breaks the original."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData

from histoweave.pp import Combat


def data(seed=0, n=300, g=60, batches=3):
    """Values with a shift and a scale per batch and gene, and the batches of the spots."""
    rng = np.random.default_rng(seed)
    batch = np.arange(n) % batches
    scale, shift = rng.uniform(0.7, 1.5, (batches, g)), rng.normal(0, 0.5, (batches, g))
    return rng.gamma(2.0, 1.0, (n, g)) * scale[batch] + shift[batch], batch


def scanpys(values, batch):
    table = AnnData(values.copy())
    table.obs["batch"] = [f"b{i}" for i in batch]
    return sc.pp.combat(table, inplace=False)


@pytest.mark.parametrize(("n", "g", "batches"), [(60, 20, 2), (300, 100, 3), (500, 128, 5)])
def test_equals_scanpy(n, g, batches):
    values, batch = data(1, n, g, batches)
    np.testing.assert_allclose(Combat.fit(values, batch).transform(values, batch), scanpys(values, batch), atol=1e-5)


def test_small_sets_differ_from_scanpy_by_its_early_stop(monkeypatch):
    values, batch = data(2, 30, 8, 3)
    ours = Combat.fit(values, batch).transform(values, batch)
    assert np.abs(ours - scanpys(values, batch)).max() < 1e-3
    module = sc.pp.combat.__globals__ if "_it_sol" in sc.pp.combat.__globals__ else sc.pp.combat.__wrapped__.__globals__
    monkeypatch.setitem(module, "_it_sol", partial(module["_it_sol"], conv=1e-11))
    np.testing.assert_allclose(ours, scanpys(values, batch), atol=1e-8)


def test_a_gene_that_is_constant_within_one_batch():
    values, batch = data(3)
    values[batch == 1, 7] = 1.5
    ours = Combat.fit(values, batch).transform(values, batch)
    assert np.isfinite(ours).all()
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(ours, scanpys(values, batch), atol=1e-4)


def test_a_gene_that_is_constant_everywhere_is_left_alone():
    values, batch = data(4)
    for constant in (0.0, 0.1, 1e6 + 0.1):
        flat = np.insert(values, 5, constant, axis=1)
        ours = Combat.fit(flat, batch).transform(flat, batch)
        assert (ours[:, 5] == constant).all()
        rest = np.delete(ours, 5, axis=1)
        np.testing.assert_array_equal(rest, Combat.fit(values, batch).transform(values, batch))


def test_batches_come_together():
    values, batch = data(5, n=900)
    adjusted = Combat.fit(values, batch).transform(values, batch)

    def apart(table):
        return np.ptp([table[batch == b].mean(axis=0) for b in range(3)], axis=0).mean()

    assert apart(adjusted) < 0.1 * apart(values)
    np.testing.assert_allclose(adjusted.mean(axis=0), values.mean(axis=0), atol=0.02)


def test_a_single_batch_is_returned_as_it_is():
    values, _ = data(6)
    combat = Combat.fit(values, ["only"] * len(values))
    np.testing.assert_array_equal(combat.transform(values, ["only"] * len(values)), values)
    np.testing.assert_array_equal(combat.transform_new(values + 3), values + 3)
    assert "one batch ('only')" in combat.note
    assert combat.transform(values.astype(np.float32), ["only"] * len(values)).dtype == np.float32


def test_names_of_batches_may_be_anything():
    values, batch = data(7)
    expected = Combat.fit(values, batch).transform(values, batch)
    for names in (batch.astype(str), pd.Series([f"patient {b}" for b in batch], dtype="category"), list(batch * 1.5)):
        np.testing.assert_array_equal(Combat.fit(values, names).transform(values, names), expected)
    part = np.flatnonzero(batch != 1)
    np.testing.assert_array_equal(Combat.fit(values, batch).transform(values[part], batch[part]), expected[part])


def plain_masked(values, batch, seen):
    """One gene and batch at a time, missing entries left out, iterated long."""
    g = values.shape[1]
    names = np.unique(batch)
    mean = np.array([values[seen[:, j], j].mean() for j in range(g)])
    inner = np.zeros(g)
    for j in range(g):
        for b in names:
            part = values[(batch == b) & seen[:, j], j]
            inner[j] += ((part - part.mean()) ** 2).sum()
    sd = np.sqrt(inner / seen.sum(axis=0))
    result = values.copy()
    for b in names:
        z = [(values[(batch == b) & seen[:, j], j] - mean[j]) / sd[j] for j in range(g)]
        first, second = np.array([x.mean() for x in z]), np.array([x.var(ddof=1) for x in z])
        centre, wide, m, s2 = first.mean(), first.var(), second.mean(), second.var(ddof=1)
        a, rate = (2 * s2 + m**2) / s2, (m * s2 + m**3) / s2
        for j in range(g):
            size, d = len(z[j]), second[j]
            for _ in range(200):
                c = (wide * size * first[j] + d * centre) / (wide * size + d)
                d = (0.5 * ((z[j] - c) ** 2).sum() + rate) / (size / 2 + a - 1)
            rows = batch == b
            result[rows, j] = ((values[rows, j] - mean[j]) / sd[j] - c) / np.sqrt(d) * sd[j] + mean[j]
    return result


def test_missing_entries_are_left_out():
    values, batch = data(8, n=90, g=12)
    seen = np.random.default_rng(0).random(values.shape) < 0.6
    combat = Combat.fit(values, batch, seen)
    np.testing.assert_allclose(combat.transform(values, batch), plain_masked(values, batch, seen), atol=1e-6)
    garbage = np.where(seen, values, 1e6)
    other = Combat.fit(garbage, batch, seen)
    for name in ("mean", "sd", "shift", "variance"):
        np.testing.assert_array_equal(getattr(other, name), getattr(combat, name))


def test_a_new_batch_is_pulled_to_the_others_and_teaches_nothing():
    values, batch = data(9, n=1200, g=80, batches=4)
    known, new = batch < 3, batch == 3
    combat = Combat.fit(values[known], batch[known])
    before = {name: getattr(combat, name).copy() for name in ("mean", "sd", "shift", "variance")}
    adjusted = combat.transform_new(values[new])
    apart = np.abs(values[new].mean(axis=0) - combat.mean).mean()
    assert np.abs(adjusted.mean(axis=0) - combat.mean).mean() < 0.15 * apart
    ratio = adjusted.std(axis=0) / combat.sd
    assert np.abs(np.log(ratio)).mean() < 0.5 * np.abs(np.log(values[new].std(axis=0) / combat.sd)).mean()
    for name, value in before.items():
        np.testing.assert_array_equal(getattr(combat, name), value)
    seen = np.random.default_rng(1).random((int(new.sum()), 80)) < 0.5
    hidden = np.where(seen, values[new], -50.0)
    np.testing.assert_array_equal(
        combat.transform_new(hidden, seen)[seen], combat.transform_new(values[new], seen)[seen]
    )


def test_a_new_batch_of_nothing_gets_what_is_usual():
    values, batch = data(10)
    combat = Combat.fit(values, batch)
    seen = np.zeros((6, 60), dtype=bool)
    z = (combat.transform_new(values[:6], seen) - combat.mean) / combat.sd
    usual = (values[:6] - combat.mean) / combat.sd
    np.testing.assert_allclose(z, (usual - combat.new.mean) / np.sqrt(combat.new.typical), atol=1e-9)


@pytest.mark.parametrize(
    "case", ["one spot", "one gene", "unseen gene", "unseen in a batch", "all constant", "two spots"]
)
def test_thin_data_stay_finite(case):
    values, batch = data(11, n=40, g=6)
    seen = np.ones(values.shape, dtype=bool)
    if case == "one spot":
        batch[:] = np.arange(40) >= 1
    elif case == "one gene":
        values, seen = values[:, :1], seen[:, :1]
    elif case == "unseen gene":
        seen[:, 2] = False
    elif case == "unseen in a batch":
        seen[batch == 1, 2] = False
        seen[np.flatnonzero(batch == 2)[1:], 3] = False
    elif case == "all constant":
        values[:] = 4.0
    else:
        values, batch, seen = values[:2], np.array([0, 1]), seen[:2]
    combat = Combat.fit(values, batch, seen)
    adjusted = combat.transform(values, batch)
    assert np.isfinite(adjusted).all()
    assert np.isfinite(combat.transform_new(values[:3])).all()
    if case in ("all constant", "two spots"):  # nothing varies within a batch, so there is no unit to adjust in
        np.testing.assert_array_equal(adjusted, values)
    if case == "unseen gene":
        np.testing.assert_array_equal(adjusted[:, 2], values[:, 2])


def test_bad_input():
    values, batch = data(12, n=30, g=4)
    combat = Combat.fit(values, batch)
    with pytest.raises(ValueError, match="2 that are NaN or infinite"):
        Combat.fit(np.where(np.arange(120).reshape(30, 4) < 2, np.nan, values), batch)
    with pytest.raises(ValueError, match="29 batch names were given for 30 spots"):
        Combat.fit(values, batch[1:])
    with pytest.raises(ValueError, match="1 spots have no batch"):
        Combat.fit(values, [None, *batch[1:]])
    with pytest.raises(ValueError, match=r"mask has shape \(30,\)"):
        Combat.fit(values, batch, np.ones(30, dtype=bool))
    with pytest.raises(ValueError, match="no spots"):
        Combat.fit(values[:0], [])
    with pytest.raises(ValueError, match=r"\['9'\] were not fitted.*transform_new"):
        combat.transform(values, [9] * 30)
    with pytest.raises(ValueError, match="3 genes, but ComBat was fitted to 4"):
        combat.transform_new(values[:, :3])
