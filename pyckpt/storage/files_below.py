"""The files of a folder, as somebody sees them who reads it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pyckpt.errors import FilenameError

__all__ = ["FoundFile", "files_below"]


@dataclass(frozen=True)
class FoundFile:
    """A file in a folder.

    Attributes:
        name: Its name in the folder, with slashes.
        inner: Where it is in the folder. It differs from ``name`` if that has a symbolic link.
        nbytes: Its size.
    """

    name: str
    inner: str
    nbytes: int


def files_below(folder: Path) -> list[FoundFile]:
    """All files below ``folder``, by their names. A link to a file in it is that file.

    Raises:
        FilenameError: There is a link that leads out of the folder, to a folder or nowhere, or
            something else that is no file; or a name is not UTF-8.
        OSError: A folder cannot be read.
    """
    return sorted(_found(Path(os.path.realpath(folder))), key=lambda file: file.name)


def _found(folder: Path) -> Iterator[FoundFile]:
    for root, folders, names in os.walk(folder, onerror=_raise):
        for path in [Path(root, name) for name in folders]:
            if path.is_symlink():
                raise _refused(path, "is a link to a folder")
        for path in [Path(root, name) for name in names]:
            yield _file(folder, path)


def _file(folder: Path, path: Path) -> FoundFile:
    real = Path(os.path.realpath(path))
    if path.is_symlink() and not real.is_relative_to(folder):
        raise _refused(path, "is a link that leads out of the folder")
    if path.is_symlink() and not real.exists():
        raise _refused(path, "is a link that leads nowhere")
    found = real.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise _refused(path, "is neither a file nor a folder")
    name = path.relative_to(folder).as_posix()
    try:
        name.encode()
    except UnicodeEncodeError:
        raise _refused(path, "has a name that is not UTF-8") from None
    return FoundFile(name, real.relative_to(folder).as_posix(), found.st_size)


def _refused(path: Path, why: str) -> FilenameError:
    text = str(path)
    return FilenameError(f"{text!r} {why}: it cannot become an object of a store", path=text)


def _raise(error: OSError) -> None:
    raise error
