"""accelerate's save_state through pyckpt, loaded by stock accelerate."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from accelerate.utils import ProjectConfiguration

import pyckpt
from pyckpt.integrations.accelerate import Accelerator

pytestmark = pytest.mark.timeout(60)

STOCK_FILES = ["model.safetensors", "optimizer.bin", "random_states_0.pkl", "scheduler.bin"]


class Training:
    """A loop with two optimizers' worth of state, dropout and a schedule."""

    def __init__(self, cls: Any, project: Path | None = None, **configuration: Any) -> None:
        self.accelerator = cls(
            cpu=True, project_config=ProjectConfiguration(str(project), **configuration)
        )
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Dropout(0.5))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        self.model, self.optimizer, self.schedule = self.accelerator.prepare(
            model, optimizer, schedule
        )

    def steps(self, count: int) -> list[float]:
        losses = []
        for _ in range(count):
            loss = self.model(torch.randn(4, 8)).square().mean()
            self.accelerator.backward(loss)
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad()
            losses.append(loss.item())
        return losses


def failing(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("cls", [Accelerator, accelerate.Accelerator])
def test_training_goes_on_as_if_it_had_never_stopped(
    tmp_path: Path, asynchronous: bool, cls: Any
) -> None:
    training = Training(Accelerator)
    training.steps(3)
    folder = training.accelerator.save_state(tmp_path / "state", asynchronous=asynchronous)
    expected = training.steps(3)
    training.accelerator.wait_for_checkpoint()
    assert sorted(os.listdir(tmp_path)) == ["state"]
    assert sorted(os.listdir(folder)) == STOCK_FILES
    resumed = Training(cls)
    resumed.accelerator.load_state(str(folder))
    assert resumed.steps(3) == expected


def test_the_files_are_those_of_stock(tmp_path: Path) -> None:
    for cls, name in ((accelerate.Accelerator, "stock"), (Accelerator, "ours")):
        training = Training(cls)
        training.accelerator.register_for_checkpointing(training.schedule)
        training.steps(1)
        assert training.accelerator.save_state(str(tmp_path / name)) == tmp_path / name
    assert sorted(os.listdir(tmp_path / "ours")) == sorted(os.listdir(tmp_path / "stock"))
    for file in ("optimizer.bin", "scheduler.bin"):
        ours, stock = (torch.load(tmp_path / name / file) for name in ("ours", "stock"))
        assert str(ours) == str(stock)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_old_ones_go_after_the_new_one_is_there(
    tmp_path: Path, asynchronous: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(Accelerator, tmp_path, automatic_checkpoint_naming=True, total_limit=2)
    accelerator = training.accelerator
    training.steps(1)
    for _ in range(3):
        accelerator.save_state(asynchronous=asynchronous)
    accelerator.wait_for_checkpoint()
    named = tmp_path / "checkpoints"
    assert sorted(os.listdir(named)) == ["checkpoint_1", "checkpoint_2"]
    with monkeypatch.context() as patch:
        patch.setattr("accelerate.checkpointing.torch.save", failing)
        with pytest.raises(pyckpt.CheckpointError, match=r"checkpoint_3 failed .* No space"):
            accelerator.save_state(asynchronous=asynchronous)
    assert sorted(os.listdir(named)) == ["checkpoint_1", "checkpoint_2"]
    folder = accelerator.save_state(asynchronous=asynchronous)
    accelerator.end_training()
    assert folder == named / "checkpoint_3"
    assert sorted(os.listdir(named)) == ["checkpoint_2", "checkpoint_3"]


def test_a_name_that_exists_is_refused(tmp_path: Path) -> None:
    training = Training(Accelerator, tmp_path, automatic_checkpoint_naming=True)
    training.accelerator.save_state()
    training.accelerator.project_configuration.iteration = 0
    with pytest.raises(pyckpt.FilenameError, match="checkpoint_0 exists"):
        training.accelerator.save_state()


def test_the_newest_whole_one_is_loaded(tmp_path: Path) -> None:
    """A killed process leaves a hidden folder, which stock accelerate takes for the newest."""
    training = Training(Accelerator, tmp_path, automatic_checkpoint_naming=True)
    training.steps(1)
    training.accelerator.save_state()
    expected = training.steps(2)
    (tmp_path / "checkpoints" / ".checkpoint_1.0.pyckpt-new").mkdir()
    training.accelerator.load_state()
    assert training.steps(2) == expected


def test_other_files_in_the_folder_stay(tmp_path: Path) -> None:
    training = Training(Accelerator)
    training.accelerator.save_state(tmp_path / "state")
    (tmp_path / "state" / "notes" / "deep").mkdir(parents=True)
    (tmp_path / "state" / "notes" / "deep" / "mine").write_text("kept")
    training.steps(1)
    training.accelerator.save_state(tmp_path / "state")
    expected = training.steps(2)
    assert (tmp_path / "state" / "notes" / "deep" / "mine").read_text() == "kept"
    training.accelerator.load_state(tmp_path / "state")
    assert training.steps(2) == expected


@pytest.mark.parametrize("asynchronous", [False, True])
def test_links_in_the_folder(tmp_path: Path, asynchronous: bool) -> None:
    training = Training(Accelerator)
    folder = training.accelerator.save_state(tmp_path / "state")
    (folder / "optimizer.bin").rename(tmp_path / "elsewhere")
    (folder / "optimizer.bin").symlink_to(tmp_path / "elsewhere")
    (folder / "mine").symlink_to("nowhere")
    training.steps(1)
    training.accelerator.save_state(folder, asynchronous=asynchronous)
    expected = training.steps(2)
    training.accelerator.load_state(folder)
    assert training.steps(2) == expected
    assert os.readlink(folder / "mine") == "nowhere"


def test_a_failed_save_leaves_the_old_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(Accelerator)
    training.accelerator.save_state(tmp_path / "state")
    expected = training.steps(2)
    monkeypatch.setattr("accelerate.checkpointing.torch.save", failing)
    with pytest.raises(pyckpt.CheckpointError, match="No space left on device"):
        training.accelerator.save_state(tmp_path / "state")
    assert os.listdir(tmp_path) == ["state"]
    training.accelerator.load_state(str(tmp_path / "state"))
    assert training.steps(2) == expected


def test_without_a_folder(tmp_path: Path) -> None:
    with pytest.raises(pyckpt.OptionError, match="output_dir"):
        Training(Accelerator).accelerator.save_state()


@pytest.mark.parametrize("each_node", [False, True])
@pytest.mark.parametrize("url", ["s3://bucket/run", "memory://run"])
def test_a_folder_that_is_a_url_is_refused(
    url: str, each_node: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder, project in ((url, None), (None, url)):
        accelerator = Accelerator(
            project_config=ProjectConfiguration(
                project_dir=project,
                automatic_checkpoint_naming=project is not None,
                save_on_each_node=each_node,
            )
        )
        for call in (accelerator.save_state, accelerator.load_state):
            with pytest.raises(pyckpt.FilenameError, match=f"'{url}' is a URL"):
                call(folder)
    assert os.listdir() == []
