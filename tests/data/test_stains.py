"""Further stains of a section: channels of regions, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from histoweave.data.image import ImageReadError, SlideImage, Window
from histoweave.data.io import read_cohort
from histoweave.data.phantom import phantom
from histoweave.data.stains import StainedImage
from histoweave.feed._sequences import _read, tiles

SIDE = 300


def pixels(seed: int, side: int = SIDE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)


@pytest.fixture
def stained() -> StainedImage:
    image, *stains = (SlideImage.from_array(pixels(seed), 0.425) for seed in range(3))
    return StainedImage(image, stains)


def test_it_is_the_image_where_three_channels_are_looked_at(stained: StainedImage) -> None:
    plain = SlideImage.from_array(pixels(0), 0.425)
    assert (stained.size, stained.um_per_px) == (plain.size, plain.um_per_px)
    assert np.array_equal(stained.thumbnail(100), plain.thumbnail(100))
    xy, window = np.array([[40.0, 50.0], [200.0, 100.0]]), Window(px=32, out=32)
    for mine, its in zip(stained.windows(xy, window), plain.windows(xy, window), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(mine, its, strict=True))


def test_the_digest_tells_stains_and_their_order(stained: StainedImage) -> None:
    image, a, b = (SlideImage.from_array(pixels(seed), 0.425) for seed in range(3))
    digests = {image.digest, stained.digest, StainedImage(image, [b, a]).digest, StainedImage(image, [a]).digest}
    assert len(digests) == 4
    assert stained.digest == StainedImage(image, [a, b]).digest


def test_regions_have_a_channel_for_each(stained: StainedImage) -> None:
    section = phantom(n_patients=1, layout="cells", spots=(6, 6), pitch_um=14).cohort[0]
    section = replace(section, image=stained, um_per_px=0.425)
    kept = np.unique(tiles(section)[0], axis=0)[:1]
    (read,) = _read(section, kept, 5)
    assert read.shape == (1024, 1024, 5)
    assert np.array_equal(read[:SIDE, :SIDE, :3], pixels(0))
    assert np.array_equal(read[:SIDE, :SIDE, 3], pixels(1)[..., 0]) and np.array_equal(read[:SIDE, :SIDE, 4], pixels(2)[..., 0])
    assert not read[SIDE:].any() and not read[:, SIDE:].any()
    with pytest.raises(ValueError, match="has 5 channels, its own three and 2 further stains, and the model reads 3"):
        _read(section, kept, 3)


def test_sizes_have_to_agree() -> None:
    with pytest.raises(ImageReadError, match="which has another size"):
        StainedImage(SlideImage.from_array(pixels(0)), [SlideImage.from_array(pixels(1, 20))])


def test_samples_name_them(tmp_path: Path) -> None:
    made = phantom(n_patients=1, layout="cells", spots=(6, 6), pitch_um=14).cohort[0]
    assert made.image is not None
    width, height = made.image.size
    for i in range(3):
        Image.fromarray(pixels(i, max(width, height))[:height, :width, 0]).save(tmp_path / f"{i}.png")
    made.spots.write_h5ad(tmp_path / "a.h5ad")
    lines = ["id,patient,path,image,stains,mpp,platform", f"a,p,a.h5ad,0.png,1.png; 2.png,{made.um_per_px},xenium"]
    (tmp_path / "samples.csv").write_text("\n".join(lines))
    (section,) = read_cohort(tmp_path / "samples.csv")
    assert isinstance(section.image, StainedImage)
    assert [stain.path.name for stain in section.image.stains] == ["1.png", "2.png"]
    (tmp_path / "samples.csv").write_text("\n".join(lines).replace("2.png", "9.png"))
    with pytest.raises(FileNotFoundError, match=r"column 'stains' names '9\.png'"):
        read_cohort(tmp_path / "samples.csv")
    (tmp_path / "samples.csv").write_text("\n".join(lines).replace("0.png", ""))
    with pytest.raises(ValueError, match="'stains' are further pictures of an image, and there is none"):
        read_cohort(tmp_path / "samples.csv")
