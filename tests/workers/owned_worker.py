"""Makes each object of the core while one of its allocations fails: owned_worker.py FOLDER.

Runs with faults/native/allocations.c loaded before libc. What frees memory twice ends the process.
"""

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import pyckpt
from faults.leaks import Leaks
from faults.seam import Fault, Seam
from pyckpt import _core

OPTIONS: dict[str, Any] = {
    **{"tar": True, "deflated": False, "level": 1, "threads": 1},
    **{"mtime": 0, "uid": 0, "gid": 0},
}


def made_by(folder: Path) -> dict[str, Callable[[], object]]:
    path = folder / "x.tar.gz"
    pyckpt.save(torch.arange(1000.0), path)
    memory = torch.zeros(100, dtype=torch.uint8)
    live = _core.LiveMemory()
    gzip = next(row for row in _core.formats() if row.compression == "gzip")

    def image() -> _core.StreamImage:
        return _core.StreamImage(os.fsencode(path), threads=1, mapped=False, progress=None)

    opened = image()
    assert opened.require((0, 3000))
    return {
        "a sink": lambda: _core.file_sink(os.fsencode(folder / "y.tar"), True, "01234567"),
        "an ordered sink": lambda: _core.ordered_sink(len),
        "a writer": lambda: _core.ArchiveWriter(_core.ordered_sink(len), gzip, **OPTIONS),
        "live memory": lambda: _core.LiveMemory(),
        "a source": lambda: live.add(memory.data_ptr(), memory.nbytes),
        "an image": image,
        "a tar": lambda: _core.TarReader(opened),
        "a member": lambda: _core.TarReader(opened).next(),
        "bytes": lambda: memoryview(opened.take((0, 512))),
        "levels": lambda: gzip.levels,
        "formats": _core.formats,
    }


def main(folder: Path) -> None:
    seam = Seam()
    for name, make in made_by(folder).items():
        make()
        number = 0
        while True:
            number += 1
            leaks = Leaks()
            seam.begin(Fault("core", number, errno.ENOMEM))
            try:
                make()
                failed = False
            except (MemoryError, BufferError):
                failed = True
            took_place = seam.end()
            assert leaks.found() == [], name
            assert took_place or not failed, name
            if not took_place:
                break
        print(name, number - 1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
