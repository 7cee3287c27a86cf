"""Prints by how many bytes asynchronous saves make this process grow, for each case, as JSON.

Usage: async_memory_worker.py FILENAME
"""

import gc
import json
import sys
import threading
from collections.abc import Callable

import torch
from peak_memory import forget_peak, peak_nbytes
from torch import nn

import pyckpt
from pyckpt.staging.buffers import BufferPool
from pyckpt.training import background

FILENAME = sys.argv[1]
WIDTH = 3072


class Training:
    """Weights and momentum that steps change, and a buffer that they do not."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.model = nn.Linear(WIDTH, WIDTH, bias=False)
        self.model.register_buffer("table", torch.randn(WIDTH, WIDTH))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.model.weight.grad = torch.randn(WIDTH, WIDTH)
        self.optimizer.step()
        self.state = pyckpt.State(self.model, self.optimizer)

    def save(self, stage: str, *, times: int = 1, step: bool = True) -> None:
        """Starts ``times`` saves. With ``step`` the optimizer steps before any is written."""
        gate = background._last_work = threading.Event()
        options = {"stage": stage, "max_pending": times, "num_threads": 1, "fsync": False}
        saves = [
            pyckpt.async_save_checkpoint(self.state, FILENAME, **options) for _ in range(times)
        ]
        if step:
            self.optimizer.step()
        gate.set()
        for pending in saves:
            pending.result()


def growth_nbytes(work: Callable[[], None]) -> int:
    gc.collect()
    forget_peak()
    before = peak_nbytes()
    work()
    return peak_nbytes() - before


def main() -> None:
    training = Training()
    training.save("lazy", step=False)  # memory that is allocated only once
    found = {
        "stepped_nbytes": 2 * training.model.weight.nbytes,
        "other_nbytes": training.model.table.nbytes,
    }
    cases: dict[str, Callable[[], None]] = {
        "lazy, no step": lambda: training.save("lazy", step=False),
        "lazy, all unread": lambda: training.save("lazy"),
        "copy": lambda: training.save("copy"),
        "two copies": lambda: training.save("copy", times=2),
    }
    for name, case in cases.items():
        background._pool = BufferPool()
        found[name] = growth_nbytes(case)
        found[f"{name} again"] = growth_nbytes(case)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
