"""The other ways to write the same state to disk.

Each takes the state, the path and whether to wait for the disk, and leaves one complete file.
None of them waits for the disk by itself. If they have to wait, as pyckpt does, file and folder are
synchronized here.
"""

from __future__ import annotations

import os
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.states import tensors_of

__all__ = ["Writer", "composers_way", "extract", "raw_write", "torch_save"]

Writer = Callable[[Any, Path, bool], None]

_TARFILE_MODES = {".tar": "w", ".tar.gz": "w:gz", ".tar.bz2": "w:bz2", ".tar.lzma": "w:xz"}
# Python's tarfile knows zstd since 3.14 only, so GNU tar takes its place.
_ZSTD = ".tar.zst"
_ZSTD_COMMAND = "zstd -1 -T2"
_COMMANDS = {
    **{".pt.gz": "gzip", ".pt.bz2": "bzip2", ".pt.xz": "xz", ".pt.lzma": "lzma"},
    ".pt.zst": "zstd",
}
_MEMBER = "composer_states.pt"
_PIECE_NBYTES = 8 << 20


def composers_way(state: Any, path: Path, fsync: bool) -> None:
    """What Composer's save_checkpoint does: torch.save to a temporary folder, tarfile over it.

    Composer takes the system's temporary folder; here it lies on the target's file system, so that
    all files of a comparison go to the same disk. tarfile's levels are its defaults, as there:
    gzip 9, bzip2 9, xz 6. For .tar.zst, GNU tar runs zstd -1 -T2. A name without a tar's suffix
    gets torch.save's own file, through a command that compresses if the name asks for one.
    """
    command = next((c for suffix, c in _COMMANDS.items() if path.name.endswith(suffix)), None)
    mode = next((m for suffix, m in _TARFILE_MODES.items() if path.name.endswith(suffix)), None)
    if command is not None:
        with path.open("wb") as file:
            compressing = subprocess.Popen([command], stdin=subprocess.PIPE, stdout=file)
            assert compressing.stdin is not None
            with compressing.stdin as pipe:
                torch.save(state, pipe)
            if compressing.wait() != 0:
                raise OSError(f"{command} failed")
    elif mode is None and not path.name.endswith(_ZSTD):
        with path.open("wb") as file:
            torch.save(state, file)
    else:
        with tempfile.TemporaryDirectory(prefix="checkpoint", dir=path.parent) as folder:
            with (Path(folder) / _MEMBER).open("wb") as file:
                torch.save(state, file)
            if mode is None:
                command = ["tar", "-I", _ZSTD_COMMAND, "-cf", path, "-C", folder, "."]
                subprocess.run(command, check=True)
            else:
                with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
                    archive.add(folder, arcname="")
    if fsync:
        _wait_for_disk(path)


def torch_save(state: Any, path: Path, fsync: bool) -> None:
    """torch.save to a path, without a tar and without compression."""
    torch.save(state, path)
    if fsync:
        _wait_for_disk(path)


def extract(path: Path, folder: Path) -> None:
    """Extracts an archive with Python's tarfile, or with GNU tar if it is a .tar.zst."""
    if path.name.endswith(_ZSTD):
        subprocess.run(["tar", "-xf", path, "-C", folder], check=True, capture_output=True)
    else:
        with tarfile.open(path, "r:*") as archive:
            archive.extractall(folder, filter="data")


def raw_write(state: Any, path: Path, fsync: bool) -> None:
    """Writes only the tensors' bytes, without a format, in one thread, 8 MiB at most at a time."""
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        for tensor in tensors_of(state):
            memory = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data
            for start in range(0, len(memory), _PIECE_NBYTES):
                piece = memory[start : start + _PIECE_NBYTES]
                while piece:
                    piece = piece[os.write(target, piece) :]
    finally:
        os.close(target)
    if fsync:
        _wait_for_disk(path)


def _wait_for_disk(path: Path) -> None:
    for name in (path, path.parent):
        opened = os.open(name, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
