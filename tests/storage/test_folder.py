"""A folder on this machine, in memory and in S3: the same files, found, read, replaced, removed."""

from __future__ import annotations

import errno
import os
import pickle
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

import pyckpt
from pyckpt.storage import folder as folder_module
from pyckpt.storage.folder import Folder, open_folder
from pyckpt.storage.urls import Url, open_store
from tests.stores import Bucket, Fault, answer, reset

pytestmark = pytest.mark.timeout(120)

Put = Callable[[str, bytes], object]


@pytest.fixture(params=["local", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Any, Put]]:
    """The place of all folders, and what puts a file there that somebody else wrote."""
    if request.param == "local":

        def write(name: str, data: bytes) -> None:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(data)

        yield tmp_path, write
    elif request.param == "memory":
        fs = fsspec.filesystem("memory")
        yield "memory://tests", lambda name, data: fs.pipe_file(f"/tests/{name}", data)
        fs.rm("/tests", recursive=True)
    else:
        bucket = request.getfixturevalue("bucket")
        yield bucket.url("tests"), lambda name, data: bucket.put(f"tests/{name}", data)


def names(folder: Folder) -> list[str]:
    return sorted(one.name for one in folder.entries())


def test_what_is_in_a_folder(place: tuple[Any, Put]) -> None:
    base, put = place
    put("other/x", b"so that the place is there")
    folder = open_folder(f"{base}/run")
    assert folder.entries() == []
    for name in ("run/b", "run/a 1", "run/sub/c", "run2/d", "run/.e"):
        put(name, b"1")
    assert names(folder) == [".e", "a 1", "b"]
    assert names(open_folder(f"{base}/run/")) == [".e", "a 1", "b"]
    assert names(open_folder(f"{base}/run/sub")) == ["c"]
    assert all(abs(one.modified() - time.time()) < 100 for one in folder.entries())
    with pytest.raises(FileNotFoundError):
        folder.read("nothing")


def test_small_files_are_replaced(place: tuple[Any, Put]) -> None:
    base, put = place
    put("run/other", b"x")
    folder = open_folder(f"{base}/run")
    for data in (b"first", b"", b"a longer one" * 100_000, b"short"):
        folder.replace("list", data, fsync=True)
        assert folder.read("list") == data
    folder.remove(["list", "nothing"])
    folder.remove(["list"])
    folder.remove([])
    assert names(folder) == ["other"]
    assert folder.at("x").name == "x"


def test_a_copy_in_another_process(place: tuple[Any, Put]) -> None:
    base, put = place
    put("run/x", b"x")
    folder = open_folder(f"{base}/run")
    assert names(pickle.loads(pickle.dumps(folder))) == ["x"]


def test_credentials_that_change(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = open_folder(bucket.url("run"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "another")
    seen: list[bool] = []

    def look(handler: Any) -> bool:
        seen.append("Credential=another/" in handler.headers["Authorization"])
        return False

    bucket.proxy.rule("ListObjects", look)
    folder.entries()
    monkeypatch.setattr(folder_module, "_CLIENT_SECONDS", 0)
    folder.entries()
    assert seen == [False, True]


class HostedSystem(MemoryFileSystem):
    """Its paths lack the host of its URLs, as those of FTP, HDFS and Azure do."""

    protocol = "hosted"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        if path.startswith("hosted://"):
            path = path.removeprefix("hosted://").partition("/")[2]
        return "/" + path.strip("/") if path.strip("/") else ""


def test_urls_with_a_host() -> None:
    fsspec.register_implementation("hosted", HostedSystem, clobber=True)
    state = pyckpt.State(torch.nn.Linear(2, 2))
    manager = pyckpt.CheckpointManager("hosted://host:21/runs/a", keep_last=1)
    for step in (1, 2):
        manager.save(step, state)
    assert [one.step for one in manager.all()] == [2]
    assert manager.restore_latest(state) is not None
    names = ["checkpoints.json", "step-2-rank0.tar.gz"]
    assert sorted(HostedSystem.store) == [f"/runs/a/{name}" for name in names]


@pytest.mark.parametrize("text", ["s3://{}", "s3://{}/", "s3a://{}"])
def test_a_bucket_is_a_folder(bucket: Bucket, text: str) -> None:
    for key in ("x", "run/y", "step"):
        bucket.put(key, b"1")
    folder = open_folder(text.format(bucket.name))
    assert names(folder) == ["step", "x"]
    assert folder.path == text.format(bucket.name).rstrip("/")
    assert folder.at("x") == f"{folder.path}/x"


def test_objects_that_stand_for_the_folder(bucket: Bucket) -> None:
    for key in ("run", "run/", "run/x", "run/sub/"):
        bucket.put(key, b"")
    assert names(open_folder(bucket.url("run"))) == ["x"]
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/alone", b"1")
    assert list(open_store(Url("memory://alone/")).list(Url("memory://alone/"))) == []
    assert open_folder("memory://alone").entries() == []
    assert "alone" in names(open_folder("memory://"))
    fs.rm("/alone")


def test_a_path_as_url(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    for text in (f"file://{tmp_path}", f"file://{tmp_path}/"):
        assert open_folder(text).path == tmp_path
        assert names(open_folder(text)) == ["x"]


@pytest.mark.parametrize("path", ["", "nothing://x/y", "s3://", Path("s3://bucket/run"), 7])
def test_what_is_no_folder(path: Any) -> None:
    with pytest.raises(pyckpt.FilenameError):
        open_folder(path)


def test_links_lead_to_the_latest_files_and_no_others(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    (tmp_path / "latest-rank2.tar").write_bytes(b"no link")
    (tmp_path / "mine").symlink_to("a")
    folder.replace_links("latest-rank", {"latest-rank0.tar": "a", "latest-rank1.tar": "b"})
    folder.replace_links("latest-rank", {"latest-rank0.tar": "c"})
    links = {one.name: os.readlink(one) for one in tmp_path.iterdir() if one.is_symlink()}
    assert links == {"latest-rank0.tar": "c", "mine": "a"}
    assert (tmp_path / "latest-rank2.tar").read_bytes() == b"no link"


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOSPC])
def test_a_file_system_without_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "symlink", refuse)
    folder = open_folder(tmp_path)
    if number == errno.ENOSPC:
        with pytest.raises(OSError, match="No space left"):
            folder.replace_links("latest", {"latest.tar": "x.tar"})
    else:
        folder.replace_links("latest", {"latest.tar": "x.tar"})
    assert list(tmp_path.iterdir()) == []


def test_options(bucket: Bucket, tmp_path: Path) -> None:
    with pytest.raises(pyckpt.OptionError, match="folder of this machine"):
        open_folder(tmp_path, {"key": "x"})
    with pytest.raises(pyckpt.OptionError, match="cannot have 'nonsense'"):
        open_folder(bucket.url("run"), {"nonsense": 1})


def test_a_store_that_lists_page_by_page(bucket: Bucket) -> None:
    keys = [f"run/{number:04}" for number in range(1001)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: bucket.put(key, b""), keys))
    folder = open_folder(bucket.url("run"))
    assert [one.name for one in folder.entries()] == [key.partition("/")[2] for key in keys]
    assert bucket.proxy.count("ListObjects") == 2
    folder.remove([one.name for one in folder.entries()])
    assert bucket.keys() == []
    assert bucket.proxy.count("DeleteObjects") == 1
    assert bucket.proxy.count("DeleteObject") == 1


