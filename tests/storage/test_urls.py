"""What URLs are, and what serves them."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import pyckpt
from pyckpt.cli import main
from pyckpt.storage.sweep import sweep
from pyckpt.storage.urls import Url, beside, location, name_beside, open_store
from tests.stores import Bucket


def test_the_parts_of_a_url() -> None:
    url = Url("S3://bucket/run/a b.tar.gz")
    assert url == "s3://bucket/run/a b.tar.gz"
    assert (url.scheme, url.bucket, url.key) == ("s3", "bucket", "run/a b.tar.gz")
    assert url.name == "a b.tar.gz"
    assert url.with_name("y.pt") == "s3://bucket/run/y.pt"
    copy = pickle.loads(pickle.dumps(url))
    assert isinstance(copy, Url)
    assert copy.key == url.key
    for text in ("x", "/x://y", "s3:/x/y"):
        with pytest.raises(pyckpt.FilenameError):
            Url(text)


@pytest.mark.parametrize(
    "text",
    [
        *("s3:///x.tar", "s3a:///run/x.tar", "gs:///x.tar", "az:///x.tar", "abfs:///run/x.tar"),
        *("s3://bucket", "s3://bucket/", "gs://bucket", "az://container/", "s3://bucket/run/"),
    ],
)
def test_a_url_without_a_bucket_or_a_name(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(fsspec, "get_filesystem_class", lambda _: MemoryFileSystem)
    for call in (lambda: pyckpt.save({}, text), lambda: pyckpt.load(text)):
        with pytest.raises(pyckpt.FilenameError, match=r"names no bucket|does not name an object"):
            call()


@pytest.mark.parametrize("text", ["s3:///run/", "gs://", "file:///run/", "file://", "file:/run"])
def test_what_cannot_be_swept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    monkeypatch.setattr(fsspec, "get_filesystem_class", lambda _: MemoryFileSystem)
    with pytest.raises(pyckpt.FilenameError, match=r"no bucket|no URL"):
        list(sweep(text, older_than=0))
    assert main(["sweep", text]) == 2
    assert text in capsys.readouterr().err


parts = st.text(st.sampled_from("ab. %2F#?é\u2028~+\\"), max_size=3).filter(lambda x: x != "..")
keys = (
    st.lists(parts, min_size=1, max_size=5).map("/".join).filter(lambda x: x[-1:] not in ("", "/"))
)


@given(keys, keys)
def test_names_lead_from_any_key_to_any_other(key: str, other: str) -> None:
    for start in ("s3://bucket/", "memory://host/", "abfs://c@account.example/"):
        place, goal = Url(start + key), Url(start + other)
        name = name_beside(place, goal)
        there = beside(place, name)
        assert there == goal
        assert (there.bucket, there.key) == (goal.bucket, goal.key)  # type: ignore[union-attr]


@pytest.mark.parametrize("url", ["s3://key:secret@bucket/x.tar", "memory://me:secret@a/x.pt"])
def test_a_password_is_shown_to_nobody(url: str) -> None:
    manager = pyckpt.CheckpointManager
    for call in (lambda: pyckpt.save({}, url), lambda: pyckpt.load(url), lambda: manager(url)):
        with pytest.raises(pyckpt.FilenameError, match=r"storage_options") as caught:
            call()
        assert "secret" not in f"{caught.value} {caught.value.path}"
    assert Url("abfs://container@account.dfs.core.windows.net/x").bucket.startswith("container@")


def test_names_beside() -> None:
    for place, name, other in [
        ("s3://bucket//rank0.tar", "rank1.tar", "s3://bucket//rank1.tar"),
        ("s3://bucket/run//a/r.tar", "../b/r.tar", "s3://bucket/run//b/r.tar"),
        ("s3://bucket/r.tar", "/r.tar", "s3://bucket//r.tar"),
        ("memory://a.tar", "b.tar", "memory://b.tar"),
    ]:
        assert beside(Url(place), name) == other
        assert name_beside(Url(place), Url(other)) == name
    for name in ("../x", "a/../../x", "../other/x"):
        with pytest.raises(pyckpt.FilenameError, match="is in no bucket"):
            beside(Url("s3://bucket/x.tar"), name)
    for other in ("s3://other/x.tar", "gs://bucket/x.tar", "s3://bucket/../x.tar"):
        with pytest.raises(pyckpt.FilenameError, match="no name leads from"):
            name_beside(Url("s3://bucket/x.tar"), Url(other))


def test_a_file_url_is_a_path(tmp_path: Path) -> None:
    assert location(f"file://{tmp_path}/x.pt") == tmp_path / "x.pt"
    pyckpt.save({"x": 1}, f"file://{tmp_path}/x.pt")
    assert torch.load(tmp_path / "x.pt") == {"x": 1}
    state = pyckpt.State(nn.Linear(2, 2))
    [path] = pyckpt.save_checkpoint(state, f"file://{tmp_path}/{{run_name}}/{{rank}}.tar")
    assert path == tmp_path / "run" / "0.tar"
    assert pyckpt.remove(f"file://{tmp_path}/x.pt").result()


def test_nothing_is_imported_before_a_url_asks_for_it() -> None:
    script = """
