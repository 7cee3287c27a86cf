"""Validated options, and how many threads a save takes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pyckpt
from pyckpt import options
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
        {"fsync": 1},
        {"fsync": None},
        {"fsync": "no"},
    ],
)
def test_wrong_values(wrong: dict[str, Any], tmp_path: Path) -> None:
    [name] = wrong
    with pytest.raises(pyckpt.OptionError, match=name) as caught:
        WriteOptions(**wrong)
    assert isinstance(caught.value, ValueError)
    with pytest.raises(pyckpt.OptionError, match=name):
        pyckpt.save([1], tmp_path / "x.tar.gz", **wrong)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("suffix", "lowest", "highest"),
    [(".tar.gz", 0, 9), (".tgz", 0, 9), (".tar.bz2", 1, 9), (".tar.lzma", 0, 9), (".txz", 0, 9)],
)
def test_levels(tmp_path: Path, suffix: str, lowest: int, highest: int) -> None:
    for level in (lowest, highest):
        pyckpt.save([level], tmp_path / f"x{suffix}", compression_level=level)
        assert pyckpt.load(tmp_path / f"x{suffix}") == [level]
    for level in (lowest - 1, highest + 1):
        with pytest.raises(pyckpt.OptionError, match=f"is {lowest} to {highest}, not {level}"):
            pyckpt.save([level], tmp_path / f"x{suffix}", compression_level=level)
    assert pyckpt.load(tmp_path / f"x{suffix}") == [highest]


@pytest.mark.parametrize("suffix", ["", ".pt", ".tar"])
def test_a_level_for_what_is_not_compressed(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(pyckpt.OptionError, match="compression_level"):
        pyckpt.save([1], tmp_path / f"x{suffix}", compression_level=1)
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
    monkeypatch.setattr(options, "cpu_limit", lambda: limit)
    assert available_cpus() == min(len(os.sched_getaffinity(0)), most)


def test_writers_share_the_cpus() -> None:
    cpus = available_cpus()
    assert default_threads(0) == default_threads(1) == cpus
    assert default_threads(cpus) == 1
    assert default_threads(1000 * cpus) == 1


def test_more_threads_than_work(tmp_path: Path) -> None:
    pyckpt.save([1], tmp_path / "x.tar.gz", num_threads=1000)
    assert pyckpt.load(tmp_path / "x.tar.gz") == [1]
