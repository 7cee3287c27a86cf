"""One archive, written in two steps: everything to a hidden file, then the name."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyckpt import _core
from pyckpt.archive.formats import archive_format
from pyckpt.errors import FilenameError, OptionError
from pyckpt.options import WriteOptions
from pyckpt.progress import reporting
from pyckpt.torch_format.records import Reader, Record
from pyckpt.torch_format.serialize import serialize

__all__ = ["ArchiveWriter", "Segment"]

_FOLDER_MODE = 0o755
_ROOT_MODE = 0o700  # what Composer's archives have: its temporary folder's
_FILE_MODE = 0o644


@dataclass(frozen=True)
class Segment:
    """Bytes of a member.

    Attributes:
        reader: Fetches them; its offsets count from the segment's start.
        nbytes: How many there are.
        element_nbytes: Size of the numbers in them, which tells compressors where to look.
    """

    reader: Reader
    nbytes: int
    element_nbytes: int = 1


# Records become torch's zip file, segments are written as they are, a path is that of a file, and
# None is a folder.
Content = list[Record] | tuple[Segment, ...] | Path | None


class ArchiveWriter:
    """Writes one archive in two steps: everything to a hidden file, then the name.

    Add members; ``write()``; then ``commit()``, or ``abandon()`` at any time before. Used as a
    context manager, it abandons what was not committed. One thread at a time, but for ``progress``.

    Args:
        path: The file; its suffix decides the format. Its folder is created by ``write()``.
        options: How to write.
        writers_on_node: How many processes of this machine write at the same time.

    Raises:
        FilenameError: The suffix is unknown, or the path is not a regular file.
        OptionError: The format has no such level.
    """

    def __init__(self, path: Path, options: WriteOptions, *, writers_on_node: int = 1) -> None:
        row = archive_format(path)
        self.path = path
        # A link stays a link: the file that it leads to is replaced.
        self._target = Path(os.path.realpath(path))
        self._check_target()
        self._members: dict[str, tuple[int, Content]] = {}
        self._is_tar = row is not None
        self._planned = False
        self._progress_hook = options.progress
        self._writer = _core.ArchiveWriter(
            os.fsencode(self._target),
            row,
            level=_level(row, options.compression_level),
            threads=options.threads(writers_on_node),
            durable=options.fsync,
            mtime=int(time.time()),
            uid=os.geteuid(),
            gid=os.getegid(),
        )

    def __enter__(self) -> ArchiveWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.abandon()

    def add_object(self, name: str, obj: Any, *, compact_views: bool = False) -> None:
        """A member in torch's format. Its memory must not change until ``write()`` returns.

        See :func:`pyckpt.torch_format.serialize.serialize` for ``compact_views``.
        """
        self._members[name] = (_FILE_MODE, serialize(obj, compact_views=compact_views))

    def add_file(self, name: str, path: Path) -> None:
        """A member with the bytes of the file at ``path``, read while writing."""
        self._members[name] = (stat.S_IMODE(path.stat().st_mode), path)

    def add_segments(self, name: str, segments: Sequence[Segment]) -> None:
        """A member with the bytes of segments, one after another, read while writing."""
        self._members[name] = (_FILE_MODE, tuple(segments))

    def add_directory(self, name: str) -> None:
        """A folder; those of other members are added by themselves."""
        self._members[name] = (_FOLDER_MODE, None)

    def state_records(self) -> list[Record]:
        """Of all members the records that lie in the objects' own memory."""
        return [
            record
            for _, content in self._members.values()
            if isinstance(content, list)
            for record in content
            if record.is_storage
        ]

    def replace_state_records(self, records: Iterable[Record]) -> None:
        """Reads those of ``state_records()`` from elsewhere; order and sizes are the same."""
        following = iter(records)
        for name, (mode, content) in self._members.items():
            if isinstance(content, list):
                replaced = [next(following) if r.is_storage else r for r in content]
                self._members[name] = (mode, replaced)

    @property
    def progress(self) -> tuple[int, int]:
        """How many bytes, before compression, are written and how many there are; any thread.

        The second number is 0 before ``plan()``, and then final.
        """
        return self._writer.progress

    def plan(self) -> None:
        """Gives every member, sorted, its place; none can be added any more."""
        self._planned = True
        if self._is_tar:
            self._writer.add_directory("", _ROOT_MODE)
        for name, (mode, content) in self._in_order():
            if content is None:
                self._writer.add_directory(name, mode)
            elif isinstance(content, Path):
                self._writer.add_file(name, mode, os.fspath(content))
            elif isinstance(content, tuple):
                self._writer.add_segments(
                    name, mode, [(s.nbytes, s.element_nbytes, s.reader) for s in content]
                )
            else:
                self._writer.add_torch_file(name, mode, [r[:5] for r in content])

    def write(self) -> int:
        """Writes all members, sorted, to a hidden file beside the target; returns its size.

        Raises:
            OSError: The file cannot be written; nothing is left of it.
        """
        if not self._planned:
            self.plan()
        self._target.parent.mkdir(parents=True, exist_ok=True)
        with reporting(self._progress_hook, f"saving {self.path.name}") as report:
            nbytes = self._writer.write(report)
            if report is not None:
                report(*self.progress)
        return nbytes

    def commit(self, *, keep_previous: bool = False) -> None:
        """Gives the new file its name. ``keep_previous`` allows ``restore()`` until ``keep()``."""
        self._writer.commit(keep_previous)

    def keep(self) -> None:
        """Forgets the previous file."""
        self._writer.keep()

    def restore(self) -> None:
        """Brings back the previous file, or none if there was none."""
        self._writer.restore()

    def abandon(self) -> None:
        """Removes what was written, unless it was committed and kept; lets go of the objects."""
        self._writer.abandon()
        self._members.clear()

    def _in_order(self) -> list[tuple[str, tuple[int, Content]]]:
        folders = {
            folder.as_posix(): (_FOLDER_MODE, None)
            for name in self._members
            for folder in Path(name).parents
            if folder != Path()
        }
        return sorted({**folders, **self._members}.items(), key=lambda item: item[0].split("/"))

    def _check_target(self) -> None:
        try:
            mode = self._target.stat().st_mode
        except OSError:  # absent, or not to be looked at: write() tells
            return
        if not stat.S_ISREG(mode):
            raise FilenameError(
                f"{self.path} exists and is not a regular file", path=str(self.path)
            )


def _level(row: _core.Format | None, level: int | None) -> int:
    levels = None if row is None else row.levels
    if row is None or levels is None:
        if level is not None:
            raise OptionError("compression_level is given, but the file's suffix asks for none")
        return 0
    if level is None:
        return levels.standard
    if not levels.lowest <= level <= levels.highest:
        raise OptionError(
            f"compression_level of {row.name} is {levels.lowest} to {levels.highest}, not {level}"
        )
    return level
