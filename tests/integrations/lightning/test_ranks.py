"""Two ranks, with gloo on the CPU.

There, FSDP1 of torch 2.13 ends the process with a segmentation fault when it gathers a full state.
So it is tested with shards only.
"""

from pathlib import Path

import pytest

from tests.launch import run_ranks

WORKER = str(Path(__file__).parent / "ranks_worker.py")

pytestmark = pytest.mark.timeout(150)


@pytest.mark.parametrize(
    "scenario",
    [
        "ddp",
        "ddp, asynchronous",
        "rank 0 fails",
        "rank 0 fails, asynchronous",
        "model parallel",
        "model parallel, compressed",
        "model parallel, full",
        "model parallel, failure",
        "fsdp",
        "fsdp, compressed",
    ],
)
def test_ranks(tmp_path: Path, scenario: str) -> None:
    run_ranks(WORKER, tmp_path, scenario, timeout=140)
