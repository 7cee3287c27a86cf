"""Saving to file objects and loading from them, of many kinds."""

# ruff: noqa: SIM115 -- files are made in one function and closed in another

from __future__ import annotations

import bz2
import contextlib
import errno
import gc
import gzip
import io
import itertools
import os
import random
import re
import signal
import socket
import subprocess
import tempfile
import threading
import time
import weakref
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pyckpt
from pyckpt import _core
from pyckpt.archive import formats
from pyckpt.storage import file_object
from pyckpt.storage.file_object import input_file
from tests.states import assert_equal, mixed_state

pytestmark = pytest.mark.timeout(120)

SUFFIXES = [*formats.usual_suffixes(), ".pt", ".pt.gz"]
OFFSET = 12345


def load_bytes(data: bytes) -> Any:
    return torch.load(io.BytesIO(data))


# Where to save to: each yields a file object, and a function that returns what was written.

Place = tuple[Any, Callable[[], bytes]]


def at_path(path: Path, file: Any, skip: int = 0) -> Place:
    def written() -> bytes:
        file.close()
        return path.read_bytes()[skip:]

    return file, written


def bytes_io(folder: Path) -> Place:
    file = io.BytesIO()
    return file, file.getvalue


def bytes_io_with_a_beginning(folder: Path) -> Place:
    file = io.BytesIO(b"x" * OFFSET)
    file.seek(0, os.SEEK_END)
    return file, lambda: file.getvalue()[OFFSET:]


def buffered(folder: Path) -> Place:
    return at_path(folder / "x", (folder / "x").open("wb"))


def unbuffered(folder: Path) -> Place:
    return at_path(folder / "x", (folder / "x").open("wb", buffering=0))


def updated(folder: Path) -> Place:
    (folder / "x").write_bytes(b"x" * OFFSET)
    file = (folder / "x").open("r+b")
    file.seek(OFFSET)
    return at_path(folder / "x", file, OFFSET)


def appended(folder: Path) -> Place:
    (folder / "x").write_bytes(b"x" * OFFSET)
    return at_path(folder / "x", (folder / "x").open("ab"), OFFSET)


def named_temporary(folder: Path) -> Place:
    file = tempfile.NamedTemporaryFile(dir=folder)

    def written() -> bytes:
        file.seek(0)
        data = file.read()
        file.close()
        return data

    return file, written


def spooled(folder: Path) -> Place:
    file = tempfile.SpooledTemporaryFile(max_size=1000)

    def written() -> bytes:
        file.seek(0)
        data = file.read()
        file.close()
        return data

    return file, written


def gzipped(folder: Path) -> Place:
    file = gzip.open(folder / "x", "wb", compresslevel=1)

    def written() -> bytes:
        file.close()
        return gzip.decompress((folder / "x").read_bytes())

    return file, written


def bzipped(folder: Path) -> Place:
    file = bz2.open(folder / "x", "wb", compresslevel=1)

    def written() -> bytes:
        file.close()
        return bz2.decompress((folder / "x").read_bytes())

    return file, written


def zip_entry(folder: Path) -> Place:
    archive = zipfile.ZipFile(folder / "x", "w")
    file = archive.open("inner", "w")

    def written() -> bytes:
        file.close()
        archive.close()
        with zipfile.ZipFile(folder / "x") as found:
            return found.read("inner")

    return file, written


def read_later(read: Callable[[], bytes]) -> Callable[[], bytes]:
    found: list[bytes] = []
    thread = threading.Thread(target=lambda: found.append(read()))
    thread.start()

    def result() -> bytes:
        thread.join()
        return found[0]

    return result


def pipe(folder: Path, **options: Any) -> Place:
    read_end, write_end = os.pipe()
    file = open(write_end, "wb", **options)

    def read() -> bytes:
        with open(read_end, "rb") as end:
            return end.read()

    result = read_later(read)

    def written() -> bytes:
        file.close()
        return result()

    return file, written


def pipe_that_does_not_wait(folder: Path) -> Place:
    """An unbuffered one: its write() returns None if there is no room."""
    file, written = pipe(folder, buffering=0)
    os.set_blocking(file.fileno(), False)
    return file, written


def socket_file(folder: Path) -> Place:
    ours, theirs = socket.socketpair()
    file = ours.makefile("wb")

    def read() -> bytes:
        with theirs, theirs.makefile("rb") as end:
            return end.read()

    result = read_later(read)

    def written() -> bytes:
        file.close()
        ours.close()
        return result()

    return file, written


