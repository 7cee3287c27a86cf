"""Small files and links are replaced as a whole."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pyckpt.storage.claim import Claim
from pyckpt.storage.small_files import Replacement, replace_file, replace_link


@pytest.mark.parametrize("fsync", [True, False])
def test_a_file_is_replaced(tmp_path: Path, fsync: bool) -> None:
    for data in (b"old", b"new"):
        replace_file(tmp_path / "x.json", data, fsync=fsync)
        assert (tmp_path / "x.json").read_bytes() == data
    assert os.listdir(tmp_path) == ["x.json"]


@pytest.mark.parametrize("fsync", [True, False])
def test_bytes_are_on_disk_before_the_name_and_the_name_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fsync: bool
) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")
    flushed = []
    flush = os.fsync

    def spy(fd: int) -> None:
        one = Path(f"/proc/self/fd/{fd}")
        contents = sorted(os.listdir(one)) if one.is_dir() else one.read_bytes()
        flushed.append((contents, path.read_bytes()))
        flush(fd)

    monkeypatch.setattr(os, "fsync", spy)
    replace_file(path, b"new", fsync=fsync)
    assert flushed == [(b"new", b"old"), (["x"], b"new")] * fsync


def test_it_gets_the_mode_of_any_new_file(tmp_path: Path) -> None:
    previous = os.umask(0o027)
    try:
        replace_file(tmp_path / "x", b"", fsync=False)
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(OSError):  # noqa: PT011  a folder cannot be replaced by a file
        replace_file(tmp_path / "x", b"new", fsync=False)
    assert os.listdir(tmp_path) == ["x"]


def test_the_contents_change_when_they_are_published(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")
    replacement = Replacement(path, b"new", fsync=True)
    replacement.prepare()
    assert path.read_bytes() == b"old"
    replacement.publish()
    replacement.discard()
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["x"]


def test_what_is_discarded_leaves_nothing(tmp_path: Path) -> None:
    replacement = Replacement(tmp_path / "x", b"new", fsync=False)
    replacement.discard()
    replacement.prepare()
    replacement.discard()
    assert os.listdir(tmp_path) == []


def test_a_folder_of_the_name_is_found_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(IsADirectoryError, match="x"):
        Replacement(tmp_path / "x", b"new", fsync=False).prepare()
    assert os.listdir(tmp_path) == ["x"]


def test_a_link_is_replaced_also_beside_what_a_dead_process_left(tmp_path: Path) -> None:
    (tmp_path / "other").symlink_to("left")
    child = os.fork()
    if child == 0:  # it ends with a link that has not got its name
        claim = Claim(tmp_path / "latest")
        claim.new.symlink_to("left")
        os._exit(0)
    os.waitpid(child, 0)
    assert len(os.listdir(tmp_path)) == 3
    for target in ("a", "b"):
        replace_link(tmp_path / "latest", target)
        assert os.readlink(tmp_path / "latest") == target
    assert sorted(os.listdir(tmp_path)) == ["latest", "other"]
