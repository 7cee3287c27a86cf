"""A small training with the real Composer, of whichever release is installed."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from tests.integrations.composer_modules import composer

# isort: split

import torch
from composer import Callback, Trainer
from composer.models import ComposerModel
from torch.utils.data import DataLoader, TensorDataset

RUN_NAME = "run"
BATCHES = 12


class Model(ComposerModel):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(8, width),
            torch.nn.BatchNorm1d(width),
            torch.nn.Dropout(0.3),  # so that random states matter
            torch.nn.Linear(width, 2),
        )

    def forward(self, batch: Any) -> Any:
        return self.net(batch[0])

    def loss(self, outputs: Any, batch: Any, *_: Any, **__: Any) -> Any:
        return torch.nn.functional.mse_loss(outputs, batch[1])


class Losses(Callback):
    """The loss of each batch, by its number."""

    def __init__(self) -> None:
        self.by_batch: dict[int, float] = {}

    def batch_end(self, state: Any, logger: Any) -> None:
        self.by_batch[int(state.timestamp.batch)] = float(state.loss)


def make_trainer(
    folder: Path | None,
    suffix: str = ".pt",
    batches: int = BATCHES,
    width: int = 16,
    **options: Any,
) -> Trainer:
    """A Trainer that saves every second batch of 4 in an epoch, and keeps two checkpoints."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(3)
        model = Model(width)
        data = TensorDataset(torch.randn(32, 8), torch.randn(32, 2))
        if folder is not None:
            saving = {
                "save_folder": str(folder),
                "save_filename": f"ep{{epoch}}-ba{{batch}}-rank{{rank}}{suffix}",
                "save_latest_filename": f"latest-rank{{rank}}{suffix}",
                "save_interval": "2ba",
                "save_num_checkpoints_to_keep": 2,
            }
            options = {**saving, **options}
        sampler = composer.utils.dist.get_sampler(data, shuffle=True)
        return Trainer(
            model=model,
            train_dataloader=DataLoader(data, batch_size=8 // ranks(), sampler=sampler),
            optimizers=torch.optim.AdamW(model.parameters(), lr=0.01),
            max_duration=f"{batches}ba",
            device="cpu",
            seed=7,
            run_name=RUN_NAME,
            progress_bar=False,
            **options,
        )


def ranks() -> int:
    size: int = composer.utils.dist.get_world_size()
    return size


def train(
    folder: Path | None, suffix: str = ".pt", batches: int = BATCHES, **options: Any
) -> dict[int, float]:
    """Trains up to a batch, if ``autoresume`` from the last checkpoint on. Returns the losses."""
    losses = Losses()
    callbacks = [losses, *options.pop("callbacks", [])]
    trainer = make_trainer(folder, suffix, batches, callbacks=callbacks, **options)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.fit()
    finally:
        trainer.close()
    return losses.by_batch
