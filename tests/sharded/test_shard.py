"""What one rank has of a tensor, as bytes in the order of C."""

import ctypes
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from pyckpt.sharded.shard import Shard, bytes_at

DTYPES = [torch.uint8, torch.bool, torch.bfloat16, torch.float64, torch.complex64]


def plain(tensor: torch.Tensor) -> bytes:
    dense = torch.empty(tensor.numel(), dtype=tensor.dtype).copy_(tensor.flatten())
    return dense.view(torch.uint8).numpy().tobytes()


def copied(shard: Shard) -> bytes:
    # Shards lie one after another in a batch: at any address.
    out = torch.full((shard.nbytes + 2,), 77, dtype=torch.uint8)
    shard.copy_to(out[1:-1])
    assert (int(out[0]), int(out[-1])) == (77, 77)
    return out[1:-1].numpy().tobytes()


@st.composite
def views(draw: Any) -> torch.Tensor:
    """Views with gaps, other orders, overlaps and offsets."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    stride = [draw(st.integers(0, 7)) for _ in shape]
    offset = draw(st.integers(0, 3))
    span = offset + 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True) if n)
    whole = torch.randint(0, 2, (max(span, offset),), generator=torch.Generator().manual_seed(span))
    view = whole.to(dtype).as_strided(shape, stride, offset)
    if dtype is torch.complex64 and draw(st.booleans()):
        view = (view * 1j).conj() if draw(st.booleans()) else (view * 1j).conj().imag
    return view


@hypothesis.given(views())
def test_elements_in_the_order_of_c(view: torch.Tensor) -> None:
    [shard] = Shard.all_of([view])
    assert (shard.dtype, shard.shape) == (view.dtype, tuple(view.shape))
    assert copied(shard) == plain(view)


@hypothesis.given(views())
def test_a_staged_shard_is_the_same(view: torch.Tensor) -> None:
    """Its record is read by a reader, as from a GPU, or from a copy of the memory."""
    [shard] = Shard.all_of([view])
    record = shard.record
    data = bytes_at(record.address, record.nbytes).clone() if record.nbytes else torch.empty(0)

    class Reader:
        def read(self, offset: int, nbytes: int, address: int) -> None:
            ctypes.memmove(address, data.data_ptr() + offset, nbytes)

    assert copied(shard.staged(record._replace(address=0, reader=Reader()))) == plain(view)
    moved = record._replace(address=data.data_ptr(), owner=data)
    assert copied(shard.staged(moved)) == plain(view)


def test_a_shard_keeps_its_tensor_alive() -> None:
    [shard] = Shard.all_of([torch.arange(1000).clone()])
    assert copied(shard) == plain(torch.arange(1000))


def test_sparse_tensors_are_no_shards() -> None:
    with pytest.raises(TypeError, match=r"torch.sparse_coo, not strided"):
        Shard.all_of([torch.eye(3).to_sparse()])
