"""Saves that are killed at random moments: what is under the name, and what is left beside it.

Each case forks a process that replaces a checkpoint, and sends it a signal at a moment that chance
chooses. Then:

- the name holds the whole old checkpoint or the whole new one;
- all that is left beside it has a hidden name of pyckpt's. After SIGINT there is nothing;
- what a process has that still writes stays, and what another machine has left;
- the next save in the folder removes the rest.

    python -m faults.kills [--sample N] [--seed S] [--only TEXT]
"""

from __future__ import annotations

import ctypes
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import pyckpt
from faults.report import Case, Report, argument_parser, sample
from pyckpt.archive.formats import tar_suffixes
from pyckpt.staging.pending_saves import wait_for_all
from pyckpt.storage import hidden_names
from tests.preloads import preload

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
CALLS = ("save", "async_save", "save_checkpoint", "async_save_checkpoint", "manager", "transaction")
EVERY = 1000  # cases of the whole campaign
LATE_SECONDS = 30

HIDDEN = re.compile(r"\..*\.[0-9a-z]{8}-[0-9a-f]{16}\.(tmp|previous|pyckpt-(new|old|lock))(/.*)?")
FOREIGN = ".run.abcdef01-0123456789abcdef.tmp"  # what a process of another machine has

OLD, NEW, NEXT = 1.0, 2.0, 3.0
SLOW = (".bz2", ".lzma", ".xz", ".bzip", ".bzip2", ".txz", ".tbz2")


@dataclass(frozen=True)
class Trial:
    """A kind of case.

    Attributes:
        call: Which call of pyckpt saves.
        suffix: Of the file.
        is_named: Whether files have a hidden name from the beginning, as where the file system has
            no files without names.
    """

    call: str
    suffix: str
    is_named: bool

    @property
    def name(self) -> str:
        how = "named" if self.is_named else "unnamed"
        return f"{self.call} {self.suffix or 'torch'} {how}"


def trials() -> list[Trial]:
    suffixes = ["", ".pt.gz", *dict.fromkeys(tar_suffixes())]
    found = []
    for call in CALLS:
        for suffix in suffixes if call == "save" else ("", ".tar", ".tar.gz"):
            for is_named in (False, True):
                found.append(Trial(call, suffix, is_named))
    return found


class Saves:
    """One kind of save, into a folder."""

    def __init__(self, trial: Trial, folder: Path) -> None:
        self.size = 20_000 if trial.suffix.endswith(SLOW) else 500_000
        self.trial = trial
        self.folder = folder
        self.path = folder / f"run{trial.suffix}"

    def state(self, value: float) -> pyckpt.State:
        model = torch.nn.Linear(1, 1)
        model.weight = torch.nn.Parameter(torch.full((self.size,), value))
        return pyckpt.State(model, torch.optim.SGD(model.parameters()))

    def save(self, value: float) -> None:
        """Replaces the checkpoint by one whose weights have this value."""
        state = self.state(value)
        call = self.trial.call
        if call == "save":
            pyckpt.save(state.state_dict(), self.path)
        elif call == "async_save":
            pyckpt.async_save(state.state_dict(), self.path).result()
        elif call == "save_checkpoint":
            pyckpt.save_checkpoint(state, self.path)
        elif call == "async_save_checkpoint":
            pyckpt.async_save_checkpoint(state, self.path).result()
        elif call == "manager":
            manager = self.manager()
            manager.save(int(value), state)
            manager.wait()
        else:
            with pyckpt.transaction(self.folder / "run") as inside:
                for name in ("a", "b"):
                    pyckpt.save(state.state_dict(), inside / f"{name}{self.trial.suffix}")

    def manager(self) -> pyckpt.CheckpointManager:
        return pyckpt.CheckpointManager(
            self.folder, suffix=self.trial.suffix, keep_last=2, asynchronous=True
        )

    def value(self) -> float:
        """The value of the checkpoint that is there. It is read whole."""
        if self.trial.call == "manager":
            state = self.state(0.0)
            if self.manager().restore_latest(state) is None:
                raise Trouble("no checkpoint is there")
            return value_of([state.model.weight])
        if self.trial.call == "transaction":
            found = [pyckpt.load(path) for path in sorted((self.folder / "run").iterdir())]
            if len(found) != 2:
                raise Trouble(f"the folder has {len(found)} files")
            return value_of([one["model"]["weight"] for one in found])
        loaded = pyckpt.load(self.path)
        loaded = loaded if self.trial.call.endswith("save") else loaded["state"]
        return value_of([loaded["model"]["weight"]])

    def strays(self) -> list[str]:
        """What is there beside the checkpoint, but for what the other machine has."""
        known = {"manager": r"(step-\d+|latest)-rank0(\.[^/]*)?|checkpoints\.json"}
        own = known.get(self.trial.call, rf"run({re.escape(self.trial.suffix)})?(/.*)?")
        found = [str(path.relative_to(self.folder)) for path in self.folder.rglob("*")]
        return sorted(one for one in found if one != FOREIGN and not re.fullmatch(own, one))


