"""Starts real processes: ranks that run one of tests/workers, and commands with private mounts."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

WORKERS = Path(__file__).parent / "workers"

# The first DeepSpeed run on a machine compiles its shared-memory collectives.
TIMEOUT_SECONDS = 400

# Importing torch and DeepSpeed takes longer than most of what ranks do. So one process without
# threads imports them, and every rank is forked from it.
multiprocessing.set_forkserver_preload(["tests.preloaded"])


def run_ranks(
    worker: str,
    *arguments: object,
    ranks: int = 2,
    must_succeed: bool = True,
    timeout: float = TIMEOUT_SECONDS,
) -> None:
    """Runs a worker on ``ranks`` ranks, one process each, and returns when all have ended.

    torchrun's own agent starts the ranks, and ends the others when one fails. The only difference
    to torchrun: the interpreters are forked, not started.
    """
    with tempfile.TemporaryDirectory() as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=ranks,
            run_id="tests",
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,
            start_method="forkserver",
            logs_specs=DefaultLogsSpecs(log_dir=folder, redirects=Std.ALL),
        )
        late = threading.Timer(timeout, os.kill, (os.getpid(), signal.SIGTERM))
        late.start()
        try:
            elastic_launch(config, _run_rank)(worker, arguments)
        except ChildFailedError:
            logs = [path.read_text() for path in sorted(Path(folder).rglob("*.log"))]
            assert not must_succeed, "\n".join(logs)
        finally:
            late.cancel()


def run_without_agent(
    worker: str,
    *arguments: object,
    ranks: int = 2,
    environment: Mapping[str, str],
    timeout: float = TIMEOUT_SECONDS,
) -> list[int | None]:
    """Runs ranks that nobody ends when one of them is killed; returns their exit codes.

    What they print goes to this process's output. None stands for a rank that took too long.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    processes = []
    for rank in range(ranks):
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        own = {**environment, "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        own.update((name, str(number)) for name, number in numbers.items())
        processes.append(context.Process(target=_run_with, args=(own, worker, arguments)))
    for process in processes:
        process.start()
    end = time.monotonic() + timeout
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


def torchrun(
    worker: str, *arguments: object, must_succeed: bool = True, timeout: float = TIMEOUT_SECONDS
) -> subprocess.CompletedProcess[str]:
    """Runs a worker on two ranks as users start them: each rank is a new interpreter."""
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
    """A command that runs ``script`` with sh; other processes do not see what it mounts.

    Arguments may be appended: they become ``$0``, ``$1`` and so on.
    """
    as_root = [] if os.geteuid() == 0 else ["--map-root-user"]
    return ["unshare", *as_root, "--mount", "sh", "-ec", script]


def _path() -> str:
    """PATH with the interpreter's folder in front, where DeepSpeed finds ninja."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def _run_with(environment: Mapping[str, str], worker: str, arguments: tuple[object, ...]) -> None:
    os.environ.update(environment)
    _run_rank(worker, arguments)


def _run_rank(worker: str, arguments: tuple[object, ...]) -> None:
    os.environ["PATH"] = _path()
    sys.argv = [worker, *map(str, arguments)]
    runpy.run_path(str(WORKERS / worker), run_name="__main__")
