"""Bytes from rank to rank, between real ranks: see transfer_worker.py."""

import json
from typing import Any

import pytest

from pyckpt.ranks.exchange import Channel
from pyckpt.ranks.transfer import hand_out, tell, to_first
from tests.launch import run_ranks

RANKS = 3

pytestmark = [pytest.mark.timeout(300), pytest.mark.newest_torch]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """By rank, what each scenario saw."""
    folder = tmp_path_factory.mktemp("transfer")
    run_ranks("transfer_worker.py", folder, ranks=RANKS, timeout=200)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]


@pytest.mark.parametrize("scenario", ["first", "handed", "told", "sent", "handed again"])
def test_bytes_arrive(reports: list[dict[str, Any]], scenario: str) -> None:
    for report in reports:
        assert report[scenario]
        assert all(report[scenario])


def test_a_rank_alone() -> None:
    assert to_first(b"a", Channel()) == [b"a"]
    assert hand_out([b"a"], Channel()) == b"a"
    tell(1, Channel())


def test_plans_divide_what_ranks_have(reports: list[dict[str, Any]]) -> None:
    rows = [[[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]], [[6.0, 7.0, 8.0], [9.0, 10.0, 11.0]]]
    rows.append([[12.0, 13.0, 14.0]])
    for turn in range(2):
        plans = [report["planned"][turn] for report in reports]
        for rank, plan in enumerate(plans):
            assert plan["own"]["parts"] == rows[rank]
            assert plan["own"][f"only {rank}"] == [rank]
            assert plan["items"] == plans[0]["every"][rank]
        savers = [rank for rank, plan in enumerate(plans) if "all" in plan["own"]]
        assert len(savers) == 1
        assert savers == [0] or turn == 1  # prefer_first
        assert "schedule" in plans[0]["items"]
        names = ["all", "only 0", "only 1", "only 2", "parts", "schedule"]
        assert plans[0]["metadata"] == plans[0]["paths"] == names
        assert all(plan["metadata"] is None and plan["every"] == [] for plan in plans[1:])


def test_archives_have_all_that_parts_of_an_optimizer_keep(reports: list[dict[str, Any]]) -> None:
    names = [f"{rank}.weight" for rank in range(RANKS)]
    for report in reports:
        found = report["divided"]
        assert found["model"] == names
        assert found["groups"] == [{"params": names, "lr": 0.1}]
        assert found["counts"] == {name: rank for rank, name in enumerate(names)}
        assert found["averages"] == {name: [rank] * 2 for rank, name in enumerate(names)}


@pytest.mark.parametrize(
    ("scenario", "kind", "rank", "text"),
    [
        ("overlapping", "ShardedStateError", 0, "the ranks' shards do not fit together"),
        ("unpicklable", "CheckpointError", 2, "this value cannot be pickled"),
        ("explosive", "CheckpointError", 0, "this value cannot be unpickled"),
    ],
)
def test_all_ranks_raise_what_one_met(
    reports: list[dict[str, Any]], scenario: str, kind: str, rank: int, text: str
) -> None:
    errors = [report[scenario] for report in reports]
    assert all(error == errors[0] for error in errors)
    assert errors[0][0] == kind
    assert errors[0][2] == rank
    assert text in errors[0][1]


def test_no_error_without_a_cause(reports: list[dict[str, Any]]) -> None:
    assert all(report["fine"] == [] for report in reports)
