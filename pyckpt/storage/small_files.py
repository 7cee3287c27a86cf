"""Small files and links that are replaced as a whole."""

from __future__ import annotations

import errno
import os
import secrets
from contextlib import suppress
from pathlib import Path

from pyckpt.storage.flush import flush_folder

__all__ = ["Replacement", "replace_file", "replace_link"]


class Replacement:
    """The next contents of a small file, in two steps: all bytes to a hidden file, then the rename.

    So a full disk is noticed before anything else gets its name. Call ``discard()`` at last. A
    process that is killed between the steps leaves the hidden file.
    """

    def __init__(self, path: Path, data: bytes, *, fsync: bool) -> None:
        self._path = path
        self._data = data
        self._fsync = fsync
        self._hidden = path.with_name(f".{path.name}.{secrets.token_hex(8)}")

    def prepare(self) -> None:
        """Writes the hidden file.

        Raises:
            OSError: It cannot be written, or could not be renamed.
        """
        if self._path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(self._path))
        with self._hidden.open("xb") as file:
            file.write(self._data)
            file.flush()
            if self._fsync:
                os.fsync(file.fileno())

    def publish(self) -> None:
        """Gives the hidden file its name.

        Raises:
            OSError: It cannot be renamed, and the old file is unchanged. Or the disk does not take
                the new name.
        """
        self._hidden.replace(self._path)
        if self._fsync:
            flush_folder(self._path.parent)

    def discard(self) -> None:
        """Removes the hidden file, if there is one. Ignores failures."""
        with suppress(OSError):
            self._hidden.unlink()


def replace_file(path: Path, data: bytes, *, fsync: bool) -> None:
    """Gives the file ``path`` the contents ``data``, as a whole or not at all.

    Raises:
        OSError: It could not be written. An earlier file is unchanged.
    """
    replacement = Replacement(path, data, fsync=fsync)
    try:
        replacement.prepare()
        replacement.publish()
    finally:
        replacement.discard()


def replace_link(path: Path, target: str) -> None:
    """Makes ``path`` a symbolic link to ``target``; an earlier link is replaced in one step.

    Raises:
        OSError: It could not be made. An earlier one is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with suppress(FileNotFoundError):  # of a process that died
        temporary.unlink()
    temporary.symlink_to(target)
    try:
        temporary.replace(path)
    except BaseException:
        temporary.unlink()
        raise
