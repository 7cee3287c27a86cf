"""Asynchronous saves and removals that are under way, and errors that nobody has asked about.

When the interpreter ends, it waits for the saves that are under way, and says what it waits for.
Ctrl-C gives them up.
"""

from __future__ import annotations

import concurrent.futures.thread
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from pyckpt.errors import CheckpointError, SaveInProgressError
from pyckpt.paths import is_url
from pyckpt.staging.latch import Latch

__all__ = [
    "PendingSave",
    "Removal",
    "begin",
    "check_may_begin",
    "end_below",
    "finish",
    "forget",
    "is_torn_unnoticed",
    "raise_uncollected",
    "under_way",
    "wait_for_all",
    "wait_for_file",
    "wait_for_room",
]

_LOGGER = logging.getLogger("pyckpt")

T = TypeVar("T")

# Guards the lists. A signal handler may wait for a save in a thread that is just changing them:
# while it waits, a Condition gives its lock back altogether.
_changed = threading.Condition()
_running: list[PendingSave[Any]] = []
_uncollected: list[PendingSave[Any]] = []  # failed, and nobody has asked for the result yet
_removals: list[Removal] = []


class PendingSave(Future[T]):
    """A save in the background.

    Of ``async_save_checkpoint``, the result is what ``save_checkpoint`` returns; of ``async_save``,
    the path.

    A Future that cannot be cancelled, because other ranks may take part. An error is logged when it
    happens. ``result()`` and ``exception()`` collect it. The next save raises an error that has not
    been collected, except a TornSaveError if the way of staging was not chosen: see ``stage`` of
    async_save_checkpoint.

    Attributes:
        staged: Set when the state may be changed in any way. ``optimizer.step()`` need not wait
            for it. It has ``is_set()`` and ``wait()``, as a threading.Event.
    """

    def __init__(
        self,
        staged: Latch,
        stage: Callable[[], None],
        progress: Callable[[], tuple[int, int]],
        give_up: Callable[[], None],
    ) -> None:
        super().__init__()
        self.staged = staged
        self._stage = stage
        self._progress = progress
        self._give_up = give_up
        self._raise_later = True
        self._files: frozenset[str] = frozenset()  # that this process writes, with links resolved
        self.set_running_or_notify_cancel()

    def progress(self) -> tuple[int, int]:
        """Bytes that this rank has written and will write, before compression.

        (0, 0) on a rank that writes nothing.
        """
        return self._progress()

    def wait_staged(self) -> None:
        """Returns when the state may be changed in any way, that is, when ``staged`` is set.

        With ``stage="lazy"`` this copies what has not been written yet.
        """
        self._stage()
        self.staged.wait()

    def result(self, timeout: float | None = None) -> T:
        """Waits for the result, or raises the CheckpointError that ended the save."""
        self.exception(timeout)
        return super().result()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Waits for the end of the save, and returns the error or None."""
        error = super().exception(timeout)
        with _changed:
            if self in _uncollected:
                _uncollected.remove(self)
        return error


class Removal:
    """A removal of a file or folder that is under way, until ``end()``."""

    def __init__(self, path: str | Path) -> None:
        self._name = _own_name(path)
        with _changed:
            _removals.append(self)

    def takes(self, name: str) -> bool:
        """Whether ``name`` is what is removed, or lies in it."""
        return name == self._name or name.startswith(f"{self._name}{os.sep}")

    def end(self) -> None:
        """It is over. May be called again."""
        with _changed:
            if self in _removals:
                _removals.remove(self)
            _changed.notify_all()


def _own_name(path: str | Path) -> str:
    """The path with all links resolved, but for one that is its last part. A URL is itself."""
    text = os.fspath(path)
    if is_url(text):
        return text
    return str(Path(os.path.realpath(Path(text).parent), Path(text).name))


def begin(pending: PendingSave[Any], paths: Iterable[str | Path]) -> None:
    """Counts a save as under way, until it ends.

    Args:
        paths: The files that this process writes.
    """
    pending._files = frozenset(map(_identity, paths))
    with _changed:
        _running.append(pending)


def forget(pending: PendingSave[Any]) -> None:
    """The save did not begin. Its caller has got the error."""
    with _changed:
        if pending in _running:
            _running.remove(pending)
        _changed.notify_all()


def finish(
    pending: PendingSave[T],
    outcome: T | BaseException,
    progress: tuple[int, int],
    *,
    raise_later: bool = True,
) -> None:
    """Ends the save. For the thread that runs it.

    Args:
        raise_later: Whether the next save raises an error that nobody has asked for.
    """
    # Release the state.
    pending._stage = pending._give_up = lambda: None
    pending._progress = lambda: progress
    pending.staged.set()
    failed = isinstance(outcome, BaseException)
    with _changed:
        _running.remove(pending)
        if failed:
            pending._raise_later = raise_later
            _uncollected.append(pending)
        else:  # what a torn save lacks, this one has
            _uncollected[:] = [one for one in _uncollected if one._raise_later]
        _changed.notify_all()
    # Last, so that there is room for the next save once the result is there.
    if isinstance(outcome, BaseException):
        _LOGGER.error("an asynchronous save failed: %s", outcome)
        pending.set_exception(outcome)
    else:
        pending.set_result(outcome)


def wait_for_room(max_pending: int) -> None:
    """Waits until fewer than ``max_pending`` saves are under way."""
    with _changed:
        _changed.wait_for(lambda: len(_running) < max_pending)


def wait_for_all() -> None:
    """Waits until no save and no removal is under way."""
    with _changed:
        _changed.wait_for(lambda: not _running and not _removals)


def wait_for_file(path: str | Path) -> None:
    """Waits until no save under way writes ``path``, and no removal under way takes it away.

    Else they would replace, or remove, what comes later. Not for the threads of saves, which take
    turns with removals.
    """
    file, name = _identity(path), _own_name(path)
    with _changed:
        _changed.wait_for(
            lambda: (
                all(file not in pending._files for pending in _running)
                and not any(removal.takes(file) or removal.takes(name) for removal in _removals)
            )
        )


def end_below(folder: Path, *, give_up: bool) -> None:
    """Returns when no save under way writes a file below ``folder``. Collects their errors.

    Args:
        give_up: Lets them fail soon, and raises nothing.

    Raises:
        CheckpointError: Of a save that failed, also before the call, if nobody has asked for it.
    """
    start = f"{os.path.realpath(folder)}{os.sep}"
    with _changed:
        found = [
            one
            for one in (*_running, *_uncollected)
            if any(file.startswith(start) for file in one._files)
        ]
    if give_up:
        for one in found:
            one._give_up()
    errors = [error for one in found if (error := one.exception()) is not None]
    if errors and not give_up:
        raise errors[0]


def check_may_begin(max_pending: int) -> None:
    """Checks that another save may begin, without waiting.

    Raises:
        SaveInProgressError: ``max_pending`` saves or more are under way.
        CheckpointError: See ``raise_uncollected``.
    """
    raise_uncollected()
    running = len(under_way())
    if running >= max_pending:
        raise SaveInProgressError(
            f"{running} asynchronous saves are under way, and max_pending is {max_pending}"
        )


def raise_uncollected() -> None:
    """Raises the error of a failed save whose result nobody has asked for.

    Raises:
        CheckpointError: Of the type of that error, which is its cause.
    """
    with _changed:
        failed = [one for one in _uncollected if one._raise_later]
        _uncollected[:] = [one for one in _uncollected if not one._raise_later]
    if not failed:
        return
    error = Future.exception(failed[0])
    more = f" (and {len(failed) - 1} more failed)" if len(failed) > 1 else ""
    message = f"an earlier asynchronous save failed{more}: {error}"
    if isinstance(error, CheckpointError):
        raise type(error)(message, rank=error.rank, path=error.path, errno=error.errno) from error
    raise CheckpointError(message) from error


def under_way() -> list[PendingSave[Any]]:
    """The saves that are under way."""
    with _changed:
        return list(_running)


def is_torn_unnoticed() -> bool:
    """Whether a save was torn, nobody has asked for its result, and none has succeeded since.

    The next save does not raise its error: see ``raise_later`` of ``finish``.
    """
    with _changed:
        return any(not one._raise_later for one in _uncollected)


_SILENT_SECONDS = 2.0
_SECONDS_BETWEEN_MESSAGES = 30.0


def _wait_at_exit() -> None:
    """Waits for all saves, before the interpreter joins their threads without a word."""
    begin, silent = time.monotonic(), _SILENT_SECONDS
    while True:
        try:
            with _changed:
                if _changed.wait_for(lambda: not _running, silent):
                    return
            silent = _SECONDS_BETWEEN_MESSAGES
            _LOGGER.warning(
                "the process ends when %s. Ctrl-C gives up", _what_is_left(time.monotonic() - begin)
            )
        except KeyboardInterrupt:
            for pending in list(_running):
                pending._give_up()
            _LOGGER.warning("the saves that are under way are given up")


def _what_is_left(seconds: float) -> str:
    progress = [pending.progress() for pending in list(_running)]
    done, total = (sum(numbers) for numbers in zip((0, 0), *progress, strict=True))
    saves = "1 asynchronous save has" if len(progress) == 1 else f"{len(progress)} saves have"
    return f"{saves} been written ({done:,} of {total:,} bytes after {seconds:.0f} seconds)"


# Not atexit: its functions are called only after all threads have been joined. Of these, the one
# that is registered last comes first, and that of concurrent.futures ends thread pools. Packages of
# stores need pools: asyncio finds a host by one.
assert concurrent.futures.thread
threading._register_atexit(_wait_at_exit)  # type: ignore[attr-defined]


def _identity(path: str | Path) -> str:
    """A text that is equal for paths of one file. A URL is itself."""
    text = os.fspath(path)
    return text if is_url(text) else os.path.realpath(text)


def _forget() -> None:
    """A forked process does not have the threads: the saves belong to its parent."""
    global _changed
    _changed = threading.Condition()
    _running.clear()
    _uncollected.clear()
    _removals.clear()


os.register_at_fork(after_in_child=_forget)
