"""Transactions whose system calls are noted, and fail or kill as planned.

transaction_worker.py FOLDER, with tests/native/system_calls.c loaded before libc. Each transaction
has a process and a folder of its own. Prints, as JSON, for each scenario how it ended, what was
called, and what is under the name and beside it: at its end, and after the next transaction in the
same folder.
"""

import ctypes
import errno
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import pyckpt

FOLDER = Path(sys.argv[1])
CALLS = ctypes.CDLL(None)
CALLS.calls_noted.restype = ctypes.c_char_p
FILES = ["one", "deep/two", "deep/three"]
# Two folders are written, and then comes the one that has the name.
PARENT = "fsync-folder@3"
NO_EXCHANGE = f"exchange@*={errno.EINVAL}"

# What is planned once the block has ended.
PLANS = {
    "nothing": "",
    "no exchange": NO_EXCHANGE,
    "no locks": f"flock@*={errno.ENOLCK}",
    "folders cannot be flushed": f"fsync-folder@*={errno.EINVAL}",
    "killed at the flush of a file": "fsync@2=kill",
    "killed at the flush of a folder": "fsync-folder@1=kill",
    "killed before the exchange": "exchange@1=kill",
    "killed before the rename": "rename@1=kill",
    "killed after the rename": f"{PARENT}=kill",
    "killed at the begin of the removal": "unlinkat@1=kill",
    "killed in the removal": "unlinkat@3=kill",
    "killed before the first of two renames": f"{NO_EXCHANGE} rename@1=kill",
    "killed between two renames": f"{NO_EXCHANGE} rename@2=kill",
    "killed after two renames": f"{NO_EXCHANGE} {PARENT}=kill",
    "killed in the removal after two renames": f"{NO_EXCHANGE} unlinkat@2=kill",
    "a file fails": f"fsync@2={errno.EIO}",
    "a folder fails": f"fsync-folder@1={errno.EIO}",
    "the exchange fails": f"exchange@1={errno.EIO}",
    "the rename fails": f"rename@1={errno.EIO}",
    "the parent fails": f"{PARENT}={errno.EIO}",
    "the second rename fails": f"{NO_EXCHANGE} rename@2={errno.EIO}",
    "the parent fails after two renames": f"{NO_EXCHANGE} {PARENT}={errno.EIO}",
}


def write(folder: Path, text: str) -> None:
    for name in FILES:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def found(folder: Path) -> str | None:
    """The text that all files have. None if there is no folder."""
    if not folder.exists():
        return None
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    texts = {(folder / name).read_text() for name in names}
    return texts.pop() if len(texts) == 1 and names == sorted(FILES) else "torn"


def hidden(folder: Path) -> list[str]:
    return sorted(name.rpartition(".")[2] for name in os.listdir(folder) if name[0] == ".")


def transact(folder: Path, before: str, after: str, fsync: bool, report: Path) -> None:
    """One transaction, in a process that does nothing else."""
    error = None
    try:
        CALLS.calls_begin(before.encode())
        with pyckpt.transaction(folder / "x", fsync=fsync) as path:
            write(path, "new")
            CALLS.calls_begin(f"{before} {after}".encode())
    except pyckpt.CheckpointError as caught:
        error = [caught.errno, str(caught)]
    calls = CALLS.calls_noted().decode().split()
    report.write_text(json.dumps([error, calls]))


def attempt(name: str, *, has_old: bool, before: str = "", fsync: bool = True) -> dict[str, Any]:
    folder = FOLDER / name.replace(" ", "-")
    folder.mkdir(parents=True)
    if has_old:
        write(folder / "x", "old")
    result = FOLDER / "result"
    result.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        try:
            transact(folder, before, PLANS.get(name.partition(":")[2], ""), fsync, result)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    _, status = os.waitpid(child, 0)
    error, calls = json.loads(result.read_text()) if result.exists() else (None, [])
    report: dict[str, Any] = {
        "killed": os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL,
        "status": status,
        "error": error,
        "calls": calls,
        "found": found(folder / "x"),
        "hidden": hidden(folder),
    }
    CALLS.calls_begin(before.encode())
    with pyckpt.transaction(folder / "other"):
        pass
    CALLS.calls_begin(b"")
    report |= {"found later": found(folder / "x"), "hidden later": hidden(folder)}
    return report


def main() -> None:
    reports = {}
    for name in PLANS:
        for had in ("replace", "make"):
            before = PLANS[name] if name == "no locks" else ""
            reports[f"{had}:{name}"] = attempt(
                f"{had}:{name}", has_old=had == "replace", before=before
            )
    reports["no fsync"] = attempt("no fsync", has_old=True, fsync=False)
    no_locks = PLANS["no locks"]
    reports["killed without locks"] = attempt(
        "x:killed at the flush of a file", has_old=True, before=no_locks
    )
    print(json.dumps(reports))


if __name__ == "__main__":
    main()
