"""Small files and links that are replaced as a whole."""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import suppress
from pathlib import Path

from pyckpt.storage.claim import Claim, sweep
from pyckpt.storage.flush import flush_folder
from pyckpt.storage.hidden_names import hidden_name, lock, unlock
from pyckpt.storage.leftovers import remove_leftovers

__all__ = ["Replacement", "replace_file", "replace_link"]


class Replacement:
    """The next contents of a small file, in two steps: all bytes to a hidden file, then the rename.

    So a full disk is noticed before anything else gets its name. Call ``discard()`` at last. A
    process that is killed between the steps leaves the hidden file, which the next one removes.
    """

    def __init__(self, path: Path, data: bytes, *, fsync: bool) -> None:
        self._path = path
        self._data = data
        self._fsync = fsync
        self._hidden = hidden_name(path)
        self._fd = -1  # locked for as long as the file is hidden

    def prepare(self) -> None:
        """Writes the hidden file. Removes those that dead processes have left.

        Raises:
            OSError: It cannot be written, or could not be renamed.
        """
        if self._path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(self._path))
        remove_leftovers(self._path.parent)
        self._fd = os.open(self._hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        lock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with open(self._fd, "wb", closefd=False) as file:
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
        self._close()
        if self._fsync:
            flush_folder(self._path.parent)

    def discard(self) -> None:
        """Removes the hidden file, if there is one. Ignores failures."""
        with suppress(OSError):
            self._hidden.unlink()
        self._close()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd != -1:
            unlock(fd)


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
    sweep(path.parent)
    claim = Claim(path)
    try:
        claim.new.symlink_to(target)
        claim.new.replace(path)
    finally:
        claim.release()
