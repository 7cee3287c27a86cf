"""A small training that saves at each epoch, the same in every test."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import nn
from torch.utils._pytree import tree_flatten
from torch.utils.data import DataLoader, TensorDataset

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

EPOCHS = 4
STEPS = 4  # of one epoch, with one rank


class Net(lightning.LightningModule):
    """With a buffer of ``ballast`` random numbers, if a save shall take its time."""

    def __init__(self, width: int = 64, ballast: int = 0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(32, width), nn.ReLU(), nn.Linear(width, 2))
        self.register_buffer("ballast", torch.randn(ballast))

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    test_step = validation_step

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), 1e-3)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


class Losses(Callback):
    """Notes the loss of each step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
        self.losses.append(float(outputs["loss"]))


@dataclasses.dataclass
class Run:
    """What a training did.

    Attributes:
        losses: Of each step.
        weights: At the end.
    """

    trainer: lightning.Trainer
    module: lightning.LightningModule
    model_checkpoint: ModelCheckpoint
    losses: list[float]
    weights: dict[str, torch.Tensor]


def data() -> DataLoader[Any]:
    """The same batches in each epoch."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(64, 32, generator=generator)
    return DataLoader(
        TensorDataset(inputs, torch.randint(0, 2, (64,), generator=generator)), batch_size=16
    )


def make_trainer(
    folder: Path,
    suffix: str = ".ckpt",
    *,
    callbacks: Sequence[Callback] = (),
    epochs: int = EPOCHS,
    saving: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[lightning.Trainer, ModelCheckpoint]:
    """A Trainer on the CPU and its ModelCheckpoint, which has ``saving`` as its arguments."""
    kind = type("OfSuffix", (ModelCheckpoint,), {"FILE_EXTENSION": suffix})
    chosen = {"save_last": True, "save_top_k": 2, "monitor": "loss", **(saving or {})}
    model_checkpoint = kind(dirpath=folder, **chosen)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        callbacks=[*callbacks, model_checkpoint],
        **{
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": folder,
            **options,
        },
    )
    return trainer, model_checkpoint


def fit(
    folder: Path,
    suffix: str = ".ckpt",
    *,
    callbacks: Sequence[Callback] = (),
    ckpt_path: str | None = None,
    ballast: int = 0,
    kind: type[Net] = Net,
    **options: Any,
) -> Run:
    """Trains from the same start, or from where ``ckpt_path`` stopped."""
    lightning.seed_everything(0, verbose=False)
    losses = Losses()
    trainer, model_checkpoint = make_trainer(
        folder, suffix, callbacks=[losses, *callbacks], **options
    )
    module = kind(ballast=ballast)
    trainer.fit(module, data(), ckpt_path=ckpt_path)
    weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    return Run(trainer, module, model_checkpoint, losses.losses, weights)


def files(folder: Path) -> list[str]:
    """The names of all files, also of hidden ones."""
    return sorted(os.listdir(folder))


def is_same(one: Run, other: Run) -> bool:
    """Whether two trainings ended alike, bit for bit. The later one may have begun later."""
    steps = min(len(one.losses), len(other.losses))
    return one.losses[-steps:] == other.losses[-steps:] and is_equal(one.weights, other.weights)


def is_equal(one: Any, other: Any) -> bool:
    """Whether two trees have the same structure, tensors and values, bit for bit."""
    leaves, shape = tree_flatten(one)
    others, other_shape = tree_flatten(other)
    return shape == other_shape and all(
        torch.equal(leaf, of_other) if isinstance(leaf, torch.Tensor) else leaf == of_other
        for leaf, of_other in zip(leaves, others, strict=True)
    )
