"""Saves objects of many GiB of zeros with pyckpt, and without the zeros with torch.

Run it with sparse_disk.cc preloaded. Usage: large_worker.py FOLDER
"""

import mmap
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

import pyckpt

FOLDER = Path(sys.argv[1])
GIB = 1 << 30
MAX32 = 0xFFFFFFFF


def zeros(nbytes: int) -> torch.Tensor:
    """Mapped memory that nobody writes to, so that it takes no pages."""
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=torch.uint8)


def by_torch(obj: object, folder: Path) -> Path:
    folder.mkdir(parents=True)
    path = folder / "archive"  # torch names the zip's root folder after the file
    with torch.serialization.skip_data():
        torch.save(obj, path)
    return path


def two_with_second_header_at(offset: int) -> list[torch.Tensor]:
    def second_header(path: Path) -> int:
        with zipfile.ZipFile(path) as archive:
            return archive.getinfo("archive/data/1").header_offset

    trial = [zeros(MAX32 - GIB), torch.arange(3)]
    short = offset - second_header(by_torch(trial, FOLDER / "trials" / str(offset)))
    return [zeros(trial[0].nbytes + short), trial[1]]


CASES: dict[str, Callable[[], list[torch.Tensor]]] = {
    "large-and-far": lambda: [zeros(4 * GIB), torch.arange(5), zeros(4 * GIB), torch.arange(7)],
    "data-just-small": lambda: [zeros(MAX32 - 1), torch.arange(3)],
    "data-just-large": lambda: [zeros(MAX32), torch.arange(3)],
    "header-just-near": lambda: two_with_second_header_at(MAX32 - 1),
    "header-just-far": lambda: two_with_second_header_at(MAX32),
}


def deflated(path: Path) -> None:
    """A record that is long, and whose code is not."""
    path.parent.mkdir(parents=True)
    pyckpt.save([zeros(4 * GIB + 1), torch.arange(5)], path, compression_level=1, fsync=False)


def main() -> None:
    deflated(FOLDER / "deflated" / "x.pt")
    for name, make in CASES.items():
        obj = make()
        by_torch(obj, FOLDER / name / "torch")
        pyckpt.save(obj, FOLDER / name / "pyckpt" / "archive", fsync=False)
        if name == "large-and-far":
            pyckpt.save(obj, FOLDER / name / "pyckpt" / "archive.tar", fsync=False)


if __name__ == "__main__":
    main()
