"""The checkpoints of a run in a store: saved, found, restored, removed; on ranks, too."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest
import torch

import pyckpt
from pyckpt.staging import pending_saves
from pyckpt.training import manager as manager_module
from tests.launch import run_ranks
from tests.stores import Bucket, Fault, Proxy, answer, delay, reset

pytestmark = pytest.mark.timeout(300)

_numbers = itertools.count()


class Run:
    """A run with a model whose weights tell the step."""

    def __init__(self) -> None:
        self.model = torch.nn.Linear(2, 2)
        self.state = pyckpt.State(self.model, torch.optim.SGD(self.model.parameters(), lr=0.1))

    def at(self, step: int) -> pyckpt.State:
        with torch.no_grad():
            self.model.weight.fill_(step)
        return self.state

    @property
    def step(self) -> int:
        return int(self.model.weight[0, 0])


@pytest.fixture
def run() -> Run:
    return Run()


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    yield
    pending_saves.wait_for_room(1)
    pending_saves.raise_uncollected()


@pytest.fixture(params=["memory", "s3"])
def folder(request: pytest.FixtureRequest) -> str:
    if request.param == "memory":
        return f"memory://runs/{next(_numbers)}/{{a}}"  # braces are no variables here
    url: str = request.getfixturevalue("bucket").url("runs/{a}")
    return url


def archives(bucket: Bucket) -> list[str]:
    keys = bucket.keys()
    return [key for key in keys if "step-" in key]


def save_and_wait(manager: pyckpt.CheckpointManager, step: int, state: pyckpt.State) -> None:
    manager.save(step, state)
    manager.wait()


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("suffix", [".tar.gz", ".pt"])
def test_saves_are_found_and_restored(
    run: Run, folder: str, asynchronous: bool, suffix: str
) -> None:
    manager = pyckpt.CheckpointManager(folder, suffix=suffix, asynchronous=asynchronous)
    assert manager.folder == folder
    assert manager.latest() is None
    assert manager.restore_latest(run.state) is None
    for step in (100, 200):
        manager.save(step, run.at(step), metrics={"loss": torch.tensor(1 / step)})
    manager.wait()
    again = pyckpt.CheckpointManager(f"{folder}/", suffix=suffix)
    assert [one.step for one in again.all()] == [100, 200]
    latest = again.latest()
    assert latest is not None
    assert latest.paths == (f"{folder}/step-200-rank0{suffix}",)
    assert latest.metrics == {"loss": pytest.approx(1 / 200)}
    assert latest.saved_at == pytest.approx(time.time(), abs=100)
    run.at(0)
    assert again.restore_latest(run.state) == latest
    assert run.step == 200
    pyckpt.load_checkpoint(latest.name, run.at(0))
    assert run.step == 200


@pytest.mark.parametrize("asynchronous", [False, True])
def test_older_ones_go_once_the_new_one_is_safe(run: Run, folder: str, asynchronous: bool) -> None:
    rules: Any = {"keep_last": 2, "keep_every": 300, "keep_best": ("loss", "min")}
    manager = pyckpt.CheckpointManager(folder, asynchronous=asynchronous, **rules)
    beside = pyckpt.CheckpointManager(f"{folder}2")
    beside.save(1, run.at(1))
    losses = {100: 3.0, 200: 1.0, 300: 2.0, 400: 4.0, 500: 5.0}
    for step, loss in losses.items():
        manager.save(step, run.at(step), metrics={"loss": loss})
    manager.wait()
    fs = fsspec.filesystem("memory")
    if folder.startswith("memory"):
        names = [path.rpartition("/")[2] for path in fs.find(folder)]
        kept = [f"step-{step}-rank0.tar.gz" for step in (200, 300, 400, 500)]
        assert names == ["checkpoints.json", *kept]
    assert [one.step for one in manager.all()] == [200, 300, 400, 500]
    best = manager.best()
    assert best is not None
    assert best.step == 200
    again = pyckpt.CheckpointManager(folder, keep_last=1, keep_best=("loss", "min"))
    again.save(600, run.at(600), metrics={"loss": 9.0})  # knows the metrics of the run before
    assert [one.step for one in again.all()] == [200, 600]
    assert [one.step for one in beside.all()] == [1]


def test_the_newest_is_the_one_saved_last_and_not_the_highest_step(run: Run, folder: str) -> None:
    manager = pyckpt.CheckpointManager(folder, keep_last=3)
    for step in (400, 500, 600, 500):
        manager.save(step, run.at(step))
    assert [one.step for one in manager.all()] == [400, 600, 500]


def test_a_save_asks_the_store_a_few_times_whatever_there_is(run: Run, bucket: Bucket) -> None:
    manager = pyckpt.CheckpointManager(bucket.url("run"), keep_last=5)
    for step in range(1, 6):
        manager.save(step, run.at(step))
    bucket.proxy.requests.clear()
    manager.save(6, run.at(6))
    kinds = [kind for kind, _ in bucket.proxy.requests]
    own = kinds[kinds.index("GetObject") :]  # behind the upload of the archive
    assert own == ["GetObject", "ListObjects", "PutObject", "DeleteObject"]
    assert archives(bucket) == [f"run/step-{step}-rank0.tar.gz" for step in range(2, 7)]
    bucket.proxy.requests.clear()
    manager.all()
    assert [kind for kind, _ in bucket.proxy.requests] == ["GetObject", "ListObjects"]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_nothing_goes_when_a_save_fails(run: Run, bucket: Bucket, asynchronous: bool) -> None:
    manager = pyckpt.CheckpointManager(bucket.url("run"), keep_last=1, asynchronous=asynchronous)
    manager.save(1, run.at(1))
    manager.wait()
    bucket.proxy.rule("PutObject .*step-2", answer(403, "AccessDenied"))
    with pytest.raises(pyckpt.CheckpointError) as caught:
        save_and_wait(manager, 2, run.at(2))
    assert caught.value.path == bucket.url("run/step-2-rank0.tar.gz")
    assert archives(bucket) == ["run/step-1-rank0.tar.gz"]
    assert manager.restore_latest(run.at(0)) is not None
    assert run.step == 1


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(
    ("request_", "place"),
    [
        ("GetObject .*checkpoints", "run/checkpoints.json"),
        ("ListObjects", "run/"),
        ("PutObject .*checkpoints", "run/checkpoints.json"),
    ],
)
def test_nothing_goes_when_the_list_cannot_be_kept(
    run: Run, bucket: Bucket, asynchronous: bool, request_: str, place: str
) -> None:
    manager = pyckpt.CheckpointManager(bucket.url("run"), keep_last=1, asynchronous=asynchronous)
    manager.save(1, run.at(1))
    manager.wait()
    bucket.proxy.rule(request_, answer(403, "AccessDenied"))
    with pytest.raises(pyckpt.CheckpointError, match="step 2 is safe") as caught:
        save_and_wait(manager, 2, run.at(2))
    assert (caught.value.path, caught.value.errno) == (bucket.url(place), 13)
    assert len(archives(bucket)) == 2
    bucket.proxy.forget_rules()
    assert manager.restore_latest(run.at(0)) is not None
    assert run.step == 2


def test_a_removal_that_fails(run: Run, bucket: Bucket) -> None:
    manager = pyckpt.CheckpointManager(bucket.url("run"), keep_last=1)
    manager.save(1, run.at(1))
    bucket.proxy.rule("DeleteObject", answer(403, "AccessDenied"))
    with pytest.raises(pyckpt.CheckpointError, match="step 2 is safe") as caught:
        manager.save(2, run.at(2))
    assert caught.value.path == bucket.url("run/step-1-rank0.tar.gz")
    bucket.proxy.forget_rules()
    manager.save(3, run.at(3))
    assert archives(bucket) == ["run/step-3-rank0.tar.gz"]


def test_damaged_and_incomplete_ones_are_passed_over(run: Run, bucket: Bucket) -> None:
    manager = pyckpt.CheckpointManager(bucket.url("run"))
    for step in (1, 2, 3, 4):
        manager.save(step, run.at(step))
    bucket.client.delete_object(Bucket=bucket.name, Key="run/step-4-rank0.tar.gz")
    data = bytearray(bucket.get("run/step-3-rank0.tar.gz"))
    data[len(data) // 2] ^= 1
    bucket.put("run/step-3-rank0.tar.gz", bytes(data))
    bucket.put("run/step-2-rank0.tar.gz", bytes(data[: len(data) // 2]))
    assert [one.step for one in manager.all()] == [1, 2, 3]
    with pytest.warns(UserWarning, match="is passed over") as caught:
        restored = manager.restore_latest(run.at(0))
    assert restored is not None
    assert restored.step == run.step == 1
    assert [str(one.message)[:32] for one in caught] == [
        f"the checkpoint of step {step} is pass" for step in (4, 3, 2)
    ]
    bucket.put("run/step-1-rank0.tar.gz", b"")
    with (
        pytest.warns(UserWarning, match="is passed over"),
        pytest.raises(pyckpt.CheckpointError, match=r"none of the 3 checkpoints in s3://.* can be"),
    ):
        manager.restore_latest(run.state)


@pytest.mark.parametrize("request_", ["HeadObject", "GetObject"])
@pytest.mark.parametrize(
    ("fault", "number"),
    [(answer(503, "SlowDown"), 5), (answer(403, "AccessDenied"), 13), (reset, 104)],
    ids=["throttled", "refused", "reset"],
)
def test_a_store_that_does_not_answer_is_no_damage(
    run: Run, bucket: Bucket, no_pauses: None, request_: str, fault: Fault, number: int
) -> None:
    """An older checkpoint would be restored, and the newer one removed later."""
    manager = pyckpt.CheckpointManager(bucket.url("run"))
    for step in (1, 2):
        manager.save(step, run.at(step))
    bucket.proxy.rule(f"{request_} .*step-2", fault)
    with pytest.raises(pyckpt.CheckpointError) as caught:
        manager.restore_latest(run.at(0))
    place = bucket.url("run/step-2-rank0.tar.gz")
    assert (caught.value.path, caught.value.errno) == (place, number)
    assert run.step == 0


def test_one_that_is_removed_while_it_is_read(run: Run, bucket: Bucket) -> None:
    manager = pyckpt.CheckpointManager(bucket.url("run"))
    for step in (1, 2):
        manager.save(step, run.at(step))
    bucket.proxy.rule("(Get|Head)Object .*step-2", answer(404, "NoSuchKey"))
    with pytest.warns(UserWarning, match="step 2 is passed over"):
        assert manager.restore_latest(run.at(0)) is not None
    assert run.step == 1


@pytest.mark.parametrize(
    ("fault", "number"), [((403, "AccessDenied"), 13), ((404, "NoSuchBucket"), 2)]
)
def test_a_listing_that_fails_is_not_an_empty_one(
    run: Run, bucket: Bucket, fault: tuple[int, str], number: int
) -> None:
    manager = pyckpt.CheckpointManager(bucket.url("run"))
    manager.save(1, run.at(1))
    bucket.proxy.rule("ListObjects", answer(*fault))
    for ask in (manager.all, manager.latest):
        with pytest.raises(OSError, match=fault[1]) as caught:
            ask()
        assert (caught.value.errno, caught.value.filename) == (number, bucket.url("run/"))
    with pytest.raises(pyckpt.CheckpointError, match=fault[1]) as failed:
        manager.restore_latest(run.at(0))
    assert (failed.value.errno, failed.value.path) == (number, bucket.url("run/"))
    assert run.step == 0


def test_a_bucket_that_is_not_there(run: Run, bucket: Bucket) -> None:
    manager = pyckpt.CheckpointManager("s3://no-such-bucket/run")
    with pytest.raises(pyckpt.CheckpointError, match="NoSuchBucket"):
        manager.restore_latest(run.state)
    with pytest.raises(pyckpt.CheckpointError, match="NoSuchBucket"):
        manager.save(1, run.state)


SCRIPT = """
import sys, torch, pyckpt
model = torch.nn.Linear(2, 2)
state = pyckpt.State(model, torch.optim.SGD(model.parameters(), lr=0.1))
manager = pyckpt.CheckpointManager(sys.argv[1], keep_last=2)
for step in (1, 2, 3):
    torch.nn.init.constant_(model.weight, step)
    manager.save(step, state)
