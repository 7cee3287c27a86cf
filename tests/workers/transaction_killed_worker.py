"""One of two ranks is killed in a transaction: transaction_killed_worker.py FOLDER.

The first rank is the one that has the lock. The other writes what it raises.
"""

import os
import signal
import sys
from pathlib import Path

import torch.distributed as dist

import pyckpt

dist.init_process_group("gloo")
RANK = dist.get_rank()
FOLDER = Path(sys.argv[1])

with pyckpt.transaction(FOLDER / "work" / "x") as path:
    (path / "a").write_text("old")
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun sends it when a rank has died
try:
    with pyckpt.transaction(FOLDER / "work" / "x") as path:
        (path / f"{RANK}").write_text("new")
        dist.barrier()
        if RANK == 0:
            os.kill(os.getpid(), signal.SIGKILL)
except pyckpt.CheckpointError as error:
    (FOLDER / "survivor").write_text(str(error))
    raise