class Trouble(Exception):
    """Something did not hold."""


def value_of(tensors: list[Any]) -> float:
    values = {float(value) for one in tensors for value in one.detach().unique()}
    if len(values) != 1:
        raise Trouble(f"values of several saves: {sorted(values)}")
    return values.pop()


def forked(work: Callable[[], None], named: bool) -> int:
    """Starts ``work`` in a process of its own."""
    # A signal must not find the child before the try.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    child = os.fork()
    if child:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return child
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        if named:
            ctypes.CDLL(None).calls_begin(b"open-unnamed@*=95")
        work()
        code = 0
    except KeyboardInterrupt:
        code = 2
        wait_for_all()  # as the interpreter does at its end
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        os._exit(code)


def ended(child: int) -> int:
    """How a process has ended: its exit code, or minus its signal."""
    end = time.monotonic() + LATE_SECONDS
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.0005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise Trouble("the process does not end")


def quietly(work: Callable[[], None], named: bool) -> float:
    """Runs ``work`` to its end. Returns the seconds."""
    begin = time.monotonic()
    code = ended(forked(work, named))
    if code:
        raise Trouble(f"a save in peace ends with {code}")
    return time.monotonic() - begin


class Kind:
    """The cases of one trial: what they begin with is made once."""

    def __init__(self, trial: Trial, base: Path) -> None:
        self.trial = trial
        self.template = base / "template"
        self.template.mkdir(parents=True)
        self.folder = base / "folder"
        before = Saves(trial, self.template)
        self.seconds = quietly(lambda: before.save(OLD), trial.is_named)
        (self.template / FOREIGN).write_bytes(b"foreign")

    def try_one(self, number: signal.Signals, part: float) -> str:
        """Kills one save. Returns what did not hold."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.template, self.folder, symlinks=True)
        saves = Saves(self.trial, self.folder)
        try:
            child = forked(lambda: saves.save(NEW), self.trial.is_named)
            time.sleep(part * self.seconds)
            os.kill(child, number)
            code = ended(child)
            self.look(saves, number, code)
        except Trouble as trouble:
            return str(trouble)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return ""

    def look(self, saves: Saves, number: signal.Signals, code: int) -> None:
        found = saves.value()
        if found not in (OLD, NEW) or (code == 0 and found != NEW):
            raise Trouble(f"exit code {code}, and the value is {found}")
        strays = saves.strays()
        unknown = [one for one in strays if not HIDDEN.fullmatch(one)]
        if unknown:
            raise Trouble(f"these are left, and have no hidden name: {unknown}")
        if strays and code >= 0:
            raise Trouble(f"{number.name} ends the process with {code}, and leaves {strays}")
        quietly(lambda: saves.save(NEXT), self.trial.is_named)
        if saves.strays():
            raise Trouble(f"the next save leaves {saves.strays()}")
        if saves.value() != NEXT:
            raise Trouble(f"after the next save the value is {saves.value()}")
        if not (saves.folder / FOREIGN).exists():
            raise Trouble("what another machine has left is gone")


def warm(folder: Path) -> None:
    """Imports all that the forked processes need."""
    for call in CALLS:
        (folder / call).mkdir(parents=True)
        saves = Saves(Trial(call, ".tar", False), folder / call)
        saves.save(OLD)
        saves.value()


def living(base: Path) -> str:
    """A save that is stopped, another one of the same name, and the first goes on."""
    folder = base / "living"
    folder.mkdir()
    saves = Saves(Trial("save", ".tar.xz", True), folder)
    saves.size = 500_000  # it takes a while
    quietly(lambda: saves.save(OLD), True)
    for delay in range(1, 100):
        child = forked(lambda: saves.save(NEW), True)
        time.sleep(delay / 100)
        os.kill(child, signal.SIGSTOP)
        time.sleep(0.01)
        strays = saves.strays()
        quietly(lambda: saves.save(NEXT), True)
        gone = set(strays) - set(saves.strays())
        os.kill(child, signal.SIGCONT)
        code = ended(child)
        if gone or code or saves.strays():
            return f"the other save ends with {code}; {gone} was taken from it"
        if strays:
            return "" if saves.value() == NEW else "the save that went on has not replaced the file"
    return "no save was stopped while it had a hidden name"


def cases(kinds: list[Trial], number: int, seed: int) -> Iterator[tuple[Trial, Any, float]]:
    """``number`` cases, evenly over all kinds and signals."""
    chance = random.Random(seed)
    for at in range(number):
        trial = kinds[at * len(kinds) // number]
        # A little beyond the end, for what comes after the new name.
        yield trial, SIGNALS[at % len(SIGNALS)], chance.random() * 1.1


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--only", default="", help="kinds whose name contains this")
    arguments = parser.parse_args()
    # In memory, where a flush costs nothing. Power cuts are not tried here.
    memory = "/dev/shm" if Path("/dev/shm").is_dir() and "TMPDIR" not in os.environ else None
    with tempfile.TemporaryDirectory(prefix="pyckpt-kills-", dir=memory) as name:
        base = Path(name)
        if "LD_PRELOAD" not in os.environ or "system_calls" not in os.environ["LD_PRELOAD"]:
            return again(base)
        return campaign(base, arguments)


def again(base: Path) -> int:
    """Runs the campaign with a library that can deny files without names."""
    command = [sys.executable, "-m", "faults.kills", *sys.argv[1:]]
    environment = {**os.environ, **preload("system_calls", base)}
    return os.spawnve(os.P_WAIT, sys.executable, command, environment)


def campaign(base: Path, arguments: Any) -> int:
    # As if others could have mounted the file system: so what they have left must stay.
    hidden_names.is_on_local_disk = lambda _: False
    torch.set_num_threads(1)
    warm(base / "warm")
    kinds = [trial for trial in trials() if arguments.only in trial.name]
    chosen = list(cases(kinds, EVERY, arguments.seed))
    report = Report("kills")
    report.add(Case("a save that lives", living(base)))
    kind: Kind | None = None
    for trial, number, part in sample(chosen, arguments.sample, arguments.seed):
        if kind is None or kind.trial != trial:
            shutil.rmtree(base / "kind", ignore_errors=True)
            kind = Kind(trial, base / "kind")
        broken = kind.try_one(number, part)
        repeat = f"python -m faults.kills --seed {arguments.seed} --only {trial.name!r}"
        report.add(Case(f"{trial.call}: {number.name}", broken, repeat))
        if broken:
            print(f"{trial.name}, {number.name}: {broken}", file=sys.stderr, flush=True)
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
