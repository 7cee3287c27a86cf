"""Reading from stores: equal bytes, no more bytes than needed, and what goes wrong on the way."""

from __future__ import annotations

import contextlib
import errno
import gc
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch

import pyckpt
from pyckpt.archive import formats
from pyckpt.archive.formats import STATES_MEMBER
from pyckpt.cli import main
from pyckpt.errors import CheckpointError, CorruptArchiveError, FilenameError, OptionError
from pyckpt.sharded.shard_reader import ShardReader, Wanted
from pyckpt.storage import retries
from pyckpt.storage.s3_client import S3Client
from pyckpt.storage.urls import Url, open_store
from tests.states import assert_equal, mixed_state
from tests.stores import Bucket, Fault, answer, delay, reset

pytestmark = pytest.mark.timeout(180)

SUFFIXES = [*formats.usual_suffixes(), ".pt", ".pt.gz", ".pt.xz", ".pt.zst"]
# Those that tell where their blocks are.
PLACED = [".tar", ".tar.gz", ".tar.zst", ".tar.lzma", ".pt", ".pt.gz"]
GETS = "^GetObject"


def saved(folder: Path, suffix: str, obj: Any, **options: Any) -> bytes:
    path = folder / f"saved{suffix}"
    pyckpt.save(obj, path, fsync=False, **options)
    return path.read_bytes()


def large_state() -> dict[str, Any]:
    """Forty weights of one MiB, which no format makes much smaller."""
    generator = torch.Generator().manual_seed(3)
    return {f"layer{i}": torch.randn(512, 512, generator=generator) for i in range(40)}


class Log:
    """A rule of a proxy that lets all requests pass, and notes the ranges."""

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int]] = []

    def __call__(self, handler: Any) -> bool:
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", handler.headers["Range"])
        assert found is not None
        self.ranges.append((int(found[1]), int(found[2]) + 1))
        return False

    @property
    def nbytes(self) -> int:
        return sum(end - start for start, end in self.ranges)


def cut_body(nbytes: int, log: Log) -> Fault:
    """The connection ends after so many bytes of the object."""

    def fault(handler: Any) -> bool:
        log(handler)
        status, headers, body = handler.forward()
        handler.send_response_only(status)
        for name, value in headers:
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[:nbytes])
        handler.wfile.flush()
        handler.close_connection = True
        handler.connection.shutdown(socket.SHUT_RDWR)
        return True

    return fault


@pytest.fixture
def memory() -> Iterator[Callable[[str, bytes], str]]:
    """Puts an object into fsspec's memory, and returns its URL."""
    fs = fsspec.filesystem("memory")

    def put(key: str, data: bytes) -> str:
        fs.pipe_file(f"/reads/{key}", data)
        return f"memory://reads/{key}"

    yield put
    if fs.exists("/reads"):
        fs.rm("/reads", recursive=True)


