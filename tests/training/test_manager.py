"""The checkpoints of a run: saved, found, restored, removed; in one process and on ranks."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import pyckpt
from pyckpt.staging import pending_saves
from pyckpt.staging.latch import Latch
from tests.launch import run_ranks

pytestmark = pytest.mark.timeout(120)


class Run:
    """A run with a model whose weights tell the step."""

    def __init__(self) -> None:
        self.model = torch.nn.Linear(2, 2)
        self.state = pyckpt.State(self.model, torch.optim.SGD(self.model.parameters(), lr=0.1))

    def at(self, step: int) -> pyckpt.State:
        with torch.no_grad():
            self.model.weight.fill_(step)
        return self.state

    @property
    def step(self) -> int:
        return int(self.model.weight[0, 0])


@pytest.fixture
def run() -> Run:
    return Run()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "{a}"  # braces are no variables here


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    yield
    pending_saves.wait_for_room(1)
    pending_saves.raise_uncollected()


def archives(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("step-*"))


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("suffix", [".tar.gz", ".tar", ".pt", ".pt.zst", ""])
def test_saves_are_found_and_restored(
    run: Run, folder: Path, asynchronous: bool, suffix: str
) -> None:
    manager = pyckpt.CheckpointManager(folder, suffix=suffix, asynchronous=asynchronous)
    assert manager.latest() is None
    assert manager.restore_latest(run.state) is None
    for step in (100, 200):
        manager.save(step, run.at(step), metrics={"loss": torch.tensor(1 / step)})
    manager.wait()
    again = pyckpt.CheckpointManager(folder, suffix=suffix)
    assert [one.step for one in again.all()] == [100, 200]
    latest = again.latest()
    assert latest is not None
    assert latest.paths == (folder / f"step-200-rank0{suffix}",)
    assert latest.metrics == {"loss": pytest.approx(1 / 200)}
    run.at(0)
    assert again.restore_latest(run.state) == latest
    assert run.step == 200
    assert os.readlink(folder / f"latest-rank0{suffix}") == f"step-200-rank0{suffix}"


@pytest.mark.parametrize("asynchronous", [False, True])
def test_older_ones_go_once_the_new_one_is_safe(run: Run, folder: Path, asynchronous: bool) -> None:
    manager = pyckpt.CheckpointManager(
        folder,
        suffix=".tar",
        keep_last=2,
        keep_every=300,
        keep_best=("loss", "min"),
        asynchronous=asynchronous,
    )
    losses = {100: 3.0, 200: 1.0, 300: 2.0, 400: 4.0, 500: 5.0}
    for step, loss in losses.items():
        manager.save(step, run.at(step), metrics={"loss": loss})
    manager.wait()
    assert archives(folder) == [f"step-{step}-rank0.tar" for step in (200, 300, 400, 500)]
    best = manager.best()
    assert best is not None
    assert best.step == 200
    again = pyckpt.CheckpointManager(folder, suffix=".tar", keep_last=1, keep_best=("loss", "min"))
    again.save(600, run.at(600), metrics={"loss": 9.0})  # knows the metrics of the run before
    assert archives(folder) == ["step-200-rank0.tar", "step-600-rank0.tar"]


def test_nothing_goes_while_the_new_one_is_written(run: Run, folder: Path, gate: Latch) -> None:
    pyckpt.CheckpointManager(folder).save(1, run.at(1))
    manager = pyckpt.CheckpointManager(folder, keep_last=1, asynchronous=True)
    pending = manager.save(2, run.at(2))
    assert isinstance(pending, pyckpt.PendingSave)
    assert archives(folder) == ["step-1-rank0.tar.gz"]
    latest = manager.latest()
    assert latest is not None
    assert latest.step == 1
    gate.set()
    manager.wait()
    assert archives(folder) == ["step-2-rank0.tar.gz"]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_nothing_goes_when_a_save_fails(
    run: Run, folder: Path, asynchronous: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = pyckpt.CheckpointManager(folder, keep_last=1, asynchronous=asynchronous)
    manager.save(1, run.at(1))
    manager.wait()
    (folder / "step-2-rank0.tar.gz").mkdir()  # a file cannot get this name
    with pytest.raises(pyckpt.CheckpointError, match=r"step-2-rank0\.tar\.gz"):
        manager.save(2, run.at(2))
    assert manager.restore_latest(run.at(0)) is not None
    assert run.step == 1


def test_an_error_in_the_background_is_raised_by_the_next_call(
    run: Run, folder: Path, gate: Latch
) -> None:
    manager = pyckpt.CheckpointManager(folder, keep_last=1, asynchronous=True)
    pyckpt.CheckpointManager(folder).save(1, run.at(1))
    manager.save(2, run.at(2))
    folder.chmod(0o700)
    (folder / "step-2-rank0.tar.gz").mkdir()
    (folder / "step-2-rank0.tar.gz" / "x").touch()
    gate.set()
    with pytest.raises(pyckpt.CheckpointError, match="step-2-rank0"):
        manager.wait()
    assert archives(folder) == ["step-1-rank0.tar.gz", "step-2-rank0.tar.gz"]


def test_the_newest_is_the_one_saved_last_and_not_the_highest_step(run: Run, folder: Path) -> None:
    """After a return to an older checkpoint, the abandoned steps do not come back."""
    manager = pyckpt.CheckpointManager(folder, keep_last=3)
    for step in (400, 500, 600, 500):
        manager.save(step, run.at(step))
    assert [one.step for one in manager.all()] == [400, 600, 500]
    assert manager.restore_latest(run.state) is not None
    assert run.step == 500


def test_damaged_and_incomplete_ones_are_passed_over(run: Run, folder: Path) -> None:
    manager = pyckpt.CheckpointManager(folder, suffix=".tar.gz")
    for step in (1, 2, 3, 4):
        manager.save(step, run.at(step))
    (folder / "step-4-rank0.tar.gz").unlink()
    damaged = folder / "step-3-rank0.tar.gz"
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    cut = folder / "step-2-rank0.tar.gz"
    os.truncate(cut, cut.stat().st_size // 2)
    with pytest.warns(UserWarning, match="is passed over") as caught:
        restored = manager.restore_latest(run.at(0))
    assert restored is not None
    assert restored.step == run.step == 1
    assert [str(one.message)[:32] for one in caught] == [
        f"the checkpoint of step {step} is pass" for step in (4, 3, 2)
    ]
    os.truncate(folder / "step-1-rank0.tar.gz", 10)
    with (
        pytest.warns(UserWarning, match="is passed over"),
        pytest.raises(pyckpt.CheckpointError, match=r"none of the 3 checkpoints .* can be read"),
    ):
        manager.restore_latest(run.state)


def test_one_that_does_not_fit_is_an_error(run: Run, folder: Path) -> None:
    pyckpt.CheckpointManager(folder).save(1, run.at(1))
    other = pyckpt.State(torch.nn.Linear(3, 3))
    with pytest.raises(pyckpt.StateMismatchError):
        pyckpt.CheckpointManager(folder).restore_latest(other)


def test_files_that_are_not_in_the_list_count(run: Run, folder: Path) -> None:
    """A process that dies between the commit and the list leaves such a file."""
    manager = pyckpt.CheckpointManager(folder, keep_last=2)
    manager.save(1, run.at(1), metrics={"loss": 1.0})
    time.sleep(0.02)
    pyckpt.save_checkpoint(run.at(2), str(folder / "step-2-rank0.tar.gz").replace("{a}", "{{a}}"))
    assert [one.step for one in manager.all()] == [1, 2]
    manager.save(3, run.at(3))
    assert archives(folder) == ["step-2-rank0.tar.gz", "step-3-rank0.tar.gz"]
    (folder / "checkpoints.json").write_text("{")
    with pytest.warns(UserWarning, match=r"checkpoints\.json is damaged"):
        assert [one.step for one in manager.all()] == [2, 3]


def test_a_save_that_was_killed_before_the_first_ranks_file(run: Run, folder: Path) -> None:
    manager = pyckpt.CheckpointManager(folder, suffix=".tar", keep_last=2)
    manager.save(1, run.at(1))
    for rank in (1, 2):
        pyckpt.save(run.state.state_dict(), folder / f"step-2-rank{rank}.tar")
    assert [one.step for one in manager.all()] == [1]
    manager.save(3, run.at(3))
    assert archives(folder) == ["step-1-rank0.tar", "step-3-rank0.tar"]


def test_the_list_is_json_for_everybody(run: Run, folder: Path) -> None:
    pyckpt.CheckpointManager(folder, suffix=".tar").save(7, run.at(7), metrics={"loss": 2})
    [entry] = json.loads((folder / "checkpoints.json").read_text())["checkpoints"]
    assert entry.pop("saved_at") == pytest.approx(time.time(), abs=60)
    assert entry == {"step": 7, "files": ["step-7-rank0.tar"], "metrics": {"loss": 2.0}}


def test_other_files_in_the_folder_stay(run: Run, folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in ("step-1", "step-x-rank0.tar", "notes.txt", "latest.txt"):
        (folder / name).write_text("")
    manager = pyckpt.CheckpointManager(folder, keep_last=1)
    for step in (1, 2):
        manager.save(step, run.at(step))
    assert {"step-1", "step-x-rank0.tar", "notes.txt", "latest.txt"} <= set(os.listdir(folder))


@pytest.mark.parametrize("after", ["_listed", "_found"])
def test_one_that_goes_while_somebody_looks(
    run: Run, folder: Path, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first rank may remove it while another rank reads the list and the folder."""
    first, other = (pyckpt.CheckpointManager(folder, keep_last=1) for _ in range(2))
    first.save(1, run.at(1))
    (folder / "checkpoints.json").unlink()
    look = getattr(other, after)

    def look_and_wait() -> Any:
        found = look()
        first.save(2, run.at(2))
        return found

    monkeypatch.setattr(other, after, look_and_wait)
    assert {one.step for one in other.all()} <= {2}


