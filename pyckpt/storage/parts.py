"""Cuts a stream of bytes into parts, which a few threads upload while the next ones fill.

    write: fill a part ─▶ hand it over ─▶ wait if too many are under way
                              │
                              ▼
    threads:               upload

Memory: (IN_FLIGHT + 1) x the size of a part.
"""

from __future__ import annotations

import errno
import io
import threading
from collections import deque
from collections.abc import Callable

__all__ = ["IN_FLIGHT", "Parts", "part_nbytes"]

IN_FLIGHT = 8
"""How many parts are uploaded at the same time, at most."""

_LEAST_NBYTES = 8 << 20
# Stores take 10,000. The contents may be somewhat larger than they were thought to be.
_MOST_PARTS = 9000
_MULTIPLE = 256 << 10  # Google wants that


def part_nbytes(most_nbytes: int) -> int:
    """How large a part is, if the contents have hardly more than ``most_nbytes``."""
    least = max(_LEAST_NBYTES, -(-most_nbytes // _MOST_PARTS))
    return -(-least // _MULTIPLE) * _MULTIPLE


class Parts:
    """The parts of one upload. All methods but ``stop`` are for one thread at a time.

    Args:
        nbytes: The size of each part but the last.
        upload: Called with the number of a part, from 1 on, and a file of its bytes, which stands
            at its start. On several threads.

    Attributes:
        stopped: Set when no further part will be uploaded, after an error or ``stop()``.
    """

    def __init__(self, nbytes: int, upload: Callable[[int, io.BytesIO], None]) -> None:
        self.stopped = threading.Event()
        self._nbytes = nbytes
        self._upload = upload
        self._part = io.BytesIO()  # being filled
        self._count = 0  # of parts that are handed over
        # All below is guarded by this.
        self._changed = threading.Condition()
        self._waiting: deque[tuple[int, io.BytesIO]] = deque()
        self._in_flight = 0
        self._free: list[io.BytesIO] = []
        self._threads = 0
        self._ended = False
        self._error: BaseException | None = None

    def write(self, piece: memoryview) -> None:
        """Takes the next bytes.

        Raises:
            OSError: It was stopped: ECANCELED.
            BaseException: What ``upload`` raised for a part.
        """
        while piece:
            if self._part.tell() == self._nbytes:
                self._hand_over()
            room = self._nbytes - self._part.tell()
            self._part.write(piece[:room])
            piece = piece[room:]

    @property
    def has_begun(self) -> bool:
        """Whether a part is handed over."""
        return self._count > 0

    def only_part(self) -> io.BytesIO:
        """A file of all bytes, if no part is handed over. It stands at its start. Call it once."""
        self._part.truncate()
        self._part.seek(0)
        return self._part

    def finish(self) -> None:
        """Hands over the last part, and waits until all are uploaded. Raises as ``write`` does."""
        if self._part.tell():
            self._part.truncate()
            self._hand_over()
        with self._changed:
            self._wait_for(lambda: not self._in_flight)
            self._end()
        self._part = io.BytesIO()  # an upload may wait for others before it is completed

    def stop(self, seconds: float) -> bool:
        """Uploads no further part. Returns whether none is under way, after ``seconds`` at most.

        Any thread. A ``write`` or ``finish`` that waits raises.
        """
        self.stopped.set()
        with self._changed:
            self._end()
            return self._changed.wait_for(lambda: not self._in_flight, seconds)

    def _hand_over(self) -> None:
        with self._changed:
            self._wait_for(lambda: self._in_flight < IN_FLIGHT)
            self._count += 1
            part = self._part
            part.seek(0)
            self._in_flight += 1
            self._waiting.append((self._count, part))
            self._changed.notify_all()
            has_thread = self._threads >= self._in_flight or self._start_thread()
            self._part = self._free.pop() if self._free else io.BytesIO()
            self._part.seek(0)
        if not has_thread:
            self._upload_next()
            with self._changed:
                self._raise_error()

    def _start_thread(self) -> bool:
        """Starts a thread. Returns whether there is any."""
        # Not a pool of concurrent.futures, which takes no work once the interpreter is about to
        # end, when asynchronous saves are still written.
        thread = threading.Thread(target=self._work, name="pyckpt-upload", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the system has no more
            return self._threads > 0
        self._threads += 1
        return True

    def _work(self) -> None:
        while self._upload_next():
            pass

    def _upload_next(self) -> bool:
        """Uploads the part that waits longest. Returns whether there may be another."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ended)
            if not self._waiting:
                return False
            number, part = self._waiting.popleft()
        try:
            if not self.stopped.is_set():
                self._upload(number, part)
        except BaseException as error:
            self.stopped.set()  # the others need not try any longer
            self._has_ended(part, error)
        else:
            self._has_ended(part, None)
        return True

    def _has_ended(self, part: io.BytesIO, error: BaseException | None) -> None:
        with self._changed:
            self._in_flight -= 1
            if not self._ended:
                self._free.append(part)
                self._error = self._error or error
            self._changed.notify_all()

    def _end(self) -> None:
        """Lets the threads end. The condition is held."""
        self._ended = True
        self._in_flight -= len(self._waiting)
        self._waiting.clear()
        self._free.clear()
        self._error = None  # its traceback has what leads back here
        self._changed.notify_all()

    def _wait_for(self, condition: Callable[[], bool]) -> None:
        """Waits until it holds, or until there is no reason to wait. The condition is held."""
        self._changed.wait_for(lambda: condition() or self._error is not None or self._ended)
        self._raise_error()
        if self._ended:
            raise OSError(errno.ECANCELED, "the upload was stopped")

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error
