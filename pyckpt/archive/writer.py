"""Writes one archive in two steps: all bytes to a sink, then the commit."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyckpt import _core
from pyckpt.archive.formats import FileFormat, deflate_format, file_format
from pyckpt.archive.member_names import folders_of, require_utf8
from pyckpt.errors import CheckpointError, OptionError
from pyckpt.options import WriteOptions
from pyckpt.progress import reporting
from pyckpt.storage.local_file import LocalFile
from pyckpt.storage.target import Target
from pyckpt.storage.urls import Location
from pyckpt.torch_format.mmap_guard import guarded
from pyckpt.torch_format.records import Reader, Record
from pyckpt.torch_format.serialize import serialize

__all__ = ["ArchiveWriter", "Segment"]

_FOLDER_MODE = 0o755
_ROOT_MODE = 0o700  # as in Composer's archives: the mode of its temporary folder
_FILE_MODE = 0o644


@dataclass(frozen=True)
class Segment:
    """Bytes of a member.

    Attributes:
        reader: Fetches the bytes; its offsets count from the segment's start.
        nbytes: Number of bytes.
        element_nbytes: Size of one number in them. It helps the compressors.
    """

    reader: Reader
    nbytes: int
    element_nbytes: int = 1


# Records become torch's zip file. Segments and bytes are written unchanged. A Path is a file to
# copy from. None is a folder.
Content = list[Record] | tuple[Segment, ...] | bytes | Path | None


class ArchiveWriter:
    """Writes one archive in two steps: all bytes to a sink, then the commit.

    For a file of this machine, the sink is a hidden file, and the commit is the rename. For an
    object in a store, the sink is an upload, and the commit lets the object appear.

    Add members, call ``write()``, then ``commit()``. ``abandon()`` is allowed at any time before
    ``commit()``. Used as a context manager, it abandons what was not committed. Only one thread at
    a time may use it, except for ``progress`` and ``give_up()``.

    Args:
        target: Where to write. A path is a file of this machine; ``write()`` creates its folder.
        options: How to write.
        writers_on_node: How many processes on this machine write at the same time.
        kind: The format. None means that the suffix of the path decides.

    Attributes:
        is_deflated: Whether the file is torch's zip with deflated records. It is made of an object
            or of records, and of nothing else.

    Raises:
        FilenameError: The suffix is unknown, or the path exists and is not a regular file.
        OptionError: The format does not have this level.
    """

    def __init__(
        self,
        target: Path | Target,
        options: WriteOptions,
        *,
        writers_on_node: int = 1,
        kind: FileFormat | None = None,
    ) -> None:
        path: Location = target if isinstance(target, Path) else target.path
        kind = kind or file_format(path)
        self.path = path
        self._target = LocalFile(target) if isinstance(target, Path) else target
        self._members: dict[str, tuple[int, Content]] = {}
        self._places: dict[str, tuple[int, int]] = {}
        self._is_tar = kind.is_tar
        self._planned = False
        self._given_up = False
        self._progress_hook = options.progress
        self._durable = options.fsync
        self._options: dict[str, Any] = {
            "tar": kind.is_tar,
            "deflated": _deflates(kind, options.compression_level),
            "level": _level(path, kind, options.compression_level),
            "threads": options.threads(writers_on_node),
            "mtime": int(time.time()),
            "uid": os.geteuid(),
            "gid": os.getegid(),
        }
        self.is_deflated = bool(self._options["deflated"])
        self._row = kind.row
        self._writer = self._new_writer()

    def __enter__(self) -> ArchiveWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.abandon()

    def add_object(
        self, name: str, obj: Any, *, compact_views: bool = False, named: list[Any] | None = None
    ) -> None:
        """Adds a member in torch's format. Its memory must not change until ``write()`` returns.

        See :func:`pyckpt.torch_format.serialize.serialize` for ``compact_views`` and ``named``.
        """
        self.add_records(name, serialize(obj, compact_views=compact_views, named=named))

    def add_records(self, name: str, records: list[Record]) -> None:
        """Adds a member in torch's format with these records, whose names have a root folder."""
        self._members[name] = (_FILE_MODE, guarded(records) if self.is_deflated else records)

    def add_bytes(self, name: str, data: bytes) -> None:
        """Adds a member with these bytes."""
        self._members[name] = (_FILE_MODE, data)

    def add_file(self, name: str, path: Path) -> None:
        """Adds a member with the bytes of the file at ``path``, which ``write()`` reads."""
        self._members[name] = (stat.S_IMODE(path.stat().st_mode), path)

    def add_segments(self, name: str, segments: Sequence[Segment], mode: int = _FILE_MODE) -> None:
        """Adds a member with the bytes of all segments in order, which ``write()`` reads."""
        self._members[name] = (mode, tuple(segments))

    def add_directory(self, name: str) -> None:
        """Adds a folder. The parent folders of members are added automatically."""
        self._members[name] = (_FOLDER_MODE, None)

    def state_records(self) -> list[Record]:
        """The records of all members whose bytes are in the objects' own memory."""
        return [
            record
            for _, content in self._members.values()
            if isinstance(content, list)
            for record in content
            if record.is_storage
        ]

    def replace_state_records(self, records: Iterable[Record]) -> None:
        """Replaces ``state_records()``. The new records have the same order and sizes."""
        following = iter(records)
        for name, (mode, content) in self._members.items():
            if isinstance(content, list):
                replaced = [next(following) if r.is_storage else r for r in content]
                self._members[name] = (mode, replaced)

    @property
    def progress(self) -> tuple[int, int]:
        """Bytes written so far, and the total, before compression. Any thread may ask.

        The total is 0 before ``plan()``, and final after it.
        """
        return self._writer.progress

    def plan(self) -> None:
        """Sorts the members and fixes the place of each. None may be added afterwards.

        Raises:
            OptionError: The name of a member is not UTF-8, as the names in a tar are.
        """
        self._planned = True
        self._places = self._planned_in(self._writer)

    def sizes(self) -> dict[str, int]:
        """The size of each file that was added, before compression. More may be added afterwards.

        Raises:
            OptionError: As in ``plan()``.
        """
        return {name: nbytes for name, (_, nbytes) in self._planned_in(self._new_writer()).items()}

    def _new_writer(self) -> _core.ArchiveWriter:
        sink = self._target.sink(durable=self._durable)
        return _core.ArchiveWriter(sink, self._row, **self._options)

    def _planned_in(self, writer: _core.ArchiveWriter) -> dict[str, tuple[int, int]]:
        """Adds all members to a writer of the core. Returns the places of the files."""
        if self._is_tar:
            writer.add_directory("", _ROOT_MODE)
        places = {}
        for name, (mode, content) in self._in_order():
            require_utf8(name)
            if content is None:
                writer.add_directory(name, mode)
                continue
            place = _planned_file(writer, name, mode, content, self.is_deflated)
            if place is not None:
                places[name] = place
        return places

    def place(self, name: str) -> tuple[int, int]:
        """Where the data of a member is in the decompressed file: (offset, nbytes).

        It is known after ``plan()``. The member must be a file, and its records not deflated.
        """
        return self._places[name]

    def write(self) -> int:
        """Writes all members, sorted, to the sink; returns the size in bytes.

        Then the objects are released.

        Raises:
            OSError: The sink cannot be written to. A hidden file is removed.
            CheckpointError: ``give_up()`` was called.
        """
        if not self._planned:
            self.plan()
        self._target.prepare(durable=self._durable)
        with reporting(self._progress_hook, f"saving {self.path.name}") as report:

            def tell(done: int, total: int | None) -> None:
                if self._given_up:
                    raise self._given_up_error()
                if report is not None:
                    report(done, total)

            try:
                nbytes = self._writer.write(tell)
            except OSError as error:
                if self._given_up:
                    raise self._given_up_error() from error
                raise
            self._target.finish(durable=self._durable)
            tell(*self.progress)
        self._members.clear()
        return nbytes

    def give_up(self) -> None:
        """Lets ``write()`` raise a CheckpointError soon. Any thread."""
        self._given_up = True
        self._target.stop()

    def _given_up_error(self) -> CheckpointError:
        return CheckpointError("the save was given up", path=str(self.path))

    def commit(self, *, keep_previous: bool = False) -> None:
        """Renames the new file to its target, or lets the object appear.

        With ``keep_previous``, the previous file is kept until ``keep()``, and ``restore()`` can
        bring it back. A previous object cannot be brought back, unless its bucket has versions.
        """
        self._target.prepare_commit(durable=self._durable)
        self._writer.commit(keep_previous)
        if not keep_previous:
            self._target.end(is_there=True)

    def keep(self) -> None:
        """Removes the previous file, which ``commit(keep_previous=True)`` has kept."""
        self._writer.keep()
        self._target.end(is_there=True)

    def restore(self) -> None:
        """Brings the previous file back. If there was none, removes the new one."""
        self._writer.restore()

    def abandon(self) -> None:
        """Removes the new file unless it is final, and releases the objects.

        It is final after ``commit()``. With ``keep_previous`` it is final only after ``keep()``;
        before that, the previous file is brought back.
        """
        self._writer.abandon()
        self._target.end(is_there=False)
        self._members.clear()

    def _in_order(self) -> list[tuple[str, tuple[int, Content]]]:
        folders = {
            folder: (_FOLDER_MODE, None) for name in self._members for folder in folders_of(name)
        }
        return sorted({**folders, **self._members}.items(), key=lambda item: item[0].split("/"))