def test_no_error_in_the_background_is_lost(run: Run, folder: Path, gate: Latch) -> None:
    manager = pyckpt.CheckpointManager(folder, asynchronous=True, max_pending=2)
    for step in (1, 2):
        manager.save(step, run.at(step))
    (folder / "checkpoints.json").mkdir(parents=True)
    gate.set()
    for step in (1, 2):
        with pytest.raises(pyckpt.CheckpointError, match=f"the checkpoint of step {step} is safe"):
            manager.wait()
    manager.wait()


def test_files_that_lie_beside_a_checkpoint_are_none(run: Run, folder: Path) -> None:
    manager = pyckpt.CheckpointManager(folder, suffix=".pt")
    manager.save(1, run.at(1))
    beside = ["step-1-rank0.json", "step-1-rank0.pt.sha256", "step-9-rank0", "step-9-rank0.zip"]
    for name in beside:
        (folder / name).write_text("")
    manager.save(2, run.at(2))
    assert [one.step for one in manager.all()] == [1, 2]
    assert archives(folder) == sorted([*beside, "step-1-rank0.pt", "step-2-rank0.pt"])


@pytest.mark.parametrize("suffix", ["", ".foo", ".pth.gz", ".tar"])
def test_older_ones_of_another_suffix_go_too(run: Run, folder: Path, suffix: str) -> None:
    pyckpt.CheckpointManager(folder, suffix=suffix).save(1, run.at(1))
    manager = pyckpt.CheckpointManager(folder, suffix=".tar.gz", keep_last=1)
    manager.save(2, run.at(2))
    assert archives(folder) == ["step-2-rank0.tar.gz"]


