"""The same work on a few threads: how many at once, and what an error does."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Sequence

import pytest

from pyckpt.storage.in_threads import for_each

pytestmark = pytest.mark.timeout(60)


class Work:
    """Notes what is done, and how much at the same time."""

    def __init__(self, failing: int = -1, slow: Sequence[int] = ()) -> None:
        self.failing = failing
        self.slow = slow
        self.lock = threading.Lock()
        self.begun: list[int] = []
        self.ended: list[int] = []
        self.most_at_once = 0

    def __call__(self, number: int) -> None:
        with self.lock:
            self.begun.append(number)
            self.most_at_once = max(self.most_at_once, len(self.begun) - len(self.ended))
        time.sleep(1 if number in self.slow else 0.02)
        with self.lock:
            self.ended.append(number)
        if number == self.failing:
            raise OSError(f"{number}")


def test_each_once() -> None:
    work = Work()
    for_each(work, iter(range(30)), threads=4)
    assert sorted(work.ended) == list(range(30))
    assert 1 < work.most_at_once <= 4
    for_each(work, [], threads=4)


def test_after_an_error_no_other_begins() -> None:
    work = Work(failing=5)
    with pytest.raises(OSError, match="5"):
        for_each(work, range(1000), threads=3)
    assert len(work.begun) < 15
    assert sorted(work.begun) == sorted(work.ended)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_waits_for_what_has_begun() -> None:
    work = Work(slow=(0,))
    ident = threading.main_thread().ident
    assert ident is not None
    timer = threading.Timer(0.1, signal.pthread_kill, (ident, signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        for_each(work, range(100_000), threads=3)
    assert sorted(work.begun) == sorted(work.ended)
    assert len(work.begun) < 1000


def test_no_thread_is_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    work = Work(failing=2)
    with pytest.raises(OSError, match="2"):
        for_each(work, range(5), threads=3)
    assert work.ended == [0, 1, 2]
