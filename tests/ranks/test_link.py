"""Links between ranks, which are threads here; gloo and the store are real ones.

faults/ranks.py kills and stops real processes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pyckpt.errors import CheckpointError
from pyckpt.ranks import circle, link
from pyckpt.ranks.circle import Circle
from pyckpt.ranks.exchange import AllRaised, Channel, barrier, decide, together
from pyckpt.ranks.link import Link
from pyckpt.ranks.transfer import hear, tell

pytestmark = pytest.mark.timeout(60)
SIZE = 3
GLOO: Any = dist.ProcessGroupGloo


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(circle, "_ANSWER_SECONDS", 1.0)
    monkeypatch.setattr(circle, "_TICK_SECONDS", 0.05)


class Ranks:
    """Channels of three ranks, numbered 0, 2 and 4 among all."""

    def __init__(self, limit: float) -> None:
        self.broken: list[int] = []
        self.store = dist.HashStore()
        members = (0, 2, 4)

        def channel(place: int) -> Channel:
            group = GLOO(dist.PrefixStore("gloo", self.store), place, SIZE, timedelta(seconds=60))
            own = Circle(dist.PrefixStore("circle", self.store), members, place, limit)
            broken = lambda: self.broken.append(place)  # noqa: E731
            return Channel(place, members, Link(own, "link", group, broken))

        with ThreadPoolExecutor(SIZE) as pool:
            self.channels = list(pool.map(channel, range(SIZE)))

    def run(self, *works: Callable[[Channel], Any]) -> list[Any]:
        """What each rank returns or raises. A rank without a work does nothing, but lives."""

        def tried(place: int) -> Any:
            try:
                return works[place](self.channels[place])
            except Exception as error:
                return error

        with ExitStack() as lives, ThreadPoolExecutor(SIZE) as pool:
            for channel in self.channels:
                lives.enter_context(channel.at_work())
            return list(pool.map(tried, range(len(works))))


@pytest.fixture
def ranks() -> Ranks:
    return Ranks(60)


def save(channel: Channel) -> Any:
    return together("saving", lambda: channel.rank, channel)


def dead(seconds: float = 0) -> Callable[[Channel], None]:
    """A rank that dies: its connections close, and it answers no more."""

    def die(channel: Channel) -> None:
        time.sleep(seconds)
        assert channel.link is not None
        channel.link.circle._look = lambda: None  # type: ignore[method-assign]
        out = torch.zeros(1, dtype=torch.uint8)
        work = channel.link.group.recv([out], (channel.rank + 1) % SIZE, 7)
        with pytest.raises(RuntimeError):  # then gloo closes all its connections
            work.wait(timedelta(seconds=0.1))

    return die


def the_same(errors: list[Any]) -> CheckpointError:
    for error in errors:
        assert isinstance(error, CheckpointError), errors
        assert str(error) == str(errors[0])
        assert error.rank == errors[0].rank
    return errors[0]


def test_what_all_have_returned(ranks: Ranks) -> None:
    assert ranks.run(save, save, save) == [[0, 1, 2]] * SIZE
    assert not ranks.broken


def test_a_dead_rank_is_named_by_all_others(ranks: Ranks) -> None:
    begin = time.monotonic()
    error = the_same(ranks.run(save, dead(0.3), save)[::2])
    assert time.monotonic() - begin < 30
    assert error.rank == 2
    assert str(error).startswith("saving failed: rank 2 does not answer. A process that was killed")
    assert sorted(ranks.broken) == [0, 2]
    # The link stays as it is, and nobody waits.
    assert str(the_same(ranks.run(save, dead(), save)[::2])) == str(error)


def test_a_silent_rank_is_lost_after_the_limit() -> None:
    ranks = Ranks(1.5)

    def silent(channel: Channel) -> None:
        assert channel.link is not None
        channel.link.circle._look = lambda: None  # type: ignore[method-assign]

    error = the_same(ranks.run(save, silent, save)[::2])
    assert (error.rank, "rank 2 does not answer" in str(error)) == (2, True)


def test_a_rank_that_is_slow_and_answers_is_waited_for() -> None:
    ranks = Ranks(0.5)

    def slow(channel: Channel) -> Any:
        return together("saving", lambda: time.sleep(3), channel)

    assert ranks.run(slow, save, save)[1] == [None, 1, 2]


def test_an_interrupt_of_a_rank_that_waits(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not wait for the others, and they raise what it tells when they come."""
    wait = Link._wait
    slept = threading.Event()

    def interrupted(self: Link, *arguments: Any) -> None:
        if self is ranks.channels[0].link:
            raise KeyboardInterrupt
        wait(self, *arguments)

    monkeypatch.setattr(Link, "_wait", interrupted)

    def slow(channel: Channel) -> Any:
        return together("saving", lambda: slept.wait(20), channel)

    def first(channel: Channel) -> Any:
        try:
            return save(channel)
        finally:
            slept.set()

    error = the_same(ranks.run(first, slow, save))
    assert (str(error), error.rank) == ("saving failed on rank 0: KeyboardInterrupt: ", 0)
    assert isinstance(error.__cause__, KeyboardInterrupt)


