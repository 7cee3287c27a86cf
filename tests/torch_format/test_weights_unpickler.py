"""weights_only builds what torch's loader builds, and refuses what that refuses."""

from __future__ import annotations

import collections
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import pyckpt
from pyckpt.torch_format.weights_unpickler import WeightsUnpickler
from tests.torch_format import bombs


def unpickled(data: bytes) -> Any:
    return WeightsUnpickler(data, lambda saved_id: saved_id).run()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.floats(-9, 9),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=20,
)  # fmt: skip


@given(VALUES, st.sampled_from(range(pickle.HIGHEST_PROTOCOL + 1)))
def test_plain_values(value: Any, protocol: int) -> None:
    assert unpickled(pickle.dumps(value, protocol)) == value


class Mine:
    """A class that a user admits."""

    def __init__(self, value: int) -> None:
        self.value = value


class Slotted:
    __slots__ = ("value",)


class Subclass(torch.Tensor):
    pass


def with_attribute() -> torch.Tensor:
    tensor = torch.ones(2)
    tensor.note = [1]  # type: ignore[attr-defined]
    return tensor


def what_torch_allows() -> dict[str, Any]:
    return {
        "tensor": torch.arange(3),
        "with attribute": with_attribute(),
        "parameter": nn.Parameter(torch.ones(2), requires_grad=False),
        "size": torch.Size([1, 2]),
        "dtype": torch.bfloat16,
        "device": torch.device("cpu"),
        "layout": torch.strided,
        "sparse": torch.eye(3).to_sparse(),
        "csr": torch.eye(3).to_sparse_csr(),
        "quantized": torch.quantize_per_tensor(torch.ones(3), 0.5, 1, torch.qint8),
        "ordered": collections.OrderedDict(a=1),
        "counter": collections.Counter("abca"),
        "set": {1, 2},
        "bytes": b"bytes\xff",
        "bytearray": bytearray(b"ab"),
        "complex": 1 + 2j,
        "storage": torch.arange(3.0).untyped_storage(),
        "float8": torch.ones(2).to(torch.float8_e4m3fn),
        "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(1)], layout=torch.jagged),
    }


NAMES = [
    *("tensor", "with attribute", "parameter", "size", "dtype", "device", "layout", "sparse"),
    *("csr", "quantized", "ordered", "counter", "set", "bytes", "bytearray", "complex"),
    *("storage", "float8", "nested"),
]


@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning")
@pytest.mark.filterwarnings("ignore:TypedStorage:UserWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize:UserWarning")
@pytest.mark.parametrize("name", NAMES)
def test_what_torch_allows(tmp_path: Path, name: str) -> None:
    torch.save(what_torch_allows()[name], tmp_path / "x.pt")
    expected = torch.load(tmp_path / "x.pt", weights_only=True)
    found = pyckpt.load(tmp_path / "x.pt", weights_only=True)
    assert type(found) is type(expected)
    if isinstance(found, torch.storage.TypedStorage):
        assert found._untyped_storage.tolist() == expected._untyped_storage.tolist()
        return
    if not isinstance(found, torch.Tensor):
        assert repr(found) == repr(expected)
        return
    assert (found.dtype, found.layout, found.requires_grad) == (
        expected.dtype, expected.layout, expected.requires_grad,
    )  # fmt: skip
    if found.is_nested:
        found, expected = found.values(), expected.values()
    assert repr(found) == repr(expected)
    assert vars(found).get("note") == vars(expected).get("note")


def test_what_the_user_admits(tmp_path: Path) -> None:
    torch.save([Mine(3), torch.ones(2).as_subclass(Subclass)], tmp_path / "x.pt")
    for load in (torch.load, pyckpt.load):
        with pytest.raises(pickle.UnpicklingError, match="Mine"):
            load(tmp_path / "x.pt", weights_only=True)
    with torch.serialization.safe_globals([Mine, Subclass]):
        mine, tensor = pyckpt.load(tmp_path / "x.pt")
    assert (type(mine), mine.value, type(tensor)) == (Mine, 3, Subclass)
    with pytest.raises(pickle.UnpicklingError, match="add_safe_globals"):
        pyckpt.load(tmp_path / "x.pt")


