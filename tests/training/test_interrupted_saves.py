"""Asynchronous saves and what happens to a training process: moved memory, signals, its end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import pyckpt
from tests.launch import WORKERS

pytestmark = pytest.mark.timeout(120)


def run(scenario: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, WORKERS / "interrupted_worker.py", scenario, folder],
        cwd=WORKERS.parent.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize("scenario", ["share", "queue", "resize"])
def test_memory_that_torch_frees_tears_the_save_and_not_the_process(
    tmp_path: Path, scenario: str
) -> None:
    done = run(scenario, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("TornSaveError "), done.stdout
    assert "parameter weight was changed" in done.stdout
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("scenario", ["set_data", "delete"])
def test_memory_that_pyckpt_keeps_is_saved(tmp_path: Path, scenario: str) -> None:
    done = run(scenario, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "saved x.tar.bz2: True\n"
    assert pyckpt.load(tmp_path / "x.tar.bz2")["state"]["model"]["weight"].shape == (3000, 3000)


@pytest.mark.parametrize(
    "scenario", ["stage-save", "stage-wait", "stage-step", "latch-save", "latch-wait"]
)
def test_a_signal_handler_may_save_or_wait_while_the_state_is_staged(
    tmp_path: Path, scenario: str
) -> None:
    done = run(scenario, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["handled", "saved earlier.tar.bz2: True"]


def test_a_signal_handler_may_save_while_another_save_begins(tmp_path: Path) -> None:
    done = run("begin-save", tmp_path)
    assert done.returncode == 0, done.stderr
    expected = [line for n in range(3) for line in ("handled", f"saved {n}.tar: True")]
    assert done.stdout.splitlines() == [*expected, "saved earlier.tar.bz2: True"]


def test_a_save_that_a_daemon_thread_began_is_finished(tmp_path: Path) -> None:
    done = run("daemon", tmp_path)
    assert (done.returncode, done.stdout) == (0, "begun\n"), done.stderr
    assert pyckpt.verify(tmp_path / "x.tar.bz2").ok


def test_a_save_that_begins_at_the_interpreters_end(tmp_path: Path) -> None:
    done = run("at-exit", tmp_path)
    assert (done.returncode, done.stdout) == (0, "saved x.tar.gz: True\n"), done.stderr


def test_ctrl_c_at_the_interpreters_end_gives_the_save_up(tmp_path: Path) -> None:
    done = run("ctrl-c", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "the process ends when 1 asynchronous save has been written (" in done.stderr
    assert "of 100," in done.stderr
    assert "the saves that are under way are given up" in done.stderr
    assert "an asynchronous save failed" in done.stderr
    assert "the save was given up" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "x.tar.bz2").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x.tar.bz2"]


def test_the_exception_of_a_signal_handler_arrives_as_itself(tmp_path: Path) -> None:
    done = run("own-exception", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "the job's time is up []\n" * 2
