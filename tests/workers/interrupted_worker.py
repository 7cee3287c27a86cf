"""Training that something unusual happens to while an asynchronous save reads its state.

Usage: interrupted_worker.py SCENARIO FOLDER. A hang ends the process with a traceback.
"""

import atexit
import faulthandler
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType

import torch
import torch.multiprocessing as mp
from torch import nn

import pyckpt
from pyckpt.staging import buffers, latch, lazy, pending_saves

SCENARIO, FOLDER = sys.argv[1], Path(sys.argv[2])


def build(width: int = 2000) -> tuple[nn.Module, torch.optim.Optimizer, pyckpt.State]:
    torch.manual_seed(0)
    model = nn.Linear(width, width)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(2, width)).sum().backward()
    return model, optimizer, pyckpt.State(model, optimizer)


def report(pending: pyckpt.PendingSave) -> None:
    try:
        [path] = pending.result()
        print(f"saved {path.name}: {pyckpt.verify(path).ok}", flush=True)
    except pyckpt.CheckpointError as error:
        print(type(error).__name__, error, flush=True)


def move_memory() -> None:
    """torch gives the weights other memory, and frees what is being read."""
    model, _, state = build(3000)
    pending = pyckpt.async_save_checkpoint(state, FOLDER / "x.tar.bz2", num_threads=1, stage="lazy")
    time.sleep(0.1)
    if SCENARIO == "share":
        model.share_memory()
    elif SCENARIO == "queue":
        mp.get_context("spawn").SimpleQueue().put(model.weight)
    elif SCENARIO == "resize":
        model.weight.untyped_storage().resize_(0)
    elif SCENARIO == "set_data":  # the old memory stays: nothing is torn
        model.weight.data = torch.zeros(1)
    else:
        del model, state
    report(pending)


class Handler:
    """Sends a signal as soon as the training thread is in one of some functions, by its code."""

    def __init__(self, *functions: object) -> None:
        self._codes = {function.__code__ for function in functions}  # type: ignore[attr-defined]
        self._left = 1
        sys.setprofile(self._look)

    def _look(self, frame: FrameType, event: str, _: object) -> None:
        inside = frame
        while inside is not None:
            if inside.f_code in self._codes and self._left:
                self._left -= 1
                os.kill(os.getpid(), signal.SIGUSR1)  # this thread handles it at once
                return
            inside = inside.f_back  # type: ignore[assignment]


def signal_in_staging() -> None:
    """A handler saves, or waits, while the training thread copies, registers or takes a buffer."""
    _, optimizer, state = build()
    earlier = pyckpt.async_save_checkpoint(state, FOLDER / "earlier.tar.bz2", num_threads=1)

    def handler(*_: object) -> None:
        sys.setprofile(None)
        if SCENARIO.endswith("wait"):
            earlier.result()
        elif SCENARIO.endswith("step"):
            optimizer.step()
        else:
            pyckpt.save_checkpoint(state, FOLDER / "preempted.tar")
        print("handled", flush=True)

    signal.signal(signal.SIGUSR1, handler)
    if SCENARIO.startswith("stage"):
        Handler(lazy.LiveRecords._stage)
        optimizer.step()
    elif SCENARIO.startswith("latch"):
        Handler(latch.Latch.set)
        optimizer.step()
    else:
        functions = (lazy._watch, buffers.BufferPool.take, pending_saves.begin)
        earlier.result()
        for number, function in enumerate(functions):
            Handler(function)
            stage = "copy" if function is buffers.BufferPool.take else "lazy"
            report(pyckpt.async_save_checkpoint(state, FOLDER / f"{number}.tar", stage=stage))
    sys.setprofile(None)
    report(earlier)


def daemon() -> None:
    """Training runs in a daemon thread, and the main thread ends first."""
    _, _, state = build()

    def loop() -> None:
        pyckpt.async_save_checkpoint(state, FOLDER / "x.tar.bz2")
        print("begun", flush=True)

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    thread.join()


def at_exit() -> None:
    """A save begins when the interpreter ends."""
    _, _, state = build()
    atexit.register(lambda: report(pyckpt.async_save_checkpoint(state, FOLDER / "x.tar.gz")))


def ctrl_c_at_exit() -> None:
    """The interpreter waits for a save, says so, and gives it up when asked to."""
    pending_saves._SILENT_SECONDS = 0.3
    _, _, state = build(5000)
    (FOLDER / "x.tar.bz2").write_bytes(b"old")
    pyckpt.async_save_checkpoint(state, FOLDER / "x.tar.bz2", num_threads=1)

    def interrupt() -> None:
        time.sleep(1.5)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()


def own_exception() -> None:
    """The exception of a signal handler arrives as itself."""
    _, _, state = build(4000)

    class Preempted(Exception):
        pass

    def handler(*_: object) -> None:
        raise Preempted("the job's time is up")

    signal.signal(signal.SIGUSR1, handler)
    for save in (
        lambda: pyckpt.save_checkpoint(state, FOLDER / "x.tar.bz2"),
        lambda: pyckpt.save(state.state_dict(), FOLDER / "x.tar.bz2"),
    ):
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        try:
            save()
        except Preempted as error:
            print(error, os.listdir(FOLDER), flush=True)


if __name__ == "__main__":
    faulthandler.dump_traceback_later(60, exit=True)
    {
        "daemon": daemon,
        "at-exit": at_exit,
        "ctrl-c": ctrl_c_at_exit,
        "own-exception": own_exception,
    }.get(SCENARIO, signal_in_staging if "-" in SCENARIO else move_memory)()
