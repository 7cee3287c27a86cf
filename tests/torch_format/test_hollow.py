"""Tensors that have an address and a shape, and no memory yet."""

import gc
import json
import subprocess
import sys

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from pyckpt.torch_format.hollow import hollow_storages, hollow_tensor


@hypothesis.given(st.lists(st.integers(0, 300), max_size=12))
def test_storages_have_their_own_memory(sizes: list[int]) -> None:
    storages = hollow_storages(sizes)
    assert [storage.nbytes() for storage in storages] == sizes
    for number, storage in enumerate(storages):
        assert storage.data_ptr() % 64 == 0
        storage.fill_(number + 1)
    for number, storage in enumerate(storages):
        assert storage.tolist() == [number + 1] * sizes[number]


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (5,), (2, 3, 4)])
@pytest.mark.parametrize("dtype", [torch.bool, torch.bfloat16, torch.float64, torch.complex64])
def test_tensors_are_ordinary_ones(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    [storage] = hollow_storages([torch.Size(shape).numel() * dtype.itemsize])
    tensor = hollow_tensor(storage, dtype, shape)
    assert (tensor.dtype, tuple(tensor.shape), tensor.device.type) == (dtype, shape, "cpu")
    assert tensor.is_contiguous()
    assert not tensor.any()
    tensor.fill_(1)
    assert tensor.to(torch.bool).all()
    assert torch.equal(
        tensor + tensor, torch.ones(shape, dtype=dtype) + torch.ones(shape, dtype=dtype)
    )


def test_a_tensor_outlives_the_others() -> None:
    storages = hollow_storages([4000, 4000])
    tensor = hollow_tensor(storages[1], torch.float32, (1000,)).fill_(3)
    del storages
    gc.collect()
    assert (tensor == 3).all()


# A limit on the address space belongs to a process of its own.
_SCRIPT = """
import json, resource, sys
sys.path.insert(0, "tests/workers")
import torch
from peak_memory import forget_peak, peak_nbytes
from pyckpt.torch_format.hollow import hollow_storages, hollow_tensor
forget_peak()
before = peak_nbytes()
tensor = hollow_tensor(hollow_storages([1 << 32])[0], torch.uint8, (1 << 32,))
tensor[::1 << 29] = 1
untouched = peak_nbytes() - before
del tensor
forget_peak()
before = peak_nbytes()
for _ in range(20):
    hollow_tensor(hollow_storages([10 << 20])[0], torch.uint8, (10 << 20,)).fill_(1)
given_back = peak_nbytes() - before
resource.setrlimit(resource.RLIMIT_AS, (1 << 36, 1 << 36))
try:
    hollow_storages([1 << 37])
except OSError as error:
    print(json.dumps([untouched, given_back, type(error).__name__]))
"""


@pytest.mark.timeout(120)
def test_memory_is_taken_when_it_is_touched_and_given_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=True
    )
    untouched, given_back, error = json.loads(done.stdout)
    assert untouched < 16 << 20
    assert given_back < 16 << 20
    assert error == "OSError"
