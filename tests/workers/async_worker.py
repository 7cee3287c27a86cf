"""Saves asynchronously and ends in the way that the scenario names.

Usage: async_worker.py full | exit | raise | fork STAGE FILENAME
"""

import faulthandler
import os
import sys
import threading

import torch
from torch import nn

import pyckpt
from pyckpt.training import background

SCENARIO, STAGE, FILENAME = sys.argv[1:]


def main() -> None:
    state = pyckpt.State(nn.Identity(), extra={"weights": torch.randn(4_000_000)})
    pending = pyckpt.async_save_checkpoint(state, FILENAME, stage=STAGE)
    if SCENARIO == "full":
        error = pending.exception()
        assert isinstance(error, pyckpt.CheckpointError)
        print(type(error).__name__, error.errno, error)
        return
    if not pending.done():
        print("unfinished", flush=True)
    if SCENARIO == "raise":
        raise SystemExit("the training script fails")


def fork() -> None:
    """The child trains and saves while the parent still has a save to write."""
    torch.set_num_threads(1)
    model = nn.Linear(100, 100)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.ones(1, 100)).sum().backward()
    state = pyckpt.State(model, optimizer)
    earlier = background._last_work = threading.Event()
    pending = pyckpt.async_save_checkpoint(state, FILENAME, stage=STAGE)
    print("unfinished", flush=True)
    child = os.fork()
    if child == 0:
        faulthandler.dump_traceback_later(60, exit=True)
        optimizer.step()
        pyckpt.async_save_checkpoint(state, f"{FILENAME}.child.tar", stage=STAGE).result()
        print("child", flush=True)
        return
    ended = os.waitpid(child, 0)[1]
    earlier.set()
    assert ended == 0
    pending.result()
    print("parent", flush=True)


if __name__ == "__main__":
    fork() if SCENARIO == "fork" else main()