def read_in_all_ways(url: str, suffix: str, path: Path, state: Any, folder: Path) -> None:
    """Compares what comes of an object with what comes of the same file."""
    assert_equal(pyckpt.load(url), state)
    assert_equal(pyckpt.load(url, mmap=True), state)
    assert_equal(pyckpt.load(url, num_threads=1, verify=False), state)
    assert pyckpt.load(url, keys=["bf*"]).keys() == {"bf16"}
    assert torch.equal(pyckpt.load(url, keys="zeros")["zeros"], state["zeros"])
    report, expected = pyckpt.verify(url), pyckpt.verify(path)
    assert report.ok
    assert report.path == url
    assert (report.members, report.records, report.nbytes) == (
        expected.members,
        expected.records,
        expected.nbytes,
    )
    found, there = pyckpt.inspect(url), pyckpt.inspect(path)
    assert found.file_nbytes == path.stat().st_size
    assert [m.tensors for m in found.members] == [m.tensors for m in there.members]
    converted = folder / "converted.tar.gz"
    pyckpt.convert(url, converted, fsync=False)
    assert_equal(pyckpt.load(converted), state)
    if suffix.startswith(".tar"):
        [member] = pyckpt.extract(url, folder / "extracted")
        assert_equal(torch.load(member), state)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_s3_gives_what_the_file_gives(bucket: Bucket, suffix: str, tmp_path: Path) -> None:
    state = mixed_state()
    bucket.put(f"run/x{suffix}", saved(tmp_path, suffix, state))
    url = bucket.url(f"run/x{suffix}")
    read_in_all_ways(url, suffix, tmp_path / f"saved{suffix}", state, tmp_path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_fsspec_gives_what_the_file_gives(memory: Any, suffix: str, tmp_path: Path) -> None:
    state = mixed_state()
    url = memory(f"x{suffix}", saved(tmp_path, suffix, state))
    read_in_all_ways(url, suffix, tmp_path / f"saved{suffix}", state, tmp_path)


def test_deflated_records(memory: Any, tmp_path: Path) -> None:
    state = mixed_state()
    url = memory("x.pt", saved(tmp_path, ".pt", state, compression_level=6))
    assert_equal(pyckpt.load(url), state)
    assert torch.equal(pyckpt.load(url, keys="doubles")["doubles"], state["doubles"])
    assert pyckpt.verify(url).ok


@pytest.mark.parametrize("command", ["gzip", "bzip2", "xz", "zstd -q"])
def test_files_of_other_programs(memory: Any, command: str, tmp_path: Path) -> None:
    state = mixed_state()
    data = saved(tmp_path, ".tar", state)
    packed = subprocess.run([*command.split(), "-c"], input=data, capture_output=True, check=True)
    url = memory("x", packed.stdout)
    assert_equal(pyckpt.load(url), state)
    assert pyckpt.verify(url).ok


def test_several_xz_streams_with_padding_between_them(memory: Any, tmp_path: Path) -> None:
    state = large_state()
    data = saved(tmp_path, ".tar", state)
    half = len(data) // 2
    packed = [
        subprocess.run(["xz", "-0", "-c"], input=part, capture_output=True, check=True).stdout
        for part in (data[:half], data[half:])
    ]
    url = memory("x", packed[0] + bytes(400_000) + packed[1] + bytes(8))
    assert_equal(pyckpt.load(url), state)
    assert torch.equal(pyckpt.load(url, keys="layer7")["layer7"], state["layer7"])


@pytest.mark.parametrize("suffix", PLACED)
def test_one_tensor_costs_a_small_part(bucket: Bucket, suffix: str, tmp_path: Path) -> None:
    state = large_state()
    data = saved(tmp_path, suffix, state)
    bucket.put("x", data)
    log = Log()
    bucket.proxy.rule(GETS, log)
    found = pyckpt.load(bucket.url("x"), keys="layer23")
    assert torch.equal(found["layer23"], state["layer23"])
    assert log.nbytes < len(data) / 6
    assert len(log.ranges) <= 12
    log.ranges.clear()
    assert len(pyckpt.inspect(bucket.url("x")).members[-1].tensors) == 40
    assert log.nbytes < len(data) / 10


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".pt"])
def test_no_byte_comes_twice_in_a_load(bucket: Bucket, suffix: str, tmp_path: Path) -> None:
    data = saved(tmp_path, suffix, large_state())
    bucket.put("x", data)
    log = Log()
    bucket.proxy.rule(GETS, log)
    pyckpt.load(bucket.url("x"))
    assert log.nbytes == len(data)
    assert len(log.ranges) < 60


def test_options_reach_the_store(bucket: Bucket, monkeypatch: Any, tmp_path: Path) -> None:
    bucket.put("x.tar.gz", saved(tmp_path, ".tar.gz", mixed_state()))
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    options = {"endpoint_url": bucket.proxy.address, "key": "k", "secret": "s"}
    url = bucket.url("x.tar.gz")
    assert_equal(pyckpt.load(url, storage_options=options), mixed_state())
    assert pyckpt.verify(url, storage_options=options).ok
    assert pyckpt.inspect(url, storage_options=options).compression == "gzip"
    pyckpt.convert(url, tmp_path / "y.tar", storage_options=options, fsync=False)
    assert pyckpt.extract(url, tmp_path / "out", storage_options=options)
    with pytest.raises(OptionError, match="endpoint"):
        pyckpt.load(url, storage_options={"endpoint": "x"})


def test_training_state(bucket: Bucket) -> None:
    def new_state(seed: int) -> pyckpt.State:
        torch.manual_seed(seed)
        model = torch.nn.Linear(300, 300)
        optimizer = torch.optim.AdamW(model.parameters())
        model(torch.randn(4, 300)).sum().backward()
        optimizer.step()
        return pyckpt.State(model, optimizer, run_name="first")

    state, other = new_state(1), new_state(2)
    [url] = pyckpt.save_checkpoint(state, bucket.url("{run_name}/rank{rank}.tar.gz"))
    for name in (url, bucket.url("first/rank{rank}.tar.gz")):
        assert isinstance(name, str)
        pyckpt.load_checkpoint(name, other)
        assert torch.equal(other.model.weight, state.model.weight)
    with pytest.raises(CheckpointError, match=r"s3://.*no-such\.tar") as caught:
        pyckpt.load_checkpoint(bucket.url("no-such.tar"), other)
    assert caught.value.errno == errno.ENOENT


