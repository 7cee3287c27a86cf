"""Local files: what is on the disk when a save returns."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import pyckpt


@pytest.fixture
def flushed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What Python flushes to disk. The core flushes the file and the folder that it is in."""
    found: list[Path] = []
    fsync = os.fsync

    def spy(fd: int) -> None:
        found.append(Path(f"/proc/self/fd/{fd}").readlink())
        fsync(fd)

    monkeypatch.setattr(os, "fsync", spy)
    return found


def test_the_names_of_new_folders_are_on_disk(tmp_path: Path, flushed: list[Path]) -> None:
    path = tmp_path / "runs" / "first" / "x.pt"
    pyckpt.save(1, path)
    assert sorted(flushed) == [tmp_path, tmp_path / "runs"]
    flushed.clear()
    pyckpt.save(2, path)
    assert flushed == []


def test_without_fsync_nothing_waits_for_the_disk(tmp_path: Path, flushed: list[Path]) -> None:
    pyckpt.save(1, tmp_path / "runs" / "x.pt", fsync=False)
    assert flushed == []


def test_folders_that_were_made_for_a_save_that_failed_go(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    with pytest.raises(pyckpt.CheckpointError, match="File name too long"):
        pyckpt.save(1, tmp_path / "runs" / "first" / "deep" / f"{'x' * 300}.pt")
    assert list((tmp_path / "runs").iterdir()) == []
    with pyckpt.ArchiveWriter(tmp_path / "runs" / "second" / "x.pt") as archive:
        archive.add_object("x", 1)
        archive.write()
    assert list((tmp_path / "runs").iterdir()) == []


def test_folders_that_somebody_else_uses_stay(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "first"
    with pyckpt.ArchiveWriter(folder / "x.pt") as archive:
        archive.add_object("x", 1)
        archive.write()
        (tmp_path / "runs" / "other").touch()
    assert not folder.exists()
    assert (tmp_path / "runs" / "other").exists()


def test_a_folder_that_another_save_has_removed_is_made_again(
    tmp_path: Path, flushed: list[Path]
) -> None:
    path = tmp_path / "runs" / "x.pt"
    with pyckpt.ArchiveWriter(path) as archive:
        archive.add_object("x", 1)
        archive.write()
        path.parent.rmdir()
        flushed.clear()
        archive.commit()
    assert pyckpt.load(path) == 1
    assert flushed == [tmp_path]
