"""Tensors that are this rank's part of something larger."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch

from pyckpt.state import TrainingState, optimizers_of
from pyckpt.tensor_kinds import is_shard

__all__ = ["ADVICE", "flat_storages", "is_part_of_flat", "sharding_modules"]

ADVICE = (
    "pyckpt puts together DTensors, ShardedTensors, FSDP's modules in a pyckpt.State, and parts of "
    "a model with names of their own. Give what differs a name of its own on each rank, make it a "
    "DTensor, or let every rank save its part with pyckpt.save"
)
"""What to do with a state whose parts cannot be put together."""


def sharding_modules(model: torch.nn.Module) -> list[Any]:
    """The modules of FSDP1 in ``model`` that shard over more than one rank."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None:
        return []
    return [
        module
        for module in model.modules()
        if isinstance(module, fsdp.FullyShardedDataParallel)
        and module.sharding_strategy is not fsdp.ShardingStrategy.NO_SHARD
        and module.process_group.size() > 1
    ]


def flat_storages(state: TrainingState) -> set[int]:
    """The storages of FSDP1's flat parameters, and of what optimizers keep of them.

    Empty without FSDP1. They are plain tensors, so nothing else tells that they are shards.
    """
    model = state.model
    if not isinstance(model, torch.nn.Module) or not sharding_modules(model):
        return set()
    tensors: list[Any] = list(model.parameters())
    for optimizer in optimizers_of(state):
        for kept in getattr(optimizer, "state", {}).values():
            tensors += kept.values() if isinstance(kept, Mapping) else ()
    return {
        tensor.untyped_storage()._cdata
        for tensor in tensors
        if isinstance(tensor, torch.Tensor) and tensor.layout is torch.strided
    }


def is_part_of_flat(tensor: torch.Tensor, flat: set[int]) -> bool:
    """Whether the tensor is in one of the storages that ``flat_storages`` has found."""
    if is_shard(tensor):  # it knows its parts; a ShardedTensor has no storage either
        return False
    # Step counts belong to a parameter too, and are the same on every rank.
    return tensor.numel() > 1 and tensor.untyped_storage()._cdata in flat
