"""The metadata of a checkpoint is read without running what it names."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import FileSystemWriter, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from pyckpt.errors import CorruptArchiveError
from pyckpt.sharded.dcp_metadata import dump_metadata, load_metadata

HERE = Path(".metadata")


def metadata(dtype: torch.dtype = torch.float32) -> Metadata:
    chunk = ChunkStorageMetadata(torch.Size([0, 3]), torch.Size([2, 1]))
    tensor = TensorStorageMetadata(TensorProperties(dtype), torch.Size([2, 4]), [chunk])
    index = MetadataIndex("a", [0, 3])
    return Metadata(
        {"a": tensor},
        planner_data={"a": ("a", 1)},
        storage_data={index: _StorageInfo("x.tar", 512, 99)},
        storage_meta=StorageMeta(checkpoint_id=Path("c"), save_id="7"),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e5m2, torch.bool])
def test_what_was_written_is_read(dtype: torch.dtype) -> None:
    found = load_metadata(dump_metadata(metadata(dtype)), HERE)
    assert found.state_dict_metadata == metadata(dtype).state_dict_metadata
    assert found.storage_data == metadata().storage_data
    assert found.planner_data == {"a": ("a", 1)}
    assert found.storage_meta is not None
    assert (found.storage_meta.checkpoint_id, found.storage_meta.save_id) == ("c", "7")


@pytest.mark.filterwarnings("ignore:torch.distributed is")
def test_what_torch_wrote_is_read(tmp_path: Path) -> None:
    dcp.save({"a": torch.ones(3), "b": {"c": 3}}, storage_writer=FileSystemWriter(tmp_path))
    raw = (tmp_path / ".metadata").read_bytes()
    found, expected = load_metadata(raw, HERE), pickle.loads(raw)
    found.storage_meta = expected.storage_meta = None  # holds a path
    assert found == expected


class Call:
    def __init__(self, function: Any, *args: Any) -> None:
        self.reduced = (function, args)

    def __reduce__(self) -> Any:
        return self.reduced


class Sets:
    """Sets attributes of a class, as the state of an instance."""

    def __init__(self, kind: Any, **attributes: Any) -> None:
        self.kind, self.attributes = kind, attributes

    def __reduce__(self) -> Any:
        return _same, (self.kind,), (None, self.attributes)


def _same(value: Any) -> Any:
    return value


@pytest.mark.parametrize(
    "value",
    [
        Call(os.system, "touch ran"),
        Call(eval, "1"),
        Call(torch.load, "x"),
        Call(getattr, 1, "real"),
    ],
)
def test_other_names_are_refused(
    value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = metadata()
    data.planner_data = value
    with pytest.raises(CorruptArchiveError, match="has no place in it") as caught:
        load_metadata(pickle.dumps(data), HERE)
    assert caught.value.path == str(HERE)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["version", "extra", "__setstate__"])
def test_classes_stay_as_they_are(name: str) -> None:
    # GLOBAL Metadata, MARK, None, {name: "hostile"}, TUPLE, BUILD, STOP
    raw = (
        b"\x80\x02ctorch.distributed.checkpoint.metadata\nMetadata\n(N}"
        + pickle.BINUNICODE
        + len(name).to_bytes(4, "little")
        + name.encode()
        + b"X\x07\x00\x00\x00hostilestb."
    )
    before = dict(vars(Metadata))
    with pytest.raises(CorruptArchiveError, match="is not the metadata of a checkpoint"):
        load_metadata(raw, HERE)
    assert dict(vars(Metadata)) == before


def test_damage_is_an_error() -> None:
    raw = dump_metadata(metadata())
    for size in range(0, len(raw), 7):
        with pytest.raises(CorruptArchiveError):
            load_metadata(raw[:size], HERE)
    for other in (b"", b"\x80\x04]\x94.", pickle.dumps(3), bytes(100)):
        with pytest.raises(CorruptArchiveError):
            load_metadata(other, HERE)


@pytest.mark.parametrize("name", ["load", "float32.itemsize", "Tensor"])
def test_a_layout_is_a_layout(name: str) -> None:
    data = metadata()
    data.planner_data = Call(torch.serialization._get_layout, "torch.strided")
    raw = pickle.dumps(data).replace(b"\x8c\rtorch.strided", b"\x8c\r" + name.ljust(13).encode())
    with pytest.raises(CorruptArchiveError):
        load_metadata(raw, HERE)
