"""Speed from slides to embeddings: windows cut out of an image, and windows through an encoder."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.clock import Case, Disagreement, Pair, Run
from histoweave._optional import import_torchvision_safely
from histoweave.data.image import SlideImage, Window
from histoweave.data.io.st_legacy import read_st_section
from histoweave.data.phantom import Family, phantom
from histoweave.data.section import make_section
from histoweave.data.store import Store
from histoweave.embed import create_encoder, embed
from histoweave.embed.encoders import Dtype

BATCH = 64
OURS, CROP = "SlideImage.windows", "PIL crop per spot"
SLICE, STACKED = "numpy slice per spot", "numpy slice per spot, stacked in batches"
_QUALITY = 90  # of the JPEG
_STRIP = 512  # rows
_AGREE = {"fp32": 2e-2, "bf16": 3e-1}  # largest difference in units of an embedding's sd; float16 is what is stored
_BF16_RMS = 0.1  # between bf16 and fp32, in the same units: 8 bits of mantissa through some fifty layers


@dataclass(frozen=True, slots=True)
class Scene:
    """A JPEG file and spot centres (n, 2) in whole, even px, so that both ways can look at the very same pixels."""

    name: str
    path: Path
    xy: np.ndarray
    um_per_px: float

    def fitting(self, side: int) -> np.ndarray:
        """Centres (m, 2) whose window of `side` px lies wholly inside: outside, the idiom's black is not our white."""
        size = np.array(SlideImage.open(self.path).size)
        return self.xy[((self.xy >= side // 2) & (self.xy + side // 2 <= size)).all(axis=1)]


def synthetic_scene(folder: Path, spots: int, um_per_px: float) -> Scene:
    """A section of the phantom as a JPEG in `folder`: `spots` a side, 200 µm apart."""
    genes: dict[Family, int] = {"local": 2, "neighbourhood": 0, "global": 0, "noise": 2}
    section = phantom(n_patients=1, spots=(spots, spots), genes=genes, um_per_px=um_per_px, seed=7).cohort[0]
    assert section.image is not None
    path = folder / "synthetic.jpg"
    Image.fromarray(section.image.thumbnail(max(section.image.size))).save(path, quality=_QUALITY)
    return Scene("synthetic", path, _even(section.xy), um_per_px)


def real_scene(her2st: Path, id: str = "B4") -> Scene:
    """A section of the her2st data set."""
    path = her2st / "ST-imgs" / f"{id}.jpg"
    files = her2st / "ST-cnts" / f"{id}.tsv.gz", her2st / "ST-spotfiles" / f"{id}_selection.tsv"
    section = read_st_section(*files, path, id=id)
    assert section.um_per_px is not None
    return Scene(f"her2st {id}", path, _even(section.xy), section.um_per_px)


def _even(xy: np.ndarray) -> np.ndarray:
    return 2 * np.rint(xy / 2)


# -- windows ------------------------------------------------------------------------------------------------------


def windows(scene: Scene, out: int) -> Iterator[Case]:
    """Windows of `out` px at scale 1, and of twice the side at scale ½; with the decoding of the JPEG and without."""
    for side in (out, 2 * out):
        yield from _with_decode(scene, side, out)
        yield from _decoded_before(scene, side, out)


def _with_decode(scene: Scene, side: int, out: int) -> Iterator[Case]:
    xy, window, data = scene.fitting(side), Window(px=side, out=out), scene.path.read_bytes()
    image = _opened(scene.path)
    image.load()
    rest, run, _ = _floor(image, xy, side, out)
    floor = f"floor: JPEG decode, then {rest}"

    def decode_and_rest() -> Iterator[Any]:
        yield imagecodecs.jpeg8_decode(data)
        yield from run()

    ways: dict[str, Run] = {
        OURS: lambda: _ours(SlideImage.open(scene.path), xy, window),
        CROP: lambda: _crops(_opened(scene.path), xy, side, out),
        floor: decode_and_rest,
    }
    pairs = [Pair(OURS, CROP, "idiom", _pixels(side, out)), Pair(OURS, floor, "floor")]
    yield Case(f"{_title(scene, side, out)}, with decode", len(xy), "window", ways, pairs)


def _decoded_before(scene: Scene, side: int, out: int) -> Iterator[Case]:
    xy, window, same = scene.fitting(side), Window(px=side, out=out), _pixels(side, out)
    image, slide = _opened(scene.path), SlideImage.open(scene.path)
    image.load()
    with slide.held():
        slide.thumbnail(1)  # decodes, and the pixels stay
        rest, run, moved = _floor(image, xy, side, out)
        floor = f"floor: {rest}"
        ways: dict[str, Run] = {
            OURS: lambda: _ours(slide, xy, window),
            CROP: lambda: _crops(image, xy, side, out),
            floor: run,
        }
        pairs = [Pair(OURS, CROP, "idiom", same), Pair(OURS, floor, "floor", moved=moved)]
        if side == out:
            pixels = np.asarray(image)
            ways |= {SLICE: lambda: _slices(pixels, xy, out), STACKED: lambda: _stacked(_slices(pixels, xy, out))}
            pairs += [Pair(OURS, name, "idiom", same) for name in (SLICE, STACKED)]
        yield Case(f"{_title(scene, side, out)}, decoded before", len(xy), "window", ways, pairs)


def _title(scene: Scene, side: int, out: int) -> str:
    return f"windows, {scene.name}, {side} → {out} px"


def _pixels(side: int, out: int) -> Pixels:
    return Pixels(edge=0 if side == out else 1)


def _floor(image: Image.Image, xy: np.ndarray, side: int, out: int) -> tuple[str, Run, int | None]:
    """Name, run and bytes moved: the bytes of all windows once; at scale ½ as many px resampled as the windows cover."""
    if side == out:
        return "copy of the windows", lambda: _copy(len(xy), out), 2 * len(xy) * out * out * 3
    seen = np.zeros((image.height, image.width), bool)
    for left, top in xy.astype(int) - side // 2:
        seen[top : top + side, left : left + side] = True
    rows = min(-(-int(seen.sum()) // image.width), image.height)
    return "one resize of the px covered", lambda: _resize(image, rows), None


def _copy(n: int, out: int) -> Iterator[None]:
    source, target = (np.full((min(BATCH, n), out, out, 3), fill, np.uint8) for fill in (1, 0))
    for start in range(0, n, BATCH):
        np.copyto(target[: n - start], source[: n - start])
        yield None


def _resize(image: Image.Image, rows: int) -> Iterator[Image.Image]:
    """Half of the size, in strips: faster than in one piece, whose intermediate result leaves the cache."""
    for top in range(0, rows, _STRIP):
        bottom = min(top + _STRIP, rows)
        size = (image.width // 2, max(1, (bottom - top) // 2))
        yield image.resize(size, Image.Resampling.BILINEAR, box=(0, top, image.width, bottom))


def _ours(slide: SlideImage, xy: np.ndarray, window: Window) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for rows, pixels, _ in slide.windows(xy, window, batch=BATCH):
        yield rows, pixels


def _opened(path: Path) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # slides are large
        return Image.open(path)


def _crop(image: Image.Image, centre: np.ndarray, side: int, out: int) -> Image.Image:
    x, y = centre
    window = image.crop((int(x - side // 2), int(y - side // 2), int(x + side // 2), int(y + side // 2)))
    return window if side == out else window.resize((out, out), Image.Resampling.BILINEAR)


def _crops(image: Image.Image, xy: np.ndarray, side: int, out: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The idiom: one crop, and one resize if there has to be one, per spot."""
    for row, centre in enumerate(xy):
        yield np.array([row]), np.asarray(_crop(image, centre, side, out))[None]


def _slices(pixels: np.ndarray, xy: np.ndarray, out: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The idiom without PIL: one slice of the decoded array per spot, copied."""
    for row, (x, y) in enumerate(xy.astype(int) - out // 2):
        yield np.array([row]), pixels[None, y : y + out, x : x + out].copy()


def _stacked(windows: Iterator[tuple[np.ndarray, np.ndarray]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The same in batches, which is what an encoder takes and what ours are."""
    while batch := list(islice(windows, BATCH)):
        rows, pixels = zip(*batch, strict=True)
        yield np.concatenate(rows), np.concatenate(pixels)


@dataclass(frozen=True, slots=True)
class Pixels:
    """Whether two streams of (rows, pixels) show the same windows.

    `edge` px on each side are left out: a window that is resampled by itself does not see what lies beside it. There,
    one grey level is what two roundings may differ by.
    """

    edge: int = 0

    def __call__(self, ours: Iterable[Any], theirs: Iterable[Any]) -> str:
        first, second = (self._in_order(stream) for stream in (ours, theirs))
        if first.shape != second.shape:
            raise Disagreement(f"windows of shapes {first.shape} and {second.shape}")
        largest = int(np.abs(first.astype(np.int16) - second).max())
        if largest > (1 if self.edge else 0):
            raise Disagreement(f"windows differ by up to {largest} grey levels")
        if not self.edge:
            return "same bytes"
        return f"{'same bytes' if largest == 0 else 'within 1 grey level'}, but for a frame of {self.edge} px"

    def _in_order(self, stream: Iterable[Any]) -> np.ndarray:
        parts = list(stream)
        pixels = np.concatenate([part[1] for part in parts])
        order = np.argsort(np.concatenate([part[0] for part in parts]))
        inner = slice(self.edge, pixels.shape[1] - self.edge)
        return pixels[order][:, inner, inner]


# -- embedding ----------------------------------------------------------------------------------------------------


class SpotImages(Dataset[torch.Tensor]):
    """The idiom: an item is one spot, cropped with PIL and turned into a normalised tensor by torchvision."""

    def __init__(self, scene: Scene, xy: np.ndarray, out: int, mean: list[float], std: list[float]) -> None:
        transforms = import_torchvision_safely().transforms
        self.image, self.xy, self.out = _opened(scene.path), xy, out
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])

    def __len__(self) -> int:
        return len(self.xy)

    def __getitem__(self, row: int) -> torch.Tensor:
        return self.transform(_crop(self.image, self.xy[row], self.out, self.out))


def embedding(scene: Scene, folder: Path, *, n: int, encoder: str, out: int) -> Iterator[Case]:
    """`embed` from file to store, against a DataLoader over spots and against the encoder on tensors that are ready."""
    xy = scene.fitting(out)[:n]
    if len(xy) < n:
        raise ValueError(f"scene {scene.name!r} has {len(xy)} windows of {out} px, fewer than the {n} asked for")
    ways: dict[str, Run] = {}
    for dtype in ("fp32", "bf16"):
        ways |= _embed_ways(scene, xy, folder, encoder, out, dtype)
    pairs = []
    for ours, theirs in (("fp32", "fp32"), ("bf16", "fp32"), ("bf16", "bf16")):
        same = Vectors(_AGREE[ours]) if ours == theirs else Vectors(_BF16_RMS, rms=True)
        pairs.append(Pair(f"embed, {ours}", f"DataLoader over spots, {theirs}", "idiom", same))
    for dtype in ("fp32", "bf16"):
        floor = f"floor: encoder on ready tensors, {dtype}"
        pairs.append(Pair(f"embed, {dtype}", floor, "floor", Vectors(_AGREE["fp32"])))
    yield Case(f"embedding, {scene.name}, {encoder} at {out} px", len(xy), "window", ways, pairs)


def _embed_ways(scene: Scene, xy: np.ndarray, folder: Path, encoder: str, out: int, dtype: Dtype) -> dict[str, Run]:
    ours = create_encoder(encoder, dtype=dtype, px=out)
    # The idiom's network: the same weights in the memory layout that they are loaded in.
    theirs = create_encoder(encoder, px=out).trunk
    for parameter in theirs.parameters():
        parameter.data = parameter.data.contiguous()
    mean, std = ((table.flatten() / 255).tolist() for table in (theirs.mean, theirs.std))
    window, lazy = Window(px=out, out=out), SlideImage.open(scene.path, scene.um_per_px)
    section = make_section(
        id="s", patient="p", counts=None, genes=[], xy=xy, platform="image", um_per_px=scene.um_per_px, image=lazy
    )
    page = np.concatenate([pixels for _, pixels, _ in lazy.windows(xy, window)])
    rows = np.concatenate([rows for rows, _, _ in lazy.windows(xy, window)])
    ready = torch.from_numpy(page[np.argsort(rows)]).permute(0, 3, 1, 2)  # (n, 3, out, out), channels last in memory

    def end_to_end() -> Iterator[np.ndarray]:
        fresh = replace(section, image=SlideImage.open(scene.path, scene.um_per_px))
        room = Path(tempfile.mkdtemp(dir=folder))
        yield np.array(embed([fresh], ours, Store(room), window=window, batch=BATCH)["s"].emb)

    def loader() -> Iterator[np.ndarray]:
        batches = DataLoader(SpotImages(scene, xy, out, mean, std), batch_size=BATCH, num_workers=0)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
            yield torch.cat([_features(theirs, batch).float() for batch in batches]).numpy()

    def bare() -> Iterator[np.ndarray]:
        yield torch.cat([ours.encode(part) for part in ready.split(BATCH)]).numpy()

    return {
        f"embed, {dtype}": end_to_end,
        f"DataLoader over spots, {dtype}": loader,
        f"floor: encoder on ready tensors, {dtype}": bare,
    }


def _features(trunk: nn.Module, normalised: torch.Tensor) -> torch.Tensor:
    """What the trunk does after its own normalisation: (b, 3, h, w) → (b, d)."""
    net: Any = trunk.net
    return net.extract_features(normalised).mean((2, 3)) if trunk.pooling == "mean" else net(normalised)


@dataclass(frozen=True, slots=True)
class Vectors:
    """Whether two ways give the same embeddings (n, d), up to `tolerance` sds of an embedding.

    It bounds the largest difference, or with `rms` the root mean square: two arithmetics agree on the whole, not on
    every value.
    """

    tolerance: float
    rms: bool = False

    def __call__(self, ours: Iterable[Any], theirs: Iterable[Any]) -> str:
        first, second = (np.concatenate(list(parts)).astype(np.float64) for parts in (ours, theirs))
        if first.shape != second.shape:
            raise Disagreement(f"embeddings of shapes {first.shape} and {second.shape}")
        apart = np.abs(first - second) / second.std()
        largest, rms = float(apart.max()), float(np.sqrt(np.square(apart).mean()))
        if not (rms if self.rms else largest) <= self.tolerance:  # also where either is NaN
            raise Disagreement(
                f"embeddings differ by up to {largest:.2g} sd (rms {rms:.2g}), more than {self.tolerance:g}"
            )
        return f"rms {rms:.1g} sd, largest {largest:.1g}" if self.rms else f"within {largest:.1g} sd"
