"""What a section refuses, and what the error says; what a cohort offers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import sparse

from histoweave.data.image import SlideImage
from histoweave.data.section import Cohort, SectionError, make_section

WHITE = SlideImage.from_array(np.full((100, 120, 3), 255, dtype=np.uint8), um_per_px=1.0)


def given(**changes: Any) -> dict[str, Any]:
    """Arguments of a good section, with changes."""
    good: dict[str, Any] = {
        "id": "A1", "patient": "A", "counts": np.arange(12).reshape(4, 3), "genes": ["GNAS", "gnas", "ERBB2"],
        "xy": np.array([[10, 10], [30, 10], [10, 30], [30, 30]]), "platform": "st", "um_per_px": 1.0, "image": WHITE,
        "array_rc": np.array([[0, 0], [0, 1], [1, 0], [1, 1]]),
    }  # fmt: skip
    return good | changes


def test_a_good_section() -> None:
    section = make_section(**given())
    assert section.n == 4 and list(section.genes) == ["GNAS", "gnas", "ERBB2"]  # case and order are kept
    assert sparse.issparse(section.spots.X) and section.library.tolist() == [3.0, 12.0, 21.0, 30.0]
    assert section.counts(["ERBB2", "GNAS"]).toarray().tolist() == [[2, 0], [5, 3], [8, 6], [11, 9]]


def test_hidden_counts_are_not_zeros() -> None:
    section = make_section(**given(counts=None, genes=()))
    assert section.spots.n_vars == 0 and np.isnan(section.library).all()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"counts": np.full((4, 3), -1)}, r"negative .*smallest -1.*raw counts"),
        ({"counts": np.full((4, 3), 0.5)}, r"not integers .*0\.5.*not normalised"),
        ({"counts": np.where(np.eye(4, 3), np.nan, 1.0)}, r"3 counts are NaN"),
        ({"counts": np.ones((4, 2))}, r"shape \(4, 2\).*4 positions and 3 gene names"),
        ({"genes": ["A", "B", "A"]}, r"duplicate gene names 'A'"),
        ({"names": ["s", "s", "t", "u"]}, r"duplicate spot names 's'"),
        ({"names": ["s"]}, r"1 spot names .* 4 positions"),
        ({"xy": np.zeros((0, 2)), "counts": np.zeros((0, 3)), "array_rc": None}, r"is empty"),
        ({"xy": np.array([[10, 10], [30, 10], [10, 30], [130, 30]])}, r"1 of 4 spots lie outside .*120 × 100.*'3'"),
        ({"xy": np.array([[10, 10], [30, np.nan], [10, 30], [30, 30]])}, r"without a finite position: '1'"),
        ({"xy": np.zeros((4, 3))}, r"shape \(4, 3\); expected \(spots, 2\)"),
        ({"array_rc": np.zeros((4, 2), int)}, r"share a lattice position"),
        ({"array_rc": np.full((4, 2), 0.5)}, r"expected integers"),
        ({"um_per_px": 1e6}, r"expected a number between"),
        ({"platform": "slideseq"}, r"platform 'slideseq' is unknown"),
    ],
)
def test_bad_content_is_named(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(SectionError, match=says):
        make_section(**given(**changes))


def test_unknown_scale_says_how_to_give_it() -> None:
    blind = SlideImage.from_array(np.full((100, 120, 3), 255, dtype=np.uint8))
    with pytest.raises(SectionError, match=r"--mpp 0\.5.*samples\.csv.*um_per_px="):
        make_section(**given(um_per_px=None, image=blind))
    assert make_section(**given(um_per_px=None)).um_per_px == 1.0  # the image's own


def test_a_missing_gene_is_named() -> None:
    with pytest.raises(KeyError, match="no gene 'TP53'"):
        make_section(**given()).counts(["TP53"])


def test_cohort() -> None:
    a, b = (
        make_section(**given()),
        make_section(**given(id="B1", patient="B", genes=["ERBB2", "GNAS", "X"], image=None)),
    )
    cohort = Cohort([a, b])
    assert cohort.patients == ("A", "B") and cohort.n == 8 and cohort["B1"] is b
    assert cohort.genes() == ("GNAS", "ERBB2") and cohort.genes("union") == ("GNAS", "gnas", "ERBB2", "X")
    assert cohort.with_image().ids == ("A1",)
    joined = cohort.to_anndata()
    assert joined.shape == (8, 4) and joined.obs["patient"].tolist() == ["A"] * 4 + ["B"] * 4
    assert joined[:, "X"].X[:4].sum() == 0
    with pytest.raises(SectionError, match="duplicate section ids 'A1'"):
        Cohort([a, a])
    with pytest.raises(KeyError, match="no section 'Z'"):
        cohort.subset(["Z"])
