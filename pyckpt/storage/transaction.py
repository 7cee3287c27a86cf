"""transaction: several files, of one rank or of several, that appear together or not at all."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from pyckpt.errors import CheckpointError, FilenameError, MixedFilesError
from pyckpt.options import WriteOptions
from pyckpt.paths import local_path
from pyckpt.ranks.exchange import Channel, begin_together, require_group, together
from pyckpt.ranks.file_identity import file_identity, machine
from pyckpt.staging.pending_saves import end_below, wait_for_file
from pyckpt.storage.flush import flush_tree
from pyckpt.storage.hidden_folder import HiddenFolder

__all__ = ["Transaction", "transaction"]

_BEGINNING = "beginning the transaction"


def transaction(
    folder: str | os.PathLike[str], process_group: Any = None, *, fsync: bool = True
) -> AbstractContextManager[Path]:
    """A context in which files are written that appear together as ``folder``, or not at all.

    It gives the path of a hidden folder beside ``folder``. Into it anybody may write, by any means:
    pyckpt, safetensors, json, another process. When the block ends, all is flushed to disk, and the
    hidden folder becomes ``folder`` in one rename. A folder that was there is replaced as a whole.
    It is removed when the new one is safe.

    Use it on every rank, or on those of a group. The ranks may write different files into it; those
    that write none must be in it too. If the block raises on a rank, all ranks raise, the hidden
    folder is removed, and a folder that was there is unchanged. Ranks wait for each other at the
    begin and at the end. They may take as long as they like in between.

    Where ranks do not share the file system, each machine has a folder of its own. These get their
    names one after another, the first rank's at last, and all go back if one fails.

    What a killed process leaves is removed by the next transaction in the same parent folder, if it
    is known that the process is dead. On file systems that several machines may have mounted, that
    is known only under the same kernel, until the machine is started again.

    File systems that cannot exchange names (NFS, Lustre, FUSE often) replace a folder in two
    renames. Readers find none for a moment. A process that is killed in that moment leaves none,
    and the old one hidden beside it; the next transaction brings it back.

    The end of the block waits for asynchronous saves into the hidden folder. An error of one of
    them is an error of the block.

    Args:
        folder: The same on every rank. Parents are made. A symbolic link stays: the folder that it
            leads to is replaced.
        process_group: The ranks that take part: a group of torch.distributed, or a DeviceMesh with
            one dimension. None means all.
        fsync: Whether to wait until the disk has all files, whoever wrote them, and their names.

    Raises:
        FilenameError: ``folder`` exists and is no folder, or is a mount point or the root.
        MixedFilesError: Ranks have different folders. Nothing was made.
        CheckpointError: A rank failed. Every rank raises it. On the failing rank the exception of
            its block is the cause. With one rank, Ctrl-C, SystemExit and exceptions of signal
            handlers pass unchanged.
    """
    return Transaction(folder, process_group, fsync)


@dataclass(frozen=True)
class _Place:
    """Where a rank is, and what it is going to make. Every rank knows those of all ranks."""

    path: str  # as given, made absolute
    identity: str  # see file_identity
    machine: str


class Transaction(AbstractContextManager[Path]):
    """See ``transaction``.

    Args:
        in_background: Whether the block ends in pyckpt's background thread, which has a channel of
            its own. ``__exit__`` is called there.

    Attributes:
        channel: For exchanges between the ranks in the thread in which the block begins.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        process_group: Any,
        fsync: bool,
        *,
        in_background: bool = False,
    ) -> None:
        self._folder = folder
        self._process_group = process_group
        self._fsync = fsync
        self._in_background = in_background
        self.channel = Channel()
        self._ending = Channel()
        self._target = Path()
        self._path = Path()
        self._is_flushing = False
        self._makers: list[int] = []  # the ranks that make and name a folder, by place
        self._hidden: HiddenFolder | None = None

    def __enter__(self) -> Path:
        channels = begin_together(
            "transaction", 2 if self._in_background else 1, self._process_group
        )
        self.channel, self._ending = channels[0], channels[-1]
        try:
            self._begin()
        except BaseException:
            self.abandon()
            raise
        return self._path

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._end(error)
        finally:
            self.abandon()

    def _begin(self) -> None:
        channel = self.channel
        places = together(_BEGINNING, self._prepare, channel)
        self._check_alike(places)
        identities = [place.identity for place in places]
        machines = [place.machine for place in places]
        is_maker = identities.index(identities[channel.rank]) == channel.rank
        self._is_flushing = machines.index(machines[channel.rank]) == channel.rank
        names = together(_BEGINNING, self._make if is_maker else lambda: None, channel)
        makers = together(_BEGINNING, lambda: self._find(names), channel)
        self._makers = sorted(set(makers))
        if any(makers[maker] != maker for maker in self._makers):
            raise CheckpointError(
                f"some ranks share the file system of {self._target}, and some do not see it alike",
                path=str(self._target),
            )
        if channel.rank not in self._makers:
            self.abandon()

    def _prepare(self) -> _Place:
        """Finds every error that can be found before something is made."""
        require_group()
        WriteOptions(fsync=self._fsync)
        path = local_path(self._folder)
        self._target = Path(os.path.realpath(path))
        wait_for_file(path)  # a removal under way would take the new folder
        _check_target(self._target)
        return _Place(str(path.absolute()), file_identity(self._target), machine())

    def _check_alike(self, places: list[_Place]) -> None:
        for rank, place in zip(self.channel.members, places, strict=True):
            if place.path != places[0].path:
                raise MixedFilesError(
                    f"rank {self.channel.members[0]} would make {places[0].path}, and rank {rank} "
                    f"{place.path}: name the same folder on every rank",
                    rank=rank,
                    path=place.path,
                )

    def _make(self) -> str:
        self._hidden = HiddenFolder(self._target, fsync=self._fsync)
        return self._hidden.path.name

    def _find(self, names: list[str | None]) -> int:
        """Finds the hidden folder that this rank writes into. Returns the place of its maker.

        A shared file system that was not recognized as shared would have several. The one of the
        lowest rank counts, on all ranks that see it.
        """
        for maker, name in enumerate(names):
            if name is not None and (self._target.parent / name).is_dir():
                self._path = self._target.parent / name
                return maker
        raise CheckpointError(
            f"the hidden folder beside {self._target}, which another rank made, is not seen",
            path=str(self._target),
        )

    def _end(self, error: BaseException | None) -> None:
        target, channel = self._target, self._ending
        together(f"writing {target}", lambda: self._end_block(error), channel)
        if self._fsync:
            together(f"flushing {target}", self._on_flushing_ranks(), channel)
        # The first rank's folder comes last: it makes the set complete.
        for makers in filter(None, (self._makers[1:], self._makers[:1])):
            is_turn = channel.rank in makers
            together(f"committing {target}", self._commit if is_turn else _nothing, channel)
        if self._hidden is not None:
            self._hidden.keep()

    def _end_block(self, error: BaseException | None) -> None:
        end_below(self._path, give_up=error is not None)
        if error is not None:
            raise error

    def _on_flushing_ranks(self) -> Callable[[], None]:
        """One rank of each machine flushes what all of its ranks have written."""
        return (lambda: flush_tree(self._path)) if self._is_flushing else _nothing

    def _commit(self) -> None:
        assert self._hidden is not None
        _check_target(self._target)
        self._hidden.commit()

    def abandon(self) -> None:
        """Removes what is not committed. Not collective: in place of the end, if all ranks fail."""
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
