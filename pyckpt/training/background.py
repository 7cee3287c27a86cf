"""What runs in the background after a call has returned: saves and removals, one after another.

    calling thread      collect ─▶ stage ─▶ return ─▶ forward, backward, step ...
                                     │                               │ lazy: copies what is unread
    background thread                └─▶ write ─▶ commit ─▶ result ◀─┘

Each piece of work has a background thread. These threads work one after another, in the order of
the calls. They are not daemons, also if training runs in one, so the interpreter waits for them.
Work that begins when the interpreter ends already, or when the system has no more threads, is done
before the call returns.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from typing import Generic, Protocol, TypeAlias, TypeVar

from pyckpt.errors import TornSaveError
from pyckpt.interrupts import is_interrupt
from pyckpt.options import default_threads
from pyckpt.ranks.exchange import current_ranks
from pyckpt.staging import pending_saves
from pyckpt.staging.buffers import BufferPool
from pyckpt.staging.copies import Copies
from pyckpt.staging.latch import Latch
from pyckpt.staging.lazy import LiveRecords, distrust
from pyckpt.staging.pending_saves import PendingSave
from pyckpt.state import TrainingState
from pyckpt.storage.urls import Location
from pyckpt.torch_format.records import Record

__all__ = ["BackgroundSave", "Collected", "in_turn"]

_LOGGER = logging.getLogger("pyckpt")

T = TypeVar("T")
Write: TypeAlias = Callable[[Callable[[], None], Callable[[], None]], T]

_pool = BufferPool()
_last_work: Latch | None = None  # set when the latest piece of work is done


class Collected(Protocol):
    """A save whose contents are collected, and whose bytes are still in the caller's memory."""

    @property
    def paths(self) -> Sequence[Location]:
        """The files that this process writes."""
        ...

    @property
    def progress(self) -> tuple[int, int]:
        """Bytes written so far, and the total, before compression. Any thread."""
        ...

    def state_records(self) -> Sequence[Record]:
        """The records of all bytes that the caller may change later."""
        ...

    def replace_state_records(self, records: Sequence[Record]) -> None:
        """Replaces ``state_records()``. The new records have the same order and sizes."""
        ...

    def give_up(self) -> None:
        """Lets ``write()`` fail soon. Any thread."""
        ...

    def close(self) -> None:
        """Removes what was not committed, and releases the contents."""
        ...


class BackgroundSave(Generic[T]):
    """A save that is staged in the calling thread, and written in the background.

    Call ``begin()``, then ``start()``. ``drop()`` if anything fails before ``start()`` has
    returned.

    Args:
        write: Writes and commits; returns the result. It has two arguments, both to be called: the
            first before bytes are read, the second when they are read and nothing is committed. If
            one raises, nothing may be committed. Called in the background thread.
        nice: By how much the priority of the threads that write is lowered.

    Attributes:
        pending: The save's future.
    """

    def __init__(self, collected: Collected, write: Write[T], nice: int) -> None:
        staging = _Staging()
        self.pending: PendingSave[T] = PendingSave(
            staging.staged, staging.stage, staging.progress, staging.give_up
        )
        self._collected = collected
        self._staging = staging
        self._begun: Future[_Turn | None] = Future()  # None: it does not begin
        self._done = Latch()
        self._run = partial(_run, self._begun, self.pending, collected, write, staging, self._done)
        run = partial(self._run, nice=nice)
        self._thread = threading.Thread(target=run, name="pyckpt-save", daemon=False)
        self._has_thread = False

    def begin(self, state: TrainingState | None, *, chosen: bool) -> None:
        """Copies what has to be copied now, and starts the thread, which waits for ``start()``.

        Args:
            state: What is trained, if its parameters and optimizer state are to be read in place.
                None copies everything.
            chosen: Whether the caller chose the way, and not pyckpt.
        """
        self._staging.begin(self._collected, state, chosen=chosen)
        self._has_thread = _start(self._thread)

    def start(self) -> PendingSave[T]:
        """Lets the thread go on. Without one, the save is written before this returns."""
        pending_saves.begin(self.pending, self._collected.paths)
        self._begun.set_result(_take_turn(self._done))
        if not self._has_thread:
            self._run(nice=0)
        return self.pending

    def drop(self) -> None:
        """The save does not begin, if it has not: gives back what was staged, and closes it."""
        # Ctrl-C may come at any time. Once begun is set, the thread does everything else.
        if not self._begun.done():
            pending_saves.forget(self.pending)
            self._done.set()
            self._begun.set_result(None)
            self._staging.close()
            self._collected.close()


def in_turn(work: Callable[[], T]) -> Future[T]:
    """Does ``work`` after all that is under way. If nothing is, before it returns.

    The Future has its error. Before it returns, Ctrl-C and exceptions of signal handlers are raised
    besides.
    """
    done = Latch()
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()
    turn = _take_turn(done)

    def run() -> None:
        try:
            turn.wait()
            outcome = work()
        except BaseException as error:
            done.set()
            future.set_exception(error)
        else:
            done.set()
            future.set_result(outcome)

    thread = threading.Thread(target=run, name="pyckpt-in-turn", daemon=False)
    if turn.has_come() or not _start(thread):
        run()
        error = future.exception()
        if error is not None and is_interrupt(error):
            raise error
    return future


