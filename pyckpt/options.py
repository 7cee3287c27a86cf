"""Validated options of a save."""

from __future__ import annotations

import os
from dataclasses import dataclass

from pyckpt.cgroups import cpu_limit
from pyckpt.errors import OptionError
from pyckpt.progress import ProgressHook

__all__ = ["BackgroundOptions", "WriteOptions", "available_cpus", "default_threads"]

_HIGHEST_NICE = 19


@dataclass(frozen=True)
class WriteOptions:
    """How an archive is written.

    Attributes:
        compression_level: The format's level, or None for its standard level. What a level does
            depends on the format: see docs/format.md.
        num_threads: Worker threads, at least 1, or None for :func:`default_threads`.
        fsync: Whether the save waits until the file and its name are on the disk.
        progress: See pyckpt.progress.

    Raises:
        OptionError: A value is out of range or of the wrong type.
    """

    compression_level: int | None = None
    num_threads: int | None = None
    fsync: bool = True
    progress: ProgressHook = False

    def __post_init__(self) -> None:
        for name in ("compression_level", "num_threads"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
                raise OptionError(f"{name} must be an int or None, not {value!r}")
        if not isinstance(self.fsync, bool):
            raise OptionError(f"fsync must be a bool, not {self.fsync!r}")
        if not isinstance(self.progress, bool) and not callable(self.progress):
            raise OptionError(f"progress must be a bool or callable, not {self.progress!r}")
        if self.num_threads is not None and self.num_threads < 1:
            raise OptionError(f"num_threads must be at least 1, not {self.num_threads}")

    def threads(self, writers_on_node: int = 1) -> int:
        """How many threads a writer uses if ``writers_on_node`` processes write."""
        return self.num_threads or default_threads(writers_on_node)


@dataclass(frozen=True)
class BackgroundOptions(WriteOptions):
    """How an archive is written while training goes on.

    Attributes:
        num_threads: As in WriteOptions, but None takes half as many, at least one.
        nice: How much the threads' priority is lowered, 0 to 19: see nice(2).

    Raises:
        OptionError: A value is out of range or of the wrong type.
    """

    nice: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.nice, int) or isinstance(self.nice, bool):
            raise OptionError(f"nice must be an int, not {self.nice!r}")
        if not 0 <= self.nice <= _HIGHEST_NICE:
            raise OptionError(f"nice must be 0 to {_HIGHEST_NICE}, not {self.nice}")

    def threads(self, writers_on_node: int = 1) -> int:
        """How many threads a writer uses if ``writers_on_node`` processes write."""
        return self.num_threads or max(1, default_threads(writers_on_node) // 2)


def available_cpus() -> int:
    """How many CPUs this process may use: its affinity, limited by its cgroups' quotas."""
    try:
        cpus = len(os.sched_getaffinity(0))
    except AttributeError:  # this system has no affinity
        cpus = os.cpu_count() or 1
    limit = cpu_limit()
    return cpus if limit is None else min(cpus, max(1, int(limit)))


def default_threads(writers_on_node: int = 1) -> int:
    """An equal share of the available CPUs for each rank that writes on this node."""
    return max(1, available_cpus() // max(1, writers_on_node))
