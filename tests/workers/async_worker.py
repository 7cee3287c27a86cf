"""Saves asynchronously and ends in the way that the scenario names.

Usage: async_worker.py full | exit | raise STAGE FILENAME
"""

import sys

import torch
from torch import nn

import pyckpt

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


if __name__ == "__main__":
    main()
