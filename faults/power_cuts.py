"""Cuts the power at each write of a save, on ext4 and XFS, and looks at what the disk has then.

    sudo python -m faults.power_cuts [--sample N] [--help]

The file systems are images on loop devices. A save is killed before one of its writes, and the file
system is shut down by its own ioctl, which loses what the disk has not. It is mounted again, with
its journal, and read. What a disk has at that moment depends on what the system has written by
itself, so each write is tried in three ways: nothing but what was flushed, the journal too, and all
of it.

After a save that returned, the new checkpoint must be there. Before, it may be the old one or the
new one. With ``fsync=False`` neither is promised: a load must notice what is damaged.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from faults.own_mounts import has_own_mounts, run_with_own_mounts
from faults.report import Case, Report, argument_parser, sample
from faults.ways import Way, ways
from tests.stops import killed_at, preloaded

__all__ = ["main"]

FILE_SYSTEMS = ("ext4", "xfs")
_IMAGE_NBYTES = 400 << 20  # XFS wants 300 MB at least

# FS_IOC_SHUTDOWN of Linux's include/uapi/linux/fs.h, by the name EXT4_IOC_SHUTDOWN and
# XFS_IOC_GOINGDOWN: _IOR('X', 125, uint32).
_SHUTDOWN = 0x8004587D
VERSIONS = ("nothing that is whole", "the old file", "the new one")
CUTS = {"all is written": 0, "the journal is written": 1, "nothing else is written": 2}


class Disk:
    """A file system in an image, mounted at ``folder``."""

    def __init__(self, kind: str, folder: Path) -> None:
        self._kind = kind
        self._image = folder / f"{kind}.img"
        self.folder = folder / kind
        self.folder.mkdir()
        with self._image.open("wb") as file:
            file.truncate(_IMAGE_NBYTES)
        subprocess.run([f"mkfs.{kind}", "-q", self._image], check=True, timeout=60)
        self.mount()

    def mount(self) -> None:
        command = ["mount", "-t", self._kind, "-o", "loop", self._image, self.folder]
        subprocess.run(command, check=True, timeout=60)

    def unmount(self) -> None:
        subprocess.run(["umount", self.folder], check=True, timeout=60)

    def cut(self, flag: int) -> None:
        """Cuts the power, and brings it back."""
        fd = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, flag.to_bytes(4, sys.byteorder))
        finally:
            os.close(fd)
        self.unmount()
        self.mount()


@contextmanager
def disk(kind: str, folder: Path) -> Iterator[Disk]:
    """A disk that is unmounted at the end."""
    made = Disk(kind, folder)
    try:
        yield made
    finally:
        made.unmount()


@dataclass(frozen=True)
class Outcome:
    """What a cut has left.

    Attributes:
        returned: Whether the save had returned before.
        version: What is there then: 1, 2, or 0 for nothing that is whole.
        broken: What does not hold; empty if everything does.
    """

    returned: bool
    version: int
    broken: str


def attempt(way: Way, disk: Disk, number: int, flag: int) -> Outcome:
    """Cuts the power before write ``number``, or after the save's return."""
    folder = disk.folder / "checkpoints"
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    if not way.first:
        way.save(folder, 1)
    os.sync()
    returned = not killed_at(lambda: way.save(folder, 2), number)
    disk.cut(flag)
    try:
        version = way.found(folder)
    except Exception as error:
        return Outcome(returned, 0, f"{type(error).__name__}: {error}")
    return Outcome(returned, version, way.problem(version, returned))


def count(way: Way, folder: Path) -> int:
    """How many writes a save has."""
    inside = folder / "count"
    shutil.rmtree(inside, ignore_errors=True)
    inside.mkdir()
    if not way.first:
        way.save(inside, 1)
    calls = ctypes.CDLL(None)
    calls.stop_count.restype = ctypes.c_long
    calls.stop_at(ctypes.c_long(-1), 0)
    way.save(inside, 2)
    return int(calls.stop_count())


def main(arguments: list[str] | None = None) -> int:
    """Runs the campaign, in a process of its own, which has the library that kills."""
    parser = argument_parser(__doc__)
    parser.add_argument("--only", default="", help="ways with this in their name")
    options = parser.parse_args(arguments)
    if not has_own_mounts():
        with tempfile.TemporaryDirectory() as name:
            environment = {**preloaded(Path(name)), "OMP_NUM_THREADS": "1"}
            return run_with_own_mounts("faults.power_cuts", environment)
    report = Report("Power cuts")
    without_fsync: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # One more than there are: the cut after the save's return.
        cases = [
            (kind, way, number, cut)
            for way in ways()
            if options.only in way.name
            for last in [count(way, folder) + 1]
            for kind in FILE_SYSTEMS
            for number in range(1, last + 1)
            for cut in CUTS
        ]
        chosen = sample(cases, options.sample, options.seed)
        for kind in FILE_SYSTEMS:
            with disk(kind, folder) as mounted:
                for _, way, number, cut in (case for case in chosen if case[0] == kind):
                    outcome = attempt(way, mounted, number, CUTS[cut])
                    where = "after its return" if outcome.returned else f"before write {number}"
                    report.add(
                        Case(
                            f"{kind}: {way.name}",
                            outcome.broken and f"{where}, {cut}: {outcome.broken}",
                            f'python -m faults.power_cuts --only "{way.name}"',
                        )
                    )
                    if not way.durable:
                        without_fsync[VERSIONS[outcome.version]] += 1
    code = report.end()
    left = ", ".join(f"{what} {count} times" for what, count in without_fsync.items())
    print(f"\nWith fsync=False, which promises nothing, there was left: {left}")
    return code


if __name__ == "__main__":
    sys.exit(main())
