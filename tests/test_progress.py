"""Progress hooks: called in order, up to the end, and on rank 0 only."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import pyckpt
from pyckpt.archive.formats import file_suffixes, usual_suffixes
from pyckpt.cli import main

SUFFIXES = [*usual_suffixes(), ".pt", *file_suffixes()]
STATE = {"t": torch.arange(2_000_000.0), "u": torch.zeros(9)}


class Calls:
    def __init__(self) -> None:
        self.seen: list[tuple[int, int | None]] = []

    def __call__(self, done: int, total: int | None) -> None:
        self.seen.append((done, total))

    def check(self, total: int | None) -> None:
        assert [done for done, _ in self.seen] == sorted(done for done, _ in self.seen)
        if total is not None:
            assert self.seen[-1] == (total, total)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_saves_loads_and_checks(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    saved, loaded, verified = Calls(), Calls(), Calls()
    pyckpt.save(STATE, path, progress=saved)
    total = saved.seen[-1][1]
    assert total is not None
    assert 8_000_000 < total < 8_020_000
    saved.check(total)
    pyckpt.load(path, progress=loaded)
    wanted = loaded.seen[-1][1]
    assert wanted is not None
    assert 8_000_036 <= wanted < 8_020_000
    loaded.check(wanted)
    pyckpt.verify(path, progress=verified)
    verified.check(None)


# Formats that take longer than the time between two reports, on any machine.
@pytest.mark.parametrize("suffix", [".tar.bz2", ".tar.lzma"])
def test_progress_is_told_on_the_way(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    saved, loaded = Calls(), Calls()
    pyckpt.save({"t": torch.randn(12_000_000)}, path, progress=saved, num_threads=1)
    pyckpt.load(path, progress=loaded, num_threads=1)
    for calls in (saved, loaded):
        between = {done for done, total in calls.seen if total and 0 < done < total}
        assert len(between) >= 2, calls.seen


def test_checkpoints(tmp_path: Path) -> None:
    state = pyckpt.State(torch.nn.Linear(1000, 1000))
    saved, loaded = Calls(), Calls()
    pyckpt.save_checkpoint(state, tmp_path / "x.tar.gz", progress=saved)
    pyckpt.load_checkpoint(tmp_path / "x.tar.gz", state, progress=loaded)
    assert saved.seen[-1][0] == saved.seen[-1][1]
    assert loaded.seen[-1][0] == loaded.seen[-1][1]


def test_a_bar_without_a_standard_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.tar.gz"
    monkeypatch.setattr(sys, "stderr", None)
    pyckpt.save(STATE, path, progress=True)
    assert torch.equal(pyckpt.load(path, progress=True)["t"], STATE["t"])
    assert pyckpt.verify(path, progress=True).ok


def test_the_command_without_a_standard_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.tar.gz"
    pyckpt.save(STATE, path)
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["verify", str(path)]) == 0
    assert capsys.readouterr().out.startswith(f"{path}: whole")


def test_rank_0_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    calls = Calls()
    pyckpt.save(STATE, tmp_path / "x.tar", progress=calls)
    pyckpt.load(tmp_path / "x.tar", progress=calls)
    assert calls.seen == []


def test_a_bar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pyckpt.save(STATE, tmp_path / "x.tar", progress=True)
    pyckpt.load(tmp_path / "x.tar", progress=True)
    printed = capsys.readouterr().err
    assert "saving x.tar" in printed
    assert "loading x.tar" in printed


class Enough(Exception):
    pass


def stop(_done: int, _total: int | None) -> None:
    raise Enough


@pytest.mark.timeout(60)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_a_hook_raises_ends_the_work(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    pyckpt.save(1, path)
    with pytest.raises(pyckpt.CheckpointError, match="Enough"):
        pyckpt.save(STATE, path, progress=stop)
    assert pyckpt.load(path) == 1
    pyckpt.save(STATE, path)
    readers: list[Callable[..., Any]] = [pyckpt.load, pyckpt.verify]
    for reader in readers:
        with pytest.raises(Enough):
            reader(path, progress=stop)


def test_what_is_no_hook(tmp_path: Path) -> None:
    with pytest.raises(pyckpt.OptionError, match="progress must be a bool or callable, not 3"):
        pyckpt.save(STATE, tmp_path / "x.tar", progress=3)  # type: ignore[arg-type]
