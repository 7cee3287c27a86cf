"""Saves that fail: stops_worker.py FOLDER SUFFIX stops|"full disk". Prints a report as JSON."""

from __future__ import annotations

import errno
import json
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

import pyckpt
from pyckpt.integrations.lightning import PyckptCallback
from tests.integrations.lightning.training import Net, files, fit, make_trainer
from tests.stops import KILL, every_stop

warnings.simplefilter("ignore")
torch.set_num_threads(1)
FOLDER, SUFFIX, WHAT = Path(sys.argv[1]), sys.argv[2], sys.argv[3]


def last(folder: Path) -> int:
    """The step of the checkpoint that Lightning would resume from; 0 if there is none."""
    trainer, _ = make_trainer(folder, SUFFIX, callbacks=[PyckptCallback()])
    trainer.strategy.connect(Net())
    for callback in trainer.checkpoint_callbacks:
        callback.setup(trainer, Net(), "fit")
    connector: Any = trainer._checkpoint_connector
    path = connector._parse_ckpt_path(TrainerFn.FITTING, "last", True, True)
    return 0 if path is None else int(pyckpt.load(path)["global_step"])


class StopSaves(Callback):
    """Stops the saves of the third epoch, at one write after another."""

    def __init__(self) -> None:
        self.report: dict[str, list[dict[str, Any]]] = {}

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        if trainer.current_epoch != 2:
            return
        io = trainer.strategy.checkpoint_io
        io.wait()

        def save() -> None:
            trainer.checkpoint_callbacks[0].on_train_epoch_end(trainer, module)
            io.wait()

        for kind, error in {"killed": KILL, "no space": errno.ENOSPC}.items():
            self.report[kind] = [
                {
                    "step": last(FOLDER),
                    "error": stop.error,
                    "whole": all(pyckpt.verify(FOLDER / name).ok for name in files(FOLDER)),
                }
                for stop in every_stop(save, FOLDER, error)
            ]
        trainer.should_stop = True


def stop_at_every_write() -> None:
    reports = {}
    for asynchronous in (False, True):
        stop = StopSaves()
        callbacks = [PyckptCallback(asynchronous), stop]
        fit(FOLDER, SUFFIX, callbacks=callbacks, saving={"save_top_k": 1})
        shutil.rmtree(FOLDER)
        for kind, report in stop.report.items():
            reports[f"{kind}, {asynchronous=}"] = report
    print(json.dumps(reports))


def fill_the_disk() -> None:
    error = ""
    try:
        fit(
            FOLDER,
            callbacks=[PyckptCallback(asynchronous=True)],
            ballast=200_000,
            saving={"save_top_k": 1},
        )
    except pyckpt.CheckpointError as caught:
        error = str(caught)
    names = files(FOLDER)
    whole = all(pyckpt.verify(FOLDER / name).ok for name in names)
    print(json.dumps({"error": error, "files": names, "whole": whole}))


if __name__ == "__main__":
    if WHAT == "full disk":
        fill_the_disk()
    else:
        stop_at_every_write()
