"""What killed processes have left beside files: who removes it, and what stays."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyckpt
from pyckpt.storage import hidden_names
from pyckpt.storage.hidden_names import hidden_name, system_code
from pyckpt.storage.leftovers import bring_back, remove_leftovers
from pyckpt.storage.small_files import replace_file, replace_link

DIGITS = "0123456789abcdef"


@pytest.fixture(autouse=True)
def _shared_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if other machines could have the file system."""
    monkeypatch.setattr(hidden_names, "is_on_local_disk", lambda _: False)


def hidden(path: Path, kind: str, code: str | None = None) -> Path:
    found = path.with_name(f".{path.name}.{code or system_code()}-{DIGITS}.{kind}")
    found.write_bytes(b"left")
    return found


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    found = tmp_path / "x.tar"
    pyckpt.save({"a": 1}, found)
    yield found
    assert found.read_bytes() == b"left" or pyckpt.load(found) == {"a": 1}


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


@pytest.mark.parametrize("kind", ["tmp", "previous"])
def test_the_next_save_in_the_folder_removes_it(path: Path, kind: str) -> None:
    hidden(path, kind)
    hidden(path.with_name("other.pt"), "tmp")
    pyckpt.save({"b": 2}, path.with_name("y.tar"))
    assert names(path.parent) == ["x.tar", "y.tar"]


@pytest.mark.parametrize("how", [fcntl.LOCK_EX, fcntl.LOCK_SH])
@pytest.mark.parametrize("kind", ["tmp", "previous"])
def test_what_a_living_process_has_stays(path: Path, kind: str, how: int) -> None:
    left = hidden(path, kind)
    with left.open() as file:
        fcntl.flock(file, how)
        remove_leftovers(path.parent)
        bring_back(path)
        assert left.exists()
    remove_leftovers(path.parent)
    assert not left.exists()


@pytest.mark.parametrize("code", ["0a1b2c3d", "unlocked"])
def test_what_cannot_be_known_stays(path: Path, code: str) -> None:
    left = hidden(path, "tmp", code)
    remove_leftovers(path.parent)
    bring_back(path)
    assert left.exists()


def test_on_a_local_disk_nobody_else_can_live(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hidden_names, "is_on_local_disk", lambda _: True)
    left = hidden(path, "tmp", "0a1b2c3d")
    kept = hidden(path, "tmp", "unlocked")
    remove_leftovers(path.parent)
    assert not left.exists()
    assert kept.exists()


def test_other_names_stay(path: Path) -> None:
    mine = [path.with_name(name) for name in (".x.tar.swp", f".x.tar.{system_code()}-12.tmp")]
    for one in mine:
        one.write_bytes(b"")
    link = path.with_name(f".x.tar.{system_code()}-{DIGITS}.tmp")
    link.symlink_to(path)
    remove_leftovers(path.parent)
    assert names(path.parent) == sorted([*(one.name for one in mine), link.name, "x.tar"])


def test_a_file_that_nothing_has_replaced_comes_back(path: Path) -> None:
    path.unlink()
    hidden(path, "previous")
    remove_leftovers(path.parent)
    assert names(path.parent) == ["x.tar"]
    assert path.read_bytes() == b"left"


@pytest.mark.parametrize("name", ["x.tar", "n" * 250])
def test_the_file_before_is_brought_back(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"new")
    left = hidden_name(path).with_suffix(".previous")
    left.write_bytes(b"left")
    hidden(tmp_path / "other", "previous")
    bring_back(path)
    assert path.read_bytes() == b"left"
    assert len(names(tmp_path)) == 2


def test_one_file_with_both_names(path: Path) -> None:
    """Killed between the second name of the old file and the name of the new one."""
    os.link(path, hidden_name(path).with_suffix(".previous"))
    bring_back(path)
    assert names(path.parent) == ["x.tar"]


def test_small_files_and_links_remove_it_too(path: Path) -> None:
    latest = path.with_name("latest")
    hidden(latest, "tmp")
    replace_file(latest, b"x", fsync=False)
    assert names(path.parent) == ["latest", "x.tar"]
    replace_link(latest, "x.tar")
    replace_link(latest, "x.tar")
    assert names(path.parent) == ["latest", "x.tar"]
    assert os.readlink(latest) == "x.tar"
