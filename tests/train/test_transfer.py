"""Imputers around reference sections: totals, genes that are asked for, and sequences that hold every cell."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from histoweave import _keys as K
from histoweave.data.image import SlideImage
from histoweave.data.phantom import Phantom
from histoweave.data.section import Cohort, Section
from histoweave.data.stains import StainedImage
from histoweave.feed._sequences import Regions, Sequencing
from histoweave.filling import impute, match_genes, reference
from histoweave.settings import ImputeSettings
from histoweave.train import Transfer, resolve


def part(section: Section, genes: list[str], **changes: str) -> Section:
    return replace(section.with_spots(section.spots[:, genes].copy()), **changes)


def sides(small: Phantom) -> tuple[Cohort, Cohort, list[str]]:
    genes = list(small.cohort[0].genes)
    return Cohort([part(small.cohort[2], genes[:8])]), small.cohort[:2], genes


@pytest.mark.parametrize("method", ["gene-mean", "knn-expression[k=3]", "ridge-expression", "spage[n_pv=4]", "pca-knn"])
def test_a_value_does_not_depend_on_what_else_is_imputed(method: str, small: Phantom) -> None:
    target, origin, genes = sides(small)
    whole, _ = impute(target, origin, None, ImputeSettings(method=method, threads=1))
    asked = [genes[11], genes[9]]
    some, _ = impute(target, origin, None, ImputeSettings(method=method, threads=1, genes=",".join([*asked, asked[0]])))
    assert list(some.var_names) == asked
    np.testing.assert_allclose(some.X, whole[:, asked].X, rtol=1e-5)
    assert ("spread" in whole.layers) == ("spread" in some.layers)


def test_totals_are_over_all_genes_of_the_reference(small: Phantom) -> None:
    target, origin, genes = sides(small)
    made = Transfer("gene-mean", genes=[genes[10]]).fit(origin).predict(target)
    counts = np.concatenate([s.spots.X.toarray() for s in origin]).astype(np.float64)
    kept = counts.sum(axis=1) > 0
    plain = np.log1p(1e4 * counts[kept, 10] / counts[kept].sum(axis=1)).mean()
    np.testing.assert_allclose(np.asarray(made.X), plain, rtol=1e-6)


def test_the_file_says_what_matched_and_what_differs_in_case(small: Phantom, tmp_path: Path) -> None:
    target, origin, genes = sides(small)
    table = target[0].spots.copy()
    table.var_names = [genes[0].lower(), *genes[1:8]]
    here = Cohort([target[0].with_spots(table)])
    _, matched = impute(here, origin, tmp_path / "o.h5ad", ImputeSettings(method="gene-mean", threads=1))
    assert matched.alike == (genes[0].lower(),) and "but for case" in str(matched)
    read = anndata.read_h5ad(tmp_path / "o.h5ad").uns[K.UNS]
    assert list(read["shared"]) == genes[1:8] and list(read["unknown"]) == [genes[0].lower()]
    assert match_genes(origin, target).alike == ()


def test_a_share_of_a_single_gene_is_refused(small: Phantom) -> None:
    target, origin, genes = sides(small)
    with pytest.raises(ValueError, match="alone every share is 1"):
        impute(target, origin, None, ImputeSettings(method="xmint[image=off]", genes=genes[9], threads=1))


def test_types_of_a_reference_are_taken_only_where_all_cells_have_one(tmp_path: Path) -> None:
    for name, types in (("good", ["A", "B", "A"]), ("gap", ["A", None, "B"]), ("one", ["A", "A", "A"]), ("none", None)):
        obs = (
            pd.DataFrame(index=list("xyz")) if types is None else pd.DataFrame({"cell_type": types}, index=list("xyz"))
        )
        cells = sparse.csr_matrix(np.arange(1, 7, dtype=np.float32).reshape(3, 2))
        anndata.AnnData(cells, obs=obs, var=pd.DataFrame(index=["G", "H"])).write_h5ad(tmp_path / f"{name}.h5ad")
        assert (K.GROUP in reference(tmp_path / f"{name}.h5ad")[0].spots.obs) == (name == "good")
        assert K.GROUP not in reference(tmp_path / f"{name}.h5ad", "")[0].spots.obs
    with pytest.raises(ValueError, match="1 of 3 cells have no 'cell_type'"):
        reference(tmp_path / "gap.h5ad", "cell_type")


def test_every_cell_is_predicted_by_the_rule_of_the_paper_too(small: Phantom) -> None:
    cohort = small.cohort[:1]
    regions, rows = Regions(cohort, torch.device("cpu"), pixels=False), torch.arange(cohort.n)
    how = Sequencing(length=cohort.n - 3, repeats=1, rule="paper")
    assert sum(map(len, regions.sequences(rows, how, torch.Generator().manual_seed(0)))) <= 1
    seen = torch.cat([rows for rows, _ in regions.batches(rows, how, 4, None)])
    assert set(seen.tolist()) == set(range(cohort.n))
    none = Sequencing(length=10 * cohort.n, repeats=5, rule="paper")
    assert set(torch.cat([r for r, _ in regions.batches(rows, none, 4, None)]).tolist()) == set(range(cohort.n))
    with pytest.raises(ValueError, match="use rule=code"):
        list(regions.batches(rows, none, 4, torch.Generator()))


def test_sequences_of_a_prediction_are_drawn_always_alike_and_not_twice_from_the_same_cells(small: Phantom) -> None:
    cohort = Cohort([replace(small.cohort[0], um_per_px=None, image=None)])  # one region
    regions, rows = Regions(cohort, torch.device("cpu"), pixels=False), torch.arange(cohort.n)
    ((one,),) = regions.sequences(rows, Sequencing(cohort.n, 5), None)
    assert sorted(one.tolist()) == rows.tolist()
    how = Sequencing(length=cohort.n // 3, repeats=4)
    torch.manual_seed(1)
    (made,) = regions.sequences(rows, how, None)
    torch.manual_seed(2)
    (again,) = regions.sequences(rows, how, None)
    assert all(torch.equal(a, b) for a, b in zip(made, again, strict=True))
    together = [frozenset(s.tolist()) for s in made]
    assert len(set(together)) == len(together)
    # Cells that lie beside each other in the file would be together in every pass.
    assert all(max(s.unique()) - min(s.unique()) >= how.length for s in made)
    assert sum(map(len, made)) == how.occurrences(cohort)


def test_a_cell_of_one_sequence_has_no_spread(small: Phantom) -> None:
    target, origin, _ = sides(small)
    cells, target = target[0].n, Cohort([replace(target[0], um_per_px=None, image=None)])  # one region
    how = "xmint[width=8,layers=1,heads=2,expansion=1,image=off,repeats={},length={}]"
    for repeats, length, told in ((5, 2 * cells, False), (3, 4, True)):
        method = how.format(repeats, length)
        made, _ = impute(target, origin, None, ImputeSettings(method=method, recipe="tiny", threads=1))
        spread = np.asarray(made.layers[K.SPREAD])
        assert np.isfinite(made.X).all() and (np.isfinite(spread).mean() > 0.9 if told else np.isnan(spread).all())


def test_channels_are_those_of_the_image_and_its_stains(small: Phantom) -> None:
    target, origin, _ = sides(small)
    with pytest.raises(ValueError, match=r"has 3 channels, its own three and 0 further stains, and the model reads 4"):
        impute(target, origin, None, ImputeSettings(method="xmint[channels=4]", recipe="tiny", threads=1))
    with pytest.raises(ValueError, match="channels=2: a slide image has 3"):
        impute(target, origin, None, ImputeSettings(method="xmint[channels=2]", recipe="tiny", threads=1))
    assert resolve("xmint[channels=4,image=off]", "tiny").sequencing.channels == 3


def test_a_further_stain_reaches_the_model(small: Phantom) -> None:
    target, origin, _ = sides(small)
    made = []
    for seed in (0, 1):
        rng = np.random.default_rng(seed)
        both = []
        for cohort in (target, origin):
            stained = [StainedImage(s.image, [picture(s.image.size, rng)]) for s in cohort]
            both.append(Cohort(replace(s, image=image) for s, image in zip(cohort, stained, strict=True)))
        how = ImputeSettings(method="xmint[channels=4]", recipe="tiny", threads=1)
        made.append(impute(both[0], both[1], None, how)[0].X)
    assert np.isfinite(made[0]).all() and not np.array_equal(made[0], made[1])


def picture(size: tuple[int, int], rng: np.random.Generator) -> SlideImage:
    """Noise of that size."""
    return SlideImage.from_array(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))


def test_a_transfer_that_trains_does_not_say_how_many_parameters() -> None:
    assert [Transfer(model).describe()["parameters"] for model in ("gimvi", "tangram", "spage")] == [None, None, 0]


def test_a_model_with_the_rule_of_the_paper_predicts_all_cells_in_order(small: Phantom) -> None:
    target, origin, _ = sides(small)
    how = "xmint[width=8,layers=1,heads=2,expansion=1,image=off,rule=paper,repeats=1,length=3]"
    made, _ = impute(target, origin, None, ImputeSettings(method=how, recipe="tiny", threads=1))
    assert list(made.obs_names) == [f"{target[0].id}/{name}" for name in target[0].spots.obs_names]
    np.testing.assert_allclose(np.asarray(made.X).sum(axis=1), 1, atol=1e-4)
