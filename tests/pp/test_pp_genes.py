"""Gene panels and filters: against scanpy, dense formulas, and by their rules."""

import hashlib
import json

import numpy as np
import pytest
import scanpy as sc
from anndata import AnnData
from scipy import sparse
from scipy.stats import rankdata

from histoweave.data.section import Cohort, make_section
from histoweave.pp import GenePanel, Target, gene_mask, grid8, morans_i, select_panel, spot_mask

GENES = tuple(f"g{i}" for i in range(60))
RC = np.array([(r, c) for r in range(8) for c in range(9)])


def section(id, seed, genes=GENES, empty=()):
    rng = np.random.default_rng(seed)
    level = rng.permutation(np.geomspace(0.02, 30, len(genes)))
    wave = 1 + 0.9 * np.sin(RC[:, :1] * rng.uniform(0, 1, len(genes)) * 2)
    counts = rng.negative_binomial(2, 2 / (2 + level * wave))
    counts[:, 0] = 0  # never seen
    counts[list(empty)] = 0
    return make_section(id=id, patient=id[0], counts=counts, genes=genes, xy=RC[:, ::-1] * 100.0 + 50, platform="st",
                        um_per_px=1.0, array_rc=RC)


@pytest.fixture
def cohort():
    return Cohort([section("a1", 1, empty=(3, 40)), section("a2", 2), section("b1", 3)])


def stacked(cohort):
    counts = np.concatenate([s.counts(GENES).toarray() for s in cohort]).astype(np.float64)
    library = np.concatenate([s.library for s in cohort])
    cpm = np.log1p(counts / np.where(library > 0, library, 1)[:, None] * 1e6)
    return counts, cpm


def names(score, wanted):
    return tuple(GENES[i] for i in np.argsort(-score, kind="stable")[:wanted])


def test_top_mean_and_rank_sum(cohort):
    counts, cpm = stacked(cohort)
    assert select_panel(cohort, "top-mean:20", GENES).genes == names(counts.mean(axis=0), 20)
    score = rankdata(cpm.mean(axis=0).round(12)) + rankdata(cpm.var(axis=0, ddof=1).round(12))
    assert select_panel(cohort, "rank-sum:20", GENES).genes == names(score, 20)
    score = rankdata(counts.mean(axis=0).round(12)) + rankdata(counts.var(axis=0, ddof=1).round(12))
    assert select_panel(cohort, "rank-sum-raw:20", GENES).genes == names(score, 20)


def test_ties_keep_the_order_of_the_candidates():
    flat = make_section(id="a", patient="p", counts=np.ones((4, 3)), genes=["x", "y", "z"], xy=RC[:4] * 9.0,
                        platform="st", um_per_px=1.0, array_rc=RC[:4])
    for recipe in ("top-mean:2", "rank-sum:2", "hvg:2", "moran:2"):
        assert select_panel(Cohort([flat]), recipe, ("z", "x", "y")).genes == ("z", "x")


def test_hvg_of_one_section_equals_scanpy():
    one = section("a1", 7)
    table = AnnData(one.counts(GENES).astype(np.float32))
    table.var_names = list(GENES)
    sc.pp.normalize_total(table, target_sum=1e4)
    sc.pp.log1p(table)
    sc.pp.highly_variable_genes(table, flavor="seurat", n_top_genes=15)
    ranked = table.var["dispersions_norm"].sort_values(ascending=False, kind="stable")
    ours = select_panel(Cohort([one]), "hvg:15", GENES).genes
    assert set(ours) == set(table.var_names[table.var["highly_variable"]])
    assert list(ours) == list(ranked.index[:15])


