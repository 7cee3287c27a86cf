"""Real DeepSpeed engines on two gloo ranks, whose archives are in a store."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.launch import TIMEOUT_SECONDS, run_without_agent
from tests.stores import KEYS, Bucket, answer

pytestmark = [pytest.mark.frameworks, pytest.mark.timeout(2 * TIMEOUT_SECONDS)]

OLD = b"the old object"


def run(bucket: Bucket, mode: str, stage: int, out: Path, name: str) -> list[dict[str, Any]]:
    """What both ranks report."""
    environment = {**KEYS, "AWS_ENDPOINT_URL": bucket.proxy.address, "DS_ACCELERATOR": "cpu"}
    codes = run_without_agent(
        "deepspeed_worker.py", mode, stage, out, bucket.url(name), environment=environment
    )
    assert codes == [0, 0]
    return [json.loads((out / f"{mode}-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize(("stage", "suffix"), [(1, ".tar.gz"), (3, ".tar")])
def test_training_goes_on_from_a_store(
    bucket: Bucket, tmp_path: Path, stage: int, suffix: str
) -> None:
    name = f"x-rank{{rank}}{suffix}"
    saved = run(bucket, "save", stage, tmp_path, name)
    keys = [f"x-rank{rank}{suffix}" for rank in range(2)]
    assert [report["paths"] for report in saved] == [[bucket.url(key) for key in keys]] * 2
    assert bucket.keys() == keys
    assert bucket.uploads() == []
    loaded = run(bucket, "load", stage, tmp_path, name)
    assert [report["losses"] for report in loaded] == [report["losses"] for report in saved]
    assert [report["drawn"] for report in loaded] == [report["drawn"] for report in saved]
    assert [report["per_rank"] for report in loaded] == [{"seen": 5}, {"seen": 6}]

    (tmp_path / "extracted").mkdir()  # what DeepSpeed loads alone
    for key in keys:
        archive = tmp_path / key
        archive.write_bytes(bucket.get(key))
        subprocess.run(["tar", "xf", archive, "-C", tmp_path / "extracted"], check=True)
    resumed = run(bucket, "resume", stage, tmp_path, "unused")
    assert [report["losses"] for report in resumed] == [report["losses"] for report in saved]


def test_a_rank_that_cannot_upload_fails_all(bucket: Bucket, tmp_path: Path) -> None:
    keys = [f"x-rank{rank}.tar" for rank in range(2)]
    for key in keys:
        bucket.put(key, OLD)
    bucket.proxy.rule("(PutObject|CreateMultipartUpload) .*rank1", answer(403, "AccessDenied"))
    first, second = run(bucket, "fail-store", 1, tmp_path, "x-rank{rank}.tar")
    assert first["error"] == second["error"]
    kind, message, rank = first["error"]
    assert (kind, rank) == ("CheckpointError", 1)
    assert "AccessDenied" in message
    assert bucket.url("x-rank1.tar") in message
    assert first["restored"]
    assert second["restored"]
    assert len(first["losses"]) == 3
    assert [bucket.get(key) for key in keys] == [OLD, OLD]
    assert bucket.uploads() == []
