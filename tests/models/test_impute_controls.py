"""Controls against scikit-learn, Harmony's correction, the table of imputers, and what they do with bad input."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.neighbors import NearestNeighbors
from tests.models.impute_counts import counts

from histoweave.models.impute import _IMPUTERS, create_imputer, imputer_class, list_imputers
from histoweave.models.impute._harmony import corrected
from histoweave.models.impute._imputed import EMPTY, Imputed, Pair, log_normalised
from histoweave.models.impute.controls import PENALTIES, ridge_gcv

OURS = ("gene-mean", "knn-expression[k=5]", "ridge-expression", "ridge-shares", "pca-knn[components=5,k=5,rounds=2]",
        "spage[n_pv=5,k=5]", "anchors[components=5,k_weight=5]")  # fmt: skip


def logs(table: np.ndarray) -> np.ndarray:
    """ln(1 + counts per 10,000)."""
    return np.log1p(1e4 * table / table.sum(1, keepdims=True))


# -- values ---------------------------------------------------------------------------------------------------------


def test_gene_mean() -> None:
    reference, seen = counts()
    made = create_imputer("gene-mean")(reference, seen)
    expected = logs(reference.toarray())[:, 15:]
    np.testing.assert_allclose(made.values, np.tile(expected.mean(0), (40, 1)), rtol=1e-6)
    np.testing.assert_allclose(made.spread, np.tile(expected.std(0), (40, 1)), rtol=1e-6)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_knn_expression(metric: str) -> None:
    reference, seen = counts()
    made = create_imputer(f"knn-expression[k=7,metric={metric}]")(reference, seen)
    r, s, values = logs(reference.toarray()[:, :15]), logs(seen.toarray()), logs(reference.toarray())[:, 15:]
    near = NearestNeighbors(n_neighbors=7, metric=metric, algorithm="brute").fit(r).kneighbors(s)[1]
    np.testing.assert_allclose(made.values, values[near].mean(1), rtol=1e-5)
    np.testing.assert_allclose(made.spread, values[near].std(1), rtol=1e-5)


def test_ridge_is_scikit_learns_at_the_penalty_of_least_gcv() -> None:
    reference, _ = counts(n=90, m=10, h=4)
    x, y = log_normalised(reference[:, :10]), log_normalised(reference)[:, 10:]
    coef, intercept, penalty = ridge_gcv(x, y)
    dense, target = x.toarray(), y.toarray()
    centred = dense - dense.mean(0)
    unit = np.trace(centred.T @ centred) / 10
    for gene in range(4):
        errors = []
        for relative in PENALTIES:
            inverse = np.linalg.inv(centred.T @ centred + relative * unit * np.eye(10))
            hat = centred @ inverse @ centred.T + 1 / 90
            left = target[:, gene] - hat @ target[:, gene]
            errors.append((left**2).mean() / (1 - np.trace(hat) / 90) ** 2)
        assert penalty[gene] == PENALTIES[int(np.argmin(errors))]
        fit = Ridge(alpha=penalty[gene] * unit).fit(dense, target[:, gene])
        np.testing.assert_allclose(coef[:, gene], fit.coef_, atol=1e-9)
        np.testing.assert_allclose(intercept[gene], fit.intercept_, rtol=1e-9)
        near = RidgeCV(alphas=np.array(PENALTIES) * unit).fit(dense, target[:, gene]).alpha_  # leave-one-out, not GCV
        assert abs(np.log10(near / unit / penalty[gene])) < 0.76


def test_ridge_expression_is_not_negative() -> None:
    """The hidden gene falls as the first shared one rises, and the second target cell has more of that than any."""
    shares = np.arange(10, 60, 5)
    reference = sparse.csr_matrix(np.stack([shares, 100 - shares, 60 * (shares < 40)], 1))
    seen = sparse.csr_matrix([[30, 70], [99, 1]])
    made = create_imputer("ridge-expression")(reference, seen)
    coef, intercept, _ = ridge_gcv(log_normalised(reference[:, :2]), log_normalised(reference)[:, 2:])
    expected = logs(seen.toarray()) @ coef + intercept
    assert expected[0, 0] > 0 > expected[1, 0]
    np.testing.assert_allclose(made.values, [[expected[0, 0]], [0]], rtol=1e-6)
    assert made.spread is None


def test_ridge_shares_learns_from_the_cells_that_have_other_genes() -> None:
    reference, seen = counts()
    table = reference.toarray()
    table[3, 15:] = 0
    made = create_imputer("ridge-shares")(sparse.csr_matrix(table), seen)
    table = np.delete(table, 3, axis=0)
    shares = table[:, 15:] / table[:, 15:].sum(1, keepdims=True)
    coef, intercept, _ = ridge_gcv(sparse.csr_matrix(logs(table[:, :15])), sparse.csr_matrix(shares))
    expected = np.maximum(logs(seen.toarray()) @ coef + intercept, 0)
    np.testing.assert_allclose(made.values, expected, rtol=1e-5, atol=1e-9)
    table[:, 15:] = 0
    with pytest.raises(ValueError, match="none of the 119 reference cells has a count of a gene that is not shared"):
        create_imputer("ridge-shares")(sparse.csr_matrix(table), seen)


def test_pca_knn_without_correction_is_neighbours_in_components() -> None:
    reference, seen = counts()
    made = create_imputer("pca-knn[components=4,k=6,rounds=0]")(reference, seen)
    both = np.vstack([logs(reference.toarray()[:, :15]), logs(seen.toarray())])
    z = (both - both.mean(0)) / both.std(0)
    places = z @ np.linalg.svd(z, full_matrices=False)[2][:4].T
    near = NearestNeighbors(n_neighbors=6, algorithm="brute").fit(places[:120]).kneighbors(places[120:])[1]
    np.testing.assert_allclose(made.values, logs(reference.toarray())[:, 15:][near].mean(1), rtol=1e-5)


def test_correction_takes_the_assay_away_and_leaves_the_types() -> None:
    rng = np.random.default_rng(0)
    types, assay = np.tile([0, 1, 2], 200), np.repeat([0, 1], 300)
    centres = np.eye(3, 6)[types] * 8
    z = centres + rng.normal(0, 0.5, (600, 6)) + assay[:, None] * np.array([0, 0, 0, 4, 0, 0])
    out, rounds = corrected(z, assay, seed=0, rounds=10)
    gap = np.stack([z[(types == t) & (assay == 1)].mean(0) - z[(types == t) & (assay == 0)].mean(0) for t in range(3)])
    left = np.stack(
        [out[(types == t) & (assay == 1)].mean(0) - out[(types == t) & (assay == 0)].mean(0) for t in range(3)]
    )
    assert 1 <= rounds <= 10
    assert np.linalg.norm(gap, axis=1).min() > 3.5
    assert np.linalg.norm(left, axis=1).max() < 0.6
    apart = np.linalg.norm(out[types == 0].mean(0) - out[types == 1].mean(0))
    np.testing.assert_allclose(apart, 8 * 2**0.5, rtol=0.1)
    np.testing.assert_array_equal(out, corrected(z, assay, seed=0, rounds=10)[0])


def test_correction_with_one_cluster_is_a_ridge_regression() -> None:
    """20 cells make one cluster, so every round takes off one regression of the coordinates on the assay."""
    rng = np.random.default_rng(1)
    assay = np.repeat([0, 1], [12, 8])
    z = rng.normal(size=(20, 3)) + 5 * assay[:, None]
    fit = Ridge(alpha=1.0).fit(np.eye(2)[assay], z)
    np.testing.assert_allclose(corrected(z, assay, seed=0, rounds=1)[0], z - np.eye(2)[assay] @ fit.coef_.T)


# -- the table, and bad input ---------------------------------------------------------------------------------------


def test_the_table() -> None:
    assert list_imputers() == list(_IMPUTERS)
    assert create_imputer("spage[n_pv=12]", k=3) == imputer_class("spage")(n_pv=12, k=3)
    for text, says in (
        ("spagee", "imputer 'spagee' is unknown; did you mean 'spage'"),
        ("spage[npv=3]", "imputer 'spage' has no argument 'npv'; did you mean 'n_pv'"),
        ("spage[n_pv=on]", "imputer 'spage': n_pv=True; expected a value of type int"),
        ("spage[n_pv=0]", "n_pv=0; expected a whole number of 1 or more"),
        ("knn-expression[metric=cosin]", "did you mean 'cosine'"),
    ):
        with pytest.raises(ValueError, match=says):
            create_imputer(text)


def check(made: Imputed, c: int, h: int) -> None:
    """Shapes, dtypes, and that all is finite."""
    for table in (made.values, made.spread):
        if table is not None:
            assert table.shape == (c, h) and table.dtype == np.float32 and np.isfinite(table).all()
    assert made.spread is None or (made.spread >= 0).all()
    assert all(isinstance(value, float) for value in made.notes.values())


@pytest.mark.parametrize("method", OURS)
def test_inputs_are_left_alone_and_reruns_agree(method: str) -> None:
    reference, seen = counts()
    copies = reference.copy(), seen.copy()
    made, again = (create_imputer(method)(reference, seen, seed=3) for _ in range(2))
    np.testing.assert_array_equal(made.values, again.values)
    for now, then in zip((reference, seen), copies, strict=True):
        assert now.dtype == then.dtype and (now != then).nnz == 0
    check(made, 40, 6)
    assert imputer_class(method.partition("[")[0]).card.task == "impute"


@pytest.mark.parametrize("method", OURS)
def test_empty_cells_get_the_mean_of_the_reference_and_change_no_other(method: str) -> None:
    reference, seen = counts()
    blank = sparse.csr_matrix((2, 15), dtype=seen.dtype)
    padded = sparse.vstack([blank, seen], format="csr")
    made, without = create_imputer(method)(reference, padded), create_imputer(method)(reference, seen)
    check(made, 42, 6)
    np.testing.assert_array_equal(made.values[2:], without.values)
    per = 1e6 if method.startswith("spage") else 1e4
    values = log_normalised(reference, per)[:, 15:].toarray()
    if not create_imputer(method).logarithmic:
        values = (shares := reference.toarray()[:, 15:]) / shares.sum(1, keepdims=True)
    np.testing.assert_allclose(made.values[:2], [values.mean(0)] * 2, rtol=1e-6)
    assert made.notes[EMPTY] == 2 and without.notes[EMPTY] == 0
    # An empty reference cell is no cell either.
    more = create_imputer(method)(sparse.vstack([reference, sparse.csr_matrix((3, 21))], format="csr"), seen)
    np.testing.assert_array_equal(more.values, without.values)


@pytest.mark.parametrize("method", OURS)
def test_constant_genes_stay_finite(method: str) -> None:
    reference, seen = counts()
    reference, seen = reference.tolil(), seen.tolil()
    reference[:, 2], seen[:, 4], reference[:, 16] = 0, 0, 0
    made = create_imputer(method)(reference.tocsr(), seen.tocsr())
    check(made, 40, 6)
    np.testing.assert_array_equal(made.values[:, 1], 0)


@pytest.mark.parametrize("method", OURS)
def test_one_target_cell_or_few_reference_cells(method: str) -> None:
    reference, seen = counts()
    few = create_imputer(method)(reference[:3], seen)
    check(few, 40, 6)
    values = log_normalised(reference[:3], 1e6 if method.startswith("spage") else 1e4)[:, 15:].toarray()
    if "k=5" in method:
        assert (few.values <= values.max(0) + 1e-5).all() and (few.values >= values.min(0) - 1e-5).all()
    for some, c in (((reference, seen[:1]), 1), ((reference[:1], seen), 40)):
        if method.startswith("anchors"):
            with pytest.raises(ValueError, match="do not vary together"):
                create_imputer(method)(*some)
        else:
            check(create_imputer(method)(*some), c, 6)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda r, s: (r, s[:, :0]), "no gene of the reference"),
        (lambda r, s: (r[:, :15], s), "15 genes and the target 15 of them; expected at least one more"),
        (lambda r, s: (r * 0, s), "none of the 120 reference cells has a count of any gene"),
        (lambda r, s: (r, s * 0), "none of the 40 target cells has a count of the 15 shared genes"),
        (lambda r, s: (-r, s), "counts of the reference are negative"),
        (lambda r, s: (r, s * np.nan), "counts of the target are negative, NaN"),
        (lambda r, s: (r.toarray(), s), "reference is a ndarray; expected raw counts as a scipy sparse matrix"),
    ],
)
def test_counts_that_do_not_fit(change: object, says: str) -> None:
    reference, seen = change(*counts())  # type: ignore[operator]
    for method in OURS:
        with pytest.raises(ValueError, match=says):
            create_imputer(method)(reference, seen)


def test_counts_in_any_order_of_columns() -> None:
    reference, seen = counts()
    mixed = reference.tocoo()
    shuffled = sparse.csr_matrix(reference.shape)
    shuffled.indptr = reference.indptr
    order = np.concatenate(
        [np.arange(a, b)[::-1] for a, b in zip(reference.indptr, reference.indptr[1:], strict=False)]
    )
    shuffled.indices, shuffled.data = reference.indices[order], reference.data[order].astype(float)
    assert not shuffled.has_sorted_indices
    pair = Pair.of(shuffled, seen)
    assert (pair.reference != mixed.tocsr()).nnz == 0 and pair.m == 15 and pair.h == 6
    assert not shuffled.has_sorted_indices
