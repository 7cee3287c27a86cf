"""Validated options, and how many threads a save takes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pyckpt
from pyckpt import options
from pyckpt.archive.convert import convert
from pyckpt.archive.extract import extract, extract_tensor
from pyckpt.options import WriteOptions, available_cpus, default_threads


@pytest.mark.parametrize(
    "wrong",
    [
        {"compression_level": "6"},
        {"compression_level": 6.0},
        {"compression_level": True},
        {"num_threads": 0},
        {"num_threads": -1},
        {"num_threads": 2.0},
        {"num_threads": "all"},
        {"num_threads": True},
        {"num_threads": np.True_},
        {"num_threads": np.float64(2)},
        {"num_threads": 4097},
        {"num_threads": 10**9},
        {"num_threads": 2**70},
        {"compression_level": 2**40},
        {"compression_level": -(2**70)},
        {"compression_level": np.float32(6)},
        {"fsync": 1},
        {"fsync": None},
        {"fsync": "no"},
    ],
)
def test_wrong_values(wrong: dict[str, Any], tmp_path: Path) -> None:
    [name] = wrong
    with pytest.raises(pyckpt.OptionError, match=name) as caught:
        pyckpt.save([1], tmp_path / "x.tar.gz", **wrong)
    assert isinstance(caught.value, ValueError)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", [0, -1, 2.0, True, np.True_, "all", 4097, 10**9, 2**70])
def test_wrong_numbers_of_threads_for_what_reads(tmp_path: Path, wrong: Any) -> None:
    path = tmp_path / "x.tar.gz"
    pyckpt.save({"w": torch.ones(2)}, path)
    state = pyckpt.State(torch.nn.Linear(1, 1))
    for call in (
        lambda: pyckpt.load(path, num_threads=wrong),
        lambda: pyckpt.verify(path, num_threads=wrong),
        lambda: pyckpt.inspect(path, num_threads=wrong),
        lambda: convert(path, tmp_path / "y.tar", num_threads=wrong),
        lambda: extract(path, tmp_path / "folder", num_threads=wrong),
        lambda: extract_tensor(path, "w", num_threads=wrong),
        lambda: pyckpt.load_checkpoint(path, state, num_threads=wrong),
    ):
        with pytest.raises(pyckpt.OptionError, match="num_threads must be"):
            call()
    assert os.listdir(tmp_path) == ["x.tar.gz"]


@pytest.mark.parametrize(
    "wrong",
    [
        *({"max_pending": value} for value in (0, -1, 1.0, True, "1", None)),
        *({"nice": value} for value in (-1, 20, 10**30, 1.0, False, None)),
    ],
    ids=str,
)
def test_wrong_values_of_asynchronous_saves(tmp_path: Path, wrong: dict[str, Any]) -> None:
    state = pyckpt.State(torch.nn.Linear(1, 1))
    with pytest.raises(pyckpt.OptionError, match=f"{next(iter(wrong))} must be"):
        pyckpt.async_save_checkpoint(state, tmp_path / "x.tar", **wrong)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [np.int64, np.uint8, torch.tensor], ids=lambda x: x.__name__)
def test_integers_of_other_libraries(tmp_path: Path, kind: Callable[[int], Any]) -> None:
    path = tmp_path / "x.tar.gz"
    pyckpt.save([1], path, compression_level=kind(9), num_threads=kind(2))
    assert pyckpt.load(path, num_threads=kind(2)) == [1]
    assert pyckpt.verify(path, num_threads=kind(2)).ok
    assert pyckpt.inspect(path, num_threads=kind(2)).members
    convert(path, tmp_path / "y.tar.gz", compression_level=kind(1), num_threads=kind(2))
    state = pyckpt.State(torch.nn.Linear(1, 1))
    pending = pyckpt.async_save_checkpoint(
        state, tmp_path / "z.tar", num_threads=kind(2), nice=kind(3), max_pending=kind(2)
    )
    pyckpt.load_checkpoint(*pending.result(), state, num_threads=kind(2))
    options = WriteOptions(kind(9), kind(2))
    assert (type(options.compression_level), type(options.num_threads)) == (int, int)


@pytest.mark.parametrize(
    ("suffix", "lowest", "highest"),
    [
        *((".tar.gz", 0, 9), (".tgz", 0, 9), (".tar.bz2", 1, 9), (".tar.lzma", 0, 9)),
        *((".txz", 0, 9), (".tar.zst", 1, 19), (".pt.gz", 0, 9), (".pt", 0, 9), ("", 0, 9)),
    ],
)
def test_levels(tmp_path: Path, suffix: str, lowest: int, highest: int) -> None:
    for level in (lowest, highest):
        pyckpt.save([level], tmp_path / f"x{suffix}", compression_level=level)
        assert pyckpt.load(tmp_path / f"x{suffix}") == [level]
    for level in (lowest - 1, highest + 1):
        with pytest.raises(pyckpt.OptionError, match=f"is {lowest} to {highest}, not {level}"):
            pyckpt.save([level], tmp_path / f"x{suffix}", compression_level=level)
    assert pyckpt.load(tmp_path / f"x{suffix}") == [highest]


def test_a_level_for_what_is_not_compressed(tmp_path: Path) -> None:
    with pytest.raises(pyckpt.OptionError, match="compression_level"):
        pyckpt.save([1], tmp_path / "x.tar", compression_level=1)
    assert not any(tmp_path.iterdir())


@pytest.fixture
def one_cpu() -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


@pytest.mark.usefixtures("one_cpu")
def test_affinity_is_respected() -> None:
    assert available_cpus() == 1
    assert default_threads() == 1


@pytest.mark.parametrize(
    ("limit", "most"), [(None, 10**6), (0.5, 1), (1.0, 1), (1.99, 1), (2.0, 2), (1e6, 10**6)]
)
def test_a_cgroups_quota_is_respected(
    monkeypatch: pytest.MonkeyPatch, limit: float | None, most: int
) -> None:
    seconds = iter(range(0, 1000, 20))  # what was asked once is known for ten seconds
    monkeypatch.setattr(time, "monotonic", lambda: next(seconds))
    expected = min(len(os.sched_getaffinity(0)), most)
    for asked in (limit, None, limit):
        monkeypatch.setattr(options, "cpu_limit", lambda asked=asked: asked)
        assert available_cpus() == (expected if asked == limit else len(os.sched_getaffinity(0)))
    options._known_cpu_limit.cache_clear()


def test_writers_share_the_cpus() -> None:
    cpus = available_cpus()
    assert default_threads(0) == default_threads(1) == cpus
    assert default_threads(cpus) == 1
    assert default_threads(1000 * cpus) == 1


def test_more_threads_than_work(tmp_path: Path) -> None:
    pyckpt.save([1], tmp_path / "x.tar.gz", num_threads=1000)
    assert pyckpt.load(tmp_path / "x.tar.gz") == [1]
