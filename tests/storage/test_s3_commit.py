"""What is there after a commit on S3 whose outcome nobody told."""

from __future__ import annotations

import signal
import threading
from typing import Any

import pytest
import torch

import pyckpt
from pyckpt.archive import formats
from pyckpt.archive.writer import ArchiveWriter
from pyckpt.errors import CheckpointError
from pyckpt.options import WriteOptions
from pyckpt.storage import s3_upload
from pyckpt.storage.remote_object import target_at
from pyckpt.storage.urls import location
from tests.stores import Bucket, Fault, answer, delay, lose_answer, reset, silent_until

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("no_pauses")]

OLD = b"the old object"
STATES = {
    "PutObject": {"w": torch.arange(100)},
    "CompleteMultipartUpload": {"w": torch.arange(20 << 20, dtype=torch.uint8)},
}
STEPS = pytest.mark.parametrize("step", STATES)


def written(bucket: Bucket, state: Any) -> ArchiveWriter:
    """A writer that can be committed."""
    writer = ArchiveWriter(target_at(location(bucket.url("x.tar"))), WriteOptions())
    writer.add_object(formats.STATES_MEMBER, state)
    writer.write()
    return writer


def keep_versions(bucket: Bucket) -> None:
    versioning = {"Status": "Enabled"}
    bucket.client.put_bucket_versioning(Bucket=bucket.name, VersioningConfiguration=versioning)


def versions(bucket: Bucket) -> int:
    listed = bucket.client.list_object_versions(Bucket=bucket.name)
    return len(listed.get("Versions", ())) + len(listed.get("DeleteMarkers", ()))


@STEPS
@pytest.mark.parametrize("end", ["restore", "abandon"])
def test_requests_that_were_repeated_leave_no_version(
    bucket: Bucket, step: str, end: str, caplog: pytest.LogCaptureFixture
) -> None:
    keep_versions(bucket)
    bucket.put("x.tar.other", OLD)
    bucket.proxy.rule(step, lose_answer, times=2)
    for olds in (0, 1):
        if olds:
            bucket.put("x.tar", OLD)
        writer = written(bucket, STATES[step])
        writer.commit(keep_previous=True)
        getattr(writer, end)()
        assert versions(bucket) == olds + 1
        bucket.proxy.forget_rules()
        bucket.proxy.rule(step, lose_answer, times=2)
    assert bucket.get("x.tar") == OLD
    assert caplog.text == ""


def from_the_second_on(fault: Fault) -> Fault:
    """The first request passes."""
    numbers = iter(range(10**6))
    return lambda handler: next(numbers) > 0 and fault(handler)


@STEPS
def test_a_commit_whose_answers_are_all_lost(bucket: Bucket, step: str) -> None:
    bucket.proxy.rule(step, lose_answer)
    pyckpt.save(STATES[step], bucket.url("x.tar"))
    assert bucket.keys() == ["x.tar"]
    assert bucket.uploads() == []


