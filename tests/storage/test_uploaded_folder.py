"""Transactions in stores: what is there before, meanwhile and after, and when something fails."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

import pyckpt
from pyckpt.cli import main
from pyckpt.training.folder_save import FolderSave
from tests.launch import WORKERS
from tests.stores import Bucket, answer, cut_answer, delay, lose_answer, reset

pytestmark = pytest.mark.timeout(180)

ROOT = WORKERS.parent.parent
BIG = os.urandom(20 << 20)  # three parts
OLD = b"old"


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The system's temporary folder. Nothing is left in it."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield folder
    assert os.listdir(folder) == []


@pytest.fixture
def old(bucket: Bucket) -> dict[str, bytes]:
    """What is in the bucket before. The last two are not below run/x."""
    objects = {
        "run/x/big": OLD,
        "run/x/deep/old": OLD,
        "run/x/step": OLD,
        "run/x2/step": OLD,
        "run/xy": OLD,
    }
    for key, data in objects.items():
        bucket.put(key, data)
    return objects


def contents(bucket: Bucket) -> dict[str, bytes]:
    return {one: bucket.get(one) for one in sorted(bucket.keys())}


def replace(bucket: Bucket, **new: bytes) -> None:
    with pyckpt.transaction(bucket.url("run/x")) as path:
        for name, data in new.items():
            (path / name).write_bytes(data)


# What appears


def test_files_of_anybody_appear_together(
    bucket: Bucket, temporary: Path, old: dict[str, bytes]
) -> None:
    weight = torch.randn(1_000_000)
    with pyckpt.transaction(bucket.url("run/x/")) as path:
        assert path.parent == temporary
        assert (path.name[:3], path.name[-11:]) == (".x.", ".pyckpt-new")
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        pyckpt.async_save({"weight": weight}, path / "model.tar.gz")
        (path / "deep" / "empty").mkdir(parents=True)
        (path / "deep" / "state.json").write_text("{}")
        (path / "big").write_bytes(BIG)
        subprocess.run(["sh", "-c", "echo 1 > step"], cwd=path, check=True, timeout=60)
        assert contents(bucket) == old
    assert bucket.keys() == [
        *("run/x/big", "run/x/deep/state.json", "run/x/model.tar.gz", "run/x/step"),
        *("run/x2/step", "run/xy"),
    ]
    assert bucket.get("run/x/big") == BIG
    assert bucket.get("run/x/step") == b"1\n"
    assert torch.equal(pyckpt.load(bucket.url("run/x/model.tar.gz"))["weight"], weight)
    assert bucket.uploads() == []
    assert bucket.proxy.count("UploadPart") == 3


def test_the_object_that_some_tools_make_for_a_folder_stays(bucket: Bucket) -> None:
    bucket.put("run/x/", b"")
    bucket.put("run/x/deep/", b"")
    replace(bucket, step=b"1")
    assert bucket.keys() == ["run/x/", "run/x/step"]


def test_nothing_appears_before_all_is_uploaded(bucket: Bucket, old: dict[str, bytes]) -> None:
    bucket.proxy.rule("UploadPart", delay(0.2))
    seen = []

    def look(handler: Any) -> bool:
        seen.append(contents(bucket))
        return False

    bucket.proxy.rule("CompleteMultipartUpload .*big1", look, times=1)
    replace(bucket, big1=BIG, big2=BIG, step=b"1")
    assert seen == [old]
    names = [name for name, _ in bucket.proxy.requests]
    parts = [i for i, name in enumerate(names) if name == "UploadPart"]
    appearing = [i for i, n in enumerate(names) if n in ("CompleteMultipartUpload", "PutObject")]
    removing = [i for i, n in enumerate(names) if n == "DeleteObjects"]
    assert max(parts) < min(appearing)
    assert max(appearing) < min(removing)


ODD = ("a b+c", "ü%20%", "q?x=1&y#z", "'\"\\", "*[a]", "~", "-", "c:d", "\x01")


@pytest.mark.parametrize("store", ["s3", "memory"])
def test_odd_names_and_many_files(bucket: Bucket, store: str) -> None:
    start = bucket.url("run/ä b") if store == "s3" else "memory://run/ä b"
    expected = {name: name.encode() for name in ODD}
    expected |= {f"folder {n % 3}/{n}": str(n).encode() for n in range(100)}
    expected["empty"] = b""
    if store == "memory":  # moto does not know that a key may have it
        expected["new\nline"] = b"x"
    expected["big"] = BIG
    for _ in range(2):
        with pyckpt.transaction(start) as path:
            for name, data in expected.items():
                (path / name).parent.mkdir(exist_ok=True)
                (path / name).write_bytes(data)
    if store == "s3":
        found = {k.removeprefix("run/ä b/"): data for k, data in contents(bucket).items()}
    else:
        system = fsspec.filesystem("memory")
        found = {k.removeprefix("/run/ä b/"): system.cat_file(k) for k in system.find("")}
    assert found == expected
    with pyckpt.transaction(start):
        pass
    assert bucket.keys() == []
    assert fsspec.filesystem("memory").find("") == []


def test_in_memory(tmp_path: Path) -> None:
    system = fsspec.filesystem("memory")
    for name in ("x/old", "x/step", "xy", "y/z"):
        system.pipe_file(name, OLD)

    def fail() -> None:
        with pyckpt.transaction("memory://x") as path:
            (path / "step").write_text("new")
            raise ValueError("no")

    with pytest.raises(pyckpt.CheckpointError, match="ValueError: no"):
        fail()
    assert set(map(system.cat_file, system.find(""))) == {OLD}
    with pyckpt.transaction("memory://x") as path:
        (path / "step").write_text("new")
        (path / "deep").mkdir()
        (path / "deep" / "big").write_bytes(BIG)
    assert sorted(system.find("")) == ["/x/deep/big", "/x/step", "/xy", "/y/z"]
    assert system.cat_file("x/step") == b"new"
    assert system.cat_file("x/deep/big") == BIG
    assert sorted(os.listdir(tmp_path)) == ["temporary"]


def test_a_file_url_is_a_path(tmp_path: Path) -> None:
    with pyckpt.transaction(f"file://{tmp_path}/x/") as path:
        assert path.parent == tmp_path
        (path / "a").touch()
    assert os.listdir(tmp_path / "x") == ["a"]


# What is refused before the block runs


def refused(url: Any, **options: Any) -> pyckpt.CheckpointError:
    with pytest.raises(pyckpt.CheckpointError) as caught, pyckpt.transaction(url, **options):
        pytest.fail("the block ran")
    return caught.value


@pytest.mark.parametrize(
    "url",
    [
        "nix://b/x",
        "s3://",
        "s3:///",
        "s3://bucket",
        "s3://bucket/",
        "memory://",
        "s3:/b/x",
    ],
)
def test_urls_that_cannot_be(bucket: Bucket, url: str) -> None:
    assert isinstance(refused(url), pyckpt.FilenameError)
    assert bucket.proxy.requests == []


def test_a_url_in_a_path() -> None:
    assert "give it as a str" in str(refused(Path("s3://bucket/run")))


def test_wrong_options(bucket: Bucket, tmp_path: Path) -> None:
    assert isinstance(refused(bucket.url("x"), storage_options={"nix": 1}), pyckpt.OptionError)
    assert isinstance(refused(bucket.url("x"), fsync="yes"), pyckpt.OptionError)
    assert isinstance(refused(tmp_path / "x", storage_options={"key": 1}), pyckpt.OptionError)
    assert bucket.proxy.requests == []


@pytest.mark.usefixtures("no_pauses")
def test_stores_that_refuse(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    error = refused("s3://nobucket/run/x")
    assert (error.errno, "NoSuchBucket" in str(error)) == (errno.ENOENT, True)
    bucket.proxy.rule("ListObjects", answer(403, "InvalidAccessKeyId"))
    assert refused(bucket.url("run/x")).errno == errno.EACCES
    bucket.proxy.forget_rules()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert "EndpointConnectionError" in str(refused(bucket.url("run/x")))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    assert "NoCredentialsError" in str(refused(bucket.url("run/x")))


def test_an_object_of_that_name(bucket: Bucket) -> None:
    bucket.put("run/x", OLD)
    error = refused(bucket.url("run/x"))
    assert isinstance(error, pyckpt.FilenameError)
    assert error.path == bucket.url("run/x")
    assert contents(bucket) == {"run/x": OLD}


def test_those_who_save_folders_for_frameworks_take_no_urls() -> None:
    with pytest.raises(pyckpt.FilenameError, match="URL"), FolderSave("memory://run/x"):
        pytest.fail("the block ran")


# What is no file


def test_links_to_files_are_followed(bucket: Bucket) -> None:
    with pyckpt.transaction(bucket.url("run/x")) as path:
        (path / "deep").mkdir()
        (path / "deep" / "a").write_text("a")
        (path / "link").symlink_to("deep/a")
        (path / "deep" / "up").symlink_to("../link")
        (path / "whole").symlink_to(path / "deep" / "a")
    names = ["run/x/deep/a", "run/x/deep/up", "run/x/link", "run/x/whole"]
    assert contents(bucket) == dict.fromkeys(names, b"a")


@pytest.mark.parametrize("kind", ["out", "folder", "nowhere", "pipe", "bytes"])
def test_what_is_no_file_of_the_folder(
    bucket: Bucket, tmp_path: Path, old: dict[str, bytes], kind: str
) -> None:
    (tmp_path / "secret").write_text("secret")

    def write() -> None:
        with pyckpt.transaction(bucket.url("run/x")) as path:
            (path / "step").write_text("new")
            (path / "deep").mkdir()
            match kind:
                case "out":
                    (path / "bad").symlink_to(tmp_path / "secret")
                case "folder":
                    (path / "bad").symlink_to("deep")
                case "nowhere":
                    (path / "bad").symlink_to("nix")
                case "pipe":
                    os.mkfifo(path / "bad")
                case "bytes":
                    Path(os.fsdecode(bytes(path) + b"/bad\xff")).touch()

    with pytest.raises(pyckpt.FilenameError, match="bad") as caught:
        write()
    assert caught.value.path is not None
    assert "bad" in caught.value.path
    assert contents(bucket) == old


# Failures


def test_an_error_in_the_block(bucket: Bucket, old: dict[str, bytes]) -> None:
    def fail(error: BaseException) -> None:
        with pyckpt.transaction(bucket.url("run/x")) as path:
            (path / "big").write_bytes(BIG)
            pyckpt.async_save({"w": torch.zeros(10 << 20)}, path / "late.tar.gz")
            raise error

    with pytest.raises(pyckpt.CheckpointError, match="ValueError: no") as caught:
        fail(ValueError("no"))
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(KeyboardInterrupt):
        fail(KeyboardInterrupt())
    assert contents(bucket) == old
    assert {name for name, _ in bucket.proxy.requests} <= {"ListObjects", "HeadObject"}


def test_an_asynchronous_save_that_fails(bucket: Bucket, old: dict[str, bytes]) -> None:
    def fail() -> None:
        with pyckpt.transaction(bucket.url("run/x")) as path:
            pyckpt.async_save({}, path / "a.tar")
            (path / "a.tar").mkdir()

    with pytest.raises(pyckpt.CheckpointError, match=r"saving .*a\.tar failed"):
        fail()
    assert contents(bucket) == old


FAULTS = {
    "refused": answer(403, "AccessDenied"),
    "busy": answer(503, "SlowDown"),
    "reset": reset,
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("step", ["CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"])
@pytest.mark.usefixtures("no_pauses")
def test_an_upload_that_fails_for_good(
    bucket: Bucket, old: dict[str, bytes], step: str, fault: str
) -> None:
    """One file of several."""
    bucket.proxy.rule(f"{step} .*/big", FAULTS[fault])
    with pytest.raises(pyckpt.CheckpointError) as caught:
        replace(bucket, a=b"new", big=BIG, step=b"new")
    assert caught.value.path == bucket.url("run/x/big")
    assert caught.value.rank == 0
    assert contents(bucket) == old
    assert bucket.uploads() == []


@pytest.mark.usefixtures("no_pauses")
def test_the_last_object_cannot_appear(
    bucket: Bucket, old: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    bucket.proxy.rule("PutObject .*/step", answer(403, "AccessDenied"))
    with pytest.raises(pyckpt.CheckpointError, match=r"committing .*AccessDenied"):
        replace(bucket, a=b"new", big=BIG, step=b"new")
    # What was not there before is gone, what cannot be taken back is named.
    assert contents(bucket) == {**old, "run/x/big": BIG}
    assert "a save that failed: the store has no versions" in caplog.text
    assert bucket.url("run/x/big") in caplog.text
    versioning = {"Status": "Enabled"}
    bucket.client.put_bucket_versioning(Bucket=bucket.name, VersioningConfiguration=versioning)
    bucket.put("run/x/big", OLD)
    with pytest.raises(pyckpt.CheckpointError, match=r"committing .*AccessDenied"):
        replace(bucket, a=b"new", big=BIG, step=b"new")
    assert contents(bucket) == old
    bucket.proxy.forget_rules()
    replace(bucket, a=b"new")
    assert bucket.keys() == ["run/x/a", "run/x2/step", "run/xy"]


@pytest.mark.parametrize("fault", [lose_answer, cut_answer])
@pytest.mark.parametrize("step", ["CompleteMultipartUpload", "PutObject", "DeleteObjects"])
@pytest.mark.parametrize("times", [3, 1000])
@pytest.mark.usefixtures("no_pauses")
def test_answers_that_are_lost(
    bucket: Bucket, old: dict[str, bytes], step: str, fault: Any, times: int
) -> None:
    """The store has done it. So pyckpt looks whether the object is its own."""
    if step == "DeleteObjects" and times > 3:
        return  # nothing tells that it was removed
    bucket.proxy.rule(step, fault, times=times)
    replace(bucket, a=b"new", big=BIG)
    rest = {key: old[key] for key in ("run/x2/step", "run/xy")}
    assert contents(bucket) == {"run/x/a": b"new", "run/x/big": BIG, **rest}
    assert bucket.uploads() == []


@pytest.mark.usefixtures("no_pauses")
def test_old_objects_that_cannot_be_listed_or_removed(
    bucket: Bucket, old: dict[str, bytes]
) -> None:
    bucket.proxy.rule("ListObjects", answer(403, "AccessDenied"), after=1)
    with pytest.raises(pyckpt.CheckpointError, match="listing: AccessDenied"):
        replace(bucket, a=b"new")
    assert contents(bucket) == old
    bucket.proxy.forget_rules()
    bucket.proxy.rule("DeleteObject", answer(403, "AccessDenied"))
    with pytest.raises(pyckpt.CheckpointError, match="the new objects are all there") as caught:
        replace(bucket, step=b"new")
    assert caught.value.errno == errno.EACCES
    assert bucket.get("run/x/step") == b"new"
    assert bucket.get("run/x/deep/old") == OLD


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("step", ["UploadPart", "PutObject"])
def test_ctrl_c(bucket: Bucket, old: dict[str, bytes], step: str) -> None:
    del old["run/x/big"]
    bucket.client.delete_object(Bucket=bucket.name, Key="run/x/big")
    bucket.proxy.rule(f"{step} .*(big|late)", delay(1))
    ident = threading.main_thread().ident
    assert ident is not None

    def interrupt() -> None:
        while not bucket.proxy.count(step):
            time.sleep(0.05)
        time.sleep(0.2)
        signal.pthread_kill(ident, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        replace(bucket, big=BIG, late=b"new")
    thread.join()
    assert contents(bucket) == old
    assert bucket.uploads() == []


SCRIPT = """
import sys, pyckpt
with pyckpt.transaction(sys.argv[1]) as path:
    (path / "big").write_bytes(bytes(30 << 20))
    (path / "step").write_text("new")
