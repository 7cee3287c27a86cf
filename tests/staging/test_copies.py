"""Copies of tensors, on the host and on a device where there is one."""

from __future__ import annotations

import ctypes

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyckpt.staging.buffers import BufferPool
from pyckpt.staging.copies import Copies
from pyckpt.torch_format.serialize import serialize

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


def host_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("device", DEVICES)
@given(sizes=st.lists(st.integers(0, 5000), max_size=6), threads=st.integers(1, 3))
def test_copies_stay_as_they_were(device: str, sizes: list[int], threads: int) -> None:
    tensors = [torch.randn(size).to(device) for size in sizes]
    expected = [host_bytes(tensor) for tensor in tensors]
    records = [record for record in serialize(tensors) if record.is_storage]
    copies = Copies(records, BufferPool(), threads)
    copies.hold_back()
    for tensor in tensors:
        tensor.zero_()
    copies.wait()
    assert [ctypes.string_at(c.address, c.nbytes) for c in copies.records] == expected
    assert all(c.address % 64 == 0 and c.reader is None for c in copies.records)
    copies.close()
