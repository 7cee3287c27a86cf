"""Files from before torch 1.6: the same objects as torch.load, parts of them, and damage."""

from __future__ import annotations

import collections
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pyckpt
from tests.states import assert_equal, mixed_state


def write(obj: Any, path: Path) -> None:
    torch.save(obj, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("weights_only", [True, False])
def test_views_and_shared_storages(tmp_path: Path, weights_only: bool) -> None:
    base = torch.arange(10.0)
    write(
        {"base": base, "part": base[2:5], "none": torch.zeros(0), "p": nn.Parameter(base)},
        tmp_path / "x",
    )
    found = pyckpt.load(tmp_path / "x", weights_only=weights_only)
    assert found["part"].tolist() == [2, 3, 4]
    found["base"][2] = 77
    assert found["part"][0] == found["p"][2] == 77


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_whole_modules(tmp_path: Path) -> None:
    """The pickle holds the source code of their classes."""
    write(nn.Linear(2, 3), tmp_path / "x")
    found = pyckpt.load(tmp_path / "x", weights_only=False)
    assert type(found) is nn.Linear
    assert found(torch.ones(2)).shape == (3,)
    assert pyckpt.verify(tmp_path / "x").ok


def test_parts_of_a_file(tmp_path: Path) -> None:
    write(mixed_state(), tmp_path / "x")
    assert_equal(pyckpt.load(tmp_path / "x", keys="bf16"), {"bf16": mixed_state()["bf16"]})


def test_a_pickle_that_is_larger_than_the_first_read(tmp_path: Path) -> None:
    state = {"t": torch.ones(3), "names": [f"name {n}" for n in range(200_000)]}
    write(state, tmp_path / "x")
    assert (tmp_path / "x").stat().st_size > 3 << 20
    assert_equal(pyckpt.load(tmp_path / "x"), state)


def test_types_that_are_not_allowed(tmp_path: Path) -> None:
    write({"t": torch.ones(2), "d": collections.UserDict()}, tmp_path / "x")
    with pytest.raises(pickle.UnpicklingError, match="UserDict"):
        pyckpt.load(tmp_path / "x")
    assert pyckpt.load(tmp_path / "x", weights_only=False)["d"] == {}


SMALL_STATE = {"t": torch.arange(50.0), "u": torch.zeros(3), "text": "abc"}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("legacy") / "x.pt"
    write(SMALL_STATE, path)
    return path


@given(place=st.floats(0, 1, exclude_max=True))
@settings(deadline=None)
def test_a_file_that_is_cut_off_anywhere(small: Path, place: float) -> None:
    path = small.with_name("cut.pt")
    contents = small.read_bytes()
    path.write_bytes(contents[: int(place * len(contents))])
    for weights_only in (True, False):
        with pytest.raises(pyckpt.CorruptArchiveError, match="cut"):
            pyckpt.load(path, weights_only=weights_only)
    assert not pyckpt.verify(path).ok


@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
@settings(deadline=None)
def test_any_flipped_byte(small: Path, place: float, flip: int) -> None:
    """There are no checksums, but an error is a typed one."""
    path = small.with_name("flipped.pt")
    contents = bytearray(small.read_bytes())
    contents[int(place * len(contents))] ^= flip
    path.write_bytes(contents)
    is_whole = pyckpt.verify(path).ok
    try:
        pyckpt.load(path)
    except (pyckpt.CheckpointError, pickle.UnpicklingError) as error:
        message = str(error)
    else:
        assert is_whole
        return
    assert str(path) in message
