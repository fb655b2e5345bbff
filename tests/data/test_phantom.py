"""The phantom keeps its promises: same bytes by seed, balanced genes, and structure that only the right view shows."""

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import cKDTree

from histoweave.data.phantom import Phantom, _suite_sections, phantom, phantom_like
from histoweave.data.phantom_render import STAINS
from histoweave.data.phantom_tissue import PARTS

COARSE = {"um_per_px": 12.5}  # enough for everything that does not look at pixels


@pytest.fixture(scope="module")
def cohort() -> Phantom:
    return phantom(n_patients=5, spots=(13, 13), seed=3, **COARSE)


@pytest.fixture(scope="module")
def fine() -> Phantom:
    return phantom(n_patients=1, spots=(8, 8), stain_shift=0.0, seed=5)


def pixels(truth: Phantom, at: int = 0) -> np.ndarray:
    return truth.cohort[at].image.thumbnail(100_000)


def pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    return (a * b).sum(axis=0) / np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))


def test_same_seed_same_bytes():
    first, again, other = (phantom(2, spots=(4, 4), um_per_px=8.0, seed=s) for s in (7, 7, 8))
    for a, b in zip(first.cohort, again.cohort, strict=True):
        assert a.image.digest == b.image.digest
        assert a.spots.X.tocsr().data.tobytes() == b.spots.X.tocsr().data.tobytes()
        assert a.xy.tobytes() == b.xy.tobytes()
        assert first.mean[a.id].tobytes() == again.mean[a.id].tobytes()
    assert first.cohort[0].image.digest != other.cohort[0].image.digest
    assert first.cohort[0].image.digest != first.cohort[1].image.digest
    assert first.genes.equals(other.genes), "the genes' rules belong to gene_seed, not to seed"
    assert not first.genes.equals(phantom(1, spots=(4, 4), um_per_px=12.5, gene_seed=1).genes)


def test_shape_of_a_cohort():
    truth = phantom(2, 2, spots=(6, 7), genes={"local": 12, "noise": 5}, um_per_px=5.0)
    assert [s.id for s in truth.cohort] == ["P1-1", "P1-2", "P2-1", "P2-2"]
    assert truth.families.value_counts().to_dict() == {"local": 12, "neighbourhood": 16, "global": 16, "noise": 5}
    for s in truth.cohort:
        assert s.genes.equals(truth.families.index)
        assert truth.mean[s.id].shape == (s.n, 49)
        assert 30 <= s.n <= 42
        np.testing.assert_array_equal(s.spots.obs["size_factor"], truth.size_factor[s.id])
        width, height = s.image.size
        margin_px = 1.25 * 200 / 5
        assert (s.xy >= margin_px).all()
        assert (s.xy <= np.array([width, height]) - margin_px).all()


def test_expected_library_is_constant_and_counts_follow_it(cohort):
    total = np.concatenate([m.sum(axis=1) for m in cohort.mean.values()])
    np.testing.assert_allclose(total, cohort.genes["mean"].sum(), rtol=1e-12)
    pairs = cohort.genes[cohort.genes["pair"] >= 0]
    assert (pairs.groupby(["family", "pair"])["gain"].sum() == 0).all()
    assert all((m > 0).all() for m in cohort.mean.values())
    for s in cohort.cohort:
        size = cohort.size_factor[s.id]
        ratio = s.library / (0.99 * total[0] * size)
        assert abs(ratio.mean() - 1) < 0.02
        counts = s.counts(cohort.genes.index).toarray()
        relative = counts / (0.99 * cohort.mean[s.id] * size[:, None])
        assert abs(relative.mean() - 1) < 0.02
        assert relative.var() > 0.06, "over-dispersed"


def test_oracle_is_ordered_and_blind_where_it_must_be(cohort):
    table = cohort.oracle_table()
    assert (table.loc["noise"] == 0).all()
    assert (table.loc["local"] > 0.6).all()
    assert np.ptp(table.loc["local"]) == 0
    assert table.loc[["neighbourhood", "global"], "spot"].abs().max() < 0.08
    assert table.loc["neighbourhood", "context"] == table.loc["neighbourhood", "section"]
    assert table.loc["neighbourhood", "section"] > 0.6
    assert 0.3 < table.loc["global", "context"] < table.loc["global", "section"] - 0.1
    assert 0.6 < table.loc["global", "section"] < 0.85


