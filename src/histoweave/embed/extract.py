"""`embed`: the windows of a cohort through an encoder into the store, each distinct window once, resumable anywhere.

A chunk of the store is one batch of the encoder: the windows in the order in which the slide gives them, cut into
pieces of `batch`. That order is fixed by the slide and the positions, so a rerun cuts the same pieces, encodes those
that are missing, and ends with the same bytes. Decoding runs ahead in a thread of its own, over the border between
sections too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from histoweave.data.store import Draft, Store
from histoweave.embed._prefetch import prefetch
from histoweave.embed.context import Tiles, lay_tiles
from histoweave.embed.encoders import Encoder
from histoweave.embed.stain import StainNormalizer

if TYPE_CHECKING:
    from histoweave.data.image import Window
    from histoweave.data.section import Section

_AHEAD = 3  # batches decoded ahead of the encoder
_WHOLE = 1 - 1e-6  # part of a window inside the image, from which on it counts as wholly inside


Progress = Callable[[int, int, str], None]  # done, total, label


@dataclass(frozen=True, slots=True, kw_only=True)
class SectionFeatures:
    """What was seen of one section: arrays mapped from the store, read-only.

    `emb` (n, d) float16 is the spot view and `inside` (n,) the part of each window that lies in the image. With
    context, `ctx` (u, d) float16 holds the further windows, `ctx_index` (n, k * k) int32 points into
    ``concat[emb; ctx]`` in row-major order (row = y), and `ctx_mask` (n, k * k) bool is False where a tile reaches
    beyond the image; the centre tile is the spot's own row and always True. `pixels` (n, out, out, 3) uint8 are the
    spot windows, `prior` (n, g) float32 what an earlier stage predicts.
    """

    emb: np.ndarray
    inside: np.ndarray | None = None
    ctx: np.ndarray | None = None
    ctx_index: np.ndarray | None = None
    ctx_mask: np.ndarray | None = None
    pixels: np.ndarray | None = None
    section_emb: np.ndarray | None = None
    prior: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> SectionFeatures:
        """Give the features of some spots, copied; `section_emb` keeps the whole section's for its statistics."""
        own, whole = np.asarray(self.emb[rows]), self.emb if self.section_emb is None else self.section_emb
        inside = None if self.inside is None else self.inside[rows]
        pixels = None if self.pixels is None else self.pixels[rows]
        prior = None if self.prior is None else self.prior[rows]
        part = SectionFeatures(emb=own, inside=inside, pixels=pixels, section_emb=whole, prior=prior)
        if self.ctx is None or self.ctx_index is None or self.ctx_mask is None:
            return part
        # What a tile of the part points to may be a spot outside it: such vectors move from emb to ctx.
        wanted, index = np.unique(self.ctx_index[rows], return_inverse=True)
        place = np.full(len(self.emb) + len(self.ctx), -1, dtype=np.int32)
        place[rows] = np.arange(len(rows), dtype=np.int32)
        further = wanted[place[wanted] < 0]
        place[further] = len(rows) + np.arange(len(further), dtype=np.int32)
        n = len(self.emb)
        ctx = np.concatenate([self.emb[further[further < n]], self.ctx[further[further >= n] - n]])
        return replace(
            part, ctx=ctx, ctx_index=place[wanted][index].reshape(len(rows), -1), ctx_mask=self.ctx_mask[rows]
        )

    def context(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gather the context of some spots: embeddings (b, k * k, d) float16 and their mask (b, k * k)."""
        if self.ctx is None or self.ctx_index is None or self.ctx_mask is None:
            raise ValueError("these features have no context: run embed(…, context=5)")
        index, n = self.ctx_index[rows], len(self.emb)
        out = np.empty((*index.shape, self.emb.shape[1]), self.emb.dtype)
        own = index < n
        out[own] = self.emb[index[own]]
        out[~own] = self.ctx[index[~own] - n]
        return out, self.ctx_mask[rows]


def embed(
    cohort: Sequence[Section],
    encoder: Encoder,
    store: Store,
    *,
    window: Window,
    context: int = 0,
    pixels: bool = False,
    stain: StainNormalizer | None = None,
    batch: int = 64,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, SectionFeatures]:
    """Give the features of every section by its id; what the store lacks is computed first and stays there.

    Parameters
    ----------
    window
        What is seen around a spot; its `out` has to be the encoder's `px`.
    context
        0, or the odd side k of the square of k × k tiles around each spot, spaced by the window's side.
    pixels
        Whether the spot windows themselves are stored as well, for models that train the encoder.
    stain
        Normalisation of the windows, estimated once per slide.
    batch
        Windows per call of the encoder, and rows per chunk of the store.
    device
        Where windows are put before the encoder gets them.

    Raises
    ------
    ValueError
        Sections that have neither an image nor features in the store; a window or context that does not fit.
    DiskFull
        Before the start or in the middle; a rerun goes on from the finished chunks.
    """
    _check(encoder, window, context, batch)
    plans = [_Plan(section, encoder, store, window, context, stain, pixels=pixels) for section in cohort]
    blind = [plan.section.id for plan in plans if plan.section.image is None and not plan.linked()]
    if blind:
        raise ValueError(
            f"sections without an image, and without stored features for encoder {encoder.name!r} and this window: "
            f"{', '.join(map(repr, blind))}. Leave them out with `--sections with-image`, or give their images"
        )
    jobs = [job for plan in plans if plan.section.image is not None and (job := plan.job(batch)) is not None]
    store.require(sum(draft.bytes_needed for job in jobs for draft in job.drafts()))
    _run(jobs, encoder, window, stain, batch, device, progress)
    return {plan.section.id: plan.load() for plan in plans}


def _check(encoder: Encoder, window: Window, context: int, batch: int) -> None:
    if window.out != encoder.px:
        raise ValueError(
            f"windows of {window.out} px for encoder {encoder.name!r}, which takes {encoder.px} px: set "
            f"Window(out={encoder.px}), or make the encoder with px={window.out} where it allows other sides"
        )
    if context != 0 and (context < 3 or context % 2 == 0):
        raise ValueError(f"context={context}: expected 0, or an odd number of tiles from 3 on (5 in TRIPLEX)")
    if batch < 1:
        raise ValueError(f"batch={batch}: expected 1 or more windows")


class _Plan:
    """What is wanted of one section, and under which addresses it lies or will lie."""

    def __init__(
        self,
        section: Section,
        encoder: Encoder,
        store: Store,
        window: Window,
        context: int,
        stain: StainNormalizer | None,
        *,
        pixels: bool,
    ) -> None:
        self.section, self.encoder, self.store, self.window, self.context = section, encoder, store, window, context
        self.um_per_px = section.um_per_px
        seen = {
            "um_per_px": None if window.um is None else self.um_per_px,
            "window": {"um": None if window.um is None else float(window.um), "px": window.px, "out": window.out},
            "xy": hashlib.blake2b(np.ascontiguousarray(section.xy, "<f8").tobytes(), digest_size=20).hexdigest(),
            "stain": None if stain is None else stain.digest,
            "stored": "float16",
        }
        views: dict[str, dict[str, Any]] = {"spot": {**seen, "view": "spot", "encoder": encoder.digest}}
        if context:
            views["context"] = {**seen, "view": f"context-{context}", "encoder": encoder.digest}
        if pixels:
            views["pixels"] = {**seen, "view": "pixels"}
        # A section can lose its image once its features exist; then they are found by the section's name.
        self.links = {
            view: Store.address(**parts, section=section.id, patient=section.patient) for view, parts in views.items()
        }
        image = section.image
        self.parts = {} if image is None else {view: {**parts, "slide": image.digest} for view, parts in views.items()}

    def linked(self) -> bool:
        return all(self.store.follow(link) for link in self.links.values())

    def job(self, batch: int) -> _Job | None:
        """Give the work that is left, or None if everything is in the store."""
        if all(Store.address(**parts) in self.store for parts in self.parts.values()):
            return None
        image, n, out = self.section.image, self.section.n, self.window.out
        assert image is not None
        tiles = lay_tiles(self.section.xy, self.window.native(self.um_per_px), out, self.context, image.size)
        vector = {"emb": ((self.encoder.dim,), np.float16), "inside": ((), np.float32)}
        drafts = {"spot": self.store.draft(self.parts["spot"], n, vector, chunk=batch)}
        if self.context:
            drafts["context"] = self.store.draft(self.parts["context"], len(tiles.centres) - n, vector, chunk=batch)
        if "pixels" in self.parts:
            square = {"pixels": ((out, out, 3), np.uint8)}
            drafts["pixels"] = self.store.draft(self.parts["pixels"], n, square, chunk=batch)
        return _Job(self.section, tiles, drafts["spot"], drafts.get("context"), drafts.get("pixels"))

    def load(self) -> SectionFeatures:
        """Map the section's arrays, and remember by name where they lie."""
        found: dict[str, np.ndarray] = {}
        for view, link in self.links.items():
            address = Store.address(**self.parts[view]) if self.parts else self.store.follow(link)
            assert address is not None
            if self.parts:
                self.store.link(link, address)
            prefix = "ctx_" if view == "context" else ""
            found |= {prefix + name: array for name, array in self.store.open(address).items()}
        mask = None
        if self.context:
            index = found["ctx_index"]
            mask = np.concatenate([found["inside"], found["ctx_inside"]])[index] >= _WHOLE
            mask[:, index.shape[1] // 2] = True
        return SectionFeatures(
            emb=found["emb"],
            inside=found["inside"],
            ctx=found.get("ctx_emb"),
            ctx_index=found.get("ctx_index"),
            ctx_mask=mask,
            pixels=found.get("pixels"),
        )


@dataclass(frozen=True, slots=True)
class _Job:
    section: Section
    tiles: Tiles
    spot: Draft
    context: Draft | None
    pixels: Draft | None

    def drafts(self) -> list[Draft]:
        return [draft for draft in (self.spot, self.context, self.pixels) if draft is not None]

    def finish(self) -> None:
        self.spot.finish()
        if self.context is not None and self.tiles.index is not None:
            self.context.finish(index=self.tiles.index)
        if self.pixels is not None:
            self.pixels.finish()


@dataclass(frozen=True, slots=True)
class _Piece:
    """One chunk of a view: rows (b,) of the view, pixels (b, out, out, 3), inside (b,). Without rows: the job's end."""

    job: _Job
    of_spots: bool = True
    index: int = 0
    rows: np.ndarray | None = None
    pixels: np.ndarray | None = None
    inside: np.ndarray | None = None


def _pieces(jobs: list[_Job], window: Window, stain: StainNormalizer | None, batch: int) -> Iterator[_Piece]:
    for job in jobs:
        image, n = job.section.image, job.section.n
        assert image is not None
        held: dict[bool, _Rebatch] = {True: _Rebatch(batch), False: _Rebatch(batch)}
        with nullcontext() if stain is None else image.held():  # stains are measured on the same decoded slide
            slide = None if stain is None else stain.for_slide(image)
            given = image.windows(job.tiles.centres, window, job.section.um_per_px, batch=batch, allow_outside=True)
            for rows, pixels, inside in given:
                pixels = pixels if slide is None else slide(pixels)
                for of_spots, mine in ((True, rows < n), (False, rows >= n)):
                    part = rows[mine] - (0 if of_spots else n)
                    for cut in held[of_spots].add(part, pixels[mine], inside[mine]):
                        yield _Piece(job, of_spots, *cut)
        for of_spots in (True, False):
            for cut in held[of_spots].rest():
                yield _Piece(job, of_spots, *cut)
        yield _Piece(job)


class _Rebatch:
    """Cuts a stream of rows into pieces of one size, whatever the pieces it comes in."""

    def __init__(self, size: int) -> None:
        self.size, self.index, self.held = size, 0, list[tuple[np.ndarray, ...]]()

    def add(self, *arrays: np.ndarray) -> Iterator[tuple[Any, ...]]:
        self.held.append(arrays)
        while sum(len(part[0]) for part in self.held) >= self.size:
            yield self._cut()

    def rest(self) -> Iterator[tuple[Any, ...]]:
        if any(len(part[0]) for part in self.held):
            yield self._cut()

    def _cut(self) -> tuple[Any, ...]:
        whole = [np.concatenate(column) for column in zip(*self.held, strict=True)]
        self.held = [tuple(column[self.size :] for column in whole)]
        self.index += 1
        return (self.index - 1, *(column[: self.size] for column in whole))


def _run(
    jobs: list[_Job],
    encoder: Encoder,
    window: Window,
    stain: StainNormalizer | None,
    batch: int,
    device: str,
    progress: Progress | None,
) -> None:
    total, done = sum(len(job.tiles.centres) for job in jobs), 0
    writing: list[Future[None]] = []
    with ThreadPoolExecutor(1, "store") as writer, prefetch(_pieces(jobs, window, stain, batch), _AHEAD) as pieces:
        for piece in pieces:
            if piece.rows is None:
                while writing:
                    writing.pop(0).result()
                piece.job.finish()
                continue
            for draft, values in _encode(piece, encoder, device):
                writing.append(writer.submit(draft.put, piece.index, piece.rows, **values))
            while len(writing) > _AHEAD:
                writing.pop(0).result()
            done += len(piece.rows)
            if progress is not None:
                progress(done, total, piece.job.section.id)


def _encode(piece: _Piece, encoder: Encoder, device: str) -> Iterator[tuple[Draft, dict[str, Any]]]:
    """Give what is to be written of a piece: nothing where its chunk is finished already."""
    job, view = piece.job, piece.job.spot if piece.of_spots else piece.job.context
    assert view is not None and piece.rows is not None and piece.pixels is not None
    if not view.done(piece.index, piece.rows):
        tensor = torch.from_numpy(piece.pixels).permute(0, 3, 1, 2).to(device)  # (b, 3, h, w), channels last in memory
        exact = encoder.encode(tensor).cpu().numpy()
        with np.errstate(over="ignore"):
            emb = exact.astype(np.float16)
        if not np.isfinite(emb).all():
            raise ValueError(
                f"encoder {encoder.name!r} gave values that are not finite, or beyond what float16 holds (largest "
                f"{np.abs(exact).max():g}), in section {job.section.id!r}: its weights or its normalisation are wrong"
            )
        yield view, {"emb": emb, "inside": piece.inside}
    if piece.of_spots and job.pixels is not None and not job.pixels.done(piece.index, piece.rows):
        yield job.pixels, {"pixels": piece.pixels}
