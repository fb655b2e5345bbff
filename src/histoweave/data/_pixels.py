"""Pixels of any storable kind as RGB, three bytes each; and whether a JPEG is all there."""

from __future__ import annotations

import re

import numpy as np

_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # in entropy-coded data: not a stuffed byte, restart or fill
_END, _SCAN = 0xD9, 0xDA


class ImageReadError(ValueError):
    """An image file that cannot be read; the message names it and what to do."""


class ImageRefused(ImageReadError):
    """An image that is understood and not read (colours, size, a cut end), so that no other reader is tried."""


def to_u8(values: np.ndarray, bits: int | None = None) -> np.ndarray:
    """Whole numbers spread over a range of `bits` (default: that of their type) as uint8, rounded to nearest."""
    if values.dtype == np.uint8 and bits in (None, 8):
        return values
    if values.dtype.kind == "b":
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype.kind not in "ui":
        raise ImageRefused(
            f"pixels of type {values.dtype} have no white; expected whole numbers. Scale them to uint8 and save again"
        )
    low = int(np.iinfo(values.dtype).min)
    high = int(np.iinfo(values.dtype).max) - low if bits is None else (1 << bits) - 1
    if high <= 65535:  # one look-up, exact
        table = ((np.arange(high + 1, dtype=np.int64) * 510 + high) // (2 * high)).astype(np.uint8)
        return table[np.minimum(values.astype(np.int32) - low, high)]
    return np.rint((values.astype(np.float64) - low) * (255 / high)).astype(np.uint8)


def to_rgb(
    pixels: np.ndarray, *, bits: int | None = None, alpha: bool = False, premultiplied: bool = False
) -> np.ndarray:
    """Grey (h, w) or (h, w, 1), grey with alpha, RGB or RGBA as uint8 (h, w, 3); what is transparent becomes white."""
    values = to_u8(pixels if pixels.ndim == 3 else pixels[..., None], bits)
    channels = values.shape[2]
    if channels in (2, 4) and alpha:
        values, opacity = values[..., :-1], values[..., -1:]
        if (opacity != 255).any():
            values = _on_white(values, opacity, premultiplied=premultiplied)
    if values.shape[2] not in (1, 3):
        raise ImageRefused(f"{channels} channels; expected 1 (grey), 3 (RGB) or 4 (RGBA). Save the RGB image instead")
    return np.ascontiguousarray(np.broadcast_to(values, (*values.shape[:2], 3)))


def _on_white(values: np.ndarray, opacity: np.ndarray, *, premultiplied: bool) -> np.ndarray:
    wide, a = values.astype(np.uint16), opacity.astype(np.uint16)
    if premultiplied:
        return np.minimum(wide + (255 - a), 255).astype(np.uint8)
    return ((wide * a + 255 * (255 - a) + 127) // 255).astype(np.uint8)  # at most 65152: fits 16 bits


def palette_to_rgb(indices: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Indices (h, w, 1) into a TIFF colour map (3, colours) of 16-bit values (or, against the standard, 8-bit ones)."""
    table = (colours if int(colours.max()) < 256 else to_u8(colours)).astype(np.uint8).T
    return np.ascontiguousarray(table[indices[..., 0]])


def jpeg_is_complete(data: bytes) -> bool:
    """Whether the segments of a JPEG stream lead up to its end-of-image marker.

    Decoders fill the part that is missing with grey and say nothing, so this is asked before.
    """
    at = 2
    while at + 4 <= len(data) or data[at : at + 2] == b"\xff\xd9":
        if data[at] != 0xFF:
            return False
        marker = data[at + 1]
        if marker == _END:
            return True
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == _SCAN:
            found = _MARKER.search(data, at)
            if found is None:
                return False
            at = found.start()
    return False
