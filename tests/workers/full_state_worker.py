"""One rank (gloo, FSDP2) that saves a sharded state as one file.

Usage: full_state_worker.py SCENARIO FOLDER
What each rank saw is in FOLDER/SCENARIO-RANK.json.
"""

import gc
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import pyckpt
from pyckpt.sharded import gather
from tests.workers.peak_memory import forget_peak, peak_nbytes

SCENARIO, FOLDER = sys.argv[1], Path(sys.argv[2])
WIDTH = 2048
LAYERS = 12


def make(width: int) -> pyckpt.State:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(LAYERS)))
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return pyckpt.State(model)


def save(state: pyckpt.State, name: str) -> None:
    pyckpt.save_checkpoint(state, FOLDER / name, num_threads=1, fsync=False)


def attempt(state: pyckpt.State, name: str) -> list[Any]:
    try:
        save(state, name)
    except pyckpt.CheckpointError as error:
        return [type(error).__name__, str(error), error.rank, error.errno, error.path]
    return []


def memory() -> dict[str, Any]:
    """How much a save grows each rank, with a batch of two layers."""
    gather.BATCH_NBYTES = 2 * WIDTH * WIDTH * 4
    state = make(WIDTH)
    save(make(64), "small.tar")  # what is allocated only once
    gc.collect()
    forget_peak()
    before = peak_nbytes()
    save(state, "large.tar")
    return {
        "growth": peak_nbytes() - before,
        "batch": gather.BATCH_NBYTES,
        "state": LAYERS * WIDTH * WIDTH * 4,
    }


def disk() -> dict[str, Any]:
    """The first rank may not write more than half of the file. Then it may."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    width = 256
    nbytes = width * width * 4
    gather.BATCH_NBYTES = 2 * nbytes
    state = make(width)
    save(state, "good.tar")
    with torch.no_grad():
        for parameter in state.model.parameters():
            parameter.add_(1)
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    if dist.get_rank() == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (LAYERS * nbytes // 2, unlimited[1]))
    errors = [attempt(state, name) for name in ("new.tar", "good.tar")]
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    dist.barrier()
    there = sorted(os.listdir(FOLDER))
    dist.barrier()
    return {"errors": errors, "there": there, "later": attempt(state, "later.tar")}


def main() -> None:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    report = {"memory": memory, "disk": disk}[SCENARIO]()
    (FOLDER / f"{SCENARIO}-{dist.get_rank()}.json").write_text(json.dumps(report))
    dist.barrier()
    gc.collect()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
