"""One rank of a case of faults.ranks, in a process of its own."""

from __future__ import annotations

import datetime
import errno
import json
import os
import resource
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import pyckpt
from pyckpt.archive.writer import ArchiveWriter
from pyckpt.ranks import circle, exchange
from pyckpt.ranks.link import Link

__all__ = ["FAULTS", "LIMIT_SECONDS", "Trial", "run_rank"]

LIMIT_SECONDS = 6  # of the process group
FAULTS = ("raises", "killed", "stopped", "interrupted")


@dataclass(frozen=True)
class Trial:
    """One case.

    Attributes:
        kind: What is saved, and how.
        ranks: How many there are.
        asynchronous: Whether the save runs in the background.
        fault: What happens to a rank.
        phase: When. Empty for what is wrong from the start.
        victim: To whom.
        hosts: Whether rank 0 has the store of the process group. Else the campaign has it, as
            torchrun's agent does.
    """

    kind: str
    ranks: int
    asynchronous: bool
    fault: str
    phase: str
    victim: int
    hosts: bool = False

    @property
    def name(self) -> str:
        how = "asynchronous" if self.asynchronous else "blocking"
        when = f" at {self.phase}" if self.phase else ""
        name = f"{self.kind}, {self.ranks} ranks, {how}: {self.fault}{when} on rank {self.victim}"
        return f"{name}, which has the store" if self.hosts else name


class Stateful(pyckpt.State):
    """A state whose collection is a phase."""

    def state_dict(self) -> dict[str, Any]:
        at("plan")
        return super().state_dict()


_armed: Callable[[], None] | None = None
_phase = ""


def at(phase: str) -> None:
    """Lets the fault happen, if it is its turn."""
    global _armed
    if _armed is not None and phase == _phase:
        happen, _armed = _armed, None
        happen()


def install() -> None:
    """Makes the phases of a save known."""
    write, commit, keep = ArchiveWriter.write, ArchiveWriter.commit, ArchiveWriter.keep
    gather, wait = Link.gather, Link.wait
    exchanges = threading.local()

    def writing(self: ArchiveWriter) -> int:
        at("write")
        nbytes = write(self)
        at("sealed")
        return nbytes

    def committing(self: ArchiveWriter, **options: Any) -> None:
        commit(self, **options)
        at("renamed")

    def keeping(self: ArchiveWriter) -> None:
        at("after")
        keep(self)

    def gathering(self: Link, doing: str, outcome: Any, *, decides: bool = False) -> list[Any]:
        exchanges.phase = ""
        if doing.startswith("committing"):
            exchanges.phase = "last exchange" if decides else "exchange"
        return gather(self, doing, outcome, decides=decides)

    def waiting(self: Link, doing: str, work: Any) -> None:
        wait(self, doing, work)
        at(getattr(exchanges, "phase", "") or "none")

    ArchiveWriter.write = writing  # type: ignore[method-assign]
    ArchiveWriter.commit = committing  # type: ignore[method-assign]
    ArchiveWriter.keep = keeping  # type: ignore[method-assign]
    Link.gather = gathering  # type: ignore[method-assign]
    Link.wait = waiting  # type: ignore[method-assign]


