"""Transactions of two ranks that share a file system: transaction_ranks_worker.py FOLDER."""

import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

import pyckpt

# Nothing may use this group while others write: it would give up at once.
dist.init_process_group("gloo", timeout=timedelta(seconds=60))
RANK = dist.get_rank()
FOLDER = Path(sys.argv[1])


def error_of(target: Path, block: Callable[[Path], None]) -> pyckpt.CheckpointError:
    """What a transaction raises. All ranks must raise the same."""
    try:
        with pyckpt.transaction(target) as path:
            block(path)
    except pyckpt.CheckpointError as error:
        told = [None, None]
        dist.all_gather_object(told, (type(error).__name__, str(error), error.rank, error.path))
        assert told[0] == told[1], told
        assert sorted(os.listdir(FOLDER)) == EXPECTED, os.listdir(FOLDER)
        dist.barrier()
        return error
    raise AssertionError("nothing was raised")


def fail_on_rank_1(path: Path) -> None:
    (path / f"{RANK}").write_text("new")
    if RANK == 1:
        raise ValueError("no")


def exit_on_rank_0(path: Path) -> None:
    if RANK == 0:
        sys.exit(3)


def not_called(path: Path) -> None:
    raise AssertionError("the block ran")


# Files of both, of which one is late.
target = FOLDER / "x"
for text in ("first", "second"):
    with pyckpt.transaction(target) as path:
        paths = [None, None]
        dist.all_gather_object(paths, path)
        assert paths[0] == paths[1] == path
        if RANK == 1:
            (path / "late").write_text(text)
        pyckpt.save(torch.full((3,), float(RANK)), path / f"{text}-{RANK}.tar")
    names = sorted(os.listdir(target))
    assert names == sorted([f"{text}-0.tar", f"{text}-1.tar", "late"]), names
    assert (target / "late").read_text() == text
    dist.barrier()
EXPECTED = ["x"]

error = error_of(target, fail_on_rank_1)
assert error.rank == 1
assert "ValueError: no" in str(error)
assert isinstance(error.__cause__, ValueError) == (RANK == 1)
error = error_of(target, exit_on_rank_0)
assert error.rank == 0
assert isinstance(error.__cause__, SystemExit) == (RANK == 0)
assert (target / "late").read_text() == "second"

# Names that cannot be.
error = error_of(FOLDER / f"{RANK}", not_called)
assert isinstance(error, pyckpt.MixedFilesError)
assert isinstance(error_of(FOLDER / "x" / "late", not_called), pyckpt.FilenameError)
assert isinstance(error_of(Path("s3://bucket/x") if RANK else target, not_called), ValueError)

# A group of one rank, while the other has another.
[group] = [g for r in (0, 1) if (g := dist.new_group([r])) is not dist.GroupMember.NON_GROUP_MEMBER]
with pyckpt.transaction(FOLDER / f"of-{RANK}", group) as path:
    (path / "a").write_text(f"{RANK}")
dist.barrier()
assert [(FOLDER / f"of-{rank}" / "a").read_text() for rank in (0, 1)] == ["0", "1"]
assert sorted(os.listdir(FOLDER)) == ["of-0", "of-1", "x"]
dist.barrier()
dist.destroy_process_group()
