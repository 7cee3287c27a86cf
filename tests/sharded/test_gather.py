"""Tensors that the first rank puts together of what all ranks have. See gather_worker.py."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pyckpt.sharded import gather
from pyckpt.sharded.gather import Gathered, Piece, batches_of, requests_of
from tests.launch import run_ranks

RANKS = 4
SOON_SECONDS = 10

pytestmark = [pytest.mark.timeout(300), pytest.mark.newest_torch]


def launch(scenario: str, folder: Path, **options: Any) -> list[dict[str, Any]]:
    """What each rank reported; nothing of ranks that died."""
    run_ranks("gather_worker.py", scenario, folder, ranks=RANKS, timeout=200, **options)
    paths = [folder / f"{scenario}-{rank}.json" for rank in range(RANKS)]
    return [json.loads(path.read_text()) if path.exists() else {} for path in paths]


def test_tensors_arrive_whole(tmp_path: Path) -> None:
    """Of any types, shapes and cuts, in batches of any size, out of any memory."""
    for report in launch("whole", tmp_path):
        assert report
        assert [name for name, is_right in report.items() if not is_right] == []


def test_every_rank_raises_what_one_has_met(tmp_path: Path) -> None:
    reports = launch("faults", tmp_path)
    for name in reports[0]:
        errors = [report[name][0][:3] for report in reports]
        assert all(error == errors[0] for error in errors)
        kind, message, rank = errors[0]
        assert kind == "CheckpointError"
        expected = 0 if name == "disk" else int(name[-1])
        assert rank == expected, name
        assert f"rank {expected}" in message
        assert "on purpose" in message
        assert all(is_right for _, is_right in (report[name] for report in reports)), name


def test_a_dead_rank_is_noticed_at_once(tmp_path: Path) -> None:
    reports = launch("killed", tmp_path, must_succeed=False)
    assert reports[1] == {}
    for rank in (0, 2, 3):
        kind, message, _, seconds = reports[rank]["killed"]
        assert kind == "CheckpointError"
        assert "rank 1 does not answer" in message
        assert seconds < SOON_SECONDS


def tensor(nbytes: int, *pieces: Piece) -> Gathered:
    return Gathered(torch.uint8, (nbytes,), pieces)


def test_batches_follow_one_another_up_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "BATCH_NBYTES", 10)
    sizes = [4, 6, 1, 20, 0, 3, 0]
    batches = batches_of([tensor(nbytes) for nbytes in sizes])
    assert batches == [range(2), range(2, 3), range(3, 4), range(4, 7)]
    assert batches_of([]) == []


def test_requests_name_the_shards_of_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "BATCH_NBYTES", 10)
    pieces = [Piece(1, 0, (0,), (4,)), Piece(2, 0, (4,), (6,)), Piece(1, 1, (0,), (10,))]
    requests = requests_of([tensor(10, *pieces[:2]), tensor(10, pieces[2])], 3)
    assert requests == [[[], []], [[0], [1]], [[0], []]]
