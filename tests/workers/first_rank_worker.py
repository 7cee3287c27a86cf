"""Saves what the first of two ranks has: first_rank_worker.py FOLDER. Writes report-RANK.json."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

import pyckpt
from pyckpt.staging.latch import Latch
from pyckpt.training import background
from pyckpt.training.first_rank import begin_on_first_rank, save_on_first_rank

FOLDER = Path(sys.argv[1])


def error_of(call: Callable[[], object]) -> str:
    try:
        call()
    except pyckpt.CheckpointError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def main() -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    report: dict[str, Any] = {}

    def make() -> Any:
        return {"rank": rank}

    def fail() -> Any:
        if rank == 1:
            raise ValueError("no contents")
        return make()

    save_on_first_rank(make, FOLDER / f"blocking-{rank}.tar")
    begun = begin_on_first_rank(make, FOLDER / f"asynchronous-{rank}.tar")
    report["ended"] = begun.has_ended(wait=True)
    for name, save in (("blocking", save_on_first_rank), ("asynchronous", begin_on_first_rank)):
        report[f"{name}, no contents"] = error_of(lambda: save(fail, FOLDER / "x.tar"))  # noqa: B023
        report[f"{name}, no name"] = error_of(lambda: save(make, FOLDER / "x.tar.foo"))  # noqa: B023
    report["blocking, no file"] = error_of(lambda: save_on_first_rank(make, FOLDER / "busy.tar"))
    gate = background._last_work = Latch()  # as if an earlier save took long
    late = begin_on_first_rank(make, FOLDER / "late-busy.tar")
    report["ended early"] = late.has_ended(wait=False)
    (FOLDER / "late-busy.tar" / "x").mkdir(parents=True, exist_ok=True)
    gate.set()
    report["asynchronous, no file"] = error_of(lambda: late.has_ended(wait=True))
    (FOLDER / f"report-{rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
