"""An object as a file: what is brought, what stays, and what waits for what."""

from __future__ import annotations

import errno
import itertools
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import pyckpt
from pyckpt.archive.reader import ArchiveReader
from pyckpt.errors import CheckpointError
from pyckpt.storage import object_file
from pyckpt.storage.inputs import InputFile
from pyckpt.storage.object_file import ObjectFile
from pyckpt.storage.store import ObjectInfo, Write
from pyckpt.storage.urls import Url
from tests.states import assert_equal

pytestmark = pytest.mark.timeout(60)

MIB = 1 << 20
BLOCK = object_file._BLOCK_NBYTES
PIECE_NBYTES = 300_000
URL = Url("memory://folder/x")


class Local:
    """A store with one object, which is in memory.

    Attributes:
        ranges: What was read.
        before: Called before each read.
        after_piece: Called with the place of each piece that was given.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.ranges: list[tuple[int, int]] = []
        self.before: Callable[[], None] = lambda: None
        self.after_piece: Callable[[int], None] = lambda at: None

    def stat(self, url: Url) -> ObjectInfo:
        return ObjectInfo(url, len(self.data), "1", None)

    def fetch(self, url: Url, start: int, end: int, write: Write, etag: str | None = None) -> None:
        assert etag == "1"
        self.ranges.append((start, end))
        self.before()
        for at in range(start, min(end, len(self.data)), PIECE_NBYTES):
            write(self.data[at : min(at + PIECE_NBYTES, end)])
            self.after_piece(at)

    @property
    def nbytes(self) -> int:
        return sum(end - start for start, end in self.ranges)


def opened(data: bytes) -> tuple[Local, ObjectFile]:
    store = Local(data)
    return store, opened_again(store)


def opened_again(store: Local) -> ObjectFile:
    return ObjectFile(store, URL)  # type: ignore[arg-type]


def interrupt() -> None:
    raise KeyboardInterrupt


def in_memory(file: ObjectFile) -> int:
    return os.fstat(file.fd).st_blocks * 512


def wait_until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_what_is_held_is_there() -> None:
    data = random.Random(0).randbytes(9 * MIB + 77)
    store, file = opened(data)
    assert os.fstat(file.fd).st_size == len(data)
    assert in_memory(file) == 0
    for offset, nbytes in ((0, 1), (5 * MIB - 3, 6), (len(data) - 1, 1), (3, 9 * MIB), (7, 0)):
        file.hold([(offset, nbytes)])
        assert os.pread(file.fd, nbytes, offset) == data[offset : offset + nbytes]
        file.release([(offset, nbytes)])
    assert store.nbytes == len(data)  # nothing twice


def test_neighbours_are_one_request_and_others_are_not_brought() -> None:
    store, file = opened(bytes(64 * MIB))
    file.hold([(MIB, 10), (MIB + 2 * BLOCK, 10), (40 * MIB, 10)])
    # What lies between the first two costs less than another request.
    assert sorted(store.ranges) == [(MIB, MIB + 3 * BLOCK), (40 * MIB, 40 * MIB + BLOCK)]


def test_what_is_expected_comes_ahead_up_to_a_bound() -> None:
    store, file = opened(bytes(400 * MIB))
    file.expect([(0, 400 * MIB)])
    wait_until(lambda: in_memory(file) >= 56 * MIB)
    time.sleep(0.3)
    assert in_memory(file) <= 64 * MIB
    most = 0
    for offset in range(0, 400 * MIB, 4 * MIB):
        file.hold([(offset, 4 * MIB)])
        most = max(most, in_memory(file))
        file.release([(offset, 4 * MIB)])
    assert most <= (64 + 32 + 4) * MIB
    assert store.nbytes == 400 * MIB


def test_what_was_taken_out_comes_again() -> None:
    data = random.Random(1).randbytes(80 * MIB)
    _, file = opened(data)
    for offset in range(0, 80 * MIB, MIB):
        file.hold([(offset, MIB)])
        file.release([(offset, MIB)])
    assert in_memory(file) <= 33 * MIB
    assert os.pread(file.fd, 100, 0) == bytes(100)
    file.hold([(0, 100)])
    assert os.pread(file.fd, 100, 0) == data[:100]


def test_what_is_held_stays() -> None:
    data = random.Random(2).randbytes(80 * MIB)
    _, file = opened(data)
    file.hold([(10 * MIB, 100)])
    file.hold([(10 * MIB, 100)])
    file.release([(10 * MIB, 100)])
    for offset in range(0, 80 * MIB, 8 * MIB):
        file.hold([(offset, 8 * MIB)])
        file.release([(offset, 8 * MIB)])
    assert os.pread(file.fd, 100, 10 * MIB) == data[10 * MIB : 10 * MIB + 100]


def test_those_who_read_on_in_small_steps_find_more_there() -> None:
    store, file = opened(bytes(64 * MIB))
    for offset in range(0, 16 * MIB, MIB):
        file.expect([(offset, MIB)])
        file.hold([(offset, MIB)])
        file.release([(offset, MIB)])
    end = time.monotonic() + 20
    while store.nbytes < 24 * MIB:  # 8 MiB more than was asked for
        assert time.monotonic() < end
        time.sleep(0.01)
    time.sleep(0.2)
    assert store.nbytes == 24 * MIB
    file.expect([(40 * MIB, MIB)])
    file.hold([(40 * MIB, MIB)])
    assert store.nbytes == 25 * MIB  # it went elsewhere


def test_several_requests_are_under_way_at_once() -> None:
    store, file = opened(bytes(64 * MIB))
    all_came = threading.Event()

    def wait_for_others() -> None:
        if len(store.ranges) == 8:
            all_came.set()
        assert all_came.wait(20)

    store.before = wait_for_others
    file.hold([(0, 64 * MIB)])


def test_those_who_wait_go_on_as_soon_as_their_bytes_are_there() -> None:
    store, file = opened(random.Random(1).randbytes(8 * MIB))
    may_go_on = threading.Event()

    def after_piece(at: int) -> None:
        if at > 2 * MIB:  # a request is a MiB or more
            assert may_go_on.wait(20)

    store.after_piece = after_piece
    file.expect([(0, 8 * MIB)])
    file.hold([(0, BLOCK)])
    may_go_on.set()


def test_a_store_that_sends_more_than_it_was_asked_for() -> None:
    store, file = opened(bytes(8 * MIB))
    file.nbytes = 5 * MIB
    store.data = bytes(9 * MIB)
    fetch = store.fetch

    def fetch_more(url: Url, start: int, end: int, write: Write, etag: str | None = None) -> None:
        fetch(url, start, end + 3, write, etag)

    store.fetch = fetch_more  # type: ignore[method-assign]
    with pytest.raises(OSError, match="more than it was asked for"):
        file.hold([(0, BLOCK)])


def test_blocks_that_are_wanted_twice_stay_within_the_bound() -> None:
    _, file = opened(bytes(400 * MIB))
    for offset in range(0, 32 * MIB, MIB):  # these are idle then
        file.hold([(offset, MIB)])
        file.release([(offset, MIB)])
    file.expect([(32 * MIB, 60 * MIB)])
    wait_until(lambda: in_memory(file) >= 86 * MIB)
    file.expect([(0, 400 * MIB)])
    most = 0
    for offset in range(100 * MIB, 140 * MIB, MIB):
        file.hold([(offset, MIB)])
        most = max(most, in_memory(file))
        file.release([(offset, MIB)])
        most = max(most, in_memory(file))
    assert most <= (64 + 32 + 8 + 1) * MIB


def test_many_threads_hold_what_they_want() -> None:
    data = random.Random(3).randbytes(40 * MIB)
    store, file = opened(data)
    store.before = lambda: time.sleep(0.001)
    wrong: list[tuple[int, int]] = []

    def read(seed: int) -> None:
        at = random.Random(seed)
        for _ in range(120):
            start = at.randrange(len(data))
            nbytes = min(at.randrange(1, 600_000), len(data) - start)
            if at.random() < 0.3:
                file.expect([(at.randrange(30 * MIB), 3 * MIB)])
            file.hold([(start, nbytes)])
            if os.pread(file.fd, nbytes, start) != data[start : start + nbytes]:
                wrong.append((start, nbytes))
            file.release([(start, nbytes)])

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(50)
        assert not thread.is_alive()
    assert not wrong


@pytest.mark.parametrize("kind", [OSError(errno.EIO, "broken", URL), RuntimeError("broken")])
def test_a_failure_ends_all_waiting(kind: Exception) -> None:
    store, file = opened(bytes(64 * MIB))

    def fail() -> None:
        raise kind

    store.before = fail
    caught: list[BaseException] = []

    def hold(offset: int) -> None:
        try:
            file.hold([(offset, 10)])
        except type(kind) as error:
            caught.append(error)

    threads = [threading.Thread(target=hold, args=(n * 9 * MIB,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert caught == [kind] * 6


@pytest.mark.parametrize("after", [0, 1, 3])
def test_no_more_threads_are_to_be_had(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Whoever waits brings it, besides the threads that there are."""
    start, numbers = threading.Thread.start, itertools.count()

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "pyckpt-object" and next(numbers) >= after:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    data = random.Random(7).randbytes(48 * MIB)
    store, file = opened(data)
    wrong: list[int] = []

    def read(number: int) -> None:
        for offset in range(number * MIB, 40 * MIB, 4 * MIB):
            file.expect([(offset, 8 * MIB)])
            file.hold([(offset, 2 * MIB)])
            if os.pread(file.fd, 2 * MIB, offset) != data[offset : offset + 2 * MIB]:
                wrong.append(offset)
            file.release([(offset, 2 * MIB)])

    threads = [threading.Thread(target=read, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(50)
        assert not thread.is_alive()
    assert not wrong
    store.before = interrupt
    with pytest.raises(KeyboardInterrupt):
        opened_again(store).hold([(0, 10)])


def test_a_shorter_object_is_another_one() -> None:
    store, file = opened(bytes(MIB))
    store.data = bytes(10)
    with pytest.raises(CheckpointError, match=r"memory://folder/x was replaced"):
        file.hold([(0, 100)])


def test_stop_ends_waiting() -> None:
    store, file = opened(bytes(MIB))
    go_on = threading.Event()
    store.before = lambda: go_on.wait(50) and None
    threading.Timer(0.2, file.stop, (KeyboardInterrupt(),)).start()
    with pytest.raises(KeyboardInterrupt):
        file.hold([(0, 100)])
    go_on.set()


def test_an_empty_object() -> None:
    store, file = opened(b"")
    file.expect([])
    file.hold([(0, 0)])
    assert not store.ranges


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.zst", ".pt"])
def test_a_check_of_a_large_archive_takes_bounded_memory(
    suffix: str, tmp_path: Path, monkeypatch: Any
) -> None:
    path = tmp_path / f"x{suffix}"
    generator = torch.Generator().manual_seed(5)
    state = {f"w{n}": torch.randn(2 * MIB, generator=generator) for n in range(30)}
    pyckpt.save(state, path, fsync=False)
    store, file = opened(path.read_bytes())
    most = [0]
    store.before = lambda: most.append(in_memory(file))
    monkeypatch.setattr("pyckpt.storage.inputs.ObjectFile", lambda store, url: file)
    assert pyckpt.verify(URL, num_threads=2).ok
    assert store.nbytes > 180 * MIB
    assert max(most) < (64 + 32 + 2 * 16 + 2) * MIB


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.zst", ".tar.lzma"])
@pytest.mark.parametrize("read", [pyckpt.load, pyckpt.verify])
def test_each_byte_comes_once(
    suffix: str, read: Callable[..., Any], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(object_file, "_MOST_AHEAD", 8 * MIB // BLOCK)  # far less than the file
    monkeypatch.setattr(object_file, "_MOST_IDLE", 4 * MIB // BLOCK)
    path = tmp_path / f"x{suffix}"
    generator = torch.Generator().manual_seed(5)
    state = {f"w{n}": torch.randn(MIB, generator=generator) for n in range(12)}
    pyckpt.save(state, path, fsync=False)
    store, file = opened(path.read_bytes())
    monkeypatch.setattr("pyckpt.storage.inputs.ObjectFile", lambda store, url: file)
    read(URL, num_threads=2)
    # But for the start and the end, which are looked at first.
    assert file.nbytes <= store.nbytes <= file.nbytes + 3 * MIB


def test_a_reader_again_shares_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    state = {"w": torch.arange(3_000_000)}
    pyckpt.save(state, path, fsync=False)
    store, file = opened(path.read_bytes())
    reader = ArchiveReader(InputFile(URL, file.fd, supply=file))
    first = reader.index()
    assert [m.name for m in reader.again().index()] == [m.name for m in first]
    assert store.nbytes < 8 * MIB
    del reader
    assert_equal(pyckpt.load(path), state)
