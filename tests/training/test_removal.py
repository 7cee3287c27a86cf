"""Checkpoints are removed behind the saves that shall be safe first."""

from __future__ import annotations

import errno
import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import pyckpt
from pyckpt.staging import pending_saves
from pyckpt.staging.latch import Latch

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    pyckpt.save("old", tmp_path / "old.pt")
    return tmp_path / "old.pt"


def test_with_nothing_under_way_it_is_done_when_the_call_returns(old: Path) -> None:
    assert pyckpt.remove(old).result(0) is True
    assert not old.exists()
    assert pyckpt.remove(old).result(0) is False


def test_a_folder_goes_with_all_that_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-1" / "inner").mkdir(parents=True)
    (tmp_path / "checkpoint-1" / "inner" / "x").write_text("")
    assert pyckpt.remove(tmp_path / "checkpoint-1").result()
    assert list(tmp_path.iterdir()) == []


def test_a_link_goes_and_its_target_stays(tmp_path: Path, old: Path) -> None:
    (tmp_path / "link").symlink_to(old)
    (tmp_path / "folder").mkdir()
    (tmp_path / "to-folder").symlink_to(tmp_path / "folder")
    assert pyckpt.remove(tmp_path / "link").result()
    assert pyckpt.remove(tmp_path / "to-folder").result()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "old.pt"]


def test_it_waits_for_the_save_that_shall_be_safe_first(
    tmp_path: Path, old: Path, gate: Latch
) -> None:
    save = pyckpt.async_save("new", tmp_path / "new.pt")
    removal = pyckpt.remove(old)
    assert not removal.done()
    assert old.exists()
    gate.set()
    assert removal.result() is True
    assert save.result().exists()
    assert not old.exists()


def test_calls_keep_their_order(tmp_path: Path, gate: Latch) -> None:
    path = tmp_path / "x.pt"
    first = pyckpt.async_save(1, path, max_pending=3)
    removal = pyckpt.remove(path)
    last = pyckpt.async_save(2, path, max_pending=3)
    gate.set()
    assert first.result() == last.result() == path
    assert removal.result() is True
    assert pyckpt.load(path) == 2


def blocking_save(folder: Path) -> None:
    pyckpt.save("new", folder / "x.pt")


def blocking_checkpoint(folder: Path) -> None:
    state = pyckpt.State(torch.nn.Linear(2, 2))
    pyckpt.save_checkpoint(state, str(folder / "x.pt"))


def blocking_transaction(folder: Path) -> None:
    with pyckpt.transaction(folder) as path:
        pyckpt.save("new", path / "x.pt")


@pytest.mark.parametrize(
    ("save", "removed"),
    [
        (blocking_save, "folder/x.pt"),
        (blocking_save, "folder"),
        (blocking_checkpoint, "folder/x.pt"),
        (blocking_checkpoint, "folder"),
        (blocking_transaction, "folder"),
    ],
)
def test_a_blocking_save_comes_after_the_removals_before_it(
    tmp_path: Path, gate: Latch, save: Callable[[Path], None], removed: str
) -> None:
    blocking_save(tmp_path / "folder")
    pyckpt.async_save("other", tmp_path / "other.pt")
    removal = pyckpt.remove(tmp_path / removed)
    threading.Timer(0.5, gate.set).start()
    save(tmp_path / "folder")
    assert removal.result() is True
    assert (tmp_path / "folder" / "x.pt").exists()


