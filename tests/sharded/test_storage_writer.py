"""Folders that one process writes and reads: every kind of state, options, and what goes wrong."""

from __future__ import annotations

import errno
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import strategies as st
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter

from pyckpt.errors import CheckpointError, FilenameError, OptionError
from pyckpt.sharded import StorageReader, StorageWriter
from tests.sharded.test_shard_reader import DTYPES, bits, random

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is", "ignore:.*TypedS")


def emptied(state: Any) -> Any:
    """A state to load into: of the same shape, with other values."""
    if isinstance(state, dict):
        return {key: emptied(value) for key, value in state.items()}
    if isinstance(state, list):
        return [emptied(value) for value in state]
    if isinstance(state, torch.Tensor):
        return torch.zeros(state.shape, dtype=state.dtype)
    return None


def assert_same(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert bits(a) == bits(b)
    else:
        assert a == b


def state(value: float = 1.0) -> dict[str, Any]:
    big = torch.arange(90_000.0).reshape(300, 300) + value
    return {
        "big": big,
        "view": big[7:9],
        "transposed": big[:50, :20].t(),
        "conjugate": torch.complex(big[:3], -big[:3]).conj(),
        "scalar": torch.tensor(value),
        "empty": torch.ones(0, 3),
        "flags": torch.tensor([True, False]),
        "fp8": torch.arange(20.0).to(torch.float8_e4m3fn)[3:7],
        "parameter": torch.nn.Parameter(big[0]),
        "nested": {"a/b": {"c": torch.ones(2)}, "value": value, "list": [1, {"x": "y"}]},
        "..": torch.full((2,), value),
    }


def plain(data: dict[str, Any]) -> dict[str, Any]:
    return {**data, "parameter": data["parameter"].detach()}


@pytest.mark.parametrize("compression", [None, "gz", "bz2", "xz", "lzma"])
def test_everything_comes_back(tmp_path: Path, compression: str | None) -> None:
    dcp.save(state(), storage_writer=StorageWriter(tmp_path, compression=compression))
    loaded = emptied(state())
    dcp.load(loaded, storage_reader=StorageReader(tmp_path, num_threads=2))
    assert_same(loaded, plain(state()))


def test_torch_reads_an_uncompressed_folder(tmp_path: Path) -> None:
    dcp.save(state(), storage_writer=StorageWriter(tmp_path))
    loaded = emptied(state())
    dcp.load(loaded, storage_reader=FileSystemReader(tmp_path))
    assert_same(loaded, plain(state()))


@pytest.mark.newest_torch  # an older one fails too, but does not say why
def test_torch_refuses_a_compressed_folder(tmp_path: Path) -> None:
    dcp.save(state(), storage_writer=StorageWriter(tmp_path, compression="gz"))
    with pytest.raises(CheckpointException, match=r"Unknown extension name='pyckpt\.tar\.gz'"):
        dcp.load(emptied(state()), storage_reader=FileSystemReader(tmp_path))


@pytest.mark.parametrize("single_file", [True, False])
def test_folders_of_torch_are_read(tmp_path: Path, single_file: bool) -> None:
    data = plain(state())
    writer = FileSystemWriter(tmp_path, single_file_per_rank=single_file)
    dcp.save(data, storage_writer=writer)
    loaded = emptied(data)
    dcp.load(loaded, storage_reader=StorageReader(tmp_path))
    assert_same(loaded, data)


def test_unknown_extensions_are_refused(tmp_path: Path) -> None:
    dcp.save({"a": torch.ones(3)}, storage_writer=FileSystemWriter(tmp_path))
    path = tmp_path / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    for info in metadata.storage_data.values():
        info.transform_descriptors = ["stream.zstd/1"]
    path.write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointException, match=r"extension 'stream\.zstd/1'"):
        dcp.load({"a": torch.zeros(3)}, storage_reader=StorageReader(tmp_path))


keys = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
shapes = st.lists(st.integers(0, 5), max_size=3)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    tensor = random(draw(shapes), draw(st.sampled_from(DTYPES)), draw(st.integers(0, 99)))
    tensor = tensor.permute(draw(st.permutations(range(tensor.dim()))))
    if tensor.dim() and draw(st.booleans()):
        tensor = tensor[tensor.shape[0] // 2 :]
    return tensor


values = tensors() | st.integers() | st.text(max_size=5) | st.binary(max_size=5)


@hypothesis.given(
    data=st.dictionaries(keys, values, min_size=1, max_size=4),
    compression=st.sampled_from([None, "gz"]),
)
@hypothesis.settings(max_examples=30)
def test_any_state(
    tmp_path_factory: pytest.TempPathFactory, data: dict[str, Any], compression: str | None
) -> None:
    folder = tmp_path_factory.mktemp("c")
    dcp.save(data, storage_writer=StorageWriter(folder, compression=compression, fsync=False))
    readers: list[Any] = [StorageReader(folder)]
    if compression is None:
        readers.append(FileSystemReader(folder))
    for reader in readers:
        loaded = emptied(data)
        dcp.load(loaded, storage_reader=reader)
        assert_same(loaded, data)


def test_a_folder_lists_its_shards_by_name(tmp_path: Path, frozen_time: int) -> None:
    weight = torch.arange(6.0)
    data = {"model": {"weight": weight, "half": weight[:2]}, "step": 3}
    dcp.save(data, storage_writer=StorageWriter(tmp_path))
    [path] = tmp_path.glob("*.tar")
    with tarfile.open(path) as tar:
        found = [(member.name, member.mtime) for member in tar]
    assert [name for name, _ in found] == [
        "",
        *("model.half", "model.half/rank0.pt"),
        *("model.weight", "model.weight/rank0.pt"),
        *("step", "step/rank0.pt"),
    ]
    assert {time for _, time in found} == {frozen_time}


def test_views_cost_what_they_span(tmp_path: Path) -> None:
    big = torch.zeros(10_000_000)
    dcp.save({"view": big[:10]}, storage_writer=StorageWriter(tmp_path))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 20_000


def test_a_second_save_replaces_the_metadata_and_no_archive(tmp_path: Path) -> None:
    dcp.save(state(1.0), storage_writer=StorageWriter(tmp_path))
    archives = {path: path.read_bytes() for path in tmp_path.glob("*.tar")}
    dcp.save(state(2.0), storage_writer=StorageWriter(tmp_path))
    assert all(path.read_bytes() == raw for path, raw in archives.items())
    assert len(list(tmp_path.glob("*.tar"))) == 2
    loaded = emptied(state())
    dcp.load(loaded, storage_reader=StorageReader(tmp_path))
    assert_same(loaded, plain(state(2.0)))


def test_metadata_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / ".metadata").mkdir()
    writer = StorageWriter(tmp_path)
    with pytest.raises(CheckpointException) as caught:
        dcp.save(state(1.0), storage_writer=writer)
    [(cause, _)] = caught.value.failures.values()
    assert isinstance(cause, CheckpointError)
    assert cause.path == str(tmp_path / ".metadata")
    [left] = tmp_path.glob("*.tar")
    (tmp_path / ".metadata").rmdir()
    dcp.save(state(2.0), storage_writer=writer)
    assert not left.exists()  # the next save of this writer removes it
    loaded = emptied(state())
    dcp.load(loaded, storage_reader=StorageReader(tmp_path))
    assert_same(loaded, plain(state(2.0)))


