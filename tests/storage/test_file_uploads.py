"""Many files on their way to a store: what is in memory, and what becomes of them."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest

from pyckpt.storage.file_uploads import FileToUpload, FileUploads, is_large
from pyckpt.storage.urls import Url, open_store
from tests.stores import Bucket

pytestmark = pytest.mark.timeout(180)

MIB = 1 << 20


def uploads(bucket: Bucket, folder: Path, count: int, nbytes: int) -> FileUploads:
    """Uploads of files that are all the same."""
    data = os.urandom(nbytes)
    files = []
    for number in range(count):
        path = folder / str(number)
        path.write_bytes(data)
        files.append(FileToUpload(path, nbytes, Url(bucket.url(f"x/{number}"))))
    return FileUploads(open_store(Url(bucket.url("x"))), files)


@pytest.mark.parametrize(("count", "nbytes"), [(60, 2 * MIB), (12, 9 * MIB)])
def test_memory(bucket: Bucket, tmp_path: Path, count: int, nbytes: int) -> None:
    made = uploads(bucket, tmp_path, count, nbytes)
    bucket.proxy.close()  # it is in this process
    made._store = open_store(
        Url(bucket.url("x")), {"endpoint_url": f"http://{bucket.proxy.server}"}
    )
    tracemalloc.start()
    try:
        made.seal()
        made.commit()
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 50 * MIB < count * nbytes / 2
    assert len(bucket.keys()) == count
    made.abandon()
    assert bucket.keys() == []


def test_what_is_kept_stays(bucket: Bucket, tmp_path: Path) -> None:
    made = uploads(bucket, tmp_path, 3, 10)
    made.seal()
    assert bucket.keys() == []
    made.commit()
    made.keep()
    made.abandon()
    assert len(bucket.keys()) == 3


@pytest.mark.parametrize("nbytes", [10, 9 * MIB])
@pytest.mark.parametrize("change", [-1, 1])
def test_a_file_that_changes(bucket: Bucket, tmp_path: Path, nbytes: int, change: int) -> None:
    made = uploads(bucket, tmp_path, 1, nbytes)
    (tmp_path / "0").write_bytes(bytes(nbytes + change))

    def upload() -> None:
        made.seal()
        made.commit()

    with pytest.raises(OSError, match="changed after the end of the block"):
        upload()
    made.abandon()
    assert bucket.keys() == []
    assert bucket.uploads() == []


def test_a_file_that_became_a_link(bucket: Bucket, tmp_path: Path) -> None:
    made = uploads(bucket, tmp_path, 1, 10)
    (tmp_path / "0").rename(tmp_path / "1")
    (tmp_path / "0").symlink_to("1")
    with pytest.raises(OSError, match="symbolic links"):
        made.commit()
    made.abandon()
    assert bucket.keys() == []


def test_what_is_large() -> None:
    assert not is_large(8 * MIB)
    assert is_large(8 * MIB + 1)
    assert is_large(10**13)
