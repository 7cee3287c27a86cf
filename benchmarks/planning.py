"""What planning a save of many ranks costs the rank that coordinates it.

    python -m benchmarks.planning [--help]

No ranks are started and nothing is trained: each rank's plan is made as
torch.distributed.checkpoint's planner makes it for FSDP2, which splits every tensor over all ranks.
Then one process does what the coordinator does in ``dcp.save``: unpickle the plans of all ranks,
make the global plan, let the storage writer name the files, pickle a plan for each rank, unpickle
what the ranks say that they have written, and write ``.metadata``. Torch's own storage writer and
pyckpt's do this in turn, each in a process of its own.

With plan caching, ranks whose plan has not changed since the last save send none. The second save
of each writer shows what is left.
"""

from __future__ import annotations

import argparse
import pickle
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import multiprocessing
from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import (
    BytesIOWriteData,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import WriteResult

from benchmarks.machine import describe_machine
from benchmarks.table import format_table
from pyckpt.sharded import StorageReader, StorageWriter

__all__ = ["main"]

_RANKS = (64, 256, 1024)
_TENSORS = 2000
_OBJECTS = 8  # that are no tensors, the same on every rank
_ROWS, _COLUMNS = 8, 1024  # of a shard
_MEMBER_NBYTES = _ROWS * _COLUMNS * 4 + 1024


@dataclass(frozen=True)
class Storage:
    """One storage: what makes its writer and its reader of a folder."""

    writer: Callable[[Path], Any]
    reader: Callable[[Path], Any]


_STORAGES = {
    "torch": Storage(FileSystemWriter, FileSystemReader),
    "pyckpt": Storage(StorageWriter, StorageReader),
}


@dataclass
class Save:
    """Seconds of each step of one save on the coordinator, in order; what it receives and sends."""

    seconds: dict[str, float] = field(default_factory=dict)
    nbytes: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start


@dataclass
class Measured:
    """The saves of one writer: with all plans, and with none because they are cached."""

    first: Save
    second: Save
    read_seconds: float
    peak_nbytes: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark."""
    options = _parse(arguments)
    with tempfile.TemporaryDirectory(prefix="pyckpt-benchmark-", dir=options.folder) as name:
        for key, value in describe_machine(Path(name)).items():
            _say(f"{key + ':':8} {value}")
    measured: dict[tuple[int, str], Measured] = {}
    for ranks in options.ranks:
        for storage in _STORAGES:
            # A new process, so that its peak and the planner's caches are those of one writer.
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                work = (storage, ranks, options.tensors, options.folder)
                measured[ranks, storage] = pool.apply(_measure, work)
            _say(f"{ranks} ranks, {storage}: done")
    _say(f"\n{options.tensors:,} tensors, each split over all ranks: seconds of the coordinator\n")
    _print_seconds(measured)
    _say("\nMB that the coordinator receives and sends, MB of .metadata, peak of its memory\n")
    _print_sizes(measured)
    return 0


def _measure(storage_name: str, ranks: int, tensors: int, parent: Path) -> Measured:
    warnings.simplefilter("ignore")
    storage = _STORAGES[storage_name]
    with tempfile.TemporaryDirectory(prefix="pyckpt-benchmark-", dir=parent) as name:
        folder = Path(name)
        planner = DefaultSavePlanner(enable_plan_caching=True)
        first = _save(
            storage, planner, folder, (_plan(rank, ranks, tensors) for rank in range(ranks))
        )
        unchanged = SavePlan([], usable=False)
        second = _save(storage, planner, folder, (unchanged for _ in range(ranks)))
        start = time.perf_counter()
        storage.reader(folder).read_metadata()
        read = time.perf_counter() - start
    return Measured(first, second, read, _peak_nbytes())


def _save(
    storage: Storage, planner: DefaultSavePlanner, folder: Path, local: Iterator[SavePlan]
) -> Save:
    """What the coordinator does, from the ranks' plans on."""
    save = Save()
    writer = storage.writer(folder)
    writer.reset()
    writer.set_up_storage_writer(True, rank=0, use_collectives=True)
    received = [pickle.dumps(writer.prepare_local_plan(plan)) for plan in local]
    save.nbytes["plans in"] = sum(map(len, received))
    with save.step("unpickle plans"):
        plans = [pickle.loads(one) for one in received]
    del received
    with save.step("global plan"):
        plans, metadata = planner.create_global_plan(plans)
    with save.step("writer's plan"):
        plans = writer.prepare_global_plan(plans)
    with save.step("pickle plans"):
        sent = [pickle.dumps(plan) for plan in plans]
    save.nbytes["plans out"] = sum(map(len, sent))
    del sent
    received = [
        pickle.dumps(_results(whole.items, number))
        for number, whole in enumerate(planner.global_plan)
    ]
    save.nbytes["results in"] = sum(map(len, received))
    with save.step("unpickle results"):
        results = [pickle.loads(one) for one in received]
    del received
    with save.step("finish"):
        writer.finish(replace(metadata), results)
    save.nbytes[".metadata"] = (folder / ".metadata").stat().st_size
    return save


def _plan(rank: int, ranks: int, tensors: int) -> SavePlan:
    """What DefaultSavePlanner makes on a rank that has some rows of every tensor."""
    properties = TensorProperties(torch.float32)
    size = torch.Size((ranks * _ROWS, _COLUMNS))
    offsets = torch.Size((rank * _ROWS, 0))
    chunk = torch.Size((_ROWS, _COLUMNS))
    items = [
        WriteItem(
            MetadataIndex(_name(number), offsets),
            WriteItemType.SHARD,
            tensor_data=TensorWriteData(
                ChunkStorageMetadata(offsets, chunk), replace(properties), size
            ),
        )
        for number in range(tensors)
    ]
    objects = [
        WriteItem(
            MetadataIndex(f"optimizer.param_groups.0.{number}"),
            WriteItemType.BYTE_IO,
            bytes_io_data=BytesIOWriteData(0),
        )
        for number in range(_OBJECTS)
    ]
    items += objects
    paths = {item.index.fqn: tuple(item.index.fqn.split(".")) for item in items}
    return SavePlan(items, planner_data=paths)


def _name(number: int) -> str:
    return f"model.layers.{number // 10}.feed_forward.experts.{number % 10}.weight"


def _results(items: Sequence[WriteItem], rank: int) -> list[WriteResult]:
    """What ``write_data`` of a rank returns: where in its file each item is."""
    file = f"{rank:012}-rank{rank}.tar"
    return [
        WriteResult(
            item.index, _MEMBER_NBYTES, _StorageInfo(file, number * _MEMBER_NBYTES, _MEMBER_NBYTES)
        )
        for number, item in enumerate(items)
    ]


def _peak_nbytes() -> int:
    [line] = [
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    ]
    return int(line.split()[1]) * 1024


def _print_seconds(measured: dict[tuple[int, str], Measured]) -> None:
    steps = list(next(iter(measured.values())).first.seconds)
    header = ("ranks, writer, save", *steps, "total", "read .metadata")
    rows = []
    for (ranks, storage), one in measured.items():
        for number, save in enumerate((one.first, one.second)):
            total = sum(save.seconds.values())
            name = f"{ranks}, {storage}, {'cached' if number else 'first'}"
            cells = [f"{save.seconds[step]:.2f}" for step in steps]
            rows.append((name, *cells, f"{total:.2f}", f"{one.read_seconds:.2f}"))
    _say(format_table(header, rows))


def _print_sizes(measured: dict[tuple[int, str], Measured]) -> None:
    names = list(next(iter(measured.values())).first.nbytes)
    header = ("ranks, writer, save", *names, "peak")
    rows = []
    for (ranks, storage), one in measured.items():
        for number, save in enumerate((one.first, one.second)):
            name = f"{ranks}, {storage}, {'cached' if number else 'first'}"
            cells = [f"{save.nbytes[what] / 1e6:.1f}" for what in names]
            rows.append((name, *cells, f"{one.peak_nbytes / 1e6:,.0f}"))
    _say(format_table(header, rows))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.planning", description=(__doc__ or "").partition("\n")[0]
    )
    add = parser.add_argument
    add("--ranks", type=int, nargs="+", default=_RANKS, help="how many (%(default)s)")
    add("--tensors", type=int, default=_TENSORS, help="of the whole model (%(default)s)")
    add("--folder", type=Path, default=Path(), help="where to write (the current directory)")
    return parser.parse_args(arguments)


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
