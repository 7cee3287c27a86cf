"""Trains in a folder with little space, in both ways: full_disk_worker.py FOLDER.

Prints, as JSON, for each way what was raised, what is left, and the losses of a training that goes
on from there once there is space.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from tests.integrations import composer_training as training

# isort: split

import pyckpt
import pyckpt.integrations.composer as integration


def fill(folder: Path, expected: dict[int, float], asynchronous: bool) -> dict[str, Any]:
    error = ""
    with integration.installed(asynchronous):
        try:
            training.train(folder, width=200, save_num_checkpoints_to_keep=-1)
        except pyckpt.CheckpointError as caught:
            error = str(caught)
        left = sorted(os.listdir(folder), key=lambda name: (len(name), name))
        complete = [name for name in left if not name.startswith("latest")]
        for name in complete:
            pyckpt.verify(folder / name).raise_if_damaged()
        latest = os.readlink(folder / "latest-rank0.pt")
        for name in complete[:-1]:
            (folder / name).unlink()
        resumed = training.train(folder, autoresume=True, width=200, save_num_checkpoints_to_keep=1)
    for path in folder.iterdir():
        path.unlink()
    return {
        "error": error,
        "left": [*complete, *(name for name in left if name not in complete)],
        "complete": complete,
        "latest": latest,
        "resumed": resumed,
        "expected": {batch: expected[batch] for batch in resumed},
    }


def main() -> None:
    expected = training.train(None, width=200)
    found = [fill(Path(sys.argv[1]), expected, asynchronous) for asynchronous in (False, True)]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
