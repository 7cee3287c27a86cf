"""Lightning: ``ModelCheckpoint`` with the CheckpointIOs of Lightning and of pyckpt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO
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
from pyckpt.integrations.lightning import PyckptCallback

_STOCK_ASYNC = Way("stock, asynchronous", asynchronous=True)
WAYS = (STOCK, _STOCK_ASYNC, *PYCKPT)
VERSION = f"Lightning {lightning.__version__}"


class _Module(lightning.LightningModule):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        return loss_of(self.model, batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=LEARNING_RATE)


class _ClockCallback(Callback):
    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        self._clock.step()  # Lightning calls ModelCheckpoint last


def train(task: Task, way: Way, folder: Path, clock: Clock) -> None:
    """Trains as the package says."""
    callbacks: list[Callback] = [_ClockCallback(clock)]
    if way is not NO_SAVES:
        callbacks.append(
            ModelCheckpoint(
                folder, "{step}", every_n_train_steps=task.every, save_top_k=-1, monitor=None
            )
        )
    if way.by_pyckpt:
        callbacks.append(PyckptCallback(way.asynchronous, fsync=way.fsync))
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        callbacks=callbacks,
        plugins=[AsyncCheckpointIO()] if way is _STOCK_ASYNC else None,
        enable_checkpointing=way is not NO_SAVES,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(_Module(task.model()), DataLoader(task.passages(), batch_size=1))


def read(folder: Path) -> Any:
    """What the last checkpoint holds."""
    return torch.load(last(folder, "step=*.ckpt"), weights_only=False)
