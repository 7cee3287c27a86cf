"""Whether the paths of two processes, perhaps on two machines, name the same file."""

from __future__ import annotations

import os
import socket
from pathlib import Path

__all__ = ["file_identity", "is_on_local_disk", "machine", "running_system"]

_MOUNTS = Path("/proc/self/mountinfo")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# File systems whose source means the same on every machine that mounts it.
_SHARED_TYPES = frozenset(
    ("nfs", "nfs4", "cifs", "smb3", "lustre", "gpfs", "beegfs", "ceph", "fuse.glusterfs", "wekafs")
)
# File systems that only one running system can have mounted for writing at a time.
_LOCAL_TYPES = frozenset(("ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs"))


def file_identity(path: Path) -> str:
    """A text that is equal for the same file: on one machine, or on one shared file system.

    The file need not exist. If a shared file system is not recognized as shared, files on different
    machines count as different.
    """
    real = os.path.realpath(path)
    mount = _mount_of(real)
    if mount is not None:
        mount_point, kind, source, root = mount
        if kind in _SHARED_TYPES:
            inside = os.path.join(root, os.path.relpath(real, mount_point))
            return f"{kind} {source} {os.path.normpath(inside)}"
    return f"{machine()} {real}"


def machine() -> str:
    """A text that is equal for processes on one machine, or in one container on it."""
    # Containers on one machine share the boot id, not the host name. Machines may share the name.
    return f"{socket.gethostname()} {_boot_id()}"


def is_on_local_disk(path: Path) -> bool:
    """Whether only processes under this kernel can write to the file system that holds ``path``.

    False if that is not known.
    """
    mount = _mount_of(os.path.realpath(path))
    return mount is not None and mount[1] in _LOCAL_TYPES


def running_system() -> str:
    """A text that is equal for processes under one kernel, since it was started."""
    return _boot_id() or machine()


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def _mount_of(path: str) -> tuple[str, str, str, str] | None:
    """(mount point, type, source, root) of the file system that holds ``path``: proc(5)."""
    try:
        # Not splitlines() and split(): they also split at white space that is not escaped here.
        lines = os.fsdecode(_MOUNTS.read_bytes()).rstrip("\n").split("\n")
    except OSError:
        return None
    best: tuple[str, str, str, str] | None = None
    for line in lines:
        fields, _, rest = line.partition(" - ")
        root, mount_point = (_unescape(f) for f in fields.split(" ")[3:5])
        kind, source = rest.split(" ")[:2]
        inside = path == mount_point or path.startswith(mount_point.rstrip("/") + "/")
        if inside and (best is None or len(mount_point) >= len(best[0])):
            best = (mount_point, kind, source, root)
    return best


def _unescape(text: str) -> str:
    """Decodes octal escapes, which stand for spaces and similar characters."""
    if "\\" not in text:
        return text
    return text.encode("latin-1", "backslashreplace").decode("unicode_escape")
