"""The same work for many things, on a few threads: requests that mostly wait."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TypeVar

__all__ = ["for_each"]

T = TypeVar("T")


def for_each(work: Callable[[T], object], things: Iterable[T], *, threads: int) -> None:
    """Calls ``work`` with each thing, with up to ``threads`` of them at the same time.

    They begin in their order. After an error, or Ctrl-C, no other begins, and those that have begun
    come to their end, so that it is known of each thing what became of it.

    Raises:
        BaseException: The first that ``work`` raised.
    """
    waiting: queue.SimpleQueue[T] = queue.SimpleQueue()
    for thing in things:
        waiting.put(thing)
    errors: list[BaseException] = []

    def run() -> None:
        while not errors:
            try:
                thing = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                work(thing)
            except BaseException as error:
                errors.append(error)

    started = []
    try:
        with suppress(RuntimeError):  # the system has no more
            for _ in range(min(threads, waiting.qsize())):
                thread = threading.Thread(target=run, name="pyckpt-each", daemon=True)
                thread.start()
                started.append(thread)
        if not started:
            run()
        _join(started)
    except BaseException as error:
        errors.insert(0, error)
        _join(started)
    if errors:
        raise errors[0]


def _join(threads: Iterable[threading.Thread]) -> None:
    for thread in threads:
        thread.join()