def test_spot_content_does_not_show_the_surroundings(cohort):
    hidden = ["immune_ring", "margin", "axis"]
    for s in cohort.cohort:
        own = cohort.own[s.id].drop(columns="tissue").to_numpy()
        r = np.corrcoef(np.c_[own, cohort.factors[s.id][hidden]], rowvar=False)[:5, 5:]
        assert np.abs(r).max() < 0.15
    # a flexible, independent predictor from the spot's own content, trained on the other sections
    for name in hidden:
        scores = []
        for s in cohort.cohort:
            rest = [t.id for t in cohort.cohort if t is not s]
            x = np.concatenate([cohort.own[i].to_numpy() for i in rest])
            y = np.concatenate([cohort.factors[i][name].to_numpy() for i in rest])
            near = cKDTree(x / x.std(axis=0)).query(cohort.own[s.id].to_numpy() / x.std(axis=0), k=40)[1]
            scores.append(pearson(y[near].mean(axis=1), cohort.factors[s.id][name].to_numpy()))
        assert abs(np.mean(scores)) < 0.1, name


def test_latents_are_what_the_surroundings_hold(cohort):
    """On the square lattice with tile = pitch the view's tiles are the neighbouring spots' own tiles."""
    s = cohort.cohort[0]
    own, seen = cohort.own[s.id], cohort.context[s.id]
    at = {tuple(rc): i for i, rc in enumerate(s.array_rc)}
    ring = [(r, c) for r in (-1, 0, 1) for c in (-1, 0, 1) if (r, c) != (0, 0)]
    full = [i for (r, c), i in at.items() if all((r + a, c + b) in at for a, b in ring)]
    assert len(full) > 80
    for part in ("lymphocyte", "fat", "nuclei"):
        by_hand = [np.mean([own[part].iloc[at[(r + a, c + b)]] for a, b in ring]) for r, c in s.array_rc[full]]
        np.testing.assert_allclose(seen[f"inner_{part}"].to_numpy()[full], by_hand, rtol=1e-6, atol=1e-9)
    areas = own[["gland", "tumour", "lymphocyte", "fat"]].sum(axis=1)
    assert (areas <= own["tissue"] + 1e-6).all()
    assert own["tissue"].between(0.93, 1 + 1e-6).all()


def test_neighbourhood_genes_follow_from_pixels_around_the_spot():
    """Dark pixels in the 24 tiles around predict the neighbourhood genes, those in the spot's own tile do not."""
    truth = phantom(2, spots=(12, 12), um_per_px=4.0, stain_shift=0.0, seed=2)
    side, inside, around = 50, [], []
    for i, s in enumerate(truth.cohort):
        dark = (pixels(truth, i)[..., 0] < 70).astype(float)
        tile = ndimage.uniform_filter(dark, side)
        view = (25 * ndimage.uniform_filter(dark, 5 * side) - tile) / 24
        x, y = np.floor(s.xy).astype(int).T
        factor = truth.factors[s.id]["immune_ring"].to_numpy()
        inside.append(np.corrcoef(tile[y, x], factor)[0, 1])
        around.append(np.corrcoef(view[y, x], factor)[0, 1])
    assert np.mean(around) > 0.45
    assert abs(np.mean(inside)) < 0.12


def test_noise_genes_and_size_factors_know_nothing_of_the_tissue(cohort):
    rng = np.random.default_rng(0)
    noise = (cohort.families == "noise").to_numpy()
    assert noise.sum() == 100
    observed, null = [], []
    values = cohort.target()
    for s in cohort.cohort:
        drive, y = cohort.factors[s.id].to_numpy(), values[s.id][:, noise]
        size = np.log(cohort.size_factor[s.id])
        assert np.abs(np.corrcoef(np.c_[drive, size], rowvar=False)[-1, :-1]).max() < 0.25
        for f in drive.T:
            observed.append((pearson(f[:, None], y) ** 2).mean())
            null.append([(pearson(rng.permutation(f)[:, None], y) ** 2).mean() for _ in range(60)])
    shared = np.mean(null, axis=0)  # explained share, squared so that signs cannot cancel, averaged as the observed one
    assert abs(np.mean(observed) - shared.mean()) < 4 * shared.std()