def test_a_save_that_fails_while_remove_looks_is_not_missed(
    tmp_path: Path, old: Path, gate: Latch, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    save = pyckpt.async_save("new", tmp_path / "file" / "new.pt")

    def raise_uncollected() -> None:
        pending_saves.raise_uncollected()
        gate.set()
        pending_saves.wait_for_room(1)

    monkeypatch.setattr("pyckpt.training.removal.raise_uncollected", raise_uncollected)
    assert pyckpt.remove(old).result() is False
    assert old.exists()
    assert save.exception() is not None


def test_nothing_is_removed_behind_a_save_that_fails(
    tmp_path: Path, old: Path, gate: Latch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    save = pyckpt.async_save("new", tmp_path / "file" / "new.pt")
    removal = pyckpt.remove(old)
    with caplog.at_level(logging.WARNING):
        gate.set()
        assert removal.result() is False
    assert pyckpt.load(old) == "old"
    assert f"{old} stays, because a save failed" in caplog.text
    with pytest.raises(pyckpt.CheckpointError, match=r"new\.pt"):  # its error is still there
        pyckpt.async_save("new", tmp_path / "new.pt")
    assert save.exception() is not None


def test_nothing_is_removed_while_a_failed_save_is_not_noticed(tmp_path: Path, old: Path) -> None:
    (tmp_path / "file").write_text("")
    pyckpt.async_save("new", tmp_path / "file" / "new.pt")
    pending_saves.wait_for_room(1)
    with pytest.raises(pyckpt.CheckpointError, match="an earlier asynchronous save failed"):
        pyckpt.remove(old)
    assert old.exists()
    assert pyckpt.remove(old).result() is True  # the error has been raised


def test_nothing_is_removed_behind_a_torn_save_until_another_one_is_safe(
    tmp_path: Path, old: Path, gate: Latch
) -> None:
    weight = torch.nn.Parameter(torch.ones(10))
    weight.grad = torch.ones(10)
    optimizer = torch.optim.SGD([weight])
    pyckpt.async_save({"weight": weight}, tmp_path / "new.pt", optimizers=optimizer)
    with torch.no_grad():
        weight.zero_()
    gate.set()
    pending_saves.wait_for_room(1)
    assert pyckpt.remove(old).result() is False
    pyckpt.async_save({"weight": weight}, tmp_path / "new.pt", optimizers=optimizer)
    assert pyckpt.remove(old).result() is True


def test_what_the_system_refuses_is_an_error_with_errno(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(pyckpt.CheckpointError, match="could not be removed") as caught:
        pyckpt.remove(tmp_path / "file" / "x").result()
    assert caught.value.errno == 20  # ENOTDIR
    assert caught.value.path == str(tmp_path / "file" / "x")


def test_a_folder_that_must_stay_loses_nothing() -> None:
    """Its files may be removed, and its name not: the folder that it is in is not writable."""
    code = """
import os, sys, pathlib, tempfile, pyckpt
if os.geteuid() == 0: os.setgroups([]); os.setgid(12345); os.setuid(12345)
parent = pathlib.Path(tempfile.mkdtemp(prefix="pyckpt-"))
(parent / "old").mkdir()
(parent / "old" / "file").touch()
parent.chmod(0o500)
try:
    print(pyckpt.remove(parent / "old").exception().errno, os.listdir(parent / "old"))
finally:
    parent.chmod(0o700)
    (parent / "old" / "file").unlink(missing_ok=True)
    (parent / "old").rmdir()
    parent.rmdir()
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.stdout, done.stderr) == (f"{errno.EACCES} ['file']\n", "")


def test_a_name_that_leads_through_the_folder_itself(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    assert pyckpt.remove(tmp_path / "old" / ".." / "old").result() is True
    assert list(tmp_path.iterdir()) == []


def test_what_no_store_serves_is_refused() -> None:
    with pytest.raises(pyckpt.FilenameError):
        pyckpt.remove("nix://bucket/x")


def test_a_folder_is_hidden_before_its_files_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "file").touch()
    seen = []
    monkeypatch.setattr("shutil.rmtree", lambda path: seen.append((path.name, path.exists())))
    assert pyckpt.remove(tmp_path / "old").result() is True
    [(name, is_there)] = seen
    assert is_there
    assert name.startswith(".old.")
    assert not (tmp_path / "old").exists()