import sys, pyckpt
pyckpt.save({}, sys.argv[1])
print(*({"boto3", "botocore", "fsspec", "s3fs", "pyckpt.storage.s3_store"} & set(sys.modules)))
"""
    command = [sys.executable, "-c", script, "/dev/shm/pyckpt-imports.pt"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    Path(command[-1]).unlink()
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(
    ("url", "package", "extra"),
    [
        ("s3://bucket/x.pt", "botocore", "s3"),
        ("gs://bucket/x.pt", "fsspec", "gs"),
        ("gs://bucket/x.pt", "gcsfs", "gs"),
        ("abfs://bucket/x.pt", "adlfs", "azure"),
        ("memory://x.pt", "fsspec", "stores"),
    ],
)
def test_a_package_that_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, url: str, package: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(pyckpt.FilenameError, match=rf'pip install "pyckpt\[{extra}\]"'):
        pyckpt.save({}, url)


ADLFS = """
import os
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

class AzureBlobFile(AbstractBufferedFile):
    def _initiate_upload(self):
        if os.environ.get("DELETES"):
            os.remove(self.path)
        self.blocks = []

    def _upload_chunk(self, final=False):
        self.blocks.append(self.buffer.getvalue())
        if final:
            with open(self.path, "wb") as file:
                file.writelines(self.blocks)

class AzureBlobFileSystem(AbstractFileSystem):
    protocol = "abfs", "az", "abfss"

    def _open(self, path, mode="rb", block_size=None, **_):
        return AzureBlobFile(self, "/" + path, mode, block_size)
"""


@pytest.mark.parametrize("version", ["2024.12.0", "2026.8.0", "2024.7.0", "2023.12", "?", None])
def test_versions_of_adlfs_that_delete_the_old_object_are_refused(
    tmp_path: Path, version: str | None
) -> None:
    is_new = version in ("2024.12.0", "2026.8.0")
    (tmp_path / "adlfs").mkdir()
    (tmp_path / "adlfs" / "__init__.py").write_text(ADLFS)
    if version is not None:
        told = tmp_path / f"adlfs-{version}.dist-info"
        told.mkdir()
        (told / "METADATA").write_text(f"Metadata-Version: 2.1\nName: adlfs\nVersion: {version}\n")
    (tmp_path / "x.tar").write_bytes(b"old")
    script = "import sys, pyckpt; pyckpt.save({}, 'az:/' + sys.argv[1])"
    environment = {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "x.tar"],
        env={**os.environ, **environment, **({} if is_new else {"DELETES": "1"})},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode == 0) == is_new, done.stderr
    assert ((tmp_path / "x.tar").read_bytes() == b"old") != is_new
    if not is_new:
        assert "FilenameError" in done.stderr
        assert "2024.12 or newer" in done.stderr
        assert 'pip install "pyckpt[azure]"' in done.stderr


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("s3://bucket/x.tar", {"keey": "x"}),
        ("s3://bucket/x.tar", {"profile": "nobody"}),
        ("s3://bucket/x.tar", {"client_kwargs": {"nix": 1}}),
        ("s3://bucket/x.tar", {"config_kwargs": {"nix": 1}}),
        ("s3://bucket/x.tar", {"endpoint_url": "nix"}),
        ("s3://bucket/x.tar", ["key"]),
        ("x.tar", {"key": "x"}),
    ],
)
def test_wrong_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bucket: Bucket, url: str, options: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    state = pyckpt.State(nn.Linear(2, 2))
    with pytest.raises(pyckpt.OptionError):
        pyckpt.save({}, url, storage_options=options)
    with pytest.raises(pyckpt.OptionError):
        pyckpt.async_save({}, url, storage_options=options)
    with pytest.raises(pyckpt.OptionError):
        pyckpt.save_checkpoint(state, url, storage_options=options)
    assert not any(tmp_path.iterdir())
    assert bucket.proxy.requests == []


REFUSED = {
    "add_file": lambda url: pyckpt.ArchiveWriter("x.tar").add_file("x", url),
}


@pytest.mark.parametrize("call", REFUSED)
def test_what_takes_no_urls_says_so(call: str) -> None:
    with pytest.raises(pyckpt.FilenameError, match="files of this machine alone"):
        REFUSED[call]("s3://bucket/x")


def test_what_a_store_tells(bucket: Bucket) -> None:
    store = open_store(Url(bucket.url("")))
    for number in range(3):
        bucket.put(f"run/{number}", b"x" * number)
    bucket.put("other", b"x")
    found = list(store.list(Url(bucket.url("run/"))))
    assert [one.url for one in found] == [bucket.url(f"run/{n}") for n in range(3)]
    assert [one.nbytes for one in found] == [0, 1, 2]
    url = Url(bucket.url("other"))
    info = store.stat(url)
    assert (info.url, info.nbytes) == (url, 1)
    assert store.read_range(url, 0, 9, info.etag) == b"x"
    bucket.put("other", b"0123456789")
    with pytest.raises(OSError, match="PreconditionFailed"):
        store.read_range(url, 0, 9, info.etag)
    assert store.read_range(url, 3, 5) == b"34"
    assert store.read_range(url, 3, 3) == b""
    assert store.remove(url)
    assert not store.remove(url)
    with pytest.raises(FileNotFoundError):
        store.stat(url)