@pytest.mark.parametrize(("layout", "pitch"), [("st", 200.0), ("visium", 100.0), ("cells", 50.0)])
def test_layouts_have_their_pitch_in_um(layout, pitch):
    truth = phantom(1, layout=layout, spots=(8, 9), um_per_px=pitch / 40)
    s = truth.cohort[0]
    um = s.xy * s.um_per_px
    near = cKDTree(um).query(um, k=2)[0][:, 1]
    assert truth.window.um == pitch
    if layout == "cells":
        assert s.array_rc is None
        assert s.platform == "xenium"
        assert near.std() > 0.05 * pitch
        assert 0.3 * pitch < near.min()
        assert near.max() < 1.6 * pitch
        return
    np.testing.assert_allclose(near, pitch, rtol=1e-5)
    row, col = s.array_rc.T
    assert s.platform == layout
    assert len(set(zip(row, col, strict=True))) == s.n
    if layout == "visium":
        assert ((row + col) % 2 == 0).all()
        expected = np.c_[col * pitch / 2, row * pitch * np.sqrt(3) / 2]
        assert (np.bincount(cKDTree(um).query_ball_point(um, 1.01 * pitch, return_length=True)).argmax()) == 7
    else:
        expected = np.c_[col, row] * pitch
    np.testing.assert_allclose(um - um[0], expected - expected[0], atol=1e-3)


def test_default_pixel_sizes_differ_and_windows_are_whole_pixels():
    st = phantom(1, spots=(4, 4))
    assert st.cohort[0].um_per_px == pytest.approx(200 / 112)
    assert st.window.um / st.cohort[0].um_per_px == pytest.approx(112)
    np.testing.assert_array_equal(st.cohort[0].xy, np.rint(st.cohort[0].xy))


def test_orientation_differs_between_sections(cohort):
    """The slope of the adipose axis over the section points elsewhere in every section."""
    turns = []
    for s in cohort.cohort:
        xy = s.xy - s.xy.mean(axis=0)
        slope = np.linalg.lstsq(xy, cohort.factors[s.id]["axis"].to_numpy(), rcond=None)[0]
        turns.append(np.arctan2(*slope))
    assert np.ptp(np.sort(turns)) > 1.5
    assert np.diff(np.sort(turns)).min() > 1e-3


def test_stain_shift_changes_colours_and_nothing_else():
    plain, shifted, further = (phantom(2, spots=(5, 5), um_per_px=8.0, stain_shift=x) for x in (0.0, 1.0, 2.0))
    means = [[pixels(t, i).mean(axis=(0, 1)) for i in range(2)] for t in (plain, shifted, further)]
    away = [np.abs(np.subtract(m, means[0])).sum(axis=1) for m in means]
    assert (away[1] > 1).all()
    assert (away[2] > away[1]).all()
    assert np.ptp(means[0], axis=0).max() < np.ptp(means[1], axis=0).max()
    for a, b in zip(plain.cohort, further.cohort, strict=True):
        assert (a.spots.X != b.spots.X).nnz == 0
        assert np.array_equal(a.xy, b.xy)


def test_library_shift_and_dropout():
    spread = []
    for shift in (0.0, 2.0):
        truth = phantom(4, spots=(4, 4), um_per_px=12.5, library_shift=shift)
        spread.append(np.std([np.log(s.library).mean() for s in truth.cohort]))
    assert spread[0] < 0.15 < 0.3 < spread[1]
    zeros = [np.mean(phantom(1, spots=(6, 6), um_per_px=12.5, dropout=d).cohort[0].counts(["LOCAL001"]).toarray() == 0)
             for d in (0.0, 0.5)]
    assert zeros[0] < 0.1
    assert 0.25 < zeros[1] < 0.75


def test_colours_are_a_mixture_of_two_stains(fine):
    """Without shift, optical densities lie in the plane of the two stain vectors (Beer-Lambert), glass is white."""
    image = pixels(fine).astype(float)
    assert (image[:60, :60] > 235).all()
    s = fine.cohort[0]
    x, y = s.xy.astype(int).T
    tissue = image[y.min() : y.max(), x.min() : x.max()].reshape(-1, 3)
    density = -np.log10(np.clip(tissue, 1, None) / (255 * 0.965))
    density = density[(tissue > 12).all(axis=1) & (density.sum(axis=1) > 0.4)]
    normal = np.cross(*STAINS)
    off = np.abs(density @ normal / np.linalg.norm(normal)) / np.linalg.norm(density, axis=1)
    assert np.quantile(off, 0.95) < 0.06


