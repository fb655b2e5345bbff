"""`embed`: alignment with naive crops, windows shared, resuming, what is refused."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from histoweave.data.image import SlideImage, Window
from histoweave.data.section import Cohort, Section, make_section
from histoweave.data.store import DiskFull, Store
from histoweave.embed import create_encoder, embed
from histoweave.embed.context import lay_tiles
from histoweave.embed.stain import Macenko

OUT = 32
WINDOW = Window(px=OUT, out=OUT)


class Counting:
    """An encoder that counts the windows it is given, and can fail at one of its calls."""

    def __init__(self, fail_at: int = -1) -> None:
        self.inner = create_encoder("tiny")
        self.windows, self.calls, self.fail_at = 0, 0, fail_at
        self.name, self.dim, self.px, self.um_per_px = "tiny", self.inner.dim, self.inner.px, None
        self.digest, self.card = self.inner.digest, self.inner.card

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        if self.calls == self.fail_at:
            raise KeyboardInterrupt
        self.calls += 1
        self.windows += len(pixels)
        return self.inner.encode(pixels)


def image_array(seed: int = 0, height: int = 200, width: int = 232) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def grid(columns: int = 5, rows: int = 4, pitch: float = OUT, start: float = 32) -> np.ndarray:
    y, x = np.mgrid[:rows, :columns]
    return np.stack([x.ravel(), y.ravel()], axis=1) * pitch + start


def section(id: str = "S1", xy: np.ndarray | None = None, *, image: bool = True, seed: int = 0) -> Section:
    return make_section(
        id=id,
        patient="P",
        counts=None,
        genes=[],
        xy=grid() if xy is None else xy,
        platform="image",
        um_per_px=0.5,
        image=SlideImage.from_array(image_array(seed), 0.5) if image else None,
    )


def naive(array: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Crop one window after the other, white beyond the edge."""
    padded = np.pad(array, ((200, 200), (200, 200), (0, 0)), constant_values=255)
    corners = np.floor(xy - OUT / 2 + 0.5).astype(int) + 200
    return np.stack([padded[y : y + OUT, x : x + OUT] for x, y in corners])


def encoded(pixels: np.ndarray) -> np.ndarray:
    return create_encoder("tiny").encode(torch.from_numpy(pixels).permute(0, 3, 1, 2)).numpy().astype(np.float16)


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("start", [32.0, 31.4, 3.0])
def test_rows_are_the_spots_and_pixels_are_the_naive_crops(tmp_path, start):
    xy = grid(start=start)
    one = embed([section(xy=xy)], create_encoder("tiny"), Store(tmp_path), window=WINDOW, pixels=True, batch=7)["S1"]
    crops = naive(image_array(), xy)
    np.testing.assert_array_equal(one.pixels, crops)
    np.testing.assert_array_equal(one.emb, encoded(crops))
    assert isinstance(one.pixels, np.memmap)
    assert isinstance(one.emb, np.memmap)
    assert one.emb.dtype == np.float16
    assert one.ctx is None


