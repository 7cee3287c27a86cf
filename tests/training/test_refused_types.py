"""What the default load refuses is said at the save."""

from __future__ import annotations

import datetime
import enum
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pyckpt


class Colour(enum.Enum):
    RED = 1


class Own:
    """A class of the user."""


REFUSED = {
    "path": (lambda: Path("x"), "'state/extra/in/0' is a pathlib."),
    "enum": (lambda: Colour.RED, f"'state/extra/in/0' is a {__name__}.Colour: load_checkpoint"),
    "object": (Own, f"'state/extra/in/0' is a {__name__}.Own: load_checkpoint and pyckpt.load"),
    "class": (lambda: Own, f"the state holds a {__name__}.Own: load_checkpoint"),
    "frozen set": (lambda: frozenset([1]), "'state/extra/in/0' is a builtins.frozenset: load"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_will_be_refused_is_named(tmp_path: Path, kind: str) -> None:
    make, message = REFUSED[kind]
    state = pyckpt.State(nn.Linear(2, 2), extra={"in": [make()]})
    with pytest.warns(UserWarning, match=re.escape(message)) as caught:
        pyckpt.save_checkpoint(state, tmp_path / "x.tar")
    assert [one.filename for one in caught] == [__file__]
    with pytest.raises((pyckpt.CheckpointError, pickle.UnpicklingError)):
        pyckpt.load_checkpoint(tmp_path / "x.tar", state)
    pyckpt.load_checkpoint(tmp_path / "x.tar", state, weights_only=False)


LOADED: dict[str, Any] = {
    "numpy": [np.float64(1), np.int32(2), np.arange(3)],
    "times": datetime.timedelta(seconds=1),
    "torch": [torch.float16, torch.device("cpu"), torch.Size([1]), nn.Parameter(torch.ones(2))],
    "python": [{1, 2}, b"x", 1j, None],
}


@pytest.mark.parametrize("kind", LOADED)
def test_what_is_loaded_is_not_warned_of(tmp_path: Path, kind: str) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, 10)
    state = pyckpt.State(model, optimizer, scheduler, extra={"in": LOADED[kind]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pyckpt.save_checkpoint(state, tmp_path / "x.tar")
        pyckpt.load_checkpoint(tmp_path / "x.tar", state)
    assert repr(state.extra["in"]) == repr(LOADED[kind])
