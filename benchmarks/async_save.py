"""How long a save blocks training: pyckpt's asynchronous saves and other ways.

    python -m benchmarks.async_save [--help]

First come single calls on a state of weights and AdamW moments: how long each way blocks the
caller, and how long until the file is complete. Between two calls the caller waits until the file
is complete. Then comes a training loop that saves at intervals in each way; the picture shows its
steps. All ways are measured in turn.

DeepSpeed's decoupled engine is left out. On the CPU it runs with the writer that needs no
asynchronous I/O of DeepSpeed's own ("type": "PYTHON"). But its process reads the tensors that
training uses, so the step after a save waits until the file is written.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

import pyckpt
from benchmarks.machine import describe_machine
from benchmarks.rivals import composers_way
from benchmarks.states import library_text, tensors_of, train, trained
from benchmarks.table import format_table
from pyckpt import _core
from pyckpt.options import available_cpus
from pyckpt.training.rng import rng_state

__all__ = ["main"]

# pyckpt's targets on two cores.
COPY_TO_MEMCPY = 1.3
LAZY_SECONDS = 0.020
COMPOSER_TO_BLOCKED = 300.0
LOST_TO_LAZY = 0.05  # share of the steps per second, when a GPU trains

_SUFFIX = ".tar.gz"
_BATCH = 2

# Starts a save. Returns a future to wait for, or None if the file is complete already.
Way = Callable[[pyckpt.State, Path], "Future[Any] | None"]

_MEMCPY = "one parallel memcpy"
_COPY = "pyckpt, copy"
_LAZY = "pyckpt, lazy"
_BLOCKING = "pyckpt, blocking"
_DCP = "torch.distributed.checkpoint.async_save"
_COMPOSER = "Composer's way"


def _copy(state: pyckpt.State, path: Path) -> Future[Any]:
    return pyckpt.async_save_checkpoint(state, path, stage="copy")


def _lazy(state: pyckpt.State, path: Path) -> Future[Any]:
    return pyckpt.async_save_checkpoint(state, path, stage="lazy")


def _blocking(state: pyckpt.State, path: Path) -> None:
    pyckpt.save_checkpoint(state, path)


def _dcp(state: pyckpt.State, path: Path) -> Future[Any]:
    """Saves without compression to a folder in torch's own format; does not wait for the disk."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dcp.async_save(state.state_dict(), checkpoint_id=path)  # type: ignore[return-value]


def _composer(state: pyckpt.State, path: Path) -> None:
    composers_way({"state": state.state_dict(), "rng": [rng_state()]}, path, fsync=True)


_WAYS: dict[str, Way] = {
    _COPY: _copy,
    _LAZY: _lazy,
    _BLOCKING: _blocking,
    _DCP: _dcp,
    _COMPOSER: _composer,
}


@dataclass
class Calls:
    """Seconds from each call of one way to its return, and to the complete file."""

    blocked: list[float] = field(default_factory=list)
    complete: list[float] = field(default_factory=list)


class Memcpy:
    """Copies all tensors of a state to host memory that has been used before.

    All cores copy the tensors of the CPU. The GPU copies its own tensors, to pinned memory.
    """

    def __init__(self, state: pyckpt.State) -> None:
        tensors = [tensor for tensor in tensors_of(state.state_dict()) if tensor.nbytes]
        self._pairs = [
            (torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda).fill_(0), tensor)
            for tensor in tensors
        ]

    def run(self) -> float:
        """Makes one copy and returns the seconds that it took."""
        _synchronize()
        start = time.perf_counter()
        for copy, source in self._pairs:
            if source.is_cuda:
                copy.copy_(source, non_blocking=True)
        _core.parallel_copy(
            [
                (copy.data_ptr(), source.data_ptr(), source.nbytes)
                for copy, source in self._pairs
                if not source.is_cuda
            ],
            available_cpus(),
        )
        _synchronize()
        return time.perf_counter() - start


def _synchronize() -> None:
    """Waits until the GPU, if training uses one, has finished all queued work."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark."""
    options = _parse(arguments)
    with (
        tempfile.TemporaryDirectory(prefix="pyckpt-benchmark-", dir=options.folder) as folder,
        _one_rank(),
    ):
        for key, value in describe_machine(Path(folder)).items():
            _say(f"{key + ':':8} {value}")
        if options.device == "cuda":
            _say(f"{'GPU:':8} {torch.cuda.get_device_name()}")
        _measure_calls(Path(folder), options)
        gc.collect()
        _measure_loop(Path(folder), options)
    return 0


