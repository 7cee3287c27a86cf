"""The same work for many things, on a few threads: requests that mostly wait."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import TypeVar

from pyckpt.interrupts import to_the_end
from pyckpt.staging.latch import Latch

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

    def run(ended: Latch) -> None:
        try:
            run_until_error()
        finally:
            ended.set()

    def run_until_error() -> None:
        while not errors:
            try:
                thing = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                work(thing)
            except BaseException as error:
                errors.append(error)

    started: list[Latch] = []
    try:
        with suppress(RuntimeError):  # the system has no more
            for _ in range(min(threads, waiting.qsize())):
                ended = Latch()
                target = partial(run, ended)
                threading.Thread(target=target, name="pyckpt-each", daemon=True).start()
                started.append(ended)
        if not started:
            run_until_error()
        for ended in started:
            ended.wait()
    except BaseException as error:
        errors.insert(0, error)  # so no other begins
        to_the_end(*(ended.wait_through for ended in started))
    if errors:
        raise errors[0]
