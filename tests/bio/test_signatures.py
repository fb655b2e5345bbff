"""Signatures: where they are from, how they are read, and scores against a plain calculation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import zscore
from tests.bio.made import grid_cells, smooth_maps, stored

from histoweave.bio import contrast, parts, read_signatures, score, signature_table, signatures


def test_built_in_signatures_name_their_source_and_no_gene_twice() -> None:
    assert set(signatures()) == {"proliferation", "immune", "stroma", "epithelial", "her2_amplicon"}
    assert set(signatures()["her2_amplicon"].genes) == {"ERBB2", "GRB7", "STARD3", "MIEN1"}
    for one in signatures().values():
        assert len(set(one.genes)) == len(one.genes) >= 4
        assert any(year in one.source for year in ("2006", "2010", "2016", "2017"))
    assert {name for name, one in signatures().items() if one.verified} == {"proliferation", "immune"}


def test_signatures_are_read_from_toml_and_gmt(tmp_path: Path) -> None:
    toml, gmt = tmp_path / "mine.toml", tmp_path / "mine.gmt"
    toml.write_text('[wound]\ngenes = ["A", "B"]\nsource = "Doe 2020"\n[one]\ngenes = ["C"]\n', encoding="utf-8")
    gmt.write_text("wound\tDoe 2020\tA\tB\n\none\t\tC\t\n", encoding="utf-8")
    for path in (toml, gmt):
        found = read_signatures(path)
        assert {name: one.genes for name, one in found.items()} == {"wound": ("A", "B"), "one": ("C",)}
        assert found["wound"].source == "Doe 2020" and not found["wound"].verified
    for name, text, message in (
        ("a.toml", "[wound]\nsource = 1\n", "cannot be read"),
        ("b.toml", "wound = 3\n", "cannot be read"),
        ("c.gmt", "wound A B\n", "fewer than 3 columns"),
        ("d.toml", "", "no signature"),
        ("e.toml", "[wound]\ngenes = []\n", "no genes of 'wound'"),
    ):
        (tmp_path / name).write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            read_signatures(tmp_path / name)


def test_score_is_the_mean_z_score_of_what_is_there() -> None:
    values = np.random.default_rng(6).normal(3, 2, (30, 4))
    values[:, 2] = 1.0
    expected = zscore(values[:, [0, 3]]).mean(axis=1)
    np.testing.assert_allclose(score(values, list("ABCD"), ["A", "D", "C", "Z", "A"]), expected, rtol=1e-10)
    holes = values.copy()
    holes[:10, 0], holes[5, 3] = np.nan, np.nan
    found = score(holes, list("ABCD"), ["A", "D"])
    assert np.isnan(found[5])
    z_a, z_d = zscore(holes[:, 0], nan_policy="omit"), zscore(holes[:, 3], nan_policy="omit")
    assert found[2] == pytest.approx(z_d[2])
    assert found[20] == pytest.approx((z_a[20] + z_d[20]) / 2)
    assert np.isnan(score(values, list("ABCD"), ["C"])).all()


def test_table_compares_scores_of_truth_and_prediction() -> None:
    truth = smooth_maps(5, 8, 0)
    pred = np.column_stack([truth[:, :2], smooth_maps(2, 8, 1), np.ones(64)])
    part = next(parts(stored(truth, pred, grid_cells(8), genes=["ERBB2", "GRB7", "COL1A1", "DCN", "MKI67"])))
    label = pd.Series(np.where(truth[:, :2].sum(axis=1) > 0, "her2", "rest"))
    table = signature_table(part, sets=contrast(label, "her2"))
    assert table.loc["her2_amplicon", "pcc"] == pytest.approx(1.0, abs=1e-6)
    assert list(table.loc["her2_amplicon", ["genes", "of"]]) == [2, 4]
    assert table.loc["her2_amplicon", "auc_pred"] > 0.95
    assert abs(table.loc["stroma", "pcc"]) < 0.7
    assert table.loc["proliferation", "pcc"] == 0  # predicted constant
    assert np.isnan(table.loc["immune", "pcc"])
    assert list(signature_table(part, {"mine": ["DCN"]}).columns) == ["genes", "of", "pcc"]
