"""What killed processes have left of files that they were writing.

csrc/write/file_sink.h says which hidden names there are, for a file that is not complete and for
the one before it. The next save in the same folder removes them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pyckpt.storage.hidden_names import (
    CODE,
    LONGEST_CUT_NBYTES,
    cut,
    if_dead,
    is_seen_from_here,
)

__all__ = ["bring_back", "remove_leftovers"]

_HIDDEN = re.compile(rf"\.(.*)\.({CODE})-[0-9a-f]{{16}}\.(tmp|previous)", re.DOTALL)


def remove_leftovers(folder: Path) -> None:
    """Removes what dead processes of this user have left in a folder.

    What cannot be known to be dead stays: see pyckpt.storage.hidden_names. Nothing is raised. A
    file that had made room, and that nothing has replaced, gets its name back.
    """
    with suppress(OSError):
        for path, name, is_previous in _hidden(folder):
            target = folder / name
            if is_previous and not os.path.lexists(target):
                if len(os.fsencode(name)) < LONGEST_CUT_NBYTES:
                    _settle(path, target)
            else:
                _settle(path, None)


def bring_back(target: Path) -> None:
    """Lets the file before take its place again, if a process has died that had replaced it.

    It is for those who know that the save has failed. Otherwise as ``remove_leftovers``.
    """
    with suppress(OSError):
        for path, name, is_previous in _hidden(target.parent):
            if is_previous and name == cut(target.name):
                _settle(path, target)


def _hidden(folder: Path) -> Iterator[tuple[Path, str, bool]]:
    """The hidden files, the names that they are for, and whether each is the file before."""
    with os.scandir(folder) as entries:
        for entry in entries:
            found = _HIDDEN.fullmatch(entry.name)
            if found is not None and is_seen_from_here(found[2], folder):
                yield folder / entry.name, found[1], found[3] == "previous"


def _settle(path: Path, target: Path | None) -> None:
    """Renames a dead process's file to ``target``, or removes it."""
    with suppress(OSError), if_dead(path, os.O_RDONLY) as fd:
        if fd is None:
            return
        if target is not None:
            path.replace(target)
        path.unlink(missing_ok=True)  # a rename leaves it if both are one file already
