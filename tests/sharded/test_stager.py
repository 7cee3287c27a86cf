"""Copies of states for asynchronous saves."""

from __future__ import annotations

import collections
import gc
from typing import Any

import pytest
import torch

from pyckpt.errors import OptionError
from pyckpt.sharded import Stager

Pair = collections.namedtuple("Pair", ["first", "second"])


def state(device: str = "cpu") -> dict[str, Any]:
    big = torch.arange(12_000.0, device=device).reshape(40, 300)
    return {
        "parameter": torch.nn.Parameter(big),
        "tied": big,
        "view": big[3:5, 7:9],
        "transposed": big.t(),
        "expanded": big[0, :1].expand(5),
        "empty": torch.ones(0, 3, device=device),
        "fp8": big[0].to(torch.float8_e4m3fn),
        "conjugate": torch.complex(big[0], big[1]).conj(),
        "sparse": torch.eye(3, device=device).to_sparse(),
        "nested": collections.OrderedDict(a=[1, (big[1] + 1, "x")], b=Pair(big[2], {3: None})),
        "mutable": bytearray(b"abc"),
    }


def assert_same(a: Any, b: Any) -> None:
    if isinstance(b, torch.Tensor):
        assert a.device.type == "cpu"
        assert (a.dtype, a.shape, a.layout) == (b.dtype, b.shape, b.layout)
        assert torch.equal(
            a.to_dense().double() if a.dtype.itemsize == 1 else a.to_dense(),
            b.cpu().to_dense().double() if b.dtype.itemsize == 1 else b.cpu().to_dense(),
        )
        return
    assert type(a) is type(b)
    if isinstance(b, dict):
        assert list(a) == list(b)
        for key in b:
            assert_same(a[key], b[key])
    elif isinstance(b, list | tuple):
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)
    else:
        assert a == b


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_a_copy_stays_when_training_goes_on(device: str) -> None:
    live = state(device)
    staged = Stager(num_threads=2).stage(live)
    assert_same(staged, live)
    with torch.no_grad():
        for tensor in (
            live["parameter"],
            live["fp8"],
            live["conjugate"],
            live["nested"]["b"].first,
        ):
            tensor.zero_()
    live["mutable"][0] = 0
    assert_same(staged, state())


def test_shared_memory_is_copied_once() -> None:
    staged = Stager().stage(state())
    assert staged["tied"].data_ptr() == staged["parameter"].data_ptr()
    assert not staged["parameter"].requires_grad


def test_memory_is_used_again_once_the_state_is_dropped() -> None:
    stager = Stager()
    first = stager.stage(state())
    second = stager.stage(state())
    addresses = {one["parameter"].data_ptr() for one in (first, second)}
    assert len(addresses) == 2
    view = second["view"]
    del first, second
    gc.collect()
    third = stager.stage(state())
    assert third["parameter"].data_ptr() in addresses
    assert torch.equal(view, state()["view"])  # a part of the second is still in use
    fourth = stager.stage(state())
    assert fourth["parameter"].data_ptr() not in addresses
    stager.close()
    assert_same(third, state())


def test_a_state_without_tensors() -> None:
    assert Stager().stage({"a": 1, "b": [None]}) == {"a": 1, "b": [None]}


def test_wrong_arguments() -> None:
    with pytest.raises(OptionError):
        Stager(num_threads=0)