@pytest.mark.parametrize(
    "options",
    [
        {"suffix": ".tar.foo"},
        {"suffix": "tar"},
        {"suffix": "/x.tar"},
        {"keep_last": 0},
        {"keep_best": "loss"},
        {"filename": "x"},
    ],
)
def test_wrong_options(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        pyckpt.CheckpointManager(tmp_path, **options)
    with pytest.raises(pyckpt.FilenameError, match="nothing serves"):
        pyckpt.CheckpointManager("nothing://bucket/run")


@pytest.mark.parametrize("arguments", [(-1,), (1.5,), (1, {"loss": "low"})])
def test_wrong_arguments(run: Run, folder: Path, arguments: tuple[Any, ...]) -> None:
    step, *rest = arguments
    with pytest.raises(pyckpt.OptionError):
        pyckpt.CheckpointManager(folder).save(step, run.state, metrics=rest[0] if rest else None)
    assert not folder.exists()


def test_threads_end(run: Run, folder: Path) -> None:
    before = threading.active_count()
    manager = pyckpt.CheckpointManager(folder, keep_last=1, asynchronous=True)
    for step in range(5):
        manager.save(step, run.at(step))
    manager.wait()
    late = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < late:
        time.sleep(0.01)
    assert threading.active_count() == before
    assert archives(folder) == ["step-4-rank0.tar.gz"]


@pytest.mark.parametrize("kind", ["full", "sharded"])
@pytest.mark.parametrize("asynchronous", [0, 1])
def test_ranks(tmp_path: Path, kind: str, asynchronous: int) -> None:
    run_ranks("manager_worker.py", tmp_path, kind, asynchronous, timeout=100)
    names = [f"step-{step}-rank{rank}.tar" for step in (2, 3) for rank in (0, 1)]
    if kind == "full":
        names = [name for name in names if "rank0" in name]
    assert archives(tmp_path) == names
