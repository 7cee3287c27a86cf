"""The files of a folder, as somebody sees them who reads it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import pyckpt
from pyckpt.storage.files_below import FoundFile, files_below


def test_files_folders_and_links(tmp_path: Path) -> None:
    (tmp_path / "b" / "empty").mkdir(parents=True)
    (tmp_path / "b" / "c").write_text("123")
    (tmp_path / ".hidden").touch()
    (tmp_path / "a").symlink_to("b/c")
    (tmp_path / "b" / "d").symlink_to("../a")
    assert files_below(tmp_path) == [
        FoundFile(".hidden", ".hidden", 0),
        FoundFile("a", "b/c", 3),
        FoundFile("b/c", "b/c", 3),
        FoundFile("b/d", "b/c", 3),
    ]
    (tmp_path / "link").symlink_to(".")
    with pytest.raises(pyckpt.FilenameError, match="link to a folder"):
        files_below(tmp_path)


def test_the_folder_may_be_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a").touch()
    (tmp_path / "real" / "b").symlink_to(tmp_path / "link" / "a")
    (tmp_path / "link").symlink_to("real")
    assert [file.inner for file in files_below(tmp_path / "link")] == ["a", "a"]


@pytest.mark.parametrize("target", ["..", "../x", "/etc/passwd", "/dev/null", "link", "nix"])
def test_links_that_lead_elsewhere(tmp_path: Path, target: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "x").touch()
    (folder / "link").symlink_to(target)
    with pytest.raises(pyckpt.FilenameError, match="folder/link' is a link") as caught:
        files_below(folder)
    assert caught.value.path == str(folder / "link")


def test_a_folder_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        files_below(tmp_path / "nix")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(pyckpt.FilenameError, match="neither a file nor a folder"):
        files_below(tmp_path)
