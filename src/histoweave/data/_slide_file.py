"""A slide as a file: whether it can be read, which reader understands it, what its content hashes to."""

from __future__ import annotations

import hashlib
from pathlib import Path

from histoweave.data._pixels import ImageReadError, ImageRefused
from histoweave.data._slide_tiff import TiffSource
from histoweave.data.slide_backends import READ_ERRORS, OpenSlideSource, PlainSource, Source

PLAIN = (".jpg", ".jpeg", ".png")
TIFF = (".tif", ".tiff", ".btf")
VENDOR = (".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".svslide")
_ALSO_TIFF = (".svs", ".ndpi", ".scn", ".bif")  # vendor formats that are TIFF inside, so tifffile is worth a try
_SUPPORTED = ", ".join(PLAIN + TIFF + VENDOR)


def check_readable(path: Path) -> None:
    """Refuse what is not a file that can be opened."""
    if path.is_dir():
        raise ImageReadError(f"'{path}' is a folder; expected an image file ({_SUPPORTED})")
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no image '{path}'; check the path (supported: {_SUPPORTED})") from error
    except PermissionError as error:
        raise PermissionError(f"no permission to read the image '{path}'; ask its owner for read access") from error
    except OSError as error:
        raise ImageReadError(f"cannot read the image '{path}': {error}") from error
    if empty:
        raise ImageReadError(f"the image '{path}' is empty (0 bytes); copy or download it again")


def open_source(path: Path, max_px: int) -> Source:
    """Describe a file by the first reader that understands it; the error of the last resort lists every cause."""
    suffix = path.suffix.lower()
    if suffix in PLAIN:
        return PlainSource.open(path, max_px)
    if suffix not in TIFF + VENDOR:
        raise ImageReadError(
            f"'{path}' has the suffix {suffix!r}; supported are {_SUPPORTED}. Convert the image to one of these"
        )
    import openslide

    vendor = _vendor(path)
    first_tiff = suffix in TIFF and vendor in (None, "generic-tiff")
    readers: list[type[TiffSource] | type[OpenSlideSource]] = [TiffSource, OpenSlideSource]
    if not first_tiff:
        readers = [OpenSlideSource, TiffSource] if suffix in (*TIFF, *_ALSO_TIFF) else [OpenSlideSource]
    causes = []
    for reader in readers:
        try:
            return reader.open(path, max_px)
        except ImageRefused:
            raise
        except (openslide.OpenSlideError, *READ_ERRORS) as error:
            causes.append(f"{reader.__name__.removesuffix('Source')}: {str(error) or type(error).__name__}")
    raise ImageReadError(
        f"no reader understands '{path}': {'; '.join(causes)}. The file is truncated, corrupt or not what it is named"
    )


def _vendor(path: Path) -> str | None:
    import openslide

    try:
        return openslide.OpenSlide.detect_format(path)
    except (openslide.OpenSlideError, *READ_ERRORS):
        return None


def file_digest(path: Path) -> str:
    """BLAKE2b of a file in hex; of an .mrxs also the names and content of the folder that belongs to it."""
    parts = [path]
    folder = path.with_suffix("")
    if path.suffix.lower() == ".mrxs" and folder.is_dir():
        parts += sorted(part for part in folder.rglob("*") if part.is_file())
    if len(parts) == 1:
        return _streamed(path).hexdigest()
    state = hashlib.blake2b(digest_size=32)
    for part in parts:
        name = "" if part == path else part.relative_to(folder).as_posix()
        state.update(f"{name}\0".encode() + _streamed(part).digest())  # fixed-size digests: no two lists run together
    return state.hexdigest()


def _streamed(path: Path) -> hashlib.blake2b:
    state = hashlib.blake2b(digest_size=32)
    buffer = memoryview(bytearray(1 << 20))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            state.update(buffer[:size])
    return state
