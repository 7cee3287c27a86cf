"""One rank of a plain torch.distributed run (gloo) whose training stops and goes on.

``save`` trains, saves and trains on. ``load...`` starts from other seeds, loads what was saved and
trains on. In ``load-no-room`` a rank that has read a file can write only 512 bytes to a file. Every
rank reports to OUT/MODE-RANK.json the losses after the save, what was raised, and which files it
read.

Usage: torchrun ... resume_worker.py MODE OUT PATH
"""

import gc
import json
import random
import resource
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

import pyckpt
from pyckpt.state import each
from pyckpt.training import shared_reads

MODE, OUT, PATH = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
TRAINED, MORE = 3, 3


class Own(torch.optim.AdamW):
    """An optimizer that loads in a way of its own, so that nobody can tell what it accepts."""

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)


def build(seed: int) -> pyckpt.State:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    one_differs = MODE == "load-one-wider"
    width = 16 if MODE == "load-wider" or (one_differs and dist.get_rank() == 1) else 8
    model: nn.Module = nn.Sequential(nn.Linear(4, width), nn.Dropout(0.5), nn.Linear(width, 2))
    kind = Own if one_differs else torch.optim.AdamW
    optimizer: Any = kind(model.parameters(), lr=0.05)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    if not one_differs:  # ranks of DistributedDataParallel have equal shapes
        model = nn.parallel.DistributedDataParallel(model)
    optimizers = {"AdamW": optimizer} if one_differs else optimizer
    return pyckpt.State(model, optimizers, scheduler)


def train(state: pyckpt.State, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        x = torch.randn(6, 4) * random.random() + np.random.random()
        loss = state.model(x.float()).square().mean()
        [optimizer] = each(state.optimizers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        state.schedulers.step()
        state.timestamp.batch += 1
        losses.append(loss.item())
    return losses


def note_reads() -> list[str]:
    """A list to which each file is added that this rank reads from now on."""
    paths: list[str] = []
    load = shared_reads.load

    def noting(file: Any, **options: Any) -> Any:
        paths.append(str(file.path))
        obj = load(file, **options)
        if MODE == "load-no-room":
            resource.setrlimit(resource.RLIMIT_FSIZE, (512, resource.RLIM_INFINITY))
        return obj

    shared_reads.load = noting
    return paths


def main() -> None:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    rank = dist.get_rank()
    report: dict[str, Any] = {}
    if MODE == "save":
        state = build(seed=rank)
        train(state, TRAINED)
        pyckpt.save_checkpoint(state, PATH)
    else:
        state = build(seed=100 + rank)
        train(state, 1)
        before = repr(state.state_dict())
        report["read"] = note_reads()
        try:
            with warnings.catch_warnings(record=True) as caught:
                pyckpt.load_checkpoint(PATH, state)
            report["warnings"] = [str(one.message) for one in caught]
        except pyckpt.CheckpointError as error:
            report["error"] = [type(error).__name__, str(error), error.rank, error.path]
            report["unchanged"] = repr(state.state_dict()) == before
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    report["batch"] = state.timestamp.batch
    report["losses"] = train(state, MORE)
    (OUT / f"{MODE}-{rank}.json").write_text(json.dumps(report))
    # DDP is part of a reference cycle. If it still holds the group at exit, the process may abort.
    del state
    gc.collect()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
