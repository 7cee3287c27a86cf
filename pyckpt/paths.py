"""What a path means: a file of this machine, no URL. ``~`` is the user's folder."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from pyckpt.errors import FilenameError

__all__ = ["check_is_local", "expand_user", "is_url", "links_followed", "local_path", "path_text"]

# pathlib makes one slash of two. Some libraries chain protocols: "simplecache::s3://".
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(::[A-Za-z][A-Za-z0-9+.-]*)*:/")


def is_url(path: str) -> bool:
    """Whether ``path`` looks like a URL, and so is no file of this machine."""
    return _URL.match(path) is not None


def local_path(path: str | os.PathLike[str]) -> Path:
    """The file that ``path`` names.

    Raises:
        FilenameError: It is empty, a URL, or not a str or path.
    """
    return Path(expand_user(path_text(path)))


def expand_user(path: str) -> str:
    """``path`` with the user's folder in place of ``~``, as shells expand it.

    Raises:
        FilenameError: It is empty or a URL, or the system does not tell the user's folder.
    """
    check_is_local(path)
    expanded = os.path.expanduser(path)
    if expanded == path and path.split("/")[0] == "~":
        raise FilenameError(f"the folder that ~ stands for is not known: {path!r}", path=path)
    return expanded


def check_is_local(path: str) -> None:
    """Checks that ``path`` is no URL.

    Raises:
        FilenameError: It is one, or empty.
    """
    if not path:
        raise FilenameError("the path is empty", path=path)
    if is_url(path):
        raise FilenameError(
            f"{path!r} is a URL, and this takes files of this machine alone: see docs/stores.md",
            path=path,
        )


def links_followed(path: Path) -> Path:
    """The absolute path without links. The file itself, or what a link leads to, need not be there.

    A link of another user in a folder that all may write to (Linux: ``fs.protected_symlinks``) is
    not followed: it would say where the caller's bytes go.

    Raises:
        PermissionError: The system does not let this process follow a link.
    """
    followed = Path(os.path.realpath(path))
    try:
        os.stat(path)  # realpath only reads links. This follows them, as opening the file would
    except PermissionError:
        if path.is_symlink():
            raise
    except OSError:  # absent, or not accessible: whoever uses the path finds out
        pass
    return followed


def path_text(path: Any) -> str:
    """The path as a str.

    Raises:
        FilenameError: It is neither a str nor a path.
    """
    try:
        text = os.fspath(path)
    except TypeError:
        text = None
    if not isinstance(text, str):
        raise FilenameError(f"a path is a str or a path, not {type(path).__name__}")
    return text
