"""A transaction's folder on a disk: it is written beside its place, and renamed at the end."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from pyckpt.errors import FilenameError
from pyckpt.options import WriteOptions
from pyckpt.paths import links_followed, local_path
from pyckpt.ranks.exchange import decide, together
from pyckpt.ranks.file_identity import file_identity
from pyckpt.staging.pending_saves import wait_for_file
from pyckpt.storage.destination import Crew, Destination
from pyckpt.storage.flush import flush_tree
from pyckpt.storage.hidden_folder import HiddenFolder

__all__ = ["RenamedFolder"]


class RenamedFolder(Destination):
    """See Destination.

    Raises:
        FilenameError: ``folder`` is a URL, or exists and is no folder, or is a mount point.
        PermissionError: It is a link that this process may not follow.
    """

    def __init__(self, folder: str | os.PathLike[str], *, fsync: bool) -> None:
        WriteOptions(fsync=fsync)
        path = local_path(folder)
        self.given = str(path.absolute())
        self.target = links_followed(path)
        self.parent = self.target.parent
        self._fsync = fsync
        self._hidden: HiddenFolder | None = None
        wait_for_file(path)  # a removal under way would take the new folder
        _check_target(self.target)
        self.identity = file_identity(self.target)

    def make(self) -> str:
        self._hidden = HiddenFolder(self.target, fsync=self._fsync)
        return self._hidden.path.name

    def seal(self, folder: Path, crew: Crew) -> None:
        """One rank of each machine flushes what all of its ranks have written."""
        if self._fsync:
            flush = (lambda: flush_tree(folder)) if crew.is_first_on_machine else _nothing
            together(f"flushing {self.target}", flush, crew.channel)

    def commit(self, crew: Crew) -> None:
        # The first rank's folder comes last: it makes the set complete.
        doing, rank = f"committing {self.target}", crew.channel.rank
        first, *others = crew.all_makers()
        if others:
            together(doing, self._commit if rank in others else _nothing, crew.channel)
        decide(doing, self._commit if rank == first else _nothing, crew.channel, self._keep)

    def _commit(self) -> None:
        assert self._hidden is not None
        _check_target(self.target)
        self._hidden.commit()

    def _keep(self) -> None:
        if self._hidden is not None:
            self._hidden.keep()

    def close(self) -> None:
        if self._hidden is not None:
            self._hidden.close()
            self._hidden = None


def _check_target(target: Path) -> None:
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(mode):
        raise FilenameError(f"{target} exists and is not a folder", path=str(target))
    if os.path.ismount(target):
        raise FilenameError(
            f"{target} is a mount point, which no rename can replace: name a folder in it",
            path=str(target),
        )


def _nothing() -> None:
    """The step of a rank that has nothing to do."""
