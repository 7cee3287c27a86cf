"""Several ranks that save to a store, one of which may fail."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

import pyckpt
from tests.launch import run_ranks
from tests.stores import Bucket, answer

pytestmark = pytest.mark.timeout(300)

OLD = b"the old object"
BIG = 10 << 20  # of each tensor, so that each rank has more than a part
KEYS = ["rank0.tar", "rank1.tar"]


def save(bucket: Bucket, nbytes: int, failing: int = -1) -> None:
    for key in KEYS:
        bucket.put(key, OLD)
    url, server = bucket.url("rank{rank}.tar"), bucket.proxy.address
    run_ranks("stores_worker.py", url, server, nbytes, failing, timeout=200)
    assert bucket.uploads() == []
    assert bucket.keys() == KEYS


@pytest.mark.parametrize("nbytes", [100, BIG], ids=["small", "big"])
def test_every_rank_uploads_its_own(bucket: Bucket, tmp_path: Path, nbytes: int) -> None:
    save(bucket, nbytes)
    for key in KEYS:
        (tmp_path / key).write_bytes(bucket.get(key))
        assert pyckpt.verify(tmp_path / key).ok
    folder = tmp_path / "all"
    folder.mkdir()
    for key in KEYS:
        subprocess.run(["tar", "-xf", tmp_path / key, "-C", folder], check=True)
    assert (folder / ".metadata").exists()


def test_keys_are_taken_as_they_are(bucket: Bucket) -> None:
    """No key is a path: slashes side by side, and what URLs of the web give a meaning to."""
    for folder in ("/", "run//a b%2F#?é+/", "run//"):
        url, server = bucket.url(folder + "rank{rank}.tar"), bucket.proxy.address
        run_ranks("stores_worker.py", url, server, 100, -1, timeout=200)
        paths = [bucket.url(folder + key) for key in KEYS]
        for path in paths:
            assert pyckpt.verify(path).ok
            model = nn.ParameterDict({name: torch.zeros(25) for name in "abcd"})
            with pytest.warns(UserWarning, match="random states of 2 ranks"):
                pyckpt.load_checkpoint(path, pyckpt.State(model))
            torch.manual_seed(0)  # as the worker has it
            expected = torch.randn(25)
            assert all(torch.equal(model[name], expected) for name in "abcd")
    assert len(bucket.keys()) == 6


@pytest.mark.parametrize(
    ("step", "nbytes", "failing"),
    [
        ("CreateMultipartUpload", BIG, 0),
        ("UploadPart", BIG, 1),
        ("CompleteMultipartUpload", BIG, 1),
        ("PutObject", 100, 1),
    ],
)
def test_one_rank_fails(bucket: Bucket, step: str, nbytes: int, failing: int) -> None:
    bucket.proxy.rule(f"{step} .*rank{failing}", answer(503, "SlowDown"))
    save(bucket, nbytes, failing)
    assert [bucket.get(key) for key in KEYS] == [OLD, OLD]


def test_the_last_commit_fails(bucket: Bucket) -> None:
    """What others have completed cannot be taken back, unless the bucket has versions."""
    bucket.proxy.rule("CompleteMultipartUpload .*rank0", answer(403, "AccessDenied"))
    save(bucket, BIG, 0)
    assert bucket.get(KEYS[0]) == OLD
    assert bucket.get(KEYS[1]) != OLD  # whole, and of a save that failed
    versioning = {"Status": "Enabled"}
    bucket.client.put_bucket_versioning(Bucket=bucket.name, VersioningConfiguration=versioning)
    save(bucket, BIG, 0)
    assert [bucket.get(key) for key in KEYS] == [OLD, OLD]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("place", ["a store", "a disk"])
def test_a_checkpoint_that_is_replaced_between_two_ranks(
    bucket: Bucket, tmp_path: Path, when: str, place: str
) -> None:
    for name, value in (("x", 1.0), ("other", 2.0)):
        model = nn.Linear(3, 2)
        nn.init.constant_(model.weight, value)
        pyckpt.save_checkpoint(pyckpt.State(model), tmp_path / f"{name}.tar")
    path = str(tmp_path / "x.tar")
    if place == "a store":
        bucket.put("x.tar", (tmp_path / "x.tar").read_bytes())
        path = bucket.url("x.tar")
    environment = json.dumps({k: v for k, v in os.environ.items() if k.startswith("AWS_")})
    run_ranks("replaced_worker.py", when, path, tmp_path / "other.tar", environment, timeout=200)
