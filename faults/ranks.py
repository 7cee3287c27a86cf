"""Ranks that fail, die or stop in a save: what becomes of the others, and of the files.

Each case starts real processes (gloo), which save once in peace. In the next save something
happens to one of them, at one phase. Then:

- the other ranks end alike: all return, or all raise the same error, soon. It names the rank;
- a rank that was stopped and goes on raises that error too;
- each file is the whole old one or the whole new one. If they are mixed, a load refuses them;
- ``latest`` of DeepSpeed names a checkpoint that is whole;
- after the next save of the same names there are no other files.

    python -m faults.ranks [--sample N] [--seed S] [--only TEXT]
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import pyckpt
from faults.ranks_worker import FAULTS, LIMIT_SECONDS, Trial, run_rank
from faults.report import Case, Report, argument_parser, sample
from pyckpt.archive.reader import ArchiveReader
from pyckpt.sharded.part import find_part

SOON_SECONDS = 12.0  # from a rank's death until the others have raised
LATE_SECONDS = 60.0  # then a rank hangs

KINDS = ("plain", "sharded", "zero1", "zero3", "engine1")
PHASES = ("plan", "collect", "write", "sealed", "exchange", "renamed", "last exchange", "after")
BEFORE = ("disk", "folder", "filename", "run name", "leaves", "waits")


def trials() -> Iterator[Trial]:
    """All cases that make sense."""
    for ranks in (2, 4):
        for kind in KINDS:
            for asynchronous in (False, True):
                for victim in (0, ranks - 1):
                    for fault in FAULTS:
                        for phase in PHASES:
                            if _happens(kind, asynchronous, victim, fault, phase):
                                trial = Trial(kind, ranks, asynchronous, fault, phase, victim)
                                yield trial
                                if victim == 0 and fault in ("killed", "stopped"):
                                    yield dataclasses.replace(trial, hosts=True)
                    for fault in BEFORE:
                        if _is_possible(kind, asynchronous, victim, fault):
                            yield Trial(kind, ranks, asynchronous, fault, "", victim)


def _happens(kind: str, asynchronous: bool, victim: int, fault: str, phase: str) -> bool:
    writes = kind != "plain" or victim == 0
    if phase in ("write", "sealed", "renamed", "after") and not writes:
        return False
    if phase == "collect" and not kind.startswith("zero"):
        return False  # DeepSpeed's own code; for its engines it is the plan
    if phase == "exchange" and kind in ("plain", "engine1"):
        return False  # there is one exchange of names alone
    if fault == "interrupted" and asynchronous and phase not in ("plan", "collect"):
        return False  # Ctrl-C comes to the thread that trains
    # Nothing of the user's runs there that could raise.
    return not (fault == "raises" and phase in ("exchange", "last exchange", "after"))


def _is_possible(kind: str, asynchronous: bool, victim: int, fault: str) -> bool:
    if fault in ("disk", "folder") and kind == "plain" and victim != 0:
        return False
    if fault in ("filename", "run name") and kind in ("plain", "engine1"):
        return False  # one rank's name counts, and engines have folders
    return not (fault == "waits" and asynchronous)


# What is looked at


class Trouble(Exception):
    """Something did not hold."""


def try_one(trial: Trial) -> tuple[str, str]:
    """Runs a case. Returns what did not hold, or nothing, and how the files are."""
    with tempfile.TemporaryDirectory(prefix="pyckpt-ranks-") as name:
        folder, output = Path(name) / "saves", Path(name) / "output"
        output.mkdir()
        for rank in range(trial.ranks):
            (folder / f"r{rank}").mkdir(parents=True)
        Path(name).chmod(0o755)
        try:
            survivors(trial, folder, output)
            return "", files(trial, folder)
        except Trouble as trouble:
            return str(trouble), ""


def survivors(trial: Trial, folder: Path, output: Path) -> None:
    """Runs the ranks, and compares how they end."""
    context = multiprocessing.get_context("forkserver")
    store = None
    if trial.hosts:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
    else:
        store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
        port = store.port
    processes = [
        context.Process(target=run_rank, args=(trial, rank, port, folder, output))
        for rank in range(trial.ranks)
    ]
    for process in processes:
        process.start()
    others = [rank for rank in range(trial.ranks) if rank != trial.victim]
    try:
        end = time.monotonic() + LATE_SECONDS
        wait_for(others, processes, end)
        if trial.fault == "stopped":
            os.kill(processes[trial.victim].pid or 0, signal.SIGCONT)
        wait_for([trial.victim], processes, time.monotonic() + LATE_SECONDS / 2)
        reports = {}
        for rank in range(trial.ranks):
            path = output / f"report-{rank}.json"
            if path.exists():
                reports[rank] = json.loads(path.read_text())
    finally:
        for process in processes:
            process.kill()
            process.join()
    for rank in others:
        if rank not in reports:
            log = (output / f"log-{rank}").read_text()[-500:]
            raise Trouble(f"rank {rank} does not end\n{log}")
    compare(trial, {rank: one for rank, one in reports.items() if one}, others)


def wait_for(ranks: list[int], processes: list[Any], end: float) -> None:
    for rank in ranks:
        processes[rank].join(max(0.0, end - time.monotonic()))


def compare(trial: Trial, reports: dict[int, Any], others: list[int]) -> None:
    errors = {rank: report["error"] for rank, report in reports.items()}
    first = errors[others[0]]
    for rank, error in errors.items():
        is_own_interrupt = rank == trial.victim and error and error[0] == "KeyboardInterrupt"
        # A rank that was stopped with the store finds nobody who could tell it what they raise.
        is_last = rank == trial.victim and trial.hosts and error is not None
        if error != first and not is_own_interrupt and not is_last:
            raise Trouble(f"rank {others[0]} ends with {first}, and rank {rank} with {error}")
    if first is not None and first[0] not in (
        *("CheckpointError", "MixedFilesError", "FilenameError", "OptionError"),
    ):
        raise Trouble(f"all raise {first}")
    limit = SOON_SECONDS
    if trial.hosts:
        limit += 15  # the others wait for the store too
    if trial.fault in ("stopped", "leaves"):
        limit += LIMIT_SECONDS * (2 if trial.kind.startswith(("zero", "engine")) else 1)
    if trial.fault == "waits":
        limit += 5
    slowest = max(reports[rank]["seconds"] for rank in others)
    if slowest > limit:
        raise Trouble(f"{slowest:.0f} seconds until the last rank has ended: {first}")
    is_late = trial.phase in ("last exchange", "after")
    if first is None:
        if trial.fault not in ("killed", "stopped", "interrupted") or not is_late:
            raise Trouble("the save returned on all ranks")
    elif trial.hosts and "the store of" in first[1]:
        pass  # who has it is not known
    elif trial.fault in FAULTS and first[2] != trial.victim:
        raise Trouble(f"the error does not have rank {trial.victim}: {first}")
    elif f"rank {trial.victim}" not in first[1] and f"rank{{{trial.victim}" not in first[1]:
        raise Trouble(f"the message does not name rank {trial.victim}: {first}")


def files(trial: Trial, folder: Path) -> str:
    """Looks at the files. Returns "old", "new", or "mixed, and refused"."""
    if trial.kind.startswith("engine"):
        return engine_files(trial, folder)
    stems = [folder / "run.tar"]
    if trial.kind != "plain":
        stems = [folder / f"r{rank}" / "run.tar" for rank in range(trial.ranks)]
    saves = set()
    for path in stems:
        report = pyckpt.verify(path)
        if not report.ok:
            raise Trouble(f"{path.name} of {path.parent.name} is damaged: {report.problems}")
        part = find_part(ArchiveReader(path))
        if trial.kind == "plain":
            saves.add(str(pyckpt.load(path)["state"]["timestamp"]))
        elif part is None:
            raise Trouble(f"{path} does not tell which save it is of")
        else:
            saves.add(part.save_id)
    how = "whole"
    if len(saves) > 1:
        how = "mixed, and refused"
        if trial.kind == "sharded":
            refuse(folder)
    check_leftovers(folder, stems, trial)
    return how


def refuse(folder: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))
    state = pyckpt.State(model, torch.optim.AdamW(model.parameters()))
    try:
        pyckpt.load_checkpoint(folder / "r0" / "run.tar", state)
    except pyckpt.MixedFilesError:
        return
    raise Trouble("files of two saves are loaded")


def check_leftovers(folder: Path, stems: list[Path], trial: Trial) -> None:
    """After the next save of the same names, nothing else may be there."""
    before = left_in(folder, stems)
    for path in stems:
        pyckpt.save({"next": 1}, path)
    after = left_in(folder, stems)
    if after:
        raise Trouble(f"the next save leaves {after}; before it there was {before}")
    if before and trial.fault not in ("killed", "stopped"):
        raise Trouble(f"the failed save leaves {before}")


def left_in(folder: Path, stems: list[Path]) -> list[str]:
    known = {*stems, folder / "when"}
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and path not in known
    )


def engine_files(trial: Trial, folder: Path) -> str:
    latest = (folder / "latest").read_text()
    names = {}
    for step in ("step1", "step2"):
        names[step] = {path.name for path in (folder / step).glob("[!.]*")}
    if names[latest] != names["step1"]:
        raise Trouble(f"latest names {latest}, which has {sorted(names[latest])} only")
    for path in (folder / latest).glob("[!.]*"):
        if not pyckpt.verify(path).ok:
            raise Trouble(f"latest names {latest}, and {path.name} is damaged")
    paths = [path for path in folder.rglob("*.pt") if not path.name.startswith(".")]
    known = {"zero_to_fp32.py", "zero_to_torch.py", "latest"}
    for path in paths:
        pyckpt.save({"next": 1}, path)
    rest = [one for one in left_in(folder, paths) if Path(one).name not in known]
    rest = [one for one in rest if not one.startswith(".latest")]
    if rest:
        raise Trouble(f"the next save leaves {rest}")
    return "whole"


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--jobs", type=int, default=4, help="cases at the same time")
    arguments = parser.parse_args()
    multiprocessing.set_forkserver_preload(["tests.preloaded", "faults.ranks_worker"])
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", tempfile.mkdtemp(prefix="pyckpt-extensions-"))
    chosen = [trial for trial in trials() if arguments.only in trial.name]
    report = Report("ranks")

    def run(trial: Trial) -> None:
        begin = time.monotonic()
        broken, how = try_one(trial)
        repeat = f"python -m faults.ranks --only {trial.name!r}"
        seconds = time.monotonic() - begin
        with lock:
            report.add(Case(f"{trial.kind}: {trial.fault}", broken, repeat))
            print(f"{seconds:5.1f} {trial.name}: {broken or how}", file=sys.stderr, flush=True)

    lock = threading.Lock()
    with ThreadPoolExecutor(arguments.jobs) as pool:  # they mostly wait
        list(pool.map(run, sample(chosen, arguments.sample, arguments.seed)))
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
