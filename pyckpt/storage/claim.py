"""Hidden names beside a folder that one process works with, and what becomes of them if it dies.

The folder may also be a link.

For the time of its work, a process has these names in the folder of its target:

    .TARGET.ID.pyckpt-new    the folder that is being written; after an exchange, the one before it
    .TARGET.ID.pyckpt-old    the folder before, if it has to make room first
    .TARGET.ID.pyckpt-lock   who works: the process has a lock (flock) on it as long as it lives

The lock lies beside the new folder and not in it, because it must outlive the renames, and because
the folder has nothing but what its users write at any time. It is made first and removed last. So
whatever a killed process leaves has a file beside it on which nobody has a lock.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import socket
from contextlib import suppress
from pathlib import Path

from pyckpt.ranks.file_identity import running_system
from pyckpt.storage.hidden_names import (
    CODE,
    cut,
    has_name,
    if_dead,
    is_seen_from_here,
    lock,
    system_code,
    unlock,
)

__all__ = ["Claim", "is_there", "remove_folder", "sweep"]

_LOCK_NAME = re.compile(rf"(\..*\.({CODE})-[0-9a-f]{{16}})\.pyckpt-lock", re.DOTALL)
_MOST_RECORD_NBYTES = 8192
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class Claim:
    """Hidden names beside a target, locked by this process until ``release()`` or its death.

    Attributes:
        target: The folder that the work is for.
        new: Where it is written.
        old: Where the folder before may go.

    Raises:
        OSError: The folder of ``target`` cannot be written.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        while True:
            stem = f".{cut(target.name)}.{system_code()}-{secrets.token_hex(8)}"
            self.new, self.old, self._lock = _names(target.parent, stem)
            self._fd = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            try:
                is_locked = lock(self._fd, fcntl.LOCK_EX)
                if has_name(self._fd, self._lock):
                    self._write(_record(target, is_locked))
                    break
            except BaseException:
                with suppress(OSError):
                    self.release()
                raise
            os.close(self._fd)  # another process has swept it before it was locked

    def _write(self, record: bytes) -> None:
        try:
            while record:
                record = record[os.write(self._fd, record) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._lock)) from error

    def release(self) -> None:
        """Gives the names up. See ``settle`` for what becomes of the folders under them.

        Raises:
            OSError: A folder cannot be removed. The next ``sweep`` will try again.
        """
        if self._fd == -1:
            return
        try:
            _settle(self.target, self.new, self.old)
            self._lock.unlink()
        finally:
            fd, self._fd = self._fd, -1
            unlock(fd)


def remove_folder(folder: Path) -> None:
    """Removes a folder, so that nobody finds a part of it: one rename hides it first.

    What a killed process has not removed is swept later.

    Raises:
        OSError: It failed. The folder is whole if its name is still there, unless the disk was so
            full that not even a lock file could be made.
    """
    # A parent such as "x/.." would be lost when x gets its hidden name.
    folder = Path(os.path.realpath(folder.parent), folder.name)
    try:
        claim = Claim(folder)
    except OSError as error:
        if error.errno not in _NO_ROOM:  # what cannot be hidden could not be removed as a whole
            raise
        shutil.rmtree(folder)
        return
    try:
        folder.rename(claim.new)
    finally:
        claim.release()


def sweep(folder: Path) -> None:
    """Releases the claims in ``folder`` of processes of this user that have died.

    What cannot be known to be dead stays: claims on file systems without locks, and on those that
    other machines may have mounted, claims of other machines, also of this one before it was
    started again. Nothing is raised.
    """
    with suppress(OSError):
        for path in folder.iterdir():
            found = _LOCK_NAME.fullmatch(path.name)
            if found is not None and is_seen_from_here(found[2], folder):
                with suppress(OSError):
                    _sweep_claim(folder, found[1])


def _sweep_claim(folder: Path, stem: str) -> None:
    new, old, lock_path = _names(folder, stem)
    with if_dead(lock_path, os.O_RDWR) as fd:
        if fd is None:
            return
        record = os.read(fd, _MOST_RECORD_NBYTES)
        if record:
            target = _target_in(record, stem)
            if target is None:
                return
            _settle(folder / target, new, old)
        lock_path.unlink()  # a claim without a record has made nothing yet


def _settle(target: Path, new: Path, old: Path) -> None:
    """Brings the old folder back if the target's name is missing. Removes all that is hidden."""
    if _is_folder(old) and not is_there(target):
        old.rename(target)
    for one in (old, new):
        if _is_folder(one):
            shutil.rmtree(one)
        elif is_there(one):
            one.unlink()


def _names(folder: Path, stem: str) -> tuple[Path, Path, Path]:
    new, old, lock_path = (folder / f"{stem}.pyckpt-{kind}" for kind in ("new", "old", "lock"))
    return new, old, lock_path


def _record(target: Path, is_locked: bool) -> bytes:
    record = {
        "host": socket.gethostname(),
        "system": running_system(),
        "pid": os.getpid(),
        "target": target.name,
        "locked": is_locked,
    }
    return json.dumps(record).encode()


def _target_in(record: bytes, stem: str) -> str | None:
    """The target's name, or None if it must be left alone."""
    try:
        found = json.loads(record)
        target = found["target"]
        fits = found["locked"] is True and stem.startswith(f".{cut(target)}.")
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    is_name = isinstance(target, str) and "/" not in target and target not in ("", ".", "..")
    return target if fits and is_name else None


def is_there(path: Path) -> bool:
    """Whether something has this name, perhaps a link that leads nowhere.

    Raises:
        OSError: That cannot be found out.
    """
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
