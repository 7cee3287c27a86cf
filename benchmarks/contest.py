"""Ways to write one state, or to read one file, measured in turn."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.rivals import Writer

__all__ = ["Result", "least_cpu", "measure", "measure_reads"]


@dataclass
class Result:
    """The seconds of each run of one way, the CPU seconds of reads, and the written file's size."""

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    file_nbytes: int = 0

    @property
    def median(self) -> float:
        """The median of all runs, in seconds."""
        return statistics.median(self.seconds)


def measure(
    state: Any,
    paths: Mapping[str, Path],
    writers: Mapping[str, Writer],
    *,
    repeat: int,
    fsync: bool,
) -> dict[str, Result]:
    """Runs the writers one after another, ``repeat`` times; every other round goes backwards.

    Before each run all dirty pages are written to disk, so that no run pays for the one before.
    Each run writes a new file. The files of the last round stay.
    """
    results = {name: Result() for name in writers}
    for round_ in range(repeat):
        for name in list(writers) if round_ % 2 == 0 else reversed(list(writers)):
            os.sync()
            start = time.perf_counter()
            writers[name](state, paths[name], fsync)
            results[name].seconds.append(time.perf_counter() - start)
            results[name].file_nbytes = paths[name].stat().st_size
            if round_ + 1 < repeat:
                paths[name].unlink()
    return results


def measure_reads(readers: Mapping[str, Callable[[], Any]], *, repeat: int) -> dict[str, Result]:
    """Runs the readers one after another, ``repeat`` times; every other round goes backwards.

    A reader's result is freed before the next reader starts. An extra first round, which is not
    counted, brings the files into the page cache.
    """
    results = {name: Result() for name in readers}
    for round_ in range(-1, repeat):
        for name in list(readers) if round_ % 2 == 0 else reversed(list(readers)):
            start, cpu_start = time.perf_counter(), time.process_time()
            obj = readers[name]()
            seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
            del obj
            if round_ >= 0:
                results[name].seconds.append(seconds)
                results[name].cpu_seconds.append(cpu_seconds)
    return results


def least_cpu(action: Callable[[], Any], *, repeat: int) -> float:
    """The CPU seconds, of all threads, of the run that took the fewest."""
    seconds = []
    for _ in range(repeat):
        start = time.process_time()
        action()
        seconds.append(time.process_time() - start)
    return min(seconds)
