"""Small files and links that are replaced as a whole."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from pyckpt.storage.flush import flush_folder

__all__ = ["replace_file", "replace_link"]


def replace_file(path: Path, data: bytes, *, fsync: bool) -> None:
    """Gives the file ``path`` the contents ``data``, as a whole or not at all.

    Raises:
        OSError: It could not be written. An earlier file is unchanged.
    """
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(handle, 0o666 & ~_umask())
            file.write(data)
            file.flush()
            if fsync:
                os.fsync(handle)
        Path(temporary).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(temporary).unlink()
        raise
    if fsync:
        flush_folder(path.parent)


def replace_link(path: Path, target: str) -> None:
    """Makes ``path`` a symbolic link to ``target``; an earlier link is replaced in one step.

    Raises:
        OSError: It could not be made. An earlier one is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with suppress(FileNotFoundError):  # of a process that died
        temporary.unlink()
    temporary.symlink_to(target)
    try:
        temporary.replace(path)
    except BaseException:
        temporary.unlink()
        raise


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
