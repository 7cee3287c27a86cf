"""Ctrl-C, and exceptions of signal handlers, while an upload ends: it ends, and they come out."""

from __future__ import annotations

import gc
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

import pyckpt
from pyckpt import _core
from pyckpt.archive.writer import ArchiveWriter
from pyckpt.options import WriteOptions
from pyckpt.storage import s3_upload
from pyckpt.storage.remote_object import target_at
from pyckpt.storage.urls import location
from tests.stores import Bucket, answer, delay, silent_until

pytestmark = pytest.mark.timeout(120)

OLD = b"the old object"
BIG = {"w": torch.randint(256, (20 << 20,), dtype=torch.uint8)}


class Stopped(Exception):
    """What a signal handler raises."""


def stop(*_: object) -> None:
    raise Stopped


@pytest.fixture
def handler() -> Iterator[None]:
    before = signal.signal(signal.SIGUSR1, stop)
    yield
    signal.signal(signal.SIGUSR1, before)


def after(seconds: float, number: signal.Signals) -> None:
    """Sends a signal to the main thread."""
    ident = threading.main_thread().ident
    assert ident is not None
    timer = threading.Timer(seconds, signal.pthread_kill, (ident, number))
    timer.daemon = True
    timer.start()


class Interrupted:
    """An upload of which some calls are interrupted once."""

    def __init__(self, *names: str, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.calls: list[str] = []
        self._names = set(names)
        self._error = error

    def _call(self, name: str, *_: object) -> None:
        self.calls.append(name)
        if name in self._names:
            self._names.discard(name)
            raise self._error(name)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: self._call(name, *arguments)


def writer_to(upload: Any) -> _core.ArchiveWriter:
    return _core.ArchiveWriter(
        _core.upload_sink(upload),
        None,
        tar=True,
        deflated=False,
        level=0,
        threads=1,
        mtime=0,
        uid=0,
        gid=0,
    )


@pytest.mark.parametrize("name", ["keep", "restore", "abandon"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, Stopped])
def test_an_interrupt_comes_out_of_each_call(name: str, error: type[BaseException]) -> None:
    upload = Interrupted(name, error=error)
    writer = writer_to(upload)
    with pytest.raises(error, match=name) as caught:
        getattr(writer, name)()
    assert upload.calls == [name, name]
    assert any(entry.name == "_call" for entry in caught.traceback)


def test_an_interrupt_comes_out_of_a_writer_that_is_dropped() -> None:
    upload = Interrupted("abandon")
    writer = [writer_to(upload)]
    with pytest.raises(KeyboardInterrupt):
        writer.clear()
    assert upload.calls == ["abandon", "abandon"]


def test_an_interrupt_comes_out_of_a_write_that_fails() -> None:
    upload = Interrupted("seal", "abandon")
    writer = writer_to(upload)
    with pytest.raises(KeyboardInterrupt, match="abandon"):
        writer.write(lambda done, total: None)
    assert upload.calls[-2:] == ["abandon", "abandon"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
@pytest.mark.usefixtures("ctrl_c", "handler")
def test_the_abort_is_waited_for(bucket: Bucket, number: signal.Signals) -> None:
    expected = KeyboardInterrupt if number == signal.SIGINT else Stopped
    bucket.put("x.tar", OLD)
    bucket.proxy.rule("UploadPart", answer(403, "AccessDenied"))
    bucket.proxy.rule("Abort", delay(3))

    def interrupt() -> None:
        while not bucket.proxy.count("AbortMultipartUpload"):
            time.sleep(0.05)
        after(0.5, number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(expected):
        pyckpt.save(BIG, bucket.url("x.tar"))
    thread.join()
    assert bucket.uploads() == []
    assert bucket.get("x.tar") == OLD


@pytest.mark.usefixtures("ctrl_c")
def test_the_second_ctrl_c_ends_the_waiting(
    bucket: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    end = threading.Event()
    bucket.proxy.rule("Abort", silent_until(end))
    writer = pyckpt.ArchiveWriter(bucket.url("x.tar"))
    writer.add_object("x", BIG)
    writer.write()
    before = time.monotonic()
    after(0.5, signal.SIGINT)
    after(1.5, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        writer.abandon()
    assert 1 < time.monotonic() - before < s3_upload._UNDO_SECONDS - 2
    assert "may stay behind until pyckpt sweep removes it" in caplog.text
    end.set()
    while bucket.uploads():
        time.sleep(0.05)


@pytest.mark.usefixtures("ctrl_c")
def test_parts_that_are_stuck_are_not_waited_for_any_longer(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_upload, "_STOP_SECONDS", 60)
    writer = pyckpt.ArchiveWriter(bucket.url("x.tar"))
    writer.add_object("x", BIG)
    end = threading.Event()
    bucket.proxy.rule("UploadPart", silent_until(end), after=1, times=1)

    def give_up() -> None:
        while bucket.proxy.count("UploadPart") < 2:
            time.sleep(0.05)
        after(2, signal.SIGINT)
        writer._writer.give_up()

    thread = threading.Thread(target=give_up)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        writer.write()
    thread.join()
    end.set()
    while bucket.uploads():
        time.sleep(0.05)


@pytest.mark.usefixtures("handler")
def test_an_object_of_fsspec_is_discarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception of a handler is no failure of the library."""
    fs = fsspec.filesystem("memory")
    fs.pipe_file("memory://run/x.tar", OLD)
    writer = pyckpt.ArchiveWriter("memory://run/x.tar")
    writer.add_object("x", {})
    writer.write()

    def discard(file: MemoryFile) -> None:
        signal.raise_signal(signal.SIGUSR1)

    monkeypatch.setattr(MemoryFile, "discard", discard)
    with pytest.raises(Stopped):
        writer.abandon()
    gc.collect()
    assert fs.cat_file("memory://run/x.tar") == OLD


@pytest.mark.usefixtures("handler")
def test_an_object_of_fsspec_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    writer = ArchiveWriter(target_at(location("memory://run/x.tar")), WriteOptions())
    writer.add_object("x", {})
    writer.write()
    writer.commit(keep_previous=True)
    remove = MemoryFileSystem.rm_file

    def interrupted(fs: MemoryFileSystem, path: str) -> None:
        remove(fs, path)
        signal.raise_signal(signal.SIGUSR1)

    monkeypatch.setattr(MemoryFileSystem, "rm_file", interrupted)
    with pytest.raises(Stopped):
        writer.restore()
    assert not fsspec.filesystem("memory").exists("memory://run/x.tar")
