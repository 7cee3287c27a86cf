"""The package that is called pytorch_lightning: its classes are not those of lightning."""

from __future__ import annotations

import importlib
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

import pyckpt
from pyckpt.integrations.pytorch_lightning import (
    FSDPStrategy,
    ModelParallelStrategy,
    PyckptCallback,
    PyckptIO,
    load_from_checkpoint,
)

pytestmark = [pytest.mark.timeout(100), pytest.mark.filterwarnings("ignore")]
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


class Net(pytorch_lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return self.layer(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters())


class Compressed(ModelCheckpoint):
    FILE_EXTENSION = ".tgz"


def fit(folder: Path, epochs: int, ckpt_path: str | None = None, **options: Any) -> Net:
    pytorch_lightning.seed_everything(0, verbose=False)
    callbacks = [Compressed(folder, save_last=True), *options.pop("callbacks", [])]
    trainer = pytorch_lightning.Trainer(
        max_epochs=epochs,
        callbacks=callbacks,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    net, inputs = Net(), torch.arange(32.0).reshape(8, 4) / 32
    trainer.fit(net, DataLoader(inputs), ckpt_path=ckpt_path)  # type: ignore[arg-type]
    return net


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("kind", ["plugins", "callbacks"])
def test_resuming(tmp_path: Path, kind: str, asynchronous: bool) -> None:
    make = {"plugins": PyckptIO, "callbacks": PyckptCallback}[kind]
    whole = fit(tmp_path / "whole", 4, **{kind: [make(asynchronous)]})
    fit(tmp_path / "run", 2, **{kind: [make(asynchronous)]})
    resumed = fit(tmp_path / "run", 4, "last", **{kind: [make(asynchronous)]})
    assert torch.equal(resumed.layer.weight, whole.layer.weight)
    loaded = load_from_checkpoint(Net, tmp_path / "run" / "last.tgz")
    assert torch.equal(loaded.layer.weight, whole.layer.weight)


def test_strategies() -> None:
    assert issubclass(FSDPStrategy, pytorch_lightning.strategies.FSDPStrategy)
    assert issubclass(ModelParallelStrategy, pytorch_lightning.strategies.ModelParallelStrategy)
    with pytest.raises(pyckpt.OptionError, match="compression"):
        ModelParallelStrategy(compression="zip")


def test_one_package_does_not_import_the_other() -> None:
    for one, other in [("lightning", "pytorch_lightning"), ("pytorch_lightning", "lightning")]:
        code = f"import sys, pyckpt.integrations.{one}; assert {other!r} not in sys.modules"
        subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("module", ["lightning", "pytorch_lightning"])
def test_newer_versions_are_used_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setattr(f"{module}.__version__", "2.7.0dev1")
    monkeypatch.delitem(sys.modules, f"pyckpt.integrations.{module}", raising=False)
    with pytest.warns(UserWarning, match="up to 2.6, and this is 2.7.0dev1"):
        importlib.import_module(f"pyckpt.integrations.{module}")
