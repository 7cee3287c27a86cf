"""tensors_in() lists the tensors of any pickle, and runs nothing in it."""

import contextlib
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pyckpt.torch_format.tensor_index import TensorInfo, tensors_in


def pickle_of(obj: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(obj, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return archive.read(next(n for n in archive.namelist() if n.endswith("/data.pkl")))


def by_path(obj: Any) -> dict[str, TensorInfo]:
    return {tensor.key_path: tensor for tensor in tensors_in(pickle_of(obj))}


def test_paths_types_and_shapes() -> None:
    base = torch.arange(20)
    found = by_path(
        {
            "a": torch.zeros(2, 3),
            "nested": {0: [torch.ones(4).bfloat16(), 1, ("x", base[4:16:3])]},
            "base": base,
            "scalar": torch.tensor(2.0, dtype=torch.float64),
            "empty": torch.zeros(0, 7),
        }
    )
    assert {path: (t.dtype, t.shape) for path, t in found.items()} == {
        "a": (torch.float32, (2, 3)),
        "nested/0/0": (torch.bfloat16, (4,)),
        "nested/0/2/1": (torch.int64, (4,)),
        "base": (torch.int64, (20,)),
        "scalar": (torch.float64, ()),
        "empty": (torch.float32, (0, 7)),
    }
    view = found["nested/0/2/1"]
    assert (view.offset, view.stride, view.nbytes) == (4, (3,), 32)
    assert view.storage.key == found["base"].storage.key
    assert view.storage.numel == 20
    assert found["empty"].nbytes == 0


@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(torch.uint16, marks=pytest.mark.newest_torch),
        *(torch.float8_e4m3fn, torch.complex64, torch.bool, torch.float16, torch.uint8),
    ],
)
def test_every_kind_of_number(dtype: torch.dtype) -> None:
    found = by_path({"t": torch.zeros(5).to(dtype)})["t"]
    assert (found.dtype, found.shape) == (dtype, (5,))


def test_what_tensors_are_wrapped_in() -> None:
    model = nn.Linear(3, 4)
    assert by_path(list(model.parameters()))["0"].shape == (4, 3)
    assert by_path(model.state_dict())["weight"].shape == (4, 3)
    parts = tensors_in(pickle_of({"s": torch.eye(3).to_sparse()}))
    assert [(t.key_path, t.dtype) for t in parts] == [("s", torch.int64), ("s", torch.float32)]


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_nothing_is_run(tmp_path: Path) -> None:
    data = pickle_of({"trap": Trap(tmp_path / "sprung"), "t": torch.zeros(3)})
    assert [t.key_path for t in tensors_in(data)] == ["t"]
    assert not (tmp_path / "sprung").exists()


def test_what_contains_itself() -> None:
    loop: list[Any] = [torch.zeros(1)]
    loop.append(loop)
    assert [t.key_path for t in tensors_in(pickle_of(loop))] == ["0"]


@pytest.mark.timeout(120)
def test_a_tree_without_end() -> None:
    """Sixty levels; each holds the level below twice."""
    tree: Any = [torch.zeros(1)]
    for _ in range(60):
        tree = [tree, tree]
    with pytest.raises(pickle.UnpicklingError, match="too large"):
        tensors_in(pickle_of(tree))


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x02",
        b"\x80\x02]r\xff\xff\xff\xff.",  # memo index four billion
        b"\x80\x04\x8e" + b"\xff" * 8,  # more bytes than there is memory
        b"\x80\x02(((((t.",
        b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",  # too deep
        b"cos\nsystem\n(S'true'\ntQ.",
    ],
)
def test_broken_pickles(data: bytes) -> None:
    with contextlib.suppress(pickle.UnpicklingError):
        assert tensors_in(data) == []


@given(st.data())
@pytest.mark.timeout(300)
def test_any_bytes(data: st.DataObject) -> None:
    """Damage gives an UnpicklingError or tensors, and no other error."""
    contents = bytearray(pickle_of({"a": torch.zeros(2, 3), "b": [nn.Parameter(torch.zeros(1))]}))
    for _ in range(data.draw(st.integers(1, 4))):
        contents[data.draw(st.integers(0, len(contents) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = tensors_in(bytes(contents))
    except pickle.UnpicklingError:
        return
    assert all(isinstance(tensor, TensorInfo) for tensor in found)


class Subclass(torch.Tensor):
    """A tensor of another class, and nothing else."""


def test_tensors_with_attributes_and_subclasses() -> None:
    plain = torch.ones(2, 3)
    plain.note = {"inner": torch.zeros(4)}  # type: ignore[attr-defined]
    subclass = torch.ones(5, dtype=torch.float64).as_subclass(Subclass)
    parameter = nn.Parameter(torch.ones(6))
    parameter.tied = torch.zeros(7)  # type: ignore[attr-defined]
    found = by_path({"plain": plain, "list": [subclass], "parameter": parameter})
    assert {path: (t.dtype, t.shape) for path, t in found.items()} == {
        "plain": (torch.float32, (2, 3)),
        "plain/note/inner": (torch.float32, (4,)),
        "list/0": (torch.float64, (5,)),
        "parameter": (torch.float32, (6,)),
        "parameter/tied": (torch.float32, (7,)),
    }


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_nested_tensors() -> None:
    parts = [torch.ones(2, 3), torch.ones(1, 3)]
    jagged = by_path({"n": torch.nested.nested_tensor(parts, layout=torch.jagged)})
    assert (jagged["n/values"].shape, jagged["n/offsets"].shape) == ((3, 3), (3,))
    strided = tensors_in(pickle_of({"n": torch.nested.nested_tensor(parts)}))
    assert {t.key_path for t in strided} == {"n"}
    assert (9,) in {t.shape for t in strided}


def test_shapes_that_are_no_numbers() -> None:
    data = pickle_of({"t": torch.ones(9)})
    for shape in (b"N", b"G" + bytes(8), b"\x88", b"X\1\0\0\0a", b"J\xff\xff\xff\xff", b"]"):
        with pytest.raises(pickle.UnpicklingError, match="shape"):
            tensors_in(data.replace(b"K\x09\x85", shape + b"\x85"))
    with pytest.raises(pickle.UnpicklingError, match="not a storage"):
        tensors_in(data.replace(b"K\x09t", b"]t"))
