"""Lightning's strategies that save shards, for both of its packages: see ``_lightning``.

Lightning gives torch.distributed.checkpoint a folder, and neither asks its CheckpointIO nor lets
anybody name a writer. So the strategies have to be replaced.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.fsdp import FullyShardedDataParallel, OptimStateKeyType

import pyckpt
from pyckpt.archive.formats import is_compressed
from pyckpt.paths import check_is_local, local_path, path_text
from pyckpt.sharded import StorageReader, StorageWriter

__all__ = ["ShardedFSDP", "ShardedModelParallel", "ShardedSaving"]

_REST = "meta.pt"  # what is neither weights nor optimizers, in Lightning's folders


class ShardedSaving:
    """The methods of a strategy that saves shards.

    Attributes:
        weights_key: Lightning's name of the weights in the folder.
    """

    weights_key: str
    # Of the strategy, which follows in the order of base classes.
    broadcast: Any
    checkpoint_io: Any
    global_rank: int
    lightning_module: Any
    model: Any
    optimizers: list[torch.optim.Optimizer]

    def __init__(
        self,
        *arguments: Any,
        compression: str | None = None,
        compression_level: int | None = None,
        num_threads: int | None = None,
        fsync: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        self._fsync = fsync
        self._writing: dict[str, Any] = {
            "compression": compression,
            "compression_level": compression_level,
            "num_threads": num_threads,
            "fsync": fsync,
        }
        StorageWriter("checked", **self._writing)

    @property
    def saves_shards(self) -> bool:
        """Whether every rank saves its part."""
        raise NotImplementedError

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        filepath: str | os.PathLike[str],
        storage_options: Any = None,
    ) -> None:
        """Saves a folder that appears whole or not at all. On all ranks."""
        if not self.saves_shards:
            super().save_checkpoint(checkpoint, filepath, storage_options)  # type: ignore[misc]
            return
        if storage_options is not None:
            raise pyckpt.OptionError(
                "storage_options are for a CheckpointIO: give them to the strategy instead"
            )
        folder = self.broadcast(filepath)
        check_is_local(path_text(folder))
        rest = dict(checkpoint)
        state = {self.weights_key: rest.pop("state_dict")}
        for number, one in enumerate(rest.pop("optimizer_states", [])):
            state[_name(number)] = one
        with pyckpt.transaction(folder, fsync=self._fsync) as hidden:
            save(state, storage_writer=StorageWriter(hidden, **self._writing))
            if self.global_rank == 0:
                pyckpt.save(rest, hidden / _REST, fsync=self._fsync)

    def load_checkpoint(
        self, checkpoint_path: str | os.PathLike[str], weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Loads a folder, or a file with the whole state. On all ranks."""
        path = local_path(self.broadcast(checkpoint_path))
        if (path / _REST).is_file():
            self._load_shards(path)
            rest: dict[str, Any] = pyckpt.load(path / _REST, weights_only=weights_only)
            return rest
        if path.is_file() and is_compressed(path):
            return self._load_whole(pyckpt.load(path, weights_only=weights_only))
        loaded: dict[str, Any] = super().load_checkpoint(path, weights_only)  # type: ignore[misc]
        return loaded

    def teardown(self) -> None:
        """Waits for asynchronous saves of the CheckpointIO, as Lightning's other strategies do."""
        super().teardown()  # type: ignore[misc]
        self.checkpoint_io.teardown()

    def _load_shards(self, folder: Path) -> None:
        reader = StorageReader(folder)
        weights = {self.weights_key: get_model_state_dict(self.model)}
        load(weights, storage_reader=reader)
        self._set_weights(weights[self.weights_key], StateDictOptions())
        # One after another, because the model's optimizers may be unlike those that were saved.
        for number, optimizer in enumerate(self.optimizers):
            state = {_name(number): get_optimizer_state_dict(self.model, optimizer)}
            load(state, storage_reader=reader)
            set_optimizer_state_dict(self.model, optimizer, state[_name(number)])

    def _load_whole(self, checkpoint: dict[str, Any]) -> dict[str, Any]:
        options = StateDictOptions(full_state_dict=True)
        self._set_weights(checkpoint.pop("state_dict"), options)
        for optimizer, state in zip(
            self.optimizers, checkpoint.get("optimizer_states", []), strict=False
        ):
            named = state
            if any(isinstance(key, int) for key in state["state"]):
                named = FullyShardedDataParallel.rekey_optim_state_dict(
                    state, OptimStateKeyType.PARAM_NAME, self.model
                )
            set_optimizer_state_dict(self.model, optimizer, named, options=options)
        return checkpoint

    def _set_weights(self, weights: dict[str, Any], options: StateDictOptions) -> None:
        options.strict = self.lightning_module.strict_loading
        set_model_state_dict(self.model, weights, options=options)


class ShardedModelParallel(ShardedSaving):
    """The methods of a ModelParallelStrategy."""

    weights_key = "state_dict"
    _save_distributed_checkpoint: bool

    @property
    def saves_shards(self) -> bool:
        """Whether every rank saves its part."""
        return bool(self._save_distributed_checkpoint)


class ShardedFSDP(ShardedSaving):
    """The methods of an FSDPStrategy."""

    weights_key = "model"
    _state_dict_type: str

    @property
    def saves_shards(self) -> bool:
        """Whether every rank saves its part."""
        return bool(self._state_dict_type == "sharded")


def _name(number: int) -> str:
    """Lightning's name of an optimizer in the folder."""
    return f"optimizer_{number}"
