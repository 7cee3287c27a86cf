"""Ranks in a transaction to a store; prints nothing if the outcome is as expected.

Usage: torchrun ... uploaded_folder_worker.py URL SERVER FOLDER PLAN

FOLDER has the temporary folders. PLAN is JSON: whether each rank has a temporary folder of its own,
as on machines of their own ("own"), the rank that raises in its block ("block"), the one that is
killed while it uploads ("killed"), and the one that the error has to name ("failing"); -1 for none.
"""

import json
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path

import torch.distributed as dist

import pyckpt
from pyckpt.storage import retries

URL, SERVER, FOLDER = sys.argv[1:4]
PLAN = json.loads(sys.argv[4])
OPTIONS = {"endpoint_url": SERVER, "key": "key", "secret": "secret"}
retries._PAUSES = (0.01,) * 3
dist.init_process_group("gloo")
RANK, SIZE = dist.get_rank(), dist.get_world_size()
tempfile.tempdir = str(Path(FOLDER, str(RANK if PLAN["own"] else 0)))


def outcomes_of_all(own: object) -> list[object]:
    told: list[object] = [None] * SIZE
    dist.all_gather_object(told, own)
    return told


def write(path: Path) -> None:
    (path / f"big{RANK}").write_bytes(bytes([RANK]) * (9 << 20))
    (path / f"small{RANK}").write_bytes(bytes([RANK]))
    if PLAN["block"] == RANK:
        raise ValueError("no")
    if PLAN["killed"] == RANK:
        threading.Timer(3, os.kill, (os.getpid(), signal.SIGKILL)).start()
    elif PLAN["killed"] >= 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun sends it when a rank has died


failed: pyckpt.CheckpointError | None = None
try:
    with pyckpt.transaction(URL, storage_options=OPTIONS) as path:
        write(path)
        paths = outcomes_of_all(str(path)) if PLAN["block"] < 0 else []
        assert len(set(paths)) in ((0, SIZE) if PLAN["own"] else (0, 1)), paths
except pyckpt.CheckpointError as error:
    failed = error
if PLAN["killed"] >= 0:
    Path(FOLDER, "survivor").write_text(str(failed))
    sys.exit(1)
told = outcomes_of_all(None if failed is None else (str(failed), failed.rank, failed.path))
assert all(one == told[0] for one in told), told
assert not path.exists()
assert (-1 if failed is None else failed.rank) == PLAN["failing"], told

if failed is None and PLAN["own"]:
    # A name on two machines. Nothing is uploaded.
    duplicate: pyckpt.CheckpointError | None = None
    try:
        with pyckpt.transaction(f"{URL}-2", storage_options=OPTIONS) as path:
            (path / "same").touch()
    except pyckpt.DuplicateFileError as error:
        duplicate = error
    assert duplicate is not None
    assert (duplicate.path, duplicate.rank) == (f"{URL}-2/same", 1)
    # A file that is a folder on another machine.
    duplicate = None
    try:
        with pyckpt.transaction(f"{URL}-2", storage_options=OPTIONS) as path:
            file = path / "same" / str(RANK) if RANK else path / "same"
            file.parent.mkdir(exist_ok=True)
            file.touch()
    except pyckpt.DuplicateFileError as error:
        duplicate = error
    assert duplicate is not None
    assert (duplicate.path, duplicate.rank) == (f"{URL}-2/same", 1)
    # Another URL on each rank.
    mixed = False
    try:
        with pyckpt.transaction(f"{URL}-{RANK}", storage_options=OPTIONS):
            raise AssertionError("the block ran")
    except pyckpt.MixedFilesError:
        mixed = True
    assert mixed
dist.barrier()
dist.destroy_process_group()