"""


def test_a_process_that_is_killed_before_the_list(run: Run, bucket: Bucket) -> None:
    bucket.proxy.rule("PutObject .*checkpoints", delay(60), after=2)
    script = [sys.executable, "-c", SCRIPT, bucket.url("run")]
    with subprocess.Popen(script) as process:
        while sum("checkpoints" in path for _, path in put_requests(bucket.proxy)) < 3:
            assert process.poll() is None
            time.sleep(0.05)
        process.kill()
    bucket.proxy.forget_rules()
    assert [one["step"] for one in listed(bucket)] == [1, 2]
    manager = pyckpt.CheckpointManager(bucket.url("run"), keep_last=2)
    assert [one.step for one in manager.all()] == [1, 2, 3]
    restored = manager.restore_latest(run.at(0))
    assert restored is not None
    assert restored.step == run.step == 3
    manager.save(4, run.at(4))
    assert [one["step"] for one in listed(bucket)] == [3, 4]
    assert archives(bucket) == [f"run/step-{step}-rank0.tar.gz" for step in (3, 4)]


def test_a_clock_that_is_fast(run: Run, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not in the list is put in order by the store's clock. So is the list."""
    fast = SimpleNamespace(time=lambda: time.time() + 3600)
    monkeypatch.setattr(manager_module, "time", fast)
    manager = pyckpt.CheckpointManager(folder)
    manager.save(1, run.at(1))
    pyckpt.save_checkpoint(run.at(2), f"{folder}/step-2-rank0.tar.gz".replace("{a}", "{{a}}"))
    assert [one.step for one in manager.all()] == [1, 2]