def moran_dense(values, rc):
    """The textbook formula over a dense matrix of weights."""
    weights = (np.abs(rc[:, None] - rc[None]).max(axis=2) == 1).astype(float)
    size = weights.sum(axis=1, keepdims=True)
    weights = np.divide(weights, size, out=np.zeros_like(weights), where=size > 0)
    z = values - values.mean(axis=0)
    with np.errstate(invalid="ignore"):
        return len(values) / weights.sum() * np.einsum("ij,ig,jg->g", weights, z, z) / (z**2).sum(axis=0)


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix, sparse.csc_array])
def test_moran_equals_the_dense_formula(form, monkeypatch):
    monkeypatch.setattr("histoweave.pp.genes._CHUNK", 1)  # several chunks
    keep = np.r_[0:50, 71]  # with a spot that has no neighbour
    values = np.random.default_rng(0).poisson(1.0, size=(len(keep), 21)).astype(float)
    values[:, 5] = 2.0
    got = morans_i(form(values), grid8(RC[keep]))
    expected = moran_dense(values, RC[keep])
    assert np.isnan(got[5])
    rest = np.arange(21) != 5
    np.testing.assert_allclose(got[rest], expected[rest], atol=1e-12)


@pytest.mark.slow  # scanpy compiles its kernel for this
def test_moran_equals_scanpy():
    values = np.random.default_rng(1).normal(size=(len(RC), 6))
    nbr = grid8(RC)
    graph = np.zeros((len(RC), len(RC)))
    for i, row in enumerate(nbr):
        graph[i, row[row >= 0]] = 1 / (row >= 0).sum()
    theirs = sc.metrics.morans_i(sparse.csr_matrix(graph), values.T)
    np.testing.assert_allclose(morans_i(values, nbr), theirs, atol=1e-10)


@pytest.mark.slow  # squidpy compiles its kernel for this
@pytest.mark.filterwarnings("ignore")  # squidpy's own
def test_moran_equals_squidpy():
    squidpy = pytest.importorskip("squidpy")
    values, nbr = np.random.default_rng(1).gamma(1.0, size=(len(RC), 6)), grid8(RC)
    row, place = np.nonzero(nbr >= 0)
    graph = sparse.csr_matrix((np.ones(len(row)), (row, nbr[row, place])), shape=(len(RC), len(RC)))
    table = AnnData(values, obsp={"spatial_connectivities": graph, "spatial_distances": graph})
    table.uns["spatial_neighbors"] = {}
    squidpy.gr.spatial_autocorr(table, mode="moran", n_perms=None, corr_method=None, show_progress_bar=False)
    theirs = table.uns["moranI"].loc[table.var_names, "I"].to_numpy()
    np.testing.assert_allclose(morans_i(values, nbr), theirs, atol=1e-6)


def test_moran_panel_is_the_mean_over_sections(cohort):
    score = np.zeros(len(GENES))
    for s in cohort:
        counts, library = s.counts(GENES).toarray(), s.library
        cpm = np.log1p(counts / np.where(library > 0, library, 1)[:, None] * 1e6)
        score += np.nan_to_num(moran_dense(cpm, s.array_rc)) / len(cohort)
    assert select_panel(cohort, "moran:12", GENES).genes == names(score, 12)
    assert np.isnan(morans_i(np.eye(3), np.full((3, 2), -1))).all()


def test_the_order_of_sections_and_the_other_sections_do_not_matter(cohort):
    for recipe in ("top-mean:9", "rank-sum:9", "hvg:9", "moran:9"):
        panel = select_panel(cohort, recipe, GENES)
        assert select_panel(Cohort(reversed(cohort)), recipe, GENES).genes == panel.genes
        assert panel.trained_on == ("a1", "a2", "b1")
        assert panel.recipe == recipe
        alone = select_panel(cohort.subset(["b1"]), recipe, GENES)
        assert alone.trained_on == ("b1",)


def test_list_and_digest():
    train = Cohort([section("a1", 1)])
    panel = select_panel(train, "list: g5, g2", GENES)
    assert panel.genes == ("g5", "g2")
    assert panel.trained_on == ()
    assert panel.digest == hashlib.sha256(b'["g5", "g2"]').hexdigest()
    assert panel.digest != GenePanel(("g2", "g5"), "list").digest
    assert GenePanel.from_dict(json.loads(json.dumps(panel.to_dict()))) == panel
    np.testing.assert_array_equal(panel.columns(["g2", "x"]), [-1, 0])
    assert len(panel) == 2