@STEPS
@pytest.mark.parametrize("has_old", [False, True])
@pytest.mark.parametrize("has_versions", [False, True])
def test_a_commit_that_nobody_told_of(
    bucket: Bucket,
    step: str,
    has_old: bool,
    has_versions: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Neither the answers come, nor that to the question whose the object is."""
    if has_versions:
        keep_versions(bucket)
    if has_old:
        bucket.put("x.tar", OLD)
    writer = written(bucket, STATES[step])
    bucket.proxy.rule(step, lose_answer)
    bucket.proxy.rule("HeadObject", from_the_second_on(reset))
    with pytest.raises(OSError, match="Connection"):
        writer.commit(keep_previous=True)
    bucket.proxy.forget_rules()
    writer.abandon()
    assert bucket.uploads() == []
    if has_versions or not has_old:
        assert bucket.keys() == ["x.tar"] * has_old
        assert not has_old or bucket.get("x.tar") == OLD
        assert caplog.text == ""
    else:
        assert bucket.get("x.tar") != OLD
        assert f"{bucket.url('x.tar')} is the new one of a save that failed" in caplog.text


@STEPS
def test_a_store_that_is_gone_after_the_commit(
    bucket: Bucket, step: str, caplog: pytest.LogCaptureFixture
) -> None:
    bucket.put("x.tar", OLD)
    bucket.proxy.rule(step, lose_answer)
    bucket.proxy.rule("HeadObject", reset)
    with pytest.raises(CheckpointError, match="Connection"):
        pyckpt.save(STATES[step], bucket.url("x.tar"))
    assert f"{bucket.url('x.tar')} may be the new one of a save that failed" in caplog.text


def test_nothing_is_taken_back_later(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Another save may have made an object of that name meanwhile."""
    monkeypatch.setattr(s3_upload, "_UNDO_SECONDS", 0.3)
    before, end = threading.enumerate(), threading.Event()
    writer = written(bucket, STATES["CompleteMultipartUpload"])
    bucket.proxy.rule("CompleteMultipartUpload", lose_answer)
    bucket.proxy.rule("HeadObject", from_the_second_on(reset))
    with pytest.raises(OSError, match="Connection"):
        writer.commit(keep_previous=True)
    bucket.proxy.forget_rules()
    bucket.proxy.rule("AbortMultipartUpload", silent_until(end))
    writer.abandon()
    assert "or the object is the new one" in caplog.text
    end.set()
    for thread in set(threading.enumerate()) - set(before):
        if thread.name == "pyckpt-undo":
            thread.join()
    assert bucket.proxy.requests[-1][0] == "AbortMultipartUpload"
    assert bucket.keys() == ["x.tar"]


@STEPS
def test_an_object_that_nobody_has_looked_for_is_not_removed(
    bucket: Bucket, step: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Without it there would be neither the new one nor the old one."""
    bucket.put("x.tar", OLD)
    writer = written(bucket, STATES[step])
    bucket.proxy.rule(step, lose_answer)
    bucket.proxy.rule("HeadObject", reset)
    with pytest.raises(OSError, match="Connection"):
        writer.commit()
    bucket.proxy.forget_rules()
    writer.abandon()
    assert bucket.keys() == ["x.tar"]
    assert f"{bucket.url('x.tar')} is the new one of a save that failed" in caplog.text


@STEPS
def test_the_object_of_another_save_is_not_ones_own(bucket: Bucket, step: str) -> None:
    pyckpt.save({"other": 1}, bucket.url("x.tar"))
    other = bucket.get("x.tar")
    writer = written(bucket, STATES[step])
    bucket.proxy.rule(step, reset)
    with pytest.raises(OSError, match="Connection"):
        writer.commit(keep_previous=True)
    bucket.proxy.forget_rules()
    writer.abandon()
    assert bucket.get("x.tar") == other


@STEPS
def test_a_commit_that_was_refused_is_none(
    bucket: Bucket, step: str, caplog: pytest.LogCaptureFixture
) -> None:
    bucket.put("x.tar", OLD)
    bucket.proxy.rule(step, answer(403, "AccessDenied"))
    bucket.proxy.rule("HeadObject", answer(403, "AccessDenied"))
    with pytest.raises(CheckpointError, match="AccessDenied"):
        pyckpt.save(STATES[step], bucket.url("x.tar"))
    assert bucket.get("x.tar") == OLD
    assert caplog.text == ""
    assert bucket.proxy.count("HeadObject") == 0


@STEPS
@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_in_the_middle_of_the_commit(bucket: Bucket, step: str) -> None:
    keep_versions(bucket)
    bucket.put("x.tar", OLD)

    def interrupt(handler: Any) -> bool:
        given = handler.forward()
        signal.pthread_kill(main, signal.SIGINT)
        delay(0.5)(handler)
        handler.answer(*given)
        return True

    main = threading.main_thread().ident
    assert main is not None
    bucket.proxy.rule(step, interrupt)
    with pytest.raises(KeyboardInterrupt):
        pyckpt.save(STATES[step], bucket.url("x.tar"))
    assert bucket.get("x.tar") == OLD
    assert bucket.uploads() == []


def test_a_commit_needs_no_right_to_look(bucket: Bucket, caplog: pytest.LogCaptureFixture) -> None:
    """Stores answer so if the bucket must not be listed, and the object is not there."""
    bucket.proxy.rule("HeadObject", answer(403, "AccessDenied"))
    writer = written(bucket, STATES["PutObject"])
    writer.commit(keep_previous=True)
    assert bucket.keys() == ["x.tar"]
    writer.restore()
    assert bucket.keys() == ["x.tar"]
    assert "no versions" in caplog.text
