"""A set of files on one rank; tests/integrations/deepspeed has sets of several ranks."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import pyckpt
from pyckpt.options import BackgroundOptions, WriteOptions
from pyckpt.ranks.exchange import Channel
from pyckpt.storage.small_files import Replacement
from pyckpt.training.background import BackgroundSave
from pyckpt.training.file_set import FileSet


def new_set(folder: Path) -> FileSet:
    files = FileSet(WriteOptions(), 1)
    files.pointer = Replacement(folder / "latest", b"new", fsync=False)
    return files


def names_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize("at_once", [False, True])
def test_all_files_and_the_pointer_appear(tmp_path: Path, at_once: bool) -> None:
    files = new_set(tmp_path)
    files.add_folder(tmp_path / "new" / "inner")
    paths = [tmp_path / "new" / "a.pt", tmp_path / "new" / "inner" / "b.pt"]
    whole = torch.arange(1000.0)
    for path in paths:
        files.add(path, {"part": whole[10:20]}, at_once=at_once)
    assert len(files.state_records()) == (0 if at_once else 2)
    assert names_below(tmp_path) == ["new", "new/inner"]
    assert files.write(Channel()) == paths
    files.close()
    assert names_below(tmp_path) == [
        *("latest", "new", "new/a.pt", "new/inner", "new/inner/b.pt"),
    ]
    for path in paths:
        loaded = torch.load(path)["part"]
        assert torch.equal(loaded, whole[10:20])
        assert loaded.untyped_storage().nbytes() == 40  # a view without the rest


def test_what_was_written_at_once_may_change_before_the_commit(tmp_path: Path) -> None:
    files = new_set(tmp_path)
    tensor = torch.zeros(10)
    files.add(tmp_path / "a.pt", tensor, at_once=True)
    tensor.fill_(1)
    files.write(Channel())
    files.close()
    assert torch.equal(torch.load(tmp_path / "a.pt"), torch.zeros(10))


def add_unpicklable(files: FileSet, folder: Path) -> None:
    files.add(folder / "new" / "b.pt", lambda: None, at_once=True)


def block_the_name(files: FileSet, folder: Path) -> None:
    files.add(folder / "new" / "b.pt", 1, at_once=True)
    (folder / "new" / "b.pt").mkdir()


def block_the_pointer(files: FileSet, folder: Path) -> None:
    (folder / "latest").unlink()
    (folder / "latest").mkdir()


def block_the_folder(files: FileSet, folder: Path) -> None:
    files.add_folder(folder / "old.pt" / "inner")


@pytest.mark.parametrize(
    "break_it", [add_unpicklable, block_the_name, block_the_pointer, block_the_folder]
)
def test_after_a_failure_all_is_as_before(
    tmp_path: Path, break_it: Callable[[FileSet, Path], Any]
) -> None:
    pyckpt.save("old", tmp_path / "old.pt")
    (tmp_path / "latest").write_text("old")
    files = new_set(tmp_path)
    files.add_folder(tmp_path / "new")
    files.add(tmp_path / "old.pt", "new", at_once=True)
    files.add(tmp_path / "new" / "a.pt", "new", at_once=True)
    break_it(files, tmp_path)
    with pytest.raises(pyckpt.CheckpointError):
        files.write(Channel())
    files.close()
    if break_it is block_the_name:
        os.rmdir(tmp_path / "new" / "b.pt")
        os.rmdir(tmp_path / "new")
    assert names_below(tmp_path) == ["latest", "old.pt"]
    assert pyckpt.load(tmp_path / "old.pt") == "old"
    if break_it is not block_the_pointer:
        assert (tmp_path / "latest").read_text() == "old"


def test_the_first_error_is_the_one_that_is_raised(tmp_path: Path) -> None:
    files = new_set(tmp_path)
    files.check()
    files.fail(ValueError("the first"))
    files.fail(ValueError("the second"))
    files.add(tmp_path / "a.pt", 1, at_once=True)
    with pytest.raises(ValueError, match="the first"):
        files.check()
    with pytest.raises(pyckpt.CheckpointError, match="the first"):
        files.write(Channel())
    files.close()
    assert names_below(tmp_path) == []


def test_the_end_of_a_transaction_waits_for_a_set_in_the_background(tmp_path: Path) -> None:
    weight = torch.randn(5_000_000)

    def start(folder: Path) -> None:
        files = FileSet(BackgroundOptions(), 1)
        files.add_folder(folder / "new")
        for name in ("a.pt", "b.pt"):
            files.add(folder / "new" / name, {"weight": weight}, at_once=False)
        save = BackgroundSave(files, partial(files.write, Channel()), 0)
        save.begin(None, chosen=True)
        save.start()

    with pyckpt.transaction(tmp_path / "x") as folder:
        start(folder)
    for name in ("a.pt", "b.pt"):
        assert torch.equal(torch.load(tmp_path / "x" / "new" / name)["weight"], weight)

    def fail() -> None:
        with pyckpt.transaction(tmp_path / "y") as folder:
            (folder / "new" / "b.pt").mkdir(parents=True)  # so that it cannot have its name
            start(folder)

    with pytest.raises(pyckpt.CheckpointError, match=r"b\.pt"):
        fail()
    assert os.listdir(tmp_path) == ["x"]
