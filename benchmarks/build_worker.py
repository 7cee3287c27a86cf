"""Saves and loads for benchmarks.builds, in the Python that has the build to be measured.

Run by its path, so that it needs nothing of this project but an installed pyckpt. Reads one order
a line from standard input, as JSON, and answers each with one line of JSON.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import pyckpt


def _timed(work: Callable[[], Any]) -> dict[str, Any]:
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        result = work()
    except Exception as error:
        return {"error": repr(error)}  # such as a format that an older build does not know
    times = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
    del result
    return times


class _Worker:
    def __init__(self) -> None:
        self._states: dict[str, Any] = {}

    def answer(self, order: dict[str, Any]) -> dict[str, Any]:
        path, options = Path(order["path"]), order["options"]
        if "state" not in order:
            return _timed(lambda: pyckpt.load(path, weights_only=False, **options))
        state = self._state(order["state"])
        return _timed(lambda: pyckpt.save(state, path, **options))

    def _state(self, path: str) -> Any:
        if path not in self._states:  # one at a time, so that it fits into memory
            self._states = {path: torch.load(path, weights_only=False)}
        return self._states[path]


def main() -> None:
    """Answers orders until standard input ends."""
    worker = _Worker()
    for line in sys.stdin:
        print(json.dumps(worker.answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
