"""Kills trainings at one write of a checkpoint after the other: kills_worker.py FOLDER MODE.

Runs with tests/native/stop.c preloaded. Prints, as JSON, for each training whether it was killed,
which files were damaged, and the losses of the one that resumed.
"""

import ctypes
import json
import multiprocessing
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.integrations import composer_training as training

# isort: split

from composer import Callback

import pyckpt
import pyckpt.integrations.composer as integration

FOLDER, ASYNCHRONOUS = Path(sys.argv[1]), sys.argv[2] == "True"
FORK = multiprocessing.get_context("fork")


class Stop(Callback):
    """Kills this process before its ``number``-th write, from the sixth batch on."""

    def __init__(self, number: int) -> None:
        self.number = number

    def batch_start(self, state: Any, logger: Any) -> None:
        if state.timestamp.batch == 5:
            ctypes.CDLL(None).stop_at(ctypes.c_long(self.number), 0)


def train(batches: int, *callbacks: Callback) -> dict[int, float]:
    """Keeps one checkpoint, so that the next one takes its place."""
    return training.train(
        FOLDER,
        ".tar.gz",
        batches,
        autoresume=True,
        save_num_checkpoints_to_keep=1,
        callbacks=callbacks,
    )


def in_child(work: Callable[[], Any]) -> tuple[int | None, Any]:
    """The exit code of a forked process, and what ``work`` returned there, if it did."""
    receiving, sending = FORK.Pipe(duplex=False)
    child = FORK.Process(target=lambda: sending.send(work()))
    child.start()
    sending.close()
    try:
        result = receiving.recv()
    except EOFError:
        result = None
    child.join()
    return child.exitcode, result


def main() -> None:
    training.train(None, batches=1)  # what is imported late, before children are forked
    integration.install(ASYNCHRONOUS)
    in_child(lambda: train(4))
    before = FOLDER.with_name("before")
    FOLDER.rename(before)
    found: list[dict[str, Any]] = []
    while not found or found[-1]["killed"]:
        shutil.copytree(before, FOLDER, symlinks=True)
        code, _ = in_child(lambda: train(6, Stop(len(found) + 1)))
        assert code in (0, -signal.SIGKILL), code
        damaged = [path.name for path in FOLDER.glob("ep*") if not pyckpt.verify(path).ok]
        _, losses = in_child(lambda: train(7))
        found.append({"killed": code != 0, "damaged": damaged, "losses": losses})
        shutil.rmtree(FOLDER)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