def test_command(bucket: Bucket, tmp_path: Path, capfd: Any) -> None:
    state = mixed_state()
    bucket.put("x.tar.gz", saved(tmp_path, ".tar.gz", state))
    url = bucket.url("x.tar.gz")
    assert main(["ls", "-t", url]) == 0
    assert "bf16" in capfd.readouterr().out
    assert main(["verify", url]) == 0
    assert f"{url}: whole" in capfd.readouterr().out
    assert main(["cat-tensor", url, "doubles", "-o", str(tmp_path / "d.npy")]) == 0
    assert np.array_equal(np.load(tmp_path / "d.npy"), state["doubles"].numpy())
    assert main(["convert", url, str(tmp_path / "y.tar")]) == 0
    assert_equal(pyckpt.load(tmp_path / "y.tar"), state)
    assert main(["ls", bucket.url("none")]) == 2
    assert bucket.url("none") in capfd.readouterr().err


def test_one_client_reads_all_archives(bucket: Bucket, monkeypatch: Any, tmp_path: Path) -> None:
    wanted = []
    for number in range(5):
        bucket.put(f"{number}.tar", saved(tmp_path, ".tar", torch.full((3,), number)))
        place = Url(bucket.url(f"{number}.tar")), STATES_MEMBER, None
        wanted.append(Wanted("w", *place, (0,), (3,), torch.zeros(3, dtype=torch.int64)))
    made = []
    original = S3Client.__init__
    monkeypatch.setattr(S3Client, "__init__", lambda *a: (made.append(1), original(*a))[1])
    reader = ShardReader()
    for _ in range(2):
        reader.read(wanted)
    assert [one.out.tolist() for one in wanted] == [[number] * 3 for number in range(5)]
    assert len(made) == 1


