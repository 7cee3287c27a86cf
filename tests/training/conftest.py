"""Fixtures of the tests of saves in the background."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pyckpt.staging import pending_saves
from pyckpt.staging.latch import Latch
from pyckpt.training import background


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Latch]:
    """Acts as an earlier save that is still being written: later work waits until it is set."""
    gate = Latch()
    monkeypatch.setattr(background, "_last_work", gate)
    yield gate
    gate.set()
    pending_saves.wait_for_room(1)
