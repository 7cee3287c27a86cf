"""Saves to S3: what others read there, and what is there after failures."""

from __future__ import annotations

import atexit
import contextlib
import errno
import gc
import io
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pyckpt
from pyckpt.archive import formats
from pyckpt.archive.writer import ArchiveWriter
from pyckpt.options import WriteOptions
from pyckpt.storage import parts, s3_upload
from pyckpt.storage.remote_object import target_at
from pyckpt.storage.urls import location
from tests.states import assert_equal, mixed_state
from tests.stores import (
    Bucket,
    Fault,
    answer,
    begun,
    cut_answer,
    delay,
    flip,
    lose_answer,
    pretend,
    reset,
    silent_until,
)

pytestmark = pytest.mark.timeout(180)

SUFFIXES = [*formats.usual_suffixes(), ".pt", ".pt.gz"]
OLD = b"the old object"
MIB = 1 << 20


def noise(nbytes: int) -> dict[str, torch.Tensor]:
    """A state that no compressor makes much smaller."""
    generator = torch.Generator().manual_seed(1)
    return {"w": torch.randint(256, (nbytes,), dtype=torch.uint8, generator=generator)}


BIG = noise(3 * 8 * MIB)  # three parts, and a bit


def check_object(data: bytes, suffix: str, folder: Path, expected: Any) -> None:
    """Other programs read an object that has been downloaded."""
    file = folder / f"object{suffix}"
    file.write_bytes(data)
    if suffix == ".pt":
        assert_equal(torch.load(file), expected)
    elif suffix == ".pt.gz":
        plain = subprocess.run(["gzip", "-dc", file], check=True, capture_output=True).stdout
        assert_equal(torch.load(io.BytesIO(plain)), expected)
    else:
        unpacked = folder / "unpacked"
        unpacked.mkdir()
        subprocess.run(["tar", "-xf", file, "-C", unpacked], check=True)
        assert_equal(torch.load(unpacked / formats.STATES_MEMBER), expected)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_other_programs_read_what_is_uploaded(bucket: Bucket, tmp_path: Path, suffix: str) -> None:
    small = mixed_state()
    pyckpt.save(small, bucket.url(f"run/small{suffix}"))
    check_object(bucket.get(f"run/small{suffix}"), suffix, tmp_path, small)
    assert bucket.proxy.count("PutObject") == 1
    assert bucket.proxy.count("CreateMultipartUpload") == 0


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.zst", ".pt"])
def test_large_objects_go_in_parts(bucket: Bucket, tmp_path: Path, suffix: str) -> None:
    pyckpt.save(BIG, bucket.url(f"big{suffix}"), num_threads=2)
    check_object(bucket.get(f"big{suffix}"), suffix, tmp_path, BIG)
    assert bucket.proxy.count("UploadPart") == 4
    assert bucket.proxy.count("PutObject") == 0
    assert bucket.uploads() == []
    pyckpt.save(BIG, tmp_path / f"local{suffix}", num_threads=2)
    if suffix == ".pt":  # a tar has the time in it
        assert bucket.get("big.pt") == (tmp_path / "local.pt").read_bytes()


@pytest.mark.parametrize("nbytes", [8 * MIB - 1, 8 * MIB, 8 * MIB + 1, 16 * MIB])
def test_sizes_around_a_part(bucket: Bucket, nbytes: int) -> None:
    upload = target_at(location(bucket.url("x")))._store.open_upload(location(bucket.url("x")))
    data = os.urandom(nbytes)
    upload.open(nbytes)
    upload.write(memoryview(data))
    upload.seal(nbytes)
    upload.commit(False)
    assert bucket.get("x") == data
    assert bucket.proxy.count("UploadPart") == (0 if nbytes <= 8 * MIB else 2)


def test_contents_larger_than_they_were_thought_to_be(bucket: Bucket) -> None:
    upload = target_at(location(bucket.url("x")))._store.open_upload(location(bucket.url("x")))
    data = os.urandom(20 * MIB)
    upload.open(1)
    upload.write(memoryview(data))
    upload.seal(len(data))
    upload.commit(False)
    assert bucket.get("x") == data


def test_parts_of_very_large_objects() -> None:
    assert parts.part_nbytes(0) == 8 * MIB
    assert parts.part_nbytes(8 * MIB * 9000) == 8 * MIB
    assert parts.part_nbytes(8 * MIB * 9000 + 1) == 8 * MIB + 256 * 1024
    assert 9000 * parts.part_nbytes(10**13) >= 10**13


