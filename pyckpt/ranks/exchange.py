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
    MixedFilesError,
    OptionError,
    SaveInProgressError,
    ShardedStateError,
    StateMismatchError,
    TornSaveError,
)
from pyckpt.interrupts import is_interrupt
from pyckpt.ranks.meeting import meet

__all__ = ["Channel", "Ranks", "begin_together", "current_ranks", "require_group", "together"]

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


def require_group() -> None:
    """Checks that ranks which a launcher started can talk to each other.

    Raises:
        OptionError: The environment tells of several ranks, and torch.distributed is not
            initialised. Each rank would act as if it were alone.
    """
    world_size = current_ranks().world_size
    if world_size > 1 and not _initialized():
        raise OptionError(
            f"WORLD_SIZE is {world_size}, and torch.distributed is not initialised: call "
            "torch.distributed.init_process_group() first, save before you destroy the process "
            "group, or unset WORLD_SIZE if this process trains alone"
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
        MixedFilesError,
        OptionError,
        SaveInProgressError,
        ShardedStateError,
        StateMismatchError,
        TornSaveError,
    )
}
# Their messages are about arguments that all ranks got, and not about one rank's files or tensors.
_ABOUT_ARGUMENTS = (FilenameError, OptionError, SaveInProgressError)


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


def begin_together(call: str, channels: int = 1) -> list[Channel]:
    """Waits until every rank has made this call, and gives the ranks channels.

    The first call makes the channels' process groups. They are pyckpt's own, with gloo, so a save
    that takes hours hits no time limit of training's groups. They still work after the process
    groups have been destroyed, as long as the processes live. A dead rank is noticed at once.

    Args:
        call: What the ranks are about to do, for messages: "save_checkpoint".
        channels: How many are needed. Each is for one thread at a time.

    Returns:
        The channels, the same ones on every call. With one rank, each is ``Channel()``.

    Raises:
        CheckpointError: Some ranks did not make the call within the time limit of the default
            process group (but at least a minute), made another call, or died.
    """
    if _alone():
        return [Channel()] * channels
    rank, world_size = dist.get_rank(), dist.get_world_size()
    store: Any = dist.distributed_c10d._get_default_store()
    limit = max(_LEAST_PATIENCE_SECONDS, store.timeout.total_seconds())
    try:
        meet(store, call, rank, world_size, limit)
        return _own_channels(channels)
    except CheckpointError:
        raise
    except RuntimeError as error:  # torch's errors of stores and groups
        raise _no_exchange(call, error) from error


def _own_channels(count: int) -> list[Channel]:
    groups = _own_groups.setdefault(dist.group.WORLD, [])
    while len(groups) < count:
        groups.append(dist.new_group(backend="gloo", timeout=_OWN_TIMEOUT))
    return [Channel(dist.get_rank(), partial(_gather_in_group, group)) for group in groups[:count]]


_LEAST_PATIENCE_SECONDS = 60.0
# Long, because ranks wait while others write.
_OWN_TIMEOUT = datetime.timedelta(days=1)
_own_groups: WeakKeyDictionary[Any, list[Any]] = WeakKeyDictionary()  # key: the default group


def _gather_in_group(group: Any, outcome: Any) -> list[Any]:
    # The group's own methods: torch.distributed's functions do not accept a destroyed group.
    data = torch.frombuffer(bytearray(pickle.dumps(outcome)), dtype=torch.uint8)
    sizes = [torch.zeros(1, dtype=torch.int64, device="cpu") for _ in range(group.size())]
    group.allgather([sizes], [torch.tensor([len(data)], device="cpu")]).wait()
    longest = max(int(size) for size in sizes)
    padded = torch.zeros(longest, dtype=torch.uint8, device="cpu")
    padded[: len(data)] = data
    gathered = [bytearray(longest) for _ in sizes]
    group.allgather(
        [[torch.frombuffer(one, dtype=torch.uint8) for one in gathered]], [padded]
    ).wait()
    return [
        pickle.loads(memoryview(one)[: int(size)])
        for one, size in zip(gathered, sizes, strict=True)
    ]


def together(doing: str, step: Callable[[], T], channel: Channel) -> list[T]:
    """Runs ``step`` on every rank, and tells every rank the outcomes of all.

    The result of ``step`` must pickle.

    Args:
        doing: What the step does, for messages: "writing the checkpoint".
        channel: The same on every rank; see ``begin_together``.

    Returns:
        What ``step`` returned, indexed by rank.

    Raises:
        CheckpointError: ``step`` raised on a rank. All ranks raise the same type with the same
            message. On the failing rank the original exception is the cause. With one rank, Ctrl-C
            and exceptions of signal handlers pass unchanged.
    """
    cause: BaseException | None = None
    outcome: T | _Failure
    try:
        outcome = step()
        if channel.gather is not None:
            pickle.dumps(outcome)  # the exchange must not fail on one rank alone
    except BaseException as error:
        if channel.gather is None and is_interrupt(error):
            raise
        cause = error
        outcome = _describe(error, channel.rank)
    outcomes = _exchange(doing, outcome, channel)
    failures = [o for o in outcomes if isinstance(o, _Failure)]
    if failures:
        raise _as_exception(doing, failures, len(outcomes)) from cause
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
        raise _no_exchange(doing, error) from error


def _no_exchange(doing: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{doing} failed: the ranks could not exchange their outcomes, one may have died: {error}"
    )


def _as_exception(doing: str, failures: list[_Failure], world_size: int) -> CheckpointError:
    first = failures[0]
    kind = _KINDS.get(first.kind)
    failed = f"rank {first.rank}"
    others = [str(failure.rank) for failure in failures[1:]]
    also = f" (and on rank {', '.join(others)})" if others else ""
    if kind is None or not issubclass(kind, _ABOUT_ARGUMENTS):
        kind = kind or CheckpointError
        message = f"{doing} failed on {failed}: {first.message}{also}"
    elif len(failures) < world_size:  # the ranks did not get the same arguments
        message = f"{first.message} (on {failed}, not on every rank)"
    else:
        message = first.message
    return kind(message, rank=first.rank, path=first.path, errno=first.errno)
