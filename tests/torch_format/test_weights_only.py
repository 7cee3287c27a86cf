"""weights_only means what it means for torch.load, environment variables included."""

from __future__ import annotations

import collections
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import pyckpt

FORCE, FORCE_NOT = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


@pytest.mark.parametrize("wrong", ["yes", 1, 0, "", [True]])
def test_other_values(tmp_path: Path, wrong: Any) -> None:
    pyckpt.save({}, tmp_path / "x.pt")
    with pytest.raises(pyckpt.OptionError, match="weights_only"):
        pyckpt.load(tmp_path / "x.pt", weights_only=wrong)
    state = pyckpt.State(torch.nn.Linear(1, 1))
    with pytest.raises(pyckpt.OptionError, match="weights_only"):
        pyckpt.load_checkpoint(tmp_path / "x.pt", state, weights_only=wrong)


TRY = """
import sys, pickle, warnings, torch, pyckpt
warnings.simplefilter("ignore")
for load in (torch.load, pyckpt.load):
    for options in ({}, {"weights_only": True}, {"weights_only": False}):
        try:
            load(sys.argv[1], **options)
            print("loads")
        except pickle.UnpicklingError:
            print("refuses")
        except (RuntimeError, ValueError):
            print("fails")
"""


@pytest.mark.parametrize("value", ["1", "Yes", "y", "true", "0", "no"])
@pytest.mark.parametrize("names", [[FORCE], [FORCE_NOT], [FORCE, FORCE_NOT]])
def test_as_torch_load(tmp_path: Path, names: list[str], value: str) -> None:
    torch.save(collections.UserDict(), tmp_path / "x.pt")
    done = subprocess.run(
        [sys.executable, "-c", TRY, tmp_path / "x.pt"],
        env={**os.environ, **dict.fromkeys(names, value)},
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    outcomes = done.stdout.split()
    assert outcomes[:3] == outcomes[3:], outcomes
    assert len(outcomes) == 6


def test_a_warning_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(collections.UserDict(), tmp_path / "x.pt")
    with pytest.raises(pickle.UnpicklingError):
        pyckpt.load(tmp_path / "x.pt")
    monkeypatch.setenv(FORCE_NOT, "1")
    with pytest.warns(UserWarning, match=FORCE_NOT):
        assert pyckpt.load(tmp_path / "x.pt") == {}
