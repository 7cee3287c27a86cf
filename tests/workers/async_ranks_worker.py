"""One rank of a gloo run that saves asynchronously and trains on.

Usage: torchrun ... async_ranks_worker.py SCENARIO OUT FOLDER [ZERO]
It trains with DeepSpeed at ZeRO stage ZERO, or with DDP if that is not given.
Every rank reports to OUT/SCENARIO-RANK.json.
"""

import gc
import json
import os
import random
import signal
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import torch
import torch.distributed as dist
from torch import nn

import pyckpt
from pyckpt.staging import lazy, pending_saves
from pyckpt.training import background

SCENARIO, OUT, FOLDER = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
ZERO = int(sys.argv[4]) if len(sys.argv) > 4 else None
SUFFIXES = [".tar", ".tar.gz", ".tar.bz2", ".tar.lzma"]
WIDTH = 64


class Statistics(nn.Module):
    """A module with a buffer that forward changes, as BatchNorm's do, in any float dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.mean.lerp_(x.detach().mean(0).to(self.mean.dtype), 0.1)
        return x.relu()


class Training:
    """A model whose forward changes statistics. The data depend only on step and rank."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        torch.set_num_threads(1)
        net = nn.Sequential(nn.Linear(16, WIDTH), Statistics(), nn.Linear(WIDTH, 16))
        self.step_count = 0
        if ZERO is None:
            dist.init_process_group("gloo")
            self.model: Any = nn.parallel.DistributedDataParallel(net)
            optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
            self.backward: Callable[[torch.Tensor], Any] = torch.Tensor.backward
            self.step: Callable[[], Any] = optimizer.step
            self.state = pyckpt.State(self.model, optimizer)
        else:
            self.model = self.engine(net)
            # pyckpt may replace engine.step later, by its hook: so each call looks it up.
            self.backward, self.step = self.model.backward, lambda: self.model.step()
            self.state = pyckpt.State(self.model)
        self.rank = dist.get_rank()
        random.seed(self.rank)

    @staticmethod
    def engine(net: nn.Module) -> Any:
        import deepspeed

        deepspeed.init_distributed("gloo")
        config = {
            "train_micro_batch_size_per_gpu": 4,
            "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "torch_adam": True}},
            "zero_optimization": {"stage": ZERO, "stage3_param_persistence_threshold": 0},
            "bf16": {"enabled": True},
        }
        return deepspeed.initialize(model=net, config=config, model_parameters=net.parameters())[0]

    def train(self, steps: int) -> None:
        for _ in range(steps):
            generator = torch.Generator().manual_seed(1000 * self.step_count + self.rank)
            x = torch.randn(4, 16, generator=generator)
            loss = self.model(x if ZERO is None else x.bfloat16()).float().pow(2).mean()
            self.backward(loss)
            self.step()
            dist.all_reduce(loss.detach())  # the user's own collectives still work
            self.step_count += 1
            random.random()

    def start(self, name: str, **options: Any) -> pyckpt.PendingSave:
        return pyckpt.async_save_checkpoint(self.state, FOLDER / name, **options)


class Gate:
    """Acts as an earlier save that is still being written: the next one waits for it."""

    def __init__(self) -> None:
        self._opened = threading.Event()
        background._last_work = self._opened

    def open(self) -> None:
        self._opened.set()


def contents(path: Path) -> dict[str, bytes | None]:
    """The members of an archive, but for the one that has the id of its save."""
    with tarfile.open(path) as tar:
        members = [
            (info.name, tar.extractfile(info))
            for info in tar
            if not info.name.startswith(".pyckpt")
        ]
        return {name: file.read() if file else None for name, file in members}


def equal(training: Training, late: bool) -> list[str]:
    """Compares saves in all stages and formats with blocking ones; returns the differences."""
    wrong = []
    for stage in ("copy", "lazy", None):
        for suffix in SUFFIXES:
            blocking = pyckpt.save_checkpoint(
                training.state, f"{FOLDER}/blocking-{{rank}}{suffix}", fsync=False
            )
            gate = Gate()
            pending = training.start(f"async-{{rank}}{suffix}", stage=stage, fsync=False)
            if stage == "lazy" and training.rank == 0:
                [live] = lazy._watching.values()
                if live._memory.staging_nbytes < 4 * WIDTH:
                    wrong.append("nothing is read in place")
            if not late:
                gate.open()
            training.train(2)
            gate.open()
            paths = pending.result()
            if len(paths) != len(blocking):
                wrong.append(f"{paths}")
            for one, other in zip(blocking, paths, strict=True):
                if contents(one) != contents(other):
                    wrong.append(f"{stage} {one} {other}")
            dist.barrier()  # before the next save replaces what the other rank reads
    return wrong


def fails(training: Training) -> dict[str, Any]:
    """One rank's save fails in the background, in the way that the scenario names."""
    gate = Gate()
    pending = training.start("x-{rank}.tar", stage="lazy")
    if SCENARIO == "disk" and training.rank == 1:
        (FOLDER / "x-1.tar").mkdir()
    elif SCENARIO == "torn" and training.rank == 1:
        moments = training.model.basic_optimizer.state.values()
        next(iter(moments))["exp_avg"].add_(1)
    elif SCENARIO == "killed" and training.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if SCENARIO != "killed":
        training.train(1)
    gate.open()
    start = time.monotonic()
    error = pending.exception()
    assert isinstance(error, pyckpt.CheckpointError)
    return {
        "error": [type(error).__name__, str(error), error.rank],
        "seconds": time.monotonic() - start,
    }


def uncollected(training: Training) -> dict[str, Any]:
    """Rank 0 asks for the error of a save, rank 1 does not."""
    if training.rank == 0:
        (FOLDER / "file").write_bytes(b"")
    pending = training.start("file/x.tar")
    pending_saves.wait_for_room(1)
    if training.rank == 0:
        pending.exception()
    return tried(lambda: training.start("y.tar"))


def busy(training: Training) -> dict[str, Any]:
    """Rank 1's first save is held back; rank 0's is not."""
    gate = Gate()
    if training.rank == 0:
        gate.open()
    first = training.start("x.tar")
    report = tried(lambda: training.start("y.tar", when_busy="raise"))
    gate.open()
    first.result()
    return report


def tried(save: Callable[[], Any]) -> dict[str, Any]:
    try:
        save()
    except pyckpt.CheckpointError as error:
        return {"error": [type(error).__name__, str(error), error.rank]}
    return {}


def main() -> None:
    training = Training()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun sends it when a rank has died
    training.train(3)
    report: dict[str, Any] = {}
    if SCENARIO == "equal":
        report["wrong"] = equal(training, late=False) + equal(training, late=True)
    elif SCENARIO == "exit":
        gate = Gate()
        training.start("x-{rank}.tar.lzma")
        threading.Timer(1 + training.rank, gate.open).start()
    elif SCENARIO == "uncollected":
        report = uncollected(training)
    elif SCENARIO == "busy":
        report = busy(training)
    else:
        report = fails(training)
    if SCENARIO not in ("exit", "killed"):
        training.train(1)
    (OUT / f"{SCENARIO}-{training.rank}.json").write_text(json.dumps(report))
    if SCENARIO != "killed":
        # DDP is part of a reference cycle. If it still holds the group at exit, the process may
        # abort.
        del training
        gc.collect()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
