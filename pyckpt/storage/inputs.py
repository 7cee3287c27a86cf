"""Files to read from: of this machine, and in stores.

Whoever has one reads the same version of it however often, whatever gets its name meanwhile. Those
who open it each for themselves compare their versions.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pyckpt.ranks.file_identity import file_identity
from pyckpt.storage.object_file import ObjectFile, replaced
from pyckpt.storage.urls import Location, Stores, Url

__all__ = ["InputFile", "Version", "open_input", "require_one_version"]


@dataclass(frozen=True)
class Version:
    """Which of the files it is that a place has had.

    Attributes:
        path: What messages call it.
        place: Equal for all processes that see the same place. See file_identity.
        mark: Another one once the file is replaced, as far as its place can tell.
    """

    path: Location
    place: str
    mark: str


@dataclass(frozen=True)
class InputFile:
    """A file to read from.

    Attributes:
        path: Its path or URL, or what messages call it.
        fd: A descriptor of it, which is open as long as this lives.
        is_copy: Whether the descriptor has a copy of it, in memory.
        supply: Brings the bytes of an object into the file that the descriptor has.
        owner: Closes the descriptor when it goes; None if that is up to somebody else.
    """

    path: Location
    fd: int
    is_copy: bool = False
    supply: ObjectFile | None = None
    owner: object = None

    @property
    def version(self) -> Version:
        if self.supply is not None:
            return Version(self.path, str(self.path), self.supply.mark)
        found = os.fstat(self.fd)
        place = file_identity(Path(self.path))
        return Version(self.path, place, f"{found.st_size} {found.st_mtime_ns}")


def open_input(path: Location, stores: Stores | None = None) -> InputFile:
    """Opens a file of this machine, or an object.

    Nothing has to be closed.

    Args:
        stores: What the store of a URL is told, and its client.

    Raises:
        FilenameError: No store serves the URL, or a package is not installed.
        OptionError: The options are wrong.
        OSError: There is no such file, it cannot be read, or the store does not answer.
    """
    if isinstance(path, Url):
        supply = ObjectFile((stores or Stores()).client(path), path)
        return InputFile(path, supply.fd, supply=supply)
    file = _OpenFile(path)
    return InputFile(path, file.fd, owner=file)


def require_one_version(versions: Iterable[Version]) -> None:
    """Checks that each place has one version.

    Raises:
        CheckpointError: A file was replaced after the first has opened it: ESTALE.
    """
    found: dict[str, str] = {}
    for one in versions:
        if found.setdefault(one.place, one.mark) != one.mark:
            raise replaced(one.path)


class _OpenFile:
    """A file of this machine that is open as long as this lives."""

    def __init__(self, path: Path) -> None:
        # O_NONBLOCK: to open a pipe could take forever.
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        weakref.finalize(self, _close, self.fd).atexit = False  # the system closes it then


def _close(fd: int) -> None:
    with suppress(OSError):  # nothing was written
        os.close(fd)
