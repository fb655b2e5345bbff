"""The suite of the xMINT paper: verdicts by hand, its data, and the whole of it on a phantom."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from histoweave import _keys as K
from histoweave.bench.xmint_tonsil import medians_of, statements, thinned, with_atlas
from histoweave.commands import make_benchmark, run_tonsil
from histoweave.data import catalog
from histoweave.data.catalog import DatasetNotFound
from histoweave.data.phantom import Phantom
from histoweave.data.section import Cohort
from histoweave.data.split import Split
from histoweave.settings import BenchSettings


def test_verdicts_by_hand() -> None:
    medians = pd.DataFrame(
        {50: [0.4, 0.1, 0.2, 0.2], 100: [0.43, 0.1, 0.3, 0.1], 150: [0.5, 0.2, 0.4, 0.3], 200: [0.6, 0.1, 0.5, 0.4]},
        index=["xmint", "gimvi", "anchors", "spage"],
    )
    assert [s.verdict for s in statements(medians)] == ["holds"] * 4 + ["does not", "holds", "holds"]
    medians.loc["xmint", 100] = 0.46
    medians.loc["gimvi"] = [0.1, 0.2, 0.3, 0.7]
    assert [s.verdict for s in statements(medians)] == ["does not", *["holds"] * 3, *["does not"] * 3]
    assert "0.460" in str(statements(medians)[-1])
    assert [s.verdict for s in statements(medians.drop("spage"))].count("no value") == 2
    assert {s.verdict for s in statements(None)} == {"needs network"}


def test_the_first_text_of_a_name_is_told_of_and_the_others_stand_beside_it() -> None:
    rows = {"xmint[image=off]": [0.2, 0.3], "spage": [0.1, 0.1], "xmint": [0.9, 0.9], "gimvi": [0.5, 0.5]}
    table = pd.DataFrame(
        [(text, m, v) for text, row in rows.items() for m, mid in zip((50, 100), row, strict=True) for v in (mid, mid, 1)],
        columns=["model", "m", "value"],
    )
    medians = medians_of(table)
    assert medians.T.to_dict("list") == rows and list(medians.index) == list(rows) and list(medians) == [50, 100]
    found = statements(medians)
    assert (found[0].verdict, found[2].verdict) == ("does not", "holds") and "xMINT 0.200, 0.300;" in str(found[0])


def test_without_data_every_statement_needs_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HISTOWEAVE_DATA", raising=False)
    said: list[str] = []
    with pytest.raises(DatasetNotFound, match=r"'tonsil-atlas' is not on this machine.*zenodo"):
        run_tonsil(tmp_path / "run", say=said.append)
    assert len(said) == 7 and all(line.endswith(": needs network") for line in said)
    with pytest.raises(DatasetNotFound, match=r"he_imagealignment\.csv"):
        catalog.find("xenium-tonsil")


def test_the_atlas_is_read_as_a_reference(tmp_path: Path) -> None:
    folder = tmp_path / "tonsil-atlas"
    folder.mkdir()
    cells = anndata.AnnData(
        sparse.csr_matrix(np.arange(40, dtype=np.float32).reshape(10, 4)),
        obs=pd.DataFrame({"cell_type": list("AABBBBBBBB")}, index=list("abcdefghij")),
    )
    cells.write_h5ad(folder / "tonsil-atlas.h5ad")
    (atlas,) = catalog.load("tonsil-atlas", tmp_path)
    assert atlas.platform == "reference" and K.GROUP in atlas.spots.obs
    few = thinned(atlas, 5)
    assert few.n == 5 and (few.spots.obs[K.GROUP].astype(str) == "A").sum() == 1
    assert list(thinned(atlas, 5).spots.obs_names) == list(few.spots.obs_names) and thinned(atlas, 10) is atlas


def test_the_first_genes_are_those_of_the_panel_and_not_of_the_reference(small: Phantom) -> None:
    section, genes = small.cohort[0], list(small.cohort[0].genes)
    turned = replace(section.with_spots(section.spots[:, genes[::-1]].copy()), id="atlas", platform="reference")
    split = Split(train=("atlas",), test=(small.cohort[1].id,))
    how = BenchSettings(hide="genes:first:5", models="gene-mean", controls="", threads=1)
    made = make_benchmark(Cohort([turned, small.cohort[1]]), how, splits=(split,))
    assert list(made.view.shared) == genes[:5] and made.hide.names == tuple(genes[5:])  # type: ignore[union-attr]
    cut = with_atlas(small.cohort[:2], replace(turned.with_spots(turned.spots[:, genes[:7]].copy())))
    assert list(cut[0].genes) == genes[:7]
    np.testing.assert_array_equal(cut[1].library, np.asarray(cut[1].spots.X.sum(axis=1)).ravel())


def test_the_whole_suite_on_a_phantom(tmp_path: Path) -> None:
    said: list[str] = []
    how = BenchSettings(models="xmint[image=off],spage[n_pv=5]", controls="gene-mean", threads=1)
    made = run_tonsil(tmp_path, how, dry_run=True, say=said.append)
    assert list(made.medians.index) == ["gene-mean", "xmint[image=off]", "spage[n_pv=5]"]
    assert list(made.medians) == [10, 20, 30, 40] and made.medians.loc["xmint[image=off]"].notna().all()
    assert [s.verdict for s in made.statements].count("no value") == 4  # gimVI and Seurat did not run
    text = (tmp_path / "xmint-tonsil.md").read_text(encoding="utf-8")
    assert "the values mean nothing" in text and str(made.statements[2]) in text
    table = pd.read_parquet(tmp_path / "xmint-tonsil.parquet")
    assert medians_of(table).loc["spage[n_pv=5]", 10] == pytest.approx(
        table[table["model"].str.startswith("spage") & (table["m"] == 10)]["value"].median()
    )
    assert (tmp_path / "xmint-tonsil-genes.svg").stat().st_size > 1000
