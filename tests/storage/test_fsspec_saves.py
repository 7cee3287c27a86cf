"""Saves by way of fsspec: what appears, and when."""

from __future__ import annotations

import errno
import gc
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem
from torch import nn

import pyckpt
from pyckpt.archive import formats
from pyckpt.archive.writer import ArchiveWriter
from pyckpt.options import WriteOptions
from pyckpt.storage.remote_object import target_at
from pyckpt.storage.urls import Url, location, open_store
from tests.states import assert_equal, mixed_state

pytestmark = pytest.mark.timeout(120)

OLD = b"the old object"
SUFFIXES = [*formats.usual_suffixes(), ".pt", ".pt.gz"]


class AzureBlobFile(AbstractBufferedFile):
    """As Azure has it: the object appears with the last block."""

    __module__ = "adlfs.spec"

    def _initiate_upload(self) -> None:
        self.fs.calls.append("begin")
        self.blocks: list[bytes] = []

    def _upload_chunk(self, final: bool = False) -> bool:
        if "fail" in self.path:
            raise RuntimeError("the store is down")
        self.blocks.append(self.buffer.getvalue())
        if final:
            self.fs.objects[self.path] = b"".join(self.blocks)
        return True


class AtCloseSystem(AbstractFileSystem):
    protocol = "atclose"
    objects: ClassVar[dict[str, bytes]] = {}
    calls: ClassVar[list[str]] = []

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> AzureBlobFile:
        return AzureBlobFile(self, path, mode, kwargs["block_size"])

    def info(self, path: str, **_: object) -> dict[str, Any]:
        try:
            nbytes = len(self.objects[self._strip_protocol(path)])
        except KeyError:
            raise FileNotFoundError(path) from None
        return {"name": path, "size": nbytes, "type": "file"}

    def rm_file(self, path: str) -> None:
        del self.objects[self._strip_protocol(path)]


class UnknownFile(AbstractBufferedFile):
    """The object is made with the first block, and grows."""

    def _initiate_upload(self) -> None:
        self.fs.objects[self.path] = b""

    def _upload_chunk(self, final: bool = False) -> bool:
        self.fs.objects[self.path] += self.buffer.getvalue()
        return True


class UnknownSystem(AtCloseSystem):
    protocol = "unknown"

    def _open(self, path: str, mode: str = "rb", **_: Any) -> UnknownFile:
        return UnknownFile(self, path, mode)


class ZonalFile(UnknownFile):
    __module__ = "gcsfs.zonal_file"

    def commit(self) -> None:
        """Ends the growing."""


class ZonalSystem(AtCloseSystem):
    protocol = "zonal"

    def _open(self, path: str, mode: str = "rb", **_: Any) -> ZonalFile:
        return ZonalFile(self, path, mode)


class FailingSystem(AtCloseSystem):
    """Objects can be written, and neither be removed nor looked at."""

    protocol = "failing"

    def info(self, path: str, **_: object) -> dict[str, Any]:
        raise RuntimeError("no answer")

    def rm_file(self, path: str) -> None:
        raise RuntimeError("it is forbidden")


class PlainSystem(AbstractFileSystem):
    """Its files are seen while they are written."""

    protocol = "plain"

    def _open(self, path: str, mode: str = "rb", **_: object) -> Any:
        return open("/" + path.lstrip("/"), mode)

    def rm_file(self, path: str) -> None:
        if "fail" in path:
            raise RuntimeError("it is forbidden")
        os.remove("/" + self._strip_protocol(path).lstrip("/"))


@pytest.fixture(autouse=True)
def stores() -> Iterator[None]:
    for system in (AtCloseSystem, UnknownSystem, ZonalSystem, FailingSystem, PlainSystem):
        fsspec.register_implementation(system.protocol, system, clobber=True)
    yield
    AtCloseSystem.objects.clear()
    AtCloseSystem.calls.clear()


def put(url: str, data: bytes) -> None:
    if url.startswith("memory"):
        fsspec.filesystem("memory").pipe_file(url, data)
    else:
        AtCloseSystem.objects[url.removeprefix("atclose://")] = data


def get(url: str) -> bytes | None:
    if url.startswith("memory"):
        system = fsspec.filesystem("memory")
        return bytes(system.cat_file(url)) if system.exists(url) else None
    return AtCloseSystem.objects.get(url.removeprefix("atclose://"))


BOTH = pytest.mark.parametrize("scheme", ["memory", "atclose"])


@pytest.mark.parametrize("suffix", SUFFIXES)
@BOTH
def test_every_format(scheme: str, suffix: str) -> None:
    state = mixed_state()
    url = f"{scheme}://run/x{suffix}"
    pyckpt.save(state, url)
    data = get(url)
    assert data is not None
    assert_equal(pyckpt.load(io.BytesIO(data)), state)


