"""Asynchronous saves that are under way, and the errors of saves that nobody has asked about."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from pyckpt.errors import CheckpointError, SaveInProgressError

__all__ = ["PendingSave", "check_room", "raise_uncollected", "wait_for_room"]

_LOGGER = logging.getLogger("pyckpt")

_changed = threading.Condition()  # guards the lists
_running: list[PendingSave] = []
_uncollected: list[PendingSave] = []  # failed, and nobody has asked for the result yet


class PendingSave(Future[list[Path]]):
    """A save in the background. Its result is what ``save_checkpoint`` returns.

    A Future that cannot be cancelled, because other ranks take part. An error is logged when it
    happens. ``result()`` and ``exception()`` collect it. The next save raises an error that has not
    been collected.

    Attributes:
        staged: Set when the state may be changed in any way. ``optimizer.step()`` need not wait
            for it.
    """

    def __init__(
        self,
        staged: threading.Event,
        stage: Callable[[], None],
        progress: Callable[[], tuple[int, int]],
    ) -> None:
        super().__init__()
        self.staged = staged
        self._stage = stage
        self._progress = progress
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

    def result(self, timeout: float | None = None) -> list[Path]:
        """Waits for the paths, or raises the CheckpointError that ended the save."""
        try:
            return super().result(timeout)
        finally:
            self._collect()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Waits for the end of the save, and returns the error or None."""
        try:
            return super().exception(timeout)
        finally:
            self._collect()

    def begin(self) -> None:
        """Counts this save as under way, until it ends."""
        with _changed:
            _running.append(self)

    def forget(self) -> None:
        """The save did not begin. Its caller has got the error."""
        with _changed:
            if self in _running:
                _running.remove(self)
            _changed.notify_all()

    def finish(self, outcome: list[Path] | BaseException, progress: tuple[int, int]) -> None:
        """Ends the save. For the thread that runs it."""
        # Release the state.
        self._stage = lambda: None
        self._progress = lambda: progress
        self.staged.set()
        failed = isinstance(outcome, BaseException)
        if failed:
            _LOGGER.error("an asynchronous save failed: %s", outcome)
        with _changed:
            _running.remove(self)
            if failed:
                _uncollected.append(self)
            _changed.notify_all()
        # Last, so that there is room for the next save once the result is there.
        if isinstance(outcome, BaseException):
            self.set_exception(outcome)
        else:
            self.set_result(outcome)

    def _collect(self) -> None:
        if self.done():
            with _changed:
                if self in _uncollected:
                    _uncollected.remove(self)


def wait_for_room(max_pending: int) -> None:
    """Waits until fewer than ``max_pending`` saves are under way."""
    with _changed:
        _changed.wait_for(lambda: len(_running) < max_pending)


def check_room(max_pending: int) -> None:
    """Checks that fewer than ``max_pending`` saves are under way, without waiting.

    Raises:
        SaveInProgressError: There are ``max_pending`` or more.
    """
    with _changed:
        running = len(_running)
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
        failed = list(_uncollected)
        _uncollected.clear()
    if not failed:
        return
    error = Future.exception(failed[0])
    more = f" (and {len(failed) - 1} more failed)" if len(failed) > 1 else ""
    message = f"an earlier asynchronous save failed{more}: {error}"
    if isinstance(error, CheckpointError):
        raise type(error)(message, rank=error.rank, path=error.path, errno=error.errno) from error
    raise CheckpointError(message) from error


def _forget() -> None:
    """A forked process does not have the threads: the saves belong to its parent."""
    global _changed
    _changed = threading.Condition()
    _running.clear()
    _uncollected.clear()


os.register_at_fork(after_in_child=_forget)
