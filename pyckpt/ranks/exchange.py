"""Ranks, and how they tell each other whether a step succeeded.

Those that take part are the ranks of a process group, by default all. Names and messages have the
number that a rank has among all. Lists by rank, and a channel's own ``rank``, go by its place in
the group.

Only modules of this folder talk to other ranks.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import pickle
import threading
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from pyckpt.errors import CheckpointError, OptionError
from pyckpt.interrupts import is_interrupt
from pyckpt.ranks.circle import Call, Circle, Silence
from pyckpt.ranks.failure import Failure, as_one, describe
from pyckpt.ranks.link import Link, lost
from pyckpt.ranks.meeting import meet

__all__ = [
    "AllRaised",
    "Channel",
    "Ranks",
    "barrier",
    "begin_together",
    "current_ranks",
    "decide",
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
class Channel:
    """A way for ranks to exchange outcomes.

    Attributes:
        rank: The place of this process in the group, from 0 on.
        members: The ranks in the group, by their numbers among all ranks.
        link: The connection to the others. None if there are none.
    """

    rank: int = 0
    members: tuple[int, ...] = (0,)
    link: Link | None = None

    @property
    def size(self) -> int:
        """How many ranks take part."""
        return len(self.members)

    @property
    def global_rank(self) -> int:
        """The number of this process among all ranks, which messages name."""
        return self.members[self.rank]

    @property
    def group(self) -> Any:
        """torch's ProcessGroupGloo between the members, or None if there is only one.

        It is for transfers of tensors on the CPU by its methods (``send``, ``recv``). They number
        the members from 0 on. torch.distributed's functions do not know it.
        """
        return None if self.link is None else self.link.group

    def at_work(self) -> AbstractContextManager[None]:
        """For as long as this rank takes part in something: see Circle."""
        return nullcontext() if self.link is None else self.link.circle.at_work()

    def leave(self, doing: str, error: BaseException) -> None:
        """Tells the others that this rank does not go on, if an interrupt is why.

        It is for what comes between two steps. The others raise it as they would raise the error of
        a step.
        """
        if self.link is not None and not isinstance(error, CheckpointError) and is_interrupt(error):
            self.link.leave(doing, error)


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
    try:
        number = _meet(store, call, (name, members), place, limit)
        links = _links.get(group)
        if links is None:
            connection = _connection(store, number, place)
            circle = Circle(connection, members, place, limit, kept=store)
            links = _links[group] = _Links(circle, (name, members), [])
        return [Channel(place, members, link) for link in links.take(channels, call, number, store)]
    except CheckpointError:
        raise
    except RuntimeError as error:  # torch's errors of stores and groups
        raise CheckpointError(f"{call} failed: the ranks could not meet: {error}") from error


_Key: TypeAlias = tuple[str, tuple[int, ...]]  # a group's name and members


def _meet(store: Any, call: str, key: _Key, place: int, limit: float) -> int:
    """Waits for the others. Returns how often they have met before."""
    with _lock:
        number = _meetings.get(key, 0)
        _meetings[key] = number + 1
    members = key[1]
    meet(store, call, number, members, members[place], limit)
    return number


@dataclass
class _Links:
    """The links of a group. They are made when they are needed, and again when one has broken."""

    circle: Circle
    key: _Key
    links: list[Link]

    def take(self, number_of: int, call: str, meeting: int, store: Any) -> list[Link]:
        """The first ones. Collective, at a meeting."""
        if self.circle.store.check([f"broken/{meeting}"]):
            self.links.clear()
        while len(self.links) < number_of:
            name = f"{meeting}/channel-{len(self.links)}"
            group = self._new_group(_part_of(store, name), call)
            self.links.append(Link(self.circle, name, group, self._tell_broken))
        return self.links[:number_of]

    def _new_group(self, store: Any, call: str) -> Any:
        place, size = self.circle.place, len(self.circle.members)
        with self.circle.at_work():
            making = Call(lambda: dist.ProcessGroupGloo(store, place, size, _OWN_TIMEOUT))
            look = self.circle.waiting(call, _CONNECTING_SECONDS)
            try:
                while not making.is_over(1.0):
                    look()
            except Silence as silence:
                raise lost(call, silence.args[0]).error() from None
        return making.result()

    def _tell_broken(self) -> None:
        """Lets all ranks make new links at their next meeting, which nobody has come to yet."""
        with _lock:
            self.circle.store.set(f"broken/{_meetings[self.key]}", "")


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
_CONNECTING_SECONDS = 15.0  # the ranks have just met
# Made here, and not by torch.distributed.new_group: that needs all ranks, or else names the group
# by how many groups this rank has, which need not be the same on all of its members.
_links: WeakKeyDictionary[Any, _Links] = WeakKeyDictionary()  # key: the caller's group
# How often they have met. By name and members, and not by group: a group that is made again may
# have the same store.
_meetings: dict[_Key, int] = {}
# Guards the number of the next meeting. Reentrant, because a signal handler may save.
_lock = threading.RLock()


def _connection(store: Any, meeting: int, place: int) -> Any:
    """A store for other threads. Collective, at a meeting.

    torch holds a store's lock while it waits for a key, perhaps as long as training takes. So it
    is a connection of its own to the same server. Nothing tells what the prefix of ``store`` is,
    so it gets one that no other has.
    """
    key = f"{meeting}/circle"
    if place == 0:
        store.set(key, uuid.uuid4().hex)
    prefix = store.get(key).decode()
    root = store
    while hasattr(root, "underlying_store"):
        root = root.underlying_store
    c10d: Any = dist  # for mypy, which does not know all that is in it
    tcp_store = c10d.TCPStore
    if isinstance(root, tcp_store):
        server = root  # perhaps in this process
        root = tcp_store(
            server.host,
            server.port,
            is_master=False,
            timeout=server.timeout,
            wait_for_workers=False,
        )
    return _part_of(root, prefix)


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
    with channel.at_work():
        outcome, cause = _tried(step, channel)
        outcomes: list[Any] = [outcome]
        failure: Failure | None
        try:
            if channel.link is not None:
                outcomes = channel.link.gather(doing, outcome)
            failure = _failure_in(doing, outcomes)
        except BaseException as error:
            cause = cause or error
            failure = None if channel.link is None else channel.link.judge(doing, error)
    if failure is not None:
        raise failure.error() from cause
    return outcomes


class AllRaised(Exception):
    """What ``barrier`` raises in a step: all ranks raise ``args[0]``. It ends the step."""


def barrier(doing: str, channel: Channel) -> None:
    """Waits in a step of ``together`` until all ranks have come here, or their step has failed.

    Raises:
        AllRaised: A rank's step has failed before it came here, or it is lost. The step must not
            go on. ``together`` raises it as the ranks' error, without another exchange: the rank
            that failed is in no other one.
    """
    try:
        together(doing, lambda: None, channel)
    except CheckpointError as error:
        raise AllRaised(error) from error


def decide(
    doing: str, step: Callable[[], None], channel: Channel, keep: Callable[[], None]
) -> None:
    """As ``together``, for the step after which there is no way back.

    It ends alike on all ranks, also if one dies in the exchange: either all that live call
    ``keep``, or all raise. An interrupt that comes too late is raised after ``keep``.

    Args:
        keep: Makes the step final on this rank.
    """
    interrupt: BaseException | None = None
    with channel.at_work():
        outcome, cause = _tried(step, channel)
        link = channel.link
        try:
            outcomes = [outcome] if link is None else link.gather(doing, outcome, decides=True)
            failure = _failure_in(doing, outcomes)
            if link is not None:
                failure = link.decide(failure)
            if failure is None:
                keep()
        except BaseException as error:
            failure = None if link is None else link.judge(doing, error)
            cause = cause or error
            if failure is None:  # it has passed, perhaps here already
                keep()
                interrupt = error if is_interrupt(error) else None
    if failure is not None:
        raise failure.error() from cause
    if interrupt is not None:
        raise interrupt


def _tried(step: Callable[[], T], channel: Channel) -> tuple[T | Failure, BaseException | None]:
    """What a step returns, or its exception as data and itself."""
    try:
        outcome = step()
        if channel.link is not None:
            pickle.dumps(outcome)  # the exchange must not fail on one rank alone
    except AllRaised as raised:
        error = raised.args[0]
        raise error from None
    except BaseException as error:
        if channel.link is None and is_interrupt(error):
            raise
        return describe(error, channel.global_rank), error
    return outcome, None


def _failure_in(doing: str, outcomes: list[Any]) -> Failure | None:
    """What all ranks raise, if one has failed."""
    failures = [one for one in outcomes if isinstance(one, Failure)]
    return as_one(doing, failures, len(outcomes)) if failures else None
