"""torch.distributed.checkpoint on pyckpt's storage, in stores: one process, and what goes wrong."""

from __future__ import annotations

import errno
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter
from torch.distributed.checkpoint.api import CheckpointException

from pyckpt.errors import CheckpointError, FilenameError, OptionError
from pyckpt.sharded import StorageReader, StorageWriter
from tests.sharded.test_storage_writer import assert_same, emptied, plain, state
from tests.storage.test_store_reads import Log
from tests.stores import Bucket, Fault, answer

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.filterwarnings("ignore:torch.distributed is", "ignore:.*TypedS"),
]

BIG = 40 << 20


@pytest.fixture
def memory() -> Iterator[str]:
    """The URL of a folder in fsspec's memory."""
    yield "memory://dcp/run"
    fs = fsspec.filesystem("memory")
    if fs.exists("/dcp"):
        fs.rm("/dcp", recursive=True)


def big() -> dict[str, torch.Tensor]:
    """Two tensors that no compressor makes much smaller."""
    generator = torch.Generator().manual_seed(1)
    shape = (1 << 10, BIG // 2 >> 10)
    return {
        key: torch.randint(256, shape, dtype=torch.uint8, generator=generator) for key in ("a", "b")
    }


def loaded(folder: str, like: Any) -> Any:
    found = emptied(like)
    dcp.load(found, storage_reader=StorageReader(folder))
    return found


def the_cause(call: Callable[[], object]) -> BaseException:
    """What a call of torch raises because of this process."""
    with pytest.raises(CheckpointException) as caught:
        call()
    [(cause, _)] = caught.value.failures.values()
    return cause


@pytest.mark.parametrize("compression", [None, "gz", "bz2", "xz", "zst"])
@pytest.mark.parametrize("kind", ["s3", "memory"])
def test_everything_comes_back(
    bucket: Bucket, memory: str, kind: str, compression: str | None
) -> None:
    folder = bucket.url("run/ckpt-5") if kind == "s3" else memory
    dcp.save(state(), storage_writer=StorageWriter(folder, compression=compression))
    assert_same(loaded(f"{folder}/", state()), plain(state()))
    dcp.save(state(2.0), storage_writer=StorageWriter(f"{folder}/", compression=compression))
    assert_same(loaded(folder, state()), plain(state(2.0)))


def test_torch_reads_what_is_not_compressed(memory: str) -> None:
    dcp.save(state(), storage_writer=StorageWriter(memory))
    found = emptied(state())
    dcp.load(found, storage_reader=FsspecReader(memory))
    assert_same(found, plain(state()))


def test_what_torch_wrote_is_read(memory: str) -> None:
    data = plain(state())
    dcp.save(data, storage_writer=FsspecWriter(memory))
    assert_same(loaded(memory, data), data)


def test_the_metadata_is_the_last_object(bucket: Bucket) -> None:
    dcp.save(big(), storage_writer=StorageWriter(bucket.url("run")))
    writes = [one for one in bucket.proxy.requests if one[0] not in ("HeadObject", "GetObject")]
    assert [name for name, _ in writes[:1] + writes[-2:]] == [
        "CreateMultipartUpload",
        "CompleteMultipartUpload",
        "PutObject",
    ]
    assert writes[-1][1].endswith("/run/.metadata")
    assert bucket.keys()[0] == "run/.metadata"
    assert bucket.keys()[1].endswith("-rank0.tar")
    assert len(bucket.keys()) == 2


@pytest.mark.parametrize("compression", [None, "gz", "xz"])
def test_only_what_is_wanted_is_fetched(bucket: Bucket, compression: str | None) -> None:
    whole = big()
    folder = bucket.url("run")
    dcp.save(whole, storage_writer=StorageWriter(folder, compression=compression))
    log = Log()
    bucket.proxy.rule("^GetObject .*rank0", log)
    one = {"b": torch.zeros_like(whole["b"])}
    dcp.load(one, storage_reader=StorageReader(folder))
    assert torch.equal(one["b"], whole["b"])
    assert BIG // 2 <= log.nbytes < BIG // 2 + (4 << 20)


def test_the_reader_and_the_writer_take_a_new_place(bucket: Bucket, tmp_path: Path) -> None:
    writer = pickle.loads(pickle.dumps(StorageWriter(bucket.url("x"), compression="gz")))
    dcp.save(state(1.0), storage_writer=writer, checkpoint_id=bucket.url("y"))
    dcp.save(state(2.0), storage_writer=writer, checkpoint_id=tmp_path / "z")
    reader = StorageReader(tmp_path / "none")
    for place, value in ((bucket.url("y/"), 1.0), (tmp_path / "z", 2.0)):
        found = emptied(state())
        dcp.load(found, storage_reader=reader, checkpoint_id=place)
        assert_same(found, plain(state(value)))
        assert reader.checkpoint_id == (str(place).rstrip("/") if value == 1 else place)
    keys = bucket.keys()
    assert len(keys) == 2
    assert all(key.startswith("y/") for key in keys)


def test_options_reach_the_store(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    options = {"endpoint_url": bucket.proxy.address, "key": "key", "secret": "secret"}
    folder = bucket.url("run")
    dcp.save(state(), storage_writer=StorageWriter(folder, storage_options=options))
    found = emptied(state())
    dcp.load(found, storage_reader=StorageReader(folder, storage_options=options))
    assert_same(found, plain(state()))


def test_wrong_arguments(bucket: Bucket, tmp_path: Path) -> None:
    for kind in (StorageWriter, StorageReader):
        for place in (bucket.url("run"), "memory://run", tmp_path, f"file://{tmp_path}"):
            assert kind.validate_checkpoint_id(place)
            assert kind(place).checkpoint_id == (tmp_path if str(tmp_path) in str(place) else place)
        for place in ("nowhere://x", "s3:/bucket/x", "s3://", Path("s3://b/x"), ""):
            assert not kind.validate_checkpoint_id(place)
            with pytest.raises(FilenameError):
                kind(place)
            with pytest.raises(FilenameError):
                kind(tmp_path).reset(place or Path("s3://b/x"))
        with pytest.raises(OptionError, match="storage_options are for URLs"):
            kind(tmp_path, storage_options={"key": "x"})
        with pytest.raises(OptionError, match="storage_options are for URLs"):
            kind(bucket.url("run"), storage_options={"anon": True}).reset(tmp_path)
        with pytest.raises(OptionError, match="'keys'"):
            kind(bucket.url("run"), storage_options={"keys": "x"})
    assert list(tmp_path.iterdir()) == []
    assert bucket.proxy.requests == []


def test_a_folder_without_metadata_is_no_checkpoint(bucket: Bucket, memory: str) -> None:
    for folder in (bucket.url("run"), memory):
        cause = the_cause(lambda: loaded(folder, state()))  # noqa: B023
        assert f"{folder}/.metadata" in str(cause)
    dcp.save(state(), storage_writer=StorageWriter(bucket.url("run")))
    bucket.client.delete_object(Bucket=bucket.name, Key="run/.metadata")
    assert "run/.metadata" in str(the_cause(lambda: loaded(bucket.url("run"), state())))


def test_a_bucket_that_is_not_there(bucket: Bucket) -> None:
    writer = StorageWriter("s3://no-such-bucket/run")
    cause = the_cause(lambda: dcp.save(state(), storage_writer=writer))
    assert isinstance(cause, CheckpointError)
    assert cause.errno == errno.ENOENT
    assert cause.path.startswith("s3://no-such-bucket/run/")
    assert pickle.loads(pickle.dumps(cause)).path == cause.path


@pytest.mark.parametrize("step", ["CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"])
def test_an_archive_that_cannot_be_uploaded(bucket: Bucket, step: str) -> None:
    folder = bucket.url("run")
    dcp.save(state(1.0), storage_writer=StorageWriter(folder))
    older = bucket.keys()
    bucket.proxy.rule(f"{step} .*rank0", answer(403, "AccessDenied"))
    cause = the_cause(lambda: dcp.save(big(), storage_writer=StorageWriter(folder)))
    assert isinstance(cause, CheckpointError)
    assert "AccessDenied" in str(cause)
    assert cause.errno == errno.EACCES
    assert cause.path.endswith("-rank0.tar")
    assert bucket.keys() == older
    assert bucket.uploads() == []
    assert_same(loaded(folder, state()), plain(state(1.0)))


@pytest.mark.parametrize("removes", [True, False])
def test_metadata_that_cannot_be_uploaded(
    bucket: Bucket, removes: bool, caplog: pytest.LogCaptureFixture
) -> None:
    folder = bucket.url("run")
    dcp.save(state(1.0), storage_writer=StorageWriter(folder))
    older = bucket.keys()
    bucket.proxy.rule(r"PutObject .*\.metadata", answer(403, "AccessDenied"), times=1)
    writer = StorageWriter(folder)
    cause = the_cause(lambda: dcp.save(state(2.0), storage_writer=writer))
    assert isinstance(cause, CheckpointError)
    assert cause.path == f"{folder}/.metadata"
    assert_same(loaded(folder, state()), plain(state(1.0)))
    [left] = set(bucket.keys()) - set(older)
    if not removes:
        bucket.proxy.rule("DeleteObject", answer(403, "AccessDenied"))
    dcp.save(state(3.0), storage_writer=writer)  # and what was left is removed
    assert len(bucket.keys()) == (3 if removes else 4)
    assert (left in caplog.text) != removes
    assert_same(loaded(folder, state()), plain(state(3.0)))


def replacing(bucket: Bucket, key: str) -> Fault:
    """Another object of the same size takes the place of one before the store sees a request."""

    def fault(handler: Any) -> bool:
        data = bytearray(bucket.get(key))
        data[len(data) // 2] ^= 1
        bucket.put(key, bytes(data))
        return False

    return fault


def test_an_archive_that_is_replaced_while_it_is_read(bucket: Bucket) -> None:
    folder = bucket.url("run")
    dcp.save(big(), storage_writer=StorageWriter(folder))
    key = bucket.keys()[1]
    bucket.proxy.rule("^GetObject .*rank0", replacing(bucket, key), times=1, after=2)
    cause = the_cause(lambda: loaded(folder, big()))
    assert isinstance(cause, CheckpointError)
    assert cause.errno == errno.ESTALE
    assert f"{bucket.url(key)} was replaced by another object" in str(cause)


def test_metadata_that_is_replaced_while_it_is_read(bucket: Bucket) -> None:
    folder = bucket.url("run")
    dcp.save(state(), storage_writer=StorageWriter(folder))
    replace = replacing(bucket, "run/.metadata")
    bucket.proxy.rule(r"^GetObject .*\.metadata", replace, times=1)
    cause = the_cause(lambda: loaded(folder, state()))
    assert f"{folder}/.metadata was replaced" in str(cause)


def test_places_outside_of_the_folder_are_refused(bucket: Bucket) -> None:
    folder = bucket.url("run/a")
    dcp.save({"w": torch.ones(9)}, storage_writer=StorageWriter(folder))
    metadata = pickle.loads(bucket.get("run/a/.metadata"))
    [info] = metadata.storage_data.values()
    for name in ("../x", "/x", 3):
        info.relative_path = name
        bucket.put("run/a/.metadata", pickle.dumps(metadata))
        cause = the_cause(lambda: loaded(folder, {"w": torch.ones(9)}))
        assert "not in the folder" in str(cause) or "has no place" in str(cause)