def test_a_rank_that_an_interrupt_takes_away_between_two_steps(ranks: Ranks) -> None:
    def leaving(channel: Channel) -> Any:
        time.sleep(0.5)
        channel.leave("saving", ValueError("is raised where the call was made, by all ranks"))
        assert not ranks.broken
        channel.leave("saving", KeyboardInterrupt())
        return save(channel)

    error = the_same(ranks.run(leaving, save, save))
    assert (str(error), error.rank) == ("saving failed on rank 0: KeyboardInterrupt: ", 0)


# Decisions


class Deciding:
    """A step with no way back."""

    def __init__(self) -> None:
        self.kept: list[int] = []

    def __call__(self, channel: Channel) -> None:
        decide("committing", lambda: None, channel, lambda: self.kept.append(channel.rank))


def test_all_keep(ranks: Ranks) -> None:
    deciding = Deciding()
    for turn in range(1, 4):
        assert ranks.run(deciding, deciding, deciding) == [None] * SIZE
        assert sorted(deciding.kept) == sorted([0, 1, 2] * turn)


def test_nobody_keeps_if_a_rank_fails(ranks: Ranks) -> None:
    deciding = Deciding()

    def failing(channel: Channel) -> None:
        def step() -> None:
            raise OSError(28, "No space left on device")

        decide("committing", step, channel, lambda: deciding.kept.append(channel.rank))

    error = the_same(ranks.run(deciding, failing, deciding))
    assert (error.rank, error.errno, deciding.kept) == (2, 28, [])


def test_the_first_word_counts_if_the_exchange_breaks_on_some(
    ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It passes on one rank. The others cannot know, and go by what that one has said."""
    gather = Link.gather
    passed = threading.Event()

    def breaking(self: Link, *arguments: Any, **options: Any) -> list[Any]:
        outcomes = gather(self, *arguments, **options)
        if self is not ranks.channels[2].link:
            assert passed.wait(20)
            raise RuntimeError("Connection closed by peer")
        return outcomes

    say = Link._say

    def saying(self: Link, key: str, word: str) -> str:
        found = say(self, key, word)
        passed.set()
        return found

    monkeypatch.setattr(Link, "gather", breaking)
    monkeypatch.setattr(Link, "_say", saying)
    deciding = Deciding()
    assert ranks.run(deciding, deciding, deciding) == [None] * SIZE
    assert sorted(deciding.kept) == [0, 1, 2]
    assert sorted(ranks.broken) == [0, 1]


def test_a_failure_that_is_said_first_counts_too(
    ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    gather = Link.gather
    said = threading.Event()

    def breaking(self: Link, *arguments: Any, **options: Any) -> list[Any]:
        outcomes = gather(self, *arguments, **options)
        if self is ranks.channels[0].link:
            raise RuntimeError("Connection closed by peer")
        assert said.wait(20)
        return outcomes

    say = Link._say

    def saying(self: Link, key: str, word: str) -> str:
        found = say(self, key, word)
        said.set()
        return found

    monkeypatch.setattr(Link, "gather", breaking)
    monkeypatch.setattr(Link, "_say", saying)
    deciding = Deciding()
    error = the_same(ranks.run(deciding, deciding, deciding))
    assert "Connection closed by peer" in str(error)
    assert deciding.kept == []


def test_an_interrupt_that_comes_too_late_is_raised_behind_the_end(ranks: Ranks) -> None:
    kept: list[int] = []

    def keep(channel: Channel) -> None:
        if channel.rank == 1 and not kept.count(1):
            kept.append(1)
            raise KeyboardInterrupt
        kept.append(channel.rank)

    def work(channel: Channel) -> str:
        try:
            decide("committing", lambda: None, channel, lambda: keep(channel))
        except KeyboardInterrupt:
            return "interrupted"
        return "ended"

    assert ranks.run(work, work, work) == ["ended", "interrupted", "ended"]
    assert sorted(kept) == [0, 1, 1, 2]


# Steps with barriers in them


def test_a_step_that_fails_before_a_barrier(ranks: Ranks) -> None:
    """The others, in the barrier, raise its error. There is no other exchange, on any rank."""

    def step(channel: Channel) -> None:
        barrier("collecting", channel)
        if channel.rank == 1:
            raise OSError(5, "Input/output error")
        barrier("collecting", channel)
        raise AssertionError("nobody comes here")

    def work(channel: Channel) -> None:
        together("collecting", lambda: step(channel), channel)

    error = the_same(ranks.run(work, work, work))
    assert (error.rank, error.errno) == (2, 5)
    assert ranks.run(save, save, save) == [[0, 1, 2]] * SIZE


def test_a_barrier_alone() -> None:
    barrier("collecting", Channel())
    assert issubclass(AllRaised, Exception)


# Transfers


def test_a_rank_that_dies_in_a_transfer(ranks: Ranks) -> None:
    def hearing(channel: Channel) -> Any:
        return hear(channel)

    found = ranks.run(dead(0.3), hearing, hearing)[1:]
    error = the_same(found)
    assert error.rank == 0
    assert str(error).startswith("sending between the ranks failed: rank 0 does not answer")


def test_transfers_after_decisions(ranks: Ranks) -> None:
    deciding = Deciding()

    def work(channel: Channel) -> Any:
        deciding(channel)
        if channel.rank:
            return hear(channel)
        tell(7, channel)
        return 7

    assert ranks.run(work, work, work) == [7] * SIZE
    assert link._PASSED == "passed"