"""


@pytest.mark.parametrize("step", ["UploadPart", "PutObject"])
def test_a_killed_process(
    bucket: Bucket, old: dict[str, bytes], temporary: Path, step: str
) -> None:
    bucket.proxy.rule(f"{step} .*(big|step)", delay(60))
    command = [sys.executable, "-c", SCRIPT, bucket.url("run/x")]
    with subprocess.Popen(command, cwd=ROOT) as process:
        while not bucket.proxy.count(step):
            assert process.poll() is None
            time.sleep(0.05)
        process.kill()
    is_before = step == "UploadPart"
    assert contents(bucket) == (old if is_before else {**old, "run/x/big": bytes(30 << 20)})
    assert bucket.uploads() == (["run/x/big"] if is_before else [])
    assert len(os.listdir(temporary)) == 2
    assert main(["sweep", bucket.url("run/x/"), "--older-than", "0s"]) == 0
    assert bucket.uploads() == []
    bucket.proxy.forget_rules()
    replace(bucket, step=b"new")  # and what lies in the temporary folder goes
    assert bucket.keys() == ["run/x/step", "run/x2/step", "run/xy"]


def test_a_living_process_keeps_its_folder(bucket: Bucket, temporary: Path) -> None:
    with pyckpt.transaction(bucket.url("run/x")) as path:
        (path / "a").touch()
        replace(bucket, b=b"")
        assert os.listdir(path) == ["a"]
    assert bucket.keys() == ["run/x/a"]
