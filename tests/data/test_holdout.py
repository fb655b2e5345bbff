"""What a holdout draws and shows: the same for equal counts, however they are stored, and nothing beside them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import sparse

from histoweave import _keys as K
from histoweave.data.holdout import Entries, Hide, Holdout, Thin, parse_hide
from histoweave.data.section import Cohort, Section, make_section
from histoweave.data.split import Split

N, G = 30, 8
COUNTS = np.random.default_rng(1).poisson(1.5, (N, G)).astype(np.float32)
SPLIT = Split(train=("b",), test=("a",))


def section(counts: Any, id: str = "a", **obs: Any) -> Section:
    xy = np.column_stack([np.arange(N) * 10.0, np.zeros(N)])
    return make_section(
        id=id, patient=id, counts=counts, genes=[f"g{i}" for i in range(G)], xy=xy, platform="visium", um_per_px=None,
        array_rc=np.column_stack([np.zeros(N, int), 2 * np.arange(N)]), obs=obs,
    )  # fmt: skip


def stored(how: str) -> sparse.csr_matrix:
    """The counts with zeros among the stored values, in descending order within a spot, or in two parts per entry."""
    rows, columns = np.nonzero(np.ones_like(COUNTS))
    if how == "zeros":
        return sparse.csr_matrix((COUNTS.ravel(), (rows, columns)), shape=COUNTS.shape)
    plain = sparse.csr_matrix(COUNTS)
    if how == "twice":
        half = np.repeat(plain.data, 2) * np.tile([0.0, 1.0], plain.nnz).astype(np.float32)
        return sparse.csr_matrix((half, np.repeat(plain.indices, 2), 2 * plain.indptr), shape=COUNTS.shape)
    order = np.lexsort((-plain.indices, np.repeat(np.arange(N), np.diff(plain.indptr))))
    return sparse.csr_matrix((plain.data[order], plain.indices[order], plain.indptr), shape=COUNTS.shape)


@pytest.mark.parametrize("how", ["zeros", "descending", "twice"])
@pytest.mark.parametrize("hide", [Entries(0.4), Entries(0.4, of="all"), Thin(0.4)])
def test_what_is_drawn_does_not_depend_on_how_counts_are_stored(how: str, hide: Hide) -> None:
    holdout = Holdout(SPLIT, hide)
    other = stored(how)
    assert (other.toarray() == COUNTS).all()
    plain, same = section(COUNTS), section(other)
    kept = same.spots.X.copy()
    hidden = holdout.hidden(same).toarray()
    assert (hidden == holdout.hidden(plain).toarray()).all() and hidden.any()
    assert not hidden[COUNTS == 0].any()
    assert (holdout.held(same).toarray() == holdout.held(plain).toarray()).all()
    assert (same.spots.X.data == kept.data).all() and (same.spots.X.indices == kept.indices).all()
    if isinstance(hide, Entries):
        garbled = holdout.garble(Cohort([same, section(COUNTS, "b")]))[0]
        a, b = holdout.shown(Cohort([same]))[0], holdout.shown(Cohort([garbled]))[0]
        assert (a.spots.X != b.spots.X).nnz == 0 and (a.spots.layers[K.HIDDEN] != b.spots.layers[K.HIDDEN]).nnz == 0


@pytest.mark.parametrize("hide", [Entries(0.4), Thin(0.4)])
def test_what_was_computed_from_counts_is_not_shown(hide: Hide) -> None:
    given = section(COUNTS, first_gene=COUNTS[:, 0], **{K.SIZE_FACTOR: np.ones(N)})
    shown = Holdout(SPLIT, hide).shown(Cohort([given]))[0].spots.obs
    size = [K.SIZE_FACTOR] if isinstance(hide, Entries) else []
    assert sorted(shown) == sorted([K.ROW, K.COL, K.LIBRARY, *size])
    assert "first_gene" in given.spots.obs
    if isinstance(hide, Entries):
        assert (shown[K.LIBRARY] == COUNTS.sum(axis=1)).all()
        both = Cohort([given, section(COUNTS, "b")])
        assert (Holdout(SPLIT, hide).garble(both)[0].spots.obs["first_gene"] != COUNTS[:, 0]).all()
    else:
        assert (shown[K.LIBRARY] < COUNTS.sum(axis=1)).any()


@pytest.mark.parametrize("genes", [(), ("A",)])
def test_too_few_genes_in_common_to_hide_some_are_told(genes: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=rf"genes:first:1': the sections have {len(genes)} genes in common; expected 2"):
        parse_hide("genes:first:1", genes)
