"""How long ranks take to save a model that they share, with pyckpt and in other ways.

    python -m benchmarks.sharded [--help]

Ranks are processes of this machine (gloo). They train the model of benchmarks/states.py under
FSDP2 and save weights and AdamW moments in each way in turn: how long each call blocks training,
how long until the checkpoint is complete, how many bytes it has. The slowest rank counts. All ways
collect their own state dict, and all wait for the disk: for those that do not, the ranks flush
every file.

Memory is measured in runs of their own, one for each way: the most that a rank and the processes
that it has started use above what it used when the save began.

torchsnapshot and torch_checkpointing are measured if they are installed.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import gc
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import multiprocessing
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.fsdp import fully_shard

import pyckpt
from benchmarks.machine import describe_machine
from benchmarks.states import library_text, tensors_of, train, untrained
from benchmarks.table import format_table
from pyckpt.sharded import Stager, StorageWriter

__all__ = ["main"]

_BATCH = 2
_SAMPLE_SECONDS = 0.01

# Targets: ratios of seconds.
UNCOMPRESSED_TO_FASTEST = 1.0
GZIP_TO_STOCK = 1.0
BLOCKED_TO_STOCK = 0.1

# Starts a save into a folder. Returns a future to wait for, or None if nothing goes on.
Start = Callable[[pyckpt.State, Path], "Future[Any] | None"]


@dataclass(frozen=True)
class Way:
    """One way to save.

    Attributes:
        start: Starts a save into a folder that exists.
        needs: The package that must be installed.
        flushes: Whether it waits for the disk by itself.
    """

    start: Start
    needs: str = "torch"
    flushes: bool = True


@dataclass
class Calls:
    """Seconds of one way's calls on the slowest rank; bytes that it wrote."""

    blocked: list[float] = field(default_factory=list)
    complete: list[float] = field(default_factory=list)
    nbytes: int = 0


def _state_dicts(state: pyckpt.State) -> dict[str, Any]:
    model, optimizer = get_state_dict(state.model, state.optimizers)
    return {"model": model, "optimizer": optimizer}


@functools.cache
def _background_group() -> dist.ProcessGroup:
    """For saves in a thread: they must not share a group with training."""
    return dist.new_group(backend="gloo")


def _stock(state: pyckpt.State, folder: Path) -> None:
    dcp.save(_state_dicts(state), checkpoint_id=folder)


def _stock_async(state: pyckpt.State, folder: Path) -> Future[Any]:
    return dcp.async_save(  # type: ignore[return-value]
        _state_dicts(state), checkpoint_id=folder, process_group=_background_group()
    )


def _writer(compression: str | None, state: pyckpt.State, folder: Path) -> None:
    writer = StorageWriter(folder, compression=compression)
    dcp.save(_state_dicts(state), storage_writer=writer)


@functools.cache
def _stager() -> Stager:
    """Kept, as in training: it uses its memory again."""
    return Stager()


def _writer_async(state: pyckpt.State, folder: Path) -> Future[Any]:
    return dcp.async_save(  # type: ignore[return-value]
        _state_dicts(state),
        storage_writer=StorageWriter(folder),
        async_stager=_stager(),
        process_group=_background_group(),
    )


def _saved(suffix: str, shape: str, state: pyckpt.State, folder: Path) -> None:
    name = f"rank{{rank}}{suffix}" if shape == "sharded" else f"all{suffix}"
    pyckpt.save_checkpoint(state, folder / name, state_dict_type=shape)


def _saved_async(suffix: str, stage: str, state: pyckpt.State, folder: Path) -> Future[Any]:
    return pyckpt.async_save_checkpoint(
        state, folder / f"rank{{rank}}{suffix}", state_dict_type="sharded", stage=stage
    )


def _torchsnapshot(state: pyckpt.State, folder: Path) -> None:
    from torchsnapshot import Snapshot, StateDict

    Snapshot.take(str(folder), {"state": StateDict(**_state_dicts(state))})


