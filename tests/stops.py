"""Stops a save at each of its writes, as a crash or a full disk would: see tests/native/stop.c."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.preloads import preload

KILL = 0  # in place of an errno

Tree = dict[str, str]  # what is in a folder: the digest of each file by its path


@dataclass(frozen=True)
class Stop:
    """What a stopped save has left.

    Attributes:
        number: Before which write it was stopped, from 1 on.
        error: The type of what it raised, or None.
        killed: Whether the process was killed.
        tree: What the folder had then.
    """

    number: int
    error: str | None
    killed: bool
    tree: Tree


def preloaded(folder: Path) -> dict[str, str]:
    """What the environment of a process that calls ``every_stop`` must have.

    The library is compiled into ``folder``.
    """
    return preload("stop", folder)


def every_stop(save: Callable[[], object], folder: Path, error: int = KILL) -> Iterator[Stop]:
    """Runs a save in forked processes, each of which is stopped one write later than the last one.

    The folder is as it was before when this is called, and at the end of each turn. The last turn
    is not stopped.
    """
    before = folder.with_name(f"{folder.name}-before")
    shutil.copytree(folder, before)
    number = 0
    ended = False
    while not ended:
        number += 1
        code, message = _in_child(save, number, error)
        ended = code == _ENDED
        raised = message.partition("\n")[0] if code == _RAISED else None
        if code not in (_ENDED, _RAISED, _PASSED, -9):
            raise AssertionError(f"stop {number}: exit code {code}\n{message}")
        yield Stop(number, raised, code == -9, tree(folder))
        shutil.rmtree(folder)
        shutil.copytree(before, folder, copy_function=shutil.copy2)
    shutil.rmtree(before)


def killed_at(save: Callable[[], object], number: int) -> bool:
    """Runs a save in a forked process that is killed before its write ``number``.

    Returns:
        Whether it was killed; False if it has ended, since it has no such write.
    """
    code, message = _in_child(save, number, KILL)
    if code not in (_ENDED, -9):
        raise AssertionError(f"stop {number}: exit code {code}\n{message}")
    return code == -9


def tree(folder: Path) -> Tree:
    """What is in a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


_ENDED, _RAISED, _PASSED = 0, 10, 11  # _PASSED: it was stopped, and went on all the same


def _in_child(save: Callable[[], object], number: int, error: int) -> tuple[int, str]:
    reading, writing = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code, message = 12, ""
        calls = ctypes.CDLL(None)
        calls.stop_count.restype = ctypes.c_long
        try:
            calls.stop_at(ctypes.c_long(number), error)
            save()
            code = _ENDED if calls.stop_count() < number else _PASSED
        except BaseException as raised:
            code = _RAISED
            message = f"{type(raised).__name__}\n{traceback.format_exc()}"
        finally:
            calls.stop_at(ctypes.c_long(-1), 0)
            os.write(writing, message.encode()[:50000])
            os._exit(code)
    os.close(writing)
    with open(reading, "rb") as pipe:
        message = pipe.read().decode(errors="replace")
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), message
