"""What a process has open and running, to see what a failure has left behind."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any

__all__ = ["Leaks"]

_PATIENCE_SECONDS = 2.0  # a thread that has ended takes a moment to go


class Leaks:
    """What the process has now, and what is raised where nobody catches it from now on."""

    def __init__(self) -> None:
        self._descriptors = _descriptors()
        self._threads = _thread_count()
        self._unheard: list[str] = []
        self._hooks = sys.unraisablehook, threading.excepthook
        sys.unraisablehook = self._note_unraisable
        threading.excepthook = self._note_unraisable

    def found(self) -> list[str]:
        """What has been left since then, in words. Call it once."""
        sys.unraisablehook, threading.excepthook = self._hooks
        end = time.monotonic() + _PATIENCE_SECONDS
        while _thread_count() > self._threads and time.monotonic() < end:
            time.sleep(0.001)
        left = [f"raised unheard: {one}" for one in self._unheard]
        if (count := _thread_count()) > self._threads:
            left.append(f"{count - self._threads} threads are left")
        for number, name in _descriptors().items():
            if self._descriptors.get(number) != name:
                left.append(f"descriptor {number} is left: {name}")
        return left

    def _note_unraisable(self, raised: Any) -> None:
        value = raised.exc_value
        self._unheard.append(f"{raised.exc_type.__name__}: {value}")


def _descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the one with which the folder is read
            continue
    return found


def _thread_count() -> int:
    return len(os.listdir("/proc/self/task"))
