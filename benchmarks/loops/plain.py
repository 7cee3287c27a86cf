"""A loop without a framework: ``torch.save``, and ``pyckpt.save`` and ``async_save``."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch

import pyckpt
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

WAYS = (STOCK, *PYCKPT)
VERSION = f"a plain loop, torch {torch.__version__}"


def train(task: Task, way: Way, folder: Path, clock: Clock) -> None:
    """Trains as the package says."""
    model = task.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    pending: Future[Any] | None = None
    for step, passage in enumerate(task.passages(), 1):
        loss = loss_of(model, passage[None])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        clock.step()
        if way is NO_SAVES or step % task.every:
            continue
        checkpoint = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "step": step,
        }
        path = folder / f"step-{step}.pt"
        if way is STOCK:
            torch.save(checkpoint, path)
        elif way.asynchronous:
            pending = pyckpt.async_save(checkpoint, path, optimizers=optimizer, fsync=way.fsync)
        else:
            pyckpt.save(checkpoint, path, fsync=way.fsync)
    if pending is not None:
        pending.result()


def read(folder: Path) -> Any:
    """What the last checkpoint holds."""
    return torch.load(last(folder, "step-*.pt"))