def test_parts_are_uploaded_while_the_save_runs(bucket: Bucket) -> None:
    bucket.put("big.tar", OLD)
    seen = []

    def look(done: int, total: int) -> None:
        if bucket.proxy.count("UploadPart") and done < total:
            seen.append((bucket.uploads(), bucket.get("big.tar")))

    bucket.proxy.rule("UploadPart", delay(1))
    pyckpt.save(noise(200 * MIB), bucket.url("big.tar"), num_threads=1, progress=look)
    assert (["big.tar"], OLD) in seen
    assert all(old == OLD for _, old in seen)
    assert 2 <= bucket.proxy.most_at_once <= parts.IN_FLIGHT


def test_the_old_object_stays_until_the_commit(bucket: Bucket) -> None:
    bucket.put("x.tar", OLD)
    for end in ("abandon", "commit"):
        with pyckpt.ArchiveWriter(bucket.url("x.tar")) as archive:
            assert archive.path == bucket.url("x.tar")
            archive.add_object("a.pt", BIG)
            archive.write()
            assert bucket.get("x.tar") == OLD
            getattr(archive, end)()
        assert bucket.uploads() == []
    with tarfile.open(fileobj=io.BytesIO(bucket.get("x.tar"))) as tar:
        member = tar.extractfile("a.pt")
        assert member is not None
        assert_equal(torch.load(io.BytesIO(member.read())), BIG)


class Stopped(Exception):
    pass


def written(bucket: Bucket) -> pyckpt.ArchiveWriter:
    """A writer that has uploaded everything, and has not committed."""
    bucket.put("x.tar", OLD)
    writer = pyckpt.ArchiveWriter(bucket.url("x.tar"))
    writer.add_object("x", BIG)
    writer.write()
    assert bucket.uploads() == ["x.tar"]
    return writer


def test_a_writer_that_is_dropped(bucket: Bucket) -> None:
    writer = written(bucket)
    del writer
    gc.collect()
    assert bucket.uploads() == []
    assert bucket.get("x.tar") == OLD


@pytest.mark.parametrize("end", ["", "raise RuntimeError", "sys.exit()", "writer.commit()"])
def test_the_process_ends_with_a_writer_that_is_open(bucket: Bucket, end: str) -> None:
    bucket.put("x.tar", OLD)
    script = f"""
import sys, torch, pyckpt
writer = pyckpt.ArchiveWriter(sys.argv[1])
writer.add_object("x", {{"w": torch.zeros(20 << 20, dtype=torch.uint8)}})
writer.write()
{end}
"""
    subprocess.run([sys.executable, "-c", script, bucket.url("x.tar")], timeout=60)
    assert bucket.proxy.count("UploadPart") == 3
    assert bucket.uploads() == []
    assert (bucket.get("x.tar") == OLD) == ("commit" not in end)


def test_a_forked_process_has_no_part_in_uploads(bucket: Bucket) -> None:
    with written(bucket) as writer:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forks of several threads
            child = os.fork()
        if child == 0:
            writer._writer = None  # type: ignore[assignment]
            gc.collect()
            atexit._run_exitfuncs()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert bucket.uploads() == ["x.tar"]
        writer.commit()
    assert bucket.get("x.tar") != OLD


@pytest.mark.parametrize("error", [Stopped, KeyboardInterrupt])
def test_an_exception_in_the_middle(bucket: Bucket, error: type[BaseException]) -> None:
    bucket.put("x.tar", OLD)

    def stop(done: int, total: int) -> None:
        if bucket.proxy.count("UploadPart"):
            raise error

    expected = pyckpt.CheckpointError if error is Stopped else KeyboardInterrupt
    with pytest.raises(expected):
        pyckpt.save(noise(100 * MIB), bucket.url("x.tar"), progress=stop)
    assert bucket.get("x.tar") == OLD
    assert bucket.keys() == ["x.tar"]
    assert bucket.uploads() == []


def once_stuck(bucket: Bucket, do: Callable[[], object]) -> threading.Thread:
    """Does something when as many parts are under way as can be."""

    def wait() -> None:
        while bucket.proxy.count("UploadPart") < parts.IN_FLIGHT:
            time.sleep(0.05)
        do()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@contextmanager
