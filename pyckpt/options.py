"""Validated options of saves and loads."""

from __future__ import annotations

import operator
import os
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from pyckpt.cgroups import cpu_limit
from pyckpt.errors import OptionError
from pyckpt.progress import ProgressHook

__all__ = [
    "BackgroundOptions",
    "Stage",
    "WhenBusy",
    "WriteOptions",
    "available_cpus",
    "default_threads",
    "whole_number",
    "whole_threads",
]

Stage = Literal["copy", "lazy"] | None
WhenBusy = Literal["wait", "raise"]

_MOST_THREADS = 4096  # each has a stack and buffers, also if it finds no work
_HIGHEST_NICE = 19
_CPU_LIMIT_SECONDS = 10.0


def whole_number(
    name: str, value: object, lowest: int | None = None, highest: int | None = None
) -> int:
    """``value`` as an int: it may be an integer of NumPy, but no bool and no float.

    Args:
        highest: Only with ``lowest``.

    Raises:
        OptionError: It is no integer, or out of range.
    """
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise OptionError(f"{name} must be an int, not {value!r}") from None
    if lowest is not None and not lowest <= number <= (number if highest is None else highest):
        allowed = f"at least {lowest}" if highest is None else f"{lowest} to {highest}"
        raise OptionError(f"{name} must be {allowed}, not {number}")
    return number


def whole_threads(value: object) -> int:
    """A number of threads as an int.

    Raises:
        OptionError: It is no integer, or out of range.
    """
    return whole_number("num_threads", value, 1, _MOST_THREADS)


@dataclass(frozen=True)
class WriteOptions:
    """How an archive is written.

    Attributes:
        compression_level: The format's level, or None for its standard level. What a level does
            depends on the format: see docs/format.md.
        num_threads: Worker threads, 1 to 4096, or None for :func:`default_threads`.
        fsync: Whether the save waits until the file and its name are on the disk. The file does not
            stay in the page cache then.
        progress: See pyckpt.progress.

    Raises:
        OptionError: A value is out of range or of the wrong type.
    """

    compression_level: int | None = None
    num_threads: int | None = None
    fsync: bool = True
    progress: ProgressHook = False

    def __post_init__(self) -> None:
        if self.compression_level is not None:
            level = whole_number("compression_level", self.compression_level)
            object.__setattr__(self, "compression_level", level)
        if self.num_threads is not None:
            object.__setattr__(self, "num_threads", whole_threads(self.num_threads))
        if not isinstance(self.fsync, bool):
            raise OptionError(f"fsync must be a bool, not {self.fsync!r}")
        if not isinstance(self.progress, bool) and not callable(self.progress):
            raise OptionError(f"progress must be a bool or callable, not {self.progress!r}")

    def threads(self, writers_on_node: int = 1) -> int:
        """How many threads a writer uses if ``writers_on_node`` processes write."""
        return self.num_threads or default_threads(writers_on_node)


@dataclass(frozen=True)
class BackgroundOptions(WriteOptions):
    """How an archive is written while training goes on.

    Attributes:
        num_threads: As in WriteOptions, but None takes half as many, at least one.
        nice: How much the threads' priority is lowered, 0 to 19: see nice(2).
        stage: How the state is kept while training goes on; None leaves the choice to pyckpt.
        max_pending: How many saves may be under way, this one included.
        when_busy: What to do if that many are under way already.

    Raises:
        OptionError: A value is out of range or of the wrong type.
    """

    nice: int = 10
    stage: Stage = None
    max_pending: int = 1
    when_busy: WhenBusy = "wait"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stage not in (None, "copy", "lazy"):
            raise OptionError(f"stage must be 'copy', 'lazy' or None, not {self.stage!r}")
        if self.when_busy not in ("wait", "raise"):
            raise OptionError(f"when_busy must be 'wait' or 'raise', not {self.when_busy!r}")
        object.__setattr__(self, "max_pending", whole_number("max_pending", self.max_pending, 1))
        object.__setattr__(self, "nice", whole_number("nice", self.nice, 0, _HIGHEST_NICE))

    def threads(self, writers_on_node: int = 1) -> int:
        """How many threads a writer uses if ``writers_on_node`` processes write."""
        return self.num_threads or max(1, default_threads(writers_on_node) // 2)


def available_cpus() -> int:
    """How many CPUs this process may use: its affinity, limited by its cgroups' quotas."""
    try:
        cpus = len(os.sched_getaffinity(0))
    except AttributeError:  # this system has no affinity
        cpus = os.cpu_count() or 1
    limit = _known_cpu_limit(int(time.monotonic() / _CPU_LIMIT_SECONDS))
    return cpus if limit is None else min(cpus, max(1, int(limit)))


@lru_cache(maxsize=1)
def _known_cpu_limit(period: int) -> float | None:
    """The quota, asked once in each period: that takes longer than a small save."""
    return cpu_limit()


def default_threads(writers_on_node: int = 1) -> int:
    """An equal share of the available CPUs for each rank that writes on this node."""
    return max(1, available_cpus() // max(1, writers_on_node))