def test_what_a_finished_save_wrote_is_never_removed(tmp_path: Path) -> None:
    writer = StorageWriter(tmp_path)
    for value in range(3):
        dcp.save(state(float(value)), storage_writer=writer)
    assert len(list(tmp_path.glob("*.tar"))) == 3


def test_an_error_names_the_file_and_the_cause(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointException) as caught:
        dcp.save(state(), storage_writer=StorageWriter(tmp_path / "file"))
    [(cause, _)] = caught.value.failures.values()
    assert isinstance(cause, CheckpointError)
    assert cause.errno in (errno.ENOTDIR, errno.EEXIST)
    assert str(tmp_path / "file") in str(cause)
    assert pickle.loads(pickle.dumps(cause)).path == cause.path


def test_wrong_arguments(tmp_path: Path) -> None:
    for arguments in (
        {"compression": "zip"},
        {"compression": ""},
        {"compression": "gz", "compression_level": 99},
        {"compression_level": 1},
        {"num_threads": 0},
        {"fsync": "no"},
    ):
        with pytest.raises(OptionError):
            StorageWriter(tmp_path, **arguments)  # type: ignore[arg-type]
    for kind in (StorageWriter, StorageReader):
        with pytest.raises(FilenameError):
            kind("nowhere://bucket/x")
        assert not kind.validate_checkpoint_id("nowhere://bucket/x")
        assert kind.validate_checkpoint_id(tmp_path)
    with pytest.raises(OptionError):
        StorageReader(tmp_path, num_threads=-1)
    assert os.listdir(tmp_path) == []


def test_a_writer_can_be_pickled(tmp_path: Path) -> None:
    writer = pickle.loads(pickle.dumps(StorageWriter(tmp_path / "x", compression="gz")))
    dcp.save(state(), storage_writer=writer, checkpoint_id=tmp_path / "y")
    loaded = emptied(state())
    dcp.load(loaded, storage_reader=StorageReader(tmp_path / "x"), checkpoint_id=tmp_path / "y")
    assert_same(loaded, plain(state()))


def test_a_folder_without_metadata_is_no_checkpoint(tmp_path: Path) -> None:
    dcp.save(state(), storage_writer=StorageWriter(tmp_path))
    (tmp_path / ".metadata").unlink()
    with pytest.raises(CheckpointException, match="metadata"):
        dcp.load(emptied(state()), storage_reader=StorageReader(tmp_path))


def test_archives_of_another_save_are_noticed(tmp_path: Path) -> None:
    for name in "ab":
        dcp.save({"w": torch.ones(9)}, storage_writer=StorageWriter(tmp_path / name))
    [a], [b] = [list((tmp_path / name).glob("*.tar")) for name in "ab"]
    a.unlink()
    b.rename(a.parent / b.name)
    with pytest.raises(CheckpointException, match="No such file"):
        dcp.load({"w": torch.zeros(9)}, storage_reader=StorageReader(tmp_path / "a"))


def test_places_outside_of_the_folder_are_refused(tmp_path: Path) -> None:
    dcp.save({"w": torch.ones(9)}, storage_writer=StorageWriter(tmp_path / "a"))
    path = tmp_path / "a" / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    [info] = metadata.storage_data.values()
    for name in ("../x", "/etc/passwd", 3):
        info.relative_path = name
        path.write_bytes(pickle.dumps(metadata))
        with pytest.raises(CheckpointException, match=r"not in the folder|has no place"):
            dcp.load({"w": torch.zeros(9)}, storage_reader=StorageReader(tmp_path / "a"))


@pytest.mark.cuda
def test_tensors_on_a_gpu(tmp_path: Path) -> None:
    weight = torch.randn(1000, 1000, device="cuda")
    dcp.save({"w": weight, "row": weight[3]}, storage_writer=StorageWriter(tmp_path))
    loaded = {"w": torch.zeros_like(weight), "row": torch.zeros(1000, device="cuda")}
    dcp.load(loaded, storage_reader=StorageReader(tmp_path))
    assert torch.equal(loaded["w"], weight)
    assert torch.equal(loaded["row"], weight[3])