FORBIDDEN = {
    "a function": b"cos\nsystem\n(X\x04\0\0\0truetR",
    "a class by a newer opcode": b"X\x02\0\0\0osX\x06\0\0\0system\x93X\x04\0\0\0true\x85R",
    "an attribute": b"c__builtin__\ngetattr\n",
    "protocol 0": b"(X\x04\0\0\0trueios\nsystem\n",
    "protocol 1": b"(ccollections\nOrderedDict\nX\x04\0\0\0trueo",
    "a call of an instance": b"ccollections\nOrderedDict\n)R)R",
    "a new instance of an instance": b"ccollections\nOrderedDict\n)R)\x81",
    "keyword arguments": b"ccollections\nOrderedDict\n)}X\x01\0\0\0aK\x01s\x92",
    "a state of a list": b"]]b",
    "a state of a module": b"ctorch.nn.parameter\nParameter\n}b",
    "items of a list": b"]K\x00K\x01s",
    "values of a dict": b"}K\x01a",
    "any number of bytes": b"c__builtin__\nbytearray\n\x8a\x06\0\0\0\0\0\x10\x85R",
}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_what_torch_forbids(name: str) -> None:
    with pytest.raises(pickle.UnpicklingError):
        unpickled(b"\x80\x04" + FORBIDDEN[name] + b".")


def test_modules_that_nobody_may_admit() -> None:
    import os

    data = b"\x80\x02cos\nsystem\n."
    with (
        torch.serialization.safe_globals([(os.system, "os.system")]),
        pytest.raises(pickle.UnpicklingError, match="never allowed"),
    ):
        unpickled(data)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", ["key that is hashed", "member that is hashed", "frozen member"])
def test_keys_that_are_hashed_forever(name: str) -> None:
    with pytest.raises(pickle.UnpicklingError, match="too large"):
        unpickled(b"\x80\x04" + bombs.BOMBS[name] + b".")


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "function", ["__builtin__\nset", "collections\nCounter", "torch.serialization\n_get_layout"]
)
def test_arguments_that_are_hashed_forever(function: str) -> None:
    data = b"\x80\x02c" + function.encode() + b"\n" + b"]" + bombs.DOUBLED + b"a\x85R."
    with pytest.raises(pickle.UnpicklingError, match="too large"):
        unpickled(data)


def write(path: Path, pickled: bytes) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", pickled)
        file.writestr("a/version", "3\n")


def test_a_failed_load_leaves_torch_as_it_was(tmp_path: Path) -> None:
    """torch keeps the sparse tensors of all loads in one list until it has validated them."""
    torch.save({"s": torch.eye(3).to_sparse(), "m": Mine(1)}, tmp_path / "x.pt")
    with pytest.raises(pickle.UnpicklingError):
        pyckpt.load(tmp_path / "x.pt")
    assert torch._utils._sparse_tensors_to_validate == []


@pytest.mark.parametrize("weights_only", [True, False])
def test_sparse_tensors_whose_indices_are_wrong(tmp_path: Path, weights_only: bool) -> None:
    sparse = torch.sparse_coo_tensor(
        torch.tensor([[70]]), torch.ones(1), (99,), check_invariants=False
    )
    torch.save(sparse, tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt") as file:
        records = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as file:
        for name, data in records.items():
            file.writestr(name, data.replace(struct.pack("<q", 70), struct.pack("<q", 7_000_000)))
    with (
        torch.sparse.check_sparse_tensor_invariants(),
        pytest.raises(pyckpt.CorruptArchiveError, match="broken pickle"),
    ):
        pyckpt.load(tmp_path / "x.pt", weights_only=weights_only)
    assert torch._utils._sparse_tensors_to_validate == []


def test_our_own_errors_are_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyckpt.torch_format import weights_unpickler

    def wrong(*_: Any) -> Any:
        raise AttributeError("a fault of pyckpt")

    torch.save({"s": torch.ones(3)}, tmp_path / "x.pt")
    monkeypatch.setattr(weights_unpickler, "plain_type", wrong)
    with pytest.raises(AttributeError, match="a fault of pyckpt"):
        pyckpt.load(tmp_path / "x.pt")


@pytest.mark.parametrize(
    "pickled",
    [
        *(b"", b"\x80\x02", b"\x80\x02K", b"\x80\x02(K", b"\x80\x02h\x05.", b"\x80\x02}(K\x01u."),
        *(b"\x80\x02X\x01\0\0\0\xff.", b"\x80\x02NQ.", b"\x80\x02}]Ns.", b"\x80\x02K\x01)R."),
        *(b"\x80\x02)Q.", b"\x80\x02)\x85Q."),
    ],
)
def test_broken_pickles_are_damage(tmp_path: Path, pickled: bytes) -> None:
    write(tmp_path / "x.pt", pickled)
    with pytest.raises(
        (pyckpt.CorruptArchiveError, pickle.UnpicklingError), match=r"x\.pt"
    ) as caught:
        pyckpt.load(tmp_path / "x.pt")
    is_call = pickled.endswith(b"R.")  # only forbidden, with weights_only
    assert isinstance(caught.value, pyckpt.CorruptArchiveError) is not is_call
    with pytest.raises(pyckpt.CorruptArchiveError, match="broken pickle"):
        pyckpt.load(tmp_path / "x.pt", weights_only=False)
    assert not pyckpt.verify(tmp_path / "x.pt").ok
