"""Folders that are made for something, and go again if it does not appear."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from pyckpt.storage.flush import flush_folder

__all__ = ["NewFolders"]


class NewFolders:
    """The folders that one save or transaction has made, so far."""

    def __init__(self) -> None:
        self._made: list[Path] = []

    def make(self, folder: Path, *, durable: bool) -> None:
        """Makes ``folder`` and its parents. If ``durable``, the disk has their names then.

        It may be called again: another one who has failed may have removed them.

        Raises:
            OSError: One cannot be made or flushed. FileExistsError: ``folder`` is a file.
        """
        missing = []
        nearest = folder
        while not nearest.exists():
            missing.append(nearest)
            nearest = nearest.parent
        if not missing and not folder.is_dir():
            folder.mkdir()  # raises what is right for it
        for one in reversed(missing):
            with suppress(FileExistsError):  # somebody else was quicker, and may fail
                one.mkdir()
                self._made.append(one)
        if durable:
            for one in missing:
                flush_folder(one.parent)

    def keep(self) -> None:
        """They stay."""
        self._made.clear()

    def remove(self) -> None:
        """Removes those in which nothing is. Failures are ignored."""
        while self._made:
            with suppress(OSError):  # somebody else uses it
                self._made.pop().rmdir()
