"""Saves of any object while training goes on, in one process."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pyckpt
from pyckpt.archive.formats import file_suffixes, usual_suffixes
from pyckpt.options import Stage
from pyckpt.staging import pending_saves
from pyckpt.staging.latch import Latch
from tests.launch import private_mounts

pytestmark = pytest.mark.timeout(120)

SUFFIXES = ["", ".pt", *usual_suffixes(), *file_suffixes()]
STAGES: list[Stage] = ["copy", "lazy", None]
WIDTH = 100


class Loop:
    """A loop of a script that names no State."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        self.model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.steps = 0
        self.train(2)

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.model(torch.randn(8, WIDTH)).square().mean().backward()
            self.optimizer.step()
            self.steps += 1

    def checkpoint(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "steps": self.steps,
        }


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    yield
    pending_saves.wait_for_room(1)
    pending_saves.check_may_begin(1)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.usefixtures("frozen_time")
def test_the_file_is_that_of_a_blocking_save(
    loop: Loop, tmp_path: Path, stage: Stage, suffix: str
) -> None:
    blocking, path = tmp_path / f"blocking{suffix}", tmp_path / f"async{suffix}"
    pyckpt.save(loop.checkpoint(), blocking)
    pending = pyckpt.async_save(loop.checkpoint(), path, optimizers=loop.optimizer, stage=stage)
    loop.train(3)
    assert pending.result() == path
    assert path.read_bytes() == blocking.read_bytes()


@pytest.mark.parametrize("optimizers", [True, False])
def test_what_changes_before_the_write_is_saved_as_it_was(
    loop: Loop, tmp_path: Path, gate: Latch, optimizers: bool
) -> None:
    pyckpt.save(loop.checkpoint(), tmp_path / "expected.pt")
    obj = loop.checkpoint()
    named = loop.optimizer if optimizers else None
    pending = pyckpt.async_save(obj, tmp_path / "x.pt", optimizers=named)
    obj["steps"] = -1
    if not optimizers:
        assert pending.staged.is_set()
        with torch.no_grad():
            loop.model[0].weight.zero_()
    loop.train(2)
    gate.set()
    pending.result()
    assert (tmp_path / "x.pt").read_bytes() == (tmp_path / "expected.pt").read_bytes()


def test_only_what_the_optimizers_train_is_read_in_place(
    loop: Loop, tmp_path: Path, gate: Latch
) -> None:
    other = torch.ones(1000)
    pyckpt.save({**loop.checkpoint(), "other": other}, tmp_path / "expected.pt")
    pending = pyckpt.async_save(
        {**loop.checkpoint(), "other": other}, tmp_path / "x.pt", optimizers=[loop.optimizer]
    )
    assert not pending.staged.is_set()
    other.zero_()
    loop.model(torch.randn(8, WIDTH))  # changes the statistics of the batch norm
    gate.set()
    pending.result()
    assert (tmp_path / "x.pt").read_bytes() == (tmp_path / "expected.pt").read_bytes()


def test_a_torn_save_commits_nothing_and_is_copied_the_next_time(
    loop: Loop, tmp_path: Path, gate: Latch, caplog: pytest.LogCaptureFixture
) -> None:
    pyckpt.save("old", tmp_path / "x.pt")
    pending = pyckpt.async_save(loop.checkpoint(), tmp_path / "x.pt", optimizers=loop.optimizer)
    with torch.no_grad():
        loop.model[0].weight.zero_()
    gate.set()
    with pytest.raises(pyckpt.TornSaveError, match="was changed while it was saved"):
        pending.result()
    assert pyckpt.load(tmp_path / "x.pt") == "old"
    again = pyckpt.async_save(loop.checkpoint(), tmp_path / "x.pt", optimizers=loop.optimizer)
    assert again.staged.is_set()
    assert again.result() == tmp_path / "x.pt"


def test_lazy_needs_an_optimizer_with_hooks(loop: Loop, tmp_path: Path) -> None:
    loop.optimizer.step = lambda: None  # type: ignore[method-assign, assignment]
    with pytest.raises(pyckpt.OptionError, match="does not call the hooks"):
        pyckpt.async_save({}, tmp_path / "x", optimizers=loop.optimizer, stage="lazy")


def test_saves_are_written_in_the_order_of_the_calls(
    loop: Loop, tmp_path: Path, gate: Latch
) -> None:
    path = tmp_path / "x.tar"
    saves = [pyckpt.async_save(i, path, max_pending=9) for i in range(5)]
    state = pyckpt.State(loop.model, loop.optimizer)
    last = pyckpt.async_save_checkpoint(state, path, max_pending=9)
    assert not wait([*saves, last], timeout=0.3).done, "all are behind the one before"
    assert not path.exists()
    gate.set()
    assert {save.result() for save in saves} == {path}
    assert last.result() == [path]
    assert pyckpt.load(path)["state"].keys() >= {"model"}


def test_a_blocking_save_of_the_same_file_has_the_last_word(tmp_path: Path, gate: Latch) -> None:
    pending = pyckpt.async_save("older", tmp_path / "x.pt")
    pyckpt.save("elsewhere", tmp_path / "y.pt")  # does not wait
    assert not pending.done()
    threading.Timer(0.2, gate.set).start()
    (tmp_path / "link.pt").symlink_to("x.pt")
    pyckpt.save("newer", tmp_path / "link.pt")
    assert pending.done()
    assert pyckpt.load(tmp_path / "x.pt") == "newer"


@pytest.mark.parametrize(
    "options",
    [
        {"stage": "later"},
        {"compression_level": 3, "path": "x.tar"},
        {"path": "x.tar.foo"},
        {"path": "nix://bucket/x.pt"},
        {"num_threads": 0},
        {"max_pending": 0},
        {"when_busy": "panic"},
        {"member": "../x"},
        {"stage": "lazy", "optimizers": object()},
    ],
)
def test_wrong_arguments_raise_at_the_call(
    tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(pyckpt.CheckpointError):
        pyckpt.async_save(1, **{"path": "x.tar", **options})
    assert os.listdir(tmp_path) == []


def test_what_cannot_be_pickled_raises_at_the_call(tmp_path: Path) -> None:
    with pytest.raises(pyckpt.CheckpointError, match=r"saving .*x\.pt failed"):
        pyckpt.async_save(lambda: None, tmp_path / "x.pt")
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_heard_and_nothing_is_lost(tmp_path: Path) -> None:
    code = """
import os, sys, torch, pyckpt
pyckpt.save("old", "x.tar")
pending = pyckpt.async_save(torch.randn(1 << 20), "x.tar")
try:
    pending.result()
except pyckpt.CheckpointError as error:
    print(error.errno, error.path, os.listdir("."), pyckpt.load("x.tar"))
pyckpt.async_save("small", "x.tar").result()
print(pyckpt.load("x.tar"))
"""
    script = 'mount -t tmpfs -o size=1m none "$0" && cd "$0" && exec "$1" -c "$2"'
    command = [*private_mounts(script), str(tmp_path), sys.executable, code]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=100, check=False, env=env
    )
    assert done.stdout.splitlines() == ["28 x.tar ['x.tar'] old", "small"], done.stderr


def test_an_error_that_nobody_collects_is_raised_by_the_next_save(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.ERROR):
        pyckpt.async_save(1, tmp_path / "file" / "x.pt")
        pending_saves.wait_for_room(1)
    with pytest.raises(pyckpt.CheckpointError, match="an earlier asynchronous save failed"):
        pyckpt.async_save(1, tmp_path / "x.pt")
