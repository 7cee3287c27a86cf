"""A file of this machine that an archive is written to. It is replaced as a whole."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from pyckpt import _core
from pyckpt.errors import FilenameError
from pyckpt.paths import links_followed
from pyckpt.storage.hidden_names import system_code
from pyckpt.storage.leftovers import remove_leftovers
from pyckpt.storage.new_folders import NewFolders

__all__ = ["LocalFile"]


class LocalFile:
    """See :class:`pyckpt.storage.target.Target`. ``prepare()`` makes the folder, and removes what
    dead processes have left there.

    Raises:
        FilenameError: The path exists and is not a regular file.
        PermissionError: It is a link that this process may not follow.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._folders = NewFolders()
        # A symbolic link stays: the file that it points to is replaced.
        self._target = links_followed(path)
        try:
            mode = self._target.stat().st_mode
        except OSError:  # absent or not accessible; the sink raises the error, if there is one
            return
        if not stat.S_ISREG(mode):
            raise FilenameError(f"{path} exists and is not a regular file", path=str(path))

    def sink(self, *, durable: bool) -> _core.Sink:
        return _core.file_sink(os.fsencode(self._target), durable, system_code())

    def prepare(self, *, durable: bool) -> None:
        self._folders.make(self._target.parent, durable=durable)
        remove_leftovers(self._target.parent)

    def prepare_commit(self, *, durable: bool) -> None:
        """Another save, which has failed, may have removed the folder that it had made."""
        self._folders.make(self._target.parent, durable=durable)

    def stop(self) -> None:
        """Nothing waits long for a disk."""

    def finish(self, *, durable: bool) -> None:
        """Nothing is left to do: the sink flushes the rest."""

    def end(self, *, is_there: bool) -> None:
        if is_there:
            self._folders.keep()
        else:
            self._folders.remove()
