"""What only newer releases of Composer have."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import pytest

from tests.integrations import composer_training as training
from tests.integrations.composer_cases import contents, differences, trained, written_by

# isort: split

import torch
from composer.checkpoint import save
from composer.utils import checkpoint
from composer.utils.compression import CompressorNotFound

import pyckpt

__all__ = ["trained"]  # a fixture

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(200)]


def test_the_call_for_the_save_folder_saves_before_it_returns(tmp_path: Path) -> None:
    with written_by(True):
        trainer = training.make_trainer(tmp_path, batches=3, save_interval="99ba")
        trainer.fit()
        trainer.save_checkpoint_to_save_folder()
        assert os.readlink(tmp_path / "latest-rank0.pt") == "ep0-ba3-rank0.pt"
        pyckpt.verify(tmp_path / "ep0-ba3-rank0.pt").raise_if_damaged()
        trainer.close()


def test_the_new_layout(tmp_path: Path, trained: Any) -> None:
    for mode, name in ((False, "ours"), (None, "theirs")):
        with written_by(mode):
            path = save.save_checkpoint_to_disk(str(tmp_path / name), trained.state)
    del path
    trees = [
        sorted(p.relative_to(tmp_path / n) for p in (tmp_path / n).rglob("*"))
        for n in ("ours", "theirs")
    ]
    assert trees[0] == trees[1]
    files = [path for path in trees[0] if path.suffix == ".pt"]
    assert len(files) == 2
    for path in files:
        both = [torch.load(tmp_path / n / path, weights_only=False) for n in ("ours", "theirs")]
        assert differences(*both) == []


@pytest.mark.parametrize("suffix", [".pt.lz4", ".pt.lzo", ".pt.unknown"])
def test_other_compressed_files_are_left_to_composer(
    tmp_path: Path, trained: Any, suffix: str
) -> None:
    path = str(tmp_path / f"a{suffix}")
    with (
        written_by(True),
        pytest.warns(UserWarning, match="Composer writes .* itself"),
        contextlib.suppress(CompressorNotFound),  # it runs a program for them
    ):
        assert checkpoint.save_checkpoint(trained.state, path) == path


def test_ignored_keys_stay_in_the_optimizer(tmp_path: Path, trained: Any) -> None:
    path = str(tmp_path / "a.pt")
    with written_by(False):
        checkpoint.save_checkpoint(trained.state, path, ignore_keys=["*/step"])
    states = contents(path)["state"]["optimizers"]["AdamW"]["state"]
    assert all("step" not in one for one in states.values())
    assert all("step" in one for one in trained.state.optimizers[0].state.values())
