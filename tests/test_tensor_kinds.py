"""Plain tensors. tests/training/test_sharded_training.py has DTensors and ShardedTensors."""

from __future__ import annotations

import torch

from pyckpt.tensor_kinds import PLAIN_TENSORS, is_dtensor, is_shard, local_parts


def test_plain_tensors_are_their_own_part() -> None:
    for tensor in (torch.ones(3), torch.nn.Parameter(torch.ones(3))):
        assert type(tensor) in PLAIN_TENSORS
        assert not is_dtensor(tensor)
        assert not is_shard(tensor)
        [part] = local_parts(tensor)
        assert part.data_ptr() == tensor.data_ptr()
        assert not part.requires_grad
