"""What the workers of a save cost each other, and what more of them would bring.

    python -m benchmarks.pipeline [--help]

First measured: how often the threads of a save are switched, for each chunk, and the time that they
spend in the system, with few and with many threads. Then calculated, not measured: the stages of a
save, as one thread takes them here, put together for more cores than this machine has.
"""

from __future__ import annotations

import argparse
import heapq
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import pyckpt
from benchmarks.table import format_table

__all__ = ["main"]

CHUNK_NBYTES = {".tar": 4 << 20, ".tar.gz": 1 << 20}
SEGMENT_NBYTES = 2 << 20
SEGMENTS = 8
SLOTS_A_THREAD = 2


@dataclass
class Cost:
    """Of one save, in seconds, and switches of all its threads."""

    wall: float
    user: float
    system: float
    switches: int


def cost_of(work: Callable[[], object]) -> Cost:
    """Measures one call."""
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    work()
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    return Cost(
        wall,
        after.ru_utime - before.ru_utime,
        after.ru_stime - before.ru_stime,
        after.ru_nvcsw + after.ru_nivcsw - before.ru_nvcsw - before.ru_nivcsw,
    )


def least(state: object, path: Path, threads: int, repeat: int) -> Cost:
    """What saves into the page cache cost at least."""
    costs = []
    for _ in range(repeat):
        os.sync()
        costs.append(cost_of(lambda: pyckpt.save(state, path, num_threads=threads, fsync=False)))
        path.unlink()
    # The kernel tells the sum of both times exactly, and samples how it divides.
    total = min(cost.user + cost.system for cost in costs)
    share = sum(cost.user for cost in costs) / sum(cost.user + cost.system for cost in costs)
    return Cost(
        min(cost.wall for cost in costs),
        share * total,
        (1 - share) * total,
        min(cost.switches for cost in costs),
    )


def measure(folder: Path, nbytes: int, threads: Sequence[int], repeat: int) -> None:
    """Prints what a save costs with so many threads."""
    few = {"w": torch.randn(nbytes // 4)}
    many = {f"w{n}": torch.randn(25_000) for n in range(nbytes // 100_000)}
    rows = []
    for name, state in (("one tensor", few), ("tensors of 100 kB", many)):
        for suffix, chunk in CHUNK_NBYTES.items():
            for count in threads:
                cost = least(state, folder / f"x{suffix}", count, repeat)
                rows.append(
                    (
                        f"{suffix}, {name}",
                        str(count),
                        f"{cost.switches / (nbytes / chunk):.1f}",
                        f"{cost.system / nbytes * 1e9:.2f}",
                        f"{cost.user / nbytes * 1e9:.2f}",
                        f"{cost.wall / nbytes * 1e9:.2f}",
                    )
                )
    header = ("ns a byte, fsync=False", "threads", "switches a chunk", "system", "user", "wall")
    print(format_table(header, rows), flush=True)


@dataclass
class Stages:
    """Seconds that a chunk takes in each stage, and its share of the file."""

    chunk_nbytes: int
    encode: float  # read, checksum, encode: any worker
    ordered: float  # join and place: one worker at a time; assumed
    write: float  # into the page cache: one worker at a time
    copy: float  # into a segment: any worker
    device: float  # from a segment: the device


def stages_of(folder: Path, suffix: str, nbytes: int, repeat: int, device: float) -> Stages:
    """The stages as one thread takes them here, and a device of so many bytes a second."""
    chunk = CHUNK_NBYTES[suffix]
    source, segments = torch.ones(32, SEGMENT_NBYTES), torch.empty(SEGMENTS, SEGMENT_NBYTES)

    def copy() -> None:
        for n, piece in enumerate(source):
            segments[n % SEGMENTS].copy_(piece)

    torch.set_num_threads(1)
    seconds = []
    for _ in range(repeat):
        start = time.thread_time()
        copy()
        seconds.append(time.thread_time() - start)
    copying = min(seconds) / source.nbytes
    cost = least({"w": torch.randn(nbytes // 4)}, folder / f"x{suffix}", 1, repeat)
    part = chunk / nbytes
    return Stages(
        chunk, cost.user * part, 2e-6, cost.system * part, copying * chunk, chunk / device
    )


def simulate(stages: Stages, cores: int, *, direct: bool, chunks: int = 20_000) -> float:
    """Bytes a second with a worker on each core."""
    chance = random.Random(0)
    workers = [0.0] * cores  # when each has nothing to do
    slots = SLOTS_A_THREAD * cores
    written: list[float] = []  # when the slot of a chunk is free again
    on_device: list[float] = []
    in_segments = SEGMENTS * SEGMENT_NBYTES // stages.chunk_nbytes
    placed = lock = device = 0.0
    for k in range(chunks):
        start = heapq.heappop(workers)
        if k >= slots:
            start = max(start, written[k - slots])
        encoded = start + stages.encode * chance.uniform(0.8, 1.2)
        placed = max(encoded, placed) + stages.ordered
        if direct:
            room = on_device[k - in_segments] if k >= in_segments else 0.0
            done = max(placed, room) + stages.copy
            device = max(done, device) + stages.device
            on_device.append(device)
        else:
            done = lock = max(placed, lock) + stages.write
        written.append(done)
        # A worker does not wait for its place: others place and write for it.
        heapq.heappush(workers, encoded + (stages.copy if direct else done - max(placed, encoded)))
    return chunks * stages.chunk_nbytes / max(written[-1], device)


def calculate(folder: Path, nbytes: int, repeat: int, device: float) -> None:
    """Prints the throughput of more cores."""
    cores = (1, 2, 4, 16, 64)
    rows = []
    for suffix in CHUNK_NBYTES:
        stages = stages_of(folder, suffix, nbytes, repeat, device)
        print(
            f"{suffix}: ns a byte: encode {stages.encode / stages.chunk_nbytes * 1e9:.3f}, "
            f"page cache {stages.write / stages.chunk_nbytes * 1e9:.3f}, "
            f"segment {stages.copy / stages.chunk_nbytes * 1e9:.3f}"
        )
        for direct in (False, True):
            way = "past the page cache" if direct else "page cache"
            speeds = [simulate(stages, count, direct=direct) / 1e9 for count in cores]
            rows.append((f"{suffix}, {way}", *(f"{speed:.1f}" for speed in speeds)))
    print(f"\nCalculated GB/s, with a device of {device / 1e9:g} GB/s, by cores\n")
    print(format_table(("", *map(str, cores)), rows))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pipeline", description=(__doc__ or "").partition("\n")[0]
    )
    add = parser.add_argument
    add("--nbytes", type=int, default=100_000_000, help="of the states (%(default)s)")
    add("--threads", type=int, nargs="+", default=(2, 8, 32, 64), help="of measured saves")
    add("--repeat", type=int, default=5, help="runs each; the least counts (%(default)s)")
    add("--device", type=float, default=7e9, help="bytes a second, calculated (%(default)s)")
    add("--folder", type=Path, default=Path(), help="where to write (the current directory)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="pyckpt-benchmark-", dir=options.folder) as folder:
        measure(Path(folder), options.nbytes, options.threads, options.repeat)
        print()
        calculate(Path(folder), options.nbytes, options.repeat, options.device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
