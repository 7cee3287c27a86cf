"""What URLs are, and what serves them."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pyckpt
from pyckpt.storage.urls import Url, location, open_store
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
