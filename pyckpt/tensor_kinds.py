"""Tensors that are plain, and tensors that are this rank's part of something larger."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["PLAIN_TENSORS", "is_dtensor", "is_shard", "local_parts"]

PLAIN_TENSORS = (torch.Tensor, torch.nn.Parameter)
"""The types of most tensors. They know of no other parts."""


def is_dtensor(value: Any) -> bool:
    """Whether it is a DTensor. Where torch keeps that class depends on its version."""
    return hasattr(value, "placements") and hasattr(value, "device_mesh")


def is_shard(value: Any) -> bool:
    """Whether it is of a kind that knows its other parts, also if it has none.

    These are DTensors, and the ShardedTensors of FSDP1.
    """
    return is_dtensor(value) or hasattr(value, "local_shards")


def local_parts(tensor: Any) -> list[torch.Tensor]:
    """What this rank has of a tensor, without its history: a plain one is a part itself."""
    if hasattr(tensor, "local_shards"):
        return [shard.tensor.detach() for shard in tensor.local_shards()]
    part: torch.Tensor = tensor._local_tensor if is_dtensor(tensor) else tensor
    return [part.detach()]