# What goes wrong.


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.bz2", ".pt"])
def test_damage_is_found(bucket: Bucket, suffix: str, tmp_path: Path) -> None:
    data = bytearray(saved(tmp_path, suffix, mixed_state()))
    data[len(data) // 3] ^= 1
    bucket.put("x", bytes(data))
    with pytest.raises(CorruptArchiveError, match=r"s3://.*damaged") as caught:
        pyckpt.load(bucket.url("x"))
    assert caught.value.path == bucket.url("x")
    assert not pyckpt.verify(bucket.url("x")).ok


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.bz2", ".pt"])
@pytest.mark.parametrize("part", [0, 0.1, 0.5, 0.99])
def test_cut_objects(memory: Any, suffix: str, part: float, tmp_path: Path) -> None:
    data = saved(tmp_path, suffix, mixed_state())
    url = memory("x", data[: int(len(data) * part)])
    with pytest.raises(CorruptArchiveError, match="memory://"):
        pyckpt.load(url)
    assert not pyckpt.verify(url).ok


def test_what_is_not_there(bucket: Bucket, memory: Any) -> None:
    memory("folder/x", b"")
    for url in (
        bucket.url("none.tar.gz"),
        "s3://no-such-bucket-at-all/x.tar",
        "memory://reads/none",
        "memory://reads/folder",
    ):
        for read in (pyckpt.load, pyckpt.verify, pyckpt.inspect):
            with pytest.raises(FileNotFoundError) as caught:
                read(url)
            assert caught.value.errno == errno.ENOENT
            assert caught.value.filename == url
    with pytest.raises(FilenameError, match="nowhere"):
        pyckpt.load("nowhere://bucket/x.tar")


def test_who_is_refused(bucket: Bucket) -> None:
    bucket.proxy.rule(".", answer(403, "AccessDenied"))
    with pytest.raises(PermissionError) as caught:
        pyckpt.load(bucket.url("x.tar"))
    assert caught.value.filename == bucket.url("x.tar")


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.bz2"])
def test_an_object_that_is_replaced_meanwhile(bucket: Bucket, suffix: str, tmp_path: Path) -> None:
    state = large_state()
    data = saved(tmp_path, suffix, state)
    bucket.put("x", data)
    other = saved(tmp_path, suffix, {name: t + 1 for name, t in state.items()})
    numbers = itertools.count()

    def replace(handler: Any) -> bool:
        if next(numbers) == 4:
            bucket.put("x", other)
        return False

    bucket.proxy.rule(GETS, replace)
    with pytest.raises(CheckpointError, match=r"s3://.* was replaced by another object") as caught:
        pyckpt.load(bucket.url("x"))
    assert caught.value.errno == errno.ESTALE
    assert caught.value.path == bucket.url("x")


@pytest.mark.parametrize("change", [lambda data: data[::-1], lambda data: data[:99], None])
def test_an_object_of_fsspec_that_is_replaced_meanwhile(
    memory: Any, change: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    data = saved(tmp_path, ".tar", large_state())
    url = memory("x", data)
    fs = fsspec.filesystem("memory")
    original, numbers = type(fs).cat_file, itertools.count()

    def replace(self: Any, *args: Any, **options: Any) -> bytes:
        if next(numbers) == 3:
            if change is None:
                fs.rm_file("/reads/x")
            else:
                fs.pipe_file("/reads/x", change(data))
        found: bytes = original(self, *args, **options)
        return found

    monkeypatch.setattr(type(fs), "cat_file", replace)
    if change is None:
        with pytest.raises(FileNotFoundError):
            pyckpt.load(url)
    else:
        with pytest.raises(CheckpointError, match=r"memory://.* was replaced"):
            pyckpt.load(url)


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.bz2"])
def test_a_broken_connection_goes_on_where_it_was(
    bucket: Bucket, no_pauses: None, suffix: str, tmp_path: Path
) -> None:
    state = large_state()
    data = saved(tmp_path, suffix, state)
    bucket.put("x", data)
    cut, whole = Log(), Log()
    bucket.proxy.rule(GETS, cut_body(300_000, cut), times=6, after=2)
    bucket.proxy.rule(GETS, whole)
    assert_equal(pyckpt.load(bucket.url("x")), state)
    assert len(cut.ranges) == 6
    for start, end in cut.ranges:
        if end - start > 300_000:
            again = [at for at, until in (*cut.ranges, *whole.ranges) if until == end]
            assert any(start + 250_000 < at <= start + 300_000 for at in again)


def test_a_connection_that_always_breaks(bucket: Bucket, no_pauses: None, tmp_path: Path) -> None:
    bucket.put("x", saved(tmp_path, ".tar.gz", mixed_state()))
    bucket.proxy.rule(GETS, reset)
    with pytest.raises(ConnectionError) as caught:
        pyckpt.load(bucket.url("x"))
    assert caught.value.filename == bucket.url("x")
    assert bucket.proxy.count("GetObject") <= 8 * retries.ATTEMPTS


def test_a_store_that_slows_down(bucket: Bucket, no_pauses: None, tmp_path: Path) -> None:
    state = mixed_state()
    bucket.put("x", saved(tmp_path, ".tar.gz", state))
    bucket.proxy.rule(".", answer(503, "SlowDown"), times=4)
    assert_equal(pyckpt.load(bucket.url("x")), state)
    bucket.proxy.forget_rules()
    bucket.proxy.rule(GETS, answer(503, "SlowDown"))
    with pytest.raises(OSError, match="SlowDown") as caught:
        pyckpt.load(bucket.url("x"))
    assert caught.value.filename == bucket.url("x")


def test_a_store_that_does_not_answer(bucket: Bucket, no_pauses: None, tmp_path: Path) -> None:
    bucket.put("x", saved(tmp_path, ".tar", mixed_state()))
    bucket.proxy.rule(GETS, delay(30))
    options = {"config_kwargs": {"read_timeout": 0.2}}
    with pytest.raises(TimeoutError) as caught:
        pyckpt.load(bucket.url("x"), storage_options=options)
    assert caught.value.filename == bucket.url("x")


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.bz2"])
def test_ctrl_c_ends_the_waiting(bucket: Bucket, suffix: str, tmp_path: Path) -> None:
    bucket.put("x", saved(tmp_path, suffix, large_state()))
    bucket.proxy.rule(GETS, delay(25), after=3)
    before = time.monotonic()
    threading.Timer(2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        pyckpt.load(bucket.url("x"))
    assert time.monotonic() - before < 15


def test_a_reader_that_fails_leaves_no_connection_open(bucket: Bucket) -> None:
    bucket.put("x", bytes(4 << 20))
    url = Url(bucket.url("x"))
    store = open_store(url)

    def write(piece: bytes) -> None:
        raise ValueError("no room")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            store.fetch(url, 0, 4 << 20, write)
        except ValueError as error:
            error.itself = error  # type: ignore[attr-defined]  # a circle, as readers have
        del store
        gc.collect()
    assert [one for one in caught if one.category is ResourceWarning] == []


def test_nothing_is_left_behind(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("x", saved(tmp_path, ".tar.gz", large_state()))

    def memory_files() -> list[str]:
        found = []
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                found.append(os.readlink(f"/proc/self/fd/{name}"))
        return [name for name in found if "memfd:pyckpt" in name]

    def bringers() -> int:
        return sum(one.name == "pyckpt-object" for one in threading.enumerate())

    before = len(memory_files()), bringers()
    pyckpt.load(bucket.url("x"))
    gc.collect()
    end = time.monotonic() + 20
    while len(memory_files()) > before[0] or bringers() > before[1]:
        assert time.monotonic() < end
        time.sleep(0.05)
        gc.collect()


def test_nothing_is_imported_for_a_file_of_this_machine(tmp_path: Path) -> None:
    saved(tmp_path, ".tar.gz", mixed_state())
    code = (
        "import sys, pyckpt; pyckpt.load(sys.argv[1]); pyckpt.verify(sys.argv[1])\n"
        "found = {'boto3', 'botocore', 's3fs'} & set(sys.modules)\n"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "saved.tar.gz")], check=True)
