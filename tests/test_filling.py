"""Completion and imputation as a user calls them: what is written, what is matched, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import anndata
import numpy as np
import pytest

from histoweave import _keys as K
from histoweave.data.phantom import Phantom
from histoweave.data.section import Cohort, Section
from histoweave.filling import complete, impute, match_genes
from histoweave.settings import CompleteSettings, ImputeSettings


def part(section: Section, genes: list[str], **changes: str) -> Section:
    return replace(section.with_spots(section.spots[:, genes].copy()), **changes)


def test_completed_sections_are_written_whole(small: Phantom, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "completed.h5ad"
    how = CompleteSettings(method="median", panel="top-mean:10", store=str(tmp_path / "store"), threads=1)
    made = complete(small.cohort, out, how)
    read = anndata.read_h5ad(out)
    assert np.array_equal(read.X, made.X) and read.shape == (small.cohort.n, 10)
    assert set(read.layers) == {K.MEASURED, K.COUNTS}
    assert (read.layers[K.COUNTS].toarray()[read.layers[K.MEASURED].toarray()] > 0).all()
    assert "log" in read.uns[K.UNS]["units"] or "ln" in read.uns[K.UNS]["units"]
    assert [path.name for path in out.parent.iterdir()] == ["completed.h5ad"]


@pytest.mark.parametrize(
    ("method", "says"), [("ridge", "does not complete; those that do: zero"), ("medain", "did you mean 'median'")]
)
def test_what_does_not_complete_is_refused_before_anything_is_written(
    method: str, says: str, small: Phantom, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=says):
        complete(small.cohort, tmp_path / "out.h5ad", CompleteSettings(method=method, panel="top-mean:10", threads=1))
    with pytest.raises(ValueError, match=r"not a \.h5ad file"):
        complete(small.cohort, tmp_path / "out.csv", CompleteSettings(threads=1))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "method", ["ridge-expression", "knn-expression[k=5]", "xmint[width=16,layers=1,heads=2,expansion=2,stem=4]"]
)
def test_genes_are_imputed_from_other_sections(method: str, small: Phantom, tmp_path: Path) -> None:
    genes = list(small.cohort[0].genes)
    target = Cohort([part(small.cohort[2], genes[:9])])
    how = ImputeSettings(method=method, recipe="tiny", store=str(tmp_path / "store"), threads=1)
    made, matched = impute(target, small.cohort[:2], tmp_path / "imputed.h5ad", how)
    assert matched.shared == tuple(genes[:9]) and list(made.var_names) == genes[9:] and not matched.unknown
    assert np.isfinite(made.X).all() and made.n_obs == target.n
    read = anndata.read_h5ad(tmp_path / "imputed.h5ad")
    assert np.array_equal(read.X, made.X) and read.uns[K.UNS]["units"]
    if "ridge" not in method:
        spread = np.asarray(read.layers[K.SPREAD])
        assert np.isnan(spread).all() if "xmint" in method else (spread >= 0).all()  # one sequence holds a region here


def test_wanted_genes_and_genes_of_the_target_alone(small: Phantom) -> None:
    genes = list(small.cohort[0].genes)
    origin = Cohort([part(small.cohort[0], genes[2:])])
    matched = match_genes(origin, Cohort([part(small.cohort[2], genes[:6])]), f"{genes[9]},{genes[7]}")
    assert matched.shared == tuple(genes[2:6]) and matched.imputed == (genes[9], genes[7])
    assert matched.unknown == tuple(genes[:2])
    with pytest.raises(ValueError, match=genes[3]):
        match_genes(origin, Cohort([part(small.cohort[2], genes[:6])]), genes[3])


def test_names_that_differ_in_case_are_told(small: Phantom) -> None:
    lower = small.cohort[2].spots[:, :6].copy()
    lower.var_names = [name.lower() for name in lower.var_names]
    with pytest.raises(ValueError, match="agree if case is ignored"):
        match_genes(small.cohort[:2], Cohort([small.cohort[2].with_spots(lower)]))


def test_nothing_to_impute_is_told(small: Phantom) -> None:
    with pytest.raises(ValueError, match="there is nothing to impute"):
        match_genes(small.cohort[:2], small.cohort[2:])
    with pytest.raises(ValueError, match=r"'ridge' does not impute\. Known: gene-mean"):
        impute(
            Cohort([part(small.cohort[2], list(small.cohort[2].genes[:5]))]), small.cohort[:2], None,
            ImputeSettings(method="ridge", threads=1),
        )  # fmt: skip
