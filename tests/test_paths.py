"""Paths: files of this machine. What takes URLs too is in tests/storage."""

from __future__ import annotations

import errno
import os
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from torch import nn

import pyckpt
from pyckpt.paths import expand_user, local_path

URLS = [
    *("s3://bucket/x.pt", "gs://b/{run_name}/x.tar", "hf://u/x", "file:///x", "MemoRy://x"),
    "simplecache::s3://bucket/x",
]


@pytest.mark.parametrize("path", ["x.pt", "./a b/x", "/x", "a:b/x", "2024-01-01T10:00/x", "~x/y~"])
def test_paths_of_this_machine(path: str) -> None:
    assert local_path(path) == Path(path)
    assert local_path(PurePosixPath(path)) == Path(path)


def test_the_users_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert local_path("~/x.pt") == Path("/home/me/x.pt")
    assert expand_user("a/~/x") == "a/~/x"
    with monkeypatch.context() as context:
        context.setattr("os.path.expanduser", lambda path: path)
        with pytest.raises(pyckpt.FilenameError, match=r"~ stands for is not known: '~/x.pt'"):
            local_path("~/x.pt")


@pytest.mark.parametrize("path", [*URLS, *map(PurePosixPath, URLS)])
def test_urls_are_refused(path: Any) -> None:
    with pytest.raises(pyckpt.FilenameError, match="is a URL"):
        local_path(path)


@pytest.mark.parametrize("path", ["", b"x", 3, None])
def test_what_is_no_path(path: Any) -> None:
    with pytest.raises(pyckpt.FilenameError, match="path is"):
        local_path(path)


CALLS = {
    "save": lambda path: pyckpt.save({}, path),
    "load": pyckpt.load,
    "verify": pyckpt.verify,
    "inspect": pyckpt.inspect,
    "convert from": lambda path: pyckpt.convert(path, "y.tar"),
    "convert to": lambda path: pyckpt.convert("x.tar", path),
    "pack from": lambda path: pyckpt.pack(path, "y.tar"),
    "pack to": lambda path: pyckpt.pack("x.tar", path),
    "extract from": lambda path: pyckpt.extract(path, "y"),
    "extract to": lambda path: pyckpt.extract("x.tar", path),
    "save_checkpoint": lambda path: pyckpt.save_checkpoint(pyckpt.State(nn.Identity()), path),
    "async": lambda path: pyckpt.async_save_checkpoint(pyckpt.State(nn.Identity()), path),
    "load_checkpoint": lambda path: pyckpt.load_checkpoint(path, pyckpt.State(nn.Identity())),
}


NO_PATHS = [
    *("nix://bucket/x.pt", "nix:/bucket/x.pt", "x::s3://bucket/x.pt", PurePosixPath(URLS[0])),
    *("s3://bucket/", "s3://x.pt", "s3://bucket/\0.pt", "file://x/y.pt", "", b"x.tar", None),
]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("path", NO_PATHS)
def test_every_function_refuses_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, path: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(pyckpt.FilenameError):
        CALLS[call](path)
    assert not any(tmp_path.iterdir())


def test_a_checkpoint_in_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    state = pyckpt.State(nn.Linear(2, 2))
    [path] = pyckpt.save_checkpoint(state, "~/{run_name}.tar")
    assert path == tmp_path / "run.tar"
    pyckpt.load_checkpoint("~/run.tar", state)
    state.run_name = "s3://bucket"
    with pytest.raises(pyckpt.FilenameError, match="is a URL"):
        pyckpt.save_checkpoint(state, "{run_name}/x.tar")
    state.run_name = "~"
    monkeypatch.chdir(tmp_path)
    assert pyckpt.save_checkpoint(state, "{run_name}/x.tar") == [Path("~/x.tar")]


def test_links_that_the_system_does_not_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Linux with fs.protected_symlinks, for links of others in folders that all may write to."""
    target, link = tmp_path / "a" / "victim.tar", tmp_path / "x.tar"
    target.parent.mkdir()
    pyckpt.save({"old": True}, target)
    link.symlink_to(target)
    pyckpt.save({"old": False}, link)
    assert link.is_symlink()
    assert pyckpt.load(target) == {"old": False}
    follow = os.stat

    def refuse(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        if str(path) == str(link) and options.get("follow_symlinks", True):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return follow(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(PermissionError, match=r"x\.tar"):
        pyckpt.save({"old": True}, link)
    refused = pytest.raises(pyckpt.CheckpointError, match=r"x\.tar")
    with refused as caught, pyckpt.transaction(link):
        pass
    assert caught.value.errno == errno.EACCES
    assert pyckpt.load(target) == {"old": False}
