"""Ranks, and how they tell each other whether a step succeeded.

Those that take part are the ranks of a process group, by default all. Names and messages have the
number that a rank has among all. Lists by rank, and a channel's own ``rank``, go by its place in
the group.

Only modules of this folder talk to other ranks.
"""

from __future__ import annotations

import datetime
import hashlib
import itertools
import os
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

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

__all__ = [
    "Channel",
    "Ranks",
    "begin_together",
    "current_ranks",
    "no_exchange",
    "require_group",
    "together",
]

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
    is_exchanged: bool = False


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
        rank: The place of this process in the group, from 0 on.
        members: The ranks in the group, by their numbers among all ranks.
        gather: Takes this rank's outcome and returns those of all members. Collective. None if
            there is only one.
        group: torch's ProcessGroupGloo between the members, which ``gather`` uses; for transfers of
            tensors on the CPU by its methods (``send``, ``recv``, ``broadcast``). They number the
            members from 0 on. None if there is only one. torch.distributed's functions do not know
            it.
    """

    rank: int = 0
    members: tuple[int, ...] = (0,)
    gather: Callable[[Any], list[Any]] | None = None
    group: Any = None

    @property
    def size(self) -> int:
        """How many ranks take part."""
        return len(self.members)

    @property
    def global_rank(self) -> int:
        """The number of this process among all ranks, which messages name."""
        return self.members[self.rank]


def begin_together(call: str, channels: int = 1, process_group: Any = None) -> list[Channel]:
    """Waits until every rank of a group has made this call, and gives the ranks channels.

    The first call with a group makes its channels. They are pyckpt's own, with gloo, so a save that
    takes hours hits no time limit of training's groups. They still work after the process groups
    have been destroyed, as long as the processes live. A dead rank is noticed at once.

    Args:
        call: What the ranks are about to do, for messages: "save_checkpoint".
        channels: How many are needed. Each is for one thread at a time.
        process_group: A group of torch.distributed, or a DeviceMesh with one dimension. None means
            all ranks.

    Returns:
        The channels, the same ones on every call. With one rank, they have nobody to ask.

    Raises:
        OptionError: ``process_group`` is something else, or this rank is not in it. Not collective.
        CheckpointError: Some ranks did not make the call within the time limit of the default
            process group (but at least a minute), made another call, or died.
    """
    group = _group_of(process_group)
    members = (0,) if group is None else tuple(dist.get_process_group_ranks(group))
    if len(members) == 1:  # an exchange would only wait for gloo's thread
        return [Channel(members=members)] * channels
    place = dist.get_rank(group)
    name = dist.distributed_c10d._get_process_group_name(group)
    store: Any = _own_store(group, members)
    limit = max(_LEAST_PATIENCE_SECONDS, store.timeout.total_seconds())
    number = next(_meetings.setdefault((name, members), itertools.count()))
    own_groups = _own_groups.setdefault(group, [])
    try:
        meet(store, call, number, members, members[place], limit)
        while len(own_groups) < channels:
            at = _part_of(store, f"{number}/channel-{len(own_groups)}")
            own_groups.append(dist.ProcessGroupGloo(at, place, len(members), _OWN_TIMEOUT))
    except CheckpointError:
        raise
    except RuntimeError as error:  # torch's errors of stores and groups
        raise no_exchange(call, error) from error
    return [
        Channel(place, members, partial(_gather_in_group, own), own)
        for own in own_groups[:channels]
    ]


def _group_of(process_group: Any) -> Any:
    """The group of torch.distributed that is meant; None if this process is alone."""
    if process_group is None:
        return dist.group.WORLD if _initialized() else None
    if not _initialized():
        raise OptionError("process_group needs torch.distributed, which is not initialised")
    if isinstance(process_group, DeviceMesh):
        process_group = _group_of_mesh(process_group)
    if process_group is dist.GroupMember.NON_GROUP_MEMBER:  # what new_group returns outside
        raise _outside()
    if not isinstance(process_group, dist.ProcessGroup):
        raise OptionError(
            "process_group must be a group of torch.distributed or a DeviceMesh, not "
            f"{type(process_group).__qualname__}"
        )
    try:
        place = dist.get_rank(process_group)
    except (RuntimeError, ValueError) as error:  # it was destroyed
        raise OptionError(f"torch.distributed does not know the process_group: {error}") from error
    if place < 0:
        raise _outside()
    return process_group


def _group_of_mesh(mesh: DeviceMesh) -> Any:
    if mesh.ndim != 1:
        names = mesh.mesh_dim_names or tuple(map(str, range(mesh.ndim)))
        raise OptionError(
            f"process_group is a DeviceMesh with {mesh.ndim} dimensions ({', '.join(names)}): give "
            "one of them, such as mesh.get_group(0), a flattened mesh, or None for all ranks"
        )
    if mesh.get_coordinate() is None:
        raise _outside()
    return mesh.get_group()


def _outside() -> OptionError:
    rank = dist.get_rank()
    return OptionError(
        f"rank {rank} is not in the process_group: only its ranks make this call", rank=rank
    )


def _own_store(group: Any, members: tuple[int, ...]) -> Any:
    """The part of the group's store that is pyckpt's.

    Two groups without a common rank may have one name, and so one part of torch's store.
    """
    code = hashlib.sha256(repr(members).encode()).hexdigest()[:16]
    return _part_of(dist.distributed_c10d._get_process_group_store(group), f"pyckpt/{code}")


def _part_of(store: Any, prefix: str) -> Any:
    c10d: Any = dist.distributed_c10d  # for mypy, which does not know all that is in it
    return c10d.PrefixStore(prefix, store)


_LEAST_PATIENCE_SECONDS = 60.0
# Long, because ranks wait while others write.
_OWN_TIMEOUT = datetime.timedelta(days=1)
# Made here, and not by torch.distributed.new_group: that needs all ranks, or else names the group
# by how many groups this rank has, which need not be the same on all of its members.
_own_groups: WeakKeyDictionary[Any, list[Any]] = WeakKeyDictionary()  # key: the caller's group
# By name and members, and not by group: a group that is made again may have the same store.
_meetings: dict[tuple[str, tuple[int, ...]], Iterator[int]] = {}


def _gather_in_group(group: Any, outcome: Any) -> list[Any]:
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
    """Runs ``step`` on every member, and tells every member the outcomes of all.

    The result of ``step`` must pickle.

    Args:
        doing: What the step does, for messages: "writing the checkpoint".
        channel: The same on every member; see ``begin_together``.

    Returns:
        What ``step`` returned, by place in the group.

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
        outcome = _describe(error, channel.global_rank)
    outcomes = _exchange(doing, outcome, channel)
    failures = [o for o in outcomes if isinstance(o, _Failure)]
    if failures:
        raise _as_exception(doing, failures, len(outcomes)) from cause
    return outcomes


