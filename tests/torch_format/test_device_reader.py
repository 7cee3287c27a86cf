"""Storages on a device, read piece by piece, and saves of tensors on a device."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pyckpt
from pyckpt.archive.formats import file_suffixes, usual_suffixes
from pyckpt.torch_format.device_reader import DeviceReader, queued_so_far
from pyckpt.torch_format.serialize import serialize

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


def read(reader: DeviceReader, offset: int, nbytes: int) -> bytes:
    memory = (ctypes.c_uint8 * (nbytes + 2))()
    reader.read(offset, nbytes, ctypes.addressof(memory) + 1)
    assert memory[0] == memory[nbytes + 1] == 0, "written outside"
    return bytes(memory)[1:-1]


def host_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("device", DEVICES)
@given(data=st.data())
def test_any_piece(device: str, data: st.DataObject) -> None:
    tensor = torch.randn(100).to(device)
    start = data.draw(st.integers(0, tensor.nbytes - 1))
    offset = data.draw(st.integers(0, tensor.nbytes - 1 - start))
    nbytes = data.draw(st.integers(1, tensor.nbytes - start - offset))
    reader = DeviceReader(tensor.untyped_storage(), start, queued_so_far(tensor.device))
    assert read(reader, offset, nbytes) == host_bytes(tensor)[start + offset :][:nbytes]


@pytest.mark.parametrize("device", DEVICES)
def test_many_threads(device: str) -> None:
    tensor = torch.randn(1 << 20).to(device)
    reader = DeviceReader(tensor.untyped_storage(), 0, queued_so_far(tensor.device))
    piece = 100_003
    offsets = range(0, tensor.nbytes - piece, piece)
    with ThreadPoolExecutor(8) as pool:
        pieces = list(pool.map(lambda offset: read(reader, offset, piece), offsets))
    assert b"".join(pieces) == host_bytes(tensor)[: len(offsets) * piece]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.complex64])
def test_any_type(device: str, dtype: torch.dtype) -> None:
    tensor = torch.randn(1000).mul(50).to(dtype).to(device)
    reader = DeviceReader(tensor.untyped_storage(), 0, queued_so_far(tensor.device))
    assert read(reader, 0, tensor.nbytes) == host_bytes(tensor)


def in_readers(obj: Any) -> list[Any]:
    """The records of ``obj``; storages are read by readers, as if they were on a device."""
    return [
        record
        if record.owner is None or "/data/" not in record.name
        else type(record)(
            record.name,
            0,
            record.nbytes,
            record.element_nbytes,
            reader=DeviceReader(record.owner),
        )
        for record in serialize(obj)
    ]


@pytest.mark.parametrize("suffix", ["", *usual_suffixes(), *file_suffixes()])
def test_a_file_does_not_tell_readers_from_memory(
    tmp_path: Path, frozen_time: int, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    obj = {"a": torch.randn(1_200_000), "b": torch.arange(5), "c": torch.empty(0), "d": "text"}
    by_memory, by_readers = tmp_path / f"memory{suffix}", tmp_path / f"readers{suffix}"
    pyckpt.save(obj, by_memory)
    monkeypatch.setattr("pyckpt.archive.writer.serialize", lambda obj, **_: in_readers(obj))
    pyckpt.save(obj, by_readers)
    assert by_memory.read_bytes() == by_readers.read_bytes()


class Broken:
    def read(self, offset: int, nbytes: int, address: int) -> None:
        if offset > 0:
            raise RuntimeError("the device is gone")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_a_reader_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    def broken(obj: Any, **_: Any) -> list[Any]:
        return [
            record
            if "/data/" not in record.name
            else type(record)(record.name, 0, record.nbytes, reader=Broken())
            for record in serialize(obj)
        ]

    monkeypatch.setattr("pyckpt.archive.writer.serialize", broken)
    with pytest.raises(pyckpt.CheckpointError, match="the device is gone"):
        pyckpt.save(torch.empty(8_000_000), tmp_path / f"x{suffix}")
    assert not any(tmp_path.iterdir())


@pytest.mark.cuda
@pytest.mark.parametrize("suffix", ["", ".tar.gz", ".tar.lzma"])
def test_tensors_on_a_device_are_saved_as_after_a_copy(tmp_path: Path, suffix: str) -> None:
    device = torch.device("cuda")
    base = torch.randn(5_000_000, device=device)
    obj = {"base": base, "view": base[10:20], "half": base.bfloat16(), "host": torch.arange(4)}
    pyckpt.save(obj, tmp_path / f"x{suffix}")
    loaded = pyckpt.load(tmp_path / f"x{suffix}")
    for name, tensor in obj.items():
        assert torch.equal(loaded[name], tensor.cpu())
    assert (
        loaded["view"].untyped_storage().data_ptr() == loaded["base"].untyped_storage().data_ptr()
    )
    back = pyckpt.load(tmp_path / f"x{suffix}", map_location=None)
    assert back["base"].device.type == "cuda"
    assert back["host"].device.type == "cpu"


@pytest.mark.cuda
def test_queued_work_belongs_to_the_state(tmp_path: Path) -> None:
    def busy(tensor: torch.Tensor) -> torch.Tensor:
        for _ in range(200):
            tensor = (tensor @ tensor).tanh()
        return tensor

    square = torch.randn(2000, 2000, device="cuda")
    expected = busy(square).cpu()
    result = busy(square)  # still computing when the save starts
    pyckpt.save(result, tmp_path / "x")
    assert torch.equal(pyckpt.load(tmp_path / "x"), expected)