def test_every_context_tile_is_the_window_at_its_place(tmp_path):
    xy = grid(3, 3, pitch=20, start=40)
    one = embed([section(xy=xy)], create_encoder("tiny"), Store(tmp_path), window=WINDOW, context=5, batch=8)["S1"]
    got, mask = one.context(np.arange(9))
    for tile in range(25):
        at = xy + (np.array([tile % 5, tile // 5]) - 2) * OUT
        np.testing.assert_array_equal(got[:, tile], encoded(naive(image_array(), at)))
        inside = ((at >= OUT / 2) & (at <= np.array([232, 200]) - OUT / 2)).all(axis=1)
        np.testing.assert_array_equal(mask[:, tile], inside | (tile == 12))


def test_the_centre_tile_is_the_spot_view_and_always_counts(tmp_path):
    xy = grid(start=3)  # the first row and column reach beyond the image
    one = embed([section(xy=xy)], create_encoder("tiny"), Store(tmp_path), window=WINDOW, context=5)["S1"]
    np.testing.assert_array_equal(one.ctx_index[:, 12], np.arange(20))
    assert one.ctx_mask[:, 12].all()
    assert (one.inside[:5] < 1).all()
    assert not one.ctx_mask[:, 0][:10].any()


def test_where_the_pitch_is_the_tile_windows_are_shared(tmp_path):
    xy, encoder = grid(6, 5, start=16), Counting()  # tiles of the grid cover the image: all others lie outside
    image = SlideImage.from_array(image_array(height=160, width=192), 0.5)
    slide = make_section(
        id="S1", patient="P", counts=None, genes=[], xy=xy, platform="image", um_per_px=0.5, image=image
    )
    one = embed([slide], encoder, Store(tmp_path), window=WINDOW, context=5)["S1"]
    assert encoder.windows == 30 + 1  # the one stands for all that is outside
    assert one.ctx.shape == (1, 16)
    got, mask = one.context(np.arange(30))
    assert mask.sum() == sum(
        0 <= x // 32 + dx < 6 and 0 <= y // 32 + dy < 5 for x, y in xy for dx in range(-2, 3) for dy in range(-2, 3)
    )
    np.testing.assert_array_equal(got[:, 13][mask[:, 13]], one.emb[[i + 1 for i in range(30) if i % 6 < 5]])


@pytest.mark.parametrize("context", [3, 5])
@pytest.mark.parametrize("pitch", [32, 30, 48.3])
def test_the_distinct_windows_are_exactly_the_distinct_slices(context, pitch):
    xy = grid(4, 3, pitch=pitch, start=90.2)
    tiles = lay_tiles(xy, 32.0, 32, context, (4000, 4000))
    place = np.floor(tiles.centres - 16 + 0.5).astype(int)[tiles.index]
    steps = np.stack(np.divmod(np.arange(context**2), context)[::-1], axis=1) - context // 2
    wanted = np.floor(xy - 16 + 0.5).astype(int)[:, None] + 32 * steps
    inside = (wanted + 32 > 0).all(axis=2)
    np.testing.assert_array_equal(place[inside], wanted[inside])
    assert len(np.unique(place.reshape(-1, 2), axis=0)) == len(tiles.centres)


def test_two_spots_on_one_place_keep_their_own_rows():
    tiles = lay_tiles(np.array([[100.0, 100], [100, 100], [132, 100]]), 32.0, 32, 3, (400, 400))
    np.testing.assert_array_equal(tiles.index[:, 4], [0, 1, 2])
    np.testing.assert_array_equal(tiles.index[:, 5][:2], [2, 2])


def test_tiles_keep_their_distance_at_another_resolution():
    tiles = lay_tiles(np.array([[500.3, 400.1]]), 96.0, 32, 5, (1000, 1000))
    centres = tiles.centres[tiles.index[0]].reshape(5, 5, 2)
    np.testing.assert_allclose(np.diff(centres[..., 0], axis=1), 96, atol=1e-9)
    np.testing.assert_allclose(np.diff(centres[..., 1], axis=0), 96, atol=1e-9)
    assert np.abs(centres[2, 2] - [500.3, 400.1]).max() <= 1.5


def test_what_is_stored_is_not_encoded_again_and_views_share_it(tmp_path):
    store, first = Store(tmp_path), Counting()
    embed([section()], first, store, window=WINDOW)
    assert first.windows == 20
    again = Counting()
    embed([section()], again, store, window=WINDOW)
    assert again.windows == 0
    with_context = Counting()
    one = embed([section()], with_context, store, window=WINDOW, context=3)["S1"]
    assert with_context.windows == len(one.ctx)
    pixels = Counting()
    assert embed([section()], pixels, store, window=WINDOW, pixels=True)["S1"].pixels is not None
    assert pixels.windows == 0


@pytest.mark.parametrize("change", ["slide", "window", "xy", "stain", "encoder"])
def test_another_slide_geometry_stain_or_encoder_is_another_entry(tmp_path, change):
    store = Store(tmp_path)
    embed([section()], Counting(), store, window=WINDOW)
    other = Counting()
    if change == "encoder":
        other.digest = "another"
    one = section(seed=1) if change == "slide" else section(xy=grid(start=33)) if change == "xy" else section()
    window = Window(px=40, out=OUT) if change == "window" else WINDOW
    embed([one], other, store, window=window, stain=Macenko() if change == "stain" else None)
    assert other.windows == 20


def test_interrupted_it_resumes_with_the_missing_chunks_and_the_same_bytes(tmp_path):
    def cohort() -> Cohort:
        return Cohort([section("S1"), section("S2", grid(7, 3, pitch=25, start=30), seed=1)])

    whole = Counting()
    embed(cohort(), whole, Store(tmp_path / "clean"), window=WINDOW, context=3, pixels=True, batch=4)
    for stop in (3, whole.calls - 1):
        root, spent = tmp_path / f"stop{stop}", Counting(fail_at=stop)
        with pytest.raises(KeyboardInterrupt):
            embed(cohort(), spent, Store(root), window=WINDOW, context=3, pixels=True, batch=4)
        rest = Counting()
        embed(cohort(), rest, Store(root), window=WINDOW, context=3, pixels=True, batch=4)
        assert spent.windows + rest.windows == whole.windows
        assert files(root) == files(tmp_path / "clean")


CHILD = """
import sys, time
sys.path.insert(0, {tests!r})
import test_extract as t
class Slow(t.Counting):
    def encode(self, pixels):
        time.sleep(0.02)
        return super().encode(pixels)
t.embed([t.section()], Slow(), t.Store({root!r}), window=t.WINDOW, context=3, pixels=True, batch=2)
"""


def test_killed_it_ends_with_the_same_bytes(tmp_path):
    embed([section()], Counting(), Store(tmp_path / "clean"), window=WINDOW, context=3, pixels=True, batch=2)
    root = tmp_path / "killed"
    code = CHILD.format(tests=str(Path(__file__).parent), root=str(root))
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while child.poll() is None and len(list(root.rglob("0*.npy"))) < 9 and time.monotonic() < deadline:
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert not list(root.rglob("meta.json"))
    rest = Counting()
    embed([section()], rest, Store(root), window=WINDOW, context=3, pixels=True, batch=2)
    assert 0 < rest.windows < 40
    assert files(root) == files(tmp_path / "clean")


def test_sections_without_image_live_from_the_store_or_are_named(tmp_path):
    store = Store(tmp_path)
    seen = embed([section()], create_encoder("tiny"), store, window=WINDOW, context=3)["S1"]
    blind = section(image=False)
    again = embed([blind], create_encoder("tiny"), store, window=WINDOW, context=3)["S1"]
    np.testing.assert_array_equal(again.emb, seen.emb)
    np.testing.assert_array_equal(again.ctx_mask, seen.ctx_mask)
    with pytest.raises(ValueError, match=r"'S1', 'S2'.*--sections with-image"):
        embed(
            [blind, section("S2", image=False), section("S3")], create_encoder("tiny"), store, window=WINDOW, context=5
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": Window(px=64, out=64)}, r"Window\(out=32\)"),
        ({"window": WINDOW, "context": 4}, "context=4"),
        ({"window": WINDOW, "context": 1}, "context=1"),
        ({"window": WINDOW, "batch": 0}, "batch=0"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        embed([section()], create_encoder("tiny"), Store(tmp_path), **options)
    assert not files(tmp_path)


def test_values_beyond_float16_are_refused_and_nothing_is_kept(tmp_path):
    class Loud(Counting):
        def encode(self, pixels: torch.Tensor) -> torch.Tensor:
            return super().encode(pixels) * 1e6

    with pytest.raises(ValueError, match="float16"):
        embed([section()], Loud(), Store(tmp_path), window=WINDOW)
    assert not files(tmp_path)


def test_no_room_is_said_before_the_encoder_runs(tmp_path, monkeypatch):
    encoder = Counting()
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(DiskFull, match="are free"):
        embed([section()], encoder, Store(tmp_path), window=WINDOW)
    assert encoder.windows == 0


def test_an_error_of_the_slide_reaches_the_caller(tmp_path):
    class Broken:
        size, um_per_px, digest = (232, 200), 0.5, "broken"

        def windows(self, *_args: object, **_options: object):
            yield from ()
            raise OSError("the slide is truncated")

    broken = make_section(
        id="S1", patient="P", counts=None, genes=[], xy=grid(), platform="image", um_per_px=0.5, image=Broken()
    )
    with pytest.raises(OSError, match="truncated"):
        embed([broken], create_encoder("tiny"), Store(tmp_path), window=WINDOW)


def test_progress_counts_every_window_once(tmp_path):
    said = []
    embed(
        [section(), section("S2", seed=1)],
        create_encoder("tiny"),
        Store(tmp_path),
        window=WINDOW,
        batch=8,
        progress=lambda *now: said.append(now),
    )
    assert [done for done, _, _ in said] == [8, 16, 20, 28, 36, 40]
    assert {total for _, total, _ in said} == {40}
    assert said[-1][2] == "S2"


def test_memory_does_not_grow_with_the_slide(tmp_path):
    """However many windows a slide has, only a few batches of them are alive at once."""
    alive, peak = [], []

    class Endless:
        size, um_per_px, digest = (100_000, 100_000), 0.5, "endless"

        def windows(self, xy: np.ndarray, window: Window, um_per_px: float | None, *, batch: int, allow_outside: bool):
            for at in range(0, len(xy), batch):
                alive.append(at)
                peak.append(len(alive) - encoder.calls)
                yield np.arange(at, at + batch), np.zeros((batch, OUT, OUT, 3), np.uint8), np.ones(batch, np.float32)

    encoder = Counting()
    slide = make_section(
        id="S1", patient="P", counts=None, genes=[], xy=grid(40, 16), platform="image", um_per_px=0.5, image=Endless()
    )
    embed([slide], encoder, Store(tmp_path), window=WINDOW, batch=16)
    assert len(peak) == 40
    assert max(peak) <= 6


def test_stain_normalisation_reaches_pixels_and_embedding(tmp_path):
    one = embed([section()], create_encoder("tiny"), Store(tmp_path), window=WINDOW, pixels=True, stain=Macenko())["S1"]
    slide = Macenko().for_slide(section().image)
    expected = slide(naive(image_array(), grid()))
    assert (expected != naive(image_array(), grid())).any()
    np.testing.assert_array_equal(one.pixels, expected)
    np.testing.assert_array_equal(one.emb, encoded(expected))
