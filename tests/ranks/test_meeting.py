"""Meetings of several ranks, which are threads here; their store is a real one."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from pyckpt.errors import CheckpointError
from pyckpt.ranks import meeting

KEYS = ("came", "codes", "all", "0", "2", "5")


@pytest.fixture(params=["hash", "file", "tcp"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "hash":
        return dist.HashStore()
    if request.param == "file":
        return dist.FileStore(str(tmp_path / "store"), -1)
    return dist.TCPStore("localhost", 0, is_master=True)


MEMBERS = (0, 2, 5)  # of a group


def test_ranks_that_all_come(store: Any) -> None:
    with ThreadPoolExecutor(3) as ranks:
        for number in range(3):
            came = [
                ranks.submit(meeting.meet, store, "save", number, MEMBERS, rank, 60)
                for rank in MEMBERS
            ]
            for one in came:
                one.result()
    # The meetings before the last one have left nothing in the store.
    left = [f"{n}/{key}" for n in range(3) for key in KEYS]
    assert [key for key in left if store.check([key])] == left[2 * len(KEYS) :]


def test_a_rank_that_waits_names_the_others(
    store: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(meeting, "_PATIENCE_SECONDS", 0.1)
    with caplog.at_level(logging.WARNING), pytest.raises(CheckpointError) as caught:
        meeting.meet(store, "save_checkpoint", 0, range(12), 1, 0.5)
    [record] = caplog.records
    assert record.getMessage() == (
        "save_checkpoint waits for ranks 0, 2, 3, 4, 5, 6, 7, 8 and 3 more of 12. Call it on every "
        "rank. It gives up after 0 seconds."
    )
    assert "waited 0 seconds for ranks 0, 2" in str(caught.value)
    assert "Call it on every rank" in str(caught.value)
    assert caught.value.rank == 0  # the first one that lacks: the same on every rank that waits


def test_a_rank_that_comes_too_late_is_told_at_once(store: Any) -> None:
    with pytest.raises(CheckpointError, match="waited 0 seconds for rank 3 of 2"):
        meeting.meet(store, "save", 0, (1, 3), 1, 0.2)
    with pytest.raises(CheckpointError, match=r"came too late on rank 3: others .* every rank"):
        meeting.meet(store, "save", 0, (1, 3), 3, 60)
    with ThreadPoolExecutor(2) as ranks:
        for one in [ranks.submit(meeting.meet, store, "save", 1, (1, 3), n, 60) for n in (1, 3)]:
            one.result()


def test_ranks_that_make_different_calls(store: Any) -> None:
    calls = {0: "save", 2: "save", 5: "load"}
    with ThreadPoolExecutor(3) as ranks:
        came = [
            ranks.submit(meeting.meet, store, call, 0, MEMBERS, rank, 60)
            for rank, call in calls.items()
        ]
    for one in came:
        with pytest.raises(CheckpointError, match="rank 0 called save, and rank 5 called load"):
            one.result()


class LastMoment:
    """A store in which the last rank comes just when the first one gives up."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def add(self, key: str, amount: int) -> int:
        if amount == meeting._GIVEN_UP:
            self._store.add(key, 1)
            self._store.set(key.replace("came", "all"), "same")
        return int(self._store.add(key, amount))


def test_the_last_moment_counts(store: Any) -> None:
    meeting.meet(LastMoment(store), "save", 0, range(2), 0, 0.1)
    assert store.check(["0/all"])
