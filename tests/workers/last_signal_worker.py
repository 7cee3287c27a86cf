"""Two ranks; only the last one gets the signal, when the last step is over, and both save and end.

last_signal_worker.py FOLDER STEPS
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch.distributed as dist

import pyckpt

FOLDER = Path(sys.argv[1])
STEPS = int(sys.argv[2])


def main() -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    code = None
    try:
        with pyckpt.save_on_signal(lambda: pyckpt.save(1, FOLDER / f"rank{rank}.pt")) as after_step:
            for step in range(STEPS):
                if step == STEPS - 1 and rank == 1:
                    os.kill(os.getpid(), signal.SIGTERM)
                after_step()
            if STEPS == 0 and rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
    except SystemExit as ended:
        code = ended.code
    assert code == 128 + signal.SIGTERM
    dist.barrier()
    dist.destroy_process_group()


main()
