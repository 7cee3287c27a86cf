"""Ranks, and how they tell each other whether a step succeeded.

No other module uses torch.distributed.
"""

from __future__ import annotations

import datetime
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist

from pyckpt.errors import (
    CheckpointError,
    CorruptArchiveError,
    DuplicateFileError,
    FilenameError,
    OptionError,
    SaveInProgressError,
    StateMismatchError,
    TornSaveError,
)

__all__ = ["Channel", "Ranks", "current_ranks", "own_channels", "together", "users_channel"]

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """The place of this process among all that train together."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    node_rank: int = 0


def current_ranks() -> Ranks:
    """The ranks from torch.distributed when it is initialised, else the environment, else 0 of 1.

    If the launcher does not set local ranks, all ranks count as one node. The node's rank is
    NODE_RANK (Composer's launcher, Slurm scripts) or GROUP_RANK (torchrun).

    Raises:
        OptionError: An environment variable is not a number.
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


def _alone() -> bool:
    # In a group of one, an exchange would only wait for gloo's thread.
    return not _initialized() or dist.get_world_size() == 1


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
    """What one rank tells the others about its exception. Plain data, so it always pickles."""

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
        SaveInProgressError,
        StateMismatchError,
        TornSaveError,
    )
}
# Their messages are about one rank's files or tensors, not about arguments that all ranks got.
_NAME_THE_RANK = (CorruptArchiveError, StateMismatchError, TornSaveError)


@dataclass(frozen=True)
class Channel:
    """A way for ranks to exchange outcomes.

    Attributes:
        rank: The rank of this process.
        gather: Takes this rank's outcome and returns those of all ranks. Collective. None if there
            is only one rank.
    """

    rank: int = 0
    gather: Callable[[Any], list[Any]] | None = None


def users_channel() -> Channel:
    """The process group that training uses.

    Use it only in the thread that calls training's collectives, and between them.
    Without torch.distributed, and in a group of one, there is one rank.
    """
    if _alone():
        return Channel()
    return Channel(dist.get_rank(), _gather_in_default_group)


def own_channels(count: int) -> list[Channel]:
    """``count`` channels that nothing else uses. Each is for one thread at a time.

    The first call makes them and is collective. They still work after the process groups have been
    destroyed, as long as the processes live.
    """
    if _alone():
        return [Channel()] * count
    groups = _own_groups.setdefault(dist.group.WORLD, [])
    while len(groups) < count:
        groups.append(dist.new_group(backend="gloo", timeout=_OWN_TIMEOUT))
    return [Channel(dist.get_rank(), partial(_gather_in_group, group)) for group in groups[:count]]


# Long, because a background thread waits while other ranks write. A dead rank is noticed at once.
_OWN_TIMEOUT = datetime.timedelta(days=1)
_own_groups: WeakKeyDictionary[Any, list[Any]] = WeakKeyDictionary()  # key: the default group


def _gather_in_default_group(outcome: Any) -> list[Any]:
    outcomes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(outcomes, outcome)
    return outcomes


def _gather_in_group(group: Any, outcome: Any) -> list[Any]:
    # The group's own methods: torch.distributed's functions do not accept a destroyed group.
    data = torch.frombuffer(bytearray(pickle.dumps(outcome)), dtype=torch.uint8)
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(group.size())]
    group.allgather([sizes], [torch.tensor([len(data)])]).wait()
    longest = max(int(size) for size in sizes)
    padded = torch.zeros(longest, dtype=torch.uint8)
    padded[: len(data)] = data
    gathered = [bytearray(longest) for _ in sizes]
    group.allgather(
        [[torch.frombuffer(one, dtype=torch.uint8) for one in gathered]], [padded]
    ).wait()
    return [
        pickle.loads(memoryview(one)[: int(size)])
        for one, size in zip(gathered, sizes, strict=True)
    ]


def together(doing: str, step: Callable[[], T], channel: Channel | None = None) -> list[T]:
    """Runs ``step`` on every rank, and tells every rank the outcomes of all.

    The result of ``step`` must pickle.

    Args:
        doing: What the step does, for messages: "writing the checkpoint".
        channel: The same on every rank; None takes ``users_channel()``.

    Returns:
        What ``step`` returned, indexed by rank.

    Raises:
        CheckpointError: ``step`` raised on a rank. All ranks raise the same type with the same
            message. On the failing rank the original exception is the cause. With one rank,
            KeyboardInterrupt, SystemExit and the like pass unchanged.
    """
    channel = channel or users_channel()
    cause: BaseException | None = None
    outcome: T | _Failure
    try:
        outcome = step()
        if channel.gather is not None:
            pickle.dumps(outcome)  # the exchange must not fail on one rank alone
    except BaseException as error:
        if channel.gather is None and not isinstance(error, Exception):
            raise
        cause = error
        outcome = _describe(error, channel.rank)
    outcomes = _exchange(doing, outcome, channel)
    failures = [o for o in outcomes if isinstance(o, _Failure)]
    if failures:
        raise _as_exception(doing, failures) from cause
    return outcomes


def _describe(error: BaseException, rank: int) -> _Failure:
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


def _exchange(doing: str, outcome: Any, channel: Channel) -> list[Any]:
    if channel.gather is None:
        return [outcome]
    try:
        return channel.gather(outcome)
    except Exception as error:
        raise CheckpointError(
            f"{doing} failed: the ranks could not exchange their outcomes, one may have died: "
            f"{error}"
        ) from error


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
