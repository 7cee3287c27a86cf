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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import pyckpt
from faults.report import Case, Report, argument_parser, sample
from tests.stops import killed_at, preloaded

__all__ = ["main"]

FILE_SYSTEMS = ("ext4", "xfs")
_IMAGE_NBYTES = 400 << 20  # XFS wants 300 MB at least

# FS_IOC_SHUTDOWN of Linux's include/uapi/linux/fs.h, by the name EXT4_IOC_SHUTDOWN and
# XFS_IOC_GOINGDOWN: _IOR('X', 125, uint32).
_SHUTDOWN = 0x8004587D
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
class Scenario:
    """A save over an older one.

    Attributes:
        name: The row of the table.
        save: Saves version 1 or 2 below a folder.
        found: The version that is there, or 0 if there is none that is whole.
        durable: Whether one of them must be there, and the new one after the save's return.
        first: Whether there is no older one.
    """

    name: str
    save: Callable[[Path, int], object]
    found: Callable[[Path], int]
    durable: bool = True
    first: bool = False

    def problem(self, folder: Path, returned: bool) -> str:
        """What does not hold; empty if everything does."""
        version = self.found(folder)
        if not self.durable or version == 2:
            return ""
        if returned:
            return "the save returned, and the new checkpoint is not there"
        if version == 1 or (self.first and version == 0):
            return ""
        return "neither the old checkpoint nor the new one is there"


def tensors(version: int) -> dict[str, Any]:
    """Different tensors for each version; none of them is zero, as lost blocks are."""
    noise = torch.Generator().manual_seed(version)
    return {"version": version, "weight": torch.randn(200_000, generator=noise)}


def version_of(loaded: dict[str, Any]) -> int:
    """Which version was loaded.

    Raises:
        AssertionError: None of them: tensors are wrong in silence.
    """
    version: int = loaded["version"]
    expected = tensors(version)
    assert torch.equal(loaded["weight"], expected["weight"]), "tensors are wrong in silence"
    return version


def of_file(suffix: str, inside: str = "", **options: Any) -> Scenario:
    """A save of one file."""

    def path(folder: Path) -> Path:
        return folder / inside / f"model{suffix}"

    def found(folder: Path) -> int:
        if not path(folder).exists():
            return 0
        try:
            return version_of(pyckpt.load(path(folder), weights_only=True))
        except pyckpt.CheckpointError:
            assert options.get("fsync") is False, "the file is damaged"
            return 0

    durable = options.get("fsync", True)
    how = [f"save {suffix}"]
    if inside:
        how.append("into new folders")
    if not durable:
        how.append("fsync=False")
    return Scenario(
        ", ".join(how),
        lambda folder, version: pyckpt.save(tensors(version), path(folder), **options),
        found,
        durable,
        first=bool(inside),
    )


def in_background(folder: Path, version: int) -> None:
    pyckpt.async_save(tensors(version), folder / "model.tar.gz").result()


def in_transaction(folder: Path, version: int) -> None:
    with pyckpt.transaction(folder / "step") as inside:
        for name in ("a.pt", "b.tar.gz"):
            pyckpt.save(tensors(version), inside / name)
        (inside / "version").write_text(str(version))


def found_in_transaction(folder: Path) -> int:
    step = folder / "step"
    if not step.exists():
        return 0
    versions = {version_of(pyckpt.load(step / name)) for name in ("a.pt", "b.tar.gz")}
    versions.add(int((step / "version").read_text()))
    assert len(versions) == 1, f"the folder is mixed: {versions}"
    return versions.pop()


def state(version: int) -> pyckpt.State:
    torch.manual_seed(version)
    return pyckpt.State(torch.nn.Linear(200, 200), extra=tensors(version))


def by_manager(folder: Path, version: int) -> None:
    pyckpt.CheckpointManager(folder / "run", suffix=".tar.gz", keep_last=1).save(
        version, state(version)
    )


def found_by_manager(folder: Path) -> int:
    restored = state(0)
    manager = pyckpt.CheckpointManager(folder / "run", suffix=".tar.gz", keep_last=1)
    if manager.restore_latest(restored) is None:
        return 0
    return version_of(restored.extra)


def scenarios() -> list[Scenario]:
    """All of them."""
    return [
        *(of_file(suffix) for suffix in (".tar", ".tar.gz", ".tar.zst", ".pt")),
        of_file(".tar.gz", inside="new/folder"),
        Scenario("async_save", in_background, lambda folder: of_file(".tar.gz").found(folder)),
        Scenario("transaction", in_transaction, found_in_transaction),
        Scenario("CheckpointManager", by_manager, found_by_manager),
        *(of_file(suffix, fsync=False) for suffix in (".tar.gz", ".pt")),
    ]


def attempt(scenario: Scenario, disk: Disk, number: int, flag: int) -> tuple[str, bool]:
    """Cuts the power before write ``number``.

    Returns:
        What does not hold, and whether the save has returned before.
    """
    folder = disk.folder / "checkpoints"
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    if not scenario.first:
        scenario.save(folder, 1)
    os.sync()
    returned = not killed_at(lambda: scenario.save(folder, 2), number)
    disk.cut(flag)
    try:
        return scenario.problem(folder, returned), returned
    except Exception as error:
        return f"{type(error).__name__}: {error}", returned


def count(scenario: Scenario, folder: Path) -> int:
    """How many writes a save has."""
    inside = folder / "count"
    shutil.rmtree(inside, ignore_errors=True)
    inside.mkdir()
    if not scenario.first:
        scenario.save(inside, 1)
    calls = ctypes.CDLL(None)
    calls.stop_count.restype = ctypes.c_long
    calls.stop_at(ctypes.c_long(-1), 0)
    scenario.save(inside, 2)
    return int(calls.stop_count())


def main(arguments: list[str] | None = None) -> int:
    """Runs the campaign, in a process of its own, which has the library that kills."""
    parser = argument_parser(__doc__)
    parser.add_argument("--only", default="", help="scenarios with this in their name")
    options = parser.parse_args(arguments)
    if os.geteuid() != 0:
        print("power cuts need root: file systems are mounted", file=sys.stderr)
        return 1
    if "stop.so" not in os.environ.get("LD_PRELOAD", ""):
        with tempfile.TemporaryDirectory() as name:
            # In a mount namespace of its own, so that none that is made meanwhile has a copy of a
            # mount, which would keep the file system from being unmounted.
            command = ["unshare", "--mount", sys.executable, "-m", "faults.power_cuts"]
            command += sys.argv[1:]
            environment = {**os.environ, **preloaded(Path(name)), "OMP_NUM_THREADS": "1"}
            return subprocess.run(command, env=environment).returncode
    report = Report("Power cuts")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # One more than there are: the cut after the save's return.
        cases = [
            (kind, scenario, number, cut)
            for scenario in scenarios()
            if options.only in scenario.name
            for last in [count(scenario, folder) + 1]
            for kind in FILE_SYSTEMS
            for number in range(1, last + 1)
            for cut in CUTS
        ]
        chosen = sample(cases, options.sample, options.seed)
        for kind in FILE_SYSTEMS:
            with disk(kind, folder) as mounted:
                for _, scenario, number, cut in (case for case in chosen if case[0] == kind):
                    broken, returned = attempt(scenario, mounted, number, CUTS[cut])
                    where = "after its return" if returned else f"before write {number}"
                    report.add(
                        Case(
                            f"{kind}: {scenario.name}",
                            broken and f"{where}, {cut}: {broken}",
                            f'python -m faults.power_cuts --only "{scenario.name}"',
                        )
                    )
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
