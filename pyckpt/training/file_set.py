"""Files of several ranks that get their names together, or none of them does.

    add ... add ─▶ write ─▶ names for all files of all ranks ─▶ the pointer moves ─▶ old files go
                     │ exchange               │ exchange                │ exchange

A rank may have no file. Bytes are written when their file is added, or in the background: a set is
a ``Collected`` of pyckpt.training.background.

When a rank fails, or dies, the files of all others go, and the files that were there before come
back. Once all files of all ranks have their names, they stay, also if a rank dies then: whatever
the pointer names is whole.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pyckpt.archive.formats import STATES_MEMBER
from pyckpt.archive.writer import ArchiveWriter
from pyckpt.errors import CheckpointError
from pyckpt.options import WriteOptions
from pyckpt.paths import check_is_local
from pyckpt.ranks.exchange import Channel, decide, together
from pyckpt.storage.leftovers import bring_back
from pyckpt.storage.small_files import Replacement
from pyckpt.torch_format.records import Record
from pyckpt.training.several_files import progress_of, replace_state_records, state_records

__all__ = ["WRITING", "FileSet"]

WRITING = "writing the checkpoint"
"""What the ranks do first, for messages."""


class FileSet:
    """What one rank writes of the set.

    Call ``add()`` any number of times, then ``write()`` on every rank, then ``close()``.

    Args:
        options: How the files are written.
        writers_on_node: How many ranks of this machine write at the same time.

    Attributes:
        pointer: What moves when all files are there. On one rank at most.
    """

    def __init__(self, options: WriteOptions, writers_on_node: int) -> None:
        self.pointer: Replacement | None = None
        self._options = options
        self._writers_on_node = writers_on_node
        self._paths: list[Path] = []
        self._writers: list[ArchiveWriter] = []
        self._unwritten: list[ArchiveWriter] = []
        self._new_folders: list[Path] = []
        self._error: BaseException | None = None

    def add(self, path: Path, obj: Any, *, at_once: bool) -> None:
        """Adds a file, written as pyckpt.save does, but views without the rest of their storage.

        Never raises: the first error is raised by ``check()`` and ``write()``.

        Args:
            at_once: Whether the bytes are written before the call returns. Then ``obj`` is not
                needed any more. Else its memory must not change until ``write()`` has returned.
        """
        if self._error is not None:
            return
        try:
            writer = ArchiveWriter(path, self._options, writers_on_node=self._writers_on_node)
            self._writers.append(writer)
            self._paths.append(path)
            writer.add_object(STATES_MEMBER, obj, compact_views=True)
            if at_once:
                writer.write()
            else:
                self._unwritten.append(writer)
        except BaseException as error:
            self.fail(error)

    def add_folder(self, path: Path) -> None:
        """Makes a folder, which goes again if it is empty after a failure. Never raises."""
        try:
            check_is_local(os.fspath(path))
            missing = [folder for folder in (path, *path.parents) if not folder.exists()]
            path.mkdir(parents=True, exist_ok=True)
            self._new_folders += missing
        except (CheckpointError, OSError) as error:
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """Lets ``check()`` and ``write()`` raise ``error``, unless there was an earlier one."""
        if self._error is None:
            self._error = error

    def check(self) -> None:
        """Raises the first error of ``add()`` or ``fail()``. Only on this rank."""
        if self._error is not None:
            raise self._error

    @property
    def paths(self) -> list[Path]:
        """The files that this rank writes."""
        return self._paths

    def state_records(self) -> list[Record]:
        """The records of all bytes in the objects' own memory that have not been written."""
        return state_records(self._unwritten)

    def replace_state_records(self, records: Sequence[Record]) -> None:
        """Replaces ``state_records()``. The new records have the same order and sizes."""
        replace_state_records(self._unwritten, records)
        for writer in self._unwritten:
            writer.plan()

    @property
    def progress(self) -> tuple[int, int]:
        """Bytes written and in total, before compression."""
        return progress_of(self._writers)

    def give_up(self) -> None:
        """Lets ``write()`` fail soon. Any thread."""
        for writer in self._writers:
            writer.give_up()

    def write(
        self,
        channel: Channel,
        before: Callable[[], None] = lambda: None,
        after: Callable[[], None] = lambda: None,
    ) -> list[Path]:
        """Writes what has not been written, and gives all files their names. Collective.

        Args:
            before: Called before the bytes are read. If it raises, no file gets its name.
            after: Called when the bytes are written, and no file has its name yet. Likewise.

        Returns:
            The paths of all ranks, each valid on its rank's machine.

        Raises:
            CheckpointError: A rank failed, or died. All ranks raise it. After ``close()``, all is
                as it was before, unless all files had their names already: then the files stay,
                and the pointer is the old or the new one.
        """
        paths = together(WRITING, lambda: self._write(before, after), channel)
        # Then all files are there. After a failure of the next step nobody knows where the pointer
        # is, so they stay.
        every = [path for of_rank in paths for path in of_rank]
        try:
            decide("committing the checkpoint", self._commit, channel, self._keep)
        except CheckpointError:
            for path in every:  # for ranks that have died in the commit
                bring_back(path)
            raise
        together("committing the checkpoint", self._publish, channel)
        return every

    def close(self) -> None:
        """Removes what was not kept, brings old files back, and releases the objects.

        A folder goes only if it is empty when the rank that made it closes its set.
        """
        for writer in self._writers:
            writer.abandon()
        if self.pointer is not None:
            self.pointer.discard()
        for folder in sorted(self._new_folders, reverse=True):  # the inner ones first
            with suppress(OSError):  # it is not empty
                folder.rmdir()
        self._new_folders.clear()

    def _write(self, before: Callable[[], None], after: Callable[[], None]) -> list[Path]:
        """Writes all bytes, to files that have no names yet. Returns the paths."""
        try:
            self.check()
            before()
            for writer in self._unwritten:
                writer.write()
            if self.pointer is not None:
                self.pointer.prepare()
        finally:
            after()
        return self.paths

    def _commit(self) -> None:
        for writer in self._writers:
            writer.commit(keep_previous=True)

    def _publish(self) -> None:
        if self.pointer is not None:
            self.pointer.publish()

    def _keep(self) -> None:
        for writer in self._writers:
            writer.keep()
        self._new_folders.clear()