def test_union_takes_missing_genes_as_zero(cohort):
    short = section("b1", 3, genes=GENES[:40])
    mixed = Cohort([cohort[0], short])
    with pytest.raises(ValueError, match=r"section 'b1' lacks 20 of 60 candidate genes \('g40'"):
        select_panel(mixed, "top-mean:5", GENES)
    filled = np.zeros((len(RC), 60))
    filled[:, :40] = short.counts(GENES[:40]).toarray()
    score = np.concatenate([cohort[0].counts(GENES).toarray(), filled]).mean(axis=0)
    assert select_panel(mixed, "top-mean+union:25", GENES).genes == names(score, 25)
    for recipe in ("rank-sum+union:5", "hvg+union:5", "moran+union:5"):
        assert len(select_panel(mixed, recipe, GENES)) == 5
    bare = make_section(id="c", patient="c", counts=None, genes=[], xy=RC * 5.0, platform="st", um_per_px=1.0)
    with pytest.raises(ValueError, match="section 'c' lacks 60 of 60"):
        select_panel(Cohort([bare]), "top-mean+union:5", GENES)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("top-men:5", "did you mean 'top-mean'"),
        ("top-mean", "says no count"),
        ("list:", "says no names"),
        ("list: , ", "is empty"),
        ("top-mean:0", "1 or more"),
        ("top-mean:-3", "1 or more"),
        ("top-mean:many", "1 or more"),
        ("top-mean:61", "more genes than the 60 candidates"),
        ("top-mean+all:5", r"'\+all' is not understood"),
        ("list+union:g1", "goes with top-mean"),
        ("list:g1,nope", "'nope' are not among"),
        ("list:g1,g1", "'g1'; name each once"),
    ],
)
def test_unreadable_recipes(cohort, recipe, message):
    with pytest.raises(ValueError, match=message):
        select_panel(cohort, recipe, GENES)


def test_bad_candidates_and_no_sections(cohort):
    with pytest.raises(ValueError, match="the candidates name genes twice"):
        select_panel(cohort, "top-mean:1", ("g1", "g1"))
    with pytest.raises(ValueError, match="there are none"):
        select_panel(Cohort([]), "top-mean:1", GENES)


def test_panel_and_target_join(cohort):
    panel = select_panel(cohort, "top-mean:10", GENES)
    target = Target.preset("triplex-paper")
    for s in cohort:
        y, ok = target.transform(s.counts(panel.genes), s.library, target.neighbors(s.array_rc))
        assert y.shape == (s.n, 10)
        assert np.isfinite(y).all()
        assert (~ok).sum() == (2 if s.id == "a1" else 0)


def test_spot_filter(cohort):
    counts = cohort[0].spots.X
    dense = counts.toarray()
    expected = (dense.sum(1) >= 200) & (dense.sum(1) <= 400) & ((dense > 0).sum(1) >= 30)
    got = spot_mask(counts, min_counts=200, max_counts=400, min_genes=30)
    np.testing.assert_array_equal(got, expected)
    assert 0 < got.sum() < len(got)
    np.testing.assert_array_equal(spot_mask(dense, min_counts=1), dense.sum(1) > 0)
    with pytest.raises(ValueError, match="no spot can pass"):
        spot_mask(counts, min_counts=5, max_counts=4)
    with pytest.raises(ValueError, match="1 dimensions"):
        spot_mask(np.ones(4))


def test_gene_filter(cohort):
    counts, _ = stacked(cohort)
    each = np.array([(s.counts(GENES).toarray() > 0).mean(axis=0) for s in cohort]).min(axis=0)
    seen = (counts > 0).mean(axis=0)
    got = gene_mask(cohort, GENES, min_counts=30, min_fraction=0.2, min_fraction_each=0.1)
    np.testing.assert_array_equal(got, (counts.sum(axis=0) >= 30) & (seen >= 0.2) & (each >= 0.1))
    assert 0 < got.sum() < 60
    assert gene_mask(cohort, GENES).all()
    with pytest.raises(ValueError, match="min_fraction=2"):
        gene_mask(cohort, GENES, min_fraction=2)
    with pytest.raises(ValueError, match="lacks 1 of 1"):
        gene_mask(cohort, ["nope"])
