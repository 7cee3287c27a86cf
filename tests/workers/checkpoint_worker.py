"""One rank of a plain torch.distributed run (gloo) that saves a checkpoint.

Usage: torchrun ... checkpoint_worker.py SCENARIO OUT FILENAME
Every rank reports to OUT/SCENARIO-RANK.json what save_checkpoint returned or raised.
"""

import gc
import json
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import pyckpt

SCENARIO, OUT, FILENAME = sys.argv[1], Path(sys.argv[2]), sys.argv[3]


class Unpicklable:
    def __reduce__(self) -> str:
        raise RuntimeError("this state cannot be pickled")


class Trouble(pyckpt.State):
    """A state that cannot be saved on one rank, in the way that the scenario names."""

    def state_dict(self) -> dict[str, Any]:
        rank = dist.get_rank()
        if SCENARIO == "state_dict" and rank == 1:
            raise KeyError("no such layer")
        if SCENARIO == "killed" and rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        state = super().state_dict()
        if SCENARIO == "pickling":
            state["bad"] = Unpicklable()
        return state


def interrupt_soon() -> None:
    """Sends this process a signal while it writes. The handler raises."""

    def handler(*_: object) -> None:
        raise TimeoutError("the job's time is up")

    signal.signal(signal.SIGUSR1, handler)
    threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGUSR1)).start()


def main() -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun sends it when a rank has died
    random.seed(rank)
    torch.manual_seed(0)
    size = 3000 if SCENARIO == "signal" else 30
    model = nn.parallel.DistributedDataParallel(nn.Linear(size, size))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, size)).sum().backward()
    optimizer.step()
    state = Trouble(model, optimizer, run_name="plain", timestamp=pyckpt.Timestamp(batch=1))
    if SCENARIO == "signal" and rank == 0:
        interrupt_soon()
    report: dict[str, Any] = {}
    start = time.monotonic()
    try:
        paths = pyckpt.save_checkpoint(state, FILENAME, weights_only=SCENARIO == "weights")
        report["paths"] = [str(p) for p in paths]
    except pyckpt.CheckpointError as error:
        report["error"] = [type(error).__name__, str(error), error.rank]
        report["cause"] = type(error.__cause__).__name__
    report["seconds"] = time.monotonic() - start
    (OUT / f"{SCENARIO}-{rank}.json").write_text(json.dumps(report))
    if SCENARIO != "killed":
        dist.barrier()  # the group still works
        # DDP is part of a reference cycle. If it still holds the group at exit, the process may
        # abort.
        del state, optimizer, model
        gc.collect()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
