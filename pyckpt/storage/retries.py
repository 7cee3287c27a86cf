"""Tries again what failed and may succeed the next time: a bounded number of times, with pauses."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import TypeVar

__all__ = ["ATTEMPTS", "try_again"]

T = TypeVar("T")

# Seconds between the attempts, at most; at least half of each. Together less than half a minute.
_PAUSES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 8.0)

ATTEMPTS = len(_PAUSES) + 1
"""How often a request is sent at most."""


def try_again(
    request: Callable[[], T],
    is_passing: Callable[[Exception], bool],
    stopped: threading.Event | None = None,
) -> T:
    """What ``request`` returns, which is called up to ATTEMPTS times.

    Args:
        is_passing: Whether an exception may not come again. Any other is raised at once.
        stopped: Once it is set, there is no further attempt, and a pause ends.
    """
    for pause in _PAUSES:
        try:
            return request()
        except Exception as error:
            if not is_passing(error) or _wait(pause, stopped):
                raise
    return request()


def _wait(pause: float, stopped: threading.Event | None) -> bool:
    """Waits about ``pause`` seconds. Returns whether it was stopped."""
    # Clients that failed together shall not come back together.
    seconds = pause * random.uniform(0.5, 1)
    return (stopped or threading.Event()).wait(seconds)