def no_answers(bucket: Bucket, pattern: str) -> Iterator[None]:
    """The server does not answer such requests. Afterwards it does, and nothing goes on."""
    before, end = threading.enumerate(), threading.Event()
    bucket.proxy.rule(pattern, silent_until(end))
    try:
        yield
    finally:
        end.set()
        join_others(before)


def join_others(before: list[threading.Thread]) -> None:
    for thread in threading.enumerate():
        if thread.name.startswith("pyckpt") and thread not in before:
            thread.join()


def interrupt() -> None:
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGINT)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_while_all_parts_are_stuck(bucket: Bucket) -> None:
    state = noise(150 * MIB)
    bucket.proxy.rule("UploadPart", delay(3))
    thread = once_stuck(bucket, interrupt)
    with pytest.raises(KeyboardInterrupt):
        pyckpt.save(state, bucket.url("x.tar"))
    thread.join()
    assert bucket.keys() == []
    assert bucket.uploads() == []


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_when_the_store_has_stopped_answering(
    bucket: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    interrupted: list[float] = []
    state = noise(100 * MIB)
    thread = once_stuck(bucket, lambda: (interrupted.append(time.monotonic()), interrupt()))
    with no_answers(bucket, "UploadPart|Abort"):
        with pytest.raises(KeyboardInterrupt):
            pyckpt.save(state, bucket.url("x.tar"))
        most = s3_upload._STOP_SECONDS + s3_upload._UNDO_SECONDS
        assert time.monotonic() - interrupted[0] < most + 10
        assert "pyckpt sweep" in caplog.text
        assert bucket.url("x.tar") in caplog.text
        assert bucket.uploads() == ["x.tar"]
    thread.join()
    assert bucket.uploads() == []


@pytest.mark.parametrize("step", ["PutObject", "CompleteMultipartUpload"])
@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_when_the_store_does_not_answer_the_last_request(
    bucket: Bucket,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    step: str,
) -> None:
    monkeypatch.setattr(s3_upload, "_UNDO_SECONDS", 0.5)

    def interrupt_it() -> None:
        while not bucket.proxy.count(step):
            time.sleep(0.05)
        interrupt()

    thread = threading.Thread(target=interrupt_it)
    with no_answers(bucket, f"{step}|Abort|HeadObject"):
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            pyckpt.save(noise(10) if step == "PutObject" else BIG, bucket.url("x.tar"))
    thread.join()
    assert "or the object is the new one" in caplog.text


def test_a_save_is_given_up_while_all_parts_are_stuck(bucket: Bucket) -> None:
    writer = ArchiveWriter(target_at(location(bucket.url("x.tar"))), WriteOptions())
    writer.add_object(formats.STATES_MEMBER, noise(100 * MIB))
    given_up: list[float] = []
    thread = once_stuck(bucket, lambda: (given_up.append(time.monotonic()), writer.give_up()))
    with no_answers(bucket, "UploadPart"):
        with pytest.raises(pyckpt.CheckpointError, match="the save was given up"):
            writer.write()
        assert time.monotonic() - given_up[0] < s3_upload._STOP_SECONDS + 10
    thread.join()
    assert bucket.uploads() == []


@pytest.mark.parametrize("part", [delay(0), answer(403, "AccessDenied")])
def test_an_upload_that_begins_after_the_abort(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, part: Fault
) -> None:
    monkeypatch.setattr(s3_upload, "_STOP_SECONDS", 0.1)
    bucket.proxy.rule("CreateMultipartUpload", delay(1.5))
    bucket.proxy.rule("UploadPart", part)
    upload = target_at(location(bucket.url("x")))._store.open_upload(location(bucket.url("x")))
    before = threading.enumerate()
    upload.open(1)  # smaller than it is
    upload.write(memoryview(bytes(9 * MIB)))
    while not bucket.proxy.count("CreateMultipartUpload"):
        time.sleep(0.05)
    upload.abandon()
    join_others(before)
    assert bucket.proxy.count("AbortMultipartUpload") == 1
    assert bucket.uploads() == []
    assert bucket.proxy.count("UploadPart") == 0


@pytest.mark.parametrize("state", [noise(10), BIG], ids=["small", "big"])
@pytest.mark.parametrize("fails", [False, True])
def test_connections_are_closed_without_a_garbage_collector(
    bucket: Bucket, state: Any, fails: bool
) -> None:
    def sockets() -> int:
        """Those to the proxy, on this side."""
        port = int(bucket.proxy.address.rpartition(":")[2])
        lines = Path("/proc/self/net/tcp").read_text().splitlines()[1:]
        inodes = {line.split()[9] for line in lines if line.split()[2].endswith(f":{port:04X}")}
        found = set()
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                found.add(os.readlink(f"/proc/self/fd/{name}"))
        return sum(f"socket:[{inode}]" in found for inode in inodes)

    if fails:
        bucket.proxy.rule("PutObject|UploadPart", answer(403, "AccessDenied"))
    gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(pyckpt.CheckpointError):
            pyckpt.save(state, bucket.url("x.tar"))
        end = time.monotonic() + 20
        while sockets() and time.monotonic() < end:  # the threads of the parts are ending
            time.sleep(0.05)
        assert sockets() == 0
    finally:
        gc.enable()


def test_parts_that_come_after_the_abort(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_upload, "_STOP_SECONDS", 0.1)
    bucket.proxy.rule("UploadPart", delay(2))
    # S3 removes the parts that it has when it aborts, and not those that are on their way.
    bucket.proxy.rule("AbortMultipartUpload", pretend, times=1)
    before = threading.enumerate()

    def stop(done: int, total: int) -> None:
        if bucket.proxy.count("UploadPart"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pyckpt.save(noise(100 * MIB), bucket.url("x.tar"), progress=stop)
    assert bucket.uploads() == ["x.tar"]
    join_others(before)
    assert bucket.uploads() == []


PASSING: dict[str, Fault] = {
    "SlowDown": answer(503, "SlowDown"),
    "InternalError": answer(500, "InternalError"),
    "RequestTimeout": answer(400, "RequestTimeout"),
    "reset": reset,
    "lost answer": lose_answer,
    "cut answer": cut_answer,
}
STEPS = ["CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"]


@pytest.mark.parametrize("fault", PASSING)
@pytest.mark.parametrize("step", [*STEPS, "PutObject"])
@pytest.mark.usefixtures("no_pauses")
def test_failures_that_pass(bucket: Bucket, step: str, fault: str) -> None:
    state = noise(100) if step == "PutObject" else BIG
    bucket.put("x.pt", OLD)
    bucket.proxy.rule(step, PASSING[fault], times=3)
    pyckpt.save(state, bucket.url("x.pt"))
    assert_equal(torch.load(io.BytesIO(bucket.get("x.pt"))), state)
    if step != "CreateMultipartUpload" or "answer" not in fault:
        assert bucket.uploads() == []


@pytest.mark.parametrize("step", ["UploadPart", "PutObject"])
@pytest.mark.parametrize("md5", [False, True])
@pytest.mark.usefixtures("no_pauses")
def test_bytes_that_change_on_the_way_are_sent_again(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, step: str, md5: bool
) -> None:
    if md5:
        monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    state = noise(100) if step == "PutObject" else BIG
    bucket.proxy.rule(step, flip, times=2)
    pyckpt.save(state, bucket.url("x.pt"))
    assert_equal(torch.load(io.BytesIO(bucket.get("x.pt"))), state)
    assert bucket.proxy.count(step) == (3 if step == "PutObject" else 6)


@pytest.mark.usefixtures("no_pauses")
def test_a_server_that_does_not_answer(bucket: Bucket) -> None:
    bucket.put("x.tar", OLD)
    bucket.proxy.rule("UploadPart", delay(1), times=2)
    options = {"config_kwargs": {"read_timeout": 0.5}}
    pyckpt.save(BIG, bucket.url("x.tar"), storage_options=options)
    assert bucket.get("x.tar") != OLD


FATAL = {
    "SlowDown": (answer(503, "SlowDown"), errno.EIO, "SlowDown: the message of SlowDown"),
    "reset": (reset, errno.ECONNRESET, "Connection"),
    "EntityTooSmall": (answer(400, "EntityTooSmall"), errno.EIO, "EntityTooSmall"),
    "NoSuchBucket": (answer(404, "NoSuchBucket"), errno.ENOENT, "NoSuchBucket"),
}
for code in (
    "ExpiredToken",
    "InvalidToken",
    "TokenRefreshRequired",
    "AuthorizationHeaderMalformed",
):
    FATAL[code] = (answer(400, code), errno.EACCES, code)
for code in ("AccessDenied", "RequestTimeTooSkewed", "InvalidAccessKeyId", "SignatureDoesNotMatch"):
    FATAL[code] = (answer(403, code), errno.EACCES, code)


@pytest.mark.parametrize("fault", FATAL)
@pytest.mark.parametrize("step", [*STEPS, "PutObject"])
@pytest.mark.usefixtures("no_pauses")
def test_failures_that_stay(bucket: Bucket, step: str, fault: str) -> None:
    what, number, message = FATAL[fault]
    bucket.put("x.tar", OLD)
    bucket.proxy.rule(step, what)
    state = noise(100) if step == "PutObject" else BIG
    url = bucket.url("x.tar")
    with pytest.raises(pyckpt.CheckpointError, match=message) as caught:
        pyckpt.save(state, url)
    assert url in str(caught.value)
    assert caught.value.path == url
    assert caught.value.errno == number
    assert bucket.get("x.tar") == OLD
    assert bucket.keys() == ["x.tar"]
    assert bucket.uploads() == []
    if fault not in ("SlowDown", "reset"):  # what cannot pass is not tried again
        assert bucket.proxy.count(step) <= (4 if step == "UploadPart" else 1)


@pytest.mark.usefixtures("no_pauses")
def test_an_abort_that_fails_is_reported(bucket: Bucket, caplog: pytest.LogCaptureFixture) -> None:
    bucket.proxy.rule("UploadPart", answer(403, "AccessDenied"))
    bucket.proxy.rule("AbortMultipartUpload", answer(403, "AccessDenied"))
    with pytest.raises(pyckpt.CheckpointError):
        pyckpt.save(BIG, bucket.url("x.tar"))
    assert "pyckpt sweep" in caplog.text
    assert bucket.url("x.tar") in caplog.text


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch, bucket: Bucket, no_pauses: None) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(pyckpt.CheckpointError, match="EndpointConnectionError") as caught:
        pyckpt.save(BIG, bucket.url("x.tar"))
    assert caught.value.errno == errno.ECONNREFUSED
    assert caught.value.path == bucket.url("x.tar")


def test_no_credentials(monkeypatch: pytest.MonkeyPatch, bucket: Bucket) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(pyckpt.CheckpointError, match="NoCredentialsError") as caught:
        pyckpt.save(BIG, bucket.url("x.tar"))
    assert caught.value.errno == errno.EACCES
    keys = {"key": "a", "secret": "b"}
    pyckpt.save(noise(10), bucket.url("x.tar"), storage_options=keys)
    pyckpt.save(noise(10), bucket.url("y.tar"), storage_options={"anon": True})
    assert bucket.keys() == ["x.tar", "y.tar"]


def test_more_arguments_of_requests(bucket: Bucket) -> None:
    extra = {"StorageClass": "STANDARD_IA", "Metadata": {"run": "7"}}
    for key, state in (("small.tar", noise(10)), ("big.tar", BIG)):
        pyckpt.save(state, bucket.url(key), storage_options={"s3_additional_kwargs": extra})
        head = bucket.client.head_object(Bucket=bucket.name, Key=key)
        assert head["StorageClass"] == "STANDARD_IA"
        assert head["Metadata"]["run"] == "7"


def test_no_thread_is_to_be_had(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "pyckpt-upload":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    pyckpt.save(BIG, bucket.url("x.pt"))
    assert_equal(torch.load(io.BytesIO(bucket.get("x.pt"))), BIG)


def committed(bucket: Bucket, key: str, state: Any) -> ArchiveWriter:
    """A writer that has committed, and may have to go back."""
    writer = ArchiveWriter(target_at(location(bucket.url(key))), WriteOptions())
    writer.add_object(formats.STATES_MEMBER, state)
    writer.write()
    writer.commit(keep_previous=True)
    return writer


@pytest.mark.parametrize("state", [noise(10), BIG], ids=["small", "big"])
@pytest.mark.parametrize("end", ["restore", "abandon"])
def test_going_back(bucket: Bucket, state: Any, end: str, caplog: pytest.LogCaptureFixture) -> None:
    # If there was none, there is none again.
    getattr(committed(bucket, "new.tar", state), end)()
    assert bucket.keys() == []
    # A store without versions has nothing to bring back, and what is there is whole.
    bucket.put("x.tar", OLD)
    getattr(committed(bucket, "x.tar", state), end)()
    assert bucket.get("x.tar") != OLD
    assert "no versions" in caplog.text
    # With versions, the previous one comes back.
    versioning = {"Status": "Enabled"}
    bucket.client.put_bucket_versioning(Bucket=bucket.name, VersioningConfiguration=versioning)
    bucket.put("x.tar", OLD)
    getattr(committed(bucket, "x.tar", state), end)()
    assert bucket.get("x.tar") == OLD
    writer = committed(bucket, "x.tar", state)
    writer.keep()
    writer.abandon()
    assert bucket.get("x.tar") != OLD


def test_all_ways_to_save(bucket: Bucket) -> None:
    state = pyckpt.State(nn.Linear(2, 2), run_name="first", timestamp=pyckpt.Timestamp(batch=42))
    name = bucket.url("{run_name}/ba{batch:06d}-rank{rank}.tar.gz")
    [url] = pyckpt.save_checkpoint(state, name)
    assert url == bucket.url("first/ba000042-rank0.tar.gz")
    saved = bucket.get("first/ba000042-rank0.tar.gz")
    assert pyckpt.load(io.BytesIO(saved))["state"].keys() == state.state_dict().keys()
    state.timestamp.batch = 43
    assert pyckpt.async_save_checkpoint(state, name).result() == [
        bucket.url("first/ba000043-rank0.tar.gz")
    ]
    saves = [pyckpt.async_save({"x": n}, bucket.url("a.pt"), max_pending=9) for n in range(3)]
    removal = pyckpt.remove(url)
    assert [save.result() for save in saves] == [bucket.url("a.pt")] * 3
    assert removal.result()
    assert not pyckpt.remove(url).result()
    assert torch.load(io.BytesIO(bucket.get("a.pt"))) == {"x": 2}
    assert bucket.keys() == ["a.pt", "first/ba000043-rank0.tar.gz"]
    for bad in ("../x", "a/../../x", ".."):
        state.run_name = bad
        with pytest.raises(pyckpt.FilenameError, match="leads out of"):
            pyckpt.save_checkpoint(state, bucket.url("a/{run_name}/x.tar"))


def test_an_async_save_that_fails(bucket: Bucket, no_pauses: None) -> None:
    bucket.proxy.rule("PutObject", answer(503, "SlowDown"))
    pending = pyckpt.async_save({}, bucket.url("a.pt"))
    with pytest.raises(pyckpt.CheckpointError, match="SlowDown"):
        pending.result()


SCRIPT = """
import sys, torch, pyckpt
state = {"w": torch.arange(30 << 20, dtype=torch.uint8)}
%s(state, sys.argv[1], num_threads=1)
"""


def test_an_async_save_at_the_end_of_the_process(bucket: Bucket) -> None:
    bucket.proxy.rule("UploadPart", delay(0.5))
    script = SCRIPT % "pyckpt.async_save"
    subprocess.run([sys.executable, "-c", script, bucket.url("x.pt")], check=True, timeout=120)
    assert len(torch.load(io.BytesIO(bucket.get("x.pt")))["w"]) == 30 << 20
    assert bucket.uploads() == []


def test_a_killed_process_leaves_an_upload_that_sweep_removes(
    bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    from pyckpt.cli import main

    bucket.put("run/x.tar", OLD)
    bucket.proxy.rule("UploadPart", delay(60), after=2)
    script = [sys.executable, "-c", SCRIPT % "pyckpt.save", bucket.url("run/x.tar")]
    with subprocess.Popen(script) as process:
        while bucket.proxy.count("UploadPart") < 3:
            assert process.poll() is None
            time.sleep(0.05)
        process.kill()
    assert bucket.get("run/x.tar") == OLD
    assert bucket.uploads() == ["run/x.tar"]
    bucket.proxy.rule("ListMultipartUploads", begun(seconds_ago=3500))  # moto has one time for all
    for kept in (["run/", "--older-than", "1h"], ["run/"], ["other/", "--older-than", "0"]):
        assert main(["sweep", bucket.url(kept[0]), *kept[1:]]) == 0
    assert capsys.readouterr().out == ""
    assert main(["sweep", bucket.url("run/"), "--older-than", "58m", "--dry-run"]) == 0
    assert bucket.uploads() == ["run/x.tar"]
    assert main(["sweep", bucket.url("run/"), "--older-than", "0s"]) == 0
    assert capsys.readouterr().out.count(f"{bucket.url('run/x.tar')}, begun ") == 2
    assert bucket.uploads() == []
    assert bucket.get("run/x.tar") == OLD
    assert main(["sweep", "s3://nobucket/"]) == 2
    assert "NoSuchBucket" in capsys.readouterr().err
    assert main(["sweep", "folder"]) == 2
    assert main(["sweep", bucket.url(""), "--older-than", "soon"]) == 2
