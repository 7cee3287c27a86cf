"""Trains on two ranks: ranks_worker.py FOLDER. Each rank writes report-RANK.json there."""

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["NODE_RANK"] = os.environ["GROUP_RANK"]  # the name that Composer's launcher gives it

from tests.integrations import composer_training as training

# isort: split

from composer import Callback
from composer.utils import checkpoint, dist

import pyckpt
import pyckpt.integrations.composer as integration

FOLDER = Path(sys.argv[1])
RANK = int(os.environ["RANK"])
WAYS = {"stock": None, "blocking": False, "asynchronous": True}


def written_by(mode: bool | None) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext() if mode is None else integration.installed(mode)


def resume(folder: Path, mode: bool | None) -> dict[str, Any]:
    """Trains, stops and resumes; the losses of this rank, what is there, what calls returned."""
    with written_by(mode):
        first = training.train(folder, ".tar.gz", batches=6)
        second = training.train(folder, ".tar.gz", autoresume=True)
        trainer = training.make_trainer(folder, batches=1)
        returned = trainer.save_checkpoint(str(folder / "own-rank{rank}.pt"))
        weights = checkpoint.save_checkpoint(
            trainer.state, str(folder / "{batch}.pt"), weights_only=True
        )
        trainer.close()
    dist.barrier()
    return {
        "losses": {**first, **second},
        "left": sorted(os.listdir(folder)),
        "latest": os.readlink(folder / "latest-rank0.tar.gz"),
        "returned": [None if path is None else Path(path).name for path in (returned, weights)],
    }


class InTheWay(Callback):
    """Makes a folder where the first rank will save."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def batch_start(self, state: Any, logger: Any) -> None:
        self.batch = int(state.timestamp.batch)
        if self.batch == 3 and RANK == 0:
            (self.folder / "ep0-ba4-rank0.pt" / "x").mkdir(parents=True)


def fail(folder: Path, mode: bool) -> dict[str, Any]:
    in_the_way = InTheWay(folder)
    error = ""
    with written_by(mode):
        try:
            training.train(folder, callbacks=[in_the_way])
        except pyckpt.CheckpointError as caught:
            error = f"{type(caught).__name__}: {caught}"
    dist.barrier()
    return {
        "error": error,
        "batch": in_the_way.batch,
        "left": sorted(os.listdir(folder)),
        "latest": os.readlink(folder / "latest-rank0.pt"),
    }


def main() -> None:
    report: dict[str, Any] = {}
    for way, mode in WAYS.items():
        report[way] = resume(FOLDER / way, mode)
    for way, mode in WAYS.items():
        if mode is not None:
            report[f"{way}, failed"] = fail(FOLDER / f"{way}-failed", mode)
    (FOLDER / f"report-{RANK}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
