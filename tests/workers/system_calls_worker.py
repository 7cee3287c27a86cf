"""Saves while system calls are noted, and fail as planned: system_calls_worker.py FOLDER.

Runs with tests/native/system_calls.c loaded before libc. Prints, as JSON, for each scenario what
was called, what was raised, what is in the folder, and whether the old or the new file is there.
"""

import ctypes
import errno
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import pyckpt

FOLDER = Path(sys.argv[1])
CALLS = ctypes.CDLL(None)
CALLS.calls_noted.restype = ctypes.c_char_p

torch.manual_seed(0)
NEW = {"weight": torch.randn(3_000_000), "many": [torch.randn(100) for _ in range(300)]}
OLD = {"old": True}

PLANS = {
    "nothing": "",
    "no space to reserve": f"fallocate@1={errno.ENOSPC}",
    "cannot reserve": f"fallocate@1={errno.EOPNOTSUPP}",
    "no space to write": f"pwritev@2={errno.ENOSPC}",
    "first write": f"pwritev@1={errno.EIO}",
    "short first write": "pwritev@1=short",
    "short writes": "pwritev@*=short",
    "interrupted": " ".join(
        f"{name}@1={errno.EINTR}" for name in ("pwritev", "fsync", "fallocate", "ftruncate")
    ),
    "often interrupted": " ".join(f"pwritev@{n}={errno.EINTR}" for n in range(1, 9)),
    "short and interrupted": f"pwritev@1=short pwritev@2={errno.EINTR} pwritev@3=short",
    "flush": f"fsync@1={errno.EIO}",
    "length": f"ftruncate@1={errno.EIO}",
    "name": f"linkat@1={errno.EIO}",
    "rename": f"rename@1={errno.EXDEV}",
    "flush folder": f"fsync-folder@1={errno.EIO}",
    "folders cannot be flushed": f"fsync-folder@1={errno.EINVAL}",
    "folder cannot be read": f"open-folder@*={errno.EACCES}",
    "no unnamed files": f"open-unnamed@*={errno.EOPNOTSUPP}",
    "no modes": f"open-unnamed@*={errno.EOPNOTSUPP} fchmod@*={errno.EPERM} fchown@*={errno.EPERM} "
    f"fsetxattr@*={errno.ENOTSUP}",
    "no threads": f"pthread_create@*={errno.EAGAIN}",
    "two threads": " ".join(f"pthread_create@{n}={errno.EAGAIN}" for n in range(3, 99)),
}


def equal(path: Path, expected: Any) -> bool:
    found = pyckpt.load(path)
    if expected is OLD:
        return bool(found == OLD)
    return torch.equal(found["weight"], NEW["weight"]) and all(
        map(torch.equal, found["many"], NEW["many"])
    )


def attempt(plan: str, suffix: str, save: Callable[[Path], Any]) -> dict[str, Any]:
    path = FOLDER / f"x{suffix}"
    pyckpt.save(OLD, path, fsync=False)
    report: dict[str, Any] = {"error": None}
    CALLS.calls_begin(plan.encode())
    try:
        save(path)
    except Exception as error:
        report["error"] = [type(error).__name__, getattr(error, "errno", None), str(error)]
    report["calls"] = CALLS.calls_noted().decode().split()
    is_new = report["error"] is None
    if "pthread_create@*" in plan:  # readers do without threads too
        assert pyckpt.verify(path).ok
        is_new = equal(path, NEW)
    CALLS.calls_begin(b"")
    report["whole"] = pyckpt.verify(path).ok
    report["new"] = not report["whole"] or not equal(path, OLD)
    assert is_new or report["error"] or report["new"]
    if report["new"]:
        report["whole"] = report["whole"] and equal(path, NEW)
    path.unlink()
    report["left"] = os.listdir(FOLDER)
    return report


def main() -> None:
    reports = {}
    for name, plan in PLANS.items():
        for suffix in (".tar", ".tar.gz"):
            reports[f"{name} {suffix}"] = attempt(
                plan, suffix, lambda path: pyckpt.save(NEW, path, num_threads=3)
            )
    reports["no fsync"] = attempt(
        "", ".tar.gz", lambda path: pyckpt.save(NEW, path, fsync=False, num_threads=1)
    )

    def asynchronous(path: Path) -> None:
        state = pyckpt.State(nn.Identity(), extra=NEW)
        [path] = pyckpt.async_save_checkpoint(state, path.with_suffix(".async.tar")).result()
        assert torch.equal(pyckpt.load(path)["state"]["extra"]["weight"], NEW["weight"])
        path.unlink()
        pyckpt.save(NEW, path.with_name("x.tar"))

    niceness = os.getpriority(os.PRIO_PROCESS, 0)
    reports["asynchronous, no threads"] = attempt(PLANS["no threads"], ".tar", asynchronous)
    assert os.getpriority(os.PRIO_PROCESS, 0) == niceness
    print(json.dumps(reports))


if __name__ == "__main__":
    main()
