"""Ranks that hold the same state, and ranks that do not: real processes with real parallelism."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import pyckpt
from pyckpt.training.agreement import Description
from tests.launch import TIMEOUT_SECONDS, run_ranks

pytestmark = [
    pytest.mark.newest_torch,  # before torch 2.6, FSDP2 needs a GPU
    pytest.mark.timeout(TIMEOUT_SECONDS),
]

REFUSED = {
    "none": ("OptionError", r"not NoneType: pass pyckpt.State"),
    "module": ("OptionError", "not Sequential"),
    "other-call": ("CheckpointError", "rank 0 called save_checkpoint, and rank 1 called load_"),
    "other-contents": ("CheckpointError", "save the whole state, and rank 1 weights only: save"),
    "tensor-parallel": ("ShardedStateError", "weight '0.weight' of rank 1 has nothing in common"),
    "extra": ("ShardedStateError", "'state/extra/mean' differs between ranks: float32 [2] [1.0"),
    "lr": (
        "ShardedStateError",
        "'state/optimizers/AdamW/param_groups/0/lr' differs between ranks:",
    ),
    "plateau": (
        "ShardedStateError",
        "schedulers/ReduceLROnPlateau/best' differs between ranks: 0.5",
    ),
    "nested-extra": ("ShardedStateError", "'state/extra/seen/1/best' differs between ranks: 0.5 "),
    "async-none": ("OptionError", "not NoneType"),
    "async-tensor-parallel": ("ShardedStateError", "common with rank 0's, and '1.bias' has: the"),
}
SAVED = [
    "plain",
    "fsdp1",
    "fsdp2",
    "pipeline",
    "scheduled",
    "equal-extra",
    "drifted",
    "gathered",
    "gathered-fsdp1",
    "names",
    "strangers",
    "on-rank-0",
    "async-on-rank-0",
    "slow",
]


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of the files, and what each rank reports of each scenario."""
    out, folder = (tmp_path_factory.mktemp(name) for name in ("out", "folder"))
    scenarios = [one for pair in zip(REFUSED, [*SAVED, *SAVED], strict=False) for one in pair]
    run_ranks("agreement_worker.py", out, folder, *dict.fromkeys([*scenarios, *SAVED]))
    return folder, [json.loads((out / f"agreement-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("scenario", REFUSED)
def test_what_one_file_cannot_hold_is_refused_on_all_ranks(
    tried: tuple[Path, list[dict[str, Any]]], scenario: str
) -> None:
    folder, reports = tried
    first, second = (report[scenario] for report in reports)
    assert first["error"] == second["error"]
    kind, message, _ = first["error"]
    assert kind == REFUSED[scenario][0]
    assert REFUSED[scenario][1] in message
    assert not list(folder.glob(f"{scenario}-*"))


@pytest.mark.parametrize("scenario", SAVED)
def test_what_rank_0_has_whole_is_saved(
    tried: tuple[Path, list[dict[str, Any]]], scenario: str
) -> None:
    folder, reports = tried
    name = "run-0" if scenario == "names" else "run"
    path = folder / f"{scenario}-{name}.tar.gz"
    assert [report[scenario].get("paths") for report in reports] == [[str(path)]] * 2
    assert pyckpt.verify(path).ok
    assert pyckpt.load(path)["state"]["model"]["0.weight"].shape == (8, 8)


def test_what_differs_by_rank_has_a_place(tried: tuple[Path, list[dict[str, Any]]]) -> None:
    for report in tried[1]:
        assert "belongs in pyckpt.State(per_rank={...})" in report["extra"]["error"][1]


def test_a_write_may_take_longer_than_the_groups_time_limit(
    tried: tuple[Path, list[dict[str, Any]]],
) -> None:
    assert all(report["slow"]["seconds"] > 16 for report in tried[1])


def test_a_rank_that_is_alone_learns_it(tmp_path: Path) -> None:
    run_ranks("agreement_worker.py", tmp_path, tmp_path, "alone", "plain")
    reports = [json.loads((tmp_path / f"agreement-{rank}.json").read_text()) for rank in range(2)]
    first, second = (report["alone"]["error"] for report in reports)
    assert first[0] == second[0] == "CheckpointError"
    assert "waited 4 seconds for rank 1 of 2. Call it on every rank" in first[1]
    assert "came too late on rank 1" in second[1]
    # Then they are in step again.
    assert [list(report["plain"]) for report in reports] == [["paths", "seconds"]] * 2


def test_where_values_count() -> None:
    saved = {
        "model": {"w": torch.ones(2), "of": 1},
        "optimizers": {
            "SGD": {"state": {0: {"n": 1}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
        },
        "schedulers": {"StepLR": {"last_epoch": 2, "lambdas": [None]}},
        "extra": {"n": 1, "of": object(), "t": torch.ones(1)},
    }
    state = pyckpt.State(torch.nn.Identity())
    assert Description(state, {**saved, "timestamp": {"batch": 3}}).parts == {
        "model": {"state/model/w": "float32 [2]"},
        "optimizers": {"state/optimizers/SGD/param_groups/0/lr": "0.1"},
        "schedulers": {
            "state/schedulers/StepLR/last_epoch": "2",
            "state/schedulers/StepLR/lambdas/0": "None",
        },
        "extra": {
            "state/extra/n": "1",
            "state/extra/of": "object",
            "state/extra/t": "float32 [1] [1.0]",
        },
    }


def test_a_cycle_is_followed_once() -> None:
    extra: dict[str, Any] = {"w": torch.ones(2)}
    extra["me"] = extra
    parts = Description(pyckpt.State(torch.nn.Identity()), {"extra": extra}).parts
    assert list(parts["extra"]) == ["state/extra/w"]