@contextmanager
def _one_rank() -> Iterator[None]:
    """A process group of this process only: torch's async_save needs one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _measure_calls(folder: Path, options: argparse.Namespace) -> None:
    model, optimizer = trained(options.nbytes // 12, steps=2, batch=_BATCH, device=options.device)
    state = pyckpt.State(model, optimizer)
    memcpy = Memcpy(state)
    nbytes = sum(tensor.nbytes for tensor in tensors_of(state.state_dict()))
    calls = {name: Calls() for name in (_MEMCPY, *_WAYS)}
    for round_ in range(-1, options.repeat):  # the first is not counted: imports, new pages
        seconds = memcpy.run()
        if round_ >= 0:
            calls[_MEMCPY].blocked.append(seconds)
        for name, way in _WAYS.items():
            if name == _COMPOSER and round_ + 1 not in range(1, options.composer_repeat + 1):
                continue
            blocked, complete = _call(way, state, _path(folder, name, round_))
            if round_ >= 0:
                calls[name].blocked.append(blocked)
                calls[name].complete.append(complete)
    _say(f"\n{nbytes:,} bytes of weights and AdamW moments, {_SUFFIX}, waiting for the disk\n")
    header = ("", "runs", "blocked s", "fastest", "slowest", "complete after s")
    rows = [
        (
            name,
            str(len(one.blocked)),
            f"{statistics.median(one.blocked):.4f}",
            f"{min(one.blocked):.4f}",
            f"{max(one.blocked):.4f}",
            f"{statistics.median(one.complete):.2f}" if one.complete else "",
        )
        for name, one in calls.items()
        if one.blocked
    ]
    _say(format_table(header, rows))
    _print_targets({name: statistics.median(c.blocked) for name, c in calls.items() if c.blocked})


def _call(way: Way, state: pyckpt.State, path: Path) -> tuple[float, float]:
    _synchronize()
    start = time.perf_counter()
    pending = way(state, path)
    blocked = time.perf_counter() - start
    if pending is not None:
        pending.result()
    complete = time.perf_counter() - start
    _remove(path)
    return blocked, complete


def _print_targets(medians: dict[str, float]) -> None:
    copy, lazy = medians[_COPY], medians[_LAZY]
    to_memcpy = copy / medians[_MEMCPY]
    lines = [
        f"copy returns after {to_memcpy:.2f} x the memcpy (<= {COPY_TO_MEMCPY}) "
        f"{_met(to_memcpy <= COPY_TO_MEMCPY)}",
        f"lazy returns after {lazy * 1e3:.1f} ms (<= {LAZY_SECONDS * 1e3:.0f}) "
        f"{_met(lazy <= LAZY_SECONDS)}",
    ]
    if _COMPOSER in medians:
        for name, blocked in ((_COPY, copy), (_LAZY, lazy)):
            ratio = medians[_COMPOSER] / blocked
            lines.append(
                f"Composer's way blocks {ratio:,.0f} x as long as {name} "
                f"(>= {COMPOSER_TO_BLOCKED:.0f}) {_met(ratio >= COMPOSER_TO_BLOCKED)}"
            )
    _say("\nRatios of medians; in brackets what pyckpt means to reach on two cores\n")
    _say("\n".join(lines))


@dataclass
class Loop:
    """One run of the training loop: when each step and each call of a save began and ended."""

    steps: list[tuple[float, float]] = field(default_factory=list)
    saves: list[tuple[float, float]] = field(default_factory=list)
    seconds: float = 0.0


def _measure_loop(folder: Path, options: argparse.Namespace) -> None:
    model, optimizer = trained(
        options.loop_nbytes // 12, steps=1, batch=_BATCH, device=options.device
    )
    state = pyckpt.State(model, optimizer)
    text = library_text().to(options.device)
    ways: dict[str, Way | None] = {"no saves": None, **_WAYS}
    if options.composer_repeat == 0:
        del ways[_COMPOSER]
    loops: dict[str, list[Loop]] = {name: [] for name in ways}
    for round_ in range(options.loop_repeat):
        for name, way in ways.items():
            loops[name].append(
                _loop(state, text, way, lambda i, name=name: _path(folder, name, i), options)
            )
        _say(f"training loops: round {round_ + 1} of {options.loop_repeat}")
    nbytes = sum(tensor.nbytes for tensor in tensors_of(state.state_dict()))
    _say(
        f"\nA training loop on {options.device}, state of {nbytes:,} bytes: {options.steps} steps, "
        f"a save every {options.every}; medians of {options.loop_repeat}\n"
    )
    speeds = {
        name: statistics.median(options.steps / loop.seconds for loop in several)
        for name, several in loops.items()
    }
    rows = [
        (name, f"{speed:.2f}", f"{1 - speed / speeds['no saves']:.1%}")
        for name, speed in speeds.items()
    ]
    _say(format_table(("", "steps/s", "lost"), rows))
    _say(f"\n(lazy means to lose under {LOST_TO_LAZY:.0%} where a GPU trains and the CPU is free)")
    if options.picture:
        _draw({name: several[-1] for name, several in loops.items()}, options.picture)


def _loop(
    state: pyckpt.State,
    text: torch.Tensor,
    way: Way | None,
    path: Callable[[int], Path],
    options: argparse.Namespace,
) -> Loop:
    """Runs all steps. A save that is then still under way is awaited after the time is taken."""
    loop = Loop()
    pending: Future[Any] | None = None
    begin = time.perf_counter()
    start = 0.0
    losses = train(state.model, state.optimizers, text, steps=options.steps, batch=_BATCH)
    for step, _ in enumerate(losses):
        now = time.perf_counter() - begin
        loop.steps.append((start, now))
        start = now
        # Saves in the middle of each interval, so that steps follow the last save too.
        if way is not None and step % options.every == options.every // 2:
            if pending is not None:
                pending.result()
            pending = way(state, path(step))
            start = time.perf_counter() - begin
            loop.saves.append((now, start))
    loop.seconds = time.perf_counter() - begin
    if pending is not None:
        pending.result()
    for step in range(options.steps):
        _remove(path(step))
    return loop


def _draw(loops: dict[str, Loop], path: Path) -> None:
    """Draws each way's steps as a row of boxes; the blocking calls between them stand out."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(11, 0.6 * len(loops) + 1.2))
    for row, loop in enumerate(loops.values()):
        steps = [(start, end - start) for start, end in loop.steps]
        saves = [(start, max(end - start, 1e-3)) for start, end in loop.saves]
        axes.broken_barh(steps, (row - 0.3, 0.6), color="tab:blue", edgecolor="white", lw=0.3)
        axes.broken_barh(saves, (row - 0.4, 0.8), color="tab:red", edgecolor="tab:red", lw=0.8)
    axes.set_yticks(range(len(loops)), list(loops))
    axes.invert_yaxis()
    axes.set_xlabel(f"seconds; blue: steps, red: what a save ({_SUFFIX}) blocks")
    figure.tight_layout()
    figure.savefig(path)
    _say(f"\n{path}")


