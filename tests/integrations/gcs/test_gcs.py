"""gs:// by gcsfs, against an emulator of Google's store on this machine."""

from __future__ import annotations

import errno
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gcsfs
import pytest
import torch

import pyckpt
from pyckpt.cli import main
from tests.stores import served_by

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(250)]

# More than one piece of an upload, and nothing that compresses.
LARGE = {"w": torch.randint(256, (30 << 20,), dtype=torch.uint8), "a": {"b": torch.arange(5)}}
HALF_NBYTES = 15 << 20
_EMULATOR = """
import sys
from gcp_storage_emulator.server import create_server
create_server("127.0.0.1", int(sys.argv[1]), in_memory=True).run()
"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with served_by(lambda port: ["-c", _EMULATOR, port]) as found:
        yield found


@pytest.fixture
def options(address: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
    return {"endpoint_url": address, "token": "anon", "project": "p"}


@pytest.fixture
def bucket(options: dict[str, Any], request: pytest.FixtureRequest) -> str:
    """The URL of a new bucket."""
    name = re.sub(r"\W|_", "-", request.node.name).strip("-")[:60]
    gcsfs.GCSFileSystem(**options).mkdir(name)
    return f"gs://{name}"


def is_large(loaded: Any) -> bool:
    return all(map(torch.equal, (loaded["w"], loaded["a"]["b"]), (LARGE["w"], LARGE["a"]["b"])))


def test_saves_and_loads(bucket: str, options: dict[str, Any]) -> None:
    for name in ("x.tar.gz", "x.pt", "x.tar.zst"):
        url = f"{bucket}/run/{name}"
        pyckpt.save(LARGE, url, storage_options=options)
        assert is_large(pyckpt.load(url, storage_options=options))
        one = pyckpt.load(url, keys="a/b", storage_options=options)
        assert torch.equal(one["a"]["b"], LARGE["a"]["b"])
        assert pyckpt.verify(url, storage_options=options).ok
        assert main(["ls", url]) == main(["verify", url]) == 0
    pyckpt.async_save({"n": 1}, url, storage_options=options).result()
    assert pyckpt.load(url, storage_options=options) == {"n": 1}
    pyckpt.remove(url, storage_options=options).result()
    with pytest.raises(FileNotFoundError, match=r"x\.tar\.zst"):
        pyckpt.load(url, storage_options=options)


def test_a_manager(bucket: str, options: dict[str, Any]) -> None:
    model = torch.nn.Linear(3, 4)
    state = pyckpt.State(model, torch.optim.AdamW(model.parameters()))
    manager = pyckpt.CheckpointManager(f"{bucket}/run", keep_last=2, storage_options=options)
    for step in range(1, 5):
        manager.save(step, state, metrics={"loss": 1 / step})
    assert [one.step for one in manager.all()] == [3, 4]
    restored = manager.restore_latest(state)
    assert restored is not None
    assert restored.step == 4


def test_a_transaction(bucket: str, options: dict[str, Any]) -> None:
    for number in (1, 2):
        with pyckpt.transaction(f"{bucket}/step", storage_options=options) as folder:
            pyckpt.save({"n": number}, folder / "m.pt.gz")
            (folder / f"only-{number}.txt").write_text("x")
    found = gcsfs.GCSFileSystem(**options).find(f"{bucket}/step")
    assert sorted(Path(name).name for name in found) == ["m.pt.gz", "only-2.txt"]
    assert pyckpt.load(f"{bucket}/step/m.pt.gz", storage_options=options) == {"n": 2}


_KILLED = """
import os, sys, torch, pyckpt
def stop(done, total):
    if done > {half}:
        os.kill(os.getpid(), 9)
large = torch.randint(256, (30 << 20,), dtype=torch.uint8)
pyckpt.save(large, {url!r}, progress=stop, storage_options={options!r})
"""


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_an_upload_that_ends_midway(bucket: str, options: dict[str, Any], how: str) -> None:
    url = f"{bucket}/x.tar.gz"
    pyckpt.save(LARGE, url, storage_options=options)

    def stop(done: int, _: int | None) -> None:
        if done > HALF_NBYTES:
            raise KeyboardInterrupt

    if how == "stopped":
        with pytest.raises(KeyboardInterrupt):
            pyckpt.save({"w": LARGE["w"] + 1}, url, progress=stop, storage_options=options)
    else:
        script = _KILLED.format(half=HALF_NBYTES, url=url, options=options)
        assert subprocess.run([sys.executable, "-c", script], timeout=200).returncode == -9
    assert is_large(pyckpt.load(url, storage_options=options))
    assert gcsfs.GCSFileSystem(**options).find(bucket) == [url.removeprefix("gs://")]
    assert not [one for one in threading.enumerate() if one.name == "pyckpt-upload"]


def test_a_bucket_that_is_not_there(options: dict[str, Any]) -> None:
    with pytest.raises(pyckpt.CheckpointError, match="gs://nothing/x") as caught:
        pyckpt.save({}, "gs://nothing/x.tar", storage_options=options)
    assert caught.value.errno == errno.ENOENT
