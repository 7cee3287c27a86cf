"""Saves and loads in process groups: four real ranks, in groups of two."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

import pyckpt
from tests.launch import TIMEOUT_SECONDS, run_ranks

pytestmark = pytest.mark.timeout(TIMEOUT_SECONDS)


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of the files, and what each rank reports of each scenario."""
    out, folder = (tmp_path_factory.mktemp(name) for name in ("out", "folder"))
    run_ranks("groups_worker.py", out, folder, ranks=4)
    return folder, [json.loads((out / f"{rank}.json").read_text()) for rank in range(4)]


Tried = tuple[Path, list[dict[str, Any]]]


def got(tried: Tried, scenario: str) -> list[Any]:
    """What each rank got, or the error that was raised there."""
    return [next(iter(report[scenario].values())) for report in tried[1]]


def next_random(seed: int) -> float:
    return random.Random(seed).random()


def test_what_a_channel_tells_and_carries(tried: Tried) -> None:
    assert got(tried, "transfer") == [
        [0, 2, 0, 0, 1, 1],
        [1, 2, 1, 0, 1, 1],
        [0, 2, 2, 2, 3, 3],
        [1, 2, 3, 2, 3, 3],
    ]


def test_groups_save_different_files_at_the_same_time(tried: Tried) -> None:
    folder = tried[0]
    first, second = folder / "pair-0-of-4-0.tar.gz", folder / "pair-2-of-4-2.tar.gz"
    assert got(tried, "save") == [[str(first)]] * 2 + [[str(second)]] * 2
    weights = []
    for path, ranks in ((first, (0, 1)), (second, (2, 3))):
        contents = pyckpt.load(path)
        states = [random.Random(rank).getstate() for rank in ranks]
        assert [one["python"] for one in contents["rng"]] == states
        weights.append(contents["state"]["model"]["weight"])
    assert not weights[0].equal(weights[1])


def test_asynchronous_saves_of_groups(tried: Tried) -> None:
    of_first, of_second = ([str(tried[0] / f"async-{n}-{i}.tar") for i in (0, 1)] for n in (0, 2))
    assert got(tried, "start") == [of_first] * 2 + [of_second] * 2
    assert all(pyckpt.verify(path).ok for path in (*of_first, *of_second))


def test_groups_load_what_they_saved(tried: Tried) -> None:
    # Only the first rank of a group shows progress.
    assert got(tried, "load") == [
        [next_random(rank), 2, True, told] for rank, told in enumerate([True, False] * 2)
    ]


def test_random_states_go_by_the_place_in_the_group(tried: Tried) -> None:
    assert got(tried, "load_elsewhere") == [[], [next_random(0)], [next_random(1)], []]


def test_a_rank_is_in_several_groups(tried: Tried) -> None:
    saved = got(tried, "overlap")
    assert saved[1] == saved[2] == [str(tried[0] / "middle-1.tar")]


@pytest.mark.parametrize("scenario", ["overlap", "outside_async", "outside_load"])
def test_a_rank_outside_learns_it_at_once(tried: Tried, scenario: str) -> None:
    for rank in (0, 3):
        message = f"rank {rank} is not in the process_group: only its ranks make this call"
        assert got(tried, scenario)[rank] == ["OptionError", message, rank]


@pytest.mark.parametrize(
    ("scenario", "message"),
    [
        ("two_dimensions", "DeviceMesh with 2 dimensions (pairs, inside): give one of them"),
        ("not_a_group", "must be a group of torch.distributed or a DeviceMesh, not list"),
    ],
)
def test_what_is_no_group_is_refused(tried: Tried, scenario: str, message: str) -> None:
    for kind, text, _ in got(tried, scenario):
        assert kind == "OptionError"
        assert message in text


@pytest.mark.parametrize(
    ("scenario", "kind", "message", "rank"),
    [
        ("failing", "CheckpointError", "failed on rank 3: KeyError: 'no such layer'", 3),
        ("failing_async", "CheckpointError", "committing the checkpoint failed on rank 2", 2),
        ("other_call", "CheckpointError", "rank 2 called save_checkpoint, and rank 3 called", 3),
        (
            "extra",
            "ShardedStateError",
            "'state/extra/seen' differs between ranks: 2 on rank 2, 5 on rank 3",
            3,
        ),
        (
            "parts",
            "ShardedStateError",
            "weight 'weight' of rank 3 has nothing in common with rank 2's",
            3,
        ),
    ],
)
def test_a_group_that_fails_does_not_touch_another(
    tried: Tried, scenario: str, kind: str, message: str, rank: int
) -> None:
    first, second, third, fourth = got(tried, scenario)
    assert third == fourth
    assert (third[0], third[2]) == (kind, rank)
    assert message in third[1]
    assert first == second
    assert pyckpt.verify(*first).ok


def test_a_group_of_one(tried: Tried) -> None:
    assert got(tried, "alone") == [[str(tried[0] / f"alone-{rank}.tar")] for rank in range(4)]


def test_a_group_of_all_ranks(tried: Tried) -> None:
    assert got(tried, "everybody") == [[str(tried[0] / "all-0.tar")]] * 4
