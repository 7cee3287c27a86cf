"""One rank (gloo, FSDP2) of saves in shards to which something happens.

``save`` saves to each of the paths and trains a step after each. ``kill`` trains longer and saves
too, but rank 0 kills rank 1 while the archives are written; if a save succeeds nevertheless, there
is a file FOLDER/saved. ``load`` tries to load each of the paths, and reports to
FOLDER/load-RANK.json, by path, what was raised and whether the state is as before.

Usage: torchrun ... sharded_faults_worker.py MODE FOLDER PATH...
"""

import gc
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import pyckpt
from pyckpt.state import each
from tests.layouts import Run, build

MODE, FOLDER, PATHS = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]


def own_bytes(run: Run) -> list[bytes]:
    """The bits of this rank's shards."""
    tensors = list(run.state.model.state_dict().values())
    for optimizer in each(run.state.optimizers):
        tensors += [value for values in optimizer.state.values() for value in values.values()]
    return [getattr(one, "_local_tensor", one).numpy().tobytes() for one in tensors]


def attempt(path: str) -> dict[str, Any]:
    run = build("fsdp2", "adamw", seed=1, tied=True)
    run.train(1)
    before = own_bytes(run)
    try:
        pyckpt.load_checkpoint(path, run.state)
    except pyckpt.CheckpointError as error:
        return {
            "error": [type(error).__name__, str(error), error.rank],
            "unchanged": own_bytes(run) == before,
        }
    return {"batch": run.state.timestamp.batch, "losses": run.train(2)}


class KillRank1:
    """A progress hook of rank 0."""

    def __init__(self) -> None:
        pids: list[Any] = [None, None]
        dist.all_gather_object(pids, os.getpid())
        self._pid = pids[1]

    def __call__(self, done: int, total: int | None) -> None:
        os.kill(self._pid, signal.SIGKILL)
        time.sleep(60)  # the agent ends this rank too


def main() -> None:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    if MODE == "load":
        report = {path: attempt(path) for path in PATHS}
        (FOLDER / f"load-{dist.get_rank()}.json").write_text(json.dumps(report))
    else:
        run = build("fsdp2", "adamw", seed=0, tied=True)
        run.train(3 if MODE == "kill" else 1)
        for path in PATHS:
            hook = KillRank1() if MODE == "kill" else False
            pyckpt.save_checkpoint(run.state, path, state_dict_type="sharded", progress=hook)
            (FOLDER / "saved").touch()
            run.train(1)
    dist.barrier()
    gc.collect()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
