"""FolderSave: files that appear together, at once or in the background."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import pyckpt
from pyckpt.staging import pending_saves
from pyckpt.staging.latch import Latch
from pyckpt.training import background
from pyckpt.training.async_save import ObjectSave
from pyckpt.training.folder_save import FolderSave

pytestmark = pytest.mark.timeout(60)


def save(folder: Path, asynchronous: bool, value: Any, optimizer: Any = None) -> FolderSave:
    with FolderSave(folder, asynchronous=asynchronous) as files:
        (files.path / "small").write_text("small")
        files.save(value, "large.pt", optimizer)
        files.save([value], "list.pt")
    return files


@pytest.mark.parametrize("asynchronous", [False, True])
def test_files_appear_together(tmp_path: Path, asynchronous: bool) -> None:
    for value in (torch.ones(1000), torch.zeros(1000)):
        files = save(tmp_path / "folder", asynchronous, value)
        assert (files.pending is not None) == asynchronous
        if files.pending is not None:
            assert files.pending.result() == tmp_path / "folder"
            assert files.pending.progress()[0] == files.pending.progress()[1] > 8000
        assert os.listdir(tmp_path) == ["folder"]
        assert sorted(os.listdir(tmp_path / "folder")) == ["large.pt", "list.pt", "small"]
        assert torch.equal(torch.load(tmp_path / "folder" / "large.pt"), value)
        assert torch.equal(torch.load(tmp_path / "folder" / "list.pt")[0], value)


def test_the_state_is_that_of_the_call(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(100_000))
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    for _ in range(3):
        optimizer.step()
        expected = optimizer.state_dict()["state"][0]["exp_avg"].clone()
        files = save(tmp_path / "folder", True, optimizer.state_dict(), optimizer)
        optimizer.step()
        assert files.pending is not None
        files.pending.result()
        found = torch.load(tmp_path / "folder" / "large.pt")["state"][0]["exp_avg"]
        assert torch.equal(found, expected)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_block_that_raises(tmp_path: Path, asynchronous: bool) -> None:
    save(tmp_path / "folder", False, 1)
    (tmp_path / "old").mkdir()

    def fail() -> None:
        with FolderSave(tmp_path / "folder", asynchronous=asynchronous) as files:
            files.save(torch.ones(1000), "large.pt")
            files.remove_after([tmp_path / "old"])
            raise ValueError("why")

    with pytest.raises(pyckpt.CheckpointError, match=r"writing .*folder failed on rank 0: .* why"):
        fail()
    assert sorted(os.listdir(tmp_path)) == ["folder", "old"]
    assert torch.load(tmp_path / "folder" / "large.pt") == 1


@pytest.mark.parametrize("asynchronous", [False, True])
def test_saves_into_it_end_with_a_block_that_raises(
    tmp_path: Path, asynchronous: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = Latch()
    monkeypatch.setattr(background, "_last_work", earlier)

    def fail() -> None:
        with FolderSave(tmp_path / "folder", asynchronous=asynchronous) as files:
            pyckpt.async_save(1, files.path / "x.pt")
            threading.Timer(0.3, earlier.set).start()
            raise ValueError("why")

    with pytest.raises(pyckpt.CheckpointError, match="why"):
        fail()
    assert pending_saves.under_way() == []
    pending_saves.raise_uncollected()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("asynchronous", [False, True])
def test_old_folders_go_at_last(
    tmp_path: Path, asynchronous: bool, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path / "old", False, 1)
    with FolderSave(tmp_path / "folder", asynchronous=asynchronous) as files:
        files.remove_after([tmp_path / "old", tmp_path / "gone", tmp_path / "folder" / "x" / "y"])
        assert (tmp_path / "old").exists()
    if files.pending is not None:
        files.pending.result()
    assert os.listdir(tmp_path) == ["folder"]
    assert caplog.text == ""


def test_a_write_that_fails_in_the_background(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(ObjectSave, "write", fail)
    save(tmp_path / "old", False, 1)
    with FolderSave(tmp_path / "folder", asynchronous=True) as files:
        files.save(1, "large.pt")
        files.remove_after([tmp_path / "old"])
    assert files.pending is not None
    with pytest.raises(pyckpt.CheckpointError, match=r"folder failed on rank 0: .*output error"):
        files.pending.result()
    assert os.listdir(tmp_path) == ["old"]
    assert "an asynchronous save failed" in caplog.text


def test_it_begins_when_no_other_save_is_under_way(tmp_path: Path) -> None:
    pending = pyckpt.async_save(torch.ones(1000), tmp_path / "x.pt")
    files = save(tmp_path / "folder", True, 1)
    assert pending.done()
    assert files.pending is not None
    files.pending.result()


def test_an_error_that_nobody_asked_for_is_raised(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    pending = pyckpt.async_save(1, tmp_path / "file" / "x.pt")
    failed = threading.Event()
    pending.add_done_callback(lambda _: failed.set())
    assert failed.wait(30)
    with pytest.raises(pyckpt.CheckpointError, match="an earlier asynchronous save failed"):
        save(tmp_path / "folder", True, 1)
    assert os.listdir(tmp_path) == ["file"]
