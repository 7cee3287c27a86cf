"""save_checkpoint on one process and on real torchrun ranks."""

from __future__ import annotations

import datetime
import json
import os
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pyckpt
from tests.launch import run_ranks, torchrun


@pytest.fixture
def state() -> pyckpt.State:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 4))
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    model(torch.randn(5, 8)).sum().backward()
    optimizer.step()
    scheduler.step()
    timestamp = pyckpt.Timestamp(epoch=1, batch=42, total_wct=datetime.timedelta(seconds=1.5))
    return pyckpt.State(model, optimizer, scheduler, "run", timestamp, {"note": "ours"})


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return bool(np.array_equal(a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


@pytest.mark.parametrize("suffix", ["", ".pt", ".tar", ".tar.gz", ".tar.bz2", ".tar.lzma"])
def test_everything_comes_back(state: pyckpt.State, tmp_path: Path, suffix: str) -> None:
    expected_rng = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.random.get_rng_state(),
    }
    if torch.cuda.is_initialized():  # by another test in this process
        expected_rng["cuda"] = torch.cuda.get_rng_state()
    name = f"{tmp_path}/{{run_name}}/ep{{epoch}}-ba{{batch:04d}}-rank{{rank}}{suffix}"
    paths = pyckpt.save_checkpoint(state, name)
    assert paths == [tmp_path / "run" / f"ep1-ba0042-rank0{suffix}"]
    loaded = pyckpt.load(paths[0])
    assert list(loaded) == ["state", "rng"]
    assert equal(loaded["state"], state.state_dict())
    assert [list(rng) for rng in loaded["rng"]] == [list(expected_rng)]
    assert equal(loaded["rng"], [expected_rng])


def test_the_default_name(
    state: pyckpt.State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert pyckpt.save_checkpoint(state) == [Path("ep1-ba42-rank0")]
    assert torch.load("ep1-ba42-rank0", weights_only=False, mmap=True)["state"]["run_name"] == "run"


def test_the_file_loads_where_torch_saves_does(state: pyckpt.State, tmp_path: Path) -> None:
    [path] = pyckpt.save_checkpoint(state, tmp_path / "weights", weights_only=True)
    loaded = torch.load(path, weights_only=False)
    assert list(loaded) == ["state", "rng"]
    assert list(loaded["state"]) == ["model"]
    assert equal(loaded["state"]["model"], state.model.state_dict())


def test_ignored_keys_are_not_saved(state: pyckpt.State, tmp_path: Path) -> None:
    [path] = pyckpt.save_checkpoint(
        state, tmp_path / "a.tar", ignore_keys=["state/optimizers/*", "state/model/0.*", "rng"]
    )
    loaded = pyckpt.load(path)
    assert list(loaded) == ["state"]
    assert loaded["state"]["optimizers"] == {}
    assert not [key for key in loaded["state"]["model"] if key.startswith("0.")]
    assert state.optimizers.state_dict()["state"], "the training state itself was edited"

    def edit(contents: dict[str, Any]) -> None:
        del contents["state"]["optimizers"]["AdamW"]["state"]

    [path] = pyckpt.save_checkpoint(state, tmp_path / "b.tar", ignore_keys=edit)
    assert list(pyckpt.load(path)["state"]["optimizers"]["AdamW"]) == ["param_groups"]
    assert state.optimizers.state_dict()["state"]
    with pytest.warns(UserWarning, match="nothing matches 'state/modle'"):
        pyckpt.save_checkpoint(state, tmp_path / "c.tar", ignore_keys=["state/modle"])


@pytest.mark.parametrize(
    ("filename", "message"),
    [
        ("{epok}", r"unknown variable \{epok\}.*\{epoch\}.*\{batch_wct\}"),
        ("{batch:nonsense}", "cannot render"),
        ("{batch", "cannot render"),
        ("sub/{run_name}/x", "leads out of"),
        ("x.tar.foo", r"'\.tar\.foo' is not a suffix.*\.tar\.gz"),
        ("folder/", "does not name a file"),
    ],
)
def test_bad_names_are_refused_before_anything_is_written(
    state: pyckpt.State, tmp_path: Path, filename: str, message: str
) -> None:
    state.run_name = "../../climbs"
    with pytest.raises(pyckpt.FilenameError, match=message):
        pyckpt.save_checkpoint(state, f"{tmp_path}/{filename}")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("state", [nn.Linear(2, 2), {"model": 1}, None, "x"])
def test_what_is_no_state_is_told_how_to_become_one(tmp_path: Path, state: Any) -> None:
    for call in (pyckpt.save_checkpoint, pyckpt.async_save_checkpoint):
        with pytest.raises(pyckpt.OptionError, match=r"pyckpt.State\(model.*pyckpt.save and"):
            call(state, tmp_path / "x.tar")
    assert not any(tmp_path.iterdir())


def test_ranks_without_a_process_group_are_refused(
    state: pyckpt.State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for call in (pyckpt.save_checkpoint, pyckpt.async_save_checkpoint):
        with pytest.raises(pyckpt.OptionError, match="init_process_group"):
            call(state, f"{tmp_path}/x-{{rank}}.tar")
    assert not any(tmp_path.iterdir())


def test_counts_of_numpy_become_ints(state: pyckpt.State, tmp_path: Path) -> None:
    state.timestamp = pyckpt.Timestamp(epoch=np.int64(2), batch=np.int32(3))
    [path] = pyckpt.save_checkpoint(state, tmp_path / "ba{batch}.tar")
    saved = pyckpt.load(path)["state"]["timestamp"]["Timestamp"]
    assert path.name == "ba3.tar"
    assert (type(saved["epoch"]), saved["epoch"]) == (int, 2)


def test_a_failure_leaves_what_was_there(state: pyckpt.State, tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    pyckpt.save_checkpoint(state, path)
    before = path.read_bytes()
    state.extra = {"bad": lambda: None}
    with pytest.raises(pyckpt.CheckpointError, match=r"rank 0.*(pickle|local object)") as caught:
        pyckpt.save_checkpoint(state, path)
    assert caught.value.rank == 0
    assert caught.value.__cause__ is not None
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.tar.gz"]


def test_a_state_of_ones_own_fits(tmp_path: Path) -> None:
    class Count:
        def __int__(self) -> int:
            return 7

    class Mine:
        model = nn.Linear(2, 2)
        run_name = "mine"
        timestamp = type("T", (), {"batch": Count()})()

        def state_dict(self) -> dict[str, Any]:
            return {"model": self.model.state_dict()}

    assert isinstance(Mine(), pyckpt.TrainingState)
    [path] = pyckpt.save_checkpoint(Mine(), f"{tmp_path}/{{batch}}.tgz", weights_only=True)
    assert path.name == "7.tgz"


def reports(out: Path, scenario: str, ranks: range) -> list[dict[str, Any]]:
    return [json.loads((out / f"{scenario}-{rank}.json").read_text()) for rank in ranks]


@pytest.mark.parametrize("scenario", ["plain", "weights"])
def test_rank_0_writes_and_all_ranks_know(tmp_path: Path, scenario: str) -> None:
    run_ranks(
        "checkpoint_worker.py", scenario, tmp_path, f"{tmp_path}/r{{rank}}w{{world_size}}.tar"
    )
    path = tmp_path / "r0w2.tar"
    assert [r["paths"] for r in reports(tmp_path, scenario, range(2))] == [[str(path)]] * 2
    assert sorted(p.name for p in tmp_path.glob("*.tar")) == ["r0w2.tar"]
    loaded = pyckpt.load(path)
    assert list(loaded["state"]["model"]) == ["weight", "bias"]
    python_states = [rng["python"] for rng in loaded["rng"]]
    expected = []
    for rank in range(2):
        expected.append(random.Random(rank).getstate())
    assert python_states == expected


@pytest.mark.parametrize(
    ("scenario", "filename", "rank", "kind", "message", "cause"),
    [
        ("pickling", "x.tar", 0, "CheckpointError", "this state cannot be pickled", "RuntimeError"),
        ("state_dict", "x.tar", 1, "CheckpointError", "no such layer", "KeyError"),
        ("signal", "x.tar.lzma", 0, "CheckpointError", "the job's time is up", "TimeoutError"),
        ("name", "{local_rnk}", 0, "FilenameError", "{local_rank}", "FilenameError"),
    ],
)
def test_a_failing_rank_fails_all(
    tmp_path: Path, scenario: str, filename: str, rank: int, kind: str, message: str, cause: str
) -> None:
    out, folder = tmp_path / "out", tmp_path / "folder"
    out.mkdir()
    folder.mkdir()
    run_ranks("checkpoint_worker.py", scenario, out, f"{folder}/{filename}")
    first, second = reports(out, scenario, range(2))
    assert first["error"] == second["error"]
    assert first["error"][0] == kind
    assert message in first["error"][1]
    assert first["error"][2] == rank
    assert (first, second)[rank]["cause"] == cause
    assert not any(folder.iterdir())


def test_a_killed_rank_hangs_nobody(tmp_path: Path) -> None:
    out, folder = tmp_path / "out", tmp_path / "folder"
    out.mkdir()
    folder.mkdir()
    (folder / "x.tar").write_bytes(b"old")
    done = torchrun("checkpoint_worker.py", "killed", out, f"{folder}/x.tar", must_succeed=False)
    assert done.returncode != 0
    [survivor] = reports(out, "killed", range(1))
    assert survivor["error"][0] == "CheckpointError"
    assert "rank 1 does not answer" in survivor["error"][1]
    assert survivor["seconds"] < 60
    assert [p.name for p in folder.iterdir()] == ["x.tar"]
    assert (folder / "x.tar").read_bytes() == b"old"


def test_no_warning_comes_from_a_save(state: pyckpt.State, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pyckpt.save_checkpoint(state, tmp_path / "a.tar.gz")
