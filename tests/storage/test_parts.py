"""Parts of an upload: how the waiting for them ends, and the memory afterwards."""

from __future__ import annotations

import errno
import io
import os
import threading
import tracemalloc
from collections.abc import Callable

import pytest

from pyckpt.storage.parts import IN_FLIGHT, Parts

pytestmark = pytest.mark.timeout(60)


def write_all(parts: Parts) -> None:
    parts.write(memoryview(bytes(10 * (IN_FLIGHT + 2))))


def write_few_and_finish(parts: Parts) -> None:
    parts.write(memoryview(bytes(30)))
    parts.finish()


@pytest.mark.parametrize("wait", [write_all, write_few_and_finish])
def test_stop_ends_the_waiting(wait: Callable[[Parts], None]) -> None:
    is_under_way, may_end = threading.Event(), threading.Event()

    def upload(number: int, part: io.BytesIO) -> None:
        is_under_way.set()
        assert may_end.wait(50)

    parts = Parts(10, upload)

    def stop() -> None:
        assert is_under_way.wait(50)
        assert not parts.stop(0)

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(OSError, match="was stopped") as caught:
        wait(parts)
    thread.join()
    assert caught.value.errno == errno.ECANCELED
    may_end.set()
    assert parts.stop(50)


def test_an_error_of_a_part_comes_before_the_stop() -> None:
    def upload(number: int, part: io.BytesIO) -> None:
        raise OSError(errno.EIO, f"part {number}")

    parts = Parts(10, upload)
    with pytest.raises(OSError, match="part 1"):
        write_few_and_finish(parts)
    assert parts.stopped.is_set()


def test_what_is_uploaded_needs_no_memory() -> None:
    """Many uploads may wait for the others, before all are completed."""
    nbytes = 1 << 20
    data = os.urandom(3 * IN_FLIGHT * nbytes - 1)
    uploaded: dict[int, int] = {}

    def upload(number: int, part: io.BytesIO) -> None:
        uploaded[number] = len(part.read())

    tracemalloc.start()
    try:
        parts = Parts(nbytes, upload)
        parts.write(memoryview(data))
        parts.finish()
        held, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(uploaded.values()) == len(data)
    assert len(uploaded) == 3 * IN_FLIGHT
    assert held < nbytes / 2
    assert most < (IN_FLIGHT + 4) * nbytes
