"""What ranks share, saved to a store by each of them and read back by any number of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pyckpt.cli import main
from pyckpt.storage.sweep import sweep
from tests.launch import run_ranks
from tests.stores import Bucket, answer

pytestmark = [pytest.mark.newest_torch, pytest.mark.timeout(600)]


def run(
    bucket: Bucket, mode: str, folder: Path, ranks: int = 2, layout: str = "fsdp2", **options: Any
) -> list[Any]:
    """What each rank reports."""
    access = {"endpoint_url": bucket.proxy.address, "key": "key", "secret": "secret"}
    arguments = (mode, folder, bucket.url("run"), json.dumps(access), layout)
    run_ranks("sharded_stores_worker.py", *arguments, ranks=ranks, **options)
    paths = [folder / f"{mode}-{ranks}-{rank}.json" for rank in range(ranks)]
    return [json.loads(path.read_text()) for path in paths if path.exists()]


def test_a_run_goes_on_from_a_store_in_any_layout(
    bucket: Bucket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(bucket, "save", tmp_path)
    assert bucket.uploads() == []
    for ranks, layout in ((2, "fsdp2"), (1, "single"), (4, "fsdp2-tp")):
        for report in run(bucket, "load", tmp_path, ranks, layout):
            assert len(report) >= 7
            assert all(outcome == [[], 3] for outcome in report.values()), report
    command = ["verify", bucket.url("run/full.tar.gz"), bucket.url("run/ba3-rank1.tar.gz")]
    assert main(command) == 0  # the other archive lies beside that of rank 1
    bucket.client.delete_object(Bucket=bucket.name, Key="run/ba3-rank0.tar.gz")
    assert main(command) == 1
    missing = f"the archive of rank 0 is not there: {bucket.url('run/ba3-rank0.tar.gz')}"
    assert missing in capsys.readouterr().out


@pytest.mark.parametrize("step", ["CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"])
def test_a_rank_that_cannot_upload_leaves_the_older_checkpoint(
    bucket: Bucket, tmp_path: Path, step: str
) -> None:
    # Each save of a rank has one upload of two parts.
    skipped = 2 if step == "UploadPart" else 1
    bucket.proxy.rule(f"{step} .*rank1", answer(403, "AccessDenied"), after=skipped, times=1)
    for report in run(bucket, "fail", tmp_path):
        kind, message, *ranks, path = report["error"]
        assert (kind, ranks) == ("CheckpointError", [1, 1])
        assert "AccessDenied" in message
        assert path in message
        assert path.startswith(bucket.url("run/rows/"))
        assert path.endswith("-rank1.tar")
        assert (report["older"], report["newer"]) == (1, 3)
    # Two saves of two ranks. What rank 0 uploaded in the other one is gone, too.
    assert len(bucket.keys()) == 5
    assert bucket.uploads() == []


def test_a_rank_that_is_killed_leaves_the_older_checkpoint(bucket: Bucket, tmp_path: Path) -> None:
    run(bucket, "kill", tmp_path, must_succeed=False)
    left = bucket.uploads()  # perhaps that of rank 0, which is ended then, too
    assert any(key.endswith("-rank1.tar") for key in left)
    assert not set(left) & set(bucket.keys())
    assert run(bucket, "older", tmp_path) == [1, 1]
    assert len(list(sweep(bucket.url("run/"), older_than=0))) == len(left)
    assert bucket.uploads() == []
