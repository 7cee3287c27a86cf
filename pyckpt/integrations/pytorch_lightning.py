"""``pyckpt.integrations.lightning``, for users of ``import pytorch_lightning``."""

from __future__ import annotations

from pyckpt.integrations._lightning import (
    NEWEST_TRIED,
    SavingCallback,
    SavingIO,
    load_from_checkpoint,
)
from pyckpt.integrations._lightning_sharded import ShardedFSDP, ShardedModelParallel
from pyckpt.integrations.needed import check_has, needed
from pyckpt.warn import warn_if_untried

with needed("pytorch-lightning", "pytorch-lightning"):
    import pytorch_lightning
    from lightning_fabric.plugins import CheckpointIO
    from pytorch_lightning import strategies
    from pytorch_lightning.callbacks import Callback, ModelCheckpoint

__all__ = [
    "FSDPStrategy",
    "ModelParallelStrategy",
    "PyckptCallback",
    "PyckptIO",
    "load_from_checkpoint",
]

warn_if_untried("pytorch_lightning", pytorch_lightning.__version__, NEWEST_TRIED)
check_has(ModelCheckpoint, "file_exists")


class PyckptIO(SavingIO, CheckpointIO):
    """See ``pyckpt.integrations.lightning.PyckptIO``."""


class PyckptCallback(SavingCallback, Callback):
    """See ``pyckpt.integrations.lightning.PyckptCallback``."""

    make_io = PyckptIO


class ModelParallelStrategy(ShardedModelParallel, strategies.ModelParallelStrategy):
    """See ``pyckpt.integrations.lightning.ModelParallelStrategy``."""


class FSDPStrategy(ShardedFSDP, strategies.FSDPStrategy):
    """See ``pyckpt.integrations.lightning.FSDPStrategy``."""
