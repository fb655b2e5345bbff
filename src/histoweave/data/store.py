"""Arrays on disk by address: written in chunks that survive a kill, published whole by one rename, read memory-mapped.

Layout under the root of a store (plain ``.npy`` files rather than a chunked format, because pixel windows are
memory-mapped and handed to training by row)::

    ab/abcd…/meta.json, emb.npy, …      an entry: appears in one rename, never changes afterwards
    ab/abcd….parts-64/00000007.npy      a draft: finished chunks of at most 64 rows, one file each
    links/ef01….json                    a second name of an entry

A chunk is written to a temporary name, flushed to the disk and renamed, so it is either whole or absent. The entry is
assembled inside the draft's folder and then renamed, so of two processes that work on one address the first to finish
wins and the other finds the work done.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from histoweave.data._atomic import BLOCK, building, digest_of, dump, flush_folder, map_array, sweep, writing

FORMAT = 1
Fields = Mapping[str, tuple[tuple[int, ...], Any]]  # name of an array -> (shape of one row, dtype)
_DISK_FULL = frozenset({errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)})


class StoreMismatch(ValueError):
    """What lies in the store is not what its address or its meta data say."""


class DiskFull(OSError):
    """The disk cannot take what is to be stored."""


class Store:
    """Arrays by address below the folder `root`, which is made when the first thing is written."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)

    def __repr__(self) -> str:
        return f"Store({str(self.root)!r})"

    @staticmethod
    def address(**parts: Any) -> str:
        """Give the address of what `parts` describe: 64 hex digits, the same on every machine and in every run.

        Parts are text, whole and finite numbers, booleans, None, and lists and dictionaries of these. An array goes in
        as its digest. Paths, dates and other objects are refused (TypeError): they would tie an address to a machine
        or a moment.
        """
        return hashlib.sha256(_canonical({"format": FORMAT, "parts": parts})).hexdigest()

    def folder(self, address: str) -> Path:
        """Give the folder in which the entry of this address lies, or would lie."""
        if len(address) != 64 or set(address) - set("0123456789abcdef"):
            raise ValueError(f"{address!r} is not an address: expected the 64 hex digits that Store.address() gives")
        return self.root / address[:2] / address

    def __contains__(self, address: object) -> bool:
        return isinstance(address, str) and (self.folder(address) / "meta.json").is_file()

    def meta(self, address: str) -> dict[str, Any]:
        """Read what is written about an entry: its parts, and per array the shape, dtype and digest.

        Raises FileNotFoundError if there is no such entry, and StoreMismatch if its parts do not give this address.
        """
        path = self.folder(address) / "meta.json"
        try:
            meta = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            raise FileNotFoundError(f"the store {str(self.root)!r} holds nothing at address {address!r}") from None
        except ValueError as error:
            raise StoreMismatch(f"{str(path)!r} is not readable ({error}); {_REMEDY}") from error
        if meta.get("format") != FORMAT or Store.address(**meta.get("parts", {})) != address:
            raise StoreMismatch(
                f"{str(path)!r} describes something else than address {address!r} stands for (for example another "
                f"encoder, slide or version); entries are never renamed or edited by hand: {_REMEDY}"
            )
        return dict(meta)

    def open(self, address: str, *, verify: bool = False) -> dict[str, np.memmap[Any, Any]]:
        """Map every array of an entry read-only. Shapes and dtypes are checked, with `verify` the digests as well."""
        found: dict[str, np.memmap[Any, Any]] = {}
        for name, expected in self.meta(address)["arrays"].items():
            path = self.folder(address) / f"{name}.npy"
            try:
                array = map_array(path)
            except (OSError, ValueError) as error:
                raise StoreMismatch(f"{str(path)!r} is missing or damaged ({error}); {_REMEDY}") from error
            if list(array.shape) != expected["shape"] or array.dtype.str != expected["dtype"]:
                raise StoreMismatch(
                    f"{str(path)!r} holds {array.dtype.str} {list(array.shape)}, its meta.json says "
                    f"{expected['dtype']} {expected['shape']}; {_REMEDY}"
                )
            if verify and digest_of(array) != expected["digest"]:
                raise StoreMismatch(f"the bytes of {str(path)!r} have changed since they were written; {_REMEDY}")
            found[name] = array
        return found

    def require(self, needed: int) -> None:
        """Raise DiskFull if less than `needed` bytes are free where the store lies."""
        place = self.root.absolute()
        while not place.exists():
            place = place.parent
        free = shutil.disk_usage(place).free
        if free < needed:
            raise _disk_full(self.root, needed, free)

    def draft(self, parts: Mapping[str, Any], rows: int, fields: Fields, *, chunk: int) -> Draft:
        """Begin, or go on with, the entry that `parts` describe: `rows` rows of the arrays that `fields` names."""
        return Draft(self, parts, rows, fields, chunk=chunk)

    def link(self, name: str, address: str) -> None:
        """Let `name` (made by `Store.address`) lead to `address`; an earlier link of that name is replaced."""
        if self.follow(name) != address:
            with writing(self._link_path(name)) as handle:
                handle.write(_canonical({"address": address}))

    def follow(self, name: str) -> str | None:
        """Give the address that a link leads to, or None if there is no such link or nothing at its end."""
        try:
            target = str(json.loads(self._link_path(name).read_text("utf-8"))["address"])
        except FileNotFoundError:
            return None
        return target if target in self else None

    def _link_path(self, name: str) -> Path:
        return self.root / "links" / f"{self.folder(name).name}.json"


