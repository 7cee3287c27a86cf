"""Much of everything: saves, tensors, bytes, ranks, threads and processes.

    python -m faults.endurance [--sample N] [--help]

Each row is one thing that a long training run, or a strange one, does. What it has saved must load
bit by bit, and after many saves the process must have no more descriptors, threads and memory than
after a few. ``--sample N`` divides the numbers by as much as makes about N saves.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import pyckpt
from faults.report import Case, Report, argument_parser
from tests.launch import run_ranks

__all__ = ["main"]

_SAVES = 10_000
_TENSORS = 100_000  # more than the 65,535 that a zip without its 64-bit fields can have
_STORAGE_NBYTES = 6 << 30  # more than 32 bits can say
_RANKS = 8
_SUFFIXES = (".tar", ".tar.gz", ".tar.zst", ".tar.bz2", ".tar.xz", ".pt", ".pt.gz")
_MOST_GROWTH_NBYTES = 16 << 20
_PATIENCE_SECONDS = 600


def small(step: int) -> dict[str, Any]:
    """A state of 10 KB."""
    return {"step": step, "weight": torch.full((50, 50), float(step))}


def is_small(loaded: Any, step: int) -> bool:
    return loaded["step"] == step and torch.equal(loaded["weight"], small(step)["weight"])


def resources() -> tuple[int, int, int]:
    """Descriptors, threads, and bytes of memory of this process."""
    status = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in status)
    descriptors = len(os.listdir("/proc/self/fd"))
    return descriptors, int(fields["Threads"]), int(fields["VmRSS"].split()[0]) * 1024


def growth(step: Callable[[int], str], count: int) -> str:
    """Runs ``step`` many times. Says what does not hold in one, or has grown over all."""
    warm = max(50, count // 20)
    before = resources()
    for number in range(count + warm):
        if number == warm:
            before = resources()
        if broken := step(number):
            return f"time {number}: {broken}"
    after = resources()
    if after[:2] != before[:2]:
        return f"descriptors and threads: {before[:2]} before, {after[:2]} after"
    if after[2] > before[2] + _MOST_GROWTH_NBYTES:
        return f"{(after[2] - before[2]) >> 20} MiB of memory more"
    return ""


def many_saves(folder: Path, scale: float) -> str:
    """Saves and loads in all formats, one after another, each over the one before."""

    def step(number: int) -> str:
        path = folder / f"x{_SUFFIXES[number % len(_SUFFIXES)]}"
        pyckpt.save(small(number), path, fsync=number % 100 == 0)
        return "" if is_small(pyckpt.load(path), number) else "another state is loaded"

    return growth(step, int(_SAVES * scale))


def many_saves_in_background(folder: Path, scale: float) -> str:
    """Asynchronous saves of one file, some of which are waited for."""

    def step(number: int) -> str:
        pending = pyckpt.async_save(small(number), folder / "x.tar.gz", fsync=False)
        if number % 7:
            pending.result()
            if not is_small(pyckpt.load(folder / "x.tar.gz"), number):
                return "another state is loaded"
        return ""

    return growth(step, int(_SAVES / 4 * scale) // 7 * 7 + 6)


def many_checkpoints(folder: Path, scale: float) -> str:
    """A manager that keeps three."""
    model = torch.nn.Linear(20, 20)
    state = pyckpt.State(model, torch.optim.AdamW(model.parameters()))
    manager = pyckpt.CheckpointManager(folder / "run", keep_last=3, fsync=False)

    def step(number: int) -> str:
        manager.save(number, state)
        files = len(os.listdir(folder / "run"))
        return "" if files <= 5 else f"{files} files"  # the list and a link are two

    return growth(step, int(_SAVES / 10 * scale))


def many_tensors(folder: Path, scale: float) -> str:
    """So many that zip needs 64-bit fields, in a tar too."""
    count = max(int(_TENSORS * scale), 1)
    state = {f"layer.{n}.weight": torch.tensor([n, n + 1]) for n in range(count)}
    for suffix in (".pt", ".tar.gz"):
        pyckpt.save(state, folder / f"x{suffix}", fsync=False)
        loaded = pyckpt.load(folder / f"x{suffix}")
        if list(loaded) != list(state):
            return f"{suffix}: other keys"
        if not all(map(torch.equal, loaded.values(), state.values())):
            return f"{suffix}: other tensors"
    by_torch = torch.load(folder / "x.pt", weights_only=True)
    return "" if all(map(torch.equal, by_torch.values(), state.values())) else "torch: others"


def one_large_storage(folder: Path, scale: float) -> str:
    """Larger than 32 bits can say. Zeros, of which a few are something else."""
    nbytes = int(_STORAGE_NBYTES * scale) + 3
    marks = {0: 1, nbytes // 2: 2, nbytes - 1: 3}
    tensor = torch.zeros(nbytes, dtype=torch.uint8)
    for place, value in marks.items():
        tensor[place] = value
    for suffix in (".tar.gz", ".pt"):
        path = folder / f"x{suffix}"
        pyckpt.save({"w": tensor}, path, fsync=False)
        loaded = pyckpt.load(path)["w"]
        if loaded.numel() != nbytes or any(loaded[at] != value for at, value in marks.items()):
            return f"{suffix}: another tensor"
        if int(torch.count_nonzero(loaded)) != len(marks):
            return f"{suffix}: bytes that were not there"
        del loaded
        path.unlink()
    return ""


def many_ranks(folder: Path, scale: float) -> str:
    """Eight on few cores: all of them save and load."""
    run_ranks("endurance_worker.py", folder, ranks=max(2, int(_RANKS * scale)), timeout=500)
    return ""


def two_threads(folder: Path, scale: float) -> str:
    """Both save one name, while a third one reads it."""
    path = folder / "x.tar.gz"
    pyckpt.save(small(0), path, fsync=False)
    errors: list[str] = []
    ended = threading.Event()

    def write(first: int) -> None:
        for number in range(first, first + int(1000 * scale)):
            pyckpt.save(small(number), path, fsync=False)

    def read() -> None:
        while not ended.is_set():
            loaded = pyckpt.load(path)
            if not is_small(loaded, loaded["step"]):
                errors.append("a mix of two is loaded")

    writers = [threading.Thread(target=write, args=(n * 10_000,)) for n in range(2)]
    reader = threading.Thread(target=read)
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    ended.set()
    reader.join()
    left = [name for name in os.listdir(folder) if name.startswith(".")]
    return next(iter(errors), "") or (f"{left} is left" if left else "")


def _write_often(path: Path, first: int, count: int) -> None:
    for number in range(first, first + count):
        pyckpt.save(small(number), path, fsync=False)


def two_processes(folder: Path, scale: float) -> str:
    """Both save one name, while this one reads it."""
    path = folder / "x.tar.zst"
    pyckpt.save(small(0), path, fsync=False)
    spawn = multiprocessing.get_context("spawn")
    writers = [
        spawn.Process(target=_write_often, args=(path, n * 10_000, int(1000 * scale)))
        for n in range(2)
    ]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        loaded = pyckpt.load(path)
        if not is_small(loaded, loaded["step"]):
            return "a mix of two is loaded"
    if any(writer.exitcode != 0 for writer in writers):
        return "a writer has failed"
    left = [name for name in os.listdir(folder) if name.startswith(".")]
    return f"{left} is left" if left else ""


def forks(folder: Path, scale: float) -> str:
    """Processes that are forked during an asynchronous save, and save too, each its own file."""
    for number in range(max(1, int(100 * scale))):
        pending = pyckpt.async_save(small(number), folder / "parent.tar.gz", fsync=False)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                signal.alarm(60)
                pyckpt.save(small(-number), folder / "child.tar.gz", fsync=False)
                pyckpt.async_save(small(number), folder / "late.pt", fsync=False).result()
                code = 0
            finally:
                os._exit(code)
        pending.result()
        _, status = os.waitpid(child, 0)
        if status:
            return f"fork {number}: the child ends with {status}"
        found = {"parent.tar.gz": number, "child.tar.gz": -number, "late.pt": number}
        for name, step in found.items():
            if not is_small(pyckpt.load(folder / name), step):
                return f"fork {number}: {name} has another state"
    return ""


_AT_EXIT = """
import atexit, sys, torch, pyckpt
from faults.endurance import small
folder = sys.argv[1]
atexit.register(lambda: pyckpt.save(small(1), f"{folder}/exit.tar.gz"))
pyckpt.async_save(small(2), f"{folder}/background.tar.gz")
"""
_IN_HANDLER = """
import os, signal, sys, torch, pyckpt
from faults.endurance import small
folder = sys.argv[1]
done = []
def handler(*_):
    pyckpt.save(small(1), f"{folder}/handler.tar.gz")
    done.append(1)