def _describe(error: BaseException, rank: int) -> _Failure:
    if isinstance(error, CheckpointError):
        kind = type(error).__name__
        return _Failure(rank, kind, str(error), error.path, error.errno, error.is_exchanged)
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
        raise no_exchange(doing, error) from error


def no_exchange(doing: str, error: Exception) -> CheckpointError:
    """The error that ranks raise when torch says that they cannot reach each other."""
    return CheckpointError(
        f"{doing} failed: the ranks could not exchange their outcomes, one may have died: {error}"
    )


def _as_exception(doing: str, failures: list[_Failure], size: int) -> CheckpointError:
    first = failures[0]
    kind = _KINDS.get(first.kind)
    if kind is not None and len(failures) == size and all(one.is_exchanged for one in failures):
        return _exchanged(kind, first.message, first)  # a step in the step has told all ranks
    failed = f"rank {first.rank}"
    others = [str(failure.rank) for failure in failures[1:]]
    also = f" (and on rank {', '.join(others)})" if others else ""
    if kind is None or not issubclass(kind, _ABOUT_ARGUMENTS):
        kind = kind or CheckpointError
        message = f"{doing} failed on {failed}: {first.message}{also}"
    elif len(failures) < size:  # the ranks did not get the same arguments
        message = f"{first.message} (on {failed}, not on every rank)"
    else:
        message = first.message
    return _exchanged(kind, message, first)


def _exchanged(kind: type[CheckpointError], message: str, first: _Failure) -> CheckpointError:
    error = kind(message, rank=first.rank, path=first.path, errno=first.errno)
    error.is_exchanged = True
    return error