def _torchsnapshot_async(state: pyckpt.State, folder: Path) -> Future[Any]:
    from torchsnapshot import Snapshot, StateDict

    pending = Snapshot.async_take(str(folder), {"state": StateDict(**_state_dicts(state))})
    return _Waiting(pending.wait)


class _Waiting(Future):  # type: ignore[type-arg]
    """A future whose result is that of a function."""

    def __init__(self, wait: Callable[[], Any]) -> None:
        super().__init__()
        self._wait = wait

    def result(self, timeout: float | None = None) -> Any:
        return self._wait()


@functools.cache
def _manager(blocking: bool) -> Any:
    """torch_checkpointing's, without what it needs CUDA for: pinned memory, and resharding.

    So its checkpoints can only be loaded in the layout in which they were saved. Nor is there
    direct I/O: ext4 refuses the sizes in which it writes.
    """
    from torch_checkpointing import CheckpointManager
    from torch_checkpointing.config import (
        AsyncCheckpointSaverConfig,
        SyncCheckpointSaverConfig,
    )
    from torch_checkpointing.staging import CheckpointStagerConfig
    from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig

    staging = CheckpointStagerConfig(use_pinned_memory=False, use_non_blocking_copy=False)
    save = (
        SyncCheckpointSaverConfig()
        if blocking
        else AsyncCheckpointSaverConfig(staging_config=staging)
    )
    storage = LocalFileSystemStorageConfig(use_direct_io=False)
    return CheckpointManager(CheckpointManager.Config(save=save, storage_config=storage))


def _torch_checkpointing(blocking: bool, state: pyckpt.State, folder: Path) -> Future[Any] | None:
    pending: Future[Any] | None = _manager(blocking).save(str(folder), _state_dicts(state))
    return pending


_STOCK, _STOCK_ASYNC = "dcp.save", "dcp.async_save"
_WRITER, _WRITER_ASYNC = "dcp.save, pyckpt's writer", "dcp.async_save, pyckpt's writer and stager"
_TAR, _TAR_GZ = "pyckpt .tar, sharded", "pyckpt .tar.gz, sharded"
_COPY, _LAZY = "pyckpt .tar.gz, sharded, copy", "pyckpt .tar.gz, sharded, lazy"
_RIVAL = "torch_checkpointing"

