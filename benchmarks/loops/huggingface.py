"""Hugging Face: its Trainer, which writes a folder for each checkpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerCallback, TrainingArguments

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
from pyckpt.integrations import huggingface

# pyckpt's Trainer always flushes.
WAYS = (STOCK, *(way for way in PYCKPT if way.fsync))
VERSION = f"transformers {transformers.__version__}"


class _AsynchronousTrainer(huggingface.Trainer):
    asynchronous = True


class _Model(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, passages: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": loss_of(self.model, passages)}


class _ClockCallback(TrainerCallback):
    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._clock.step()


def train(task: Task, way: Way, folder: Path, clock: Clock) -> None:
    """Trains as the package says."""
    kind: Any = huggingface.Trainer if way.by_pyckpt else transformers.Trainer
    trainer = (_AsynchronousTrainer if way.asynchronous else kind)(
        model=_Model(task.model()),
        args=TrainingArguments(
            str(folder),
            max_steps=task.steps,
            save_strategy="no" if way is NO_SAVES else "steps",
            save_steps=task.every,
            per_device_train_batch_size=1,
            learning_rate=LEARNING_RATE,
            logging_strategy="no",
            remove_unused_columns=False,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=[{"passages": passage} for passage in task.passages()],
        callbacks=[_ClockCallback(clock)],
    )
    trainer.train()


def read(folder: Path) -> Any:
    """The model, and what the optimizer's and the scheduler's file of the last checkpoint hold."""
    checkpoint = last(folder, "checkpoint-*")
    files = [torch.load(checkpoint / name) for name in ("optimizer.pt", "scheduler.pt")]
    return [load_file(checkpoint / "model.safetensors"), *files]
