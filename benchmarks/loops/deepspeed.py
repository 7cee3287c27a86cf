"""DeepSpeed: ``engine.save_checkpoint`` with ZeRO 1 on one rank."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ.update(DS_ACCELERATOR="cpu", RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
os.environ.update(MASTER_ADDR="localhost", MASTER_PORT="0")
# DeepSpeed compiles there, once.
os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch-extensions"))

import deepspeed
import torch

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
from pyckpt.integrations.deepspeed import attach

WAYS = (STOCK, *PYCKPT)
VERSION = f"DeepSpeed {deepspeed.__version__}"

_CONFIG = {
    "train_micro_batch_size_per_gpu": 1,
    "optimizer": {"type": "AdamW", "params": {"lr": LEARNING_RATE, "torch_adam": True}},
    "zero_optimization": {"stage": 1},
    "communication_data_type": "fp32",
}


def train(task: Task, way: Way, folder: Path, clock: Clock) -> None:
    """Trains as the package says."""
    model = task.model()
    engine, *_ = deepspeed.initialize(
        model=model, config=_CONFIG, model_parameters=model.parameters()
    )
    if way.by_pyckpt:
        attach(engine, way.asynchronous, fsync=way.fsync)
    for step, passage in enumerate(task.passages(), 1):
        loss = loss_of(engine, passage[None])
        engine.backward(loss)
        engine.step()
        clock.step()
        if way is not NO_SAVES and step % task.every == 0:
            engine.save_checkpoint(str(folder), tag=f"step-{step}")
    engine.destroy()  # waits for a save


def read(folder: Path) -> Any:
    """What the files of the last checkpoint hold."""
    checkpoint = last(folder, "step-*")
    assert (folder / "latest").read_text() == checkpoint.name
    return {
        path.name: torch.load(path, weights_only=False) for path in sorted(checkpoint.glob("*.pt"))
    }
