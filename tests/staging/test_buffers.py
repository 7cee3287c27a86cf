"""Host memory that is kept from save to save."""

from __future__ import annotations

import pytest
import torch

from pyckpt.staging import buffers
from pyckpt.staging.buffers import BufferPool, HostBuffer


@pytest.mark.parametrize("pinned", [False, pytest.param(True, marks=pytest.mark.cuda)])
def test_buffers_are_used_again(pinned: bool) -> None:
    pool = BufferPool()
    small, large = pool.take(1000, pinned=pinned), pool.take(5000, pinned=pinned)
    assert small.bytes.is_pinned() == pinned
    pool.give_back(small)
    pool.give_back(large)
    assert pool.take(900, pinned=pinned) is small
    assert pool.take(900, pinned=pinned) is large
    pool.give_back(small)
    larger = pool.take(2000, pinned=pinned)
    assert larger is not small
    assert larger.bytes.nbytes == 2000
    assert pool.take(1, pinned=pinned) is not small, "it made room for its successor"


@pytest.mark.cuda
def test_memory_that_cannot_be_pinned_does_not_fail_what_comes_next() -> None:
    buffer = HostBuffer(1 << 20, pinned=True)
    with pytest.raises(RuntimeError):
        buffers._register(buffer.bytes)  # for a second time
    assert torch.zeros(4, device="cuda").sum().item() == 0
