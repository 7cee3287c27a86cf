"""Workers that read, encode, place and write chunks: orders, delays and failures."""

from __future__ import annotations

import ctypes
import os
import random
import subprocess
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import pyckpt
from pyckpt import _core

pytestmark = pytest.mark.timeout(120)

FORMATS = {row.suffixes[0]: row for row in _core.formats() if row.levels is not None}
FORMATS |= {row.suffixes[0]: row for row in _core.formats() if row.name == "tar"}
SUFFIXES = list(FORMATS)
THREADS = [1, 2, 9, 40]


class Reader:
    """Bytes that tell their own place, and what is to happen when some are read."""

    def __init__(self, nbytes: int, on_read: Callable[[int], None] = lambda offset: None) -> None:
        self.data = random.Random(nbytes).randbytes(min(nbytes, 1 << 16)) * (
            nbytes // (1 << 16) + 1
        )
        self.nbytes = nbytes
        self.on_read = on_read

    def read(self, offset: int, nbytes: int, address: int) -> None:
        self.on_read(offset)
        ctypes.memmove(address, self.data[offset : offset + nbytes], nbytes)


def writer(
    path: Path, threads: int, *, durable: bool = False, deflated: bool = False
) -> _core.ArchiveWriter:
    suffix = path.suffix if path.suffix == ".tar" else ".tar" + path.suffix
    row = None if deflated else FORMATS[suffix]
    levels = None if row is None else row.levels
    return _core.ArchiveWriter(
        _core.file_sink(os.fsencode(path), durable, "0" * 8),
        row,
        tar=row is not None,
        deflated=deflated,
        level=1 if deflated else 0 if levels is None else levels.lowest,
        threads=threads,
        mtime=0,
        uid=0,
        gid=0,
    )


def chunk_nbytes(path: Path) -> int:
    return FORMATS[path.suffix if path.suffix == ".tar" else ".tar" + path.suffix].chunk_nbytes


def late(offset: int) -> None:
    """Lets others overtake."""
    time.sleep(random.Random(offset).choice([0, 0, 0.003]))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_file_is_the_same_whoever_comes_first(tmp_path: Path, suffix: str) -> None:
    """Small records, so that each chunk has checksums of bytes in front of it; and large ones."""
    sizes = [10, 700_000, 5_000_000, *[20_000] * 100, 0, 3_000_000, *[7] * 1000]
    written = []
    for threads in THREADS:
        path = tmp_path / f"x{threads}{suffix}"
        archive = writer(path, threads)
        records = [
            (f"archive/data/{n}", 0, nbytes, 1, Reader(nbytes, late))
            for n, nbytes in enumerate(sizes)
        ]
        archive.add_torch_file("x.pt", 0o644, records)
        archive.add_segments("more", 0o644, [(2_000_000, 1, Reader(2_000_000, late))])
        archive.write(None)
        archive.commit(False)
        written.append(path.read_bytes())
    assert [one == written[0] for one in written] == [True] * len(THREADS)
    subprocess.run(["tar", "-xf", path, "-C", tmp_path], check=True)
    with zipfile.ZipFile(tmp_path / "x.pt") as archive_of_torch:
        assert archive_of_torch.testzip() is None
        for n, nbytes in enumerate(sizes):
            assert archive_of_torch.read(f"archive/data/{n}") == Reader(nbytes).data[:nbytes]


def test_deflated_records_are_the_same_whoever_comes_first(tmp_path: Path) -> None:
    """Headers are made between the codes, as their sizes become known."""
    sizes = [10, 0, 700_000, 5_000_000, *[20_000] * 100, 0, 3_000_000, *[7] * 1000, 0]
    written = []
    for threads in THREADS:
        path = tmp_path / f"x{threads}.pt"
        archive = writer(path, threads, deflated=True)
        archive.add_deflated_torch_file(
            [(f"archive/{n}", 0, nbytes, 1, Reader(nbytes, late)) for n, nbytes in enumerate(sizes)]
        )
        archive.write(None)
        archive.commit(False)
        written.append(path.read_bytes())
    assert [one == written[0] for one in written] == [True] * len(THREADS)
    with zipfile.ZipFile(path) as archive_of_torch:
        assert archive_of_torch.testzip() is None
        for n, nbytes in enumerate(sizes):
            assert archive_of_torch.read(f"archive/{n}") == Reader(nbytes).data[:nbytes]


class Blocked:
    """Readers of which the first waits until so many others have begun."""

    def __init__(self, others: int) -> None:
        self.others = others
        self.begun = 0
        self.lock = threading.Lock()
        self.enough = threading.Event()

    def __call__(self, offset: int) -> None:
        if offset == 0:
            assert self.enough.wait(60), f"only {self.begun} others have begun"
            return
        with self.lock:
            self.begun += 1
            if self.begun == self.others:
                self.enough.set()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("threads", [2, 5])
