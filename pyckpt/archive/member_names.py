"""The names of members: which are allowed, and which do not fit together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pyckpt.errors import OptionError

__all__ = ["MemberNames", "check_member", "folders_of", "require_utf8"]


def check_member(name: Any) -> None:
    """Checks the name of a member.

    Raises:
        OptionError: It would lead out of the archive, or is no name, or is not UTF-8.
    """
    if not isinstance(name, str):
        raise OptionError(f"a member's name is a str, not {type(name).__name__}")
    parts = name.split("/")
    if not name or "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise OptionError(f"member {name!r} is not a relative path without '.', '..' or NUL")
    require_utf8(name)


def require_utf8(name: str) -> None:
    """Checks that a name is UTF-8, as the names in a tar are.

    Raises:
        OptionError: It is not.
    """
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise OptionError(f"the member name {name!r} is not UTF-8") from error


def folders_of(name: str) -> Iterator[str]:
    """The folders that a member is in, from the inside."""
    while "/" in name:
        name = name.rpartition("/")[0]
        if name:
            yield name


class MemberNames:
    """The names in one archive, as they are added. Whatever is refused is not added."""

    def __init__(self) -> None:
        self._files: set[str] = set()
        self._folders: set[str] = set()

    def add_file(self, name: str) -> None:
        """Adds a file.

        Raises:
            OptionError: As in :func:`check_member`, or something has this name, or a file has the
                name of one of its folders.
        """
        check_member(name)
        if name in self._files:
            raise OptionError(f"the archive has a member {name!r} already")
        if name in self._folders:
            raise OptionError(f"member {name!r} is a folder already")
        self._add_folders(folders_of(name))
        self._files.add(name)

    def forget_file(self, name: str) -> None:
        """Takes ``add_file`` back."""
        self._files.discard(name)

    def add_folder(self, name: str) -> None:
        """Adds a folder. It may be there already.

        Raises:
            OptionError: As in :func:`check_member`, or a file has its name, or that of one of its
                folders.
        """
        check_member(name)
        self._add_folders([name, *folders_of(name)])

    def _add_folders(self, names: Iterator[str] | list[str]) -> None:
        names = list(names)
        for name in names:
            if name in self._files:
                raise OptionError(f"member {name!r} is a file already, and no folder")
        self._folders.update(names)
