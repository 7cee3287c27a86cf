"""How much memory this process can still get. No file may make it ask for more.

More means that the system would kill the process. So memory counts as available if the system can
take it back from the page cache, and so does free swap space.
"""

from __future__ import annotations

from pathlib import Path

from pyckpt.cgroups import memory_left
from pyckpt.errors import CheckpointError

__all__ = ["require_memory"]

_SMALL_NBYTES = 1 << 20


def require_memory(nbytes: int, path: Path | str) -> None:
    """Refuses a request for memory that would make the system kill the process.

    Requests below 1 MiB always pass: to ask the system takes longer than to serve them.

    Raises:
        CheckpointError: ``path`` needs ``nbytes`` of memory, and less is available.
    """
    if nbytes < _SMALL_NBYTES:
        return
    available = _available()
    if available is not None and nbytes > available:
        raise CheckpointError(
            f"{path} needs {nbytes} bytes of memory, and {available} are available",
            path=str(path),
        )


def _available(root: Path = Path("/")) -> int | None:
    """The memory that the machine and the cgroups leave, in bytes; None if neither tells.

    Args:
        root: Where /proc and /sys are.
    """
    machine = _machine(root / "proc/meminfo")
    swap = machine.get("SwapFree", 0)
    left = [memory_left(swap, root)]
    if "MemAvailable" in machine:
        left.append(machine["MemAvailable"] + swap)
    return min((nbytes for nbytes in left if nbytes is not None), default=None)


def _machine(meminfo: Path) -> dict[str, int]:
    """The numbers of /proc/meminfo, in bytes; none on other systems than Linux."""
    try:
        lines = [line.split() for line in meminfo.read_text().splitlines()]
        return {name.rstrip(":"): int(kib) * 1024 for name, kib, *unit in lines if unit == ["kB"]}
    except (OSError, ValueError):
        return {}
