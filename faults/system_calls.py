"""Every system call of a save or load fails once, in every way in which it can.

python -m faults.system_calls [--sample N] [--seed S] [--only TEXT] [--case CASE]
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence
from typing import Any

from faults.injection import Campaign, Raised, run
from faults.scenarios import scenarios
from faults.seam import SHORT, Fault

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NAMES = (*_FULL, errno.EIO, errno.ENOMEM, errno.EACCES)
_ERRORS: dict[str, Sequence[int]] = {
    "open": (*_FULL, errno.EIO, errno.EINTR, errno.EMFILE, errno.ENOMEM),
    "open_unnamed": (*_FULL, errno.EIO, errno.EINTR, errno.EMFILE, errno.EOPNOTSUPP),
    "open_folder": (errno.EIO, errno.EINTR, errno.EMFILE, errno.ENOMEM),
    "opendir": (errno.EIO, errno.EMFILE, errno.ENOMEM),
    "read": (errno.EIO, errno.EINTR, SHORT),
    "write": (*_FULL, errno.EIO, errno.EINTR, errno.EAGAIN, errno.ENOMEM, SHORT),
    "fallocate": (*_FULL, errno.EIO, errno.EINTR, errno.EOPNOTSUPP),
    "ftruncate": (*_FULL, errno.EIO, errno.EINTR),
    "fsync": (*_FULL, errno.EIO, errno.EINTR),
    "fsync_folder": (*_FULL, errno.EIO, errno.EINTR, errno.EINVAL),
    "syncfs": (errno.EIO,),
    "rename": (*_NAMES, errno.EINTR),
    "exchange": (*_NAMES, errno.EINTR, errno.EINVAL),
    "link": (*_NAMES, errno.EINTR),
    "symlink": _NAMES,
    "mkdir": _NAMES,
    "unlink": (errno.EIO, errno.EACCES, errno.ENOMEM),
    "rmdir": (errno.EIO, errno.EACCES),
    "close": (*_FULL, errno.EIO, errno.EINTR),
    "mmap": (errno.ENOMEM,),
    "thread": (errno.EAGAIN,),
    "fcntl": (errno.EIO, errno.EINTR),
    "flock": (errno.EINTR, errno.ENOLCK),
    "dup": (errno.EMFILE,),
    "stat": (errno.EIO, errno.EACCES),
    "access": (errno.EIO,),
    "chmod": (errno.EPERM, errno.EIO),
    "chown": (errno.EPERM,),
    "xattr": (errno.EIO, errno.ENOSPC),
    "memfd": (errno.EMFILE, errno.ENOMEM),
}


# A scenario with many bytes takes long. What it alone does is tried there.
_LONG = "past the page cache"
_ERRORS_OF_LONG: dict[str, Sequence[int]] = {
    "write": (errno.ENOSPC, errno.EINTR, errno.EINVAL, SHORT),
    **dict.fromkeys(("fcntl", "mmap", "thread", "ftruncate", "fsync"), (errno.EIO, errno.EINTR)),
}


def faults(scenario: str, kind: str, count: int) -> list[Fault]:
    """Each call with each error."""
    errors = _ERRORS_OF_LONG.get(kind, ()) if _LONG in scenario else _ERRORS[kind]
    return [Fault(kind, n, error) for n in range(1, count + 1) for error in errors]


def judge(scenario: Any, fault: Fault, raised: Raised | None) -> str:
    """What does not hold although the files are right."""
    if raised is None:
        is_flush = fault.kind == "fsync" or fault.kind == "fsync_folder"
        if scenario.durable and is_flush and fault.error not in (errno.EINTR, errno.EINVAL):
            return "a flush failed, and nobody is told"
        return ""
    # Python tells of a rename or close that was interrupted. The core repeats a rename.
    is_of_python = fault.kind in ("rename", "close") and not scenario.what.startswith("save")
    if fault.error in (errno.EINTR, SHORT) and not is_of_python:
        return "this should not be seen"
    if not {"CheckpointError", "OSError", "MemoryError"} & set(raised.kinds):
        return "the error is of no known type"
    if "CorruptArchiveError" in raised.kinds:
        return "the file is said to be damaged"
    if "MemoryError" in raised.kinds:
        return ""
    if raised.errno != fault.error:
        return f"the errno is {raised.errno}"
    if not raised.path:
        return "the error names no file"
    return ""


def main() -> int:
    """The command."""
    return run(
        Campaign(
            "every system call fails once",
            "faults.system_calls",
            "system_calls",
            scenarios,
            faults,
            judge,
        )
    )


if __name__ == "__main__":
    sys.exit(main())
