"""``pyckpt.integrations.lightning``, for users of ``import pytorch_lightning``."""

from __future__ import annotations

import pytorch_lightning
from lightning_fabric.plugins import CheckpointIO
from pytorch_lightning import strategies
from pytorch_lightning.callbacks import Callback

from pyckpt.integrations._lightning import (
    SavingCallback,
    SavingIO,
    check_version,
    load_from_checkpoint,
)
from pyckpt.integrations._lightning_sharded import ShardedSaving

__all__ = [
    "FSDPStrategy",
    "ModelParallelStrategy",
    "PyckptCallback",
    "PyckptIO",
    "load_from_checkpoint",
]

check_version("pytorch_lightning", pytorch_lightning.__version__)


class PyckptIO(SavingIO, CheckpointIO):
    """See ``pyckpt.integrations.lightning.PyckptIO``."""


class PyckptCallback(SavingCallback, Callback):
    """See ``pyckpt.integrations.lightning.PyckptCallback``."""

    make_io = PyckptIO


class ModelParallelStrategy(ShardedSaving, strategies.ModelParallelStrategy):
    """See ``pyckpt.integrations.lightning.ModelParallelStrategy``."""

    weights_key = "state_dict"

    @property
    def saves_shards(self) -> bool:
        """Whether every rank saves its part."""
        return bool(self._save_distributed_checkpoint)


class FSDPStrategy(ShardedSaving, strategies.FSDPStrategy):
    """See ``pyckpt.integrations.lightning.FSDPStrategy``."""

    weights_key = "model"

    @property
    def saves_shards(self) -> bool:
        """Whether every rank saves its part."""
        return bool(self._state_dict_type == "sharded")