@dataclass(frozen=True)
class _Turn:
    """The place of a piece of work behind all that began before it."""

    earlier: Latch | None

    def wait(self) -> None:
        if self.earlier is not None:
            self.earlier.wait()

    def has_come(self) -> bool:
        return self.earlier is None or self.earlier.is_set()


def _take_turn(done: Latch) -> _Turn:
    """Puts work that ends when ``done`` is set behind all other.

    Threads and signal handlers may come at the same time. CPython lets none in between the load and
    the store, because nothing is called there.
    """
    global _last_work
    earlier, _last_work = _last_work, done
    return _Turn(earlier)


class _Staging:
    """What this process keeps of the state as it was at the call.

    Attributes:
        staged: Set when the state may be changed in any way.
    """

    def __init__(self) -> None:
        self.staged = Latch()
        self._chosen = True
        self._state: TrainingState | None = None
        self._collected: Collected | None = None
        self._kept: Copies | LiveRecords | None = None

    def begin(self, collected: Collected, state: TrainingState | None, *, chosen: bool) -> None:
        """See BackgroundSave.begin."""
        self._chosen = chosen
        self._state = state
        self._collected = collected
        records = collected.state_records()
        if not records:
            self.staged.set()
            collected.replace_state_records([])
            return
        threads = default_threads(current_ranks().local_world_size)
        if state is not None:
            self._kept = LiveRecords(records, state, _pool, threads, self.staged, frozen=chosen)
        else:
            self._kept = Copies(records, _pool, threads)
            self._kept.hold_back()
            if self._kept.is_complete:
                self.staged.set()
        collected.replace_state_records(self._kept.records)

    def progress(self) -> tuple[int, int]:
        """Bytes written and in total; see PendingSave.progress."""
        return (0, 0) if self._collected is None else self._collected.progress

    def stage(self) -> None:
        """Copies what has not been copied. Any thread."""
        if isinstance(self._kept, LiveRecords):
            self._kept.stage()
        self.wait()

    def wait(self) -> None:
        """Waits for copies that are being made. The background thread calls it before it reads."""
        kept = self._kept
        if kept is not None:
            kept.wait()
        if not isinstance(kept, LiveRecords):
            self.staged.set()

    def settle(self) -> None:
        """Raises TornSaveError or the error of a copy. For the background thread, at the end."""
        if isinstance(self._kept, LiveRecords):
            self._kept.settle()

    def give_up(self) -> None:
        """Lets the write fail soon."""
        if self._collected is not None:
            self._collected.give_up()

    def distrust(self) -> bool:
        """After a TornSaveError: whether the way to stage was the default one.

        It is not used for this state again.
        """
        if self._chosen or self._state is None:
            return False
        distrust(self._state)
        _LOGGER.warning("this state is copied from now on (stage='copy')")
        return True

    def close(self) -> None:
        """Gives the copies' memory back."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None
        self._state = None


def _start(thread: threading.Thread) -> bool:
    """Starts a thread, if the system has one more, and the interpreter is not about to end."""
    if not threading.main_thread().is_alive():
        return False
    try:
        thread.start()
    except RuntimeError:  # no more threads
        return False
    return True


def _run(
    begun: Future[_Turn | None],
    pending: PendingSave[T],
    collected: Collected,
    write: Write[T],
    staging: _Staging,
    done: Latch,
    *,
    nice: int,
) -> None:
    turn = begun.result()
    if turn is None:
        return
    outcome: T | BaseException
    raise_later = True
    try:
        with closing(collected), closing(staging):
            # The threads that this one starts inherit its priority.
            _lower_priority(nice)
            # So ``staged`` is set even while an earlier save is being written. An error is raised
            # again by write, which tells all ranks.
            with suppress(Exception):
                staging.wait()
            turn.wait()
            try:
                outcome = write(staging.wait, staging.settle)
            except TornSaveError:
                raise_later = not staging.distrust()
                raise
    except BaseException as error:
        outcome = error
    done.set()
    pending_saves.finish(pending, outcome, staging.progress(), raise_later=raise_later)


def _lower_priority(nice: int) -> None:
    """Lowers the priority of the calling thread, if the system has priorities of threads."""
    if nice and sys.platform == "linux":
        thread = threading.get_native_id()
        with suppress(OSError):  # not permitted: training is slower, the save is still right
            os.setpriority(
                os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + nice)
            )


def _forget() -> None:
    """A forked process has neither the threads nor their buffers."""
    global _pool, _last_work
    _pool = BufferPool()
    _last_work = None


os.register_at_fork(after_in_child=_forget)
