"""Saves a state of one tensor under each name and prints the outcomes as a JSON list.

Usage: save_worker.py [--fsync] NBYTES FILENAME...
"""

import json
import os
import signal
import sys
from typing import Any

import torch
from peak_memory import forget_peak, peak_nbytes
from torch import nn

import pyckpt

FSYNC = sys.argv[1] == "--fsync"
NBYTES, *FILENAMES = sys.argv[2:] if FSYNC else sys.argv[1:]
NOISE_NUMEL = 1 << 20
CPUS = 2  # so that all machines need the same memory


def save(state: pyckpt.State, filename: str) -> dict[str, Any]:
    forget_peak()
    before = peak_nbytes()
    outcome: dict[str, Any] = {}
    try:
        pyckpt.save_checkpoint(state, filename, fsync=FSYNC)
    except KeyboardInterrupt:
        outcome["interrupted"] = True
    except pyckpt.CheckpointError as error:
        outcome["error"] = [type(error).__name__, str(error)]
        outcome["fields"] = [error.errno, error.path, error.rank]
    return {**outcome, "growth_nbytes": peak_nbytes() - before}


def main() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the parent may ignore SIGINT
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CPUS])
    weights = torch.randn(NOISE_NUMEL).repeat(max(1, int(NBYTES) // (4 * NOISE_NUMEL)))
    state = pyckpt.State(nn.Identity(), extra={"weights": weights})
    print(json.dumps([save(state, filename) for filename in FILENAMES]))


if __name__ == "__main__":
    main()