def test_structures_look_like_what_they_are(fine):
    """Fat is bright, stroma pink, lymphocyte clusters darkest: from the pixels of the tiles that hold most of each."""
    s, image = fine.cohort[0], pixels(fine).astype(float)
    own = fine.own[s.id]
    own = own.assign(stroma=own["tissue"] - own[["gland", "tumour", "lymphocyte", "fat"]].sum(axis=1))
    tiles = {}
    for part in ("fat", "lymphocyte", "stroma", "gland", "tumour"):
        x, y = s.xy[own[part].to_numpy().argmax()].astype(int)
        tiles[part] = image[y - 56 : y + 56, x - 56 : x + 56].reshape(-1, 3)
    dark = {k: (v[:, 0] < 70).mean() for k, v in tiles.items()}
    white = {k: (v.min(axis=1) > 215).mean() for k, v in tiles.items()}
    assert white["fat"] > 0.3
    assert white["gland"] > 0.03
    assert max(white[k] for k in ("stroma", "lymphocyte")) < 0.02
    assert dark["lymphocyte"] > 0.15
    assert dark["lymphocyte"] > 4 * dark["stroma"]
    red, green, blue = tiles["stroma"].mean(axis=0)
    assert red > blue > green
    assert red - green > 40


def test_suite_shapes():
    shapes = {name: _suite_sections(f"triplex-{name}") for name in ("bc1", "bc2", "scc")}
    assert {k: (len(v), sum(map(len, v.values()))) for k, v in shapes.items()} == {
        "bc1": (8, 36), "bc2": (23, 68), "scc": (4, 12),
    }
    assert {"BC23209", "BC24223", "BC23944"} <= set(shapes["bc2"])
    truth = phantom_like("triplex-scc", spots=(4, 4), um_per_px=12.5)
    assert [s.patient for s in truth.cohort][::3] == ["P2", "P5", "P9", "P10"]
    assert len({s.id for s in truth.cohort}) == 12


def test_tile_may_differ_from_pitch():
    truth = phantom(2, layout="visium", spots=(22, 20), tile_um=200.0, um_per_px=12.5)
    table = truth.oracle_table()
    assert truth.window.um == 200.0
    assert abs(table.loc["neighbourhood", "spot"]) < 0.12 < 0.6 < table.loc["neighbourhood", "context"]


def test_oracle_takes_subsets_and_skips_missing_rows(cohort):
    names = ["GLOBAL001", "LOCAL002", "NOISE007"]
    values = {i: v[:, [cohort.genes.index.get_loc(g) for g in names]].copy() for i, v in cohort.target().items()}
    part, full = cohort.oracle(values, "section", names), cohort.oracle()
    np.testing.assert_allclose(part["pcc"], full.loc[names, "pcc"])
    values["P1-1"][:5] = np.nan
    assert np.isfinite(cohort.oracle(values, "context", names)["pcc"]).all()
    values["P2-1"][:, 1] = 1.0  # a constant truth is left out of the mean, not counted as 0
    assert cohort.oracle(values, "section", names).loc["LOCAL002", "pcc"] > 0.5


def test_oracle_of_a_single_section():
    table = phantom(1, spots=(14, 14), seed=4, **COARSE).oracle_table()
    assert table.loc["neighbourhood", "spot"] < 0.3 < table.loc["neighbourhood", "context"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layout": "hex"}, "layout 'hex'"),
        ({"genes": {"locl": 4}}, "family 'locl'"),
        ({"genes": {"local": 3}}, "even number"),
        ({"um_per_px": 50.0}, "at most 12.5"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"n_patients": 0}, "n_patients=0"),
        ({"spots": (2, 9)}, "each at least 4"),
        ({"pitch_um": -1.0}, "pitch_um=-1.0"),
        ({"stain_shift": -0.5}, "stain_shift=-0.5"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        phantom(**arguments)


def test_bad_oracle_input(cohort):
    with pytest.raises(ValueError, match="'triplex-x'"):
        phantom_like("triplex-x")
    with pytest.raises(ValueError, match="view 'tile'"):
        cohort.oracle(view="tile")
    with pytest.raises(ValueError, match="'NOPE'"):
        cohort.oracle(genes=["NOPE"])
    with pytest.raises(ValueError, match="section 'P1-1'"):
        cohort.oracle({})
    with pytest.raises(ValueError, match="expected spots x genes"):
        cohort.oracle({s.id: np.zeros((3, 3)) for s in cohort.cohort})


def test_parts_are_columns(cohort):
    assert list(cohort.own["P1-1"].columns) == list(PARTS)
