"""What hidden names have in common, so that the living are told from the dead.

A hidden name has the code of the system on which its process runs, and the process has a lock
(flock) on a file as long as it lives. On the same system, whoever can lock that file knows that the
process has died. Other systems may not see each other's locks.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pyckpt.ranks.file_identity import is_on_local_disk, running_system

__all__ = [
    "CODE",
    "LONGEST_CUT_NBYTES",
    "cut",
    "has_name",
    "hidden_name",
    "if_dead",
    "is_seen_from_here",
    "lock",
    "system_code",
    "unlock",
]

CODE = r"[0-9a-f]{8}"
"""A regular expression for ``system_code()``."""

LONGEST_CUT_NBYTES = 255 - 48
"""How much of a target's name its hidden names have at most."""


def system_code() -> str:
    """Eight digits that stand for the system, since it was started."""
    return _digest(running_system())


@functools.cache
def _digest(system: str) -> str:
    return hashlib.sha256(system.encode()).hexdigest()[:8]


def is_seen_from_here(code: str, folder: Path) -> bool:
    """Whether a lock tells this process if the one that made a name in ``folder`` lives.

    On a local disk it does also for the time before this system was started.
    """
    return code == system_code() or is_on_local_disk(folder)


def cut(name: str) -> str:
    """The name, or so much of it that a hidden name with it is not too long."""
    return os.fsencode(name)[:LONGEST_CUT_NBYTES].decode(errors="ignore")


def hidden_name(path: Path) -> Path:
    """A name for a file that will be ``path``, as those of csrc/write/file_sink.h."""
    return path.with_name(f".{cut(path.name)}.{system_code()}-{secrets.token_hex(8)}.tmp")


def lock(fd: int, how: int) -> bool:
    """Locks an open file. False if another process has it, or the file system has no locks."""
    try:
        fcntl.flock(fd, how)
    except OSError:
        return False
    return True


def unlock(fd: int) -> None:
    """Closes a file that may be locked.

    A forked process may have it open too: without unlocking, that one would keep the lock.
    """
    with suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)


@contextmanager
def if_dead(path: Path, access: int) -> Iterator[int | None]:
    """Opens and locks the file of a hidden name. None if it may belong to somebody.

    A living process has it locked. And in a folder such as /tmp, others could make names that have
    this user remove what is his: so only his regular files count, as long as they have the name.

    Args:
        access: How it is opened: ``os.O_RDONLY`` or ``os.O_RDWR``.

    Raises:
        OSError: It cannot be opened or looked at.
    """
    fd = os.open(path, access | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        is_own = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()
        is_dead = is_own and lock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB) and has_name(fd, path)
        yield fd if is_dead else None
    finally:
        os.close(fd)


def has_name(fd: int, path: Path) -> bool:
    """Whether an open file still has this name."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    try:
        return os.path.samestat(os.fstat(fd), found)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
