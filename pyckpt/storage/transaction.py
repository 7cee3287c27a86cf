"""transaction: several files, of one rank or of several, that appear together or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from pyckpt.errors import CheckpointError, MixedFilesError, OptionError
from pyckpt.options import WriteOptions
from pyckpt.paths import is_url, path_text
from pyckpt.ranks.exchange import Channel, begin_together, require_group, together
from pyckpt.ranks.file_identity import machine
from pyckpt.staging.pending_saves import end_below
from pyckpt.storage.destination import Crew, Destination
from pyckpt.storage.renamed_folder import RenamedFolder
from pyckpt.storage.uploaded_folder import UploadedFolder
from pyckpt.storage.urls import StorageOptions, Url, location

__all__ = ["Transaction", "transaction"]

_BEGINNING = "beginning the transaction"


def transaction(
    folder: str | os.PathLike[str],
    process_group: Any = None,
    *,
    fsync: bool = True,
    storage_options: StorageOptions = None,
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

    If ``folder`` is a URL, the hidden folder is in the system's temporary folder, which TMPDIR
    names, and needs room for all files there. When the block ends, all ranks upload, and when all
    have uploaded, the objects appear, the first rank's last. Then those that were there before and
    are not among the new ones are removed. A store has no folders that change at once: readers find
    old objects and new ones for as long as that takes, and what has appeared before a failure can
    be taken back only where the store can do so. A name that is new for each save avoids both. See
    "A folder of objects" in docs/stores.md, also for links, empty folders and killed processes.

    Args:
        folder: The same on every rank. Parents are made. A symbolic link stays: the folder that it
            leads to is replaced. Or a URL, such as ``"s3://bucket/run/step-500"``.
        process_group: The ranks that take part: a group of torch.distributed, or a DeviceMesh with
            one dimension. None means all.
        fsync: Whether to wait until the disk has all files, whoever wrote them, and their names.
            With a URL it makes no difference: what a store has taken is safe.
        storage_options: As in ``save``.

    Raises:
        FilenameError: ``folder`` exists and is no folder, or is a mount point or the root. With a
            URL: it is an object or a whole bucket, or no store serves it. Or what is written is no
            file, or a link that leads out of the folder.
        MixedFilesError: Ranks have different folders. Nothing was made.
        DuplicateFileError: With a URL, two machines have files of the same name.
        OptionError: ``storage_options`` are wrong.
        CheckpointError: A rank failed. Every rank raises it. On the failing rank the exception of
            its block is the cause. With one rank, Ctrl-C, SystemExit and exceptions of signal
            handlers pass unchanged.
    """
    return Transaction(lambda: _destination(folder, fsync, storage_options), process_group)


def _destination(
    folder: str | os.PathLike[str], fsync: bool, options: StorageOptions
) -> Destination:
    WriteOptions(fsync=fsync)
    text = path_text(folder)
    place: str | os.PathLike[str] = folder
    if is_url(text):
        # A slash at the end changes nothing. But "s3://" is more than slashes.
        inside = location(f"{text.rstrip('/')}/x" if isinstance(folder, str) else folder)
        if isinstance(inside, Url):
            return UploadedFolder(Url(inside.rpartition("/")[0]), options)
        place = inside.parent
    if options:
        raise OptionError(f"storage_options are for URLs, and {place} is a folder of this machine")
    return RenamedFolder(place, fsync=fsync)


@dataclass(frozen=True)
class _Place:
    """Where a rank is, and what it is going to make. Every rank knows those of all ranks."""

    path: str  # as given, made absolute
    identity: str  # see file_identity
    machine: str


class Transaction(AbstractContextManager[Path]):
    """See ``transaction``.

    Args:
        choose: Called on every rank at the begin. It may raise.
        in_background: Whether the block ends in pyckpt's background thread, which has a channel of
            its own. ``__exit__`` is called there.

    Attributes:
        channel: For exchanges between the ranks in the thread in which the block begins.
    """

    def __init__(
        self,
        choose: Callable[[], Destination],
        process_group: Any,
        *,
        in_background: bool = False,
    ) -> None:
        self._choose = choose
        self._process_group = process_group
        self._in_background = in_background
        self.channel = Channel()
        self._ending = Channel()
        self._path = Path()
        self._places: list[_Place] = []
        self._makers: list[int] = []  # by rank: who made its folder
        self._chosen: Destination | None = None

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

    @property
    def _destination(self) -> Destination:
        assert self._chosen is not None
        return self._chosen

    def _begin(self) -> None:
        channel = self.channel
        self._places = together(_BEGINNING, self._prepare, channel)
        self._check_alike()
        identities = [place.identity for place in self._places]
        is_maker = identities.index(identities[channel.rank]) == channel.rank
        make = self._destination.make if is_maker else lambda: None
        names = together(_BEGINNING, make, channel)
        self._makers = together(_BEGINNING, lambda: self._find(names), channel)
        if any(self._makers[maker] != maker for maker in self._makers):
            target = self._destination.target
            raise CheckpointError(
                f"some ranks share the file system of {target}, and some do not see it alike",
                path=str(target),
            )
        if channel.rank not in self._makers:
            self._destination.close()  # what it has made, another rank has made as well

    def _prepare(self) -> _Place:
        """Finds every error that can be found before something is made."""
        require_group()
        self._chosen = self._choose()
        return _Place(self._chosen.given, self._chosen.identity, machine())

    def _check_alike(self) -> None:
        places = self._places
        for rank, place in zip(self.channel.members, places, strict=True):
            if place.path != places[0].path:
                raise MixedFilesError(
                    f"rank {self.channel.members[0]} would make {places[0].path}, and rank {rank} "
                    f"{place.path}: name the same folder on every rank",
                    rank=rank,
                    path=place.path,
                )

    def _find(self, names: list[str | None]) -> int:
        """Finds the hidden folder that this rank writes into. Returns the place of its maker.

        A shared file system that was not recognized as shared would have several. The one of the
        lowest rank counts, on all ranks that see it.
        """
        parent, target = self._destination.parent, self._destination.target
        for maker, name in enumerate(names):
            if name is not None and (parent / name).is_dir():
                self._path = parent / name
                return maker
        raise CheckpointError(
            f"the hidden folder for {target} in {parent}, which another rank made, is not seen",
            path=str(target),
        )

    def _end(self, error: BaseException | None) -> None:
        destination = self._destination
        together(f"writing {destination.target}", lambda: self._end_block(error), self._ending)
        machines = tuple(place.machine for place in self._places)
        crew = Crew(self._ending, tuple(self._makers), machines)
        destination.seal(self._path, crew)
        destination.commit(crew)

    def _end_block(self, error: BaseException | None) -> None:
        end_below(self._path, give_up=error is not None)
        if error is not None:
            raise error

    def abandon(self) -> None:
        """Removes what is not committed. Not collective: in place of the end, if all ranks fail."""
        if self._chosen is not None:
            self._chosen.close()
