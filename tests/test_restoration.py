"""Restores in two steps."""

from __future__ import annotations

import pytest

import pyckpt
from pyckpt.restoration import Restoration


class Value:
    """Something with a state, which refuses some."""

    def __init__(self, value: int, refuses: int | None = None) -> None:
        self.value, self.refuses = value, refuses

    def state_dict(self) -> int:
        return self.value

    def load_state_dict(self, value: int) -> None:
        if value == self.refuses:
            raise ValueError(f"not {value}")
        self.value = value


def test_undo_takes_everything_back_and_finish_does_the_rest() -> None:
    first, second, later = Value(1), Value(2), []
    restoration = Restoration()
    restoration.load_later(lambda: later.append("done"))
    restoration.load_now(first, 10)
    restoration.load_now(second, 20)
    restoration.undo()
    assert (first.value, second.value, later) == (1, 2, [])
    restoration.load_now(first, 10)
    restoration.finish()
    restoration.undo()
    assert (first.value, later) == (10, ["done"])


def test_a_state_that_cannot_be_put_back_is_told() -> None:
    first, second = Value(1, refuses=1), Value(2, refuses=20)
    restoration = Restoration()
    restoration.load_now(first, 10)
    with pytest.raises(pyckpt.CheckpointError, match="that it had before: ValueError: not 1"):
        restoration.load_now(second, 20)