class Taking:
    """Takes as much of each write as a function says, and may keep the object that it gets."""

    def __init__(self, answer: Callable[[int], Any]) -> None:
        self.answer = answer
        self.parts: list[Any] = []

    def write(self, data: Any) -> Any:
        answer = self.answer(len(data))
        self.parts.append(data if answer is None else data[:answer])
        return answer

    def written(self) -> bytes:
        return b"".join(self.parts)


def takes_some(folder: Path) -> Place:
    numbers = random.Random(0)
    file = Taking(lambda nbytes: numbers.randint(max(1, nbytes // 3), nbytes))
    return file, file.written


def returns_nothing(folder: Path) -> Place:
    file = Taking(lambda nbytes: None)
    return file, file.written


class ShortRaw(io.RawIOBase):
    def __init__(self) -> None:
        self.data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        taken = bytes(data[:70_000])
        self.data += taken
        return len(taken)


def short_raw(folder: Path) -> Place:
    file = ShortRaw()
    return file, lambda: bytes(file.data)


PLACES = [
    *(bytes_io, bytes_io_with_a_beginning, buffered, unbuffered, updated, appended),
    *(named_temporary, spooled, gzipped, bzipped, zip_entry, pipe, pipe_that_does_not_wait),
    *(socket_file, takes_some, returns_nothing, short_raw),
]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
@pytest.mark.parametrize("level", [None, 1], ids=["stored", "deflated"])
def test_save(tmp_path: Path, place: Callable[[Path], Place], level: int | None) -> None:
    file, written = place(tmp_path)
    pyckpt.save(mixed_state(), file, compression_level=level, num_threads=3)
    assert_equal(load_bytes(written()), mixed_state())


@pytest.mark.parametrize("place", [pipe, appended], ids=lambda place: place.__name__)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_formats(tmp_path: Path, place: Callable[[Path], Place], suffix: str) -> None:
    file, written = place(tmp_path)
    pyckpt.save(mixed_state(), file, format=suffix, fsync=False)
    data = written()
    assert_equal(pyckpt.load(io.BytesIO(data)), mixed_state())
    (tmp_path / f"y{suffix}").write_bytes(data)
    assert pyckpt.verify(tmp_path / f"y{suffix}").ok


def test_a_file_object_gets_the_bytes_that_a_path_gets(tmp_path: Path, frozen_time: int) -> None:
    state = {"w": torch.randn(300_000), "zeros": torch.zeros(100_000)}
    for suffix in SUFFIXES:
        file = io.BytesIO()
        pyckpt.save(state, file, format=suffix)
        pyckpt.save(state, tmp_path / f"x{suffix}")
        assert file.getvalue() == (tmp_path / f"x{suffix}").read_bytes()


def test_tar_reads_from_a_pipe_while_it_is_written() -> None:
    """It names the first member long before the last byte is there."""
    state = {"w": torch.randn(3_000_000)}
    with subprocess.Popen(["tar", "-tzv"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as tar:
        assert tar.stdin is not None
        assert tar.stdout is not None
        pyckpt.save(state, tar.stdin, format=".tar.gz", member="a/states.pt")
        tar.stdin.close()
        names = [line.split()[-1] for line in tar.stdout.read().decode().splitlines()]
    assert tar.returncode == 0
    assert names[1:] == ["a/", "a/states.pt"]


def test_a_pipe_that_is_closed_at_the_other_end() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with (
        open(write_end, "wb", buffering=0) as file,
        pytest.raises(pyckpt.CheckpointError, match=f"descriptor {write_end}>.*Broken pipe") as e,
    ):
        pyckpt.save(mixed_state(), file)
    assert isinstance(e.value.__cause__, BrokenPipeError)
    assert e.value.errno == errno.EPIPE


@pytest.mark.parametrize("after", [0, 1, 300_000, 2_000_000])
@pytest.mark.parametrize("level", [None, 1])
def test_a_write_that_fails(after: int, level: int | None) -> None:
    """The error is the cause, and what was written stays as it is."""
    failure = OSError(errno.ENOSPC, "full")
    written = bytearray()

    class Full:
        def write(self, data: bytes) -> int:
            if len(written) + len(data) > after:
                raise failure
            written.extend(data)
            return len(data)

    threads = threading.active_count()
    tasks = len(os.listdir("/proc/self/task"))
    with pytest.raises(pyckpt.CheckpointError, match=r"saving <Full> failed: OSError") as raised:
        pyckpt.save({"w": torch.randn(1_000_000)}, Full(), compression_level=level)
    assert raised.value.__cause__ is failure
    assert raised.value.errno == errno.ENOSPC
    assert len(written) <= after
    assert threading.active_count() == threads
    for _ in range(100):
        if len(os.listdir("/proc/self/task")) <= tasks:
            return
        time.sleep(0.05)
    raise AssertionError("threads are left")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda nbytes: 0, "took 0 of"),
        (lambda nbytes: -1, "took -1 of"),
        (lambda nbytes: nbytes + 1, "took [0-9]+ of"),
        (lambda nbytes: "all", "TypeError: write\\(\\) returned 'all'"),
    ],
)
def test_answers_that_make_no_sense(answer: Callable[[int], Any], message: str) -> None:
    class Odd:
        def write(self, data: bytes) -> Any:
            return answer(len(data))

    with pytest.raises(pyckpt.CheckpointError, match=message):
        pyckpt.save({"w": torch.zeros(10)}, Odd())


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_while_nobody_reads() -> None:
    read_end, write_end = os.pipe()
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(0.5, signal.pthread_kill, (main, signal.SIGINT))
    try:
        file = open(write_end, "wb", buffering=0)
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            pyckpt.save(mixed_state(), file)
        timer.join()
        file.close()
    finally:
        os.close(read_end)


class Recorder(io.BytesIO):
    def __init__(self) -> None:
        super().__init__()
        self.flushes = 0

    def flush(self) -> None:
        self.flushes += 1


def test_it_is_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a regular file goes to the disk, unless it is told not to."""
    synced = []
    monkeypatch.setattr(file_object.os, "fsync", synced.append)
    file = Recorder()
    pyckpt.save([1], file)
    assert file.flushes > 0
    assert synced == []
    with (tmp_path / "x").open("wb") as regular:
        pyckpt.save([1], regular, fsync=False)
        assert synced == []
        assert torch.load(tmp_path / "x") == [1]
        pyckpt.save([1], regular)
        assert synced == [regular.fileno()]
    read_end, write_end = os.pipe()
    with open(read_end, "rb"), open(write_end, "wb") as end:
        pyckpt.save([1], end)
    assert len(synced) == 1


def closed() -> io.BytesIO:
    file = io.BytesIO()
    file.close()
    return file


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (io.StringIO, "<StringIO> is a text file"),
        (lambda: tempfile.TemporaryFile("w+"), "is a text file"),
        (lambda: tempfile.NamedTemporaryFile("w+"), "is a text file"),
        (closed, "<BytesIO> is closed"),
    ],
)
@pytest.mark.parametrize("act", [lambda f: pyckpt.save([1], f), pyckpt.load], ids=["save", "load"])
def test_files_that_are_refused(
    make: Callable[[], Any], message: str, act: Callable[[Any], Any]
) -> None:
    file = make()
    with pytest.raises(pyckpt.OptionError, match=message):
        act(file)
    file.close()


def test_files_that_are_open_for_something_else(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    pyckpt.save([1], path)
    with path.open("rb") as file, pytest.raises(pyckpt.OptionError, match=r"x\.pt is not open for"):
        pyckpt.save([2], file)
    assert pyckpt.load(path) == [1]
    with path.open("ab") as file, pytest.raises(pyckpt.OptionError, match=r"x\.pt is not open for"):
        pyckpt.load(file)


@pytest.mark.parametrize(
    "options",
    [
        {"format": ".tar.foo"},
        {"format": "tar"},
        {"format": ""},
        {"format": ".tar", "compression_level": 3},
        {"compression_level": 99},
        {"member": "../x", "format": ".tar"},
        {"pickle_protocol": 4},
        {"fsync": 1},
    ],
)
def test_wrong_options_write_nothing(options: dict[str, Any]) -> None:
    file = io.BytesIO()
    with pytest.raises(pyckpt.OptionError):
        pyckpt.save([1], file, **options)
    assert file.getvalue() == b""


def test_an_object_that_cannot_be_pickled_writes_nothing() -> None:
    file = io.BytesIO()
    with pytest.raises(pyckpt.CheckpointError):
        pyckpt.save([threading.Lock()], file)
    assert file.getvalue() == b""


def test_format_is_not_for_paths(tmp_path: Path) -> None:
    with pytest.raises(pyckpt.OptionError, match="suffix of a path"):
        pyckpt.save([1], tmp_path / "x.tar", format=".tar")
    assert os.listdir(tmp_path) == []


def test_progress() -> None:
    told: list[tuple[int, int | None]] = []
    pyckpt.save(
        mixed_state(), io.BytesIO(), progress=lambda done, total: told.append((done, total))
    )
    assert told[-1][0] == told[-1][1]


# Loading


@contextlib.contextmanager
def sources(data: bytes, folder: Path) -> Iterator[dict[str, Any]]:
    """File objects that have these bytes from where they stand."""
    path, later = folder / "source", folder / "later"
    path.write_bytes(data)
    later.write_bytes(b"y" * OFFSET + data)
    gzip_path, zip_path = folder / "source.gz", folder / "source.zip"
    gzip_path.write_bytes(gzip.compress(data, 1))
    with zipfile.ZipFile(zip_path, "w") as archive:
        archive.writestr("inner", data)
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        further = enter(later.open("rb"))
        further.seek(OFFSET)
        memory = io.BytesIO(b"z" * 7 + data)
        memory.seek(7)
        temporary = enter(tempfile.TemporaryFile())
        temporary.write(data)
        temporary.seek(0)
        named = enter(tempfile.NamedTemporaryFile())
        named.write(data)
        named.seek(0)
        opened = enter(zipfile.ZipFile(zip_path))
        yield {
            "file": enter(path.open("rb")),
            "unbuffered file": enter(path.open("rb", buffering=0)),
            "file to update": enter(path.open("r+b")),
            "temporary file": temporary,
            "named temporary file": named,
            "file at an offset": further,
            "BytesIO": io.BytesIO(data),
            "BytesIO at an offset": memory,
            "gzip": enter(gzip.open(gzip_path)),
            "zip entry": enter(opened.open("inner")),
            "pipe": enter(pipe_with(data)),
            "unbuffered pipe": enter(pipe_with(data, buffering=0)),
            "pipe that does not wait": enter(pipe_with(data, buffering=0, blocking=False)),
            "reads little": ReadsLittle(data),
        }


IN_PLACE = ["file", "unbuffered file", "file to update", "temporary file", "named temporary file"]


class ReadsLittle:
    """No more than one method, which returns less than it is asked for."""

    def __init__(self, data: bytes) -> None:
        self.data = io.BytesIO(data)

    def read(self, nbytes: int) -> bytearray:
        return bytearray(self.data.read(min(nbytes, 100_001)))


@contextlib.contextmanager
def pipe_with(data: bytes, *, blocking: bool = True, **options: Any) -> Iterator[Any]:
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, blocking)

    def write() -> None:
        time.sleep(0.05)
        with contextlib.suppress(BrokenPipeError), open(write_end, "wb") as file:
            file.write(data)

    thread = threading.Thread(target=write)
    thread.start()
    with open(read_end, "rb", **options) as file:
        yield file
    thread.join()


@pytest.mark.parametrize("suffix", [".pt", ".tar.gz"])
def test_load(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    pyckpt.save(mixed_state(), path)
    with sources(path.read_bytes(), tmp_path) as files:
        for name, file in files.items():
            assert_equal(pyckpt.load(file, num_threads=2), mixed_state())
            assert file.read(1) == b"", name


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
def test_load_of_torch_save(tmp_path: Path, new_format: bool) -> None:
    written = io.BytesIO()
    torch.save(mixed_state(), written, _use_new_zipfile_serialization=new_format)
    with sources(written.getvalue(), tmp_path) as files:
        for file in files.values():
            assert_equal(pyckpt.load(file), mixed_state())


def test_regular_files_are_read_in_place(tmp_path: Path) -> None:
    pyckpt.save(mixed_state(), tmp_path / "x.pt")
    with sources((tmp_path / "x.pt").read_bytes(), tmp_path) as files:
        found = []
        for name, file in files.items():
            with input_file(file) as source:
                found += [] if source.is_copy else [name]
        assert found == IN_PLACE


def test_mmap(tmp_path: Path) -> None:
    """Files that are copied, too: the tensors stay in the copy, and may be changed."""
    pyckpt.save(mixed_state(), tmp_path / "x.pt")
    with sources((tmp_path / "x.pt").read_bytes(), tmp_path) as files:
        for file in files.values():
            found = pyckpt.load(file, mmap=True)
            assert_equal(found, mixed_state())
            found["floats"].fill_(1)
    assert found["floats"].sum() == found["floats"].numel()
    deflated = io.BytesIO()
    pyckpt.save(mixed_state(), deflated, compression_level=1)
    deflated.seek(0)
    with pytest.raises(pyckpt.OptionError, match="<BytesIO> has compressed records"):
        pyckpt.load(deflated, mmap=True)


def test_what_was_written_and_not_flushed_is_read() -> None:
    data = io.BytesIO()
    pyckpt.save([1, 2], data)
    with tempfile.TemporaryFile(buffering=1 << 20) as file:
        file.write(data.getvalue())
        file.seek(0)
        assert pyckpt.load(file) == [1, 2]


def test_tensors_outlive_the_file(tmp_path: Path) -> None:
    pyckpt.save(mixed_state(), tmp_path / "x.pt")
    for mmap in (False, True):
        with (tmp_path / "x.pt").open("rb") as file:
            found = pyckpt.load(file, mmap=mmap)
        assert_equal(found, mixed_state())


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    pyckpt.save(mixed_state(), tmp_path / "x.pt")
    data = (tmp_path / "x.pt").read_bytes()
    pyckpt.load(io.BytesIO(data))
    before = os.listdir("/proc/self/fd")
    for broken in (data, data[:1000]):
        with contextlib.suppress(pyckpt.CheckpointError):
            pyckpt.load(io.BytesIO(broken))
        pyckpt.save([1], io.BytesIO())
    assert os.listdir("/proc/self/fd") == before


def test_damage_is_named_and_the_file_stands_where_it_was(tmp_path: Path) -> None:
    pyckpt.save(mixed_state(), tmp_path / "x.tar.gz")
    data = bytearray((tmp_path / "x.tar.gz").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "x.tar.gz").write_bytes(data)
    memory = io.BytesIO(b"12" + data)
    memory.seek(2)
    with pytest.raises(pyckpt.CorruptArchiveError, match="<BytesIO> is damaged"):
        pyckpt.load(memory)
    assert memory.tell() == 2
    with (tmp_path / "x.tar.gz").open("rb") as file:
        with pytest.raises(pyckpt.CorruptArchiveError, match=re.escape(f"{file.name} is damaged")):
            pyckpt.load(file)
        assert file.tell() == 0
    with pytest.raises(pyckpt.CorruptArchiveError, match="<BytesIO> is empty"):
        pyckpt.load(io.BytesIO())


def test_a_read_that_fails() -> None:
    failure = OSError(errno.EIO, "broken")

    class Broken(ReadsLittle):
        def read(self, nbytes: int) -> bytearray:
            if self.data.tell() > 300_000:
                raise failure
            return super().read(nbytes)

    data = io.BytesIO()
    pyckpt.save(mixed_state(), data)
    with pytest.raises(OSError, match="broken") as raised:
        pyckpt.load(Broken(data.getvalue()))
    assert raised.value is failure


def test_keys_that_name_nothing_are_compared_with_the_file() -> None:
    data = io.BytesIO()
    pyckpt.save({"model": {"weight": torch.zeros(3)}}, data)
    data.seek(0)
    assert list(pyckpt.load(data, keys="model/weight")["model"]) == ["weight"]
    data.seek(0)
    with pytest.raises(pyckpt.OptionError, match="there is 'model/weight'"):
        pyckpt.load(data, keys="model/weigt")


def test_several_objects_are_written_one_after_another() -> None:
    """As those of torch.save; each is read from a part of its own."""
    data = io.BytesIO()
    ends = [0]
    for n in range(3):
        pyckpt.save({"n": n, "w": torch.full((1000,), n)}, data)
        ends.append(data.tell())
    for n, (start, end) in enumerate(itertools.pairwise(ends)):
        assert torch.load(io.BytesIO(data.getvalue()[start:end]))["n"] == n


# Any state, anywhere, comes back through torch.load.

TENSORS = st.builds(
    lambda numel, dtype: (torch.arange(numel) % 251).to(dtype),
    st.one_of(st.integers(0, 40), st.sampled_from([65_537, 100_000])),
    st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.uint8]),
)
STATES = st.recursive(
    st.one_of(TENSORS, st.integers(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return bool(a == b)


@settings(max_examples=25)
@given(STATES, st.integers(0, 5000), st.sampled_from([None, 1, 6]), st.integers(1, 4), st.data())
def test_states(state: Any, offset: int, level: int | None, threads: int, data: Any) -> None:
    file = Taking(lambda nbytes: data.draw(st.integers(1, nbytes)) if nbytes < 9000 else nbytes)
    pyckpt.save({"state": state}, file, compression_level=level, num_threads=threads)
    written = io.BytesIO(b"o" * offset + file.written())
    written.seek(offset)
    assert same(torch.load(written)["state"], state)
    written.seek(offset)
    assert same(pyckpt.load(written)["state"], state)


def test_the_core_keeps_nothing_of_a_file_object() -> None:
    """Neither after a save nor after a failed one."""

    class File(Taking):
        pass

    for answer in (lambda nbytes: nbytes, lambda nbytes: 0):
        file = File(answer)
        with contextlib.suppress(pyckpt.CheckpointError):
            pyckpt.save([1], file)
        gone = weakref.ref(file)
        del file
        gc.collect()
        assert gone() is None
    assert isinstance(_core.ordered_sink(lambda piece: None), _core.Sink)