signal.signal(signal.SIGUSR1, handler)
for step in range(200):
    os.kill(os.getpid(), signal.SIGUSR1) if step % 50 == 25 else None
    pyckpt.save(small(step), f"{folder}/loop.tar.gz", fsync=False)
    pyckpt.async_save(small(step), f"{folder}/background.tar.gz", fsync=False)
assert len(done) == 4, done
"""


def at_exit(folder: Path, scale: float) -> str:
    """A save in an exit handler, and one that is under way when the program ends."""
    return _script(_AT_EXIT, folder, {"exit.tar.gz": 1, "background.tar.gz": 2})


def in_a_handler(folder: Path, scale: float) -> str:
    """Saves in a signal handler, between and during others."""
    names = {"handler.tar.gz": 1, "loop.tar.gz": 199, "background.tar.gz": 199}
    return _script(_IN_HANDLER, folder, names)


def _script(script: str, folder: Path, expected: dict[str, int]) -> str:
    command = [sys.executable, "-c", script, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_SECONDS)
    if done.returncode != 0:
        return done.stderr
    wrong = [
        name for name, step in expected.items() if not is_small(pyckpt.load(folder / name), step)
    ]
    return f"{wrong} have another state" if wrong else ""


ROWS: dict[str, Callable[[Path, float], str]] = {
    f"{_SAVES:,} saves and loads": many_saves,
    f"{_SAVES // 4:,} asynchronous saves": many_saves_in_background,
    f"{_SAVES // 10:,} checkpoints of a manager": many_checkpoints,
    f"{_TENSORS:,} tensors": many_tensors,
    "one storage of 6 GiB": one_large_storage,
    "8 ranks": many_ranks,
    "two threads, one name": two_threads,
    "two processes, one name": two_processes,
    "100 forks during a save": forks,
    "a save at the program's exit": at_exit,
    "saves in a signal handler": in_a_handler,
}


def main(arguments: list[str] | None = None) -> int:
    """Runs the campaign; returns its exit code."""
    parser = argument_parser(__doc__)
    parser.add_argument("--only", default="", help="rows with this in their name")
    options = parser.parse_args(arguments)
    scale = 1.0 if options.sample is None else min(1.0, options.sample / _SAVES)
    report = Report("Endurance")
    for name, run in ROWS.items():
        if options.only not in name:
            continue
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            try:
                broken = run(Path(folder), scale)
            except Exception as error:
                broken = f"{type(error).__name__}: {error}"
        print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
        report.add(Case(name, broken, f'python -m faults.endurance --only "{name}"'))
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
