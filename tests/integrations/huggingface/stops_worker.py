"""Stops the save of checkpoint-4 at each write, and resumes: stops_worker.py FOLDER KIND.

checkpoint-2 is there, and is to be removed once checkpoint-4 is whole. Prints a report as JSON: the
stops by errno, 0 for killed processes, and what trainings did that went on from what was left.
"""

import dataclasses
import errno
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from tests.integrations.huggingface.training import TRAINERS, losses, make_trainer
from tests.stops import KILL, Stop, every_stop

FOLDER, KIND = Path(sys.argv[1]), sys.argv[2]
RUN = FOLDER / "run"


class StopSaves(TrainerCallback):
    """Stops the save of step 4 in place of making it.

    Attributes:
        stops: By errno.
        left: Copies of all that was left, by what it looks like.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self.stops: dict[int, list[Stop]] = {}
        self.left: dict[str, Path] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 4:
            self._trainer.wait_for_checkpoint()  # a forked process has no threads that write
            for error in (KILL, errno.ENOSPC):
                self.stops[error] = list(map(self._keep, every_stop(self._save, RUN, error)))
            control.should_save = False
            control.should_training_stop = True

    def _save(self) -> None:
        self._trainer._save_checkpoint(self._trainer.model_wrapped, None)
        self._trainer.wait_for_checkpoint()

    def _keep(self, stop: Stop) -> Stop:
        seen = str(sorted(path for path in stop.tree if not path.startswith(".")))
        if seen not in self.left:
            self.left[seen] = FOLDER / f"left-{len(self.left)}"
            shutil.copytree(RUN, self.left[seen])
        return stop


def resume(left: Path) -> dict[str, Any]:
    """Stock goes on from the last checkpoint, and saves nothing; then pyckpt does, and saves."""
    last = get_last_checkpoint(left)
    assert last is not None
    stock = make_trainer(TRAINERS["stock"], left, save_strategy="no")
    stock.train(resume_from_checkpoint=last)
    ours = make_trainer(TRAINERS[KIND], left, save_total_limit=1)
    ours.train(resume_from_checkpoint=last)
    return {
        "from": os.path.basename(last),
        "losses": [losses(stock), losses(ours)],
        "files": sorted(os.listdir(left)),
    }


def main() -> None:
    torch.set_num_threads(1)
    trainer = make_trainer(TRAINERS[KIND], RUN, save_total_limit=1)
    stop = StopSaves(trainer)
    trainer.add_callback(stop)
    trainer.train()
    unstopped = make_trainer(TRAINERS["stock"], FOLDER / "unstopped", save_strategy="no")
    unstopped.train()
    report = {
        "stops": {e: list(map(dataclasses.asdict, stops)) for e, stops in stop.stops.items()},
        "resumed": [resume(left) for left in stop.left.values()],
        "losses": losses(unstopped),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
