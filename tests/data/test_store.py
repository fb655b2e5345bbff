"""The store: addresses, atomic chunks, resuming after a kill, damage, a full disk."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from histoweave.data import store as store_module
from histoweave.data.store import DiskFull, Draft, Store, StoreMismatch

PARTS = {"slide": "abc", "encoder": "tiny", "um_per_px": 0.5}
ROWS, CHUNK, WIDTH = 23, 4, 3


def expected() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(ROWS, WIDTH)).astype(np.float16)


def batches(order: np.ndarray) -> list[tuple[int, np.ndarray]]:
    return [(index, order[at : at + CHUNK]) for index, at in enumerate(range(0, ROWS, CHUNK))]


def draft_of(root: Path, **changed: object) -> Draft:
    fields = {"emb": ((WIDTH,), np.float16), "inside": ((), np.float32)}
    return Store(root).draft({**PARTS, **changed}, ROWS, fields, chunk=CHUNK)


def fill(draft: Draft, order: np.ndarray, *, only: slice = slice(None)) -> int:
    """Put what is missing; give how many chunks that were."""
    written = 0
    for index, rows in batches(order)[only]:
        if not draft.done(index, rows):
            draft.put(index, rows, emb=expected()[rows], inside=rows / ROWS)
            written += 1
    return written


def fill_and_finish(draft: Draft) -> None:
    fill(draft, np.arange(ROWS))
    draft.finish()


def everything(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_an_address_depends_on_every_part_and_on_nothing_else():
    one = Store.address(**PARTS)
    assert one == Store.address(**dict(reversed(PARTS.items())))
    assert len({one, *(Store.address(**{**PARTS, name: "other"}) for name in PARTS)}) == 1 + len(PARTS)
    # addresses must stay what they are, or every store on every disk is void
    text = b'{"format":1,"parts":{"encoder":"tiny","slide":"abc","um_per_px":0.5}}'
    assert one == hashlib.sha256(text).hexdigest()


@pytest.mark.parametrize("value", [Path("slide.tif"), np.arange(3), {1, 2}])
def test_an_address_takes_no_paths_dates_or_arrays(value):
    with pytest.raises(TypeError, match="digest"):
        Store.address(slide=value)


def test_an_address_takes_no_nan():
    with pytest.raises(ValueError, match="JSON"):
        Store.address(um_per_px=float("nan"))


@pytest.mark.parametrize("seed", [0, 1])
def test_rows_come_back_in_their_own_order_whatever_the_order_of_writing(tmp_path, seed):
    order = np.random.default_rng(seed).permutation(ROWS)
    draft = draft_of(tmp_path)
    fill(draft, order)
    address = draft.finish(index=np.arange(6, dtype=np.int32).reshape(2, 3))
    arrays = Store(tmp_path).open(address, verify=True)
    assert isinstance(arrays["emb"], np.memmap)
    assert not arrays["emb"].flags.writeable
    np.testing.assert_array_equal(arrays["emb"], expected())
    np.testing.assert_array_equal(arrays["inside"], (np.arange(ROWS) / ROWS).astype(np.float32))
    np.testing.assert_array_equal(arrays["index"], [[0, 1, 2], [3, 4, 5]])
    names = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {"meta.json", "emb.npy", "inside.npy", "index.npy"}


def test_an_entry_larger_than_the_assembly_block_is_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "BLOCK", 16)
    draft = draft_of(tmp_path)
    fill(draft, np.random.default_rng(2).permutation(ROWS))
    np.testing.assert_array_equal(Store(tmp_path).open(draft.finish(), verify=True)["emb"], expected())


def test_an_empty_entry_is_legal(tmp_path):
    draft = Store(tmp_path).draft(PARTS, 0, {"emb": ((WIDTH,), np.float16)}, chunk=4)
    assert Store(tmp_path).open(draft.finish(), verify=True)["emb"].shape == (0, WIDTH)


def test_resuming_writes_only_what_is_missing(tmp_path):
    order = np.arange(ROWS)
    fill(draft_of(tmp_path), order, only=slice(1, 4))
    again = draft_of(tmp_path)
    assert [again.done(index) for index in range(again.chunks)] == [False, True, True, True, False, False]
    assert fill(again, order) == 3
    np.testing.assert_array_equal(Store(tmp_path).open(again.finish())["emb"], expected())


def test_a_chunk_with_other_rows_is_not_taken_for_done(tmp_path):
    fill(draft_of(tmp_path), np.arange(ROWS))
    backwards = np.arange(ROWS)[::-1]
    again = draft_of(tmp_path)
    assert fill(again, backwards) == again.chunks
    np.testing.assert_array_equal(Store(tmp_path).open(again.finish())["emb"], expected())


def test_finishing_too_early_is_an_error_and_publishes_nothing(tmp_path):
    draft = draft_of(tmp_path)
    fill(draft, np.arange(ROWS), only=slice(0, 2))
    with pytest.raises(ValueError, match="8 of 23 rows"):
        draft.finish()
    assert draft.address not in Store(tmp_path)


def test_a_chunk_of_the_wrong_shape_or_name_is_refused(tmp_path):
    draft = draft_of(tmp_path)
    with pytest.raises(ValueError, match=r"'emb'.*\(4, 2\)"):
        draft.put(0, np.arange(4), emb=np.zeros((4, 2)), inside=np.zeros(4))
    with pytest.raises(ValueError, match="inside"):
        draft.put(0, np.arange(4), emb=np.zeros((4, WIDTH)))


def test_of_two_writers_the_first_wins_and_the_second_agrees(tmp_path):
    one, two = draft_of(tmp_path), draft_of(tmp_path)
    order = np.arange(ROWS)
    fill(one, order, only=slice(0, 3))
    fill(two, order, only=slice(2, None))
    fill(one, order)
    assert one.finish() in Store(tmp_path)
    before = everything(tmp_path)
    two.put(0, order[:CHUNK], emb=np.zeros((CHUNK, WIDTH)), inside=np.zeros(CHUNK))  # its folder is gone by now
    assert two.finish() == one.address
    assert everything(tmp_path) == before


def test_losing_the_race_at_the_very_rename_is_no_error(tmp_path, monkeypatch):
    one, two = draft_of(tmp_path), draft_of(tmp_path)
    fill(one, np.arange(ROWS))
    flush, real = [], store_module.writing

    def slow(path: Path):
        if path.name == "meta.json" and not flush:  # `one` stands just before its rename: let `two` overtake it
            flush.append(path)
            two.finish()
        return real(path)

    monkeypatch.setattr(store_module, "writing", slow)
    one.finish()
    assert flush
    np.testing.assert_array_equal(Store(tmp_path).open(one.address, verify=True)["emb"], expected())


CHILD = """
import sys
import numpy as np
sys.path.insert(0, {tests!r})
from test_store import draft_of, fill, ROWS
from pathlib import Path
print("ready", flush=True)
draft = draft_of(Path({root!r}))
fill(draft, np.arange(ROWS))
draft.finish(index=np.arange(3))
"""


def _child(root: Path) -> subprocess.Popen[str]:
    code = CHILD.format(tests=str(Path(__file__).parent), root=str(root))
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_killed_at_any_moment_the_rerun_ends_with_the_same_bytes(tmp_path):
    undisturbed = draft_of(tmp_path / "clean")
    fill(undisturbed, np.arange(ROWS))
    undisturbed.finish(index=np.arange(3))
    reached = set()
    for point in range(4):
        root = tmp_path / f"killed{point}"
        child = _child(root)
        assert child.stdout is not None
        child.stdout.readline()
        parts = draft_folder(root)
        deadline = time.monotonic() + 20
        while child.poll() is None and len(list(parts.glob("0*.npy"))) < 2 * point and time.monotonic() < deadline:
            pass
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        address = undisturbed.address
        reached.add(len(list(parts.glob("0*.npy"))))
        again = draft_of(root)
        assert address in Store(root) or not (Store(root).folder(address)).exists()
        fill(again, np.arange(ROWS))
        again.finish(index=np.arange(3))
        assert everything(root) == everything(tmp_path / "clean")
    assert len(reached) > 1


def draft_folder(root: Path) -> Path:
    home = Store(root).folder(Store.address(**PARTS))
    return home.with_name(f"{home.name}.parts-{CHUNK}")


def test_what_a_dead_writer_left_is_swept_and_what_a_living_one_holds_is_not(tmp_path):
    draft = draft_of(tmp_path)
    fill(draft, np.arange(ROWS), only=slice(0, 1))
    (draft.folder / ".tmp-dead").write_bytes(b"half a chunk")
    (draft.folder / ".tmp-deadfolder").mkdir()
    (draft.folder / ".tmp-deadfolder" / "emb.npy").write_bytes(b"half an entry")
    with store_module.writing(draft.folder / "live.npy") as handle:
        handle.write(b"x")
        draft_of(tmp_path)
        assert len(list(draft.folder.glob(".tmp-*"))) == 1
    assert {path.name for path in draft.folder.iterdir()} == {"00000000.npy", "live.npy"}


@pytest.mark.parametrize("moment", ["chunk", "entry"])
def test_a_full_disk_is_one_clear_error_and_the_rerun_goes_on(tmp_path, monkeypatch, moment):
    real, calls = store_module.dump, []

    def full(handle, shape, dtype, blocks):
        calls.append(shape)
        if (moment == "chunk" and len(calls) == 3) or (moment == "entry" and shape == (ROWS, WIDTH)):
            handle.write(b"half of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(handle, shape, dtype, blocks)

    monkeypatch.setattr(store_module, "dump", full)
    draft = draft_of(tmp_path)
    with pytest.raises(DiskFull, match=r"MB are still to be written.*run the same command again") as caught:
        fill_and_finish(draft)
    assert caught.value.errno == errno.ENOSPC
    assert str(draft.folder) in str(caught.value)
    assert not list(tmp_path.rglob(".tmp-*"))
    assert draft.address not in Store(tmp_path)
    monkeypatch.setattr(store_module, "dump", real)
    again = draft_of(tmp_path)
    assert fill(again, np.arange(ROWS)) == (again.chunks - 2 if moment == "chunk" else 0)
    np.testing.assert_array_equal(Store(tmp_path).open(again.finish(), verify=True)["emb"], expected())


def test_an_error_other_than_a_full_disk_keeps_its_name(tmp_path, monkeypatch):
    def broken(*_args: object) -> str:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(store_module, "dump", broken)
    with pytest.raises(OSError, match="input/output") as caught:
        fill(draft_of(tmp_path), np.arange(ROWS))
    assert not isinstance(caught.value, DiskFull)


def test_too_little_room_is_said_before_anything_is_written(tmp_path):
    with pytest.raises(DiskFull, match="are free"):
        Store(tmp_path / "new" / "store").require(1 << 60)
    Store(tmp_path).require(0)
    assert not (tmp_path / "new").exists()


def test_bytes_needed_counts_missing_chunks_and_the_entry(tmp_path):
    draft = draft_of(tmp_path)
    item = 8 + 2 * WIDTH + 4
    assert draft.bytes_needed == 2 * ROWS * item
    fill(draft, np.arange(ROWS), only=slice(0, 2))
    assert draft.bytes_needed == (2 * ROWS - 2 * CHUNK) * item
    fill(draft, np.arange(ROWS))
    draft.finish()
    assert draft.bytes_needed == 0


@pytest.fixture
def entry(tmp_path) -> tuple[Store, str, Path]:
    draft = draft_of(tmp_path)
    fill(draft, np.arange(ROWS))
    address = draft.finish()
    return Store(tmp_path), address, Store(tmp_path).folder(address)


def test_an_entry_of_another_encoder_is_told_from_its_address(entry):
    store, address, folder = entry
    meta = json.loads((folder / "meta.json").read_text())
    meta["parts"]["encoder"] = "another"
    (folder / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(StoreMismatch, match="another encoder"):
        store.open(address)


def test_another_encoder_has_another_address(tmp_path):
    assert draft_of(tmp_path).address != draft_of(tmp_path, encoder="another").address


def test_damage_is_found(entry):
    store, address, folder = entry
    data = bytearray((folder / "emb.npy").read_bytes())
    data[-1] ^= 1
    (folder / "emb.npy").write_bytes(data)
    store.open(address)
    with pytest.raises(StoreMismatch, match="bytes"):
        store.open(address, verify=True)
    (folder / "emb.npy").write_bytes(data[:-20])
    with pytest.raises(StoreMismatch, match="damaged"):
        store.open(address)
    np.save(folder / "emb.npy", np.zeros((2, 2)))
    with pytest.raises(StoreMismatch, match=r"\[2, 2\]"):
        store.open(address)
    (folder / "meta.json").write_text("{")
    with pytest.raises(StoreMismatch, match="not readable"):
        store.open(address)


def test_an_entry_without_meta_is_named(entry):
    store, address, folder = entry
    (folder / "meta.json").unlink()
    with pytest.raises(FileNotFoundError, match=address):
        store.open(address)
    draft = draft_of(store.root)
    fill(draft, np.arange(ROWS))
    with pytest.raises(StoreMismatch, match="in the way"):
        draft.finish()


def test_what_is_not_an_address_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not an address"):
        Store(tmp_path).open("../../etc/passwd")


def test_links_lead_to_entries_and_move(entry):
    store, address, _ = entry
    name = Store.address(section="A1")
    assert store.follow(name) is None
    store.link(name, address)
    assert store.follow(name) == address
    fill(other := draft_of(store.root, slide="new"), np.arange(ROWS))
    store.link(name, other.finish())
    assert store.follow(name) == other.address
    (store.folder(other.address) / "meta.json").unlink()
    assert store.follow(name) is None
