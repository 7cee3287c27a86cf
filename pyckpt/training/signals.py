"""save_on_signal: the last checkpoint before a machine is taken away.

Schedulers send a signal some time before they end a job: Slurm with ``--signal=USR1@120``, cloud
machines SIGTERM. A handler may not save in the middle of a step, so it only takes note.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterable
from types import FrameType, TracebackType
from typing import Any

from pyckpt.errors import OptionError
from pyckpt.ranks.exchange import begin_together
from pyckpt.ranks.overlapped import OverlappedMaximum
from pyckpt.staging.pending_saves import raise_uncollected, wait_for_room

__all__ = ["SaveOnSignal", "save_on_signal"]

_LOGGER = logging.getLogger("pyckpt")


def save_on_signal(
    save: Callable[[], Any],
    *,
    signals: Iterable[int] = (signal.SIGTERM, signal.SIGUSR1),
    exit_code: int | None = None,
    process_group: Any = None,
) -> SaveOnSignal:
    """Saves and ends when a signal has come, at the end of a step that all ranks have finished.

    ::

        with pyckpt.save_on_signal(lambda: manager.save(step, state)) as after_step:
            for step, batch in enumerate(batches):
                ...
                after_step()

    Use it on every rank, and call ``after_step()`` after each step on every rank. With several
    ranks they save one step after the signal, whichever rank has got it: the ranks tell each other
    while the next step runs, so no step waits for that. The end of the block, unless it raises,
    waits for all ranks, and is the last chance: if a signal has come, they save and end there.

    Args:
        save: Saves the state. Asynchronous saves are waited for.
        signals: What to listen to. A second signal of the kind does what it would have done
            without pyckpt.
        exit_code: That of the process. None is 128 plus the signal's number, as for a process that
            died of it.
        process_group: As in ``save_checkpoint``.

    Raises:
        OptionError: ``save`` cannot be called, a signal cannot be handled, or this is not the main
            thread.
    """
    if not callable(save):
        raise OptionError(f"save must be a function without arguments, not {save!r}")
    try:
        numbers = list(signals)
    except TypeError:
        raise OptionError(f"signals must be a list of signals, not {signals!r}") from None
    return SaveOnSignal(save, numbers, exit_code, process_group)


class SaveOnSignal:
    """What ``save_on_signal`` returns: a context manager, and the function to call after a step."""

    def __init__(
        self,
        save: Callable[[], Any],
        signals: list[int],
        exit_code: int | None,
        process_group: Any,
    ) -> None:
        self._save = save
        self._signals = signals
        self._exit_code = exit_code
        self._process_group = process_group
        self._previous: dict[int, Any] = {}
        self._came = 0
        self._largest: OverlappedMaximum | None = None

    @property
    def signal(self) -> int:
        """The signal that has come to this rank, or 0."""
        return self._came

    def __enter__(self) -> SaveOnSignal:
        if threading.current_thread() is not threading.main_thread():
            raise OptionError("save_on_signal is for the main thread, where signals come")
        # The first two are those of saves.
        *_, channel = begin_together("save_on_signal", 3, self._process_group)
        self._largest = OverlappedMaximum(channel, "save_on_signal")
        for number in self._signals:
            try:
                self._previous[number] = signal.signal(number, self._note)
            except (OSError, ValueError, TypeError) as error:
                self._restore()
                raise OptionError(f"signal {number!r} cannot be handled: {error}") from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if self._largest is not None and kind is None:
                # Of the last step, and what came after it: no other step tells the ranks.
                number = self._largest.turn(self._came) or self._largest.finish()
                self._end_if(number)
        finally:
            self._restore()
        if kind is None and self._came:  # just now, too late for the ranks to agree on
            signal.raise_signal(self._came)

    def __call__(self) -> None:
        """Call it after each step. If a signal came: saves, waits, and raises SystemExit.

        Raises:
            SystemExit: A signal came, and the state is saved.
            CheckpointError: It could not be saved.
        """
        if self._largest is None:
            raise OptionError("save_on_signal is a context manager: use it in a with statement")
        self._end_if(self._largest.turn(self._came))

    def _end_if(self, number: int) -> None:
        """Saves, waits, and raises SystemExit if ``number`` is a signal, and not 0."""
        if not number:
            return
        _LOGGER.warning("%s came: saving, and then the process ends", _name(number))
        self._save()
        wait_for_room(1)
        raise_uncollected()
        raise SystemExit(128 + number if self._exit_code is None else self._exit_code)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._came = number
        self._restore_one(number)

    def _restore(self) -> None:
        for number in list(self._previous):
            self._restore_one(number)

    def _restore_one(self, number: int) -> None:
        previous = self._previous.pop(number, signal.SIG_DFL)
        # None: it was not set from Python, which cannot set it back.
        signal.signal(number, signal.SIG_DFL if previous is None else previous)


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
