"""pyckpt.ArchiveWriter: archives of any members, through GNU tar, Python's tarfile and pyckpt."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import pyckpt
from pyckpt.archive.formats import usual_suffixes
from tests import zstd_command
from tests.launch import WORKERS, private_mounts

pytestmark = pytest.mark.timeout(120)

WEIGHT = torch.arange(100_000, dtype=torch.float32)


def gnu_tar(path: Path, folder: Path) -> None:
    """Extracts an archive as users do: GNU tar finds out itself how it is compressed."""
    folder.mkdir()
    command = ["tar", "-x", "-f", str(path), "-C", str(folder)]
    subprocess.run(command, check=True, timeout=60)


def files_below(folder: Path) -> dict[str, bytes | None]:
    return {
        path.relative_to(folder).as_posix(): None if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


def make_tree(folder: Path) -> dict[str, bytes | None]:
    (folder / "deep" / "empty").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "deep" / "run.sh").write_text("exit")
    (folder / "deep" / "run.sh").chmod(0o750)
    torch.save({"w": WEIGHT}, folder / "deep" / "w.pt")
    (folder / "deep" / "w.pt").chmod(0o600)
    return files_below(folder)


@pytest.mark.parametrize("suffix", usual_suffixes())
def test_any_members(tmp_path: Path, suffix: str) -> None:
    tree = make_tree(tmp_path / "tree")
    path = tmp_path / "made" / f"x{suffix}"
    with pyckpt.ArchiveWriter(path, num_threads=2) as archive:
        archive.add_object("state/model.pt", {"weight": WEIGHT})
        archive.add_object("state/last.pt", {"weight": WEIGHT[-3:]}, compact_views=True)
        archive.add_bytes("step", b"500")
        archive.add_bytes("имя", memoryview(b"name"))
        archive.add_file("copy.json", tmp_path / "tree" / "config.json")
        archive.add_directory("nothing")
        archive.add_directory("nothing")
        archive.add_tree("tree/inner", tmp_path / "tree")
        assert archive.write() > 0
        assert os.listdir(tmp_path / "made") == []
        archive.commit()
    assert os.listdir(tmp_path / "made") == [path.name]
    assert pyckpt.verify(path).ok

    gnu_tar(path, tmp_path / "out")
    found = files_below(tmp_path / "out")
    assert found["step"] == b"500"
    assert found["имя"] == b"name"
    assert found["copy.json"] == b"{}"
    assert found["nothing"] is None
    assert files_below(tmp_path / "out" / "tree" / "inner") == tree
    for name, mode in (("run.sh", 0o750), ("w.pt", 0o600)):
        status = (tmp_path / "out" / "tree" / "inner" / "deep" / name).stat()
        assert stat.S_IMODE(status.st_mode) == mode
    assert torch.equal(torch.load(tmp_path / "out" / "state" / "model.pt")["weight"], WEIGHT)
    assert (tmp_path / "out" / "state" / "last.pt").stat().st_size < 4000

    with zstd_command.open_tar(path) as tar:
        assert sorted(tar.getnames()) == sorted(["", *found])
        for name, data in found.items():
            member = tar.extractfile(name)
            assert (None if member is None else member.read()) == data
    for name, expected in (
        ("state/model.pt", WEIGHT),
        ("state/last.pt", WEIGHT[-3:]),
    ):
        assert torch.equal(pyckpt.load(path, member=name)["weight"], expected)
    assert torch.equal(pyckpt.load(path, member="tree/inner/deep/w.pt")["w"], WEIGHT)


def test_a_tree_at_the_top(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    with pyckpt.ArchiveWriter(tmp_path / "x.tar") as archive:
        archive.add_tree("", tmp_path / "tree")
        archive.write()
        archive.commit()
    gnu_tar(tmp_path / "x.tar", tmp_path / "out")
    assert files_below(tmp_path / "out") == tree


def test_places_are_those_of_the_bytes(tmp_path: Path) -> None:
    with pyckpt.ArchiveWriter(tmp_path / "x.tar") as archive:
        archive.add_bytes("b", b"second")
        archive.add_bytes("a", b"first")
        with pytest.raises(pyckpt.OptionError, match="no place"):
            archive.place("a")
        assert archive.progress == (0, 0)
        archive.plan()
        places = {name: archive.place(name) for name in "ab"}
        with pytest.raises(pyckpt.OptionError, match="no place"):
            archive.place("c")
        total = archive.progress[1]
        assert archive.write() == total
        assert archive.progress == (total, total)
        archive.commit()
    data = (tmp_path / "x.tar").read_bytes()
    assert [data[at : at + n] for at, n in (places["a"], places["b"])] == [b"first", b"second"]


@pytest.mark.parametrize("name", ["x.pt", "x.pt.gz", "x"])
def test_a_file_that_is_no_tar_has_one_member(tmp_path: Path, name: str) -> None:
    with pyckpt.ArchiveWriter(tmp_path / name) as archive:
        with pytest.raises(pyckpt.OptionError, match="has no member"):
            archive.write()
        with pytest.raises(pyckpt.OptionError, match="no folder"):
            archive.add_directory("a")
        archive.add_object("any", {"weight": WEIGHT})
        with pytest.raises(pyckpt.OptionError, match="only one member"):
            archive.add_bytes("other", b"")
        archive.write()
        archive.commit()
    assert torch.equal(pyckpt.load(tmp_path / name)["weight"], WEIGHT)


def test_torchs_own_file_with_compressed_records_is_made_of_an_object(tmp_path: Path) -> None:
    with pyckpt.ArchiveWriter(tmp_path / "x.pt", compression_level=6) as archive:
        with pytest.raises(pyckpt.OptionError, match="made of an object"):
            archive.add_bytes("a", b"")
        archive.add_object("a", {"weight": WEIGHT})
        archive.write()
        archive.commit()
    assert torch.equal(torch.load(tmp_path / "x.pt")["weight"], WEIGHT)


BAD: list[Any] = ["", "/a", "a/", "../a", "a/../b", ".", "./a", "a//b", "a\0", "a\udcff", 3, None]


@pytest.mark.parametrize("name", BAD)
def test_names_that_are_refused(tmp_path: Path, name: Any) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "tree").mkdir()
    with pyckpt.ArchiveWriter(tmp_path / "x.tar") as archive:
        adds: list[Callable[[], None]] = [
            lambda: archive.add_object(name, 1),
            lambda: archive.add_bytes(name, b""),
            lambda: archive.add_file(name, tmp_path / "file"),
            lambda: archive.add_directory(name),
        ]
        if name:  # an empty name and None stand for the archive itself
            adds.append(lambda: archive.add_tree(name, tmp_path / "tree"))
        for add in adds:
            with pytest.raises(pyckpt.OptionError, match="member"):
                add()
    assert sorted(os.listdir(tmp_path)) == ["file", "tree"]


def test_names_that_do_not_fit_together(tmp_path: Path) -> None:
    with pyckpt.ArchiveWriter(tmp_path / "x.tar") as archive:
        archive.add_bytes("a/file", b"1")
        with pytest.raises(pyckpt.OptionError, match="'a/file' already"):
            archive.add_object("a/file", 2)
        with pytest.raises(pyckpt.OptionError, match="'a' is a folder already"):
            archive.add_bytes("a", b"2")
        for below in ("a/file/b", "a/file/b/c"):
            with pytest.raises(pyckpt.OptionError, match="'a/file' is a file already"):
                archive.add_bytes(below, b"2")
        with pytest.raises(pyckpt.OptionError, match="'a/file' is a file already"):
            archive.add_directory("a/file")
        # What failed for another reason leaves the name free.
        with pytest.raises(pyckpt.CheckpointError, match="lambda"):
            archive.add_object("b", lambda: None)
        with pytest.raises(pyckpt.CheckpointError):
            archive.add_bytes("b", 3)  # type: ignore[arg-type]
        archive.add_bytes("b", b"1")
        archive.write()
        archive.commit()
    with tarfile.open(tmp_path / "x.tar") as tar:
        assert tar.getnames() == ["", "a", "a/file", "b"]


@pytest.mark.parametrize(
    "data",
    [b"\x1f\x8b\x08\0broken", b"\xfd7zXZ\0broken", b"BZh9broken", b"PK\3\4", None],
    ids=["gzip", "xz", "bzip2", "zip", "torch"],
)
def test_a_file_that_is_damaged_is_copied_as_it_is(tmp_path: Path, data: bytes | None) -> None:
    source = tmp_path / "source" / "file"
    source.parent.mkdir()
    if data is None:
        torch.save(torch.ones(1000), source)
        data = source.read_bytes()[:-30]
    source.write_bytes(data)
    pyckpt.pack(source.parent, tmp_path / "packed.tar")
    with pyckpt.ArchiveWriter(tmp_path / "x.tar") as archive:
        archive.add_file("file", source)
        archive.write()
        archive.commit()
    for path in (tmp_path / "packed.tar", tmp_path / "x.tar"):
        with tarfile.open(path) as tar:
            member = tar.extractfile("file")
            assert member is not None
            assert member.read() == data


@pytest.mark.parametrize("kind", ["pipe", "link to a folder", "link to nowhere"])
def test_a_tree_with_what_cannot_be_packed(tmp_path: Path, kind: str) -> None:
    make_tree(tmp_path / "tree")
    odd = tmp_path / "tree" / "deep" / "odd"
    if kind == "pipe":
        os.mkfifo(odd)
    else:
        odd.symlink_to("empty" if kind == "link to a folder" else "gone")
    with (
        pyckpt.ArchiveWriter(tmp_path / "x.tar") as archive,
        pytest.raises(pyckpt.OptionError, match="odd is"),
    ):
        archive.add_tree("t", tmp_path / "tree")
    assert not (tmp_path / "x.tar").exists()


def test_the_order_of_calls(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with pyckpt.ArchiveWriter(path) as archive:
        archive.add_bytes("a", b"")
        with pytest.raises(pyckpt.CheckpointError, match="must be written for that, and is new"):
            archive.commit()
        archive.plan()
        with pytest.raises(pyckpt.CheckpointError, match="must be new for that, and is planned"):
            archive.add_bytes("b", b"")
        archive.write()
        with pytest.raises(pyckpt.CheckpointError, match="is written"):
            archive.write()
        archive.commit()
        with pytest.raises(pyckpt.CheckpointError, match="is committed"):
            archive.commit()
    archive.abandon()
    assert pyckpt.verify(path).ok


def test_what_is_not_committed_is_abandoned(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(b"old")
    with pyckpt.ArchiveWriter(path) as archive:
        archive.add_bytes("a", bytes(9_000_000))
        archive.write()
    with pytest.raises(pyckpt.CheckpointError, match="is abandoned"):
        archive.commit()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x.tar"]


def test_errors_have_the_path_and_errno(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with (
        pyckpt.ArchiveWriter(path) as archive,
        pytest.raises(pyckpt.CheckpointError, match=r"saving .*x\.tar failed.*gone") as e,
    ):
        archive.add_file("a", tmp_path / "gone")
    assert (e.value.path, e.value.errno) == (str(path), errno.ENOENT)
    with (
        pyckpt.ArchiveWriter(path) as archive,
        pytest.raises(pyckpt.CheckpointError) as e,
    ):
        archive.add_tree("a", tmp_path / "gone")
    assert (e.value.path, e.value.errno) == (str(path), errno.ENOENT)
    (tmp_path / "file").touch()
    with (
        pyckpt.ArchiveWriter(tmp_path / "file" / "x.tar") as archive,
        pytest.raises(pyckpt.CheckpointError) as e,
    ):
        archive.write()
    assert e.value.errno == errno.EEXIST
    with pytest.raises(pyckpt.FilenameError):
        pyckpt.ArchiveWriter(tmp_path)
    with pytest.raises(pyckpt.FilenameError):
        pyckpt.ArchiveWriter(tmp_path / "x.tar.foo")
    with pytest.raises(pyckpt.OptionError):
        pyckpt.ArchiveWriter(path, compression_level=3)
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_that_becomes_shorter(tmp_path: Path) -> None:
    source, path = tmp_path / "source", tmp_path / "x.tar"
    source.write_bytes(bytes(100_000))
    with pyckpt.ArchiveWriter(path) as archive:
        archive.add_file("a", source)
        archive.plan()
        os.truncate(source, 1000)
        with pytest.raises(pyckpt.CheckpointError, match="became shorter") as e:
            archive.write()
        assert e.value.path == str(path)
        with pytest.raises(pyckpt.CheckpointError, match="is failed"):
            archive.commit()
    assert os.listdir(tmp_path) == ["source"]


def test_progress_and_what_stops_it(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    with pyckpt.ArchiveWriter(
        tmp_path / "x.tar", progress=lambda done, total: told.append((done, total))
    ) as archive:
        archive.add_bytes("a", bytes(5_000_000))
        archive.write()
        archive.commit()
    assert told[-1][0] == told[-1][1] == (tmp_path / "x.tar").stat().st_size

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pyckpt.ArchiveWriter(tmp_path / "y.tar", progress=interrupt) as archive:
        archive.add_bytes("a", bytes(5_000_000))
        with pytest.raises(KeyboardInterrupt):
            archive.write()
    assert os.listdir(tmp_path) == ["x.tar"]


def test_an_asynchronous_save_of_the_same_file_comes_first(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    pending = pyckpt.async_save({"w": torch.zeros(20_000_000)}, path)
    with pyckpt.ArchiveWriter(path) as archive:
        archive.add_bytes("newer", b"1")
        archive.write()
        archive.commit()
    assert pending.result() == path
    with tarfile.open(path) as tar:
        assert tar.getnames() == ["", "newer"]


def test_a_full_disk(tmp_path: Path) -> None:
    code = """
import os, sys, errno, pyckpt
path = sys.argv[1] + "/x.tar"
with pyckpt.ArchiveWriter(path) as archive:
    archive.add_bytes("a", b"old")
    archive.write()
    archive.commit()
try:
    with pyckpt.ArchiveWriter(path) as archive:
        archive.add_bytes("a", bytes(5 << 20))
        archive.write()
except pyckpt.CheckpointError as error:
    assert (error.errno, error.path) == (errno.ENOSPC, path), error
else:
    raise AssertionError
assert os.listdir(sys.argv[1]) == ["x.tar"] and pyckpt.verify(path).ok
"""
    script = 'mount -t tmpfs -o size=4m none "$1"; exec "$2" -c "$3" "$1"'
    done = subprocess.run(
        [*private_mounts(script), "sh", tmp_path, sys.executable, code],
        cwd=WORKERS.parent.parent,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
