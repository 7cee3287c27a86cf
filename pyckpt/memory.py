"""How much memory this process can still have, so that no file makes it ask for more."""

from __future__ import annotations

from pathlib import Path

from pyckpt.errors import CheckpointError

__all__ = ["require_memory"]

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def require_memory(nbytes: int, path: Path) -> None:
    """Refuses what would end in the system killing the process.

    Raises:
        CheckpointError: ``path`` needs ``nbytes`` of memory, and there are fewer.
    """
    available = _available()
    if available is not None and nbytes > available:
        raise CheckpointError(
            f"{path} asks for {nbytes} bytes of memory, and {available} are available",
            path=str(path),
        )


def _available() -> int | None:
    """What the machine and the process's cgroup leave; None where nobody tells."""
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
