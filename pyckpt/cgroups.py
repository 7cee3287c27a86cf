"""The limits that cgroups set to this process, as in a container: memory and CPU time.

Linux has two kinds of cgroups, and a machine can use both at once. Version 2 has one tree of
groups. Version 1 has a tree for each controller (memory, cpu). /proc/self/cgroup names the
process's group in each tree, and /proc/self/mountinfo tells where the trees are mounted. A limit
holds for all groups below it, so each function here asks the process's group and those above it.

What cannot be read is no limit. ``root`` is where /proc and /sys are; only tests give another.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import TypeVar

__all__ = ["cpu_limit", "memory_left"]

_T = TypeVar("_T")
# Pages of files and of the kernel's caches. They count as used, but the system takes them back
# before it refuses memory. Files in tmpfs are not among them.
_RECLAIMABLE_V2 = ("inactive_file", "active_file", "slab_reclaimable")
_RECLAIMABLE_V1 = ("total_inactive_file", "total_active_file")


def memory_left(swap_nbytes: int = 0, root: Path = Path("/")) -> int | None:
    """How much more memory the process's groups let it have, in bytes; None without a limit.

    Args:
        swap_nbytes: The swap space that the machine has left.
    """
    left = [
        *_known(lambda group: _memory_v2(group, swap_nbytes), _groups("", root)),
        *_known(lambda group: _memory_v1(group, swap_nbytes), _groups("memory", root)),
    ]
    return max(0, min(left)) if left else None


def cpu_limit(root: Path = Path("/")) -> float | None:
    """How many CPUs' time the process's groups let it have; None without a limit."""
    limits = [*_known(_cpus_v2, _groups("", root)), *_known(_cpus_v1, _groups("cpu", root))]
    return min(limits, default=None)


def _known(ask: Callable[[Path], _T | None], groups: Iterator[Path]) -> Iterator[_T]:
    """The answers of the groups that have one."""
    for group in groups:
        try:
            answer = ask(group)
        except (OSError, ValueError, LookupError):  # the top of a tree has no limits, for example
            continue
        if answer is not None:
            yield answer


def _memory_v2(group: Path, swap_nbytes: int) -> int | None:
    limit = _number_or_max(group / "memory.max")
    if limit is None:
        return None
    stat = _table(group / "memory.stat")
    reclaimable = sum(stat.get(name, 0) for name in _RECLAIMABLE_V2)
    left = limit - _number(group / "memory.current") + reclaimable
    return left + _swap_left_v2(group, swap_nbytes)


def _swap_left_v2(group: Path, swap_nbytes: int) -> int:
    with suppress(OSError, ValueError):  # some kernels count no swap
        limit = _number_or_max(group / "memory.swap.max")
        if limit is not None:
            left = limit - _number(group / "memory.swap.current")
            return min(swap_nbytes, max(0, left))
    return swap_nbytes


def _memory_v1(group: Path, swap_nbytes: int) -> int:
    stat = _table(group / "memory.stat")
    reclaimable = sum(stat[name] for name in _RECLAIMABLE_V1)
    left = [_left_v1(group, "memory") + swap_nbytes]
    with suppress(OSError, ValueError):  # some kernels count no swap
        left.append(_left_v1(group, "memory.memsw"))
    return min(left) + reclaimable


def _left_v1(group: Path, kind: str) -> int:
    """How much of a kind is left: ``memory``, or ``memory.memsw``, which is memory and swap."""
    limit = _number(group / f"{kind}.limit_in_bytes")
    return limit - _number(group / f"{kind}.usage_in_bytes")


def _cpus_v2(group: Path) -> float | None:
    quota, period = (group / "cpu.max").read_text().split()
    return None if quota == "max" else _quotient(int(quota), int(period))


def _cpus_v1(group: Path) -> float | None:
    quota = _number(group / "cpu.cfs_quota_us")
    return None if quota < 0 else _quotient(quota, _number(group / "cpu.cfs_period_us"))


def _quotient(quota: int, period: int) -> float | None:
    return quota / period if quota > 0 and period > 0 else None


def _number(file: Path) -> int:
    return int(file.read_text())


def _number_or_max(file: Path) -> int | None:
    text = file.read_text().strip()
    return None if text == "max" else int(text)


def _table(file: Path) -> dict[str, int]:
    return {name: int(value) for name, value in map(str.split, file.read_text().splitlines())}


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """The folders of the process's group and of those above it, in the tree of ``controller``.

    Args:
        controller: ``memory`` or ``cpu``; "" for the tree of version 2, which has all.
    """
    path = _path_in_tree(controller, root)
    if path is None:
        return
    for top, mount in _mounts(controller, root):
        inner = _below(path, top)
        if inner is not None:
            group = mount / inner
            yield group
            for _ in inner.parts:
                group = group.parent
                yield group


def _path_in_tree(controller: str, root: Path) -> PurePosixPath | None:
    """The process's group, as the tree names it."""
    for line in _lines(root / "proc/self/cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller in controllers.split(","):
            return PurePosixPath(path)
    return None


def _mounts(controller: str, root: Path) -> Iterator[tuple[PurePosixPath, Path]]:
    """The mounts of a tree: which of its groups is on top, and the folder of that group."""
    for line in _lines(root / "proc/self/mountinfo"):
        # ID, parent, device, top, folder, options, any number of tags, -, kind, source, options
        left, _, right = line.partition(" - ")
        fields, kind = left.split(" "), right.split(" ")
        if len(fields) >= 5 and len(kind) == 3 and _is_tree(controller, kind[0], kind[2]):
            yield PurePosixPath(_unescaped(fields[3])), root / _unescaped(fields[4]).lstrip("/")


def _is_tree(controller: str, kind: str, options: str) -> bool:
    if controller == "":
        return kind == "cgroup2"
    return kind == "cgroup" and controller in options.split(",")


def _below(path: PurePosixPath, top: PurePosixPath) -> PurePosixPath | None:
    """The way from the group ``top`` down to the group ``path``; None if it is not below.

    In a cgroup namespace, names of groups outside of it begin with "..".
    """
    if path.is_relative_to(top):
        inner = path.relative_to(top)
        return None if ".." in inner.parts else inner
    # The namespace's own group is below, but what is between has no name here.
    return PurePosixPath() if set(top.parts[1:]) == {".."} else None


def _lines(file: Path) -> list[str]:
    try:
        return os.fsdecode(file.read_bytes()).split("\n")
    except OSError:  # not Linux
        return []


def _unescaped(text: str) -> str:
    """The kernel writes spaces, tabs, newlines and backslashes as three octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
