"""A flag that is set once, and can be waited for."""

from __future__ import annotations

import threading

__all__ = ["Latch"]


class Latch:
    """Like threading.Event, but never cleared, and no lock is held while Python code runs.

    An Event's lock is held for a moment while ``set()`` runs. A signal handler that comes just
    then, and waits for a thread that calls ``set()`` too, would wait for ever.
    """

    def __init__(self) -> None:
        self._is_set = False
        self._gate = threading.Lock()
        self._gate.acquire()
        self._keys = [self._gate.release]  # taken by the first set()

    def is_set(self) -> bool:
        """Whether ``set()`` was called."""
        return self._is_set

    def set(self) -> None:
        """Lets all go on who wait. Any thread, any number of times."""
        self._is_set = True
        try:
            release = self._keys.pop()
        except IndexError:
            return
        release()

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until ``set()`` is called, ``timeout`` seconds at most; returns ``is_set()``."""
        if not self._is_set and self._gate.acquire(timeout=-1 if timeout is None else timeout):
            self._gate.release()  # the next one may go on
        return self._is_set

    def wait_through(self) -> None:
        """Waits until ``set()`` is called, through Ctrl-C too, which is raised then.

        For threads that must have come to their end. Before Python 3.13, a ``join()`` that Ctrl-C
        has ended takes the thread for one that has ended as well.
        """
        interrupt: BaseException | None = None
        while not self._is_set:
            try:
                self.wait()
            except BaseException as error:
                interrupt = interrupt or error
        if interrupt is not None:
            raise interrupt
