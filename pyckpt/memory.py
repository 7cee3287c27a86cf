"""How much memory this process can still get. No file may make it ask for more."""

from __future__ import annotations

from pathlib import Path

from pyckpt.errors import CheckpointError

__all__ = ["require_memory"]

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def require_memory(nbytes: int, path: Path) -> None:
    """Refuses a request for memory that would make the system kill the process.

    Raises:
        CheckpointError: ``path`` needs ``nbytes`` of memory, and less is available.
    """
    available = _available()
    if available is not None and nbytes > available:
        raise CheckpointError(
            f"{path} needs {nbytes} bytes of memory, and {available} are available",
            path=str(path),
        )


def _available() -> int | None:
    """The memory that the machine and the cgroup leave, in bytes; None if neither tells."""
    left = []
    try:
        for line in _MEMINFO.read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                left.append(int(value.split()[0]) * 1024)
    except (OSError, ValueError):  # not Linux
        pass
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        if limit != "max":
            left.append(int(limit) - int((_CGROUP / "memory.current").read_text()))
    except (OSError, ValueError):  # no cgroup v2 here
        pass
    return min(left, default=None)
