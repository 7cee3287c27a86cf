"""A restore in two steps, so that what may fail comes before anything is final."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from pyckpt.errors import CheckpointError, StateMismatchError

__all__ = ["Restoration"]


class Restoration:
    """A restore in two steps: first what may fail, then what was checked."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], Any]] = []
        self._rest: list[Callable[[], Any]] = []

    def load_now(self, target: Any, saved: Any) -> None:
        """Calls ``target.load_state_dict(saved)``. ``undo`` takes it back.

        Raises:
            StateMismatchError: The target refuses. Everything is undone.
        """
        before = target.state_dict()
        with suppress(Exception):  # what cannot be copied is hopefully not changed in place
            before = copy.deepcopy(before)
        self._undo.append(partial(target.load_state_dict, before))
        try:
            target.load_state_dict(saved)
        except Exception as error:
            self.undo()
            raise StateMismatchError(
                f"{type(target).__qualname__} refuses its saved state: "
                f"{type(error).__name__}: {error}"
            ) from error

    def load_later(self, load: Callable[[], Any]) -> None:
        """Lets ``finish`` call ``load``, which must have been checked."""
        self._rest.append(load)

    def undo(self) -> None:
        """Takes everything back that ``load_now`` has changed.

        Raises:
            CheckpointError: An object refuses the state that it had. It may have changed.
        """
        while self._undo:
            try:
                self._undo.pop()()
            except Exception as error:
                raise CheckpointError(
                    "an optimizer or scheduler refused its saved state, and then the state that "
                    f"it had before: {type(error).__name__}: {error}"
                ) from error

    def finish(self) -> None:
        """Does the rest. It cannot be undone."""
        self._undo.clear()
        for load in self._rest:
            load()
