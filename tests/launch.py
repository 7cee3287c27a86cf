"""Real processes: torchrun ranks that run one of tests/workers, and commands in private mounts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

WORKERS = Path(__file__).parent / "workers"

# The first DeepSpeed run on a machine compiles its shared-memory collectives.
TIMEOUT_SECONDS = 400


def run_ranks(
    worker: str,
    *arguments: object,
    ranks: int = 2,
    env: dict[str, str] | None = None,
    must_succeed: bool = True,
    timeout: float = TIMEOUT_SECONDS,
) -> subprocess.CompletedProcess[str]:
    """Runs a worker on so many ranks and returns when all have ended."""
    bin_folder = Path(sys.executable).parent
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={ranks}",
        str(WORKERS / worker),
        *map(str, arguments),
    ]
    done = subprocess.run(
        command,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",  # ninja, for DeepSpeed
            **(env or {}),
        },
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if must_succeed:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def private_mounts(script: str) -> list[str]:
    """A command that runs ``script`` by sh; nobody else sees what it mounts.

    Arguments may follow: ``$0``, ``$1`` and so on.
    """
    as_root = [] if os.geteuid() == 0 else ["--map-root-user"]
    return ["unshare", *as_root, "--mount", "sh", "-ec", script]
