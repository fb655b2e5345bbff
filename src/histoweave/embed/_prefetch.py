"""Runs an iterator ahead in a thread, a bounded number of items."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def prefetch(source: Iterator[T], depth: int) -> Iterator[Iterator[T]]:
    """Give the items of `source`, up to `depth` of them made ahead; its errors appear where they would have.

    When the block is left, the thread stops after the item at work.
    """
    items: queue.Queue[tuple[bool, T | BaseException | None]] = queue.Queue(depth)
    stop = threading.Event()

    def hand_over(item: T | BaseException | None, *, last: bool = False) -> None:
        while not stop.is_set():
            try:
                return items.put((last, item), timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in source:
                hand_over(item)
                if stop.is_set():
                    return
        except BaseException as error:  # noqa: BLE001  it is raised in the thread that waits for it
            hand_over(error, last=True)
        else:
            hand_over(None, last=True)

    def receive() -> Iterator[T]:
        while True:
            last, item = items.get()
            if not last:
                yield item  # type: ignore[misc]
            elif isinstance(item, BaseException):
                raise item
            else:
                return

    thread = threading.Thread(target=work, name="decode", daemon=True)
    thread.start()
    try:
        yield receive()
    finally:
        stop.set()
        thread.join()
