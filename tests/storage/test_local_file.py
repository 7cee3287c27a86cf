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
