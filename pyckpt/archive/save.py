"""save: writes any object to one file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyckpt.archive.formats import STATES_MEMBER
from pyckpt.archive.writer import ArchiveWriter
from pyckpt.errors import CheckpointError, OptionError
from pyckpt.interrupts import is_interrupt
from pyckpt.options import WriteOptions
from pyckpt.paths import local_path
from pyckpt.progress import ProgressHook
from pyckpt.staging.pending_saves import wait_for_file

__all__ = ["check_member", "save", "saving"]


def save(
    obj: Any,
    path: str | os.PathLike[str],
    *,
    compression_level: int | None = None,
    num_threads: int | None = None,
    fsync: bool = True,
    member: str = STATES_MEMBER,
    progress: ProgressHook = False,
) -> None:
    """Saves any object that torch.save can save; the suffix of ``path`` decides the format.

    The file under ``path`` is replaced as a whole or not at all. Folders are created. As with
    torch.save, the file has what this process has: of a DTensor, this rank's part alone. To save a
    state that is spread over ranks, use ``save_checkpoint``.

    Args:
        obj: Its tensors are read in place and must not change during the call.
        compression_level: The format's level; None takes its standard one. Torch's own file
            (``model.pt``) is compressed only if it is given; torch.load reads it all the same, but
            not with ``mmap=True``.
        num_threads: Worker threads; None takes the CPUs that this process may use.
        fsync: Whether to wait until the file is on the disk.
        member: The name of the member inside a tar.
        progress: True shows a bar. A function is called with the bytes done and the total, about 20
            times a second. Both only on rank 0.

    Raises:
        CheckpointError: The file could not be written, or an argument is wrong
            (FilenameError, OptionError). A previous file is unchanged.
    """
    options = WriteOptions(compression_level, num_threads, fsync, progress)
    check_member(member)
    path = local_path(path)
    wait_for_file(path)  # an asynchronous save that is under way would replace this newer file
    with saving(path), ArchiveWriter(path, options) as writer:
        writer.add_object(member, obj)
        writer.write()
        writer.commit()


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """Makes errors of a save CheckpointErrors that name the file, except Ctrl-C and the like."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        if is_interrupt(error):
            raise
        raise CheckpointError(
            f"saving {path} failed: {type(error).__name__}: {error}",
            path=str(path),
            errno=error.errno if isinstance(error, OSError) else None,
        ) from error


def check_member(member: str) -> None:
    """Checks the name of a member.

    Raises:
        OptionError: It would lead out of the archive, or is no name.
    """
    parts = member.split("/")
    if not member or "\0" in member or any(part in ("", ".", "..") for part in parts):
        raise OptionError(f"member {member!r} is not a relative path without '.', '..' or NUL")