def put_requests(proxy: Proxy) -> list[tuple[str, str]]:
    return [one for one in proxy.requests if one[0] == "PutObject"]


def listed(bucket: Bucket) -> list[dict[str, Any]]:
    checkpoints: list[dict[str, Any]] = json.loads(bucket.get("run/checkpoints.json"))[
        "checkpoints"
    ]
    return checkpoints


def test_files_without_the_first_ranks_do_not_count(run: Run, folder: str) -> None:
    manager = pyckpt.CheckpointManager(folder, suffix=".tar", keep_last=2)
    manager.save(1, run.at(1))
    for rank in (1, 2):
        pyckpt.save(run.state.state_dict(), f"{folder}/step-2-rank{rank}.tar")
    assert [one.step for one in manager.all()] == [1]
    manager.save(3, run.at(3))
    assert [one.step for one in manager.all()] == [1, 3]
    assert pyckpt.remove(f"{folder}/step-2-rank1.tar").result() is False


def test_a_list_that_is_damaged(run: Run, bucket: Bucket) -> None:
    manager = pyckpt.CheckpointManager(bucket.url("run"))
    manager.save(1, run.at(1))
    bucket.put("important", b"x")
    foreign = {"step": 7, "files": ["../important"], "metrics": {}, "saved_at": 1.0}
    for text in ("", "{", "\xff", "[]", json.dumps({"checkpoints": [foreign]})):
        bucket.put("run/checkpoints.json", text.encode("latin-1"))
        with pytest.warns(UserWarning, match=r"s3://.*checkpoints\.json is damaged"):
            assert [one.step for one in manager.all()] == [1]


