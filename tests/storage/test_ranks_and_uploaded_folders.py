"""Transactions of several ranks in stores, on one machine or as on several, and one rank fails."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.launch import run_ranks
from tests.stores import Bucket, answer, delay

pytestmark = pytest.mark.timeout(300)

OLD = b"old"
OUTSIDE = {"run/x2/step": OLD, "run/xy": OLD}


@pytest.fixture
def old(bucket: Bucket) -> dict[str, bytes]:
    """What is in the bucket before."""
    names = ("big0", "big1", "deep/old", "small0")
    objects = {**{f"run/x/{name}": OLD for name in names}, **OUTSIDE}
    for key, data in objects.items():
        bucket.put(key, data)
    return objects


def contents(bucket: Bucket) -> dict[str, bytes]:
    return {one: bucket.get(one) for one in sorted(bucket.keys())}


def run(
    bucket: Bucket, folder: Path, ranks: int, own: bool, in_block: int = -1, failing: int = -1
) -> None:
    """Each rank writes big{rank} and small{rank}. ``failing`` is the rank that has to be named."""
    for rank in range(ranks):
        (folder / str(rank)).mkdir(exist_ok=True)
    plan = {"own": own, "block": in_block, "failing": failing, "killed": -1}
    arguments = [bucket.url("run/x"), bucket.proxy.address, folder, json.dumps(plan)]
    run_ranks("uploaded_folder_worker.py", *arguments, ranks=ranks, timeout=150)
    for rank in range(ranks):
        assert os.listdir(folder / str(rank)) == []
        (folder / str(rank)).rmdir()
    assert bucket.uploads() == []


def expected(ranks: int) -> dict[str, bytes]:
    big = {f"run/x/big{rank}": bytes([rank]) * (9 << 20) for rank in range(ranks)}
    return big | {f"run/x/small{rank}": bytes([rank]) for rank in range(ranks)}


@pytest.mark.parametrize(("ranks", "own"), [(2, True), (2, False), (4, True), (4, False)])
def test_ranks(
    bucket: Bucket, old: dict[str, bytes], tmp_path: Path, ranks: int, own: bool
) -> None:
    run(bucket, tmp_path, ranks, own)
    assert contents(bucket) == {**expected(ranks), **OUTSIDE}
    appeared = [
        path.partition("?")[0].rpartition("/")[2]
        for name, path in bucket.proxy.requests
        if name in ("CompleteMultipartUpload", "PutObject")
    ]
    assert len(appeared) == 2 * ranks
    if own:  # the first rank's at last
        assert set(appeared[-2:]) == {"big0", "small0"}
    else:  # they share the large ones, and the first rank has all small ones
        assert all(name.startswith("big") for name in appeared[:ranks])
        assert all(name.startswith("small") for name in appeared[ranks:])


@pytest.mark.parametrize(
    ("ranks", "own", "in_block", "rule", "failing"),
    [
        (2, True, 1, "", 1),
        (4, False, 0, "", 0),
        (2, True, -1, "UploadPart .*big1", 1),
        (4, True, -1, "CreateMultipartUpload .*big2", 2),
        (2, True, -1, "CompleteMultipartUpload .*big1", 1),
    ],
)
def test_one_rank_fails(
    bucket: Bucket,
    old: dict[str, bytes],
    tmp_path: Path,
    ranks: int,
    own: bool,
    in_block: int,
    rule: str,
    failing: int,
) -> None:
    if rule:
        bucket.proxy.rule(rule, answer(403, "AccessDenied"))
    run(bucket, tmp_path, ranks, own, in_block, failing)
    assert contents(bucket) == old


def test_the_first_rank_fails_at_last(
    bucket: Bucket, old: dict[str, bytes], tmp_path: Path
) -> None:
    """All others have appeared by then."""
    bucket.put("run/x/small1", OLD)
    bucket.proxy.rule("PutObject .*small0", answer(403, "AccessDenied"))
    run(bucket, tmp_path, 2, own=True, failing=0)
    appeared = {key: data for key, data in expected(2).items() if key != "run/x/small0"}
    assert contents(bucket) == {**old, **appeared}
    versioning = {"Status": "Enabled"}
    bucket.client.put_bucket_versioning(Bucket=bucket.name, VersioningConfiguration=versioning)
    old["run/x/small1"] = OLD
    for key in appeared:
        bucket.put(key, OLD)
    run(bucket, tmp_path, 2, own=True, failing=0)
    assert contents(bucket) == old


def test_a_rank_that_is_killed_while_it_uploads(
    bucket: Bucket, old: dict[str, bytes], tmp_path: Path
) -> None:
    bucket.proxy.rule("UploadPart .*big1", delay(60))
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
    plan = json.dumps({"own": True, "block": -1, "failing": -1, "killed": 1})
    arguments = [bucket.url("run/x"), bucket.proxy.address, tmp_path, plan]
    run_ranks("uploaded_folder_worker.py", *arguments, must_succeed=False, timeout=150)
    assert (tmp_path / "survivor").read_text().startswith("uploading")
    assert contents(bucket) == old
    assert bucket.uploads() == ["run/x/big1"]
    assert os.listdir(tmp_path / "0") == []
