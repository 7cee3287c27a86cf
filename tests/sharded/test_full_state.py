"""Sharded states that the first rank writes as one file, when memory or the disk is short.

training/test_sharded_training.py has what such files hold.
"""

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import pyckpt
from tests.launch import run_ranks

pytestmark = [pytest.mark.timeout(300), pytest.mark.newest_torch]

RANKS = 3
OTHER_NBYTES = 24 << 20  # buffers of the pipeline, Python's own


def launch(scenario: str, folder: Path) -> list[dict[str, Any]]:
    """What each rank reported."""
    run_ranks("full_state_worker.py", scenario, folder, ranks=RANKS, timeout=200)
    return [json.loads((folder / f"{scenario}-{rank}.json").read_text()) for rank in range(RANKS)]


def test_memory_of_a_save(tmp_path: Path) -> None:
    """At most three batches on the first rank, and a batch's share on the others."""
    first, *others = launch("memory", tmp_path)
    assert first["growth"] < 3 * first["batch"] + OTHER_NBYTES < first["state"]
    for other in others:
        assert other["growth"] < first["batch"] // RANKS + OTHER_NBYTES


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = pyckpt.load(folder / name)["state"]["model"]
    return found


def test_a_full_disk_stops_all_ranks(tmp_path: Path) -> None:
    """All raise the same, nothing is left of the file, an older one stays, and ranks go on."""
    reports = launch("disk", tmp_path)
    assert all(report == reports[0] for report in reports)
    for name, error in zip(["new.tar", "good.tar"], reports[0]["errors"], strict=True):
        kind, message, rank, code, path = error
        assert (kind, rank, code) == ("CheckpointError", 0, errno.EFBIG)
        assert path == str(tmp_path / name)
        assert "writing the checkpoint failed on rank 0" in message
    assert reports[0]["there"] == ["good.tar"]
    assert reports[0]["later"] == []
    old, new = weights(tmp_path, "good.tar"), weights(tmp_path, "later.tar")
    assert len(old) == len(new) == 12
    assert all(torch.equal(old[key] + 1, new[key]) for key in old)