def _planned_file(
    writer: _core.ArchiveWriter,
    name: str,
    mode: int,
    content: list[Record] | tuple[Segment, ...] | bytes | Path,
    deflated: bool,
) -> tuple[int, int] | None:
    if isinstance(content, bytes):
        return writer.add_bytes(name, mode, content)
    if isinstance(content, Path):
        return writer.add_file(name, mode, os.fsencode(content))
    if isinstance(content, tuple):
        segments = [(s.nbytes, s.element_nbytes, s.reader) for s in content]
        return writer.add_segments(name, mode, segments)
    if deflated:
        writer.add_deflated_torch_file([record[:5] for record in content])
        return None
    return writer.add_torch_file(name, mode, [record[:5] for record in content])


def _deflates(kind: FileFormat, level: int | None) -> bool:
    """Whether the records of torch's zip file are deflated."""
    return not kind.is_tar and kind.row is None and level not in (None, 0)


def _level(path: Location, kind: FileFormat, level: int | None) -> int:
    row = kind.row
    if not kind.is_tar and row is None and level is not None:
        row = deflate_format()
    levels = None if row is None else row.levels
    if row is None or levels is None:
        if level is not None:
            raise OptionError(f"compression_level is {level}, but {path.name!r} is not compressed")
        return 0
    if level is None:
        return levels.standard
    if not levels.lowest <= level <= levels.highest:
        raise OptionError(
            f"compression_level of {row.compression} is {levels.lowest} to {levels.highest}, "
            f"not {level}, for {path.name!r}"
        )
    return level
