"""The last save when a scheduler says that the machine is about to go."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pyckpt
from tests.launch import run_ranks

pytestmark = pytest.mark.timeout(120)


def signalled(after_step: Callable[[], None], number: int) -> None:
    """A step in which a signal comes."""
    os.kill(os.getpid(), number)
    after_step()


def test_it_saves_at_the_end_of_the_step_and_ends(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    steps = []

    def save() -> None:
        pyckpt.async_save(list(steps), tmp_path / "last.pt")

    def train() -> None:
        with pyckpt.save_on_signal(save) as after_step:
            for step in range(10):
                if step == 3:
                    os.kill(os.getpid(), signal.SIGUSR1)
                    assert after_step.signal == signal.SIGUSR1
                steps.append(step)
                after_step()

    with pytest.raises(SystemExit) as ended:
        train()
    assert ended.value.code == 128 + signal.SIGUSR1
    assert pyckpt.load(tmp_path / "last.pt") == [0, 1, 2, 3]
    assert signal.getsignal(signal.SIGUSR1) == before


def test_without_a_signal_nothing_happens() -> None:
    def handler(*_: Any) -> None: ...

    previous = signal.signal(signal.SIGTERM, handler)
    try:
        with pyckpt.save_on_signal(lambda: pytest.fail("saved")) as after_step:
            for _ in range(3):
                after_step()
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_a_second_signal_does_what_it_would_have_done() -> None:
    code = """
import os, signal, pyckpt
with pyckpt.save_on_signal(lambda: os.kill(os.getpid(), signal.SIGTERM)) as after_step:
    os.kill(os.getpid(), signal.SIGTERM)
    print("still here", flush=True)
    after_step()
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout == "still here\n"
    assert done.returncode == -signal.SIGTERM


def test_a_signal_after_the_last_step_is_not_lost(tmp_path: Path) -> None:
    def train() -> None:
        with pyckpt.save_on_signal(lambda: pyckpt.save(1, tmp_path / "last.pt")) as after_step:
            after_step()
            os.kill(os.getpid(), signal.SIGUSR1)
        pytest.fail("it goes on")

    with pytest.raises(SystemExit) as ended:
        train()
    assert ended.value.code == 128 + signal.SIGUSR1
    assert pyckpt.load(tmp_path / "last.pt") == 1


def test_an_error_of_the_block_is_not_replaced() -> None:
    def train() -> None:
        with pyckpt.save_on_signal(lambda: pytest.fail("saved"), signals=[signal.SIGUSR1]):
            os.kill(os.getpid(), signal.SIGUSR1)
            raise ValueError("why")

    with pytest.raises(ValueError, match="why"):
        train()


def test_the_exit_code_may_be_chosen() -> None:
    with (
        pytest.raises(SystemExit) as ended,
        pyckpt.save_on_signal(lambda: None, signals=[signal.SIGUSR2], exit_code=0) as after_step,
    ):
        signalled(after_step, signal.SIGUSR2)
    assert ended.value.code == 0


def test_a_save_that_fails_is_heard(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(pyckpt.CheckpointError, match="an earlier asynchronous save failed"),
        pyckpt.save_on_signal(
            lambda: pyckpt.async_save(1, tmp_path / "file" / "x.pt"), signals=[signal.SIGUSR1]
        ) as after_step,
    ):
        signalled(after_step, signal.SIGUSR1)


@pytest.mark.parametrize("signals", [[signal.SIGKILL], [9999], ["TERM"]])
def test_signals_that_cannot_be_handled(signals: list[Any]) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with (
        pytest.raises(pyckpt.OptionError, match="cannot be handled"),
        pyckpt.save_on_signal(lambda: None, signals=[signal.SIGUSR1, *signals]),
    ):
        pass
    assert signal.getsignal(signal.SIGUSR1) == before


def in_thread(function: Callable[[], Any]) -> BaseException | None:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return errors[0] if errors else None


def test_wrong_uses() -> None:
    with pytest.raises(pyckpt.OptionError, match="a function"):
        pyckpt.save_on_signal(3)  # type: ignore[arg-type]
    with pytest.raises(pyckpt.OptionError, match="a list of signals"):
        pyckpt.save_on_signal(lambda: None, signals=15)  # type: ignore[arg-type]
    with pytest.raises(pyckpt.OptionError, match="with statement"):
        pyckpt.save_on_signal(lambda: None)()
    error = in_thread(pyckpt.save_on_signal(lambda: None).__enter__)
    assert isinstance(error, pyckpt.OptionError)
    assert "main thread" in str(error)


def test_ranks_end_after_the_same_step(tmp_path: Path) -> None:
    run_ranks("signals_worker.py", tmp_path, timeout=100)
    first, second = (pyckpt.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    assert first["step"] == second["step"]
    assert 3 <= first["step"] <= 4
    assert first["signal"] == 0
    assert second["signal"] == signal.SIGTERM


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_ranks_end_together_after_their_last_step(tmp_path: Path, steps: int) -> None:
    """The signal comes to one of them, in the last step or after it."""
    run_ranks("last_signal_worker.py", tmp_path, steps, timeout=100)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rank0.pt", "rank1.pt"]