@BOTH
def test_the_old_object_stays_until_the_commit(scheme: str) -> None:
    url = f"{scheme}://run/x.pt"
    state = {"w": torch.arange(20 << 20, dtype=torch.uint8)}
    for old in (None, OLD):
        if old is not None:
            put(url, old)
        for end in ("abandon", "commit"):
            with pyckpt.ArchiveWriter(url) as archive:
                archive.add_object("x", state)
                archive.write()
                assert get(url) == old
                getattr(archive, end)()
            gc.collect()
            assert (get(url) == old) == (end == "abandon")
        assert_equal(torch.load(io.BytesIO(get(url) or b"")), state)
        if scheme == "atclose":
            del AtCloseSystem.objects["run/x.pt"]
        else:
            fsspec.filesystem("memory").rm(url)


@BOTH
def test_a_writer_that_is_dropped(scheme: str) -> None:
    url = f"{scheme}://run/x.tar"
    put(url, OLD)
    writer = pyckpt.ArchiveWriter(url)
    writer.add_object("x", {"w": torch.zeros(20 << 20, dtype=torch.uint8)})
    writer.write()
    del writer
    gc.collect()
    assert get(url) == OLD


@BOTH
def test_an_exception_in_the_middle(scheme: str) -> None:
    url = f"{scheme}://run/x.tar"
    put(url, OLD)

    def stop(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pyckpt.save({"w": torch.zeros(30 << 20)}, url, progress=stop)
    gc.collect()
    assert get(url) == OLD


def test_errors_of_the_library() -> None:
    put("atclose://run/fail.tar", OLD)
    with pytest.raises(pyckpt.CheckpointError, match="RuntimeError: the store is down") as caught:
        pyckpt.save({"w": torch.zeros(30 << 20)}, "atclose://run/fail.tar")
    assert caught.value.path == "atclose://run/fail.tar"
    del caught
    gc.collect()
    assert get("atclose://run/fail.tar") == OLD


NOT_KNOWN = "is not known to write objects that appear as a whole"


def test_a_file_system_whose_files_are_seen_while_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(OLD)
    with pytest.raises(pyckpt.CheckpointError, match=f"PlainSystem {NOT_KNOWN}"):
        pyckpt.save({}, f"plain://{tmp_path}/x.tar")
    assert os.listdir(tmp_path) == ["x.tar"]
    assert (tmp_path / "x.tar").read_bytes() == OLD


def test_what_the_check_leaves_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    url = f"plain://{tmp_path}/fail.tar"
    with pytest.raises(pyckpt.CheckpointError, match=NOT_KNOWN):
        pyckpt.save({}, url)
    assert os.listdir(tmp_path) == ["fail.tar.pyckpt-probe"]
    assert f"{url}.pyckpt-probe stays, as it could not be removed" in caplog.text


def test_a_buffered_file_without_a_commit_of_its_own() -> None:
    AtCloseSystem.objects["run/x.tar"] = OLD
    with pytest.raises(pyckpt.CheckpointError, match=f"UnknownSystem {NOT_KNOWN}"):
        pyckpt.save({}, "unknown://run/x.tar")
    gc.collect()
    assert AtCloseSystem.objects == {"run/x.tar": OLD}


def test_a_buffered_file_whose_commit_is_only_the_end() -> None:
    """Google's zonal buckets: the object is there from the first block on."""
    AtCloseSystem.objects["run/x.tar"] = OLD
    with pytest.raises(pyckpt.CheckpointError, match=f"ZonalSystem {NOT_KNOWN}"):
        pyckpt.save({}, "zonal://run/x.tar")
    gc.collect()
    assert AtCloseSystem.objects == {"run/x.tar": OLD}


class Answer(Exception):
    def __init__(self, **attributes: object) -> None:
        self.__dict__.update(attributes)


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        *((Answer(status_code=404), errno.ENOENT), (Answer(status=403), errno.EACCES)),
        *((Answer(code=412), errno.ESTALE), (Answer(code="404"), errno.EIO)),
        *((FileNotFoundError("x"), errno.ENOENT), (Answer(status=500), errno.EIO)),
    ],
)
def test_the_errno_is_that_of_the_answer(
    monkeypatch: pytest.MonkeyPatch, answer: Exception, number: int
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("failed to upload a block") from answer

    monkeypatch.setattr(MemoryFileSystem, "open", fail)
    with pytest.raises(pyckpt.CheckpointError, match="failed to upload a block") as caught:
        pyckpt.save({}, "memory://run/x.tar")
    assert caught.value.errno == number


def test_databricks_shows_what_is_not_whole() -> None:
    options = {"instance": "127.0.0.1:1", "token": "x"}
    with pytest.raises(pyckpt.CheckpointError, match=f"DatabricksFileSystem {NOT_KNOWN}"):
        pyckpt.save({}, "dbfs:///run/x.tar", storage_options=options)


@pytest.mark.parametrize(
    "error",
    [
        *(json.JSONDecodeError("no json", "", 0), UnicodeDecodeError("utf-8", b"", 0, 1, "x")),
        *(ValueError("a name that the library refuses"), TypeError("None is no answer")),
    ],
    ids=lambda error: type(error).__name__,
)
def test_no_error_of_a_library_is_raised_as_it_is(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """What libraries make of an odd answer of a server is often a ValueError."""

    def fail(*_: object, **__: object) -> None:
        raise error

    put("memory://run/x.tar", OLD)
    url = Url("memory://run/x.tar")
    monkeypatch.setattr(MemoryFileSystem, "info", fail)
    for call in (pyckpt.load, open_store(url).stat):
        with pytest.raises(OSError, match=f"{type(error).__name__}: ") as caught:
            call(url)
        assert caught.value.filename == url
        assert caught.value.errno == errno.EIO
    monkeypatch.setattr(MemoryFileSystem, "open", fail)
    with pytest.raises(pyckpt.CheckpointError, match=f"{type(error).__name__}: ") as saved:
        pyckpt.save({}, url)
    assert saved.value.path == url


@pytest.mark.parametrize("end", ["restore", "abandon"])
@BOTH
def test_going_back(scheme: str, end: str, caplog: pytest.LogCaptureFixture) -> None:
    url = f"{scheme}://run/x.tar"

    def committed() -> ArchiveWriter:
        writer = ArchiveWriter(target_at(location(url)), WriteOptions())
        writer.add_object("x", {})
        writer.write()
        writer.commit(keep_previous=True)
        return writer

    getattr(committed(), end)()
    assert get(url) is None
    put(url, OLD)
    getattr(committed(), end)()
    assert get(url) not in (None, OLD)
    assert "cannot be brought back" in caplog.text
    writer = committed()
    writer.keep()
    writer.abandon()
    assert get(url) is not None


def test_an_object_that_cannot_be_removed_again(caplog: pytest.LogCaptureFixture) -> None:
    url = Url("atclose://run/x.tar")
    upload = open_store(url).open_upload(url)
    upload.open(1)
    upload.commit(True)
    upload._fs.rm_file = FailingSystem().rm_file  # type: ignore[attr-defined]
    upload.restore()
    assert f"{url} stays, as it could not be removed: it is forbidden" in caplog.text


def test_an_older_object_that_cannot_be_looked_at_counts_as_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    url = Url("failing://run/x.tar")
    upload = open_store(url).open_upload(url)
    upload.open(1)
    upload.commit(True)
    upload.restore()
    assert "cannot be brought back" in caplog.text
    assert list(AtCloseSystem.objects) == ["run/x.tar"]


# Objects of "atclose" are files of a folder here.
PROGRAM = """
import os, sys
import fsspec, torch, pyckpt
import tests.storage.test_fsspec_saves as saves

class Folder(dict):
    def __setitem__(self, name, data):
        with open(os.path.join(sys.argv[1], os.path.basename(name)), "wb") as file:
            file.write(data)

saves.AtCloseSystem.objects = Folder()
fsspec.register_implementation("atclose", saves.AtCloseSystem)
writer = pyckpt.ArchiveWriter("atclose://run/x.tar")
writer.add_object("x", {"w": torch.zeros(20 << 20, dtype=torch.uint8)})
writer.write()
"""


def test_the_process_ends_with_a_writer_that_is_open(tmp_path: Path) -> None:
    for end in ("", "raise RuntimeError('x')", "sys.exit(3)", "writer.commit()"):
        done = subprocess.run([sys.executable, "-c", PROGRAM + end, tmp_path], timeout=100)
        assert done.returncode == {"": 0, "sys.exit(3)": 3, "writer.commit()": 0}.get(end, 1)
        assert os.listdir(tmp_path) == (["x.tar"] if "commit" in end else [])


def test_all_ways_to_save() -> None:
    state = pyckpt.State(nn.Linear(2, 2), run_name="first")
    [url] = pyckpt.save_checkpoint(state, "memory://{run_name}/rank{rank}.tar.gz")
    assert url == "memory://first/rank0.tar.gz"
    assert get(url)
    assert pyckpt.async_save({"x": 1}, "memory://a.pt").result() == "memory://a.pt"
    assert torch.load(io.BytesIO(get("memory://a.pt") or b"")) == {"x": 1}
    assert pyckpt.remove(url).result()
    assert not pyckpt.remove(url).result()
    with pytest.raises(pyckpt.OptionError, match="storage_options"):
        pyckpt.save({}, "memory://x.tar", storage_options=["x"])  # type: ignore[arg-type]


def test_what_a_store_tells() -> None:
    for name in ("run/a", "run/b", "other"):
        put(f"memory://{name}", name.encode())
    store = open_store(Url("memory://run"))
    found = list(store.list(Url("memory://run/")))
    assert [(one.url, one.nbytes) for one in found] == [
        ("memory://run/a", 5),
        ("memory://run/b", 5),
    ]
    assert list(store.list(Url("memory://nothing/"))) == []
    info = store.stat(Url("memory://other"))
    assert store.read_range(Url("memory://other"), 1, 3) == b"th"
    assert info.nbytes == 5
    with pytest.raises(FileNotFoundError):
        store.stat(Url("memory://nix"))
    assert list(store.unfinished(Url("memory://"))) == []
