"""Files that are whole or absent: written under a temporary name, flushed to the disk, renamed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

TEMP = ".tmp-"  # how every temporary name begins
BLOCK = 8 << 20  # bytes handled at once, which bounds the memory of whoever goes through a large array


@contextlib.contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file that takes the name `path` when the block ends well, and vanishes when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=TEMP, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            _lock(file.fileno())
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.chmod(temporary, 0o644)  # mkstemp makes files that only their owner may read; a store may be shared
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path for what writes files itself; it takes the name `path` when the block ends well, or vanishes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with building(path.parent) as folder:
        temporary = folder / path.name
        yield temporary
        os.replace(temporary, path)


@contextlib.contextmanager
def building(folder: Path) -> Iterator[Path]:
    """Open a temporary folder below `folder`, held as in use; what the block leaves in it is removed at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=TEMP, dir=folder))
    handle = None if os.name == "nt" else os.open(temporary, os.O_RDONLY)
    try:
        if handle is not None:
            _lock(handle)
        temporary.chmod(0o755)
        yield temporary
    finally:
        if handle is not None:
            os.close(handle)
        shutil.rmtree(temporary, ignore_errors=True)


def flush_folder(folder: Path) -> None:
    """Make the names in a folder last through a power cut (where the system can)."""
    if os.name != "nt":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sweep(folder: Path) -> None:
    """Remove what killed processes left in a folder: temporary files and folders that no living process holds."""
    for path in folder.glob(f"{TEMP}*"):
        with contextlib.suppress(OSError):
            if _held(path):
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def _held(path: Path) -> bool:
    if os.name == "nt":  # what is open there cannot be removed, which does the same service
        return False
    handle = os.open(path, os.O_RDONLY)
    try:
        return not _lock(handle)
    finally:
        os.close(handle)


def _lock(handle: int) -> bool:
    """Mark as in use; the mark goes with its process, however that ends. False if another process holds it."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: who finds a temporary file swept away writes it again
        return True
    return True


def dump(handle: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any], blocks: Iterator[np.ndarray]) -> str:
    """Write one .npy file from blocks of rows, and give the digest of its data.

    Not `numpy.save`, whose error on a full disk carries no error number.
    """
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_2_0(handle, header)
    digest = hashlib.blake2b(digest_size=20)
    for block in blocks:
        data = np.ascontiguousarray(block, dtype).reshape(-1).view(np.uint8)
        handle.write(data.data)
        digest.update(data.data)
    return digest.hexdigest()


def digest_of(array: np.ndarray) -> str:
    """Give the digest of an array's bytes, as `dump` gave it."""
    digest = hashlib.blake2b(digest_size=20)
    flat = array.reshape(-1).view(np.uint8)
    for at in range(0, len(flat), BLOCK):
        digest.update(flat[at : at + BLOCK].data)
    return digest.hexdigest()


def map_array(path: Path) -> Any:
    """Map a .npy file read-only; an array without elements, which cannot be mapped, is read."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError:
        empty = np.load(path, allow_pickle=False)
        if empty.size:
            raise
        return empty
