"""Composer: its Trainer and CheckpointSaver."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from tests.integrations.composer_modules import composer  # importable beside a newer torch

# isort: split

import torch
from composer import Callback, Trainer
from composer.models import ComposerModel
from torch.utils.data import DataLoader

from benchmarks.loops.task import (
    LEARNING_RATE,
    NO_SAVES,
    PYCKPT,
    STOCK,
    Clock,
    Task,
    Way,
    last,
    loss_of,
)
from pyckpt.integrations.composer import installed

WAYS = (STOCK, *PYCKPT)
VERSION = f"Composer {composer.__version__}"


class _Model(ComposerModel):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return loss_of(self.model, batch)

    def loss(self, outputs: torch.Tensor, batch: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return outputs


class _ClockCallback(Callback):
    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def batch_end(self, state: Any, logger: Any) -> None:
        self._clock.step()  # Composer saves in the event that follows


def train(task: Task, way: Way, folder: Path, clock: Clock) -> None:
    """Trains as the package says."""
    saving: dict[str, Any] = {}
    if way is not NO_SAVES:
        saving = {
            "save_folder": str(folder),
            "save_filename": "ba{batch}.pt",
            "save_interval": f"{task.every}ba",
        }
    with installed(way.asynchronous, fsync=way.fsync) if way.by_pyckpt else nullcontext():
        model = _Model(task.model())
        trainer = Trainer(
            model=model,
            optimizers=torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE),
            train_dataloader=DataLoader(task.passages(), batch_size=1),
            max_duration=f"{task.steps}ba",
            callbacks=[_ClockCallback(clock)],
            device="cpu",
            seed=0,
            run_name="run",
            progress_bar=False,
            **saving,
        )
        trainer.fit()
        trainer.close()


def read(folder: Path) -> Any:
    """What the last checkpoint holds."""
    return torch.load(last(folder, "ba*.pt"), weights_only=False)
