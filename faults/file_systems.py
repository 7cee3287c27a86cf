"""Saves on real file systems: with and without links, modes, files without a name, and room.

    sudo python -m faults.file_systems [--sample N] [--help]

Images on loop devices, mounted by the kernel or by FUSE. On each file system every way to save must
replace the older checkpoint and leave nothing else. On a full one, and on one that cannot be
written to, it must raise, and the older checkpoint must stay. A file of a set that is taken back
must be the older one again.
"""

from __future__ import annotations

import errno
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyckpt
from faults.own_mounts import has_own_mounts, run_with_own_mounts
from faults.report import Case, Report, argument_parser, sample
from faults.ways import Way, tensors, ways
from pyckpt.archive.assembly import saving
from pyckpt.archive.writer import ArchiveWriter
from pyckpt.options import WriteOptions

__all__ = ["main"]

_IMAGE_NBYTES = 400 << 20  # XFS wants 300 MB at least
_PATIENCE_SECONDS = 60


@dataclass(frozen=True)
class FileSystem:
    """How a file system is made and mounted.

    Attributes:
        make: A command, before the image; none if there is no image.
        mount: A command, before the image (or what else is mounted) and the folder.
        unmount: A command, before the folder.
    """

    make: Sequence[str]
    mount: Sequence[str]
    unmount: Sequence[str] = ("umount",)

    @contextmanager
    def mounted(self, folder: Path) -> Iterator[Path]:
        """A folder of it."""
        image, inside = folder / "image", folder / "mounted"
        inside.mkdir()
        if self.make:
            with image.open("wb") as file:
                file.truncate(_IMAGE_NBYTES)
            _run(*self.make, image)
        else:
            image.mkdir()
        _run(*self.mount, image, inside)
        try:
            yield inside
        finally:
            _run(*self.unmount, inside)


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_SECONDS)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stdout}{done.stderr}")


_LOOP = ("mount", "-o", "loop")
_FUSE = ("fusermount", "-u")
# Over a file system that has an end.
_BINDFS = 'mount -t tmpfs -o size=100M none "$1"; bindfs "$1" "$2"'
_NO_BINDFS = 'umount "$1"; umount "${1%/*}/image"'
FILE_SYSTEMS = {
    "ext2": FileSystem(("mkfs.ext2", "-q"), _LOOP),
    "ext3": FileSystem(("mkfs.ext3", "-q"), _LOOP),
    "ext4": FileSystem(("mkfs.ext4", "-q"), _LOOP),
    "XFS": FileSystem(("mkfs.xfs", "-q"), _LOOP),
    "Btrfs": FileSystem(("mkfs.btrfs", "-q"), _LOOP),
    "tmpfs": FileSystem((), ("mount", "-t", "tmpfs", "-o", "size=100M")),
    "exFAT by FUSE": FileSystem(("mkfs.exfat",), ("mount", "-t", "exfat-fuse", "-o", "loop")),
    "NTFS by FUSE": FileSystem(("mkfs.ntfs", "-q", "-F", "-f"), ("ntfs-3g",)),
    "ext4 by FUSE": FileSystem(("mkfs.ext4", "-q"), ("fuse2fs", "-o", "fakeroot"), _FUSE),
    "bindfs": FileSystem((), ("sh", "-ec", _BINDFS, "sh"), ("sh", "-ec", _NO_BINDFS, "sh")),
}


def leftovers(folder: Path) -> list[str]:
    """Hidden files, which no save may leave."""
    return sorted(path.name for path in folder.rglob(".*"))


def replaced(way: Way, folder: Path) -> str:
    """A save over an older one."""
    if not way.first:
        way.save(folder, 1)
    way.save(folder, 2)
    return way.problem(way.found(folder), returned=True)


def on_full_disk(way: Way, folder: Path) -> str:
    """A save for which there is no room, and one when there is room again."""
    if not way.first:
        way.save(folder, 1)
    blocks = folder / "blocks"
    _fill(blocks)
    try:
        way.save(folder, 2)
    except (OSError, pyckpt.CheckpointError) as error:
        if error.errno != errno.ENOSPC:
            return f"errno is {error.errno}: {error}"
    else:
        return "no error"
    if way.found(folder) != (0 if way.first else 1):
        return "the older checkpoint is not there"
    # Some file systems have no room to remove a file. The next save sweeps what is left then.
    blocks.unlink()
    way.save(folder, 2)
    return way.problem(way.found(folder), returned=True)


def _fill(path: Path) -> None:
    """Takes all the room that there is."""
    with path.open("wb", buffering=0) as file:
        for nbytes in (1 << 20, 4096, 512):
            try:
                while True:
                    file.write(b"x" * nbytes)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise


def taken_back(folder: Path) -> str:
    """A rank's file that is named, and then taken back, since another rank has failed."""
    path = folder / "model.tar.gz"
    pyckpt.save(tensors(1), path)
    with saving(path), ArchiveWriter(path, WriteOptions()) as archive:
        archive.add_object("composer_states.pt", tensors(2))
        archive.write()
        archive.commit(keep_previous=True)
        if pyckpt.load(path)["version"] != 2:
            return "the new file is not there after the commit"
        archive.restore()
    return "" if pyckpt.load(path)["version"] == 1 else "the older file is not there again"


def read_only(folder: Path) -> str:
    """A save into a folder that cannot be written to, although the caller is root."""
    path = folder / "model.tar.gz"
    pyckpt.save(tensors(1), path)
    _run("mount", "--bind", folder, folder)
    try:
        _run("mount", "-o", "remount,bind,ro", folder)
        pyckpt.save(tensors(2), path)
        return "no error"
    except (OSError, pyckpt.CheckpointError) as error:
        if error.errno != errno.EROFS:
            return f"errno is {error.errno}: {error}"
    finally:
        _run("umount", folder)
    return "" if pyckpt.load(path)["version"] == 1 else "the older file is not there"


def cases() -> Iterator[tuple[str, Callable[[Path], str]]]:
    """What is tried on each file system."""
    for way in ways():
        if not way.durable:
            continue
        yield way.name, lambda folder, way=way: replaced(way, folder)
        yield f"{way.name}, full disk", lambda folder, way=way: on_full_disk(way, folder)
    yield "taken back", taken_back
    yield "read-only", read_only


def attempt(case: Callable[[Path], str], folder: Path) -> str:
    """What does not hold in an empty folder; empty if everything does."""
    folder.mkdir()
    try:
        broken = case(folder)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if not broken and (left := leftovers(folder)):
        return f"{left} is left"
    return broken


def main(arguments: list[str] | None = None) -> int:
    """Runs the campaign; returns its exit code."""
    parser = argument_parser(__doc__)
    parser.add_argument("--only", default="", help="file systems with this in their name")
    options = parser.parse_args(arguments)
    if not has_own_mounts():
        return run_with_own_mounts("faults.file_systems")
    report = Report("File systems")
    for name, file_system in FILE_SYSTEMS.items():
        if options.only not in name:
            continue
        chosen = sample(list(cases()), options.sample and -(-options.sample // len(FILE_SYSTEMS)))
        with tempfile.TemporaryDirectory() as outer:
            for number, (what, case) in enumerate(chosen):
                folder = Path(outer) / str(number)
                folder.mkdir()
                with file_system.mounted(folder) as inside:
                    broken = attempt(case, inside / "checkpoints")
                repeat = f'python -m faults.file_systems --only "{name}"'
                report.add(Case(name, broken and f"{what}: {broken}", repeat))
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
