"""Waits until the disk has what anybody has written."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

__all__ = ["flush_folder", "flush_tree"]


def flush_tree(folder: Path) -> None:
    """Flushes every file and folder below ``folder``, and at last ``folder`` itself.

    It does not matter who has written them: the flush of a file takes the pages of all processes of
    this machine. What symbolic links lead to is not flushed.

    Raises:
        OSError: One cannot be flushed. It names it.
    """
    for path, _, names in os.walk(folder, topdown=False, onerror=_raise):
        for name in names:
            file = Path(path, name)
            if stat.S_ISREG(file.lstat().st_mode):
                _flush(file, os.O_NOFOLLOW)
        flush_folder(Path(path))


def flush_folder(folder: Path) -> None:
    """Flushes the names in ``folder``, and not what they name.

    Raises:
        OSError: It cannot be flushed.
    """
    try:
        _flush(folder, os.O_DIRECTORY)
    except PermissionError:  # it may be writable and not readable
        os.sync()
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems cannot flush folders
            raise


def _flush(path: Path, flags: int) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        os.fsync(fd)
    except OSError as error:
        raise OSError(error.errno, f"cannot flush to disk: {error.strerror}", str(path)) from error
    finally:
        with suppress(OSError):  # nothing was written by this descriptor
            os.close(fd)


def _raise(error: OSError) -> None:
    raise error
