"""Two ranks; only the last one gets the signal, in step 3, and both save after the same step.

signals_worker.py FOLDER
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import torch.distributed as dist

import pyckpt

FOLDER = Path(sys.argv[1])


def main() -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()

    def save() -> None:
        found = {"step": step, "signal": after_step.signal}
        pyckpt.save(found, FOLDER / f"rank{rank}.pt")

    # Some steps without a signal first: the exchange that is under way at the end is waited for.
    with pyckpt.save_on_signal(save) as after_step:
        for _ in range(5):
            after_step()

    code = None
    try:
        with pyckpt.save_on_signal(save) as after_step:
            for step in range(1000):
                if step == 3 and rank == 1:
                    os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.01 * rank)
                after_step()
    except SystemExit as ended:
        code = ended.code
    assert code == 128 + signal.SIGTERM
    dist.barrier()
    dist.destroy_process_group()


main()
