"""The sink that writes in order, on the thread that saves: orders, delays and failures."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyckpt import _core
from tests.write.test_pipeline import FORMATS, Reader, late

pytestmark = pytest.mark.timeout(60)

SUFFIXES = [*FORMATS, ".pt"]  # .pt: torch's file with deflated records
THREADS = [1, 2, 9, 40]


class Failure(Exception):
    pass


def new_writer(sink: _core.Sink, suffix: str, threads: int) -> _core.ArchiveWriter:
    row = FORMATS.get(suffix)
    levels = None if row is None else row.levels
    return _core.ArchiveWriter(
        sink,
        row,
        tar=row is not None,
        deflated=row is None,
        level=1 if row is None else 0 if levels is None else levels.lowest,
        threads=threads,
        mtime=0,
        uid=0,
        gid=0,
    )


def add(
    writer: _core.ArchiveWriter,
    suffix: str,
    sizes: list[int],
    on_read: Callable[[int], None] = lambda offset: None,
) -> None:
    records = [
        (f"archive/data/{n}", 0, nbytes, 1, Reader(nbytes, on_read))
        for n, nbytes in enumerate(sizes)
    ]
    if suffix == ".pt":
        writer.add_deflated_torch_file(records)
    else:
        writer.add_torch_file("x.pt", 0o644, records)


def chunk_nbytes(suffix: str) -> int:
    return FORMATS[".tar.gz" if suffix == ".pt" else suffix].chunk_nbytes


@contextlib.contextmanager
def no_thread_is_left() -> Iterator[None]:
    before = set(os.listdir("/proc/self/task"))
    yield
    for _ in range(100):  # a joined thread leaves /proc a little later
        if not set(os.listdir("/proc/self/task")) - before:
            return
        time.sleep(0.05)
    raise AssertionError("threads are left")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("threads", THREADS)
def test_the_bytes_are_those_of_a_file(tmp_path: Path, suffix: str, threads: int) -> None:
    sizes = [10, 0, 300_000, 2_000_000, *[20_000] * 100, 0, *[7] * 1000, 0]
    path = tmp_path / "x"
    file = new_writer(_core.file_sink(os.fsencode(path), False, "0" * 8), suffix, 2)
    add(file, suffix, sizes)
    file.write(None)
    file.commit(False)
    pieces: list[bytes] = []
    writers = set()

    def write(piece: memoryview) -> None:
        writers.add(threading.get_ident())
        pieces.append(piece.tobytes())
        if len(pieces) < 30:
            time.sleep(0.002)  # several workers have the next pieces by then

    ordered = new_writer(_core.ordered_sink(write), suffix, threads)
    add(ordered, suffix, sizes, late)
    with no_thread_is_left():
        assert ordered.write(None) == path.stat().st_size
    ordered.commit(True)
    ordered.keep()
    assert b"".join(pieces) == path.read_bytes()
    assert writers == {threading.get_ident()}
    assert len(pieces) < 700  # small ones are gathered


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".pt"])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_slow_sink_bounds_what_is_read(suffix: str, threads: int) -> None:
    chunk = chunk_nbytes(suffix)
    nbytes = 20 * chunk
    read = 0
    ahead = []

    def on_read(offset: int) -> None:
        nonlocal read
        read = max(read, offset + chunk)

    def write(piece: memoryview) -> None:
        time.sleep(0.005)
        ahead.append(read - writer.progress[0])

    writer = new_writer(_core.ordered_sink(write), suffix, threads)
    add(writer, suffix, [nbytes], on_read)
    writer.write(None)
    assert max(ahead) <= (2 * threads + 2) * chunk


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("threads", [1, 2, 9])
@pytest.mark.parametrize("call", [0, 1, 3])
def test_a_write_that_fails(suffix: str, threads: int, call: int) -> None:
    """The exception itself is raised, and nothing is written after it."""
    failure = Failure()
    calls = 0

    def write(piece: memoryview) -> None:
        nonlocal calls
        calls += 1
        if calls == call + 1:
            raise failure

    writer = new_writer(_core.ordered_sink(write), suffix, threads)
    add(writer, suffix, [random.Random(0).randrange(4, 9) * chunk_nbytes(suffix)], late)
    with no_thread_is_left(), pytest.raises(Failure) as raised:
        writer.write(None)
    assert raised.value is failure
    assert calls == call + 1
    with pytest.raises(ValueError, match="nothing has been written"):
        writer.commit(False)


@pytest.mark.parametrize("threads", [1, 2, 9])
@pytest.mark.parametrize("chunk", [0, 7, 19])
def test_a_chunk_that_cannot_be_read(threads: int, chunk: int) -> None:
    nbytes = 20 * chunk_nbytes(".tar.gz")

    def on_read(offset: int) -> None:
        if offset >= (chunk - 1) * chunk_nbytes(".tar.gz"):
            raise Failure

    writer = new_writer(_core.ordered_sink(lambda piece: time.sleep(0.001)), ".tar.gz", threads)
    writer.add_segments("x", 0o644, [(nbytes, 1, Reader(nbytes, on_read))])
    with no_thread_is_left(), pytest.raises(Failure):
        writer.write(None)


@pytest.mark.parametrize("threads", [1, 2, 9])
@pytest.mark.parametrize("seconds", [0.0, 0.2])
def test_a_save_is_given_up(threads: int, seconds: float) -> None:
    """While it reads, and while it writes."""
    failure = Failure()

    def give_up(done: int, total: int) -> None:
        if done:
            raise failure

    written = threading.Event()

    def write(piece: memoryview) -> None:
        time.sleep(seconds)
        written.set()

    nbytes = 80 * chunk_nbytes(".tar.gz")
    writer = new_writer(_core.ordered_sink(write), ".tar.gz", threads)
    reader = Reader(nbytes, lambda offset: time.sleep(0.1 if written.is_set() else 0))
    writer.add_segments("x", 0o644, [(nbytes, 1, reader)])
    with no_thread_is_left(), pytest.raises(Failure) as raised:
        writer.write(give_up)
    assert raised.value is failure


def test_progress_is_told_while_it_writes() -> None:
    told = []
    nbytes = 8 * chunk_nbytes(".tar")
    writer = new_writer(_core.ordered_sink(lambda piece: time.sleep(0.05)), ".tar", 2)
    writer.add_segments("x", 0o644, [(nbytes, 1, Reader(nbytes))])
    writer.write(lambda done, total: told.append((threading.get_ident(), done)))
    assert len(told) >= 3
    assert {thread for thread, _ in told} == {threading.get_ident()}
    assert [done for _, done in told] == sorted(done for _, done in told)


@pytest.mark.usefixtures("ctrl_c")
def test_a_signal_interrupts_a_write_that_blocks() -> None:
    """Nobody reads from the pipe."""
    read_end, write_end = os.pipe()
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(0.5, signal.pthread_kill, (main, signal.SIGINT))
    try:
        nbytes = 3 * chunk_nbytes(".tar")
        writer = new_writer(
            _core.ordered_sink(lambda piece: [os.write(write_end, piece) for _ in range(99)]),
            ".tar",
            2,
        )
        writer.add_segments("x", 0o644, [(nbytes, 1, Reader(nbytes))])
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            writer.write(None)
        timer.join()
    finally:
        os.close(read_end)
        os.close(write_end)


def test_many_saves_at_once() -> None:
    """Each on a thread of its own, into a sink that is written on that thread."""
    found: list[tuple[int, bool]] = []

    def save() -> None:
        me = threading.get_ident()
        on_me = []
        sizes = []

        def write(piece: memoryview) -> None:
            on_me.append(threading.get_ident() == me)
            sizes.append(len(piece))

        writer = new_writer(_core.ordered_sink(write), ".tar.gz", 3)
        add(writer, ".tar.gz", [2_000_000, 5, 400_000], late)
        nbytes = writer.write(None)
        found.append((nbytes - sum(sizes), all(on_me)))

    threads = [threading.Thread(target=save) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [(0, True)] * 12
