"""A folder that is written under a hidden name, and gets its own at the end.

It is for folders what csrc/write/file_sink.h is for files:

    HiddenFolder --anybody writes into path--> commit --> keep      (the new folder stays)

``close()`` comes last. Without ``keep()`` it brings the old folder back and removes the new one.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Literal

from pyckpt import _core
from pyckpt.storage.claim import Claim, is_there, sweep
from pyckpt.storage.flush import flush_folder
from pyckpt.storage.new_folders import NewFolders

__all__ = ["HiddenFolder"]

_LOGGER = logging.getLogger("pyckpt")


class HiddenFolder:
    """A new folder beside ``target``, which takes its place at ``commit()``.

    Leftovers of dead processes beside it are swept before it is made. Parents are made.

    Args:
        target: A folder or nothing. Not a symbolic link.
        fsync: Whether ``commit()`` waits until the disk has the new name.

    Attributes:
        path: The hidden name.

    Raises:
        OSError: It cannot be made.
    """

    def __init__(self, target: Path, *, fsync: bool) -> None:
        self._target = target
        self._fsync = fsync
        # How the new folder got its name: there was no other, or in one step, or in two.
        self._how: Literal["named", "exchanged", "moved"] | None = None
        self._folders = NewFolders()
        sweep(target.parent)
        try:
            self._folders.make(target.parent, durable=fsync)
            self._claim = Claim(target)
        except BaseException:
            self._folders.remove()
            raise
        self.path = self._claim.new
        try:
            self.path.mkdir()
        except BaseException:
            self.close()
            raise

    def commit(self) -> None:
        """Gives the new folder its name. The old one is hidden from then on.

        Where the file system can exchange names, readers find the old folder or the new one at any
        time. Else they find neither for a moment.

        Raises:
            OSError: It failed. Close the folder.
        """
        if not is_there(self._target):
            self.path.rename(self._target)
            self._how = "named"
        elif _core.exchange_names(os.fsencode(self.path), os.fsencode(self._target)):
            self._how = "exchanged"
        else:
            self._target.rename(self._claim.old)
            self._how = "moved"
            self.path.rename(self._target)
        if self._fsync:
            flush_folder(self._target.parent)

    def keep(self) -> None:
        """Makes ``commit()`` final."""
        self._how = None
        self._folders.keep()

    def close(self) -> None:
        """Goes back if the folder is not kept, and removes what is hidden. Failures are logged.

        Parents that were made go as well, if the folder is not kept.
        """
        try:
            self._go_back()
        except OSError as error:
            _LOGGER.warning("%s could not be restored, and is new: %s", self._target, error)
        try:
            self._claim.release()
        except OSError as error:
            _LOGGER.warning(
                "what is hidden beside %s could not be removed: %s. The next transaction in this "
                "folder tries it again.",
                self._target,
                error,
            )
        self._folders.remove()

    def _go_back(self) -> None:
        how, self._how = self._how, None
        if how == "exchanged":
            _core.exchange_names(os.fsencode(self.path), os.fsencode(self._target))
        elif how is not None and not is_there(self.path):
            self._target.rename(self.path)
        # Where the old folder was moved, the claim brings it back: it does so for dead processes.
