"""Tissue masks on painted slides, and tiles by counting pixels."""

import numpy as np
import pytest
from scipy import ndimage

from histoweave.pp import derive_array, tile_centres, tissue_mask
from histoweave.pp.tissue import otsu

GLASS, STAIN, HALO = (243, 232, 245), (170, 110, 180), (241, 215, 238)


def slide(seed=0):
    """A stained disc with a lumen, in a halo of eosin; a speck, a shadow and a pen stroke; and where the disc is."""
    y, x = np.mgrid[:300, :400]
    disc = (y - 150) ** 2 + (x - 180) ** 2 < 90**2
    hole = (y - 150) ** 2 + (x - 180) ** 2 < 13**2
    image = np.empty((300, 400, 3))
    image[:] = GLASS
    image[(y - 150) ** 2 + (x - 230) ** 2 < 110**2] = HALO
    image[disc] = STAIN
    image[hole] = GLASS
    image[20:24, 20:24] = STAIN
    image[:, 380:] = 150
    image[280:290, 20:200] = 15
    image += np.random.default_rng(seed).normal(scale=4, size=image.shape)
    return image.clip(0, 255).astype(np.uint8), disc


def test_tissue_is_the_disc_and_nothing_else():
    image, disc = slide()
    mask = tissue_mask(image)
    border = ndimage.binary_dilation(disc, iterations=3) & ~ndimage.binary_erosion(disc, iterations=3)
    np.testing.assert_array_equal(mask[~border], disc[~border])


def test_holes_and_specks_follow_their_limits():
    image, _ = slide()
    open_ = tissue_mask(image, max_hole=1e-4, min_object=1e-5)
    assert not open_[150, 180]
    assert open_[22, 22]
    closed = tissue_mask(image)
    assert closed[150, 180]
    assert not closed[22, 22]


@pytest.mark.parametrize(("colour", "expected"), [(GLASS, False), ((255, 255, 255), False), (STAIN, True)])
def test_slides_of_one_kind(colour, expected):
    noise = np.random.default_rng(0).normal(scale=3, size=(80, 90, 3))
    image = (np.array(colour) + noise).clip(0, 255).astype(np.uint8)
    assert (tissue_mask(image) == expected).all()


def test_otsu_separates_two_heaps():
    rng = np.random.default_rng(0)
    values = np.r_[rng.normal(0, 1, 500), rng.normal(10, 1, 300)]
    assert 2.5 < otsu(values) < 7.5
    assert otsu(np.full(4, 3.0)) == 3.0
    # Brute force over all thresholds between sorted values.
    values = np.sort(rng.gamma(2, size=60))
    best = max(range(1, 60), key=lambda i: i * (60 - i) * (values[:i].mean() - values[i:].mean()) ** 2)
    split = otsu(values, bins=20_000)
    assert values[best - 1] <= split + 1e-3
    assert split <= values[best] + 1e-3


@pytest.mark.parametrize("kind", ["square", "hex"])
def test_tiles_lie_on_a_lattice_and_on_tissue(kind):
    _, disc = slide()
    xy, rc = tile_centres(disc, (4000, 3000), 0.5, 100.0, lattice=kind, min_tissue=0.6)
    down, across = (200 * np.sqrt(3) / 2, 100) if kind == "hex" else (200, 200)
    origin = xy - rc[:, ::-1] * [across, down]
    np.testing.assert_allclose(origin, np.broadcast_to([100, down / 2], origin.shape), atol=1e-9)
    assert (np.lexsort((rc[:, 1], rc[:, 0])) == np.arange(len(rc))).all()
    derived = derive_array(xy, kind=kind)
    np.testing.assert_array_equal(derived[:, 0] - derived[0, 0], rc[:, 0] - rc[0, 0])
    np.testing.assert_array_equal(derived[:, 1] - derived[0, 1], rc[:, 1] - rc[0, 1])
    # A mask pixel is 10 px of the image and a tile 200, so shares can be counted.
    fine = np.repeat(np.repeat(disc, 10, axis=0), 10, axis=1)

    def share(x, y):
        x, y = round(x), round(y)
        return fine[max(y - 100, 0) : y + 100, max(x - 100, 0) : x + 100].sum() / 200**2

    shares = np.array([share(x, y) for x, y in xy])
    assert (shares >= 0.6 - 0.01).all()
    every, _ = tile_centres(np.ones_like(disc), (4000, 3000), 0.5, 100.0, lattice=kind, min_tissue=0.01)
    missed = {tuple(p) for p in every.tolist()} - {tuple(p) for p in xy.tolist()}
    assert all(share(x, y) < 0.6 + 0.01 for x, y in missed)
    assert len(missed) > 0


def test_area_outside_the_image_is_no_tissue():
    full = np.ones((10, 10), dtype=bool)
    xy, _ = tile_centres(full, (100, 100), 1.0, 20.0, min_tissue=1.0)
    assert len(xy) == 25
    inner, _ = tile_centres(full, (100, 100), 1.0, 20.0, min_tissue=1.0, window_um=50)
    assert len(inner) == 9  # 30, 50 and 70 px: the others reach over the border
    assert inner.min() == 30
    assert inner.max() == 70


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": np.zeros((10, 10), dtype=bool)}, "none of 25 tiles"),
        ({"mask": np.ones((10, 10))}, "expected bool"),
        ({"um_per_px": 0.0}, "um_per_px=0.0"),
        ({"um_per_px": None}, "um_per_px=None"),
        ({"pitch_um": float("nan")}, "pitch_um=nan"),
        ({"image_size": (100, 0)}, "height=0"),
        ({"min_tissue": 1.5}, r"min_tissue=1\.5"),
        ({"lattice": "cubic"}, "lattice='cubic'"),
    ],
)
def test_bad_tilings(change, message):
    given = {"mask": np.ones((10, 10), dtype=bool), "image_size": (100, 100), "um_per_px": 1.0, "pitch_um": 20.0}
    with pytest.raises(ValueError, match=message):
        tile_centres(**(given | change))


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3))])
def test_bad_images(image):
    with pytest.raises(ValueError, match="expected uint8"):
        tissue_mask(image)
    with pytest.raises(ValueError, match="there are none"):
        otsu(np.array([]))
