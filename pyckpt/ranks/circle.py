"""Which ranks of a group still answer.

A rank that is killed closes its connections, and gloo tells those that talk to it: not who it was,
and not the others. A rank that is stopped, or whose cable is cut, closes nothing. So the ranks have
a second way to each other, the store of their process group. While a rank works for a save or a
load, a thread of it looks there for news. It answers roll calls, also while another thread writes
for an hour. Whoever does not answer is lost.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

__all__ = ["Call", "Circle", "Silence", "names", "within"]

_LOGGER = logging.getLogger("pyckpt")

_TICK_SECONDS = 0.25  # between two looks, of up to 256 ranks
_ANSWER_SECONDS = 3.0  # a rank that lives answers within this time
_PATIENCE_SECONDS = 20.0  # between two roll calls of ranks that wait
_IDLE_SECONDS = 10.0  # a rank that has been at work answers for so long

T = TypeVar("T")


class Silence(Exception):
    """Ranks have not answered for too long: ``args[0]``, by their numbers among all ranks."""


class Circle:
    """The ranks of a group, seen from one of them.

    Args:
        store: A torch.distributed.Store that only these ranks share, and no other thread uses.
        members: The ranks, by their numbers among all.
        place: This rank's place among them.
        limit_seconds: How long a rank may be silent while others wait for it.
        kept: What must last as long: the server of the store may be in this process.
    """

    def __init__(
        self,
        store: Any,
        members: Sequence[int],
        place: int,
        limit_seconds: float,
        *,
        kept: Any = None,
    ) -> None:
        self._kept = kept
        self.store = store
        self.members = members
        self.place = place
        self.limit_seconds = limit_seconds
        # Reentrant, because a signal handler may save.
        self._lock = threading.RLock()
        self._working = 0
        self._last_work = 0.0
        self._thread: threading.Thread | None = None
        self._listeners: list[Callable[[], None]] = []
        self._seen = 0  # the number of the latest news
        self.last_news = 0.0  # when it was seen

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """For as long as this rank takes part in something. It answers roll calls."""
        with self._lock:
            self._working += 1
            if self._thread is None:
                self._thread = _start(self._watch, "pyckpt-watch")
        try:
            yield
        finally:
            with self._lock:
                self._working -= 1
                self._last_work = time.monotonic()

    def listen(self, listener: Callable[[], None]) -> None:
        """Lets ``listener`` be called after each piece of news, in the thread that looks."""
        with self._lock:
            self._listeners = [*self._listeners, listener]

    def forget(self, listener: Callable[[], None]) -> None:
        """The reverse of ``listen``."""
        with self._lock:
            self._listeners = [one for one in self._listeners if one != listener]

    def tell(self) -> int:
        """Lets all ranks look, and answer. Returns the number of this news."""
        return int(self.store.add("news", 1))

    def absent(self) -> list[int]:
        """The ranks that do not answer a roll call, by their numbers among all ranks."""
        call = self.tell()
        missing = [place for place in range(len(self.members)) if place != self.place]
        end = time.monotonic() + _ANSWER_SECONDS
        while missing and time.monotonic() < end:
            time.sleep(_TICK_SECONDS / 5)
            missing = [place for place in missing if not self._has_answered(place, call)]
        return [self.members[place] for place in missing]

    def waiting(self, doing: str, limit_seconds: float | None = None) -> Callable[[], None]:
        """A function to be called again and again by a rank that waits for others.

        It raises Silence when some have not answered for so long.

        Args:
            doing: What they do, for messages.
            limit_seconds: None takes that of the circle.
        """
        limit = self.limit_seconds if limit_seconds is None else limit_seconds
        period = min(_PATIENCE_SECONDS, limit / 3)
        period += min(self.place, 20) * 2 * _TICK_SECONDS  # one rank calls the roll for all
        last = time.monotonic()
        since: dict[int | None, float] = {}  # None: the store
        told = is_gone = False

        def look() -> None:
            nonlocal last, told, is_gone
            now = time.monotonic()
            if is_gone or now - max(last, self.last_news) < period:
                return
            if now - last > 3 * period + _ANSWER_SECONDS:  # this process was stopped itself
                since.clear()
            try:
                absent = self._absent_or_cut_off()
            except RuntimeError:  # the store is gone. gloo tells of ranks that die.
                is_gone = True
                return
            for rank in [rank for rank in since if rank not in absent]:
                del since[rank]
            for rank in absent:
                since.setdefault(rank, now)
            last = time.monotonic()
            lost = [rank for rank in since if last - since[rank] >= limit]
            if lost:
                raise Silence([rank for rank in lost if rank is not None])
            if absent and not told:
                told = True
                _LOGGER.warning(
                    "%s waits for %s, which does not answer. It gives up after %.0f seconds.",
                    doing,
                    names(absent),
                    limit,
                )

        return look

    def _absent_or_cut_off(self) -> Sequence[int | None]:
        try:
            return within(2 * _ANSWER_SECONDS, self.absent)
        except TimeoutError:
            return [None]

    def _has_answered(self, place: int, call: int) -> bool:
        key = f"answer/{place}"
        return bool(self.store.check([key])) and int(self.store.get(key)) >= call

    def _watch(self) -> None:
        """The thread that looks."""
        while True:
            with self._lock:
                idle = time.monotonic() - self._last_work
                if not self._working and idle > _IDLE_SECONDS:
                    self._thread = None
                    return
            try:
                self._look()
            except RuntimeError:  # the process that has the store has ended
                with self._lock:
                    self._thread = None
                return
            time.sleep(_TICK_SECONDS * max(1.0, len(self.members) / 256))  # it is one server

    def _look(self) -> None:
        if not self.store.check(["news"]):
            return
        news = int(self.store.add("news", 0))
        if news != self._seen:
            self.store.set(f"answer/{self.place}", str(news))
            self._seen = news
            self.last_news = time.monotonic()
            for listener in self._listeners:
                listener()


def names(ranks: Sequence[int | None]) -> str:
    """Ranks in words."""
    if None in ranks:
        return "the store of the process group"
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


class Call(Generic[T]):
    """A call in a thread of its own, which this one can wait for and still hear Ctrl-C."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._outcome: list[T] = []
        self._error: BaseException | None = None
        self._done = threading.Event()
        if _start(self._run, "pyckpt-call") is None:
            self._run()

    def is_over(self, seconds: float) -> bool:
        """Waits for so long at most."""
        return self._done.wait(seconds)

    def result(self) -> T:
        """What it has returned or raised, once it is over."""
        if self._error is not None:
            raise self._error
        return self._outcome[0]

    def _run(self) -> None:
        try:
            self._outcome.append(self._call())
        except BaseException as error:
            self._error = error
        self._done.set()


def within(seconds: float, call: Callable[[], T], *, shield: bool = False) -> T:
    """What ``call`` returns or raises. Ctrl-C is heard meanwhile.

    Args:
        shield: Whether Ctrl-C is left out instead.

    Raises:
        TimeoutError: It takes longer. It goes on, and nobody hears of it.
    """
    begun = Call(call)
    end = time.monotonic() + seconds
    while True:
        try:
            if begun.is_over(max(0.0, end - time.monotonic())):
                return begun.result()
            break
        except BaseException:
            if not shield or begun.is_over(0):
                raise
    raise TimeoutError(f"no answer within {seconds:.0f} seconds")


def _start(run: Callable[[], None], name: str) -> threading.Thread | None:
    """Starts a thread that nobody waits for at the end. None if the system has no more threads."""
    thread = threading.Thread(target=run, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError:
        return None
    return thread
