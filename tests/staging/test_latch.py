"""A flag that is set once."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from pyckpt.staging.latch import Latch

pytestmark = pytest.mark.timeout(60)


def test_it_is_set_for_good() -> None:
    latch = Latch()
    assert not latch.is_set()
    assert not latch.wait(0.01)
    latch.set()
    latch.set()
    assert latch.is_set()
    assert latch.wait()
    assert latch.wait(0)


def test_all_that_wait_go_on() -> None:
    latch = Latch()
    went_on: list[bool] = []
    threads = [threading.Thread(target=lambda: went_on.append(latch.wait())) for _ in range(5)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    assert went_on == []
    latch.set()
    for thread in threads:
        thread.join(30)
    assert went_on == [True] * 5


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_does_not_end_the_waiting_through() -> None:
    latch = Latch()
    ident = threading.main_thread().ident
    assert ident is not None
    for seconds in (0.2, 0.4):
        threading.Timer(seconds, signal.pthread_kill, (ident, signal.SIGINT)).start()
    threading.Timer(1, latch.set).start()
    with pytest.raises(KeyboardInterrupt):
        latch.wait_through()
    assert latch.is_set()
