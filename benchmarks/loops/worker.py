"""Measures one framework in its own Python, for benchmarks.frameworks.

    python -m benchmarks.loops.worker ORDER REPORT

Both are JSON files: the order is there, the report will be.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from benchmarks.equality import differences
from benchmarks.loops.task import NO_SAVES, STOCK, Clock, Task, Way
from benchmarks.states import tensors_of

__all__ = ["main"]


def main() -> None:
    """Follows the order."""
    order = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(order["threads"])
    warnings.simplefilter("ignore")  # the frameworks' own
    loop: Any = import_module(f"benchmarks.loops.{order['framework']}")
    runs = _Runs(loop, Task(**order["task"]), Path(order["folder"]))
    report = runs.measure(order["repeat"])
    Path(sys.argv[2]).write_text(json.dumps(report))


class _Runs:
    def __init__(self, loop: Any, task: Task, folder: Path) -> None:
        self._loop = loop
        self._task = task
        self._folder = folder

    def measure(self, repeat: int) -> dict[str, Any]:
        """Trains in all ways in turn, ``repeat`` times; every other round goes backwards.

        A run of the framework's own way comes first. It is not counted. The last checkpoints of the
        other ways, in the last round, must hold the same tensors.
        """
        ways = [NO_SAVES, *self._loop.WAYS]
        self._run(STOCK)
        expected = self._tensors()
        checkpoint_nbytes = self._remove() // (self._task.saves + 1)
        seconds: dict[str, list[float]] = {way.name: [] for way in ways}
        wrong: dict[str, list[str]] = {}
        for round_ in range(repeat):
            for way in ways if round_ % 2 == 0 else reversed(ways):
                seconds[way.name] += self._run(way)
                if round_ + 1 == repeat and way is not NO_SAVES:
                    wrong[way.name] = list(differences(expected, self._tensors()))
                self._remove()
        return {
            "version": self._loop.VERSION,
            "checkpoint_nbytes": checkpoint_nbytes,
            "seconds": seconds,
            "wrong": wrong,
        }

    def _run(self, way: Way) -> list[float]:
        """Trains, and returns the seconds of each save with the steps that follow it.

        Before it all dirty pages are written to disk, so that no run pays for the one before.
        """
        gc.collect()
        self._folder.mkdir()
        os.sync()
        clock = Clock()
        self._loop.train(self._task, way, self._folder, clock)
        assert len(clock.ends) == self._task.steps
        return clock.seconds(self._task)

    def _tensors(self) -> list[torch.Tensor]:
        """Those of the last checkpoint, which must have weights and two moments of each."""
        tensors = list(tensors_of(self._loop.read(self._folder)))
        weights = sum(tensor.nbytes for tensor in self._task.model().parameters())
        assert sum(tensor.nbytes for tensor in tensors) >= 3 * weights
        return tensors

    def _remove(self) -> int:
        """Removes what was saved, and returns how many bytes that was."""
        nbytes = sum(_sizes(self._folder))
        shutil.rmtree(self._folder)
        return nbytes


def _sizes(folder: Path) -> Iterator[int]:
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            yield path.stat().st_size


if __name__ == "__main__":
    main()
