"""Ranks, and how they tell each other what became of a step.

The only module that talks to torch.distributed.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist

from pyckpt.errors import (
    CheckpointError,
    CorruptArchiveError,
    DuplicateFileError,
    FilenameError,
    OptionError,
    StateMismatchError,
)

__all__ = ["Ranks", "current_ranks", "together"]

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """Where this process stands among all that train together."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    node_rank: int = 0


def current_ranks() -> Ranks:
    """The ranks from torch.distributed when it is initialised, else the environment, else 0 of 1.

    A launcher that does not name the local ranks is taken to run on one node. The node's rank is
    NODE_RANK (Composer's launcher, Slurm scripts) or GROUP_RANK (torchrun).

    Raises:
        OptionError: A variable of the environment is not a number.
    """
    if _initialized():
        rank, world_size = dist.get_rank(), dist.get_world_size()
    else:
        rank = _from_environment("RANK", default=0)
        world_size = _from_environment("WORLD_SIZE", default=1)
    return Ranks(
        rank=rank,
        world_size=world_size,
        local_rank=_from_environment("LOCAL_RANK", default=rank),
        local_world_size=_from_environment("LOCAL_WORLD_SIZE", default=world_size),
        node_rank=_from_environment("NODE_RANK", "GROUP_RANK", default=0),
    )


def _initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def _from_environment(*names: str, default: int) -> int:
    for name in names:
        value = os.environ.get(name)
        if value:
            try:
                return int(value)
            except ValueError:
                message = f"environment variable {name} is not a number: {value!r}"
                raise OptionError(message) from None
    return default


@dataclass(frozen=True)
class _Failure:
    """What one rank tells the others about its exception; plain data, so it always pickles."""

    rank: int
    kind: str
    message: str
    path: str | None
    errno: int | None


_KINDS: dict[str, type[CheckpointError]] = {
    kind.__name__: kind
    for kind in (
        CheckpointError,
        CorruptArchiveError,
        DuplicateFileError,
        FilenameError,
        OptionError,
        StateMismatchError,
    )
}
# Their messages tell of one rank's files, not of the arguments that all ranks were given.
_NAME_THE_RANK = (CorruptArchiveError, StateMismatchError)


def together(doing: str, step: Callable[[], T]) -> list[T]:
    """Runs ``step`` on every rank, and lets every rank know how it went on all of them.

    Without torch.distributed there is one rank. What ``step`` returns must pickle.

    Args:
        doing: What the step does, for messages: "writing the checkpoint".

    Returns:
        What ``step`` returned, indexed by rank.

    Raises:
        CheckpointError: ``step`` raised on some rank. All ranks raise the same type with the same
            message; on the failing rank the original exception is the cause. With one rank, what
            is no Exception (KeyboardInterrupt, SystemExit) passes unchanged.
    """
    cause: BaseException | None = None
    outcome: T | _Failure
    try:
        outcome = step()
        if _initialized():
            pickle.dumps(outcome)  # all_gather_object must not fail on one rank alone
    except BaseException as error:
        if not _initialized() and not isinstance(error, Exception):
            raise
        cause = error
        outcome = _describe(error)
    outcomes = _exchange(doing, outcome)
    failures = [o for o in outcomes if isinstance(o, _Failure)]
    if failures:
        raise _as_exception(doing, failures) from cause
    return outcomes


def _describe(error: BaseException) -> _Failure:
    rank = dist.get_rank() if _initialized() else 0
    if isinstance(error, CheckpointError):
        kind = type(error).__name__
        return _Failure(rank, kind, str(error), error.path, error.errno)
    path = getattr(error, "filename", None)
    return _Failure(
        rank=rank,
        kind="",
        message=f"{type(error).__name__}: {error}",
        path=path if isinstance(path, str) else None,
        errno=error.errno if isinstance(error, OSError) else None,
    )


def _exchange(doing: str, outcome: Any) -> list[Any]:
    if not _initialized():
        return [outcome]
    outcomes: list[Any] = [None] * dist.get_world_size()
    try:
        dist.all_gather_object(outcomes, outcome)
    except Exception as error:
        raise CheckpointError(
            f"{doing} failed: the ranks could not exchange their outcomes, one may have died: "
            f"{error}"
        ) from error
    return outcomes


def _as_exception(doing: str, failures: list[_Failure]) -> CheckpointError:
    first = failures[0]
    kind = _KINDS.get(first.kind)
    message = first.message
    if kind is None or issubclass(kind, _NAME_THE_RANK):
        kind = kind or CheckpointError
        message = f"{doing} failed on rank {first.rank}: {first.message}"
        others = [str(f.rank) for f in failures[1:]]
        if others:
            message += f" (and on rank {', '.join(others)})"
    return kind(message, rank=first.rank, path=first.path, errno=first.errno)