_WAYS: dict[str, Way] = {
    _STOCK: Way(_stock),
    _STOCK_ASYNC: Way(_stock_async),
    "torchsnapshot": Way(_torchsnapshot, "torchsnapshot", flushes=False),
    "torchsnapshot, async": Way(_torchsnapshot_async, "torchsnapshot", flushes=False),
    _RIVAL: Way(functools.partial(_torch_checkpointing, True), _RIVAL, flushes=False),
    f"{_RIVAL}, async": Way(functools.partial(_torch_checkpointing, False), _RIVAL, flushes=False),
    _WRITER: Way(functools.partial(_writer, None)),
    f"{_WRITER}, gz": Way(functools.partial(_writer, "gz")),
    _WRITER_ASYNC: Way(_writer_async),
    _TAR: Way(functools.partial(_saved, ".tar", "sharded")),
    _TAR_GZ: Way(functools.partial(_saved, ".tar.gz", "sharded")),
    "pyckpt .tar.gz, full": Way(functools.partial(_saved, ".tar.gz", "full")),
    _COPY: Way(functools.partial(_saved_async, ".tar.gz", "copy")),
    _LAZY: Way(functools.partial(_saved_async, ".tar.gz", "lazy")),
}
# What has to be as fast as the fastest of these: they save in shards, without compression.
_UNCOMPRESSED = (_WRITER, _TAR)
_OTHERS = (_STOCK, "torchsnapshot", _RIVAL)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark."""
    options = _parse(arguments)
    missing = {way.needs for way in _WAYS.values() if not find_spec(way.needs)}
    ways = [
        name for name, way in _WAYS.items() if options.ways in name and way.needs not in missing
    ]
    with tempfile.TemporaryDirectory(prefix="pyckpt-benchmark-", dir=options.folder) as name:
        folder = Path(name)
        for key, value in describe_machine(folder).items():
            _say(f"{key + ':':8} {value}")
        if missing:
            _say(f"left out: {', '.join(sorted(missing))}")
        total, calls = _run(_timed, ways, folder, options)
        _say(f"\n{options.ranks} ranks, FSDP2, {total:,} bytes of weights and AdamW moments\n")
        _print_calls(calls)
        _print_targets(calls)
        if not options.no_memory:
            _say("\nMost memory that a rank used above what it used before the save\n")
            memory = [(name, _run(_peak, [name], folder, options)) for name in ways]
            rows = [(name, f"{nbytes / 1e6:.0f}") for name, nbytes in memory]
            _say(format_table(("", "MB"), rows))
    return 0


def _run(work: Any, ways: list[str], folder: Path, options: argparse.Namespace) -> Any:
    """Runs ``work(state, ways, folder, options)`` on new ranks; returns what rank 0 returns."""
    result = folder / "result"
    multiprocessing.spawn(
        _rank, (work, ways, folder, options), nprocs=options.ranks, start_method="spawn"
    )
    value = torch.load(result, weights_only=False)
    result.unlink()
    (folder / "store").unlink()
    return value


def _rank(rank: int, work: Any, ways: list[str], folder: Path, options: argparse.Namespace) -> None:
    store = dist.FileStore(str(folder / "store"), options.ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=options.ranks)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of each save
        value = work(_trained(options), ways, folder, options)
    if rank == 0:
        torch.save(value, folder / "result")
    dist.barrier()
    _close_managers()
    gc.collect()
    dist.destroy_process_group()


def _trained(options: argparse.Namespace) -> pyckpt.State:
    model = untrained(options.nbytes // 12)
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in train(model, optimizer, library_text(), steps=2, batch=_BATCH):
        pass
    return pyckpt.State(model, optimizer)


def _timed(
    state: pyckpt.State, ways: list[str], folder: Path, options: argparse.Namespace
) -> tuple[int, dict[str, Calls]]:
    """The bytes of the state, and the calls of each way."""
    total = sum(tensor.nbytes for tensor in tensors_of(_state_dicts(state)))
    calls = {name: Calls() for name in ways}
    for round_ in range(-1, options.repeat):  # the first is not counted: imports, new pages
        for name in ways if round_ % 2 else reversed(ways):
            with _target(folder, name) as target:
                blocked, complete = _call(_WAYS[name], state, target)
                if round_ >= 0:
                    calls[name].blocked.append(blocked)
                    calls[name].complete.append(complete)
                calls[name].nbytes = sum(path.stat().st_size for path in _files(target))
        if dist.get_rank() == 0:
            _say(f"round {round_ + 1} of {options.repeat}")
    return total, calls


def _call(way: Way, state: pyckpt.State, target: Path) -> tuple[float, float]:
    """Seconds until the call returned, and until the checkpoint was on disk: the slowest rank's."""
    start = time.perf_counter()
    pending = way.start(state, target)
    blocked = time.perf_counter() - start
    if pending is not None:
        pending.result()
    if not way.flushes:
        dist.barrier()
        for path in _files(target)[dist.get_rank() :: dist.get_world_size()]:
            _flush(path)
        _flush(target)
    complete = time.perf_counter() - start
    seconds = torch.tensor([blocked, complete], dtype=torch.float64)
    dist.all_reduce(seconds, dist.ReduceOp.MAX)
    return seconds[0].item(), seconds[1].item()


def _peak(state: pyckpt.State, ways: list[str], folder: Path, options: argparse.Namespace) -> int:
    """The most bytes that a rank used beside what it used before, in one save."""
    [name] = ways
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what training has freed must not hide what the save takes
    with _target(folder, name) as target:
        before = _used_nbytes()
        with _sampled() as samples:
            _call(_WAYS[name], state, target)
        peak = torch.tensor(max(samples) - before)
    dist.all_reduce(peak, dist.ReduceOp.MAX)
    return int(peak)


