"""How this rank holds a sharded tensor: which part of it, and as what kind of tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.checkpoint.planner_helpers import _create_write_items

from pyckpt.tensor_kinds import is_dtensor, is_shard
from pyckpt.torch_format.torch_internals import dtensor_like

__all__ = ["Layout"]


@dataclass(frozen=True)
class Layout:
    """Which part of a tensor this rank holds.

    Attributes:
        like: A tensor that is held in this way: a DTensor or a ShardedTensor.
        chunks: The parts: where each begins, and its shape.
    """

    like: Any
    chunks: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]

    @classmethod
    def of(cls, tensor: Any) -> Layout | None:
        """The layout of a tensor; None if it is a plain one."""
        if not is_shard(tensor):
            return None
        if is_dtensor(tensor) and tensor.device_mesh.get_coordinate() is None:
            return cls(tensor, ())  # this rank has nothing of it
        # What would be written of it: every version of torch tells that in the same way.
        chunks: list[Any] = [item.tensor_data for item in _create_write_items("", tensor)]
        return cls(
            tensor,
            tuple((tuple(one.chunk.offsets), tuple(one.chunk.sizes)) for one in chunks),
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole tensor."""
        return tuple(self.like.size())

    def empty(self, dtype: torch.dtype) -> list[torch.Tensor]:
        """Memory on the CPU for each of the parts."""
        return [torch.empty(shape, dtype=dtype, device="cpu") for _, shape in self.chunks]

    def build(self, parts: Sequence[torch.Tensor]) -> Any:
        """The tensor of this layout, made of what ``empty`` returned. It is not collective."""
        if is_dtensor(self.like):
            local = parts[0] if parts else self.like._local_tensor.detach()
            return dtensor_like(local.view(self.like._local_tensor.shape), self.like)
        metadata = self.like.metadata()
        shards = [
            type(shard)(part, shard.metadata)
            for part, shard in zip(parts, self.like.local_shards(), strict=True)
        ]
        return type(self.like)._init_from_local_shards_and_global_metadata(
            shards, sharded_tensor_metadata=metadata, process_group=self.like._process_group
        )
