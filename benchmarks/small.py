"""How long a small state takes to save and to load, and how long ``import pyckpt`` takes.

    python -m benchmarks.small [--help]

A state of 10 KB, where what counts is the work beside the bytes: torch.save and torch.load, and
pyckpt, in turn, with and without a flush of the file. The import is measured in processes of their
own, which have imported torch before.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

import pyckpt
from benchmarks.machine import describe_machine
from benchmarks.table import format_table

__all__ = ["main"]

_IMPORT = (
    "import time, torch; start = time.perf_counter(); import pyckpt; "
    "print(time.perf_counter() - start)"
)


def torch_save(state: object, path: Path, *, fsync: bool) -> None:
    """With ``fsync``, flushes the file and its name, as pyckpt does."""
    with path.open("wb") as file:
        torch.save(state, file)
        if fsync:
            file.flush()
            os.fsync(file.fileno())
    if fsync:
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def ways(folder: Path) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """Torch's way and pyckpt's of each thing."""
    state = {"weight": torch.randn(50, 50), "step": 3}
    stock, ours, tar = folder / "torch.pt", folder / "pyckpt.pt", folder / "pyckpt.tar.gz"
    rows: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {}
    for fsync in (False, True):
        by_torch = partial(torch_save, state, stock, fsync=fsync)
        for path in (ours, tar):
            name = f"save {path.suffix}{', fsync' if fsync else ''}"
            rows[name] = by_torch, partial(pyckpt.save, state, path, fsync=fsync)
    for path in (ours, tar):
        by_torch = partial(torch.load, stock, weights_only=True)
        rows[f"load {path.suffix}"] = by_torch, partial(pyckpt.load, path, weights_only=True)
    return rows


def main() -> int:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeat", type=int, default=300)
    parser.add_argument("--imports", type=int, default=9)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        for what, value in describe_machine(Path(name)).items():
            print(f"{what}: {value}")
        table = []
        for row, pair in ways(Path(name)).items():
            seconds: tuple[list[float], list[float]] = ([], [])
            for _ in range(options.repeat):
                for way, times in zip(pair, seconds, strict=True):
                    start = time.perf_counter()
                    way()
                    times.append(time.perf_counter() - start)
            stock, ours = map(statistics.median, seconds)
            table.append([row, f"{stock * 1e3:.2f}", f"{ours * 1e3:.2f}", f"{ours / stock:.2f}"])
    print(format_table(["10 KB", "torch, ms", "pyckpt, ms", "ratio"], table))
    imports = [
        float(subprocess.run([sys.executable, "-c", _IMPORT], capture_output=True).stdout)
        for _ in range(options.imports)
    ]
    print(f"import pyckpt, after torch: {statistics.median(imports) * 1e3:.0f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
