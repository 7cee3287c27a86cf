"""Transactions of two ranks that are on two machines, as far as they know.

transaction_machines_worker.py FOLDER, with the rights to mount. FOLDER/shared is one folder for
both ranks. FOLDER/own is a file system of its own on each rank.
"""

import ctypes
import os
import shutil
import socket
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

import pyckpt

CLONE_NEWNS, CLONE_NEWUTS = 0x20000, 0x4000000
LIBC = ctypes.CDLL(None, use_errno=True)

dist.init_process_group("gloo")
RANK = dist.get_rank()
FOLDER = Path(sys.argv[1])
SHARED, OWN = FOLDER / "shared", FOLDER / "own"
SHARED.mkdir(exist_ok=True)
OWN.mkdir(exist_ok=True)
assert LIBC.unshare(CLONE_NEWNS | CLONE_NEWUTS) == 0, os.strerror(ctypes.get_errno())


def mount_own(options: bytes) -> None:
    assert LIBC.mount(b"none", os.fsencode(OWN), b"tmpfs", 0, options) == 0
    dist.barrier()


def write(target: Path, text: str, *, nbytes: int = 0, spoil: bool = False) -> None:
    with pyckpt.transaction(target) as path:
        (path / f"{RANK}").write_text(text)
        (path / f"large-{RANK}").write_bytes(bytes(nbytes))
        if spoil:
            shutil.rmtree(target, ignore_errors=True)
            target.touch()


def texts(target: Path) -> dict[str, str]:
    names = sorted(name for name in os.listdir(target) if "large" not in name)
    return {name: (target / name).read_text() for name in names}


# One machine, on which the ranks do not see the same: a mistake that must not pass.
mount_own(b"size=1m")
with pytest.raises(pyckpt.CheckpointError, match="is not seen"):
    write(OWN / "x", "new")
assert os.listdir(OWN) == []

socket.sethostname(f"machine-{RANK}")
dist.barrier()

# A file system that two machines share, though nothing says so.
for text in ("old", "new"):
    write(SHARED / "x", text)
    assert texts(SHARED / "x") == {"0": text, "1": text}
    dist.barrier()
assert os.listdir(SHARED) == ["x"]

# A file system on each machine.
for text in ("old", "new"):
    write(OWN / "x", text)
    assert texts(OWN / "x") == {f"{RANK}": text}
    dist.barrier()
assert os.listdir(OWN) == ["x"]

# The first rank's folder cannot get its name. The other one, which has it already, goes back.
for has_old in (True, False):
    target = OWN / ("x" if has_old else "y")
    with pytest.raises(pyckpt.FilenameError) as failed:
        write(target, "newest", spoil=RANK == 0)
    assert failed.value.rank == 0
    if RANK == 1:
        assert texts(OWN / "x") == {"1": "new"}
        assert os.listdir(OWN) == ["x"]

# A disk that is full on one machine.
if RANK == 0:
    (OWN / "x").unlink()
with pytest.raises(pyckpt.CheckpointError, match="No space left") as failed:
    write(OWN / "x", "newest", nbytes=2 << 20 if RANK else 0)
assert failed.value.rank == 1
assert [name for name in os.listdir(OWN) if name[0] == "."] == []
dist.barrier()
dist.destroy_process_group()