class Draft:
    """An entry under way: its rows arrive in chunks, in any order, from one or several runs.

    `chunk` is the number of rows of every chunk but the last. It belongs to the draft: another size starts afresh.
    """

    def __init__(self, store: Store, parts: Mapping[str, Any], rows: int, fields: Fields, *, chunk: int) -> None:
        if rows < 0 or chunk < 1:
            raise ValueError(f"a draft needs rows >= 0 and chunk >= 1, got rows={rows} and chunk={chunk}")
        self.store, self.parts, self.rows, self.chunk = store, dict(parts), rows, chunk
        self.address = Store.address(**self.parts)
        named = [(name, np.dtype(kind).newbyteorder("<"), shape) for name, (shape, kind) in fields.items()]
        self.dtype = np.dtype([("row", np.dtype("<i8"), ()), *named])
        home = store.folder(self.address)
        self.folder = home.with_name(f"{home.name}.parts-{chunk}")
        if self.published:
            self._clear()
        else:
            sweep(self.folder)

    @property
    def published(self) -> bool:
        """Whether the entry is in the store already."""
        return self.address in self.store

    @property
    def chunks(self) -> int:
        """Number of chunks of the whole."""
        return math.ceil(self.rows / self.chunk)

    @property
    def bytes_needed(self) -> int:
        """Bytes still to be written: the missing chunks, and the entry that is assembled from all of them."""
        if self.published:
            return 0
        have = sum(1 for index in range(self.chunks) if self._part(index).exists())
        return self.dtype.itemsize * (self.rows - min(have * self.chunk, self.rows) + self.rows)

    def done(self, index: int, rows: np.ndarray | None = None) -> bool:
        """Whether chunk `index` is finished and, where `rows` (b,) are given, holds exactly these, in this order."""
        if self.published:
            return True
        try:
            part = map_array(self._part(index))
        except (OSError, ValueError):
            return False
        return part.dtype == self.dtype and (rows is None or np.array_equal(part["row"], rows))

    def put(self, index: int, rows: np.ndarray, **values: np.ndarray) -> None:
        """Write one chunk: the `values` (b, …) of `rows` (b,). It is on the disk when this returns, else DiskFull."""
        names = set(self.dtype.names or ()) - {"row"}
        if set(values) != names:
            raise ValueError(f"a chunk of this draft needs the arrays {sorted(names)}, got {sorted(values)}")
        block = np.empty(len(rows), self.dtype)
        block["row"] = rows
        for name, value in values.items():
            if value.shape != block[name].shape:
                raise ValueError(f"array {name!r} of a chunk has shape {value.shape}, expected {block[name].shape}")
            block[name] = value
        with self._guarded():
            try:
                self._save(index, block)
            except FileNotFoundError:  # the folder went away under us: another process has published or swept
                if not self.published:
                    self._save(index, block)

    def finish(self, **whole: np.ndarray) -> str:
        """Assemble the chunks in row order, add the arrays given `whole`, publish in one rename, give the address.

        Raises ValueError if rows are missing. Where another process was first, its entry stands, and this draft goes.
        """
        if not self.published:
            with self._guarded():
                try:
                    self._publish(whole)
                except (OSError, ValueError) as error:
                    if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                        self._check_theirs(error)
                    elif not self.published:  # else: the other process removed the chunks while we read them
                        raise
        self._clear()
        return self.address

    def _publish(self, whole: Mapping[str, np.ndarray]) -> None:
        parts = [map_array(self._part(index)) for index in range(self.chunks) if self._part(index).exists()]
        held = np.concatenate([np.empty(0, np.int64), *(part["row"] for part in parts)])
        if not np.array_equal(np.sort(held), np.arange(self.rows)):
            raise ValueError(f"{str(self.folder)!r} holds {len(held)} of {self.rows} rows; put the rest first")
        order = np.argsort(held)
        part_of = np.repeat(np.arange(len(parts)), [len(part) for part in parts])[order]
        place_of = np.concatenate([held[:0], *(np.arange(len(part)) for part in parts)])[order]
        home = self.store.folder(self.address)
        with building(self.folder) as room:
            arrays = {}
            for name in self.dtype.names or ():
                if name != "row":
                    step, (base, row) = max(1, BLOCK // self.dtype[name].itemsize), _split(self.dtype[name])
                    cuts = [slice(at, at + step) for at in range(0, self.rows, step)]
                    blocks = (_gather(parts, name, part_of[cut], place_of[cut]) for cut in cuts)
                    arrays[name] = _save_array(room / f"{name}.npy", (self.rows, *row), base, blocks)
            for name, array in whole.items():
                arrays[name] = _save_array(room / f"{name}.npy", array.shape, array.dtype, iter([array]))
            with writing(room / "meta.json") as handle:
                handle.write(_canonical({"format": FORMAT, "parts": self.parts, "arrays": arrays}))
            room.rename(home)
        flush_folder(home.parent)

    def _check_theirs(self, error: OSError) -> None:
        if not self.published:
            home = str(self.store.folder(self.address))
            raise StoreMismatch(f"{home!r} is in the way: it has no meta.json; {_REMEDY}") from error

    def _save(self, index: int, block: np.ndarray) -> None:
        with writing(self._part(index)) as handle:
            dump(handle, block.shape, block.dtype, iter([block]))

    def _clear(self) -> None:
        for leftover in self.folder.parent.glob(f"{self.address}.parts-*"):
            shutil.rmtree(leftover, ignore_errors=True)

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in _DISK_FULL:
                raise
            raise _disk_full(self.folder, self.bytes_needed, None) from error

    def _part(self, index: int) -> Path:
        return self.folder / f"{index:08d}.npy"


_REMEDY = "delete the entry's folder and run again"


def _canonical(value: Any) -> bytes:
    def refuse(found: Any) -> Any:
        raise TypeError(
            f"an address is made of text, numbers, booleans, None, lists and dictionaries, got a "
            f"{type(found).__name__!r}: {found!r}; turn an array into its digest, leave out paths and dates"
        )

    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=refuse).encode()


def _disk_full(folder: Path, needed: int, free: int | None) -> DiskFull:
    have = "" if free is None else f" and {free / 1e6:,.1f} MB are free"
    return DiskFull(
        errno.ENOSPC,
        f"no room on the disk: {needed / 1e6:,.1f} MB are still to be written{have}. Nothing half-written is left; "
        "make room or choose another folder, and run the same command again: it goes on from the finished chunks",
        str(folder),
    )


def _save_array(
    path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], blocks: Iterator[np.ndarray]
) -> dict[str, Any]:
    with writing(path) as handle:
        digest = dump(handle, shape, dtype, blocks)
    return {"shape": list(shape), "dtype": dtype.str, "digest": digest}


def _split(dtype: np.dtype[Any]) -> tuple[np.dtype[Any], tuple[int, ...]]:
    return dtype.base, dtype.shape


def _gather(parts: list[Any], name: str, part_of: np.ndarray, place_of: np.ndarray) -> np.ndarray:
    """Collect the rows (b, …) of one array from the chunks in which they lie."""
    base, row = _split(parts[0].dtype[name])
    out = np.empty((len(part_of), *row), base)
    for part in np.unique(part_of):
        here = part_of == part
        out[here] = parts[part][name][place_of[here]]
    return out
