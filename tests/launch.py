"""Real processes: ranks that run one of tests/workers, and commands in private mounts."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import wait
from pathlib import Path

import torch.distributed as dist

WORKERS = Path(__file__).parent / "workers"

# The first DeepSpeed run on a machine compiles its shared-memory collectives.
TIMEOUT_SECONDS = 400

# To import torch and DeepSpeed takes longer than most of what ranks do. So one process does it, has
# no threads, and every rank is forked from that.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.preloaded"])


def run_ranks(
    worker: str,
    *arguments: object,
    ranks: int = 2,
    must_succeed: bool = True,
    timeout: float = TIMEOUT_SECONDS,
) -> None:
    """Runs a worker on so many ranks, each a process, and returns when all have ended.

    They find what torchrun's find: its variables, a store that outlives them, and SIGTERM when
    another rank has failed. Only the end of an interpreter they do not go through.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with tempfile.NamedTemporaryFile() as output:
        processes = [
            _FORKS.Process(
                target=_run_rank,
                args=(_variables(rank, ranks, store.port), output.name, worker, arguments),
            )
            for rank in range(ranks)
        ]
        for process in processes:
            process.start()
        try:
            _wait(processes, time.monotonic() + timeout)
        finally:
            for process in processes:
                process.kill()
                process.join()
        codes = [process.exitcode for process in processes]
        assert not any(codes) or not must_succeed, Path(output.name).read_text()


def torchrun(
    worker: str, *arguments: object, must_succeed: bool = True, timeout: float = TIMEOUT_SECONDS
) -> subprocess.CompletedProcess[str]:
    """The same for two ranks as users start them: each in an interpreter of its own."""
    done = subprocess.run(
        [
            sys.executable,
            *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
            str(WORKERS / worker),
            *map(str, arguments),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PATH": _path()},
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


def _variables(rank: int, ranks: int, port: int) -> dict[str, str]:
    """What torchrun tells a rank."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(ranks),
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "PATH": _path(),
    }


def _path() -> str:
    """With ninja, for DeepSpeed."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def _run_rank(
    variables: dict[str, str], output: str, worker: str, arguments: tuple[object, ...]
) -> None:
    with open(output, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(variables)
    sys.argv = [worker, *map(str, arguments)]
    runpy.run_path(str(WORKERS / worker), run_name="__main__")


def _wait(processes: list[multiprocessing.process.BaseProcess], deadline: float) -> None:
    running = list(processes)
    while running and (left := deadline - time.monotonic()) > 0:
        ended = wait([process.sentinel for process in running], left)
        failed = [process for process in running if process.sentinel in ended and process.exitcode]
        running = [process for process in running if process.sentinel not in ended]
        if failed:
            for process in running:
                process.terminate()
    assert not running, "ranks have not ended in time"
