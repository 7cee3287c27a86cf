"""Which errors of asynchronous saves somebody has asked for."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import pytest

import pyckpt
from pyckpt.staging import pending_saves


@pytest.fixture
def failed(tmp_path: Path) -> Iterator[pyckpt.PendingSave[Path]]:
    (tmp_path / "file").touch()
    pending = pyckpt.async_save(1, tmp_path / "file" / "x.pt")
    wait([pending])
    yield pending
    pending.exception()


@pytest.mark.parametrize("ask", ["result", "exception"])
def test_an_error_that_a_timeout_hides_is_still_raised(
    failed: pyckpt.PendingSave[Path], ask: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The save may fail just after the time is over, before the call has returned."""

    def be_late(*_: Any) -> None:
        raise TimeoutError

    with monkeypatch.context() as patched:
        patched.setattr(Future, "result", be_late)
        patched.setattr(Future, "exception", be_late)
        with pytest.raises(TimeoutError):
            getattr(failed, ask)(0)
    with pytest.raises(pyckpt.CheckpointError, match="an earlier asynchronous save failed"):
        pending_saves.raise_uncollected()


@pytest.mark.parametrize("ask", ["result", "exception"])
def test_an_error_that_was_asked_for_is_not_raised_again(
    failed: pyckpt.PendingSave[Path], ask: str
) -> None:
    if ask == "exception":
        assert isinstance(failed.exception(), pyckpt.CheckpointError)
    else:
        with pytest.raises(pyckpt.CheckpointError):
            failed.result()
    pending_saves.raise_uncollected()