@pytest.mark.parametrize(
    "code",
    [
        *((501, "NotImplemented"), (405, "MethodNotAllowed"), (403, "AccessDenied")),
        *((400, "InvalidRequest"), (404, "NoSuchKey")),
    ],
)
def test_a_store_that_removes_one_by_one(
    bucket: Bucket, no_pauses: None, code: tuple[int, str]
) -> None:
    bucket.proxy.rule("DeleteObjects", answer(*code))
    for key in "ab":
        bucket.put(key, b"")
    open_folder(bucket.url("")).remove(["a", "b", "c"])
    assert bucket.keys() == []


@pytest.mark.parametrize("fault", [reset, answer(500, "InternalError"), answer(503, "SlowDown")])
def test_a_store_that_is_down_is_not_asked_for_each_object(
    bucket: Bucket, no_pauses: None, fault: Fault
) -> None:
    bucket.proxy.rule("DeleteObjects", fault)
    keys = [f"run/{number}" for number in range(5)]
    for key in keys:
        bucket.put(key, b"")
    with pytest.raises(OSError, match="removing: ") as caught:
        open_folder(bucket.url("run")).remove([key.partition("/")[2] for key in keys])
    assert caught.value.filename == bucket.url("run/0")
    assert bucket.proxy.count("DeleteObject") == 0
    assert bucket.keys() == keys


def test_one_that_cannot_be_removed(bucket: Bucket) -> None:
    bucket.proxy.rule("DeleteObject", answer(403, "AccessDenied"))
    for key in "ab":
        bucket.put(key, b"")
    with pytest.raises(PermissionError, match="the message of AccessDenied") as caught:
        open_folder(bucket.url("")).remove(["a", "b"])
    assert caught.value.filename == bucket.url("a")


def test_a_file_that_is_replaced_while_it_is_read(bucket: Bucket) -> None:
    """After a broken connection, the rest is not taken from another object."""
    old, new = b"o" * (2 << 20), b"n" * (3 << 20)
    bucket.put("run/list", old)

    def half(handler: Any) -> bool:
        status, headers, body = handler.forward()
        handler.send_response_only(status)
        for name, value in headers:
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[: len(body) // 2])
        bucket.put("run/list", new)
        handler.close_connection = True
        return True

    bucket.proxy.rule("GetObject", half, times=1)
    assert open_folder(bucket.url("run")).read("list") == new


def test_a_file_that_is_not_replaced(bucket: Bucket) -> None:
    bucket.put("run/list", b"old")
    bucket.proxy.rule("PutObject", answer(403, "AccessDenied"))
    with pytest.raises(PermissionError) as caught:
        open_folder(bucket.url("run")).replace("list", b"new", fsync=True)
    assert caught.value.filename == bucket.url("run/list")
    assert bucket.get("run/list") == b"old"


@pytest.mark.parametrize(
    ("code", "error"),
    [((403, "AccessDenied"), PermissionError), ((404, "NoSuchBucket"), FileNotFoundError)],
)
def test_a_listing_that_fails(bucket: Bucket, code: tuple[int, str], error: type[OSError]) -> None:
    bucket.proxy.rule("ListObjects", answer(*code))
    with pytest.raises(error) as caught:
        open_folder(bucket.url("run")).entries()
    assert caught.value.filename == bucket.url("run/")
    assert caught.value.errno is not None