def _path(folder: Path, name: str, number: int) -> Path:
    stem = "".join(letter if letter.isalnum() else "-" for letter in name)
    return folder / f"{stem}-{number}{'' if name == _DCP else _SUFFIX}"


def _remove(path: Path) -> None:
    if path.is_dir():
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


def _met(reached: bool) -> str:
    return "met" if reached else "missed"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.async_save", description=(__doc__ or "").partition("\n")[0]
    )
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cpu", help="trains there (%(default)s)")
    add("--nbytes", type=int, default=800_000_000, help="of the state, about (%(default)s)")
    add("--repeat", type=int, default=5, help="calls of each way (%(default)s)")
    add("--composer-repeat", type=int, default=1, help="of Composer's way: slow (%(default)s)")
    add("--loop-nbytes", type=int, default=100_000_000, help="of the loop's state (%(default)s)")
    add("--steps", type=int, default=60, help="of the loop (%(default)s)")
    add("--every", type=int, default=20, help="steps between saves (%(default)s)")
    add("--loop-repeat", type=int, default=3, help="loops of each way (%(default)s)")
    add("--folder", type=Path, default=Path(), help="where to write (the current directory)")
    add("--picture", type=Path, help="draw the loops' timelines there; needs matplotlib")
    return parser.parse_args(arguments)


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
