"""Lightning 2 writes and reads its checkpoints by pyckpt, for users of ``import lightning``.

    Trainer(callbacks=[PyckptCallback(asynchronous=True)])

Those who ``import pytorch_lightning`` find the same in ``pyckpt.integrations.pytorch_lightning``.

Replaced: ``TorchCheckpointIO`` and ``AsyncCheckpointIO``. So are, with the callback, the wait of
other ranks for a rank 0 that has failed, and with ``load_from_checkpoint`` that of the modules.
Left as it is: when, under which names and how many checkpoints are kept (``ModelCheckpoint``), what
they contain, ``DeepSpeedStrategy``, and paths that are URLs, which are refused.
"""

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

with needed("lightning", "lightning"):
    import lightning
    from lightning.fabric.plugins import CheckpointIO
    from lightning.pytorch import strategies
    from lightning.pytorch.callbacks import Callback, ModelCheckpoint

__all__ = [
    "FSDPStrategy",
    "ModelParallelStrategy",
    "PyckptCallback",
    "PyckptIO",
    "load_from_checkpoint",
]

warn_if_untried("lightning", lightning.__version__, NEWEST_TRIED)
check_has(ModelCheckpoint, "file_exists")


class PyckptIO(SavingIO, CheckpointIO):
    """A CheckpointIO, for ``Trainer(plugins=[PyckptIO()])`` and ``Fabric(plugins=[PyckptIO()])``.

    The suffix of a checkpoint decides its format: ``ModelCheckpoint.FILE_EXTENSION``. A file
    appears whole or not at all.

    Asynchronous saves are written in their order while training goes on. What Lightning removes
    goes only when the saves before are safe: if one of them fails, it stays. The next save, the
    next load and the end of ``fit`` raise the error of a failed one. What is saved for Slurm is
    written before the call returns.

    Args:
        asynchronous: Whether training goes on while a file is written.
        stage, nice, max_pending: As in ``pyckpt.async_save``. Without ``PyckptCallback``, tensors
            are always copied, because a CheckpointIO does not know the optimizers.
        compression_level, num_threads, fsync: As in ``pyckpt.save``. ``storage_options`` of
            ``Trainer.save_checkpoint`` is a dict of these for one checkpoint.

    Raises:
        OptionError: An argument is wrong.
    """


class PyckptCallback(SavingCallback, Callback):
    """A callback that lets the Trainer use a ``PyckptIO``, and does what needs more than that.

    - Asynchronous saves may read weights in place, as it knows the optimizers.
    - If rank 0 cannot save, all ranks raise the same CheckpointError.
    - Names under which Lightning would not find its last checkpoint are refused before training.

    It takes the place of a CheckpointIO that the Trainer was given. Its arguments are those of
    ``PyckptIO``.
    """

    make_io = PyckptIO


class ModelParallelStrategy(ShardedModelParallel, strategies.ModelParallelStrategy):
    """Lightning's ModelParallelStrategy, whose distributed checkpoints pyckpt writes.

    A checkpoint is a folder with an archive for each rank, and appears whole or not at all. Folders
    of Lightning itself are read too, and Lightning reads those that are not compressed.

    Args:
        arguments, options: As in Lightning's own.
        compression, compression_level, num_threads, fsync: As in ``pyckpt.sharded.StorageWriter``.
    """


class FSDPStrategy(ShardedFSDP, strategies.FSDPStrategy):
    """Lightning's FSDPStrategy: the same for ``state_dict_type="sharded"``."""