class Rank:
    """One rank of a case, in a process of its own."""

    def __init__(self, trial: Trial, rank: int, folder: Path) -> None:
        self.trial = trial
        self.rank = rank
        self.folder = folder
        self.is_victim = rank == trial.victim
        self.engine: Any = None
        self.state = self._state()

    def _state(self) -> Any:
        torch.manual_seed(0)
        kind = self.trial.kind
        model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))
        if kind.startswith(("zero", "engine")):
            import deepspeed

            stage = int(kind[-1])
            config = {
                "train_micro_batch_size_per_gpu": 4,
                "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "torch_adam": True}},
                "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
                "bf16": {"enabled": True},
            }
            self.engine, *_ = deepspeed.initialize(
                model=model, config=config, model_parameters=model.parameters()
            )
            if kind.startswith("engine"):
                from pyckpt.integrations.deepspeed import attach

                self.attachment = attach(self.engine, self.trial.asynchronous)
            collect = self.engine._save_checkpoint

            def collecting(*args: Any, **kwargs: Any) -> Any:
                at("plan" if kind.startswith("engine") else "collect")
                return collect(*args, **kwargs)

            self.engine._save_checkpoint = collecting
            return Stateful(self.engine, run_name="run")
        if kind == "sharded":
            from torch.distributed.fsdp import fully_shard

            for layer in model:
                fully_shard(layer)
            fully_shard(model)
        return Stateful(model, torch.optim.AdamW(model.parameters()), run_name="run")

    def save(self, number: int, filename: str | None = None) -> None:
        """Saves, and waits until the save is complete."""
        self.state.timestamp = pyckpt.Timestamp(batch=number)
        if self.engine is not None and self.trial.kind.startswith("engine"):
            self.engine.save_checkpoint(str(self.folder), tag=f"step{number}")
            self.attachment.wait()
            return
        options: dict[str, Any] = {}
        if self.trial.kind == "sharded":
            options["state_dict_type"] = "sharded"
        path = filename or str(self.folder / "r{rank}" / "{run_name}.tar")
        if self.trial.kind == "plain":
            path = filename or str(self.folder / "{run_name}.tar")
        if self.trial.asynchronous:
            pyckpt.async_save_checkpoint(self.state, path, **options).result()
        else:
            pyckpt.save_checkpoint(self.state, path, **options)

    def run(self) -> dict[str, Any]:
        """Saves in peace, and then with the fault. Returns what has become of it."""
        global _armed, _phase
        self.save(1)
        dist.barrier()
        filename = None
        fault = self.trial.fault
        if self.is_victim and fault in FAULTS:
            _phase = self.trial.phase
            _armed = getattr(self, f"_{fault}")
        elif self.is_victim and fault == "disk":
            # As a disk that is full: it takes no more than some bytes.
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        elif self.is_victim and fault == "folder":
            os.setegid(65534)
            os.seteuid(65534)
        elif self.is_victim and fault == "filename":
            filename = str(self.folder / "r{rank}" / "other.tar")
        elif self.is_victim and fault == "run name":
            self.state.run_name = "other"
        elif self.is_victim and fault == "leaves":
            return {}
        elif fault == "waits":
            if self.is_victim:
                threading.Timer(1.0, self._interrupted).start()
            else:
                _armed, _phase = lambda: time.sleep(5), "plan"
        begin = time.monotonic()
        try:
            self.save(2, filename)
        except pyckpt.CheckpointError as error:
            outcome = {"error": [type(error).__name__, str(error), error.rank]}
        except BaseException as error:
            outcome = {"error": [type(error).__name__, str(error), None]}
        else:
            outcome = {"error": None}
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        os.seteuid(0)
        os.setegid(0)
        when = self.folder / "when"
        began = float(when.read_text()) if when.exists() else begin
        return {**outcome, "seconds": time.monotonic() - began}

    def _note(self) -> None:
        """The clock is the same for all processes."""
        new = self.folder / "when.new"
        new.write_text(str(time.monotonic()))
        new.rename(self.folder / "when")

    def _raises(self) -> None:
        self._note()
        raise OSError(errno.EIO, "a fault for the campaign")

    def _killed(self) -> None:
        self._note()
        os.kill(os.getpid(), signal.SIGKILL)

    def _stopped(self) -> None:
        self._note()
        os.kill(os.getpid(), signal.SIGSTOP)

    def _interrupted(self) -> None:
        self._note()
        os.kill(os.getpid(), signal.SIGINT)


def run_rank(trial: Trial, rank: int, port: int, folder: Path, output: Path) -> None:
    """A process."""
    os.environ.update(
        {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(trial.ranks),
            "LOCAL_WORLD_SIZE": str(trial.ranks),
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_USE_AGENT_STORE": str(not trial.hosts),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
    )
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    log = os.open(output / f"log-{rank}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)
    exchange._LEAST_PATIENCE_SECONDS = 1.0
    circle._PATIENCE_SECONDS = 2.0
    limit = datetime.timedelta(seconds=LIMIT_SECONDS)
    if trial.kind.startswith(("zero", "engine")):
        import deepspeed

        deepspeed.init_distributed("gloo", timeout=limit)
    else:
        dist.init_process_group("gloo", timeout=limit)
    install()
    report = Rank(trial, rank, folder).run()
    temporary = output / f".report-{rank}"
    temporary.write_text(json.dumps(report))
    temporary.rename(output / f"report-{rank}.json")
    os._exit(0)  # with a dead rank, the process group cannot end in good order
