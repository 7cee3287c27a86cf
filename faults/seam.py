"""The libraries of faults/native, which stand before libc in a process, as Python sees them."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["SHORT", "Fault", "Seam"]

SHORT = -1  # in place of an errno: half of the bytes


@dataclass(frozen=True)
class Fault:
    """One call that fails.

    Attributes:
        kind: Of the call: one of ``Seam.kinds``.
        number: Which call of its kind, from 1 on, since ``Seam.begin()``.
        error: An errno, or SHORT.
        all_behind: Whether all later calls of the kind fail too.
    """

    kind: str
    number: int
    error: int
    all_behind: bool = False


class Seam:
    """Counts the calls of this process, and lets one fail. See faults/native/seam.h."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None)
        self._library.fault_kinds.restype = ctypes.c_char_p
        self._library.fault_place.restype = ctypes.c_char_p
        self._library.fault_count.restype = ctypes.c_long
        self.kinds: list[str] = self._library.fault_kinds().decode().split()
        self._library.fault_find_libraries()

    def refuse(self, refused: Mapping[str, int]) -> None:
        """Lets all counted calls of some kinds fail, each with its errno. Forgets earlier ones."""
        for number, kind in enumerate(self.kinds):
            self._library.fault_refuse(number, refused.get(kind, 0))

    def begin(self, fault: Fault | None = None) -> None:
        """Counts from now on, and lets one call fail."""
        if fault is None:
            self._library.fault_begin(-1, ctypes.c_long(0), 0, 0)
        else:
            self._library.fault_begin(
                self.kinds.index(fault.kind),
                ctypes.c_long(fault.number),
                fault.error,
                int(fault.all_behind),
            )

    def end(self) -> bool:
        """Counts no more. Returns whether a call has failed as planned."""
        return bool(self._library.fault_end())

    def counts(self) -> dict[str, int]:
        """How many calls there were between ``begin()`` and ``end()``."""
        return {kind: self._library.fault_count(i) for i, kind in enumerate(self.kinds)}

    @property
    def place(self) -> str:
        """What the call that failed was about: mostly a path."""
        return str(self._library.fault_place().decode(errors="replace"))

    def retried_flush(self) -> bool:
        """Whether a file was flushed again after its flush had failed. Forgets it."""
        return hasattr(self._library, "fault_retried") and bool(self._library.fault_retried())
