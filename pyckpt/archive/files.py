"""Files and folders on disk that become members."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from pyckpt.archive.parts import member_parts, segments
from pyckpt.archive.reader import ArchiveReader, Contents
from pyckpt.archive.writer import ArchiveWriter
from pyckpt.errors import CorruptArchiveError, OptionError

__all__ = ["add_stored_file", "add_torch_file", "tree"]


def tree(folder: Path) -> Iterator[tuple[str, Path | None]]:
    """Everything below a folder: names relative to it, and the files; None for a folder.

    Links to files are followed.

    Raises:
        OptionError: There is a link that leads to a folder or nowhere, or something else that is
            not a file.
        OSError: A folder cannot be read.
    """
    for root, folders, files in os.walk(folder, onerror=_raise):
        for name in folders:
            inner = Path(root, name)
            if inner.is_symlink():
                raise OptionError(f"{inner} is a link to a folder, which is not packed")
            yield inner.relative_to(folder).as_posix(), None
        for name in files:
            file = Path(root, name)
            if file.is_symlink() and not file.exists():
                raise OptionError(f"{file} is a link that leads nowhere")
            if not stat.S_ISREG(file.stat().st_mode):
                raise OptionError(f"{file} is neither a file nor a folder")
            yield file.relative_to(folder).as_posix(), file


def _raise(error: OSError) -> None:
    raise error


def add_stored_file(writer: ArchiveWriter, name: str, path: Path) -> None:
    """Adds a copy of any file, with its mode."""
    try:
        is_added = add_torch_file(writer, name, path)
    except CorruptArchiveError:  # it only begins like an archive, and is copied as it is
        is_added = False
    if not is_added:
        writer.add_file(name, path)


def add_torch_file(writer: ArchiveWriter, name: str, path: Path) -> bool:
    """Adds a copy of a file that torch.save wrote. Returns False, and adds nothing, for another.

    Raises:
        CorruptArchiveError: The file is damaged.
    """
    if not path.stat().st_size:
        return False
    reader = ArchiveReader(path)
    if reader.image.compression or reader.contents(0) is Contents.OTHER:
        return False
    parts, _ = member_parts(reader, reader.whole())
    writer.add_segments(name, segments(reader, parts), stat.S_IMODE(path.stat().st_mode))
    return True