def test_a_late_chunk_holds_up_no_other(tmp_path: Path, suffix: str, threads: int) -> None:
    """The other workers fill all slots, and then no more: memory is bounded."""
    path = tmp_path / f"x{suffix}"
    blocked = Blocked(2 * threads - 1)
    nbytes = 30 * chunk_nbytes(path)
    begun_at_the_end = []

    def on_read(offset: int) -> None:
        blocked(offset)
        if offset == 0:
            time.sleep(0.3)
            begun_at_the_end.append(blocked.begun)

    archive = writer(path, threads)
    archive.add_torch_file("x.pt", 0o644, [("archive/0", 0, nbytes, 1, Reader(nbytes, on_read))])
    archive.write(None)
    archive.commit(False)
    assert begun_at_the_end == [2 * threads - 1]


def test_a_slow_joiner_holds_up_no_poll(tmp_path: Path) -> None:
    """All that takes time in .pt.lzma is the joiner's, and progress comes from polls."""
    seen = set()
    path = tmp_path / "x.pt.lzma"
    weights = torch.randn(1_300_000)
    pyckpt.save(weights, path, num_threads=8, progress=lambda done, _: seen.add(done))
    assert torch.equal(pyckpt.load(path), weights)
    [row] = [row for row in _core.file_formats() if row.compression == "lzma"]
    assert len(seen) > weights.nbytes / row.chunk_nbytes / 2


class Failure(Exception):
    pass


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("chunk", [0, 1, 5, 19])
def test_a_chunk_that_cannot_be_read(tmp_path: Path, suffix: str, threads: int, chunk: int) -> None:
    path = tmp_path / f"x{suffix}"
    nbytes = 20 * chunk_nbytes(path)
    failed = chunk * chunk_nbytes(path)

    def on_read(offset: int) -> None:
        if failed <= offset < failed + chunk_nbytes(path):
            raise Failure

    archive = writer(path, threads)
    archive.add_torch_file("x.pt", 0o644, [("archive/0", 0, nbytes, 1, Reader(nbytes, on_read))])
    with pytest.raises(Failure):
        archive.write(None)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("threads", [2, 5])
def test_a_failure_that_all_others_wait_for(tmp_path: Path, threads: int) -> None:
    path = tmp_path / "x.tar.gz"
    nbytes = 30 * chunk_nbytes(path)
    blocked = Blocked(2 * threads - 1)

    def on_read(offset: int) -> None:
        blocked(offset)
        if offset == 0:
            time.sleep(0.3)  # the others have nothing to do now
            raise Failure

    archive = writer(path, threads)
    archive.add_segments("x", 0o644, [(nbytes, 1, Reader(nbytes, on_read))])
    with pytest.raises(Failure):
        archive.write(None)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("threads", [1, 2, 9])
def test_a_save_is_given_up_while_workers_read(tmp_path: Path, threads: int) -> None:
    path = tmp_path / "x.tar"
    nbytes = 100 * chunk_nbytes(path)
    given_up = threading.Event()

    def on_read(offset: int) -> None:
        if offset >= 10 * chunk_nbytes(path):
            assert given_up.wait(60)

    def give_up(done: int, total: int) -> None:
        given_up.set()
        raise Failure

    archive = writer(path, threads)
    archive.add_segments("x", 0o644, [(nbytes, 1, Reader(nbytes, on_read))])
    with pytest.raises(Failure):
        archive.write(give_up)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_segments_hold_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    """Durable files of 32 MiB or more are written from segments."""
    sizes = [50_000_000, 10, 3_000_001, *[1000] * 300]
    written = []
    for threads, durable in [(2, False), *((threads, True) for threads in THREADS)]:
        path = tmp_path / f"x{threads}{suffix}"
        archive = writer(path, threads, durable=durable)
        archive.add_segments("x", 0o644, [(nbytes, 1, Reader(nbytes, late)) for nbytes in sizes])
        nbytes = archive.write(None)
        archive.commit(False)
        written.append(path.read_bytes())
        assert len(written[-1]) == nbytes
    assert [one == written[0] for one in written] == [True] * (1 + len(THREADS))


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("chunk", [0, 7, 19])
def test_segments_that_are_never_full(tmp_path: Path, threads: int, chunk: int) -> None:
    path = tmp_path / "x.tar"
    nbytes = 20 * chunk_nbytes(path)
    failed = chunk * chunk_nbytes(path)

    def on_read(offset: int) -> None:
        if failed <= offset < failed + chunk_nbytes(path):
            raise Failure

    archive = writer(path, threads, durable=True)
    archive.add_segments("x", 0o644, [(nbytes, 1, Reader(nbytes, on_read))])
    with pytest.raises(Failure):
        archive.write(None)
    assert os.listdir(tmp_path) == []