@contextmanager
def _sampled() -> Iterator[list[int]]:
    """A list to which a thread adds what the rank uses, until the block ends."""
    samples = [_used_nbytes()]
    done = threading.Event()

    def sample() -> None:
        while not done.wait(_SAMPLE_SECONDS):
            samples.append(_used_nbytes())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        done.set()
        thread.join()


def _used_nbytes() -> int:
    """Memory of this process and of those that it started; shared memory is divided."""
    return sum(map(_own_nbytes, _with_children(os.getpid())))


def _with_children(pid: int) -> list[int]:
    found = [pid]
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += _with_children(int(child))
    except FileNotFoundError:
        pass  # it has ended
    return found


def _own_nbytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    counted = ("Pss_Anon", "Pss_Shmem")
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(counted))


@contextmanager
def _target(folder: Path, name: str) -> Iterator[Path]:
    """An empty folder for one save. All ranks begin together, when the disk has nothing to do."""
    target = folder / "".join(letter if letter.isalnum() else "-" for letter in name)
    target.mkdir(exist_ok=True)
    if dist.get_rank() == 0:
        os.sync()
    dist.barrier()
    yield target
    dist.barrier()
    if dist.get_rank() == 0:
        shutil.rmtree(target)
    dist.barrier()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _close_managers() -> None:
    """torch_checkpointing has a process for asynchronous saves."""
    if _manager.cache_info().currsize:
        for blocking in (True, False):
            _manager(blocking).close()


def _print_calls(calls: Mapping[str, Calls]) -> None:
    header = ("", "blocked s", "complete s", "fastest", "slowest", "MB written")
    rows = [
        (
            name,
            f"{statistics.median(one.blocked):.3f}",
            f"{statistics.median(one.complete):.2f}",
            f"{min(one.complete):.2f}",
            f"{max(one.complete):.2f}",
            f"{one.nbytes / 1e6:.1f}",
        )
        for name, one in calls.items()
    ]
    _say(format_table(header, rows))


def _print_targets(calls: Mapping[str, Calls]) -> None:
    complete = {name: statistics.median(one.complete) for name, one in calls.items()}
    blocked = {name: statistics.median(one.blocked) for name, one in calls.items()}
    fastest = min((name for name in _OTHERS if name in calls), key=complete.get, default=None)
    lines = [
        _ratio(f"{name} takes", complete, name, fastest, UNCOMPRESSED_TO_FASTEST)
        for name in _UNCOMPRESSED
    ]
    lines.append(_ratio(f"{_TAR_GZ} takes", complete, _TAR_GZ, _STOCK, GZIP_TO_STOCK))
    lines += [
        _ratio(f"{name} blocks", blocked, name, _STOCK_ASYNC, BLOCKED_TO_STOCK)
        for name in (_WRITER_ASYNC, _COPY, _LAZY)
    ]
    _say("\nRatios of medians; in brackets what pyckpt means to reach\n")
    _say("\n".join(line for line in lines if line))


def _ratio(
    says: str, seconds: Mapping[str, float], name: str, other: str | None, target: float
) -> str:
    if name not in seconds or other not in seconds:
        return ""
    ratio = seconds[name] / seconds[other]
    met = "met" if ratio <= target else "missed"
    return f"{says} {ratio:.2f} x as long as {other} (<= {target:.1f}) {met}"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sharded", description=(__doc__ or "").partition("\n")[0]
    )
    add = parser.add_argument
    add("--ranks", type=int, default=4, help="processes (%(default)s)")
    add("--nbytes", type=int, default=800_000_000, help="of the whole state, about (%(default)s)")
    add("--repeat", type=int, default=5, help="saves of each way (%(default)s)")
    add("--ways", default="", help="only those whose name contains this")
    add("--no-memory", action="store_true", help="measure times only")
    add("--folder", type=Path, default=Path(), help="where to write (the current directory)")
    return parser.parse_args(arguments)


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
