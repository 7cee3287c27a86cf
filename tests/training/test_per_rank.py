"""What differs by rank is saved for all ranks, and restored to each: four real ranks, and one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import pyckpt
from tests.launch import TIMEOUT_SECONDS, run_ranks

pytestmark = pytest.mark.timeout(TIMEOUT_SECONDS)


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank reports of each scenario."""
    out, folder = (tmp_path_factory.mktemp(name) for name in ("out", "folder"))
    run_ranks("per_rank_worker.py", out, folder, ranks=4)
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(4)]


def got(reports: list[dict[str, Any]], scenario: str) -> list[Any]:
    """What each rank got, or the error that was raised there."""
    return [next(iter(report[scenario].values())) for report in reports]


def own(rank: int, told: list[str]) -> list[Any]:
    keys = ["loader", "stage"] if rank == 3 else ["loader"]
    return [keys, 10 * rank, [rank, rank + 1, rank + 2], told]


@pytest.mark.parametrize("scenario", ["load", "load_async"])
def test_each_rank_gets_its_own(reports: list[dict[str, Any]], scenario: str) -> None:
    assert got(reports, scenario) == [own(rank, []) for rank in range(4)]


def test_fewer_ranks(reports: list[dict[str, Any]]) -> None:
    for rank, (*rest, told) in enumerate(got(reports, "load_by_fewer")):
        assert [*rest, []] == own(rank % 2, [])
        assert "has the per_rank of 4 ranks, and there are 2: ranks without one keep" in told[0]


def test_more_ranks(reports: list[dict[str, Any]]) -> None:
    first, second, *others = got(reports, "load_by_more")
    assert [first[:3], second[:3]] == [own(rank, [])[:3] for rank in (2, 3)]
    for kept in others:
        assert kept[:3] == [["kept"], None, None]
        assert "has the per_rank of 2 ranks, and there are 4" in kept[3][0]


def test_it_is_there_if_a_rank_has_something(reports: list[dict[str, Any]]) -> None:
    assert got(reports, "only_one_has_something") == [["[{}, {}, {'seen': 1}, {}]"]] * 4
    assert got(reports, "none_has_something") == [[["state", "rng"], ["kept"], None, None, []]] * 4


@pytest.mark.parametrize(
    ("scenario", "rank", "message"),
    [
        ("no_pickle", 2, "per_rank['open'] cannot be sent to the rank that writes"),
        ("not_on_the_cpu", 1, "per_rank['loader'] .* a tensor on meta, not on the CPU"),
    ],
)
def test_what_cannot_be_sent_is_refused_on_all_ranks(
    reports: list[dict[str, Any]], scenario: str, rank: int, message: str
) -> None:
    first, *others = got(reports, scenario)
    assert others == [first] * 3
    assert (first[0], first[2]) == ("OptionError", rank)
    for part in message.split(" .* "):
        assert part in first[1]


# One rank


@pytest.fixture
def state() -> pyckpt.State:
    model = torch.nn.Linear(2, 2)
    part = {"loader": {"next": 3}, "order": torch.arange(4)}
    return pyckpt.State(model, torch.optim.AdamW(model.parameters()), per_rank=part)


@pytest.mark.parametrize("suffix", ["", ".tar", ".tar.gz", ".tar.bz2", ".tar.lzma"])
def test_one_rank_in_every_format(state: pyckpt.State, tmp_path: Path, suffix: str) -> None:
    [path] = pyckpt.save_checkpoint(state, f"{tmp_path}/x{suffix}")
    assert list(pyckpt.load(path)) == ["state", "rng", "per_rank"]
    assert "per_rank" not in state.state_dict()
    state.per_rank = {}
    pyckpt.load_checkpoint(path, state)
    assert state.per_rank["loader"] == {"next": 3}
    assert torch.equal(state.per_rank["order"], torch.arange(4))


def test_weights_alone_have_none(state: pyckpt.State, tmp_path: Path) -> None:
    [path] = pyckpt.save_checkpoint(state, tmp_path / "x.tar", weights_only=True)
    assert list(pyckpt.load(path)) == ["state", "rng"]
    [path] = pyckpt.save_checkpoint(state, tmp_path / "x.tar")
    state.per_rank = {"kept": 1}
    pyckpt.load_checkpoint(path, state, load_weights_only=True)
    assert state.per_rank == {"kept": 1}


@pytest.mark.parametrize("ignored", ["per_rank", "per_rank/*"])
def test_it_can_be_ignored(state: pyckpt.State, tmp_path: Path, ignored: str) -> None:
    [path] = pyckpt.save_checkpoint(state, tmp_path / "x.tar", ignore_keys=ignored)
    assert list(pyckpt.load(path)) == ["state", "rng"]
    [path] = pyckpt.save_checkpoint(state, tmp_path / "x.tar")
    state.per_rank = {"kept": 1}
    pyckpt.load_checkpoint(path, state, ignore_keys=ignored)
    assert state.per_rank == {"kept": 1}
    pyckpt.load_checkpoint(path, state, ignore_keys="per_rank/*/order")
    assert state.per_rank == {"loader": {"next": 3}}


def test_ranks_keep_their_places(state: pyckpt.State, tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    pyckpt.save({"state": state.state_dict(), "per_rank": [{"a": 1}, {"a": 2}]}, path)
    with pytest.raises(pyckpt.OptionError, match="what some ranks have in 'per_rank'"):
        pyckpt.load_checkpoint(path, state, ignore_keys="per_rank/0")
    with pytest.warns(UserWarning, match="the per_rank of 2 ranks, and there are 1"):
        pyckpt.load_checkpoint(path, state)
    assert state.per_rank == {"a": 1}


def test_what_is_no_part_is_refused(state: pyckpt.State, tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    pyckpt.save({"state": state.state_dict(), "per_rank": {"a": 1}}, path)
    with pytest.raises(pyckpt.StateMismatchError, match="'per_rank' is no list of dicts"):
        pyckpt.load_checkpoint(path, state)
    state.per_rank = {1: 2}  # type: ignore[dict-item]
    with pytest.raises(pyckpt.OptionError, match="per_rank must be a dict with strings as keys"):
        pyckpt.save_checkpoint(state, path)


class Bare:
    """A state without per_rank."""

    run_name, timestamp = "bare", pyckpt.Timestamp()

    def __init__(self) -> None:
        self.model = torch.nn.Linear(2, 2)

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any], *, strict: bool) -> None:
        self.model.load_state_dict(state_dict["model"], strict=strict)


def test_a_state_that_takes_none(state: pyckpt.State, tmp_path: Path) -> None:
    [path] = pyckpt.save_checkpoint(state, tmp_path / "x.tar")
    with pytest.warns(UserWarning, match="has per_rank, and a Bare takes none: it is left out"):
        pyckpt.load_checkpoint(path, Bare())
    [path] = pyckpt.save_checkpoint(Bare(), tmp_path / "y.tar")
    assert list(pyckpt.load(path)) == ["state", "rng"]