def test_other_objects_stay(run: Run, bucket: Bucket) -> None:
    others = ["run/", "run/notes.txt", "run/step-1", "run/sub/step-0-rank0.tar.gz"]
    for key in others:
        bucket.put(key, b"")
    manager = pyckpt.CheckpointManager(bucket.url("run"), keep_last=1)
    for step in (1, 2):
        manager.save(step, run.at(step))
    own = ["run/checkpoints.json", "run/step-2-rank0.tar.gz"]
    assert bucket.keys() == sorted([*others, *own])


def test_options_go_everywhere(run: Run, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("AWS_") and name != "AWS_EC2_METADATA_DISABLED":
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    options = {"endpoint_url": bucket.proxy.address, "key": "key", "secret": "secret"}
    manager = pyckpt.CheckpointManager(bucket.url("run"), keep_last=1, storage_options=options)
    for step in (1, 2):
        manager.save(step, run.at(step))
    assert manager.restore_latest(run.at(0)) is not None
    assert run.step == 2
    assert archives(bucket) == ["run/step-2-rank0.tar.gz"]
    with pytest.raises(pyckpt.OptionError, match="cannot have 'nonsense'"):
        pyckpt.CheckpointManager(bucket.url("run"), storage_options={"nonsense": 1})


@pytest.mark.parametrize("kind", ["full", "sharded"])
@pytest.mark.parametrize("asynchronous", [0, 1])
def test_ranks(bucket: Bucket, kind: str, asynchronous: int) -> None:
    server = bucket.proxy.address
    run_ranks("manager_worker.py", bucket.url("run"), kind, asynchronous, server, timeout=200)
    names = [f"run/step-{step}-rank{rank}.tar" for step in (2, 3) for rank in (0, 1)]
    if kind == "full":
        names = [name for name in names if "rank0" in name]
    assert archives(bucket) == names
    assert [one["step"] for one in listed(bucket)] == [3, 2]
