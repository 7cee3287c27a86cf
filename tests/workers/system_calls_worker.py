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
MANY = [torch.randn(100) for _ in range(300)]
SMALL = {"weight": torch.randn(3_000_000), "many": MANY}  # written through the page cache
LARGE = {"weight": torch.randn(8_900_001), "many": MANY}  # written past it, if it can be
OLD = {"old": True}

PLANS = {
    "no space to reserve": f"fallocate@1={errno.ENOSPC}",
    "cannot reserve": f"fallocate@1={errno.EOPNOTSUPP}",
    "no space to write": f"pwritev@2={errno.ENOSPC}",
    "first write": f"pwritev@1={errno.EIO}",
    "short first write": "pwritev@1=short",
    "short writes": "pwritev@*=short",
    "odd writes": " ".join(f"pwritev@{n}=odd" for n in range(2, 9)),
    "no direct files": f"fcntl-direct@*={errno.EINVAL}",
    "no direct writes": f"pwritev@1={errno.EINVAL}",
    "no direct write ever": "cache@*=only",
    "no memory for segments": f"mmap@*={errno.ENOMEM} open-unnamed@*={errno.EOPNOTSUPP}",
    "no alignment told": f"statx-direct@*={errno.ENOSYS}",
    "pages cannot be dropped": f"fcntl-direct@*={errno.EINVAL} dontcache@*={errno.EOPNOTSUPP}",
    "old system": f"fcntl-direct@*={errno.EINVAL} dontcache@*={errno.ENOSYS} "
    f"statx-direct@*={errno.ENOSYS}",
    "never written": f"pwritev@*={errno.EINVAL}",
    "last write": "LAST",
    "interrupted": " ".join(
        f"{name}@1={errno.EINTR}"
        for name in (
            *("pwritev", "fsync", "fallocate", "ftruncate", "open-unnamed"),
            *("linkat", "rename", "open-folder", "fsync-folder"),
        )
    ),
    "often interrupted": " ".join(f"pwritev@{n}={errno.EINTR}" for n in range(1, 9)),
    "short and interrupted": f"pwritev@1=short pwritev@2={errno.EINTR} pwritev@3=short",
    "flush": f"fsync@1={errno.EIO}",
    "length": f"ftruncate@1={errno.EIO}",
    "name": f"linkat@1={errno.EIO}",
    "rename": f"rename@1={errno.EXDEV}",
    "folder cannot be opened": f"open-folder@1={errno.EMFILE}",
    "flush folder": f"fsync-folder@1={errno.EIO}",
    "folders cannot be flushed": f"fsync-folder@1={errno.EINVAL}",
    "folder cannot be read": f"open-folder@*={errno.EACCES}",
    "no unnamed files": f"open-unnamed@*={errno.EOPNOTSUPP}",
    "no modes": f"open-unnamed@*={errno.EOPNOTSUPP} fchmod@*={errno.EPERM} fchown@*={errno.EPERM} "
    f"fsetxattr@*={errno.ENOTSUP}",
    "no threads": f"pthread_create@*={errno.EAGAIN}",
    "two threads": " ".join(f"pthread_create@{n}={errno.EAGAIN}" for n in range(3, 99)),
}


FILES = {"small .tar": SMALL, "small .tar.gz": SMALL, "large .tar": LARGE}
# Bytes that a full disk has: none, parts of a block, and of segments.
DISKS = [0, 1, 511, 4097, 2 << 20, (2 << 20) + 1, 9_999_999, 30_000_000]
BLOCK = 4096


def equal(path: Path, expected: Any) -> bool:
    found = pyckpt.load(path)
    if expected is OLD:
        return bool(found == OLD)
    return torch.equal(found["weight"], expected["weight"]) and all(
        map(torch.equal, found["many"], expected["many"])
    )


def attempt(plan: str, suffix: str, new: Any, save: Callable[[Path], Any]) -> dict[str, Any]:
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
        is_new = equal(path, new)
    CALLS.calls_begin(b"")
    report["whole"] = pyckpt.verify(path).ok
    report["new"] = not report["whole"] or not equal(path, OLD)
    assert is_new or report["error"] or report["new"]
    if report["new"]:
        report["whole"] = report["whole"] and equal(path, new)
    report["nbytes"] = path.stat().st_size
    path.unlink()
    report["left"] = os.listdir(FOLDER)
    return report


def main() -> None:
    reports = {}
    for file, new in FILES.items():
        suffix = file.partition(" ")[2]

        def save(path: Path, new: Any = new) -> None:
            pyckpt.save(new, path, num_threads=3)

        reports[f"nothing {file}"] = attempt("", suffix, new, save)
        writes = reports[f"nothing {file}"]["calls"]
        last = sum(call.startswith("pwritev") for call in writes)
        for name, plan in PLANS.items():
            plan = plan.replace("LAST", f"pwritev@{last}={errno.EIO}")
            reports[f"{name} {file}"] = attempt(plan, suffix, new, save)
        reports[f"no fsync {file}"] = attempt(
            "", suffix, new, lambda path, new=new: pyckpt.save(new, path, fsync=False)
        )

    def save_large(path: Path) -> None:
        pyckpt.save(LARGE, path)

    roomy = attempt("", ".tar.gz", LARGE, save_large)
    nbytes = roomy["nbytes"]
    disks = {f"of {n}": n for n in DISKS}
    disks |= {"one byte too small": nbytes - 1, "just large enough": -(-nbytes // BLOCK) * BLOCK}
    for name, n in disks.items():
        reports[f"disk {name}"] = attempt(f"disk@{n}=full", ".tar.gz", LARGE, save_large)

    def asynchronous(path: Path) -> None:
        state = pyckpt.State(nn.Identity(), extra=SMALL)
        [path] = pyckpt.async_save_checkpoint(state, path.with_suffix(".async.tar")).result()
        assert torch.equal(pyckpt.load(path)["state"]["extra"]["weight"], SMALL["weight"])
        path.unlink()
        pyckpt.save(SMALL, path.with_name("x.tar"))

    niceness = os.getpriority(os.PRIO_PROCESS, 0)
    reports["asynchronous, no threads"] = attempt(PLANS["no threads"], ".tar", SMALL, asynchronous)
    assert os.getpriority(os.PRIO_PROCESS, 0) == niceness

    def to_file_object(path: Path) -> None:
        with path.open("wb") as file:
            pyckpt.save(SMALL, file, format=".tar")

    for name in ("no threads", "two threads"):
        reports[f"file object, {name}"] = attempt(PLANS[name], ".tar", SMALL, to_file_object)
    print(json.dumps(reports))


if __name__ == "__main__":
    main()
